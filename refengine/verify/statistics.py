"""How a candidate errs, in units of what an honest one would: the statistics, their limits and what they say.

With e_r the error of row r, sigma_r its yardstick, rho_r = e_r / sigma_r and z_i = |d_i| sqrt(V) / sigma_r:

    R     sqrt(sum e_r^2 / sum sigma_r^2) of everything, or of the worst head, sequence, block of 64 tokens, or such a
          block of one head, each of these over its allowance
    Q     the 99.9 % quantile of rho
    rho   the largest
    z     the largest
    G     the coherent gain of the error over the expected relative error, over its own limit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import compare
from .policy import Policy
from .yardstick import Scale, View, gain, moments

Array = NDArray[Any]
PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
LEVELS = (PASS, WARN, FAIL)
NAMES = ("R", "Q", "rho", "z", "G")
BLOCK = 64
# The errors of a part have fewer independent causes than those of the whole, and R scatters more.
ALLOWANCE = {"whole": 1.0, "head": 4 / 3, "sequence": 4 / 3, "block": 4 / 3, "head and block": 2.0}
FEW = 256  # elements below which R itself scatters, and its limit is wider by that scatter
MANY = 1e6  # elements above which the largest z of an honest kernel grows
TOO_LITTLE = 16  # sigma must be so many times what the truth may be off by

# statistic: (PASS up to, WARN up to)
LOOSE = {"R": (1.5, 2.0), "Q": (4.5, 6.0), "rho": (6.0, 8.0), "z": (16.0, 20.0), "G": (1.0, 2.0)}
FINE = {"R": (1.5, 2.0), "Q": (16.0, 24.0), "rho": (24.0, 32.0), "z": (48.0, 64.0), "G": (1.0, 2.0)}
STRICT = {"R": (1.5, 2.0), "Q": (4.0, 6.0), "rho": (6.0, 8.0), "z": (12.0, 16.0), "G": (1.0, 2.0)}


@dataclass(frozen=True)
class Statistics:
    """One view of one output. `values` and `limits` by statistic; `groups` the largest R of heads, sequences, blocks;
    `rho` of every row; `uncertain` the rows whose truth is not known well enough."""

    view: str
    values: Mapping[str, float]
    limits: Mapping[str, tuple[float, float]]
    groups: Mapping[str, float]
    rho: Array
    worst: tuple[int, ...]  # the row with the largest rho
    uncertain: int

    @property
    def level(self) -> str:
        """PASS, WARN or FAIL: that of the worst statistic."""
        return max((grade(self.values[n], self.limits[n]) for n in NAMES), key=LEVELS.index)

    def beyond(self) -> list[str]:
        """The statistics that are not PASS, the furthest first."""
        late = [n for n in NAMES if grade(self.values[n], self.limits[n]) != PASS]
        return sorted(late, key=lambda n: -self.values[n] / self.limits[n][0])


def grade(value: float, limits: tuple[float, float]) -> str:
    """The level of a value; what is not a number fails."""
    return PASS if value <= limits[0] else WARN if value <= limits[1] else FAIL


def limits_of(policy: Policy, elements: int, strict: bool) -> dict[str, tuple[float, float]]:
    """The limits of one view."""
    table = FINE if policy.fine else STRICT if strict else LOOSE
    limits = dict(table)
    if elements > MANY:
        grown = float(np.sqrt(np.log(elements) / np.log(MANY)))
        limits["z"] = (limits["z"][0] * grown, limits["z"][1] * grown)
    few = scatter(elements)
    limits["R"] = (limits["R"][0] * few, limits["R"][1] * few)
    return limits


def scatter(elements: float) -> float:
    """By how much R of so few elements may exceed its expectation: three standard deviations."""
    return 1.0 if elements >= FEW else float(1.0 + 3.0 / np.sqrt(2.0 * max(elements, 1)))


def bias_limit(scale: Scale) -> float:
    return max(0.15, 3.0 * scale.bias)


def ratio(errors: Array, sigmas: Array) -> float:
    """R of a group, from sums of squares."""
    return float(np.sqrt(errors.sum() / max(float(sigmas.sum()), np.finfo(float).tiny)))


def measure(
    x: Array, true: View, scale: Scale, policy: Policy, segments: Sequence[tuple[int, int, int]], strict: bool = False
) -> Statistics:
    """The statistics of candidate rows x [..., V] against the true ones."""
    view, y, sums = true.name, true.values, moments(x, true)
    squares, V = sums[..., compare.SQUARES], y.shape[-1]
    sigma2 = scale.sigma**2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rho = np.sqrt(squares) / scale.row
        z = sums[..., compare.LARGEST] * np.sqrt(V) / scale.row
    if rho.size == 0:
        nothing = dict.fromkeys(NAMES, 0.0)
        return Statistics(view, nothing, limits_of(policy, 1, strict), {}, rho, (), 0)
    groups = {"whole": ratio(squares, sigma2), **dict(grouped(true.kind, squares, sigma2, segments, V))}
    limits = limits_of(policy, y.size, strict)
    values = {
        "R": max(R / ALLOWANCE[group] for group, R in groups.items()),
        "Q": float(np.quantile(rho, 0.999)),
        "rho": float(rho.max()),
        "z": float(z.max()),
        "G": bias(sums, scale),
    }
    uncertain = int(np.count_nonzero(~(scale.certificate * TOO_LITTLE <= scale.sigma)))
    at = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(np.where(np.isnan(rho), np.inf, rho))), rho.shape))
    return Statistics(view, values, limits, groups, rho, at, uncertain)


def bias(sums: Array, scale: Scale) -> float:
    """G over its limit."""
    total = sums.reshape(-1, compare.MOMENTS).sum(axis=0)
    expected = np.sqrt((scale.sigma**2).sum() / max(total[compare.TRUTH_SQUARES], np.finfo(float).tiny))
    return gain(total, float(expected)) / bias_limit(scale)


def grouped(
    kind: str, squares: Array, sigma2: Array, segments: Sequence[tuple[int, int, int]], V: int
) -> list[tuple[str, float]]:
    """The largest R of each kind of group; that of few elements with its scatter taken off."""
    found: list[tuple[str, float]] = []

    def largest(name: str, pairs: Sequence[tuple[Array, Array]]) -> None:
        rated = [ratio(e, s) / scatter(e.size * V) for e, s in pairs if e.size]
        if rated:
            found.append((name, max(rated)))

    if kind == "flat":
        return found
    heads = 1 if kind == "state" else 2
    largest("head", [(squares.take(h, heads), sigma2.take(h, heads)) for h in range(squares.shape[heads])])
    if kind == "tokens":
        micro = squares.shape[1] // max((t1 for _, _, t1 in segments), default=1) or 1  # rows of a token
        segments = [(b, t0 * micro, t1 * micro) for b, t0, t1 in segments]
        largest("sequence", [(squares[b, t0:t1], sigma2[b, t0:t1]) for b, t0, t1 in segments])
        blocks = [(b, t, min(t + BLOCK, t1)) for b, t0, t1 in segments for t in range(t0, t1, BLOCK)]
        largest("block", [(squares[b, t:u], sigma2[b, t:u]) for b, t, u in blocks])
        per = [(squares[b, t:u, h], sigma2[b, t:u, h]) for b, t, u in blocks for h in range(squares.shape[2])]
        largest("head and block", per)
    elif kind == "state":
        largest("sequence", [(squares[n], sigma2[n]) for n in range(squares.shape[0])])
    return found
