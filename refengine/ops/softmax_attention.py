"""Softmax attention: nothing is compressed, every query is a regression of its own over all tokens so far."""

from __future__ import annotations

import numpy as np

from ..spec import Op, Reading, Softmax, Tensor


def step(S, *, q, k, v, scale):
    """All tokens of one sequence."""
    o = []
    for t in range(len(q)):
        s = scale * (k[: t + 1] @ q[t])
        w = np.exp(s - s[t])
        o.append((w @ v[: t + 1]) / w.sum())
    return S, np.array(o)


def lower(x, **_):
    return Softmax(q=x["q"], k=x["k"], v=x["v"])


OP = Op(
    name="softmax_attention",
    title="Softmax attention",
    paper="Vaswani et al.: Attention Is All You Need (2017), eq. 1, causal; arXiv:1706.03762",
    reading=Reading(
        model="non-parametric: o itself, for each query",
        loss="1/2 sum over i <= t of exp(scale q_t . k_i) |o - v_i|^2",
        optimiser="the exact minimiser (local constant regression)",
        forgetting="none",
        batch="all tokens so far, kept whole",
    ),
    equations="""
        w_ti = exp(scale q_t . k_i)    for i <= t
        o_t  = sum_i w_ti v_i / sum_i w_ti
    """,
    inputs=(
        Tensor("q", ("B T HV K",), "queries; query heads share key heads in consecutive groups", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T H V",), "values", role="value"),
    ),
    step=step,
    lower=lower,
    states=(),
    chunked=True,
)
