"""A candidate against a suite of goldens: every case, the exact ones first, each a verdict or the reason why none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import goldens
from ..errors import AdapterError, InputError, RefengineError, UnavailableError
from ..golden import cases, files
from ..golden.integrity import CASE, Finding, read_json
from ..golden.record import INPUTS, TRUTH, asked, digest
from ..io import tensorfile
from ..kernels import compare
from .candidates import Called, Live
from .policy import policy
from .report import as_data
from .statistics import FAIL, PASS, WARN
from .verdict import COTANGENTS, EXIT, EXIT_TOO_LITTLE, EXIT_WARNED, INCONCLUSIVE, Judge, Verdict, problem_of
from .yardstick import moments, views

Array = NDArray[Any]
NEAREST = 2.0**-52  # twice how far, relative to it, a number is from the float64 nearest to it
EXIT_REFUSED, EXIT_STALE = 2, 4
UNJUDGED = "unjudged"  # of an op whose honest errors nobody emulates yet


class StaleError(RefengineError):
    """A golden that is damaged, or not of this version's definitions."""


class Case:
    """One problem for a kernel: its `op`, a `name`, `inputs` (arguments by our names), and the `judge` of it."""

    op: str
    name: str
    inputs: dict[str, Any]
    judge: Judge

    def verdict(
        self,
        candidate: Callable[..., Any] | Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        laws: bool = False,
        framework: str = "auto",
        device: str = "cpu",
    ) -> Verdict:
        """As `refengine.verify`."""
        if isinstance(candidate, Mapping):
            return self.judge.verdict(candidate, outputs)
        return self.judge.live(Called(candidate, framework, device), self.op, self.inputs, outputs, laws)

    def check(self, candidate: Callable[..., Any] | Mapping[str, Any], **how: Any) -> None:
        """Fail, in the words of the verdict, unless the candidate passes."""
        found = self.verdict(candidate, **how)
        if not found.passed:
            raise AssertionError(f"{self.op} on {self.name}\n{found.text}")


def in_grade(inputs: Mapping[str, Any], grade: str) -> dict[str, Any]:
    """Inputs as a kernel of that grade takes them: in float32 or float64 where that is what it computes in."""
    kind = policy(grade).format("io").dtype
    wide = kind.itemsize >= 4
    return {
        n: x.astype(kind) if wide and isinstance(x, np.ndarray) and x.dtype.kind not in "iu" else x
        for n, x in inputs.items()
    }


@dataclass(frozen=True)
class Golden(Case):
    """One case of a suite, judged by its own record: the inputs are made again and must be those of the file, the
    truth is computed again and must be the golden's within their bounds."""

    case: cases.Case
    root: Path
    grade: str
    strict: bool = False
    grad: bool = False

    @property
    def op(self) -> str:  # type: ignore[override]
        return self.case.op.name

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.case.id

    @property
    def folder(self) -> Path:
        return self.root / "cases" / self.case.id

    @cached_property
    def inputs(self) -> dict[str, Any]:  # type: ignore[override]
        said = read_json(self.folder / CASE)["tensors"]
        made, cotangents, (tensors, _) = asked(self.case)
        for name, x in tensors.items():
            if name not in said or said[name]["sha256"] != digest(x):
                raise StaleError(f"{self.folder / INPUTS}: {name} is made otherwise in this version.")
        kept = {n: x for n, x in made.items() if x is not None} | (cotangents if self.grad else {})
        return in_grade(kept, self.grade)

    @cached_property
    def judge(self) -> Judge:  # type: ignore[override]
        asked = {n: x for n, x in self.inputs.items() if n not in COTANGENTS}
        cotangents = {n: x for n, x in self.inputs.items() if n in COTANGENTS}
        judge = Judge(problem_of(self.op, asked), self.grade, self.strict, cotangents=cotangents)
        written, _ = tensorfile.read(self.folder / TRUTH)
        for view in views({name: written[name] for name in judge.names if name in written}):
            sums = moments(view.values, judge.true[view.name])
            allowed = judge.scale[view.name].certificate + NEAREST * np.sqrt(sums[..., compare.TRUTH_SQUARES])
            if not (np.sqrt(sums[..., compare.SQUARES]) <= allowed).all():
                raise StaleError(f"{self.folder / TRUTH}: {view.base} is not the answer in this version.")
        return judge


def load(
    where: str,
    grade: str,
    only_ops: Sequence[str] = (),
    tiers: Sequence[str] = (),
    strict: bool = False,
    grad: bool = False,
) -> tuple[list[Golden], list[Finding]]:
    """The cases of a suite (a folder, or the name of one that is shipped), the exact ones first, and what is wrong with
    its files."""
    policy(grade)
    root = Path(where)
    if not root.exists() and where in cases.SUITES and goldens(where).is_dir():
        root = goldens(where)
    wrong, said = files.check(root, regenerate=False)
    if not said or said.get("name") not in cases.SUITES:
        name = f" its name is {said['name']!r}, of which this version knows nothing." if said else ""
        return [], wrong or [Finding("stale", f"{root}:{name}")]
    if only_ops:  # what is stale of other ops does not matter here
        wrong = [f for f in wrong if f.kind != "stale" or any(f"/cases/{op}/" in f.text for op in only_ops)]
    known = {c.id: c for c in cases.suite(said["name"], tuple(only_ops), tuple(tiers))}
    every = {c.id for c in cases.suite(said["name"])}
    named = [c["id"] for c in said["cases"]]
    wrong += [Finding("stale", f"{root}: {name} is no case in this version.") for name in named if name not in every]
    found = [Golden(known[name], root, grade, strict, grad) for name in named if name in known]
    order = {tier: i for i, tier in enumerate(cases.TIERS)}
    return sorted(found, key=lambda g: (order[g.case.regime.tier], g.name)), wrong


@dataclass(frozen=True)
class Row:
    """What came of one case: a verdict, or why there is none: the candidate could not give an answer (refused), gave
    none (missing), the case was left out (skipped), its op cannot be judged (unjudged), or the golden is stale."""

    name: str
    verdict: Verdict | None = None
    outcome: str = ""
    said: str = ""

    @property
    def word(self) -> str:
        return self.verdict.verdict if self.verdict else self.outcome

    @property
    def why(self) -> str:
        """What was said, or which statistics are beyond where PASS ends."""
        if self.said or self.verdict is None or self.verdict.verdict != WARN:
            return self.said
        late = [
            f"{s.view} has {name} {s.values[name]:.3g}, over {limits[0]:.3g}"
            for s in self.verdict.statistics
            for name, limits in s.limits.items()
            if not s.values[name] <= limits[0]
        ]
        return "; ".join(late)


@dataclass
class Results:
    """Of a whole suite."""

    suite: str
    wrong: list[Finding] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def count(self, word: str) -> int:
        return sum(row.word == word for row in self.rows)

    def exit_code(self, strict: bool = False) -> int:
        """4 corrupt or stale, 1 a case failed, 2 the candidate gave no answer to one, 5 too little compared, 6
        inconclusive, 3 a warning under strict, 0."""
        compared = sum(row.verdict.compared for row in self.rows if row.verdict)
        short = compared == 0 or self.count("missing") > 0 or any(f.kind == "short" for f in self.wrong)
        ends = (
            (EXIT_STALE, any(f.kind in ("corrupt", "stale") for f in self.wrong) or self.count("stale") > 0),
            (EXIT[FAIL], self.count(FAIL) > 0),
            (EXIT_REFUSED, self.count("refused") > 0),
            (EXIT_TOO_LITTLE, short),
            (EXIT[INCONCLUSIVE], self.count(INCONCLUSIVE) > 0),
            (EXIT_WARNED, strict and self.count(WARN) > 0),
        )
        return next((code for code, true in ends if true), 0)

    def lines(self) -> list[str]:
        """What is not PASS, a line a case; the first failure whole; and how many of each."""
        said = [f"{f.kind}: {f.text}" for f in self.wrong]
        said += list(dict.fromkeys(f"{UNJUDGED:12}  {row.said}" for row in self.rows if row.word == UNJUDGED))
        noted = (row for row in self.rows if row.word != UNJUDGED and (row.said or row.word != PASS))
        said += [f"{row.word:12}  {row.name}{': ' if row.why else ''}{row.why}" for row in noted]
        failed = next((row.verdict for row in self.rows if row.word == FAIL and row.verdict), None)
        said += failed.text.splitlines() if failed else []
        words = dict.fromkeys(row.word for row in self.rows)
        counts = ", ".join(f"{self.count(word)} {word}" for word in words) or "nothing compared"
        return [*said, f"{self.suite}: {len(self.rows)} cases: {counts}"]

    def as_data(self) -> dict[str, Any]:
        """For --json; `result` of a case follows the schema of a verdict."""
        return {
            "schema_version": 1,
            "suite": self.suite,
            "exit_code": self.exit_code(),
            "findings": [vars(f) for f in self.wrong],
            "cases": [
                {"id": r.name, "outcome": r.word, "said": r.said, "result": as_data(r.verdict) if r.verdict else None}
                for r in self.rows
            ],
        }


def given(candidate: Live | Path, golden: Golden, laws: bool) -> Row:
    """The candidate's answer to one case, judged; outputs in a folder are under the case's id."""
    if not isinstance(candidate, Path):
        return Row(golden.name, golden.judge.live(candidate, golden.op, golden.inputs, None, laws))
    file = candidate / f"{golden.name}.safetensors"
    if not file.exists():
        return Row(golden.name, None, "missing", f"there is no {file}")
    return Row(golden.name, golden.judge.verdict(tensorfile.read(file)[0]))


def judged(candidate: Live | Path, golden: Golden, laws: bool, skips: Mapping[str, str]) -> Row:
    reason = next((why for pattern, why in skips.items() if fnmatchcase(golden.name, pattern)), None)
    if reason is not None:
        return Row(golden.name, None, "skipped", reason)
    try:
        return given(candidate, golden, laws)
    except StaleError as error:
        return Row(golden.name, None, "stale", str(error))
    except AdapterError as error:
        return Row(golden.name, None, "refused", str(error))
    except UnavailableError as error:
        return Row(golden.name, None, UNJUDGED, str(error))


def run(
    where: str,
    candidate: Live | Path,
    grade: str,
    only_ops: Sequence[str] = (),
    tiers: Sequence[str] = (),
    skips: Mapping[str, str] | None = None,
    laws: bool = False,
    strict: bool = False,
    grad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Every case of a suite. skips: reasons by patterns of case ids."""
    found, wrong = load(where, grade, only_ops, tiers, strict, grad)
    results = Results(where, wrong)
    if isinstance(candidate, Called) and not candidate.takes("op") and len({g.op for g in found}) > 1:
        known = ", ".join(dict.fromkeys(g.op for g in found))
        raise InputError(f"A function is of one op, and {where} has cases of several ({known}); say which, by --ops.")
    if any(f.kind in ("corrupt", "stale") for f in wrong):
        return results
    for pattern in skips or ():
        if not any(fnmatchcase(g.name, pattern) for g in found):
            raise InputError(f"No case of {where} is called {pattern!r}, which is to be skipped.")
    for i, golden in enumerate(found):
        results.rows.append(judged(candidate, golden, laws, skips or {}))
        if progress is not None:
            progress(i + 1, len(found))
    return results
