"""Other people's implementations that a benchmark runs beside ours, where they are installed, as their users call them.

Each gives seconds for one call: float32, the only precision they have.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

Call = Callable[[], float]
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
    "mesa_net": (("FLA naive exact", "fla.ops.mesa_net.naive", "naive_mesa_net_exact", (*GDN[:4], "beta", "lamb")),),
}
BY_POSITION = ("q", "k", "v", "lamb")  # the others by name: their order differs from code to code


def of(op: str, x: dict[str, Any], threads: int) -> Iterator[tuple[str, str, Call]]:
    """(name, "forward" or "backward", a timed call) of every peer of an op that is installed."""
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return
    torch.set_num_threads(threads)
    given = {name: torch.from_numpy(y) for name, y in x.items()}
    for name, module, function, tensors in FORWARD.get(op, ()):
        try:
            f = inspect.unwrap(getattr(import_module(module), function))  # not the GPU kernel it may stand for
        except (ImportError, AttributeError):
            continue
        if op == "mesa_net":
            arguments, named = [given[n] for n in ("q", "k", "v", "g", "lamb", "beta")], {}
        else:
            arguments, named = [given[n] for n in GDN[:3]], {n: given[n] for n in tensors[3:]}
            if "recurrent" in name and "Hugging" in name:
                named |= {"initial_state": None, "output_final_state": True}
        yield name, "forward", _forward(torch, f, arguments, named)
        if name == "Hugging Face chunk":
            yield f"torch autograd of {name}", "backward", _backward(torch, f, arguments, named)


def _forward(torch: Any, f: Any, arguments: list[Any], named: dict[str, Any]) -> Call:
    def call() -> float:
        with torch.no_grad():
            clock = time.perf_counter()
            f(*arguments, **named)
            return time.perf_counter() - clock

    return call


def _backward(torch: Any, f: Any, arguments: list[Any], named: dict[str, Any]) -> Call:
    """The backward alone: its forward is not counted."""

    def call() -> float:
        leaves = [y.clone().requires_grad_() for y in arguments]
        leaves_named = {n: y.clone().requires_grad_() for n, y in named.items()}
        o, _ = f(*leaves, **leaves_named)
        cotangent = torch.ones_like(o)
        clock = time.perf_counter()
        o.backward(cotangent)
        return time.perf_counter() - clock

    return call
