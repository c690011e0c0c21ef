"""What a case can see, computed: every input is perturbed and every usual mistake made, and the outputs must move.

A movement is max |difference| / max |truth| over outputs, the larger of o and final_state; a mistake that moves them by
less than SEEN is not exposed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.run import execute
from ..engine.solution import Solution
from ..errors import InputError
from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv
from ..spec import Op
from .problems import problem

Array = NDArray[Any]
Arguments = dict[str, Any]
SEEN = 2.0**-8  # one rounding to bfloat16


def wide(x: Array) -> NDArray[np.float32]:
    return np.asarray(x, dtype=np.float32)


def nudged(x: Array, decay: bool) -> Array:
    """Every fifth token from the last one back moved by half the size of the whole; a decay set to -5/16, or to -5/8
    where it is that."""
    y = np.array(wide(x))
    at = (slice(None), slice(None, None, -5)) if y.ndim > 2 else (slice(None),)
    if decay:
        y[at] = np.where(y[at] == np.float32(-0.3125), np.float32(-0.625), np.float32(-0.3125))
        return y
    size = float(np.abs(y).max(initial=0.0)) or 1.0
    y[at] += np.float32(0.5 * size)
    return y


def perturbations(op: Op, a: Arguments) -> dict[str, Arguments]:
    """Every floating input, moved."""
    out: dict[str, Arguments] = {}
    decays = {t.name for t in op.role("decay")}
    for name, x in a.items():
        if isinstance(x, Mapping):
            out |= {f"{name}.{part}": {**a, name: {**x, part: nudged(y, False)}} for part, y in x.items()}
        elif isinstance(x, np.ndarray) and x.dtype.kind not in "iu":
            out[name] = {**a, name: nudged(x, name in decays)}
        elif isinstance(x, Conv):
            out[f"{name}.weight"] = {**a, name: replace(x, weight=nudged(x.weight, False))}
            if x.bias is not None:
                out[f"{name}.bias"] = {**a, name: replace(x, bias=nudged(x.bias, False))}
        elif isinstance(x, Gate):
            for part in ("a", "A_log", "dt_bias"):
                if getattr(x, part) is not None:
                    parts: dict[str, Any] = {part: nudged(getattr(x, part), False)}
                    out[f"gate.{part}"] = {**a, name: replace(x, **parts)}
    return out


def named(op: Op, role: str) -> str | None:
    tensor = next(iter(op.role(role)), None)
    return None if tensor is None else tensor.name


def changed(
    name: str | None, change: Callable[[NDArray[np.float32]], Array]
) -> Callable[[Op, Arguments], Arguments | None]:
    return lambda op, a: None if name not in a else {**a, name: change(wide(a[name]))}


def of_gate(change: Callable[[NDArray[np.float32]], Array]) -> Callable[[Op, Arguments], Arguments | None]:
    return lambda op, a: changed(named(op, "decay"), change)(op, a)


def dropped(*names: str) -> Callable[[Op, Arguments], Arguments | None]:
    return lambda op, a: {n: x for n, x in a.items() if n not in names} if any(n in a for n in names) else None


def each_state(x: Any, change: Callable[[Array], Array]) -> Any:
    """An initial state changed, or each of several."""
    return {name: change(part) for name, part in x.items()} if isinstance(x, Mapping) else change(x)


def transposed(op: Op, a: Arguments) -> Arguments | None:
    def turned(x: Array) -> Array:
        return np.ascontiguousarray(x.swapaxes(2, 3)) if x.ndim == 4 and x.shape[2] == x.shape[3] else x

    x = a.get("initial_state")
    if x is None or all(turned(y) is y for y in (x.values() if isinstance(x, Mapping) else (x,))):
        return None
    return {**a, "initial_state": each_state(x, turned)}


def tiled(op: Op, a: Arguments) -> Arguments | None:
    """Value head h reads key head h mod H."""
    HV, out = problem(op.name, a).sizes["HV"], dict(a)
    shared = [t.name for t in op.inputs if "H" in t.axes[0].split() and t.name in a]
    if not shared or any(isinstance(a.get(f"conv_{letter}"), Conv) for letter in "qk") or a[shared[0]].shape[2] == HV:
        return None
    for name in shared:
        H = a[name].shape[2]
        out[name] = np.ascontiguousarray(a[name][:, :, [h % H for h in range(HV)]])
    return out


def unsegmented(op: Op, a: Arguments) -> Arguments | None:
    if "cu_seqlens" not in a:
        return None
    out = {n: x for n, x in a.items() if n not in ("cu_seqlens", "initial_state")}
    return {**out, "initial_state": each_state(a["initial_state"], lambda x: x[:1])} if "initial_state" in a else out


def rescaled(op: Op, a: Arguments) -> Arguments | None:
    scale = problem(op.name, a).conventions()["scale"]
    K = a[named(op, "key") or ""].shape[-1]
    return None if K == 1 else {**a, "scale": (1.0 / np.sqrt(K) if scale == "K^-1/2" else float(scale)) * np.sqrt(K)}


def swapped(op: Op, a: Arguments) -> Arguments | None:
    q, k = named(op, "query"), named(op, "key")
    same = q and k and a[q].shape == a[k].shape and "conv_q" not in a
    return {**a, str(q): a[str(k)], str(k): a[str(q)]} if same else None


def reversed_taps(op: Op, a: Arguments) -> Arguments | None:
    x = a.get("conv_k")
    return None if x is None else {**a, "conv_k": replace(x, weight=np.ascontiguousarray(x.weight[..., ::-1]))}


def other_eps(op: Op, a: Arguments) -> Arguments | None:
    return {**a, "use_qk_l2norm": L2Norm(1e-6, "outside")} if a.get("use_qk_l2norm") else None


forgotten = dropped("initial_state")
MISTAKES: Mapping[str, Callable[[Op, Arguments], Arguments | None]] = {
    "scale missing": rescaled,
    "initial state ignored": lambda op, a: None if any(t.required for t in op.states) else forgotten(op, a),
    "initial state transposed": transposed,
    "decay ignored": of_gate(lambda g: 0 * g),
    "decay applied twice": of_gate(lambda g: 2 * g),
    "decay to base 2": of_gate(lambda g: g * np.float32(0.6931472)),
    "decay of the token before": of_gate(lambda g: np.roll(g, 1, axis=1)),
    "decay of the first head for all": of_gate(lambda g: np.repeat(g[:, :, :1], g.shape[2], axis=2)),
    "beta ignored": changed("beta", lambda b: 0 * b + 1),
    "beta doubled": changed("beta", lambda b: 2 * b),
    "beta squared": changed("beta", lambda b: b * b),
    "alpha ignored": changed("alpha", lambda x: 0 * x),
    "eta ignored": changed("eta", lambda x: 0 * x),
    "theta doubled": changed("theta", lambda x: 2 * x),
    "ridge halved": changed("lamb", lambda x: 0.5 * x),
    "mini-batches twice as long": lambda op, a: {**a, "chunk_size": 2 * a["chunk_size"]} if "chunk_size" in a else None,
    "key heads tiled": tiled,
    "queries and keys swapped": swapped,
    "segments ignored": unsegmented,
    "keys not normalised": lambda op, a: {**a, "use_qk_l2norm": False} if a.get("use_qk_l2norm") else None,
    "eps outside the root": other_eps,
    "key shift missing": lambda op, a: {**a, "key_shift": 0} if a.get("key_shift") else None,
    "convolution missing": dropped("conv_k"),
    "convolution taps reversed": reversed_taps,
}


def moved(truth: Solution, other: Solution) -> float:
    """How far the outputs moved; a final state that has another shape has moved altogether."""
    most = 0.0
    both = [(x, other.finals[name]) for name, x in truth.finals.items() if name in other.finals]
    for x, y in [(truth.o, other.o), *both]:
        size = float(np.abs(x).max(initial=0.0))
        if x.shape == y.shape:
            apart = float(np.abs(x - y).max(initial=0.0))
            most = max(most, apart / size if size else float(apart > 0))
    return most


def otherwise(op: Op, a: Arguments, name: str, word: str) -> Arguments:
    """With another word for an option, and without those that do not go with it."""
    idle = {n for n, r in op.options.items() if r.goes_with and r.goes_with[0] == name and word not in r.goes_with[1]}
    return {n: x for n, x in a.items() if n not in idle} | {name: word}


def exposure(op: Op, a: Arguments, least: float = SEEN) -> tuple[dict[str, float], list[str], list[str]]:
    """(by how much each input moves the outputs, the mistakes that move them by `least`, those that do not)."""
    truth = execute(problem(op.name, a), 1)

    def of(altered: Arguments) -> float:
        return moved(truth, execute(problem(op.name, altered), 1))

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mistake may take a step or a gate out of its range
        sensitivity = {name: of(altered) for name, altered in perturbations(op, a).items()}
        tried = {name: make(op, a) for name, make in MISTAKES.items()}
        others = [c for c in op.conventions if c != op.convention(a.get("convention"))]
        tried |= {f"convention {c}": {**a, "convention": c} for c in others}
        words = [(n, word) for n, rule in op.options.items() for word in rule.choices if word != a.get(n, rule.default)]
        tried |= {f"{name} {word}": otherwise(op, a, name, word) for name, word in words}
        seen = {}
        for name, altered in tried.items():
            with suppress(InputError):  # what another convention does not take is no mistake that goes unseen
                if altered is not None:
                    seen[name] = of(altered) >= least
    return sensitivity, sorted(n for n, yes in seen.items() if yes), sorted(n for n, yes in seen.items() if not yes)
