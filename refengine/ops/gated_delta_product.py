"""DeltaProduct: forget once, then several steps of error correction a token, one for each of its keys."""

from __future__ import annotations

import numpy as np

from ..spec import ERASE_KEY, Delta, Op, Option, Reading, Tensor


def step(S, *, q, k, v, g, beta, scale):
    if g is not None:
        S = np.exp(g) * S
    for j in range(len(k)):
        u = beta[j] * (v[j] - k[j] @ S)
        S = S + k[j][:, None] * u
    return S, scale * (q @ S)


def lower(x, *, num_householder, **_):
    a = None if x["g"] is None else x["g"].decay_first(num_householder)
    return Delta(q=x["q"], k=x["k"], e=ERASE_KEY, v=x["v"], b=x["beta"], a=a, order="post", micro=num_householder)


OP = Op(
    name="gated_delta_product",
    title="Gated DeltaProduct",
    paper="Siems et al.: DeltaProduct (NeurIPS 2025); arXiv:2502.10297",
    reading=Reading(
        model="S' k",
        loss="1/2 |S' k - v|^2, on n = num_householder pairs a token",
        optimiser="n steps of gradient descent, steps beta, from the decayed state",
        forgetting="scalar decay exp(g), once, before the first step",
        batch="1 token, n inner steps",
    ),
    equations="""
        S    = exp(g_t) S_{t-1}
        S   <- S + k_{t,j} (beta_{t,j} (v_{t,j} - S' k_{t,j}))'        for j = 1 .. n in turn
        S_t  = S
        o_t  = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T*n H K",), "keys, the n of a token side by side", role="key"),
        Tensor("v", ("B T*n HV V",), "values, as the keys", role="value"),
        Tensor("g", ("B T HV",), "log decay (natural logarithm); none if absent", required=False, role="decay"),
        Tensor("beta", ("B T*n HV", "B T*n HV V"), "steps, in (0, 2); at 2 with unit keys a reflection", role="step"),
    ),
    step=step,
    lower=lower,
    conventions={
        "paper": "as the equations above: scale=None is K^-1/2, as in FLA's kernels",
        "fla_naive": "FLA's naive reference, which ignores its `scale`: scale=None is 1; a scale that is given counts",
    },
    scale_of={"fla_naive": "1"},
    options={"num_householder": Option(1, "keys, values and steps a token")},
)
