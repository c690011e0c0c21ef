"""Gated linear attention: linear attention with one decay a key channel."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Reading, Tensor


def step(S, *, q, k, v, g, scale):
    S = np.exp(g)[:, None] * S
    S = S + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, **_):
    return Delta(q=x["q"], k=x["k"], v=x["v"], a=x["g"].decay())


OP = Op(
    name="gla",
    title="Gated linear attention",
    paper="Yang, Wang, Shen, Panda, Kim: Gated Linear Attention Transformers (ICML 2024); arXiv:2312.06635",
    reading=Reading(
        model="S' k",
        loss="-<S' k, v>",
        optimiser="gradient descent, step 1",
        forgetting="decay exp(g) of each key channel",
    ),
    equations="""
        S_t = diag(exp(g_t)) S_{t-1} + k_t v_t'
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("g", ("B T HV K",), "log decay of each key channel (natural logarithm, at most 0)", role="decay"),
    ),
    step=step,
    lower=lower,
)
