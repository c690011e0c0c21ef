"""Comba: forget and correct at once, with a key of its own for the prediction and a correction of the query.

FLA's layer subtracts d p from the query before its l2norm, the op here after: to reproduce that layer pass the
corrected query and no d.
"""

from __future__ import annotations

import numpy as np

from ..spec import ERASE_KEY, Delta, Op, Reading, Tensor


def step(S, *, q, k, v, p, g, beta, d, scale, convention):
    p = k if p is None else p
    q = q if d is None else q - d * p
    decayed = np.exp(g) * S
    u = beta * (v - p @ (S if convention == "splr" else decayed))
    S = decayed + k[:, None] * u
    return S, scale * (q @ S)


def lower(x, *, HV, convention, **_):
    p = x["k"] if x["p"] is None else x["p"]
    q = x["q"] if x["d"] is None else x["q"].heads(HV) - x["d"] * p.heads(HV)
    erase = ERASE_KEY if x["p"] is None else p
    order = "pre" if convention == "splr" else "post"
    return Delta(q=q, k=x["k"], e=erase, v=x["v"], b=x["beta"], a=x["g"].decay(), order=order)


OP = Op(
    name="comba",
    title="Comba",
    paper="Hu et al.: Comba: Improving Bilinear RNNs with Closed-loop Control (2025); arXiv:2506.02475",
    reading=Reading(
        model="S' k, fed back through S' p",
        loss="1/2 |S' p - v|^2",
        optimiser="gradient descent, step beta, at the state before its decay; written at k",
        forgetting="decoupled weight decay, scalar exp(g)",
    ),
    equations="""
        u_t = beta_t (v_t - S_{t-1}' p_t)        iplr: exp(g_t) S_{t-1} for S_{t-1}
        S_t = exp(g_t) S_{t-1} + k_t u_t'
        o_t = scale S_t' (q_t - d p_t)
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys, which write", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("p", ("B T H K",), "keys that predict; k if absent", required=False, role="key"),
        Tensor("g", ("B T HV",), "log decay (natural logarithm, at most 0)", role="decay"),
        Tensor("beta", ("B T HV", "B T HV V"), "step, in (0, 1); in (0, 2) for iplr", role="step"),
        Tensor("d", ("HV",), "correction of the query: q - d p, after any norm; none if absent", required=False),
    ),
    step=step,
    lower=lower,
    conventions={
        "splr": "predict before the decay: the paper, FLA's chunk and recurrent kernels, Comba-triton's dplr",
        "iplr": "predict after the decay: FLA's naive_recurrent_comba, Comba-triton's iplr",
    },
)
