"""Other people's implementations that a benchmark runs beside ours, where they are installed, as their users call them.

All compute in float32, the only precision they have.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ggml
from .ceilings import seconds

HUGGING_FACE = "transformers.models.qwen3_next.modeling_qwen3_next"
GDN = ("q", "k", "v", "g", "beta")
# op: (name, module, function, names of its tensors)
FORWARD = {
    "gated_delta_rule": (
        ("Hugging Face recurrent", HUGGING_FACE, "torch_recurrent_gated_delta_rule", GDN),
        ("Hugging Face chunk", HUGGING_FACE, "torch_chunk_gated_delta_rule", GDN),
        ("FLA naive recurrent", "fla.ops.gated_delta_rule.naive", "naive_recurrent_gated_delta_rule", GDN),
        ("FLA naive chunk", "fla.ops.gated_delta_rule.naive", "naive_chunk_gated_delta_rule", GDN),
    ),
    "mesa_net": (("FLA naive exact", "fla.ops.mesa_net.naive", "naive_mesa_net_exact", (*GDN[:4], "lamb", "beta")),),
}


@dataclass(frozen=True)
class Peer:
    """call: seconds of one call, by way ("forward"; "backward" without a forward, and "both" with it); o: the outputs
    of a forward."""

    name: str
    whose: str
    ways: tuple[str, ...]
    call: Callable[[], dict[str, float]]
    o: Callable[[], NDArray[Any]] | None = None


def of(op: str, x: dict[str, Any], threads: int) -> Iterator[Peer]:
    """Every peer of an op that is installed."""
    yield from _torch(op, x, threads)
    found = ggml.library() if op in ("gated_delta_rule", "kda") and x["q"].shape == x["v"].shape else None
    if found is not None:
        net = ggml.GatedDeltaNet(found, x, threads)
        yield Peer("ggml GATED_DELTA_NET", "ggml", ("forward",), partial(_timed, net.compute), net.o)


def _torch(op: str, x: dict[str, Any], threads: int) -> Iterator[Peer]:
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return
    torch.set_num_threads(threads)
    given = {name: torch.from_numpy(y) for name, y in x.items()}
    for name, module, function, tensors in FORWARD.get(op, ()):
        try:
            with warnings.catch_warnings(action="ignore"):  # that there is no GPU
                f = inspect.unwrap(getattr(import_module(module), function))  # not the GPU kernel it may stand for
        except (ImportError, AttributeError):
            continue
        if name == "Hugging Face recurrent":
            f = partial(f, initial_state=None, output_final_state=True)
        o = partial(_forward, torch, f, given, tensors)
        yield Peer(name, "torch", ("forward",), partial(_timed, o), partial(_array, o))
        if name.endswith("chunk"):
            call = partial(_backward, torch, f, given, tensors)
            yield Peer(f"torch autograd of {name}", "torch", ("backward", "both"), call)


def _timed(call: Callable[[], Any]) -> dict[str, float]:
    return {"forward": seconds(call)}


def _array(call: Callable[[], Any]) -> NDArray[Any]:
    return np.asarray(call())


def _forward(torch: Any, f: Any, given: dict[str, Any], tensors: tuple[str, ...]) -> Any:
    with torch.no_grad():
        return _called(f, given, tensors)


def _called(f: Any, given: dict[str, Any], tensors: tuple[str, ...]) -> Any:
    """Its outputs; q, k, v by position and the others by name, whose order differs from code to code."""
    return f(*(given[n] for n in tensors[:3]), **{n: given[n] for n in tensors[3:]})[0]


def _backward(torch: Any, f: Any, given: dict[str, Any], tensors: tuple[str, ...]) -> dict[str, float]:
    leaves = {n: given[n].clone().requires_grad_() for n in tensors}
    clock = time.perf_counter()
    o = _called(f, leaves, tensors)
    middle = time.perf_counter()
    o.backward(torch.ones_like(o))
    end = time.perf_counter()
    return {"backward": end - middle, "both": end - clock}
