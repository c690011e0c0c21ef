"""Do the bounds hold? float64 against double-double on many numbers, and double-double against balls on those few that
balls can do: counted, not assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..engine.run import execute
from ..engine.solution import Solution
from . import balls
from .cases import TWO_CHUNKS_AND_5, Case, Regime, covered, kind, suite
from .certify import elementwise, spread, values
from .inputs import arguments
from .problems import problem

Array = NDArray[Any]
Progress = Callable[[int, int], None]
BITS = 384
WIDE = dict(TWO_CHUNKS_AND_5, V=256)
REGIMES = (("rich", "1", ()), ("unequal", "2", ("decay",)), ("steps", "2", ("beta",)), ("front", "2", ()))


@dataclass
class Tally:
    """numbers: compared; outside: further apart than the bound; used: the largest share of a bound that was; proved:
    of double-double's, those proved correctly rounded; unproved: in which cases how many are not."""

    numbers: int = 0
    outside: int = 0
    used: float = 0.0
    proved: int = 0
    unproved: dict[str, int] = field(default_factory=dict)

    def count(self, case: Case, said: dict[str, Any]) -> None:
        self.proved += int(said["proved"])
        if said["not_proved"]:
            self.unproved[case.id] = int(said["not_proved"])

    def add(self, apart: Array, allowed: Array) -> None:
        allowed = np.broadcast_to(allowed, apart.shape)
        self.numbers += apart.size
        self.outside += int((~(apart <= allowed)).sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            self.used = max(self.used, float(np.where(apart > 0, apart / allowed, 0.0).max(initial=0.0)))


def wide_cases(numbers: int) -> list[Case]:
    """Cases of tiers 1 and 2 with so many outputs together, every op and convention having its part."""
    kinds = []
    for op in (ops.get(name) for name in ops.names()):
        roles = {t.role for t in op.inputs} | {t.name for t in op.inputs}
        if covered(op) and op.compose is None and kind(op) != "training":
            for name, tier, needs in REGIMES:
                if set(needs) <= roles:
                    conventions = op.conventions if name == "rich" else (op.convention(None),)
                    kinds += [(op, convention, name, tier) for convention in conventions]
    B = -(-numbers // (len(kinds) * WIDE["T"] * WIDE["HV"] * WIDE["V"]))
    settings = {"front": {"use_qk_l2norm": True, "key_shift": 1}}
    return [
        Case(op, convention, Regime(name, tier, (), settings=settings.get(name, {})), {**WIDE, "B": B})
        for op, convention, name, tier in kinds
    ]


def both(case: Case) -> tuple[Solution, Solution]:
    given = arguments(case)
    for name in ("do", "dht"):
        given.pop(name, None)
    return execute(problem(case.op.name, given)), execute(problem(case.op.name, given, precision="certified"))


def against_double_double(cases: list[Case]) -> Iterator[Tally]:
    """One tally for each case: float64 within its own bound (a little wider by that of double-double)."""
    for case in cases:
        plain, certified = both(case)
        tally = Tally()
        tally.count(case, certified.info["correctly_rounded"])
        for name, high in values(certified).items():
            x = values(plain)[name]
            apart = np.abs((x - high) - certified.low[name]) * (1 - 2.0**-50)  # its own rounding aside
            tally.add(apart, spread(plain.bound[name], name) + elementwise(certified, name))
        yield tally


def against_balls(cases: list[Case]) -> Iterator[Tally]:
    """One tally for each case: double-double within its own bound."""
    for case in cases:
        given = {n: x for n, x in arguments(case).items() if n not in ("do", "dht")}
        p = problem(case.op.name, given, precision="certified")
        certified = execute(p)
        tally = Tally()
        tally.count(case, certified.info["correctly_rounded"])
        with balls.bits(BITS):
            exact = balls.outputs(p)
        for name, high in values(certified).items():
            _, most = balls.apart(high, certified.low[name], exact[name])
            tally.add(most, elementwise(certified, name))
        yield tally


def audit(numbers: int, progress: Progress | None = None) -> tuple[Tally, Tally]:
    """(float64 against double-double on at least so many outputs, double-double against balls on the core suite's
    cases of tiers 1, 2, 3 and real)."""
    many = wide_cases(numbers)
    few = [case for case in suite("core") if case.regime.tier != "E" and kind(case.op) != "training"]
    totals = Tally(), Tally()
    done = 0
    for total, tallies in zip(totals, (against_double_double(many), against_balls(few)), strict=True):
        for tally in tallies:
            total.numbers += tally.numbers
            total.outside += tally.outside
            total.proved += tally.proved
            total.unproved |= tally.unproved
            total.used = max(total.used, tally.used)
            done += 1
            if progress is not None:
                progress(done, len(many) + len(few))
    return totals
