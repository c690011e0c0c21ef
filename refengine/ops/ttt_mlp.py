"""TTT-MLP: two layers with a LayerNorm behind them, trained by mini-batch gradient descent to predict v - k."""

from __future__ import annotations

import numpy as np

from ..spec import FastWeights, Op, Option, Reading, Tensor
from .parts import gelu, gelu_slope, layer_norm, layer_norm_errors
from .slips import TTT, keeping, slip
from .ttt_linear import CONVENTIONS, EPS, INPUTS, steps, training


def step(S, *, q, k, v, w, b, eta, tok, scale, convention):
    w1, b1, w2, b2 = S
    hidden = k @ w1 + b1
    seen = gelu(hidden)
    errors2 = layer_norm_errors(seen @ w2 + b2, v - k, w, b, EPS)
    errors1 = (errors2 @ w2.T) * gelu_slope(hidden)
    o = []
    for i, query in enumerate(scale * q):
        taken = steps(i, eta, tok, convention)[:, None]
        first, second = taken * errors1[: i + 1], taken * errors2[: i + 1]
        now = w1 - k[: i + 1].T @ first, b1 - first.sum(axis=0), w2 - seen[: i + 1].T @ second, b2 - second.sum(axis=0)
        z = gelu(query @ now[0] + now[1]) @ now[2] + now[3]
        o.append((query if convention == "ttt_lm" else z) + layer_norm(z, w, b, EPS))
    return now, np.stack(o)


def lower(x, *, convention, **_):
    return FastWeights(slots=("W1", "b1", "W2", "b2"), model="mlp", **training(x, convention))


OP = Op(
    name="ttt_mlp",
    title="TTT-MLP",
    paper="Sun et al.: Learning to (Learn at Test Time) (2024); arXiv:2407.04620",
    reading=Reading(
        model="W2' gelu(W1' k + c1) + c2, gelu by tanh",
        loss="1/2 |LN(f(k)) - (v - k)|^2",
        optimiser="gradient descent, step tok_i eta_j",
        forgetting="none",
        batch="chunk_size tokens, gradients at the weights of its start",
    ),
    equations="""
        f(x) = W2' gelu(W1' x + c1) + c2
        G_j  = the gradient by all weights of 1/2 |LN(f(k_j)) - (v_j - k_j)|^2, at those of the mini-batch's start
        the weights token i sees are those less sum_{j <= i} N_ij G_j
        N_ij = tok_i eta_j (ttt_lm), eta_i (fla)
        z_i  = f(scale q_i) by them
        o_i  = scale q_i + LN(z_i) (ttt_lm), z_i + LN(z_i) (fla)
    """,
    inputs=INPUTS,
    step=step,
    lower=lower,
    states=(
        Tensor("w1", ("N HV K R", "HV K R"), "W1"),
        Tensor("b1", ("N HV R", "HV R"), "c1; zeros if absent", required=False),
        Tensor("w2", ("N HV R V", "HV R V"), "W2"),
        Tensor("b2", ("N HV V", "HV V"), "c2; zeros if absent", required=False),
    ),
    chunked=True,
    conventions=CONVENTIONS,
    scale="1",
    scale_of={"fla": "K^-1/2"},
    options={"chunk_size": Option(16, "tokens in a mini-batch")},
    mutants=(*TTT, slip("bias_frozen", "the biases are never carried on [20]", keeping(1, 3))),
)
