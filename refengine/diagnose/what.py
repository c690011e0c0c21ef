"""Which known mistake reproduces the outputs: every suspect is tried on the worst head of the worst sequence, those
that come near on everything. One is named if what it leaves unexplained is what honest rounding leaves, and if every
other leaves at least ten times as much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.plan import available_cores
from ..verify.emulate import Core, Run
from ..verify.mistakes import Outputs
from ..verify.policy import Policy
from ..verify.statistics import Statistics
from ..verify.yardstick import COLUMNS
from .floors import NOTHING, Fit, cut, fit
from .suspects import RECURRENT, Suspect, finished, part

Array = NDArray[Any]
BEATS = 10.0  # how many times further the runner-up must be
BEST = 0.1  # a score below which nothing is any better
NEAREST = 6  # suspects tried on everything, at least
TWINS = 3.0  # and all within that of the nearest


@dataclass(frozen=True)
class Finding:
    """One suspect and how it fits: on the outputs given, and (probed) on inputs tried since, the worst of them."""

    suspect: Suspect
    fit: Fit
    probed: tuple[Fit, ...] = ()

    @property
    def name(self) -> str:
        return self.suspect.name

    @property
    def explains(self) -> bool:
        return all(f.explains for f in (self.fit, *self.probed))

    @property
    def score(self) -> float:
        return max(f.score for f in (self.fit, *self.probed))


class Lineup:
    """The outputs of one candidate, held against suspects."""

    def __init__(self, core: Core, policy: Policy, got: Mapping[str, Array], found: Sequence[Statistics]) -> None:
        self.core, self.policy, self.got = core, policy, got
        self.at = worst(core, found)
        self.small = cut(core, got, *self.at)
        self.segment = core.segments[self.at[0]]

    def quick(self, suspect: Suspect) -> Fit:
        """On the worst head of the worst sequence, where it can be computed alone."""
        if not suspect.local:
            return self.fit(suspect, quick=True)
        changed, left = suspect.altered(self.core)
        if changed is None or changed.segments != self.core.segments or changed.micro != self.core.micro:
            return NOTHING
        alone = part(changed, *self.at)

        def compute(policy: Policy, run: Run) -> Outputs | None:
            return finished(left, alone, policy, run)

        with np.errstate(all="ignore"):
            exact = finished(
                tuple(m for m in left if m in suspect.structural),
                alone,
                suspect.unrounded(self.policy),
                suspect.way or RECURRENT,
            )
        return fit(suspect, compute, exact, self.small, self.policy, alone.segments, quick=True)

    def fit(self, suspect: Suspect, quick: bool = False) -> Fit:
        """On everything."""
        with np.errstate(all="ignore"):
            exact = replace(suspect, mutants=suspect.structural).exact(self.core, self.policy)
        compute = partial(suspect.outputs, self.core)
        return fit(suspect, compute, exact, self.got, self.policy, self.core.segments, quick)

    def rated(self, suspects: Iterable[Suspect]) -> list[tuple[Fit, Suspect]]:
        """Every suspect's quick fit, the nearest first."""
        each = list(suspects)
        if not each:
            return []
        first = self.quick(each[0])  # compiled once, here
        with ThreadPoolExecutor(available_cores()) as pool:
            fits = [first, *pool.map(self.quick, each[1:])]
        order = sorted(range(len(each)), key=lambda i: fits[i].score)
        return [(fits[i], each[i]) for i in order]

    def findings(self, suspects: Iterable[Suspect]) -> list[Finding]:
        """All that come near enough to be tried on everything, the best first; then the others by their quick fit."""
        rated = self.rated(suspects)
        if not rated:
            return []
        nearest = rated[0][0].score
        near = [
            i for i, (f, _) in enumerate(rated) if np.isfinite(f.score) and (i < NEAREST or f.score <= TWINS * nearest)
        ]
        tried = [Finding(rated[i][1], self.fit(rated[i][1])) for i in near]
        rest = [Finding(s, f) for i, (f, s) in enumerate(rated) if i not in near and np.isfinite(f.score)]
        return ranked([*tried, *(Finding(f.suspect, weaker(f.fit)) for f in rest)])


def weaker(fit: Fit) -> Fit:
    """A quick fit explains nothing: there are others that come nearer."""
    return Fit(fit.score, fit.R, False, fit.views)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The best first; special cases of another that explains as much are left to it, and of several chunk sizes with
    one mistake the best stands for all."""
    order = sorted(findings, key=lambda f: (not f.explains, f.suspect.sized, f.score))
    found: list[Finding] = []
    for finding in order:
        if any(finding.suspect.names == other.suspect.names for other in found):
            continue
        found.append(finding)
    explained = {name for f in found if f.explains for name in f.suspect.names}
    return [f for f in found if not (f.suspect.within & explained)]


def named(findings: Sequence[Finding]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """(those that are named: one, or several that nothing tells apart; those that explain what was seen, but not ten
    times better than another). What foretells a size and no more is never named, and no rival of what foretells every
    number."""
    best = tuple(f for f in findings if f.explains and not f.suspect.sized)
    if not best:
        return (), tuple(f for f in findings if f.explains)
    others = [f for f in findings if not f.explains and not f.suspect.sized]
    sure = all(f.score >= BEATS * max(best[0].score, BEST) for f in others)
    return (best, ()) if sure else ((), best)


def worst(core: Core, found: Sequence[Statistics]) -> tuple[int, int]:
    """The sequence and head that are furthest off."""
    of_o = next((s for s in found if s.view == "o" and s.level == "FAIL"), None)
    if of_o is not None and of_o.rho.size:
        squares = np.where(np.isnan(of_o.rho), 0.0, of_o.rho) ** 2
        sums = np.array([squares[b, t0:t1].sum(axis=0) for b, t0, t1 in core.segments])
    else:
        states = [s for s in found if s.view != "o" and not s.view.endswith(COLUMNS)]
        if not states:
            return 0, 0
        sums = (np.where(np.isnan(states[0].rho), 0.0, states[0].rho) ** 2).sum(axis=2)
    n, h = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(n), int(h)
