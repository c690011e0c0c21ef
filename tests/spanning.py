"""Inputs for every op: the spanning set of difficult regimes, and awkward shapes. Test data only; nothing here
computes an answer."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np

from refengine import ops
from refengine.engine.checks import chosen
from refengine.engine.prepare import prepare
from refengine.engine.problem import Asked, build

# A rich case (T = 2 C + 5 at C = 16, shared key heads, K != V, an initial state, mild gates), and five that hide less.
REGIMES = ("rich", "still", "strong", "tiny_keys", "same_keys", "unequal_gates")
SHAPES = {
    "T=0": dict(T=0),
    "T=1": dict(T=1),
    "K=1": dict(K=1),
    "V=1": dict(V=1),
    "K=96": dict(T=3, K=96, V=3, B=1, H=1, HV=1),
    "V=200": dict(T=3, K=3, V=200, B=1, H=1, HV=1),
    "HV=3H": dict(T=5, H=2, HV=6, B=1),
    "plain": dict(T=6, start=False),
    "empty rows": dict(B=0, T=4),
}


CHUNK = 4  # tokens of a mini-batch


def log_gates(rng, regime, shape):
    if regime == "still":
        return np.zeros(shape)
    if regime == "strong":
        return np.full(shape, -20.0)
    if regime == "unequal_gates":
        g = -0.01 * rng.uniform(0, 1, shape)
        g[..., ::3] = -8.0
        return g
    return -0.05 * rng.uniform(0, 2, shape)


def keys(rng, regime, shape):
    k = rng.standard_normal(shape)
    if regime == "same_keys":
        k[:] = k[:, :1]
    k /= np.sqrt(np.maximum((k * k).sum(-1, keepdims=True), 1e-30))
    return 1e-3 * k if regime == "tiny_keys" else k


def semidefinite(rng, shape):
    m = rng.standard_normal(shape)
    m = m @ m.swapaxes(-1, -2) + np.eye(shape[-1])  # far enough from 0 to survive bfloat16
    return (m + m.swapaxes(-1, -2)) / 2


def memories(rng, op, size):
    """Each state that the op starts from: an array, or a tuple where there are several."""
    shapes = {t.name: tuple(size[a] for a in t.axes[0].split()) for t in op.states}
    drawn = [semidefinite(rng, s) if n == "h_kk" else rng.standard_normal(s) for n, s in shapes.items()]
    return drawn[0] if len(drawn) == 1 else tuple(drawn)


def training(rng, op, name, shape):
    """What a memory that learns by mini-batches takes: weights of its first layers, gates between 0 and 1, steps."""
    if name in ("w0", "w1", "w2"):
        return rng.standard_normal(shape) / 2
    if name in ("w", "b"):
        return (name == "w") + 0.1 * rng.standard_normal(shape)
    if name == "theta":
        return rng.uniform(0, 0.03 if op.name == "titans_mlp" else 0.3, shape)  # two layers with momentum diverge soon
    return rng.uniform(0, 0.9 if name == "eta" and op.name.startswith("titans") else 0.3, shape)


def case(
    name, regime="rich", *, B=2, T=37, H=2, HV=4, K=5, V=7, seed=0, start=True, cu_seqlens=None, wide_beta=False, n=2
):
    """Keyword arguments of `solve` for one op in one regime."""
    rng = np.random.default_rng([seed, *name.encode(), *regime.encode()])
    op, _ = chosen(ops.get(name), {})
    if cu_seqlens is not None:
        B, T = 1, int(cu_seqlens[-1])
    if regime == "still" or not any("V" in t.axes[0].split() for t in op.inputs):
        V = K
    times = n if "num_householder" in op.options else 1
    size = {"B": B, "T": T, "H": H, "HV": HV, "K": K, "V": V, "R": 6, "T*n": T * times}
    given = {}
    for tensor in op.inputs:
        if tensor.integer:
            continue
        axes = tensor.axes[-1] if wide_beta else tensor.axes[0]
        shape = tuple(size[a] for a in axes.split())
        if tensor.role == "decay":
            given[tensor.name] = log_gates(rng, regime, shape)
        elif tensor.role == "key":
            given[tensor.name] = keys(rng, regime, shape)
        elif tensor.role in ("query", "value"):
            given[tensor.name] = rng.standard_normal(shape)
        elif tensor.name == "beta":
            given[tensor.name] = np.full(shape, 0.99) if regime == "same_keys" else rng.uniform(0, 1, shape)
        elif tensor.name == "alpha":
            given[tensor.name] = rng.uniform(0, 1, shape)
        elif tensor.name == "lamb":
            given[tensor.name] = rng.uniform(0.25, 1, shape)
        elif "chunk_size" in op.options:
            if tensor.required:
                given[tensor.name] = training(rng, op, tensor.name, shape)
        elif tensor.name == "d":
            given[tensor.name] = rng.uniform(0, 0.1, shape)
        elif op.name == "gdn2":
            given[tensor.name] = rng.uniform(0, 1, shape)
        elif tensor.name == "a":  # rwkv7, dplr, iplr: a = -kk, b = kk * rate, so that the transition contracts
            given["a"] = -keys(rng, regime, shape)
        elif tensor.name == "b":
            given["b"] = -given["a"] * rng.uniform(0, 1, shape)
        else:
            raise AssertionError(f"{name}: no inputs for {tensor.name}")
    if times > 1:
        given["num_householder"] = times
    if "chunk_size" in op.options:
        given["chunk_size"] = CHUNK
    if (start and op.states) or any(t.required for t in op.states):
        count = B if cu_seqlens is None else len(cu_seqlens) - 1
        given["initial_state"] = memories(rng, op, {**size, "N": count})
    if cu_seqlens is not None:
        given["cu_seqlens"] = np.array(cu_seqlens)
    return given


def every(*regimes, names=ops.NAMES):
    """(op, convention, regime) for all ops, or those named, and their conventions."""
    return [(n, c, r) for n in names for c in ops.get(n).conventions for r in regimes or REGIMES]


def problem(name, arguments):
    """The Problem that `solve` would build."""
    known = {f.name for f in fields(Asked)}
    tensors = {n: x for n, x in arguments.items() if n not in known}
    return build(name, tensors, Asked(**{n: x for n, x in arguments.items() if n in known}))


@cache
def family(name):
    """The type that the op lowers to."""
    return type(prepare(problem(name, case(name, T=1)))[0])


def of_families(families):
    """The ops that lower to one of these types."""
    return tuple(name for name in ops.NAMES if family(name) in families)
