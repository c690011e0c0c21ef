"""The definition, run: an op's `step` over every token, with the front end in the same plain arithmetic, in a chosen
number system.

"float64" and "complex128" are NumPy's; "balls" are python-flint's `arb` (extra `certify`): each number an interval
that surely holds the exact one. Nothing here shares code with the kernels or with the front end they use: this is
what they are judged by. It is slow, in Python, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnavailableError
from ..frontend.norm import L2Norm
from ..frontend.pairing import Paired
from .problem import Problem

Array = NDArray[Any]
Embed = Callable[[Any], Array]


def number_system(name: str) -> Embed:
    """What turns float arrays into arrays of that system, exactly."""
    if name != "balls":
        return lambda x: np.asarray(x, dtype=np.dtype(name))
    try:
        from flint import arb
    except ImportError:
        raise UnavailableError("Balls need python-flint: python -m pip install python-flint.") from None
    each = np.frompyfunc(lambda x: arb(float(x)), 1, 1)
    return lambda x: np.asarray(each(np.asarray(x, dtype=np.float64)), dtype=object)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def convolve(x: Array, rule: Paired, p: Problem, number: Embed) -> Array:
    """Shift and short convolution of x [B, T, channels]."""
    y = x.copy()
    width = 1 if rule.weight is None else rule.weight.shape[0]
    for n, (b, t0, t1) in enumerate(p.segments):
        early = np.concatenate([number(rule.past[n]), x[b, t0:t1]])
        for t in range(t1 - t0):
            now = early[t + width - 1]
            if rule.weight is not None and rule.bias is not None:
                z = (number(rule.weight) * early[t : t + width]).sum(axis=0) + number(rule.bias)
                z = z * sigmoid(z) if rule.silu else z
                now = z + now if rule.residual else z
            y[b, t0 + t] = now
    return y


def normalise(x: Array, norm: L2Norm, number: Embed) -> Array:
    eps = number(norm.eps)[()]
    squares = (x * x).sum(axis=-1, keepdims=True)
    if norm.place == "inside":
        length = np.sqrt(squares + eps)
    else:
        length = np.sqrt(squares) + eps if norm.place == "outside" else np.maximum(np.sqrt(squares), eps)
    return np.asarray(x / length)


def inputs(p: Problem, number: Embed) -> dict[str, Array]:
    """Every input of the op, through pairing, norm and gates."""
    known: dict[str, Array] = {}
    for tensor in p.op.inputs:
        if tensor.name not in p.tensors:
            continue
        x = number(p.tensors[tensor.name])
        if tensor.name in p.pairing:
            rule = p.pairing[tensor.name]
            x = convolve(x.reshape(x.shape[0], p.sizes["T"], rule.past.shape[2]), rule, p, number).reshape(x.shape)
        if p.norm is not None and tensor.role in ("query", "key"):
            x = normalise(x, p.norm, number)
        known[tensor.name] = x
    if p.gate is not None:
        a = number(p.gate.a)
        wide = a.ndim == 4
        A: Any = 1
        if p.gate.A_log is not None:
            A = np.exp(number(p.gate.A_log)).reshape((-1, 1) if wide else (-1,))
        bias = 0 if p.gate.dt_bias is None else number(p.gate.dt_bias if wide else p.gate.dt_bias[:, 0])
        low = p.gate.lower_bound
        x = a + bias
        known[p.op.role("decay")[0].name] = -A * np.log1p(np.exp(x)) if low is None else number(low) * sigmoid(A * x)
    if p.beta_logits is not None:
        known["beta"] = sigmoid(number(p.beta_logits)) * (2 if p.allow_neg_eigval else 1)
    return known


def tokens(p: Problem, known: Mapping[str, Array], n: int, h: int, when: slice) -> dict[str, Any]:
    """What one step of one value head sees of every input: one token, or the tokens of a mini-batch."""
    micro = p.options.get("num_householder", 1)
    shared = h // (p.sizes["HV"] // p.sizes["H"])
    at: dict[str, Any] = {"B": p.segments[n][0], "N": n, "HV": h, "H": shared}
    at["T"] = when if p.op.chunked else when.start
    at["T*n"] = slice(when.start * micro, when.stop * micro)
    seen: dict[str, Any] = {}
    for tensor in p.op.inputs:
        x = known.get(tensor.name)
        layout = () if x is None else tensor.layout(x.ndim) or ()
        seen[tensor.name] = None if x is None else x[tuple(at.get(letter, slice(None)) for letter in layout)]
    return seen


def start(p: Problem, number: Embed) -> list[Array]:
    """Each of the op's states before the first token, [N, HV, ...]."""
    shapes = [tuple(p.sizes[letter] for letter in t.axes[0].split()) for t in p.op.states]
    return [number(np.zeros(s) if x is None else x).copy() for s, x in zip(shapes, p.initial, strict=True)]


def define(p: Problem, system: str | Embed = "float64") -> tuple[Array, Any]:
    """(o [B, T, HV, V], final_state) as the definition has them, in that number system. final_state is [N, HV, K, V],
    or a tuple where the op has several states."""
    number = number_system(system) if isinstance(system, str) else system
    known = inputs(p, number)
    B, T, HV, K, V = (p.sizes[x] for x in ("B", "T", "HV", "K", "V"))
    one = number(1.0)[()]
    natural = one / np.sqrt(one * K) if p.scale_is == "K^-1/2" else one
    scale = natural if p.scale is None else number(p.scale)[()]
    constants = {"scale": scale, "convention": p.convention, "heads": HV, **p.options}
    o = number(np.zeros((B, T, HV, V)))
    final = start(p, number)
    for n, (b, _, _) in enumerate(p.segments):
        for h in range(HV):
            S = tuple(state[n, h] for state in final)
            for first, last, update, apply in p.mini_batches(n):
                when = slice(first, last)
                given = {**constants, "head": h, "update": update, "apply": apply, **tokens(p, known, n, h, when)}
                after, read = p.op.step(S[0] if len(S) == 1 else S, **p.op.arguments(p.op.step, given))
                if apply:
                    o[b, when if p.op.chunked else first, h] = read
                S = (after,) if len(S) == 1 else after
            for state, part in zip(final, S, strict=True):
                state[n, h] = part
    return o, final[0] if len(final) == 1 else tuple(final)
