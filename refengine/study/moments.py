"""A linear memory trained to predict its own isotropic unit keys: mean and second moment of its state, exactly.

With K = V every step writes k u' for some u linear in k, and E[k k'] = I / d, E[k_i^2 k_a k_b] = (delta_ab + 2 delta_ai
delta_bi) / (d (d + 2)). So m = diag E[S] and p = diag E[S S'] follow linear recursions, and off the diagonals both are
zero by symmetry. Then E|I - S|^2 / d = mean(1 - 2 m + p).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .learners import Array


@dataclass(frozen=True)
class Moments:
    """m, p [T + 1, d]: after so many tokens."""

    m: Array
    p: Array

    def distance(self) -> Array:
        """E|I - S|^2 / d."""
        return np.asarray((1 - 2 * self.m + self.p).mean(axis=-1))

    def trace(self) -> Array:
        """E tr S / d."""
        return np.asarray(self.m.mean(axis=-1))

    def sensitivity(self) -> Array:
        """sqrt(E|o_A - o_B|^2 / E|o|^2) of two memories of independent contexts, read with one isotropic query."""
        between = 2 * (self.p - self.m**2).sum(axis=-1)
        return np.asarray(np.sqrt(between / np.maximum(self.p.sum(axis=-1), np.finfo(float).tiny)))


def of_delta(T: int, d: int, beta: float, alpha: float | Array = 1.0, order: str = "post") -> Moments:
    """S' = A S + beta k (k - e' ... )': DeltaNet, Gated DeltaNet and KDA predict after the decay (post), Comba before
    (pre).

    With R the state that predicts (A S, or S) and S~ = A S:
        m' = m~ + beta (1 - r) / d
        p' = p~ + 2 beta (m~ - x) / d + beta^2 ((d + 2) - sum(2 r - q) - 2 (2 r - q)) / (d (d + 2))
    where r, q are R's moments and x = diag E[S~ R'].
    """
    a = np.broadcast_to(np.asarray(alpha, np.float64), (d,))
    m, p = np.zeros((T + 1, d)), np.zeros((T + 1, d))
    for t in range(T):
        late_m, late_p = a * m[t], a * a * p[t]
        r, q, x = (late_m, late_p, late_p) if order == "post" else (m[t], p[t], a * p[t])
        loss = 2 * r - q
        m[t + 1] = late_m + beta * (1 - r) / d
        p[t + 1] = late_p + 2 * beta * (late_m - x) / d + beta**2 * (d + 2 - loss.sum() - 2 * loss) / (d * (d + 2))
    return Moments(m, p)


def of_linear(T: int, d: int) -> Moments:
    """S' = S + k k'."""
    m, p = np.zeros((T + 1, d)), np.zeros((T + 1, d))
    for t in range(T):
        m[t + 1] = m[t] + 1 / d
        p[t + 1] = p[t] + (2 * m[t] + 1) / d
    return Moments(m, p)


def of_momentum(T: int, d: int, theta: float, eta: float, kept: float = 1.0) -> Moments:
    """P' = eta P + theta k (k - S'k)', S' = kept S + P': Titans' linear memory. With m, n = tr E S, E P and x, y, z =
    tr E SS', SP', PP', all over d and so the same in every channel:

        z' = eta^2 z + 2 eta theta (n - y) / d + theta^2 (1 - 2 m + x) / d
        y~ = eta y + theta (m - x) / d,  y' = kept y~ + z',  x' = kept^2 x + 2 kept y~ + z'
    """
    m, p = np.zeros((T + 1, d)), np.zeros((T + 1, d))
    x = y = z = n = mean = 0.0
    for t in range(T):
        z = eta**2 * z + 2 * eta * theta * (n - y) / d + theta**2 * (1 - 2 * mean + x) / d
        late = eta * y + theta * (mean - x) / d
        x, y = kept**2 * x + 2 * kept * late + z, kept * late + z
        n = eta * n + theta * (1 - mean) / d
        mean = kept * mean + n
        m[t + 1], p[t + 1] = mean, x
    return Moments(m, p)
