"""Gated DeltaNet-2: forget, then correct, with separate gates for what is erased and what is written."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Reading, Tensor


def step(S, *, q, k, v, g, b, w, scale):
    S = np.exp(g)[:, None] * S
    u = w * v - (b * k) @ S
    S = S + k[:, None] * u
    return S, scale * (q @ S)


def lower(x, *, HV, **_):
    erase = x["b"] * x["k"].heads(HV)
    return Delta(q=x["q"], k=x["k"], e=erase, v=x["w"] * x["v"], a=x["g"].decay(), order="post")


OP = Op(
    name="gdn2",
    title="Gated DeltaNet-2",
    paper="Hatamizadeh, Choi, Kautz: Gated DeltaNet-2 (2026); arXiv:2605.22791",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2, the prediction gated in keys by b, the target in values by w",
        optimiser="gradient descent, step 1, at the decayed state; with b = w = beta it is KDA's step",
        forgetting="decay exp(g) of each key channel, before the gradient",
    ),
    equations="""
        S~_t = diag(exp(g_t)) S_{t-1}
        u_t  = w_t * v_t - S~_t' (b_t * k_t)        * is elementwise
        S_t  = S~_t + k_t u_t'
        o_t  = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("g", ("B T HV K",), "log decay of each key channel (natural logarithm, at most 0)", role="decay"),
        Tensor("b", ("B T HV K",), "erase gate of each key channel, in (0, 1)"),
        Tensor("w", ("B T HV V",), "write gate of each value channel, in (0, 1)"),
    ),
    step=step,
    lower=lower,
)
