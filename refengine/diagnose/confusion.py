"""The diagnosis, judged by the same zoo as the verifier: every declared mistake, made in an emulation, and what it is
called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import UnavailableError
from ..frontend.norm import L2Norm
from ..spec import Mutant
from ..verify import gradient_mistakes
from ..verify.emulate import Run, emulate
from ..verify.mistakes import Outputs, mutated, of
from ..verify.mutate import cotangents, differs, stored
from ..verify.policy import Policy
from ..verify.statistics import FAIL
from ..verify.trials import FRONT, Draw, trial
from ..verify.verdict import Judge, problem_of
from ..verify.yardstick import part_of
from .diagnosis import NOTHING_WRONG, Case, Diagnosis
from .probes import FAINT, SHARP, STILL, WIDE, drawn
from .suspects import Suspect
from .where import NEAR, Where

PACKED = "packed"  # short sequences in one row, with all that may come before the op
SHORT = 12
REGIMES = ("mamba", FRONT, SHARP, WIDE, FAINT, "nodecay", "corr", "strong", PACKED, STILL)
PAIRS, HONEST = 20, 6  # pairs of a table, and honest runs for each regime
BACKWARD = ("mamba", FRONT, "nodecay", "strong")
WAYS = (Run("recurrent"), Run("chunk", 64))
SIZES: dict[str, Any] = {"B": 2, "T": 100, "H": 2, "HV": 4, "K": 16, "V": 16}


@dataclass
class Row:
    """One mistake: on which regimes it was tried, what it was called on the last of them, and how often it was called
    by another's name alone."""

    mutant: Mutant
    regimes: tuple[str, ...] = ()
    outcome: str = "cannot be made"
    called: tuple[str, ...] = ()
    wrong: int = 0

    @property
    def right(self) -> bool:
        return self.mutant.name in self.called


def cases(op: str, grade: str, seed: int, sizes: Mapping[str, Any] = SIZES) -> Iterator[tuple[str, Case]]:
    """One fresh problem of each regime."""
    for regime in REGIMES:
        if regime == PACKED:
            given = trial(op, FRONT, seed, **{**sizes, "B": 1}, start=False)
            given["cu_seqlens"] = [*range(0, sizes["T"], SHORT), sizes["T"]]
        else:
            given = drawn(op, regime, seed, **sizes)
            given |= {"use_qk_l2norm": L2Norm(1e-3)} if regime == FAINT else {}
        yield regime, Case(op, widened(given) if grade.startswith("f32") else given, grade)


def widened(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of floats in float32."""
    return {n: np.asarray(x, np.float32) if isinstance(x, np.ndarray) else x for n, x in given.items()}


def made(mutant: Mutant, case: Case, run: Run) -> dict[str, NDArray[Any]] | None:
    """What a kernel of the declared precision with that mistake gives."""
    with np.errstate(all="ignore"):
        got = mutated(mutant, case.judge.core, case.judge.policy, run)
    return None if got is None else stored(case.judge, got["o"], got["final_state"])


def confusion(op: str, grade: str, seed: int, only: Sequence[str] | None = None) -> list[Row]:
    """Every mistake in every regime until one names it."""
    rows = [Row(m) for m in of(ops.get(op)) if only is None or m.name in only]
    for regime, case in cases(op, grade, seed):
        tried(rows, regime, case, partial(made, case=case, run=WAYS[1]))
    return rows


def tried(rows: Sequence[Row], regime: str, case: Case, make: Callable[[Mutant], Outputs | None]) -> None:
    """What each mistake that has no right name yet is called here."""
    for row in rows:
        got = None if row.right else make(row.mutant)
        if got is None:
            continue
        found = case.diagnosis(got, None)
        row.regimes, row.outcome = (*row.regimes, regime), found.outcome
        row.called = names(found)
        row.wrong += bool(row.called or found.part) and row.mutant.name not in (*row.called, *found.part)


def backward_confusion(op: str, grade: str, seed: int) -> list[Row]:
    """Every mistake of backward passes, the outputs being right."""
    rows = [Row(m) for m in gradient_mistakes.CATALOGUE]
    for regime in BACKWARD:
        given = trial(op, regime, seed, **SIZES)
        given |= {"use_qk_l2norm": L2Norm(1e-3)} if regime != FRONT else {}
        given = widened(given) if grade.startswith("f32") else given
        case = Case(op, given | cotangents(problem_of(op, given), seed), grade)
        right = stored(case.judge, *emulate(case.judge.core, case.judge.policy, WAYS[1]))

        def make(mutant: Mutant, case: Case = case, right: Outputs = right) -> Outputs | None:
            assert case.judge.back is not None
            got = gradient_mistakes.mutated(mutant, case.judge.back, case.judge.policy, WAYS[1])
            return None if got is None else right | kept(got, case.judge.policy)

        tried(rows, regime, case, make)
    return rows


def kept(gradients: Mapping[str, NDArray[Any]], policy: Policy) -> Outputs:
    """In the dtypes that the grade declares."""
    return {n: x.astype(policy.format(part_of(n, x.ndim)).dtype) for n, x in gradients.items()}


@dataclass
class Compound:
    """Two mistakes at once: in which regime, what they were called, and whether the place is right."""

    names: tuple[str, ...]
    regime: str
    outcome: str
    called: tuple[str, ...]
    place: bool

    @property
    def kind(self) -> str:
        """ "both named", "one named", "no single mistake", or "named wrongly"."""
        if set(self.names) <= set(self.called):
            return BOTH
        return WRONGLY if set(self.called) - set(self.names) else ONE if self.called else NEITHER


KINDS = BOTH, ONE, NEITHER, WRONGLY = "both named", "one named", "no single mistake", "named wrongly"


def compounds(op: str, grade: str, seed: int, count: int, sizes: Mapping[str, Any] = SIZES) -> Iterator[Compound]:
    """Pairs drawn at random, each of two mistakes that verify sees alone and neither of which hides the other."""
    draw, every = Draw(seed), list(cases(op, grade, seed, sizes))
    known = [m for m in of(ops.get(op)) if not m.precision]
    while count:
        regime, case = every[int(draw.whole((), 0, len(every) - 1))]
        pair = tuple(known[int(draw.whole((), 0, len(known) - 1))] for _ in range(2))
        with np.errstate(all="ignore"):
            exact = Suspect(pair, WAYS[1]).exact(case.judge.core, case.judge.policy)
            alone = [mutated(m, case.judge.core, run=WAYS[1]) for m in pair]
            got = Suspect(pair, WAYS[1]).outputs(case.judge.core, case.judge.policy, WAYS[1])
        if exact is None or got is None or any(x is None or not tells(x, exact) for x in alone):
            continue
        if any(case.judge.level(made(m, case, WAYS[1]) or {}) != FAIL for m in pair):
            continue
        found = case.diagnosis(stored(case.judge, got["o"], got["final_state"]), None)
        called = names(found) or found.part
        yield Compound(
            tuple(m.name for m in pair), regime, found.outcome, called, placed(case.judge, exact, found.where)
        )
        count -= 1


def tells(x: Mapping[str, NDArray[Any]], y: Mapping[str, NDArray[Any]]) -> bool:
    return any(differs(x[name], y[name]) for name in y)


def placed(judge: Judge, exact: Mapping[str, NDArray[Any]], where: Where) -> bool:
    """Whether a place is right: the outputs said to be wrong are those that the mistakes change by more than rounding,
    and so is the first row, where no earlier one is by far more."""
    with np.errstate(all="ignore"):
        found = {s.view: s for s in judge.measured({name: np.asarray(x, np.float64) for name, x in exact.items()})}
    away = {name: found[name].values["rho"] / found[name].limits["rho"][1] for name in exact}
    worst = {name: np.inf if np.isnan(far) else far for name, far in away.items()}
    if any((name in where.outputs) != (far > 1) for name, far in worst.items() if not 0.25 < far < 4):
        return False
    if where.first is None or not where.outputs:
        return False
    s = found[where.outputs[0]]
    rho = np.where(np.isnan(s.rho), np.inf, s.rho)
    n, h = where.first["sequence"], where.first["head"]
    if "t" in where.first:  # rows of o, sequence by sequence; several together may be wrong where none is alone
        rho = np.concatenate([rho[b, t0:t1] for b, t0, t1 in judge.segments])
        at = sum(t1 - t0 for _, t0, t1 in judge.segments[:n]) + where.first["t"]
        here = rho[at : at + NEAR, h]
    else:
        rho, at = rho.max(axis=2), n
        here = rho[n, h]
    return bool(here.max() >= 0.5 * s.limits["R"][1] and not (rho[:at] > 4 * s.limits["rho"][1]).any())


def names(found: Diagnosis) -> tuple[str, ...]:
    """Every mistake that is named."""
    return tuple(name for f in found.twins for name in f.suspect.names)


def honest(op: str, grade: str, seed: int, count: int) -> dict[str, int]:
    """How often each outcome came of emulations with no mistake in them."""
    outcomes: dict[str, int] = {}
    for _, case in cases(op, grade, seed):
        for i in range(count):
            run = [Run("recurrent"), *(Run("chunk", C) for C in (16, 32, 64, 128))][i % 5]
            splits = ((), (1,), (37, 64))[i // 5 % 3]
            core, policy = case.judge.core, case.judge.policy
            o, final = emulate(core, policy, Run(run.algorithm, run.chunk, splits=splits, permutation=i))
            found = case.diagnosis(stored(case.judge, o, final), None)
            outcomes[found.outcome] = outcomes.get(found.outcome, 0) + 1
    return outcomes


@dataclass
class Table:
    """The record of one op and grade: mistakes alone, in backward passes (none where its gradients cannot be judged),
    two at once, and none at all."""

    op: str
    grade: str
    forward: list[Row]
    backward: list[Row]
    compounds: list[Compound]
    honest: dict[str, int]

    def lines(self) -> list[str]:
        """In words."""
        return [
            f"{self.op}, {self.grade}: {summary(self.forward)}",
            *(line(row) for row in self.forward if row.regimes),
            f"gradients: {summary(self.backward)}",
            *(line(row) for row in self.backward if row.regimes),
            f"{len(self.compounds)} pairs: {counted(Counter(x.kind for x in self.compounds), KINDS)}; "
            f"the place right in {sum(x.place for x in self.compounds)}",
            *(f"  {' + '.join(x.names):57} {x.kind:19} {x.regime}" for x in self.compounds),
            f"honest runs: {counted(self.honest, sorted(self.honest))}",
        ]

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        return {
            "op": self.op,
            "grade": self.grade,
            "rows": [data(row) for row in self.forward],
            "gradients": [data(row) for row in self.backward],
            "pairs": [{**x.__dict__, "kind": x.kind} for x in self.compounds],
            "honest": self.honest,
        }


def table(op: str, grade: str, seed: int) -> Table:
    """All of it, on inputs of one seed."""
    try:
        backward = backward_confusion(op, grade, seed)
    except UnavailableError:
        backward = []
    forward, pairs = confusion(op, grade, seed), list(compounds(op, grade, seed, PAIRS))
    return Table(op, grade, forward, backward, pairs, honest(op, grade, seed, HONEST))


def summary(rows: Sequence[Row]) -> str:
    tried = [r for r in rows if r.regimes]
    unseen = sum(r.outcome == NOTHING_WRONG for r in tried)
    right, wrong = sum(r.right for r in tried), sum(r.wrong for r in rows)
    return f"{right} of {len(tried)} mistakes named, {wrong} named wrongly; {unseen} never seen by verify"


def line(row: Row) -> str:
    what = ", ".join(row.called) if row.called else f"({row.outcome})"
    return f"  {row.mutant.name:28} {what:44} {row.regimes[-1]}"


def counted(counts: Mapping[str, int], kinds: Sequence[str]) -> str:
    return ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in kinds)


def data(row: Row) -> dict[str, Any]:
    whole = {"regimes": list(row.regimes), "outcome": row.outcome, "called": list(row.called), "wrong": row.wrong}
    return {"mutant": row.mutant.name, **whole}
