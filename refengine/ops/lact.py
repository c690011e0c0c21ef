"""LaCT: a SwiGLU memory that learns large chunks at once by a dot-product loss, with momentum and Muon."""

from __future__ import annotations

import numpy as np

from ..spec import FastWeights, Op, Option, Reading, Tensor
from .parts import NEWTON_SCHULZ, orthogonalised, silu, silu_slope
from .slips import LACT


def swiglu(weights, x):
    w0, w1, w2 = weights
    return (silu(x @ w0.T) * (x @ w2.T)) @ w1.T


def ascent(weights, k, v, lr0, lr1, lr2):
    """Each weight's ascent of sum <f(k), v>, token by token times its step."""
    w0, w1, w2 = weights
    gate, up, back = k @ w0.T, k @ w2.T, v @ w1
    d0 = (lr0[:, None] * back * up * silu_slope(gate)).T @ k
    d1 = (lr1[:, None] * v).T @ (silu(gate) * up)
    return d0, d1, (lr2[:, None] * back * silu(gate)).T @ k


def lengths(w, convention, eps=1e-5):
    """Of every row, as the rescaling divides by it."""
    squares = (w * w).sum(axis=1, keepdims=True)
    return np.sqrt(squares + eps) if convention == "fused" else np.sqrt(squares) + eps


def directions(m, convention, coefficients):
    if convention != "fused":
        return [orthogonalised(x, coefficients) for x in m]
    both = orthogonalised(np.concatenate([m[0], m[2]]), coefficients)
    return [both[: len(m[0])], orthogonalised(m[1], coefficients), both[len(m[0]) :]]


def step(S, *, q, k, v, w0, w1, w2, lr0, lr1, lr2, momentum, scale, convention, use_muon, ns_coefficients,
         weight_norm, order, update, apply):  # fmt: skip
    first, w, m = (w0, w1, w2), S[:3], S[3:]

    def effective(weights):
        if weight_norm != "pre" or all((x == y).all() for x, y in zip(weights, first, strict=True)):
            return weights
        return [x / lengths(x, convention) * np.sqrt((y * y).sum(axis=1, keepdims=True))
                for x, y in zip(weights, first, strict=True)]  # fmt: skip

    o = swiglu(effective(w), scale * q) if apply and order == "apply_first" else None
    if update:
        d = ascent(effective(w), k, v, lr0, lr1, lr2)
        if momentum is not None:
            d = [x + momentum.sum() / len(momentum) * y for x, y in zip(d, m, strict=True)]
            m = d
        turned = directions(d, convention, NEWTON_SCHULZ[ns_coefficients]) if use_muon else d
        base = d if convention == "overwrite" and use_muon else w
        w = [x + y for x, y in zip(base, turned, strict=True)]
        if weight_norm == "post":
            w = [x / lengths(x, convention) * np.sqrt((y * y).sum(axis=1, keepdims=True))
                 for x, y in zip(w, first, strict=True)]  # fmt: skip
    if apply and order == "update_first":
        o = swiglu(effective(w), scale * q)
    return (*w, *m), o


def lower(x, *, convention, use_muon, ns_coefficients, weight_norm, order, **_):
    weights = {"gate": x["w0"].value, "down": x["w1"].value, "up": x["w2"].value}
    return FastWeights(
        q=x["q"], k=x["k"], v=x["v"], theta=(x["lr0"], x["lr1"], x["lr2"]), model="swiglu", loss="dot",
        slots=("gate", "down", "up", "Pgate", "Pdown", "Pup"), start=weights, eta=x["momentum"], whole=True,
        read="before" if order == "apply_first" else "after", muon=NEWTON_SCHULZ[ns_coefficients] if use_muon else None,
        grouped=convention == "fused", overwrite=convention == "overwrite" and use_muon, weight_norm=weight_norm,
        norm_inside=convention == "fused",
    )  # fmt: skip


RATE = "step of {}, positive"
OP = Op(
    name="lact",
    title="LaCT",
    paper="Zhang et al.: Test-Time Training Done Right (2025); arXiv:2505.23884",
    reading=Reading(
        model="W1 (silu(W0 k) * W2 k)",
        loss="-<f(k), v>",
        optimiser="one step a chunk: gradient, momentum, or Muon; then every row back to its first length",
        forgetting="none but the rows' fixed lengths",
        batch="chunk_size tokens, gradients at the weights of its start",
    ),
    equations="""
        f(x) = W1 (silu(W0 x) * W2 x)                            * is elementwise
        D0 = sum_j lr0_j ((W1' v_j) * (W2 k_j) * silu'(W0 k_j)) k_j'
        D1 = sum_j lr1_j v_j (silu(W0 k_j) * W2 k_j)'
        D2 = sum_j lr2_j ((W1' v_j) * silu(W0 k_j)) k_j'
        M  <- D + mean_j(momentum_j) M                           where there is one
        W  <- (W + NS(M)) n / (|row| + 1e-5)                     NS: Newton-Schulz; n: the rows' first lengths
        o_j = f(scale q_j) before the chunk's update (apply_first) or after it
        weight_norm pre: W <- W + NS(M), and f and D take its rows at their first lengths
        a chunk that is not full does not update, unless a schedule says so
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("w0", ("HV R K",), "first weights of the gate; their rows' lengths are kept"),
        Tensor("w1", ("HV V R",), "first weights of the second layer"),
        Tensor("w2", ("HV R K",), "first weights beside the gate"),
        Tensor("lr0", ("B T HV",), RATE.format("w0")),
        Tensor("lr1", ("B T HV",), RATE.format("w1")),
        Tensor("lr2", ("B T HV",), RATE.format("w2")),
        Tensor("momentum", ("B T HV",), "in (0, 1), averaged over the chunk; none if absent", required=False),
        Tensor("schedule", ("S U",), "rows (start, end, update, apply) instead of chunk_size", False, integer=True),
    ),
    step=step,
    lower=lower,
    states=(
        Tensor("w0", ("N HV R K",), "the input w0 if absent", required=False),
        Tensor("w1", ("N HV V R",), "the input w1 if absent", required=False),
        Tensor("w2", ("N HV R K",), "the input w2 if absent", required=False),
        Tensor("m0", ("N HV R K",), "momentum of w0; zeros if absent", required=False),
        Tensor("m1", ("N HV V R",), "momentum of w1; zeros if absent", required=False),
        Tensor("m2", ("N HV R K",), "momentum of w2; zeros if absent", required=False),
    ),
    chunked=True,
    scheduled=True,
    conventions={
        "reference": "the released torch code: Newton-Schulz of each gradient, |row| + 1e-5",
        "fused": "the fused kernel: one Newton-Schulz for W0 and W2 together, sqrt(|row|^2 + 1e-5)",
        "overwrite": "the minimal bidirectional code: with Muon, W <- NS(M) + M, the old weights lost",
    },
    scale="1",
    options={
        "chunk_size": Option(2048, "tokens in a chunk"),
        "use_muon": Option(True, "orthogonalise the step by Newton-Schulz"),
        "ns_coefficients": Option(
            "lact",
            "lact: the language model's; muon: KellerJordan's",
            choices=("lact", "muon"),
            goes_with=("use_muon", (True,)),
        ),
        "weight_norm": Option("post", "where rows are brought back to length", choices=("post", "pre", "none")),
        "order": Option("apply_first", "what a chunk's queries see", choices=("apply_first", "update_first")),
    },
    mutants=LACT,
)
