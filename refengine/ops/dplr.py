"""Generalised delta rule, diagonal plus low rank: the state before its decay is read at a and written back at b."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Reading, Tensor, low_rank


def step(S, *, q, k, v, a, b, g, scale):
    S = np.exp(g)[:, None] * S + b[:, None] * (a @ S) + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, **_):
    """Two micro-steps: S <- diag(exp g) S + b (a' S), then S <- S + k v'."""
    k, e, v = low_rank(x["a"], x["b"], x["k"], x["v"])
    return Delta(q=x["q"], k=k, e=e, v=v, a=x["g"].decay_first(2), order="pre", micro=2)


OP = Op(
    name="dplr",
    title="Generalised delta rule (DPLR)",
    paper="Peng et al.: RWKV-7 (2025), arXiv:2503.14456; as FLA's ops/generalized_delta_rule/dplr",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2 where a = exp(g) * k, b = -beta k, v := beta v; any linear feedback otherwise",
        optimiser="gradient descent, the feedback from the state before its decay",
        forgetting="decay exp(g) of each key channel",
    ),
    equations="""
        S_t = diag(exp(g_t)) S_{t-1} + b_t (a_t' S_{t-1}) + k_t v_t'
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("a", ("B T H K",), "what reads the state before its decay"),
        Tensor("b", ("B T H K",), "where that is written back"),
        Tensor("g", ("B T HV K",), "log decay of each key channel (natural logarithm, at most 0)", role="decay"),
    ),
    step=step,
    lower=lower,
)
