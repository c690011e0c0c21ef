"""DeltaNet: one step of error correction a token."""

from __future__ import annotations

from ..spec import ERASE_KEY, Delta, Op, Reading, Tensor


def step(S, *, q, k, v, beta, scale):
    u = beta * (v - k @ S)
    S = S + k[:, None] * u
    return S, scale * (q @ S)


def lower(x, **_):
    return Delta(q=x["q"], k=x["k"], e=ERASE_KEY, v=x["v"], b=x["beta"])


OP = Op(
    name="delta_rule",
    title="DeltaNet",
    paper="Schlag, Irie, Schmidhuber: Fast Weight Programmers (ICML 2021), arXiv:2102.11174; Yang et al.: DeltaNet "
    "(NeurIPS 2024), arXiv:2406.06484",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2",
        optimiser="gradient descent, step beta",
        forgetting="none",
    ),
    equations="""
        u_t = beta_t (v_t - S_{t-1}' k_t)
        S_t = S_{t-1} + k_t u_t'
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("beta", ("B T HV", "B T HV V"), "step, in (0, 1), or in (0, 2) with negative eigenvalues", role="step"),
    ),
    step=step,
    lower=lower,
)
