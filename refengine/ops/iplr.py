"""Generalised delta rule, identity plus low rank: the state is read at a and written back at b."""

from __future__ import annotations

from ..spec import Delta, Op, Reading, Tensor, low_rank


def step(S, *, q, k, v, a, b, scale):
    S = S + b[:, None] * (a @ S) + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, **_):
    """Two micro-steps: S <- S + b (a' S), then S <- S + k v'."""
    k, e, v = low_rank(x["a"], x["b"], x["k"], x["v"])
    return Delta(q=x["q"], k=k, e=e, v=v, order="pre", micro=2)


OP = Op(
    name="iplr",
    title="Generalised delta rule (IPLR)",
    paper="Yang et al.: DeltaNet (NeurIPS 2024), arXiv:2406.06484; as FLA's ops/generalized_delta_rule/iplr",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2 where a = k, b = -beta k, v := beta v; any linear feedback otherwise",
        optimiser="gradient descent; stable where b = -l a with 0 <= l |a|^2 <= 2",
        forgetting="none",
    ),
    equations="""
        S_t = S_{t-1} + b_t (a_t' S_{t-1}) + k_t v_t'
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("a", ("B T H K",), "what reads the state"),
        Tensor("b", ("B T H K",), "where that is written back"),
    ),
    step=step,
    lower=lower,
)
