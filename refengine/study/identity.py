"""C1: with K = V the best memory is the identity on the span of its keys."""

from __future__ import annotations

from math import ceil, log, sqrt

import numpy as np

from . import resolvent
from .claim import Claim, Figure, Findings, at_most, near
from .lab import SURE, Lab, directions, mean
from .learners import Array, mesa

D = 32  # channels
LAMB = 1e-6
LENGTHS = (8, 32, 128, 512)
RELATIVE, ROUNDING = 1e-3, 1e-9  # of the solve, at condition numbers up to 1 / LAMB
GATES = ((0.95, 0.5, 1.0), (0.999, 0.5, 0.25))  # gamma, beta, lambda
FORGOTTEN = 1e-2  # what the first token still weighs where the gates' run ends
SAMPLES = 16
LEADING = 0.02  # relative: what leaving a key out leaves out at d = 32


def run(lab: Lab) -> Findings:
    figures: list[Figure] = []
    for T in LENGTHS:
        k = directions(lab.rng(1, T), T, 1, D)
        h, axes = np.linalg.eigh(k[:, 0].T @ k[:, 0])
        h, axes = h[-min(T, D) :], axes[:, -min(T, D) :]
        S = memory(lab, k, LAMB)[0]
        lost = LAMB / (h + LAMB)
        far, theory = float(np.linalg.norm(S - axes @ axes.T) / sqrt(len(h))), float(np.sqrt((lost**2).mean()))
        what = f"λ = {LAMB:g}, T = {T}"
        figures.append(near(f"{what}: |S − P|/|P|, P onto the span", far, theory, ROUNDING + RELATIVE * theory))
        off = float(np.linalg.norm(axes.T @ S - axes.T, axis=1).max())
        figures.append(
            near(f"{what}: largest |o − q| along an axis", off, lost.max(), ROUNDING + RELATIVE * lost.max())
        )
    k = directions(lab.rng(1, 0), 128, 1, D)
    h, S = np.linalg.eigvalsh(k[:, 0].T @ k[:, 0]), memory(lab, k, 1.0)[0]
    apart = float(abs(np.linalg.eigvalsh((S + S.T) / 2) - h / (h + 1)).max())
    figures.append(at_most("λ = 1, T = 128: S's eigenvalues, furthest from h/(h + λ)", apart, ROUNDING))
    for gates in GATES:
        figures += gated(lab, *gates)
    return Findings(figures)


def gated(lab: Lab, gamma: float, beta: float, lamb: float) -> list[Figure]:
    """S is near c I: its c and what else it is, of the weights beta gamma^i."""
    weights = beta * gamma ** np.arange(ceil(log(FORGOTTEN) / log(gamma)))
    theory = resolvent.of_weights(weights, D, lamb)
    k = directions(lab.rng(1, len(weights)), len(weights), SAMPLES * lab.scale, D)
    S = memory(lab, k, lamb, beta, gamma)
    c, c_error = mean(np.trace(S, axis1=-2, axis2=-1) / D)
    size = np.sqrt((S * S).sum((-1, -2)) / D)
    rest, rest_error = mean(np.sqrt(size**2 - (np.trace(S, axis1=-2, axis2=-1) / D) ** 2))
    what, spread = f"γ = {gamma:g}, β = {beta:g}, λ = {lamb:g}", sqrt(theory.spread)
    flat = weights.sum() / D
    return [
        near(f"{what}: tr S/d", c, theory.share, SURE * c_error + LEADING * theory.share),
        at_most(f"{what}: tr S/d over h/(h + λ), h = β/(d(1 − γ))", c / (flat / (flat + lamb)), 1.0),
        near(f"{what}: |S − cI|/√d", rest, spread, SURE * rest_error + LEADING * spread),
    ]


def memory(lab: Lab, k: Array, lamb: float, beta: float = 1.0, gamma: float = 1.0) -> Array:
    """S [N, D, D] of keys [T, N, D] that are their own values."""
    learner = mesa(lamb, beta, gamma)
    return lab.ridge(lamb, lab.solve(learner, k[None], k[None], k[None], tie_values=True).final_state)


CLAIM = Claim(
    number=1,
    name="identity",
    sentence="With K = V the best memory is the identity on the span of its keys: the output is the query, and nothing "
    "of the context is stored.",
    experiment=f"Mesa's exact regression on random unit keys in d = {D}, V = K, its state read with unit vectors",
    run=run,
)
