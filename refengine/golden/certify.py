"""Two roads or no golden: a case's answer by the sequential recurrence in double-double, by the closed form in balls
and, where it is small, by the definition in balls, which must agree within the sum of their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.certified import proved
from ..engine.run import execute
from ..engine.solution import Solution
from ..errors import RefengineError
from . import balls
from .cases import Case
from .closed import closed
from .inputs import arguments
from .problems import problem

Array = NDArray[Any]
OUTPUTS = ("o", "final_state")
CLOSED_BITS = 320
THIN = 2.0**-100  # how wide a ball may be, relative to the largest entry, to be a second opinion on a smaller bound


class DisagreementError(RefengineError):
    """Two ways to the same answer are further apart than their bounds allow: one of them is wrong."""


@dataclass(frozen=True)
class Certified:
    """truth: o, final_state, and with cotangents dNAME of every input; delta: how far o and final_state may be from the
    exact answer. method: the roads that agreed; unsettled: elements whose correct rounding is proved by none."""

    truth: dict[str, Array]
    low: dict[str, Array]
    delta: dict[str, Array]
    counts: dict[str, int]
    roads: list[str]
    unsettled: list[str]
    solution: Solution


def elementwise(solution: Solution, name: str) -> Array:
    """The bound on high + low, spread over the output's entries."""
    bound = solution.bound[f"{name}.lo"]
    return bound[..., None] if name == "o" else bound[:, :, None]


def agree(case: str, solution: Solution, road: str, name: str, exact: Array) -> None:
    """Every entry is as near to its ball as the double-double bound says, and the balls are small enough to tell; or
    the golden is refused."""
    high = getattr(solution, name)
    least, most = balls.apart(high, solution.low[name], exact)
    allowed = np.broadcast_to(elementwise(solution, name), high.shape)
    blur = THIN * np.abs(high).max(initial=1.0)
    fine = (least <= allowed) & (most - least <= np.maximum(allowed, blur))
    if not fine.all():
        at = tuple(int(i) for i in np.argwhere(~fine)[0])
        raise DisagreementError(
            f"{case}: {name}[{', '.join(map(str, at))}] is {least[at]:.3g} to {most[at]:.3g} away from {road}, but the "
            f"bound allows {allowed[at]:.3g}; no golden is written."
        )


def certify(case: Case) -> Certified:
    """The case's truth, or a DisagreementError."""
    given = arguments(case)
    do, dht = given.pop("do", None), given.pop("dht", None)
    p = problem(case.op.name, given, precision="certified")
    solution, plain = execute(p, 1), execute(problem(case.op.name, given), 1)
    with balls.bits(CLOSED_BITS):
        other = dict(zip(OUTPUTS, closed(p), strict=True))
    for name in OUTPUTS:
        agree(case.id, solution, "the closed form", name, other[name])
        within(case.id, plain, solution, name)
    roads = ["sequential, double-double", "sequential, float64", "closed form, balls"]
    truth, unsettled = {}, []
    small = balls.small(p.sizes)
    exact = balls.enclosed(p, None if do is None else (do, dht)) if small else {}
    if small:
        roads.append("definition, balls")
    by = {"running_bound": 0, "balls": 0, "unsettled": 0}
    for name in OUTPUTS:
        high = getattr(solution, name)
        sure = proved(high, solution.low[name], elementwise(solution, name))
        by["running_bound"] += int(sure.sum())
        if small:
            enclosure, nearest, settled = exact[name]
            agree(case.id, solution, "the definition", name, enclosure)
            if (nearest != high)[sure & settled].any():
                raise DisagreementError(f"{case.id}: {name} is called correctly rounded, but balls round otherwise.")
            by["balls"] += int((settled & ~sure).sum())
            high, sure = np.where(settled, nearest, high), sure | settled
        truth[name] = high + 0.0  # no negative zeros
        unsettled += [f"{name}{at}" for at in np.argwhere(~sure).tolist()]
    for name, (_, nearest, settled) in exact.items():
        if name not in OUTPUTS:
            by["balls"] += int(settled.sum())
            truth[name] = nearest + 0.0
            unsettled += [f"{name}{at}" for at in np.argwhere(~settled).tolist()]
    by["unsettled"] = len(unsettled)
    delta = {name: solution.bound[name] for name in OUTPUTS}
    return Certified(truth, solution.low, delta, by, roads, unsettled, solution)


def within(case: str, plain: Solution, solution: Solution, name: str) -> None:
    """The float64 kernel keeps its own bound beside the certified answer."""
    apart = np.abs(getattr(plain, name) - getattr(solution, name))
    allowed = plain.bound[name] + solution.bound[name]
    if not (apart <= (allowed[..., None] if name == "o" else allowed[:, :, None])).all():
        raise DisagreementError(f"{case}: {name} in float64 is further from the certified answer than its bound.")
