"""Titans, memory of two layers: gradient descent with momentum and decoupled decay, by tokens or by mini-batches."""

from __future__ import annotations

import numpy as np

from ..spec import FastWeights, Op, Option, Reading, Tensor
from .parts import gelu, gelu_slope, silu, silu_slope
from .slips import TITANS
from .titans import CONVENTIONS, INPUTS, training

ACTIVATIONS = {"silu": (silu, silu_slope), "gelu": (gelu, gelu_slope)}


def step(S, *, q, k, v, alpha, eta, theta, scale, convention, activation):
    w1, w2, m1, m2 = S
    act, slope = ACTIVATIONS[activation]
    hidden = k @ w1
    seen = act(hidden)
    error2 = seen @ w2 - v
    error2 = error2 if convention == "half" else 2 * error2
    error1 = (error2 @ w2.T) * slope(hidden)
    o = []
    for i in range(len(k)):
        m1 = eta[i] * m1 - theta[i] * k[i][:, None] * error1[i]
        m2 = eta[i] * m2 - theta[i] * seen[i][:, None] * error2[i]
        w1, w2 = (1 - alpha[i]) * w1 + m1, (1 - alpha[i]) * w2 + m2
        o.append(act(scale * q[i] @ w1) @ w2)
    return (w1, w2, m1, m2), np.stack(o)


def lower(x, *, convention, activation, **_):
    slots = ("W1", "W2", "P1", "P2")
    return FastWeights(slots=slots, model="mlp", activation=activation, **training(x, convention))


OP = Op(
    name="titans_mlp",
    title="Titans, memory of two layers",
    paper="Behrouz, Zhong, Mirrokni: Titans (2024), eq. 9 to 15; arXiv:2501.00663",
    reading=Reading(
        model="W2' act(W1' k)",
        loss="1/2 |f(k) - v|^2",
        optimiser="gradient descent, step theta, with momentum eta",
        forgetting="decoupled weight decay 1 - alpha",
        batch="1 token, or chunk_size tokens with gradients at its first memory",
    ),
    equations="""
        f(x) = W2' act(W1' x)
        P_t = eta_t P_{t-1} - theta_t G_t       G_t: the gradient of 1/2 |f(k_t) - v_t|^2 by W1, W2 at those of the
        W_t = (1 - alpha_t) W_{t-1} + P_t            mini-batch's start; chunk_size 1: W_{t-1}
        o_t = f(scale q_t) by W_t
    """,
    inputs=INPUTS,
    step=step,
    lower=lower,
    states=(
        Tensor("w1", ("N HV K R", "HV K R"), "W1"),
        Tensor("w2", ("N HV R V", "HV R V"), "W2"),
        Tensor("m1", ("N HV K R",), "momentum of W1; zeros if absent", required=False),
        Tensor("m2", ("N HV R V",), "momentum of W2; zeros if absent", required=False),
    ),
    chunked=True,
    conventions=CONVENTIONS,
    scale="1",
    options={
        "chunk_size": Option(1, "tokens in a mini-batch"),
        "activation": Option("silu", "between the layers", choices=("silu", "gelu")),
    },
    mutants=TITANS,
)
