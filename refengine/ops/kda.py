"""Kimi Delta Attention: forget in each key channel, then one step of error correction."""

from __future__ import annotations

import numpy as np

from ..spec import ERASE_KEY, Delta, Op, Reading, Tensor


def step(S, *, q, k, v, g, beta, scale):
    S = np.exp(g)[:, None] * S
    u = beta * (v - k @ S)
    S = S + k[:, None] * u
    return S, scale * (q @ S)


def lower(x, **_):
    return Delta(q=x["q"], k=x["k"], e=ERASE_KEY, v=x["v"], b=x["beta"], a=x["g"].decay(), order="post")


OP = Op(
    name="kda",
    title="Kimi Delta Attention",
    paper="Kimi Team: Kimi Linear (2025); arXiv:2510.26692",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2",
        optimiser="gradient descent, step beta, at the decayed state",
        forgetting="decay exp(g) of each key channel, before the gradient",
    ),
    equations="""
        S~_t = diag(exp(g_t)) S_{t-1}
        u_t  = beta_t (v_t - S~_t' k_t)
        S_t  = S~_t + k_t u_t'
        o_t  = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("g", ("B T HV K",), "log decay of each key channel (natural logarithm, at most 0)", role="decay"),
        Tensor("beta", ("B T HV", "B T HV V"), "step, in (0, 1), or in (0, 2) with negative eigenvalues", role="step"),
    ),
    step=step,
    lower=lower,
)
