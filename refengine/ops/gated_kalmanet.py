"""Gated KalmaNet: MesaNet's regression with a ridge that grows with what was seen, solved by Chebyshev's iteration."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..spec import Mesa, Op, Option, Reading, Tensor
from .mesa_net import MEMORY, eliminate

OMEGA = {"released": 2.0, "first": 1.0}


def iterate(A, y, size, shift, iterations, omega):
    """What the released kernels have for A^-1 y, the eigenvalues of A lying between shift and shift + size."""
    eta = 2 / (2 * shift + size)
    s = (size / (2 * shift + size)) ** 2 / 4
    x, before = eta * y, 0 * y
    for _ in range(iterations):
        omega = 1 / (1 - s * omega)
        x, before = omega * (x + eta * (y - A @ x)) - (omega - 1) * before, x
    return x


def step(S, *, q, k, v, g, beta, alpha, scale, convention, solver, iterations, ridge, eps):
    H, G = S
    a, b = np.exp(g), (beta + eps) ** 2
    H = a * H + b * k[:, None] * k
    G = a * G + b * k[:, None] * v
    size = np.sqrt((H * H).sum())
    shift = ridge * size if size != 0 else size + 1
    A = H + shift * np.eye(len(k))
    x = eliminate(A, q) if solver == "exact" else iterate(A, q, size, shift, iterations, OMEGA[convention])
    return (H, G), scale * ((q + alpha * (x - q)) @ G)


def lower(x, *, HV, convention, solver, iterations, ridge, eps, **_):
    if not ridge > 0:
        raise InputError(f"ridge is {ridge:g}; it must be positive.")
    weight = x["beta"] + x["beta"].filled(eps)
    lamb = x["beta"].plain.exact(np.full((1, 1, HV, 1), ridge))
    mix = x["beta"].filled(1.0) if x["alpha"] is None else x["alpha"]
    parts = dict(q=x["q"], k=x["k"], v=x["v"], a=x["g"].decay(), b=weight * weight, lamb=lamb, mix=mix)
    return Mesa(**parts, share=True, solver=solver, iterations=iterations, omega=OMEGA[convention])


OP = Op(
    name="gated_kalmanet",
    title="Gated KalmaNet",
    paper="Gated KalmaNet (2025), as released in awslabs/hybrid-model-factory",
    reading=Reading(
        model="S' k",
        loss="1/2 sum over i <= t of zeta_ti beta_i^2 |S' k_i - v_i|^2, zeta_ti = exp(g_{i+1} + ... + g_t)",
        optimiser="the exact minimiser with the ridge 1/2 lamb_t |S|^2, lamb_t = ridge |H_t|; mixed in by alpha",
        forgetting="old losses weigh less, by exp(g), and the ridge with them",
        batch="all tokens so far",
    ),
    equations="""
        H_t = exp(g_t) H_{t-1} + (beta_t + eps)^2 k_t k_t'
        G_t = exp(g_t) G_{t-1} + (beta_t + eps)^2 k_t v_t'
        x_t = (H_t + ridge |H_t| I)^-1 q_t             |.| of Frobenius; where H_t is 0, I instead
        o_t = scale G_t' (q_t + alpha_t (x_t - q_t))
        chebyshev: so many steps of Chebyshev's iteration for x_t, from 2 q_t / ((2 ridge + 1) |H_t|)
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries; the released layer has x / (|x| + 1e-6) of them", role="query"),
        Tensor("k", ("B T H K",), "keys, likewise", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
        Tensor("g", ("B T HV",), "log decay (natural logarithm, at most 0)", role="decay"),
        Tensor("beta", ("B T HV",), "a token's key and value are both multiplied by it, in (0, 1)"),
        Tensor("alpha", ("B T HV",), "how much of the solution is mixed in, in (0, 1); all if absent", required=False),
    ),
    step=step,
    lower=lower,
    states=MEMORY,
    conventions={
        "released": "chebyshev starts with omega_0 = 2, as the released kernels but one",
        "first": "the first forward kernel's omega_0 = 1; both converge, and exact has none",
    },
    options={
        "solver": Option(
            "exact", "how x_t is found: exactly (Cholesky) or as the kernels do", choices=("exact", "chebyshev")
        ),
        "iterations": Option(30, "steps", goes_with=("solver", ("chebyshev",))),
        "ridge": Option(0.02, "the ridge, as a share of |H_t|", least=0),
        "eps": Option(1e-6, "what is added to beta", least=0),
    },
)
