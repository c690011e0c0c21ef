"""C4: the more values overlap with their keys, the less is learnt."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np

from . import resolvent
from .claim import Claim, Figure, Findings, Table, at_most, near
from .lab import SURE, Lab, directions, sensitivity
from .learners import mesa

D, T = 32, 256  # channels, tokens
SAMPLES = 64
LAMB = 1e-6
OVERLAPS = (1.0, 0.99, 0.9, 0.5, 0.0)
LEADING = 0.05  # relative: what leaving a key out leaves out at d = 32


def theory(rho: float) -> float:
    """S = rho (I - lambda Q) + sqrt(1 - rho^2) Q K'N: only the noise N, and what Q is besides m I, differ between
    contexts; E|N'K Q q|^2 = tr Q H Q / d = m - lambda tr Q^2 / d."""
    r = resolvent.of_weights(np.ones(T), D, LAMB)
    differs = rho**2 * r.spread + (1 - rho**2) * (r.m - r.lamb * r.square)
    return sqrt(2 * differs / (rho**2 * r.share**2 + differs))


def run(lab: Lab) -> Findings:
    rng, n = lab.rng(4), SAMPLES * lab.scale
    k, noise = directions(rng, 2, T, n, D), directions(rng, 2, T, n, D)
    q = np.broadcast_to(directions(rng, 1, T, n, D), k.shape)
    figures: list[Figure] = []
    rows: list[list[str | float | None]] = []
    for rho in OVERLAPS:
        v = rho * k + sqrt(1 - rho**2) * noise
        value, error = sensitivity(lab.solve(mesa(LAMB), q, k, v).o[:, -1])
        expected = theory(rho)
        figures.append(near(f"ρ = {rho:g}: sensitivity to context", value, expected, SURE * error + LEADING * expected))
        rows.append([f"{rho:g}", value, expected])
    stuck = [less for less, more in pairwise(figures) if less.measured >= more.measured]
    figures.append(at_most("steps down in ρ that do not raise it", len(stuck), 0))
    return Findings(figures, [Table("Sensitivity to context", ["ρ", "measured", "theory"], rows)])


CLAIM = Claim(
    number=4,
    name="overlap",
    sentence="The more a value overlaps with its own key, the less the memory learns of its context.",
    experiment=f"V = ρK + √(1 − ρ²) noise, unit vectors in d = {D}, T = {T}, Mesa λ = {LAMB:g}",
    run=run,
)
