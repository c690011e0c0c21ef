"""TTT-Linear: a linear model with a LayerNorm behind it, trained by mini-batch gradient descent to predict v - k."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..spec import FastWeights, Op, Option, Reading, Tensor
from .parts import layer_norm, layer_norm_errors
from .slips import TTT, keeping, slip

EPS = 1e-6
INPUTS = (
    Tensor("q", ("B T H K",), "queries", role="query"),
    Tensor("k", ("B T H K",), "keys", role="key"),
    Tensor("v", ("B T HV K",), "values, as many channels as the keys", role="value"),
    Tensor("w", ("HV K",), "weight of the LayerNorm"),
    Tensor("b", ("HV K",), "bias of the LayerNorm"),
    Tensor("eta", ("B T HV",), "step: of the token that is learnt (ttt_lm), of the token that reads (fla)"),
    Tensor("tok", ("B T HV",), "ttt_lm: factor of the reading token; 1 / its place in the mini-batch if absent", False),
)
CONVENTIONS = {
    "ttt_lm": "the paper's code (torch, jax): o = q + LN(.), steps tok_i eta_j; scale 1",
    "fla": "flash-linear-attention: o = f(q) + LN(f(q)), steps eta_i of the reader; scale K^-1/2, not on the bias",
}


def steps(i, eta, tok, convention):
    """The steps of tokens 0 .. i as token i sees them."""
    if convention == "fla":
        return np.repeat(eta[i : i + 1], i + 1)
    return tok[i] * eta[: i + 1] if tok is not None else eta[: i + 1] / (i + 1)


def step(S, *, q, k, v, w, b, eta, tok, scale, convention):
    W, c = S
    errors = layer_norm_errors(k @ W + c, v - k, w, b, EPS)
    o = []
    for i, query in enumerate(scale * q):
        taken = steps(i, eta, tok, convention)[:, None] * errors[: i + 1]
        now = W - k[: i + 1].T @ taken, c - taken.sum(axis=0)
        z = query @ now[0] + now[1]
        o.append((query if convention == "ttt_lm" else z) + layer_norm(z, w, b, EPS))
    return now, np.stack(o)


def training(x, convention):
    """What both TTT models hand to the fast weights."""
    fla = convention == "fla"
    if fla and x["tok"] is not None:
        raise InputError("tok is given, but convention fla has no factor of the reading token but eta itself.")
    theta = x["eta"].filled(1.0) if fla else x["eta"]
    reader = x["eta"] if fla else "harmonic" if x["tok"] is None else x["tok"]
    parts = {"q": x["q"], "k": x["k"], "v": x["v"], "theta": (theta,), "reader": reader, "norm_eps": EPS}
    return parts | {"norm": (x["w"].value[0, 0], x["b"].value[0, 0]), "output": "self" if fla else "query"}


def lower(x, *, convention, **_):
    return FastWeights(slots=("W2", "b2"), **training(x, convention))


OP = Op(
    name="ttt_linear",
    title="TTT-Linear",
    paper="Sun et al.: Learning to (Learn at Test Time) (2024); arXiv:2407.04620",
    reading=Reading(
        model="W' k + c",
        loss="1/2 |LN(W' k + c) - (v - k)|^2",
        optimiser="gradient descent, step tok_i eta_j",
        forgetting="none",
        batch="chunk_size tokens, gradients at the weights of its start",
    ),
    equations="""
        G_j = gradient of 1/2 |LN(z) - (v_j - k_j)|^2 at z = W' k_j + c      W, c of the mini-batch's start
        W_i = W - sum_{j <= i} N_ij k_j G_j',  c_i = c - sum_{j <= i} N_ij G_j
        N_ij = tok_i eta_j (ttt_lm), eta_i (fla)
        z_i = W_i' (scale q_i) + c_i
        o_i = scale q_i + LN(z_i) (ttt_lm), z_i + LN(z_i) (fla)
    """,
    inputs=INPUTS,
    step=step,
    lower=lower,
    states=(
        Tensor("weight", ("N HV K V", "HV K V"), "W; zeros if absent", required=False),
        Tensor("bias", ("N HV V", "HV V"), "c; zeros if absent", required=False),
    ),
    chunked=True,
    conventions=CONVENTIONS,
    scale="1",
    scale_of={"fla": "K^-1/2"},
    options={"chunk_size": Option(16, "tokens in a mini-batch")},
    mutants=(*TTT, slip("bias_frozen", "the bias is never carried on [20]", keeping(1))),
)
