"""Retention (RetNet): linear attention that forgets at a fixed rate, slower from head to head."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Reading, Tensor


def step(S, *, q, k, v, scale, head):
    one = k[0] * 0 + 1
    S = (one - one / 2 ** (5 + head)) * S
    S = S + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, *, HV, **_):
    lost = x["q"].per_head(np.ldexp(1.0, -(5 + np.arange(HV))))
    return Delta(q=x["q"], k=x["k"], v=x["v"], a=(lost.filled(1.0) - lost).relative())


OP = Op(
    name="retention",
    title="RetNet's retention",
    paper="Sun et al.: Retentive Network (2023), eqs. 6 and 8; arXiv:2307.08621",
    reading=Reading(
        model="S' k",
        loss="-<S' k, v>",
        optimiser="gradient descent, step 1",
        forgetting="constant decay 1 - 2^-(5 + h) of value head h",
    ),
    equations="""
        S_t = (1 - 2^-(5 + h)) S_{t-1} + k_t v_t'        h = 0, 1, ... the value head
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries, rotated (xPos) by the caller", role="query"),
        Tensor("k", ("B T H K",), "keys, rotated (xPos) by the caller", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
    ),
    step=step,
    lower=lower,
)
