"""RWKV-7: forget in each key channel, remove what is found along a, and write."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Reading, Tensor, low_rank


def step(S, *, r, w, k, v, a, b, scale):
    S = np.exp(w)[:, None] * S + b[:, None] * (a @ S) + k[:, None] * v
    return S, scale * (r @ S)


def lower(x, **_):
    """Two micro-steps: S <- diag(exp w) S + b (a' S), then S <- S + k v'."""
    k, e, v = low_rank(x["a"], x["b"], x["k"], x["v"])
    return Delta(q=x["r"], k=k, e=e, v=v, a=x["w"].decay_first(2), order="pre", micro=2)


OP = Op(
    name="rwkv7",
    title="RWKV-7",
    paper="Peng et al.: RWKV-7 (2025); arXiv:2503.14456",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2, with a removal key apart from the written one",
        optimiser="gradient descent, a rate for each key channel, at the state before its decay",
        forgetting="decoupled decay exp(w) of each key channel",
    ),
    equations="""
        S_t = diag(exp(w_t)) S_{t-1} + b_t (a_t' S_{t-1}) + k_t v_t'
        o_t = scale S_t' r_t
        the model: a = -k^, b = k^ * rate, k^ the normalised removal key
    """,
    inputs=(
        Tensor("r", ("B T H K",), "receptance, the query", role="query"),
        Tensor("w", ("B T HV K",), "log decay of each key channel (natural logarithm, at most 0)", role="decay"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("a", ("B T H K",), "what reads the state before its decay"),
        Tensor("b", ("B T H K",), "where that is written back"),
    ),
    step=step,
    lower=lower,
    conventions={
        "fla_chunk": "scale=None is 1: the paper, FLA's chunk_rwkv7 and fused_mul_recurrent_rwkv7",
        "fla_fused_recurrent": "scale=None is K^-1/2: FLA's fused_recurrent_rwkv7",
    },
    scale="1",
    scale_of={"fla_fused_recurrent": "K^-1/2"},
)
