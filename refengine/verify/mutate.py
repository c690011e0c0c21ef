"""The verifier, judged by its own bug zoo: which mistakes it kills, and how often it alarms at honest kernels.

For each of several inputs the yardstick is made once. Honest emulations (recurrent, and chunks of 16 to 128, each
under eight patterns of calls) must not fail; every mistake of verify/mistakes.py, in an emulation of the same grade,
should. The field's usual criteria judge the same outputs. On exact inputs (verify/trials.py) the question is equality
to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..engine.problem import Problem
from ..spec import Mutant
from . import criteria, gradient_mistakes, mesa_mistakes
from .emulate import Core, Run, emulate
from .gradients import emulate as backward
from .mistakes import EXACT as EXACT_POLICY
from .mistakes import coarser, mutated, of
from .policy import policy
from .statistics import FAIL, PASS
from .trials import EXACT, FRONT, REGIMES, SLACK, Draw, trial
from .verdict import Judge, problem_of

Array = NDArray[Any]
WAY = Run("chunk", 64)  # how a mistaken kernel computes
CHUNKS = (16, 32, 48, 64, 128)
ODD: dict[str, Any] = {"B": 2, "V": 48}  # sizes of inputs of odd seeds
LEARNERS = 24  # honest runs of the exact learner, for an input and a way
# Relative change of the exact answer below which an input does not show a mistake: between what float64 leaves of one
# that changes nothing there (without decay, gates: 1e-15) and what any other changes (1e-5 and more).
HIDDEN = 1e-9


def patterns(T: int) -> tuple[tuple[int, ...], ...]:
    """After which tokens calls are cut: eight ways that serving systems have."""
    third = T // 3
    return (
        (),
        (1,),
        (101 % T,),
        (T - 1,),
        (63, 65),
        (third, 2 * third),
        tuple(range(50, T, 50)),
        tuple(range(T - 8, T)),
    )


@dataclass
class Row:
    """One mistake: on how many inputs it shows, and on how many of those each judge is not content."""

    mutant: Mutant
    shown: int = 0
    failed: int = 0
    not_passed: int = 0
    others: dict[str, int] = field(default_factory=dict)


@dataclass
class Matrix:
    """Of one op and grade: the rows, and the honest runs with those that were not PASS, FAIL, or refused by others; the
    largest statistics of any honest run."""

    op: str
    grade: str
    rows: list[Row]
    honest: int = 0
    warned: int = 0
    failed: int = 0
    others: dict[str, int] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    def share(self, kind: str, structural: bool | None = None) -> tuple[int, int]:
        """(killed, shown) over all mistakes, by "failed", "not_passed" or the name of another criterion."""
        rows = [r for r in self.rows if structural is None or r.mutant.precision != structural]
        killed = sum(getattr(r, kind) if hasattr(r, kind) else r.others.get(kind, 0) for r in rows)
        return killed, sum(r.shown for r in rows)


def inputs(op: str, grade: str, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every regime with every seed, and one with all that may come before the op; odd seeds have two rows, a shorter
    sequence and fewer value than key channels."""
    for seed in seeds:
        for regime in (*REGIMES, FRONT):
            given = trial(op, regime, seed, **({**ODD, "T": 150} if seed % 2 else {}))
            if grade == "f32":
                given = {n: np.asarray(x, np.float32) if isinstance(x, np.ndarray) else x for n, x in given.items()}
            yield given


def stored(judge: Judge, o: Array, final: Array) -> dict[str, Array]:
    """Outputs in the dtypes that the grade declares."""
    parts = {"o": (o, "io"), "final_state": (final, "state")}
    with np.errstate(all="ignore"):
        return {name: np.asarray(x).astype(judge.policy.format(part).dtype) for name, (x, part) in parts.items()}


def others_reject(judge: Judge, got: dict[str, Array]) -> dict[str, bool]:
    """Which of the usual criteria refuse these outputs."""
    wide = {name: x.astype(np.float64) for name, x in got.items()}
    truth = {name: judge.values(name) for name in wide}
    said = criteria.verdicts(wide, truth, judge.honest(), judge.policy)
    return {name: not content for name, content in said.items()}


def shows(mutant: Mutant, core: Core, judge: Judge) -> bool:
    """Whether the mistake changes the exact answer to this input at all; one of rounding, whether it changes a bit (in
    the chunk algebra, where products may be rounded as much by the policy, whether anything overflows)."""
    if mutant.precision:
        other = mutated(mutant, core, judge.policy, WAY)
        if other is None:
            return False
        if mutant.acts == "chunk" and coarser(judge.policy, mutant.rounds)[0] is None:
            return not all(np.isfinite(x).all() for x in other.values())
        right = emulate(core, judge.policy, WAY)
        return any(not np.array_equal(x, y) for x, y in zip(right, other.values(), strict=True))
    wrong = mutated(mutant, core)
    if wrong is None:
        return False
    return any(differs(x, judge.values(name)) for name, x in wrong.items())


def matrix(op: str, grade: str, seeds: Sequence[int], honest_per_input: int | None = None) -> Matrix:
    """The kill matrix of one op and grade. honest_per_input: how many of the 48 honest runs of an input are tried."""
    found = Matrix(op, grade, [Row(m) for m in of(ops.get(op))])
    for given in inputs(op, grade, seeds):
        judge = Judge(problem_of(op, given), policy(grade))
        core = judge.core
        T = judge.problem.sizes["T"]
        ways = [Run("chunk", c, splits=s) for s in patterns(T) for c in CHUNKS]
        ways += [Run("recurrent", splits=s) for s in patterns(T)]
        step = 1 if honest_per_input is None else max(1, len(ways) // honest_per_input)
        for run in ways[::step]:
            _honest(found, judge, stored(judge, *emulate(core, judge.policy, run)))
        for row in found.rows:
            got = mutated(row.mutant, core, judge.policy, WAY)
            if got is None or not shows(row.mutant, core, judge):
                continue
            row.shown += 1
            outputs = stored(judge, got["o"], got["final_state"])
            level = judge.level(outputs)
            row.failed += level == FAIL
            row.not_passed += level != PASS
            for name, refused in others_reject(judge, outputs).items():
                row.others[name] = row.others.get(name, 0) + refused
    return found


def gradient_matrix(op: str, grade: str, seeds: Sequence[int], honest_per_input: int | None = None) -> Matrix:
    """The kill matrix of backward passes: gradients alone are judged."""
    found = Matrix(f"{op}, gradients", grade, [Row(m) for m in gradient_mistakes.CATALOGUE])
    for given in inputs(op, grade, seeds):
        p = problem_of(op, given)
        judge = Judge(p, policy(grade), cotangents=cotangents(p, seeds[0]))
        back = judge.back
        assert back is not None
        ways = [Run("chunk", c, splits=s) for s in patterns(p.sizes["T"]) for c in CHUNKS]
        step = 1 if honest_per_input is None else max(1, len(ways) // honest_per_input)
        for run in ways[::step]:
            _honest(found, judge, backward(back, judge.policy, run))
        exact = backward(back, EXACT_POLICY, WAY)
        for row in found.rows:
            wrong = gradient_mistakes.mutated(row.mutant, back, EXACT_POLICY, WAY)
            if wrong is None or not any(differs(wrong[name], x) for name, x in exact.items()):
                continue
            got = gradient_mistakes.mutated(row.mutant, back, judge.policy, WAY)
            assert got is not None
            _mistaken(row, judge, got)
    return found


def learner_matrix(op: str, grade: str, seeds: Sequence[int], honest_per_input: int | None = None) -> Matrix:
    """The kill matrix of the exact learner; honest runs solve either way, in many orders of sums."""
    found = Matrix(op, grade, [Row(m) for m in mesa_mistakes.CATALOGUE])
    for seed in seeds:
        for regime in REGIMES:
            given = trial(op, regime, seed, T=120, K=32, V=32)
            judge = Judge(problem_of(op, given), policy(grade))
            orders = range(LEARNERS if honest_per_input is None else -(-honest_per_input // 2))
            for run in [Run(way, seed=n, permutation=n) for way in ("recurrent", "chunk") for n in orders]:
                _honest(found, judge, judge.core.outputs(judge.policy, run))
            exact = judge.core.outputs(EXACT_POLICY, Run())
            for row in found.rows:
                for run in (Run(), WAY):  # one of them, whichever the mistake can be made in
                    wrong = mutated(row.mutant, judge.core, EXACT_POLICY, run)
                    got = mutated(row.mutant, judge.core, judge.policy, run)
                    if got is None:
                        continue
                    if row.mutant.precision:
                        right = judge.core.outputs(judge.policy, run)
                        shown = any(not np.array_equal(x, got[name]) for name, x in right.items())
                    else:
                        shown = wrong is not None and any(differs(wrong[name], x) for name, x in exact.items())
                    if shown:
                        _mistaken(row, judge, got)
                    break
    return found


def cotangents(p: Problem, seed: int) -> dict[str, Array]:
    """do and dht, nearly normal, held in bfloat16."""
    draw, sizes = Draw(4096 + seed), p.sizes
    shapes = {"do": ("B", "T", "HV", "V"), "dht": ("N", "HV", "K", "V")}
    normal = {name: draw.normal(tuple(sizes[a] for a in axes)) for name, axes in shapes.items()}
    return {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in normal.items()}


def differs(x: Array, true: Array) -> bool:
    """Whether an exact answer is another, by more than HIDDEN."""
    return x.shape != true.shape or not np.abs(x - true).max(initial=0.0) <= HIDDEN * np.abs(true).max(initial=0.0)


def _mistaken(row: Row, judge: Judge, outputs: dict[str, Array]) -> None:
    row.shown += 1
    levels = [s.level for s in judge.measured({name: x.astype(np.float64) for name, x in outputs.items()})]
    row.failed += FAIL in levels
    row.not_passed += any(level != PASS for level in levels)
    for name, refused in others_reject(judge, outputs).items():
        row.others[name] = row.others.get(name, 0) + refused


def _honest(found: Matrix, judge: Judge, outputs: dict[str, Array]) -> None:
    found.honest += 1
    statistics = judge.measured({name: x.astype(np.float64) for name, x in outputs.items()})
    levels = [s.level for s in statistics]
    found.failed += FAIL in levels
    found.warned += any(level != PASS for level in levels)
    for s in statistics:
        for name, value in s.values.items():
            found.largest[name] = max(found.largest.get(name, 0.0), value)
    for name, refused in others_reject(judge, outputs).items():
        found.others[name] = found.others.get(name, 0) + refused


@dataclass
class Tier:
    """The exact inputs: how many honest emulations were equal to the bit, and which structural mistakes were not
    seen."""

    op: str
    honest: int = 0
    unequal: int = 0
    mistakes: int = 0
    missed: list[str] = field(default_factory=list)


def tier_e(op: str, seeds: Sequence[int]) -> Tier:
    """Every structural mistake on the exact inputs, at float32 and at bfloat16 with a bfloat16 state."""
    found = Tier(op)
    seen: dict[str, bool] = {}
    for seed in seeds:
        for regime in EXACT:
            given = trial(op, regime, seed, **(ODD if seed % 2 else {}))
            judge = Judge(problem_of(op, given), policy("bf16"), slack=SLACK.get(regime, 0.0))
            core = judge.core
            for grade in ("f32", "bf16-state16"):
                for run in [Run("recurrent"), *(Run("chunk", c, splits=s) for c in CHUNKS for s in ((), (1, 101)))]:
                    o, final = emulate(core, policy(grade), run)
                    found.honest += 1
                    found.unequal += not (judge.same("o", o) and judge.same("final_state", final))
            for mutant in of(ops.get(op)):
                got = None if mutant.precision else mutated(mutant, core, policy("bf16"), WAY)
                if got is not None:
                    unequal = any(not judge.same(name, x) for name, x in got.items())
                    seen[mutant.name] = seen.get(mutant.name, False) or unequal
    found.mistakes = len(seen)
    found.missed = sorted(name for name, was in seen.items() if not was)
    return found


def percent(pair: tuple[int, int]) -> str:
    """Rounded down: 100 % is all of them."""
    return f"{100 * pair[0] // pair[1]} %" if pair[1] else "-"


def lines(matrices: Sequence[Matrix], tier: Tier, every: bool) -> list[str]:
    """The matrices in words: one line a criterion, and with `every` one a mistake."""
    said = [
        f"{tier.op}, exact inputs: {tier.mistakes - len(tier.missed)} of {tier.mistakes} structural mistakes killed; "
        f"{tier.unequal} of {tier.honest} honest runs not equal to the bit"
    ]
    if tier.missed:
        said.append(f"  not seen there: {', '.join(tier.missed)}")
    for m in matrices:
        said.append(
            f"{m.op}, {m.grade}: {len(m.rows)} mistakes on {m.share('failed')[1]} inputs, {m.honest} honest runs"
        )
        said.append(f"  {'judge':24} {'killed':>7} {'structural':>11} {'false alarms':>13}")
        ours = (("refengine, not PASS", "not_passed", m.warned), ("refengine, FAIL", "failed", m.failed))
        for name, kind, alarms in (*ours, *((name, name, count) for name, count in m.others.items())):
            killed, structural = percent(m.share(kind)), percent(m.share(kind, structural=True))
            said.append(f"  {name:24} {killed:>7} {structural:>11} {f'{alarms} of {m.honest}':>13}")
        largest = ", ".join(f"{name} {value:.2f}" for name, value in m.largest.items())
        said.append(f"  largest over honest runs: {largest}")
        for row in m.rows:
            if (every and row.shown) or row.failed < row.shown:
                killed = f"{row.failed} of {row.shown}"
                said.append(f"  {row.mutant.name:28} {killed:>9} killed   {row.mutant.doc}")
    return said


def as_data(matrices: Sequence[Matrix], tier: Tier) -> dict[str, Any]:
    """All of it, for --json."""
    return {
        "exact": {**tier.__dict__},
        "matrices": [
            {
                **{k: v for k, v in m.__dict__.items() if k != "rows"},
                "rows": [
                    {
                        "mutant": r.mutant.name,
                        "shown": r.shown,
                        "failed": r.failed,
                        "not_passed": r.not_passed,
                        **r.others,
                    }
                    for r in m.rows
                ],
            }
            for m in matrices
        ],
    }
