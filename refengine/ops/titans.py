"""Titans, linear memory: gradient descent with momentum and decoupled decay, by tokens or by mini-batches."""

from __future__ import annotations

import numpy as np

from ..spec import FastWeights, Op, Option, Reading, Tensor
from .slips import TITANS

INPUTS = (
    Tensor("q", ("B T H K",), "queries", role="query"),
    Tensor("k", ("B T H K",), "keys", role="key"),
    Tensor("v", ("B T HV V",), "values", role="value"),
    Tensor("alpha", ("B T HV",), "what is forgotten, in (0, 1)"),
    Tensor("eta", ("B T HV",), "momentum, in (0, 1)"),
    Tensor("theta", ("B T HV",), "step, positive"),
)
CONVENTIONS = {
    "half": "the loss is 1/2 |M' k - v|^2, as for every other op here",
    "whole": "the paper's |M' k - v|^2: every step is twice as long",
}


def step(S, *, q, k, v, alpha, eta, theta, scale, convention):
    M, P = S
    error = k @ M - v
    error = error if convention == "half" else 2 * error
    o = []
    for i in range(len(k)):
        P = eta[i] * P - theta[i] * k[i][:, None] * error[i]
        M = (1 - alpha[i]) * M + P
        o.append(scale * (q[i] @ M))
    return (M, P), np.stack(o)


def training(x, convention):
    """What both memories hand to the fast weights."""
    theta = x["theta"] if convention == "half" else x["theta"] + x["theta"]
    decay = x["alpha"].filled(1.0) - x["alpha"]
    return {"q": x["q"], "k": x["k"], "v": x["v"], "theta": (theta,), "decay": decay, "eta": x["eta"]}


def lower(x, *, convention, **_):
    return FastWeights(slots=("W2", "P2"), **training(x, convention))


OP = Op(
    name="titans",
    title="Titans, linear memory",
    paper="Behrouz, Zhong, Mirrokni: Titans (2024), eq. 9 to 15; arXiv:2501.00663",
    reading=Reading(
        model="M' k",
        loss="1/2 |M' k - v|^2",
        optimiser="gradient descent, step theta, with momentum eta",
        forgetting="decoupled weight decay 1 - alpha",
        batch="1 token, or chunk_size tokens with gradients at its first memory",
    ),
    equations="""
        P_t = eta_t P_{t-1} - theta_t k_t (M' k_t - v_t)'        M of the mini-batch's start; chunk_size 1: M_{t-1}
        M_t = (1 - alpha_t) M_{t-1} + P_t
        o_t = scale M_t' q_t
    """,
    inputs=INPUTS,
    step=step,
    lower=lower,
    states=(
        Tensor("memory", ("N HV K V", "HV K V"), "M, the memory", required=False),
        Tensor("momentum", ("N HV K V",), "P, the momentum", required=False),
    ),
    chunked=True,
    conventions=CONVENTIONS,
    scale="1",
    options={"chunk_size": Option(1, "tokens in a mini-batch")},
    mutants=TITANS,
)
