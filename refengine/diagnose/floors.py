"""How far outputs are from what a suspect computes, in units of how far an honest implementation of the suspect would
be: verify's own statistics and limits, with the suspect's exact answer for the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..verify.emulate import Core, Run
from ..verify.mistakes import Outputs
from ..verify.policy import Policy
from ..verify.statistics import BLOCK, FAIL, NAMES, Statistics, measure
from ..verify.yardstick import Scale, View, is_state, members, scales, views
from .suspects import Suspect

Array = NDArray[Any]
Compute = Callable[[Policy, Run], Outputs | None]
QUICK = (Run("recurrent", seed=501, permutation=601), Run("chunk", seed=502, permutation=602))
OF_WAY = 6  # members of an ensemble that has one way
LEAST = 0.4  # of the error that a suspect of rounding predicts: each head must have as much of it in every block


@dataclass(frozen=True)
class Fit:
    """How outputs compare with one suspect: `score` is the largest statistic over its limit (1: where PASS ends), `R`
    the root mean square in units of the floor, `explains` that no statistic fails. `views` is the score of each."""

    score: float
    R: float
    explains: bool
    views: Mapping[str, float]


NOTHING = Fit(np.inf, np.inf, False, {})


def runs(suspect: Suspect, policy: Policy, quick: bool) -> list[list[Run]]:
    """The ensemble, by class of algorithm."""
    count = 2 if quick else OF_WAY
    if suspect.way is not None and suspect.rounds:  # the same roundings, of sums in another order
        return [[replace(suspect.way, permutation=201 + i) for i in range(count)]]
    if suspect.way is not None:
        return [[replace(suspect.way, seed=101 + i, permutation=201 + i) for i in range(count)]]
    if not quick:
        return list(members(policy).values())
    allowed = [replace(run, chunk=policy.chunk) for run in QUICK if policy.algorithm in ("any", run.algorithm)]
    return [[run] for run in allowed]


def floor(
    compute: Compute, exact: Outputs, policy: Policy, ensemble: Sequence[Sequence[Run]]
) -> tuple[dict[str, View], dict[str, Scale]] | None:
    """The exact outputs as rows, and what an honest implementation errs in each."""
    true = {view.name: view for view in views(finite_where(exact, exact))}
    nothing = {name: np.zeros(bound_shape(name, x)) for name, x in exact.items()}

    def outputs(run: Run) -> dict[str, Array]:
        got = compute(policy, run)
        if got is None:
            raise _CannotBeMade
        return finite_where(got, exact)

    try:
        return true, scales(true, nothing, policy, ensemble, outputs)
    except _CannotBeMade:
        return None


class _CannotBeMade(Exception):  # noqa: N818  # no error of anybody's: the suspect is none here
    """A mistake that the problem has nothing for."""


def bound_shape(name: str, x: Array) -> tuple[int, ...]:
    """Of the bound that a solution has for such an output."""
    return (*x.shape[:2], x.shape[3]) if is_state(name) else x.shape


def finite_where(got: Mapping[str, Array], exact: Mapping[str, Array]) -> dict[str, Array]:
    """Zeros where the exact outputs have no finite number, so that the rest can be compared."""
    return {n: np.where(np.isfinite(exact[n]), x, 0.0) for n, x in got.items() if n in exact}


def same_holes(got: Mapping[str, Array], exact: Mapping[str, Array]) -> bool:
    """NaN where NaN is, infinities where infinities of that sign are."""
    tests = (np.isnan, np.isposinf, np.isneginf)
    return all(np.array_equal(test(x), test(exact[n])) for n, x in got.items() for test in tests)


def fit(
    suspect: Suspect,
    compute: Compute,
    exact: Outputs | None,
    got: Mapping[str, Array],
    policy: Policy,
    segments: Sequence[tuple[int, int, int]],
    quick: bool,
) -> Fit:
    """How these outputs compare with `exact`, what the suspect gives where nothing is rounded; `compute` gives what
    it does at any precision."""
    with np.errstate(all="ignore"):
        if exact is None or not same_holes(got, exact):
            return NOTHING
        exact = {name: exact[name] for name in got}
        made = floor(compute, exact, policy, runs(suspect, policy, quick))
        if made is None:
            return NOTHING
        true, scale = made
        rest = views(finite_where(got, exact))
        found = [measure(view.values, true[view.name], scale[view.name], policy, segments) for view in rest]
    fitted = judged(found)
    smallest = min((least(s, segments) for s in found), default=0.0) if suspect.sized else 1.0
    if smallest >= LEAST:
        return fitted
    return replace(fitted, explains=False, score=max(fitted.score, over(1.0, smallest)))


def judged(found: Sequence[Statistics]) -> Fit:
    by_view = {s.view: max(over(s.values[n], s.limits[n][0]) for n in NAMES) for s in found}
    R = max((s.groups.get("whole", 0.0) for s in found), default=0.0)
    explains = bool(found) and all(s.level != FAIL for s in found)
    return Fit(max(by_view.values(), default=np.inf), float(R), explains, by_view)


def over(value: float, limit: float) -> float:
    return np.inf if np.isnan(value) or limit == 0 else value / limit


def cut(core: Core, got: Mapping[str, Array], n: int, h: int) -> dict[str, Array]:
    """What was given of one sequence and head."""
    b, t0, t1 = core.segments[n]
    return {name: x[b : b + 1, t0:t1, h : h + 1] if name == "o" else x[n : n + 1, h : h + 1] for name, x in got.items()}


def least(s: Statistics, segments: Sequence[tuple[int, int, int]]) -> float:
    """The root mean square of rho in that part that has the least of it."""
    squares = s.rho**2
    if s.view == "o":
        parts = [
            squares[b, t : min(t + BLOCK, t1)].mean(axis=0) for b, t0, t1 in segments for t in range(t0, t1, BLOCK)
        ]
    else:
        parts = [squares.mean(axis=2)]
    return float(np.sqrt(min((p.min() for p in parts if p.size), default=0.0)))
