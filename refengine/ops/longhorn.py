"""Longhorn: one implicit (proximal) step a token, solved exactly, which needs no forgetting."""

from __future__ import annotations

from ..spec import ERASE_KEY, Delta, Op, Reading, Tensor


def step(S, *, q, k, v, beta, scale, convention):
    b = beta / (1 + beta * (k @ k))
    if convention == "paper":
        S = S + k[:, None] * (b * (v - k @ S))
    else:
        S = (1 - b * (k * k)[:, None]) * S + k[:, None] * (b * v)
    return S, scale * (q @ S)


def lower(x, *, HV, V, convention, **_):
    q, k, v, channels = x["q"], x["k"], x["v"], x["beta"].value.shape[-1]
    beta = x["beta"].fold()
    b = beta / (beta.filled(1.0) + beta * k.square_sum().heads(HV * channels))
    if convention == "paper":
        return Delta(q=q, k=k, e=ERASE_KEY, v=v, b=b.unfold(channels))
    b, key = b.heads(HV * V), k.heads(HV * V)
    a = b.filled(1.0) - b * (key * key)
    return Delta(q=q, k=k, v=v.fold(), b=b, a=a.relative(), folded=True)


OP = Op(
    name="longhorn",
    title="Longhorn",
    paper="Liu et al.: Longhorn: State Space Models are Amortized Online Learners (2024); arXiv:2407.14207",
    reading=Reading(
        model="S' k",
        loss="1/2 beta |S' k - v|^2",
        optimiser="implicit: argmin over S of 1/2 |S - S_{t-1}|^2 + loss",
        forgetting="none of its own; the exact step overwrites",
    ),
    equations="""
        b_t = beta_t / (1 + beta_t |k_t|^2)
        S_t = S_{t-1} + k_t (b_t * (v_t - S_{t-1}' k_t))'        * is elementwise
        o_t = scale S_t' q_t
        code: S_ij <- (1 - b_j k_i^2) S_ij + k_i b_j v_j
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys, not normalised", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("beta", ("B T HV", "B T HV V"), "weight of the loss, positive, per head or per value channel"),
    ),
    step=step,
    lower=lower,
    conventions={
        "paper": "the exact proximal step, of rank one",
        "code": "the released kernels: the diagonal of I - b k k' alone, so every value channel has a decay of its own",
    },
    scale="1",
)
