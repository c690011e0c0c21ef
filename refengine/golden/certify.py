"""Two roads or no golden: a case's answer by its kernel in double-double, by a closed form in balls and, where it is
small, by the definition in balls, which must agree within the sum of their bounds.

A memory that learns by mini-batches has no double-double and no closed form: its roads are the kernel (the dual form,
by matrix products), the same with all channels in the opposite order, and the definition (the primal form) in balls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.certified import proved
from ..engine.fast_weights import Job, compared
from ..engine.prepare import prepare
from ..engine.problem import Problem
from ..engine.run import execute, run_all
from ..engine.solution import Solution
from ..errors import RefengineError
from . import balls, direct
from .cases import Case, kind
from .closed import closed
from .inputs import arguments
from .problems import problem

Array = NDArray[Any]
CLOSED_BITS = (320, 1200, 3600)  # in turn, until balls are thin enough to judge by
LOOSE = 2.0**-60  # of the largest entry: what two roads may differ by even where a bound allows more
BLUR = 16 * balls.THIN  # how far apart, relative to the largest entry, balls and a smaller bound may be: their width
UP = 1 + 2.0**-40


class DisagreementError(RefengineError):
    """Two ways to the same answer are further apart than their bounds allow: one of them is wrong."""


@dataclass(frozen=True)
class Certified:
    """truth: o, the final states, and with cotangents dNAME of every input; low: what those outputs have beyond it;
    delta: how far they may be from the exact answer. roads: those that agreed; unsettled: elements whose correct
    rounding is proved by none."""

    truth: dict[str, Array]
    low: dict[str, Array]
    delta: dict[str, Array]
    counts: dict[str, int]
    roads: list[str]
    unsettled: list[str]


def values(solution: Solution) -> dict[str, Array]:
    """o and the final states, by their names."""
    return {"o": solution.o, **solution.finals}


def spread(bound: Array, name: str) -> Array:
    """A bound on rows of o or on columns of a state, for every entry."""
    return bound[..., None] if name == "o" else bound[:, :, None]


def elementwise(solution: Solution, name: str) -> Array:
    """The bound on high + low, spread over the output's entries."""
    return spread(solution.bound[f"{name}.lo"], name)


def agree(case: str, solution: Solution, road: str, name: str, exact: Array) -> None:
    """Every entry is as near to its ball as the double-double bound says, and the balls are small enough to tell; or
    the golden is refused."""
    high = values(solution)[name]
    least, most = balls.apart(high, solution.low[name], exact)
    size = np.abs(high).max(initial=1.0)
    allowed = np.minimum(np.broadcast_to(elementwise(solution, name), high.shape), LOOSE * size)
    blur = BLUR * size
    fine = (least <= allowed) & (most - least <= np.maximum(allowed, blur))
    refuse(case, name, road, fine, least, most, allowed)


def refuse(case: str, name: str, road: str, fine: Array, least: Array, most: Array, allowed: Array) -> None:
    """One sentence about the first entry that is not fine."""
    if not fine.all():
        at = tuple(int(i) for i in np.argwhere(~fine)[0])
        raise DisagreementError(
            f"{case}: {name}[{', '.join(map(str, at))}] is {least[at]:.3g} to {most[at]:.3g} away from {road}, but the "
            f"bound allows {allowed[at]:.3g}; no golden is written."
        )


def closed_form(p: Problem, of: str) -> balls.Settled:
    """o and the final states by the second road, in balls, and what those round to."""
    roads: Mapping[str, Callable[[Problem], tuple[Array, ...]]] = {
        "delta": closed, "regression": direct.regression, "attention": direct.attention,
    }  # fmt: skip
    out: balls.Settled = {}
    for precision in CLOSED_BITS:
        with balls.bits(precision):
            found = zip(("o", *p.op.final_names()), roads[of](p), strict=True)
            out = {name: (enclosure, *balls.rounded(enclosure)) for name, enclosure in found}
        if all(balls.thin(enclosure, nearest) for enclosure, nearest, _ in out.values()):
            break
    return out


def certify(case: Case) -> Certified:
    """The case's truth, or a DisagreementError."""
    given = arguments(case)
    cotangents = cotangents_of(case, given)
    p = problem(case.op.name, given)
    exact = balls.enclosed(p, cotangents) if balls.small(p) else {}
    if kind(case.op) == "training":
        return learnt(case, p, exact)
    doubled = problem(case.op.name, given, precision="certified")
    solution, plain = execute(doubled, 1), execute(p, 1)
    other = closed_form(p, kind(case.op))
    roads = ["sequential, double-double", "sequential, float64", "closed form, balls"]
    roads += ["definition, balls"] if exact else []
    truth: dict[str, Array] = {}
    delta: dict[str, Array] = {}
    unsettled: list[str] = []
    by = {"running_bound": 0, "balls": 0, "unsettled": 0}
    for name, high in values(solution).items():
        agree(case.id, solution, "the closed form", name, other[name][0])
        within(case.id, plain, solution, name)
        sure = proved(high, solution.low[name], elementwise(solution, name))
        by["running_bound"] += int(sure.sum())
        enclosure, nearest, settled = exact[name] if exact else other[name]
        if exact:
            agree(case.id, solution, "the definition", name, enclosure)
        if (nearest != high)[sure & settled].any():
            raise DisagreementError(f"{case.id}: {name} is called correctly rounded, but balls round otherwise.")
        by["balls"] += int((settled & ~sure).sum())
        high, sure = np.where(settled, nearest, high), sure | settled
        truth[name] = high + 0.0  # no negative zeros
        tight = (solution.bound[f"{name}.lo"] <= LOOSE * np.abs(high).max(initial=1.0)).all()
        delta[name] = solution.bound[name] if tight else off_by(high, enclosure, name)
        unsettled += [f"{name}{at}" for at in np.argwhere(~sure).tolist()]
    found, by["balls"], more = of_balls({n: x for n, x in exact.items() if n not in truth}, by["balls"])
    unsettled += more
    by["unsettled"] = len(unsettled)
    return Certified(truth | found, solution.low, delta, by, roads, unsettled)


def cotangents_of(case: Case, given: dict[str, Any]) -> dict[str, Array]:
    """do and dht, taken out of the arguments, by the names of the outputs they weigh."""
    do, dht = given.pop("do", None), given.pop("dht", None)
    names = case.op.final_names()
    parts = (
        {} if dht is None else {names[0]: dht} if len(names) == 1 else {f"final_state.{n}": x for n, x in dht.items()}
    )
    return parts if do is None else {"o": do} | parts


def of_balls(exact: balls.Settled, count: int) -> tuple[dict[str, Array], int, list[str]]:
    """(what only balls have, how many of them are settled besides `count`, those that are not)."""
    unsettled = [f"{name}{at}" for name, (_, _, sure) in exact.items() for at in np.argwhere(~sure).tolist()]
    count += sum(int(sure.sum()) for _, _, sure in exact.values())
    return {name: nearest + 0.0 for name, (_, nearest, _) in exact.items()}, count, unsettled


def learnt(case: Case, p: Problem, exact: balls.Settled) -> Certified:
    """`certify` of a memory that learns by mini-batches."""
    if not exact:
        raise DisagreementError(f"{case.id} is too large for the definition in balls, its only second road.")
    job = Job(p, prepare(p)[0], 1)
    run_all(job, None)
    o_bound, finals = compared(job)
    names = ("o", *p.op.final_names())
    low, delta = {}, {}
    for name, got, bound in zip(names, (job.o, *job.final), (o_bound, *finals), strict=True):
        enclosure, nearest, _ = exact[name]
        least, most = balls.apart(got, 0 * got, enclosure)
        allowed = np.broadcast_to(spread(bound, name), got.shape)
        refuse(case.id, name, "the definition", most <= allowed, least, most, allowed)
        low[name] = balls.beyond(nearest, enclosure)
        delta[name] = off_by(nearest, enclosure, name)
    truth, settled, unsettled = of_balls(exact, 0)
    by = {"running_bound": 0, "balls": settled, "unsettled": len(unsettled)}
    roads = ["dual form, float64", "dual form, float64, channels in the opposite order", "definition, balls"]
    return Certified(truth, low, delta, by, roads, unsettled)


def off_by(nearest: Array, enclosure: Array, name: str) -> Array:
    """How far the truth is from any point of its balls: the largest entry of rows of o, the norm of columns of a
    state."""
    _, off = balls.apart(nearest, 0 * nearest, enclosure)
    return np.asarray(off.max(axis=-1, initial=0.0) if name == "o" else np.sqrt(np.square(off).sum(axis=2)) * UP)


def within(case: str, plain: Solution, solution: Solution, name: str) -> None:
    """The float64 kernel keeps its own bound beside the certified answer."""
    apart = np.abs(values(plain)[name] - values(solution)[name])
    if not (apart <= spread(plain.bound[name] + solution.bound[name], name)).all():
        raise DisagreementError(f"{case}: {name} in float64 is further from the certified answer than its bound.")
