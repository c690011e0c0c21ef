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
TINY = float(np.finfo(np.float64).tiny)
BEATS = 10.0  # how many times further the runner-up must be
BEST = 0.1  # a score below which nothing is any better
NEAR = 4.0  # the score of one head up to which a suspect is tried on everything
RIVALS = 2  # and so many more where one explains everything


@dataclass(frozen=True)
class Finding:
    """One suspect and how it fits: the outputs given, then those on every input tried since."""

    suspect: Suspect
    fits: tuple[Fit, ...]

    @property
    def name(self) -> str:
        return self.suspect.name

    @property
    def explains(self) -> bool:
        return all(f.explains for f in self.fits)

    @property
    def score(self) -> float:
        """The worst of them."""
        return max(f.score for f in self.fits)

    @property
    def R(self) -> float:  # noqa: N802  # the statistic's name
        return max(f.R for f in self.fits)

    def times(self, best: Finding) -> float:
        """How many times further it is than another, on the input where that is most."""
        return max(f.score / max(g.score, BEST) for f, g in zip(self.fits, best.fits, strict=False))


class Lineup:
    """The outputs of one candidate, held against suspects."""

    def __init__(self, core: Core, policy: Policy, got: Mapping[str, Array], found: Sequence[Statistics]) -> None:
        self.core, self.policy, self.got = core, policy, got
        self.at = worst(core, found)
        self.small = cut(core, got, *self.at)
        self.near: list[Suspect] = []  # those that explain the worst head
        self.seen: list[Finding] = []  # all that were tried, each way

    def quick(self, suspect: Suspect) -> Fit:
        """On the worst head of the worst sequence, where it can be computed alone."""
        if not suspect.local:
            return self.fit(suspect, quick=True)
        changed, left = suspect.altered(self.core)
        if changed is None:
            return NOTHING
        if changed.segments != self.core.segments or changed.micro != self.core.micro:
            return self.fit(suspect, quick=True)
        alone = part(changed, *self.at)

        def compute(policy: Policy, run: Run) -> Outputs | None:
            return finished(left, alone, policy, run)

        with np.errstate(all="ignore"):
            exact = finished(
                tuple(m for m in left if m in suspect.structural),
                alone,
                suspect.unrounded(self.policy, narrow=not finite(self.got)),
                suspect.way or RECURRENT,
            )
        return fit(suspect, compute, exact, self.small, self.policy, alone.segments, quick=True)

    def foretold(self, suspect: Suspect) -> Outputs | None:
        """What it would give for the worst head if nothing were rounded."""
        with np.errstate(all="ignore"):
            changed, left = suspect.altered(self.core)
            if changed is None or changed.segments != self.core.segments:
                return None
            return finished(left, part(changed, *self.at), suspect.unrounded(self.policy), suspect.way or RECURRENT)

    def rough(self, suspect: Suspect) -> float:
        """How far that is from what was given, relative to its size."""
        exact = self.foretold(suspect)
        return np.inf if exact is None else distance(exact, self.small)

    def fit(self, suspect: Suspect, quick: bool = False) -> Fit:
        """On everything."""
        return fit_whole(suspect, self.core, self.policy, self.got, quick)

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
        rated = [(f, s) for f, s in self.rated(suspects) if np.isfinite(f.score)]
        near = sum(f.score <= NEAR for f, _ in rated)
        self.near += [s for _, s in rated[:near]]
        near = max(1, near)
        tried = [Finding(s, (self.fit(s),)) for _, s in rated[:near]]
        if any(f.explains for f in tried):  # those that it must beat
            tried += [Finding(s, (self.fit(s),)) for _, s in rated[near : near + RIVALS]]
        rest = [Finding(s, (weaker(f),)) for f, s in rated[len(tried) :]]
        self.seen += [*tried, *rest]
        return ranked([*tried, *rest])


def finite(got: Mapping[str, Array]) -> bool:
    return all(bool(np.isfinite(x).all()) for x in got.values())


def fit_whole(suspect: Suspect, core: Core, policy: Policy, got: Mapping[str, Array], quick: bool = False) -> Fit:
    """How a suspect fits the outputs of a whole problem."""
    with np.errstate(all="ignore"):
        exact = replace(suspect, mutants=suspect.structural).exact(core, policy, narrow=not finite(got))
    return fit(suspect, partial(suspect.outputs, core), exact, got, policy, core.segments, quick)


def distance(exact: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """The error of that output that is furthest off, relative to what is foretold."""
    with np.errstate(all="ignore"):
        far = [float(np.linalg.norm(x - exact[n])) / max(float(np.linalg.norm(exact[n])), TINY) for n, x in got.items()]
    return max(far, default=np.inf) if np.isfinite(far).all() else np.inf


def weaker(fit: Fit) -> Fit:
    """A quick fit explains nothing: there are others that come nearer."""
    return Fit(fit.score, fit.R, False, fit.views)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The best first; special cases of another that explains as much are left to it, and of several chunk sizes or
    orders of the same mistakes the best stands for all."""
    best: dict[frozenset[str], Finding] = {}
    for finding in sorted(findings, key=lambda f: (not f.explains, f.suspect.sized, f.score)):
        best.setdefault(frozenset(finding.suspect.names), finding)
    found = list(best.values())
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
    sure = all(f.times(best[0]) >= BEATS for f in others)
    return (best, ()) if sure else ((), best)


def shared(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The mistakes that everything has in it which comes within ten times of the best, if that explains what was
    seen."""
    best = findings[0] if findings else None
    if best is None or not best.explains or best.suspect.sized:
        return ()
    near = [f.suspect.names for f in findings if not f.suspect.sized and f.times(best) < BEATS]
    return tuple(name for name in best.suspect.names if all(name in names for names in near))


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
