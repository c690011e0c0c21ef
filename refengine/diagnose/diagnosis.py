"""`refengine.diagnose`: the whole road, from outputs to a name or to the place alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RefengineError, UnavailableError
from ..verify.candidates import Called, Live
from ..verify.emulate import Core
from ..verify.policy import Policy
from ..verify.statistics import FAIL
from ..verify.verdict import COTANGENTS, Judge, Verdict, problem_of
from .backward import BackwardLineup
from .fits import fitted
from .pairs import pairs
from .probes import STILL, settled, stilled
from .stages import Fed, Stage, split
from .suspects import singles
from .what import Finding, Lineup, named, ranked, shared
from .where import Where, localise

Array = NDArray[Any]
UNKNOWN, NAMED, TWINS, OPEN, NOTHING_WRONG, UNUSABLE = "unknown", "named", "twins", "open", "nothing wrong", "unusable"
FED, PARTLY = "fed wrong", "partly named"


@dataclass(frozen=True)
class Diagnosis:
    """What `refengine.diagnose` returns.

    outcome   "named": one mistake explains all that was seen and every other leaves ten times as much; "twins": the
              same of several, which nothing tells apart; "partly named": two explain it, one of which (`part`)
              whatever comes near has; "open": some explain it, but not ten times better than another; "fed wrong": the
              recurrence is right for the stages that were given; "unknown": no known mistake explains it; "nothing
              wrong": verify does not fail it; "unusable": shapes or dtypes are wrong, or outputs missing
              (`verdict.faults`)
    best      the mistake that is named, or None (of twins the first)
    twins     all that are named
    part      the names of the mistakes that are sure, where another is not
    open      those that explain it without being named
    stages    those that were given, each right or wrong by itself
    recurrence   whether the outputs are right for the stages given; None where none of them enters the recurrence
    still     this is about another input, on which nothing is written (probes.STILL): those given show nothing
    probed    the inputs that a candidate that can be run was tried on besides, to tell suspects apart
    ranking   every suspect that was tried, the best first
    where     what is wrong, from which token on, and the pattern
    verdict   what `refengine.verify` says
    """

    outcome: str
    verdict: Verdict
    where: Where
    ranking: tuple[Finding, ...] = ()
    twins: tuple[Finding, ...] = ()
    open: tuple[Finding, ...] = ()
    part: tuple[str, ...] = ()
    probed: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    recurrence: bool | None = None
    still: bool = False

    @property
    def best(self) -> Finding | None:
        return self.twins[0] if self.twins else None

    @property
    def text(self) -> str:
        """One paragraph for a person, and a line for each of the nearest suspects."""
        from .words import lines

        return "\n".join(lines(self))

    def to_json(self) -> str:
        """One JSON object; `refengine.diagnose.words.SCHEMA` describes it."""
        from .words import to_json

        return to_json(self)


class Case:
    """One problem, and the candidates that answer it."""

    def __init__(self, op: str, inputs: Mapping[str, Any], grade: str | Policy, threads: int | None = None) -> None:
        self.op, self.inputs = op, {name: x for name, x in inputs.items() if name not in COTANGENTS}
        self.cotangents = {name: inputs[name] for name in COTANGENTS if inputs.get(name) is not None}
        self.judge = Judge(problem_of(op, self.inputs), grade, threads=threads, cotangents=self.cotangents)
        if not isinstance(self.judge.core, Core):
            asked = self.judge.problem.title
            raise UnavailableError(f"{asked} is not of the delta core; only that can be diagnosed so far.")

    def diagnosis(self, got: Mapping[str, Any], names: Sequence[str] | None) -> Diagnosis:
        """Of outputs, and of stages where there are any (`stage.NAME`)."""
        outputs, given = split(got)
        judge = self.judge
        with np.errstate(all="ignore"):
            verdict = judge.verdict(outputs, names)
        usable = judge.faults(outputs, names or judge.names)[1]
        fed = Fed(judge, given) if given else None
        recurrence = fed.recurrence(outputs) if fed else None
        stages = fed.stages() if fed else ()
        if verdict.verdict != FAIL:
            found = Diagnosis(NOTHING_WRONG, verdict, Where(right=tuple(usable)))
        elif not usable or all(s.level != FAIL for s in verdict.statistics):
            found = Diagnosis(UNUSABLE, verdict, Where())
        else:
            where = localise(judge, verdict.statistics, usable)
            found = Diagnosis(FED, verdict, where) if recurrence else self.suspected(verdict, where, usable)
        return replace(found, stages=stages, recurrence=recurrence)

    def suspected(self, verdict: Verdict, where: Where, usable: Mapping[str, Array]) -> Diagnosis:
        """Of outputs that are wrong: declared mistakes, then fitted ones, then two at once, until one explains them."""
        judge, op = self.judge, self.judge.problem.op
        if judge.back is not None and not set(where.outputs) & set(judge.forward):
            back = BackwardLineup(judge.back, judge.policy, {n: x for n, x in usable.items() if n not in judge.forward})
            return concluded(verdict, where, back.findings(back.suspects()))
        usable = {name: x for name, x in usable.items() if name in judge.forward}
        lineup = Lineup(judge.core, judge.policy, usable, verdict.statistics)
        findings: list[Finding] = []
        for suspects in (
            lambda: singles(op, judge.policy),
            lambda: fitted(judge, lineup, where),
            lambda: pairs(op, lineup),
        ):
            findings = ranked([*findings, *lineup.findings(suspects())])
            if findings and findings[0].explains:
                break
        return concluded(verdict, where, findings)

    def live(self, candidate: Live, names: Sequence[str] | None) -> Diagnosis:
        """Of a candidate that can be run: on other inputs too, where these do not decide."""
        shapes = {name: self.judge.values(name).shape for name in names or self.judge.names}
        got = candidate.outputs(self.op, self.inputs | self.cotangents, shapes, self.judge.policy)
        found = self.diagnosis(got, names)
        if found.outcome == NOTHING_WRONG:
            return self.stilled(candidate) or found
        if found.outcome not in (TWINS, PARTLY, OPEN) or not set(found.where.outputs) & set(self.judge.forward):
            return found
        findings, ran = settled(self.judge, self.inputs, candidate, found.ranking, self.judge.forward)
        again = concluded(found.verdict, found.where, findings, ran)
        return replace(again, stages=found.stages, recurrence=found.recurrence)

    def stilled(self, candidate: Live) -> Diagnosis | None:
        """Of a candidate that gives nothing wrong here, where nothing is written, so that what it keeps shows."""
        made = stilled(self.judge.problem, self.inputs) if candidate.takes("initial_state") else {}
        if not made:
            return None
        other = Case(self.op, made, self.judge.policy)
        shapes = {name: other.judge.values(name).shape for name in other.judge.names}
        try:
            found = other.diagnosis(candidate.outputs(self.op, made, shapes, self.judge.policy), None)
        except RefengineError:
            return None
        return replace(found, still=True, probed=(STILL,)) if found.outcome in (NAMED, TWINS) else None


def concluded(verdict: Verdict, where: Where, findings: Sequence[Finding], ran: Sequence[str] = ()) -> Diagnosis:
    """What follows from the findings."""
    sure, candidates = named(findings)
    part = shared(findings) if candidates else ()
    outcome = TWINS if len(sure) > 1 else NAMED if sure else PARTLY if part else OPEN if candidates else UNKNOWN
    return Diagnosis(outcome, verdict, where, tuple(findings), sure, candidates, part, tuple(ran))


def diagnose(
    op: str,
    inputs: Mapping[str, Any],
    candidate: Any,
    grade: str | Policy = "bf16",
    *,
    outputs: Sequence[str] | None = None,
    framework: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
) -> Diagnosis:
    """Which mistake is it?

    Parameters
    ----------
    op, inputs
        What `refengine.solve(op, **inputs)` takes: the problem that the candidate was given; with do or dht, as for
        `refengine.verify`, gradients are looked at too.
    candidate
        As for `refengine.verify`: its outputs, or a callable, or a `refengine.verify.candidates.Live`. Among the
        outputs may be stages: "stage.q", "stage.k", "stage.g", "stage.beta", ... as they enter the recurrence, and of
        its chunks "stage.w", "stage.u" [B, T, HV, K or V] and "stage.h" [B, chunks, HV, K, V], the states before each.
    grade
        The precision that it declares, as for `refengine.verify`.
    outputs
        Which outputs it gives; None for all.
    framework, device
        Of a callable, as for `refengine.verify`.

    Returns
    -------
    Diagnosis

    Raises
    ------
    refengine.InputError
        The problem, the grade or the outputs asked for do not fit.
    refengine.UnavailableError
        The op is not of the delta core.
    refengine.AdapterError
        The candidate could not be run.
    """
    case = Case(op, inputs, grade, threads)
    if isinstance(candidate, Mapping):
        return case.diagnosis(candidate, outputs)
    if callable(candidate):
        candidate = Called(candidate, framework, device)
    elif not hasattr(candidate, "outputs"):
        raise InputError(f"candidate is a {type(candidate).__name__}; it is a mapping of outputs, or a callable.")
    return case.live(candidate, outputs)
