"""MesaNet: the regression on all past tokens, solved exactly at every token."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..spec import Mesa, Op, Option, Reading, Tensor
from .slips import MESA


def eliminate(A, y):
    """A^-1 y of a symmetric positive definite A, by Gaussian elimination."""
    A, x = A.copy(), y.copy()
    for i in range(len(x)):
        below = A[i + 1 :, i] / A[i, i]
        A[i + 1 :] = A[i + 1 :] - below[:, None] * A[i]
        x[i + 1 :] = x[i + 1 :] - below * x[i]
    for i in reversed(range(len(x))):
        x[i] = (x[i] - A[i, i + 1 :] @ x[i + 1 :]) / A[i, i]
    return x


def descend(A, y, iterations, eps, x0):
    """What the released kernels have for A^-1 y: so many steps of conjugate gradients."""
    x = y / (np.diagonal(A) + eps) if x0 == "diagonal" else 0 * y
    p = r = y - A @ x
    rr = r @ r
    for _ in range(iterations):
        Ap = A @ p
        alpha = rr / (p @ Ap + eps)
        x, r = x + alpha * p, r - alpha * Ap
        before, rr = rr, r @ r
        p = r + rr / (before + eps) * p
    return x


def step(S, *, q, k, v, g, beta, lamb, scale, solver, iterations, eps, x0):
    H, G = S
    a = np.exp(g)
    H = a * H + beta * k[:, None] * k
    G = a * G + beta * k[:, None] * v
    A = H + np.diag(lamb)
    x = eliminate(A, q) if solver == "exact" else descend(A, q, iterations, eps, x0)
    return (H, G), scale * (x @ G)


def positive(lamb, kind):
    """Refuse what is no ridge."""
    bad = np.argwhere(~(lamb.value > 0))
    if len(bad):
        where = ", ".join(str(int(i)) for i in bad[0][2:])
        least = lamb.value[tuple(bad[0])]
        raise InputError(f"lamb is {least:g} at [{where}]; {kind} must be positive.")
    return lamb


def lower(x, *, solver, iterations, eps, x0, **_):
    return Mesa(
        q=x["q"],
        k=x["k"],
        v=x["v"],
        a=x["g"].decay(),
        b=x["beta"],
        lamb=positive(x["lamb"], "the ridge of every channel"),
        solver=solver,
        iterations=iterations,
        eps=eps,
        start=x0,
    )


MEMORY = (
    Tensor("h_kk", ("N HV K K",), "what was seen of the keys: symmetric, positive semidefinite", required=False),
    Tensor("h_kv", ("N HV K V",), "what the values were for them", required=False),
)

OP = Op(
    name="mesa_net",
    title="MesaNet",
    paper="von Oswald et al.: MesaNet: Sequence Modeling by Locally Optimal Test-Time Training; arXiv:2506.05233",
    reading=Reading(
        model="S' k",
        loss="1/2 sum over i <= t of zeta_ti beta_i |S' k_i - v_i|^2, zeta_ti = exp(g_{i+1} + ... + g_t)",
        optimiser="the exact minimiser with the ridge 1/2 tr(S' diag(lamb) S), at every token",
        forgetting="old losses weigh less, by exp(g); the ridge does not decay",
        batch="all tokens so far",
    ),
    equations="""
        H_t = exp(g_t) H_{t-1} + beta_t k_t k_t'
        G_t = exp(g_t) G_{t-1} + beta_t k_t v_t'
        x_t = (H_t + diag(lamb))^-1 q_t
        o_t = scale G_t' x_t
        cg: so many steps of conjugate gradients for x_t, eps added to both denominators
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("g", ("B T HV",), "log decay (natural logarithm, at most 0)", role="decay"),
        Tensor("beta", ("B T HV",), "weight of a token's loss, in (0, 1)"),
        Tensor("lamb", ("HV K",), "ridge of each key channel, positive; constant in time"),
    ),
    step=step,
    lower=lower,
    states=MEMORY,
    scale="1",
    options={
        "solver": Option("exact", "how x_t is found: exactly (Cholesky) or as the kernels do", choices=("exact", "cg")),
        "iterations": Option(30, "steps", goes_with=("solver", ("cg",))),
        "eps": Option(1e-5, "what is added to denominators", least=0, goes_with=("solver", ("cg",))),
        "x0": Option(
            "zero",
            "where it starts: 0 (prefill), q / (diag(H + lamb) + eps) (decode)",
            choices=("zero", "diagonal"),
            goes_with=("solver", ("cg",)),
        ),
    },
    mutants=MESA,
)
