"""Simple gated linear attention, which is Mamba-2's SSD: linear attention with one decay a head and token."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Reading, Tensor


def step(S, *, q, k, v, g, scale):
    S = np.exp(g) * S
    S = S + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, **_):
    return Delta(q=x["q"], k=x["k"], v=x["v"], a=x["g"].decay())


OP = Op(
    name="simple_gla",
    title="Simple GLA (Mamba-2, SSD)",
    paper="Dao, Gu: Transformers are SSMs (ICML 2024); arXiv:2405.21060",
    reading=Reading(
        model="S' k",
        loss="-<S' k, v>",
        optimiser="gradient descent, step 1",
        forgetting="scalar decay exp(g)",
    ),
    equations="""
        S_t = exp(g_t) S_{t-1} + k_t v_t'
        o_t = scale S_t' q_t
        Mamba-2: q = C, k = B, v = dt x, g = dt A, scale = 1
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("g", ("B T HV",), "log decay (natural logarithm, at most 0)", role="decay"),
    ),
    step=step,
    lower=lower,
)
