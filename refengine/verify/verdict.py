"""The verdict on a candidate's outputs: is its error what honest rounding explains?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.problem import Asked, Problem, build
from ..engine.run import execute
from ..engine.solution import Solution
from ..errors import InputError
from ..io.interop import exact_widen, to_numpy
from . import criteria
from .candidates import Called, Live
from .emulate import Run
from .gradients import Backward, by_chunks
from .gradients import emulate as backward
from .laws import check
from .mesa import core_of
from .policy import GRADES, Policy, policy
from .statistics import FAIL, LEVELS, PASS, WARN, Statistics, measure
from .yardstick import Scale, View, members, part_of, scales, truth_views, views, yardstick

Array = NDArray[Any]
INCONCLUSIVE = "INCONCLUSIVE"
EXIT = {PASS: 0, WARN: 0, FAIL: 1, INCONCLUSIVE: 6}
EXIT_WARNED, EXIT_TOO_LITTLE = 3, 5
CLASSIFY = ("f32", "tf32", "f16", "bf16")
COTANGENTS = ("do", "dht")
WELL_BELOW = 0.5  # R under which a finer grade is worth trying
NEIGHBOURS = 4


@dataclass(frozen=True)
class Verdict:
    """What `refengine.verify` returns.

    verdict      "PASS", "WARN", "FAIL" or "INCONCLUSIVE"
    statistics   one for each view: o, and the final state by rows and by columns
    faults       what is wrong before any number is compared, each a sentence
    first_divergence   where rho first stays beyond its limit: batch, sequence, t, head, rho, and whether it persists
    worst        the worst element: its view and index, truth, candidate, sigma a element, rho
    exact        the inputs leave nothing to rounding, so equality to the bit was asked for
    behaves_as   R of the outputs under other grades; empty where there was no question
    criteria     what the field's usual criteria say of the same outputs
    laws         what `refengine.verify.laws` found, for live candidates
    compared     elements compared
    """

    verdict: str
    op: str
    policy: Policy
    statistics: tuple[Statistics, ...] = ()
    faults: tuple[str, ...] = ()
    first_divergence: Mapping[str, Any] | None = None
    worst: Mapping[str, Any] | None = None
    exact: bool = False
    behaves_as: Mapping[str, float] = field(default_factory=dict)
    criteria: Mapping[str, bool] = field(default_factory=dict)
    laws: tuple[Any, ...] = ()
    compared: int = 0

    @property
    def passed(self) -> bool:
        return self.verdict in (PASS, WARN)

    def exit_code(self, strict: bool = False) -> int:
        """What `refengine verify` ends with."""
        if self.compared == 0 and not self.faults:
            return EXIT_TOO_LITTLE
        return EXIT_WARNED if strict and self.verdict == WARN else EXIT[self.verdict]

    def to_json(self) -> str:
        """One JSON object; `refengine.verify.report.SCHEMA` describes it."""
        from .report import to_json

        return to_json(self)

    @property
    def text(self) -> str:
        """At most 25 lines for a person."""
        from .report import lines

        return "\n".join(lines(self))


COMPANIONS = (".bound", ".delta", ".lo", ".condition")  # what files of `solve` and goldens have beside an output
ALONGSIDE = ("states", "pairing_state")  # and besides the outputs


def companion(name: str, outputs: Sequence[str]) -> bool:
    """Whether a tensor is an output, or one that a solution's file has beside them."""
    base = name
    while base not in outputs and base.endswith(COMPANIONS):
        base = base.rpartition(".")[0]
    return base in outputs or name.partition(".")[0] in ALONGSIDE


class Judge:
    """One problem's truth and yardstick, for any number of candidates."""

    def __init__(
        self,
        problem: Problem,
        grade: str | Policy,
        strict: bool = False,
        threads: int | None = None,
        slack: float = 0.0,
        cotangents: Mapping[str, Any] | None = None,
    ) -> None:
        """cotangents: do and dht, one or both, where gradients are judged too. slack: where the exact answers lie on a
        grid but for the rounding of an input, a quarter of its spacing: who is further off than that is not at the
        right point of the grid."""
        self.policy, self.strict, self.slack = policy(grade), strict, slack
        precision = "certified" if self.policy.accum == "f64" else "float64"
        self.problem = replace(problem, asked=replace(problem.asked, precision=precision))
        self.truth: Solution = execute(self.problem, threads)
        self.core: Any = core_of(replace(problem, asked=replace(problem.asked, precision="float64")))
        self.true: dict[str, View] = truth_views(self.truth)
        self.scale: dict[str, Scale] = yardstick(self.problem, self.truth, self.policy, self.core)
        self.names: tuple[str, ...] = ("o", *self.truth.finals)
        self.forward = self.names
        self.true_outputs: dict[str, Array] = {"o": self.truth.o, **self.truth.finals}
        self.back: Backward | None = None
        self.optional: set[str] = set()  # of memories that start from nothing: what a loss owes to that start
        if cotangents:
            self.add_gradients(replace(problem, asked=replace(problem.asked, precision="float64")), cotangents)
        self._others: dict[str, float] = {}

    def add_gradients(self, p: Problem, cotangents: Mapping[str, Any]) -> None:
        """The gradients of every input as outputs dNAME."""
        back = self.back = Backward.of(p, self.core, cotangents.get("do"), cotangents.get("dht"))
        truth = {f"d{name}": x for name, x in back.truth.items()}
        bound = {f"d{name}": np.asarray(x, np.float64) for name, x in back.truth.bound.items()}
        true = {view.name: view for view in views(truth)}
        groups = members(self.policy)
        groups.pop("recurrent", None) if "chunk" in groups else None
        self.scale |= scales(
            true,
            bound,
            self.policy,
            groups.values(),
            lambda run: backward(back, self.policy, run),
            lambda run: self.core.begins(by_chunks(run)),
        )
        given = zip(p.op.final_names(), p.initial, strict=True)
        self.optional = {"d" + name.replace("final", "initial") for name, x in given if x is None}
        self.true |= true
        self.true_outputs |= truth
        self.names = (*self.names, *truth)

    @property
    def exact(self) -> bool:
        """No member of the ensemble erred anywhere: whoever errs here has more than a rounding wrong."""
        return self.slack > 0 or self.exact_names.issuperset(self.forward)

    @cached_property
    def exact_names(self) -> frozenset[str]:
        """The outputs in which no member erred."""
        erring = {self.true[v].base for v, scale in self.scale.items() if scale.parts["ensemble"].any()}
        return frozenset(name for name in self.names if self.slack > 0 or name not in erring)

    def values(self, name: str) -> Array:
        return self.true_outputs[name]

    def same(self, name: str, x: Array) -> bool:
        """Whether an output is what exact inputs have for every honest implementation."""
        return x.shape == self.values(name).shape and not self.unequal(name, x).any()

    def unequal(self, name: str, x: Array) -> NDArray[np.bool_]:
        return np.asarray(~(np.abs(x - self.values(name)) <= self.slack))

    def faults(self, got: Mapping[str, Any], names: Sequence[str]) -> tuple[list[str], dict[str, Array]]:
        """What is wrong before any number is compared, and the outputs that can be, exactly widened to float64."""
        usable: dict[str, Array] = {}
        known = f"no output of {self.problem.op.name} (its outputs: {', '.join(self.names)})"
        wrong = [f"{name} is {known}." for name in got if not companion(name, self.names)]
        for name in names:
            if got.get(name) is None:
                wrong.append(f"{name} is missing.")
                continue
            array, true = to_numpy(got[name], name), self.values(name)
            part = part_of(name, true.ndim)
            wanted = self.policy.format(part).dtype
            if array.shape != true.shape:
                wrong.append(f"{name} has shape {list(array.shape)}; it is {list(true.shape)}.")
            elif array.dtype.newbyteorder("=") != wanted:
                wrong.append(f"{name} is {array.dtype}; the grade {self.policy.name} declares {part} {wanted}.")
            else:
                usable[name] = exact_widen(array, name).astype(np.float64)
                wrong += self.not_finite(name, usable[name])
        return wrong, usable

    def not_finite(self, name: str, x: Array) -> list[str]:
        """NaN and infinities must be where the truth has them."""
        true = self.values(name)
        for word, test in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
            differs = test(x) != test(true)
            if differs.any():
                at = [int(i) for i in np.argwhere(differs)[0]]
                which = "the candidate" if test(x)[tuple(at)] else "the truth"
                count = int(differs.sum())
                return [f"{name} differs in {word} at {count} places, first at {at}, where {which} has it."]
        return []

    def measured(self, got: Mapping[str, Array]) -> tuple[Statistics, ...]:
        """The statistics of outputs that can be compared."""
        return tuple(
            measure(view.values, self.true[view.name], self.scale[view.name], self.policy, self.segments, self.strict)
            for view in views(got)
        )

    def wanted(self, got: Mapping[str, Any]) -> tuple[str, ...]:
        """What a candidate must give where nothing else is said."""
        return tuple(name for name in self.names if name not in self.optional or got.get(name) is not None)

    def level(self, got: Mapping[str, Array]) -> str:
        """PASS, WARN or FAIL of whole outputs, and no reasons."""
        faults, usable = self.faults(got, self.wanted(got))
        return FAIL if faults else max((s.level for s in self.measured(usable)), key=LEVELS.index)

    def verdict(self, got: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Verdict:
        """Judge one candidate's outputs; `outputs` names those that it must give (all)."""
        names = self.wanted(got) if outputs is None else tuple(outputs)
        for name in names:
            if name not in self.names:
                raise InputError(f"{self.problem.op.name} has no output {name!r}; it has {', '.join(self.names)}.")
        faults, usable = self.faults(got, names)
        found = self.measured(usable)
        for name, x in usable.items():
            unequal = self.unequal(name, x) if name in self.exact_names else np.zeros(0, bool)
            if unequal.any():
                at = [int(i) for i in np.argwhere(unequal)[0]]
                count, how = int(unequal.sum()), f"to {self.slack:g}" if self.slack else "to the bit"
                faults.append(f"{name} must be equal {how} here, but {count} elements are not, first {at}.")
        compared = sum(x.size for x in usable.values())
        levels = [PASS if self.slack else s.level for s in found] + [FAIL] * bool(faults)
        level = max(levels, key=LEVELS.index, default=FAIL)
        uncertain = any(s.uncertain and self.true[s.view].base not in self.exact_names for s in found)
        if level != FAIL and (compared == 0 or uncertain):
            level = INCONCLUSIVE
        name = self.problem.op.name
        base = Verdict(level, name, self.policy, found, tuple(faults), exact=self.exact, compared=compared)
        if not usable:
            return base
        R = {s.view: s.groups.get("whole", 0.0) for s in found}
        puzzling = not self.exact and (level in (WARN, FAIL) or max(R.values()) < WELL_BELOW)
        return replace(
            base,
            first_divergence=self.first_divergence(found) if level == FAIL else None,
            worst=self.worst(found, usable),
            behaves_as=self.behaves_as(usable) if puzzling and compared else {},
            criteria=criteria.verdicts(usable, {n: self.values(n) for n in usable}, self.honest(), self.policy),
        )

    def live(
        self, candidate: Live, op: str, inputs: Mapping[str, Any], outputs: Sequence[str] | None, laws: bool
    ) -> Verdict:
        """Run a candidate, judge what it gives, and try the laws on it."""
        names = self.names if outputs is None else tuple(outputs)
        shapes = {name: self.values(name).shape for name in names if name in self.names}
        found = self.verdict(candidate.outputs(op, inputs, shapes, self.policy), outputs)
        if not laws or found.verdict == FAIL:
            return found
        tried = tuple(check(candidate, op, inputs, self, outputs))
        broken = any(law.holds is False for law in tried)
        return replace(found, verdict=FAIL if broken else found.verdict, laws=tried)

    @property
    def segments(self) -> Sequence[tuple[int, int, int]]:
        return self.problem.segments

    def honest(self) -> dict[str, Array]:
        """An emulation of the policy, rounded to nearest: what other projects compare with."""
        if not hasattr(self, "_honest"):
            algorithm = "recurrent" if self.policy.algorithm == "recurrent" else "chunk"
            found = self.core.outputs(self.policy, Run(algorithm, self.policy.chunk))
            self._honest = {output: x.astype(np.float64) for output, x in found.items()}
            if self.back is not None:
                self._honest |= backward(self.back, self.policy, Run(algorithm, self.policy.chunk))
        return self._honest

    def worst(self, found: Sequence[Statistics], got: Mapping[str, Array]) -> dict[str, Any] | None:
        """The worst element of the worst row."""
        rated = [s for s in found if s.rho.size]
        if not rated:
            return None
        s = max(rated, key=lambda s: np.inf if np.isnan(s.values["rho"]) else s.values["rho"] / s.limits["rho"][0])
        true = self.true[s.view]
        x = next(view.values for view in views(got) if view.name == s.view)[s.worst]
        y = true.values[s.worst]
        d = np.abs(x - y)
        i = int(np.argmax(np.where(np.isnan(d), np.inf, d)))
        sigma = float(self.scale[s.view].row[s.worst] / np.sqrt(y.size))
        return {
            "view": s.view,
            "index": [*s.worst, i],
            "truth": float(y[i]),
            "candidate": float(x[i]),
            "sigma": sigma,
            "rho": float(s.rho[s.worst]),
        }

    def first_divergence(self, found: Sequence[Statistics]) -> dict[str, Any] | None:
        """The first token of any head whose rho is beyond FAIL, and whether its successors are too."""
        o = next((s for s in found if s.view == "o"), None)
        if o is None or not o.rho.size:
            return None
        limit = o.limits["rho"][1]
        for n, (b, t0, t1) in enumerate(self.segments):
            late = ~(o.rho[b, t0:t1] <= limit)
            if not late.any():
                continue
            t = int(np.argmax(late.any(axis=1)))
            heads = [int(h) for h in np.flatnonzero(late[t])]
            after = late[t + 1 : t + 1 + NEIGHBOURS, heads[0]]
            return {
                "batch": b,
                "sequence": n,
                "t": t,
                "head": heads[0],
                "heads": heads,
                "rho": float(o.rho[b, t0 + t, heads[0]]),
                "persists": bool(after.sum() >= min(2, after.size)) and after.size > 0,
                "of_chunk": {str(C): t % C for C in (16, 32, 64, 128)},
                "last": t == t1 - t0 - 1,
            }
        return None

    def behaves_as(self, got: Mapping[str, Array]) -> dict[str, float]:
        """R of the outputs under other grades, by one emulation of each: 1 where they err as that grade does."""
        name = next((name for name in self.forward if name in got), None)
        if name is None:
            return {}
        d = ((got[name] - self.values(name)) ** 2).sum()
        ratios = {}
        for grade in CLASSIFY:
            if grade not in self._others:
                other = replace(GRADES[grade], algorithm=self.policy.algorithm, chunk=self.policy.chunk)
                run = Run("recurrent" if other.algorithm == "recurrent" else "chunk", other.chunk, seed=901)
                self._others[grade] = float(((self.core.outputs(other, run)[name] - self.values(name)) ** 2).sum())
            ratios[grade] = float(np.sqrt(d / max(self._others[grade], np.finfo(float).tiny)))
        return ratios


def problem_of(op: str, inputs: Mapping[str, Any]) -> Problem:
    """The problem that `refengine.solve(op, **inputs)` solves."""
    known = {f.name for f in fields(Asked)}
    tensors = {name: x for name, x in inputs.items() if name not in known}
    return build(op, tensors, Asked(**{name: x for name, x in inputs.items() if name in known}))


def verify(
    op: str,
    inputs: Mapping[str, Any],
    candidate: Any,
    grade: str | Policy = "bf16",
    *,
    outputs: Sequence[str] | None = None,
    laws: bool = False,
    strict: bool = False,
    framework: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
) -> Verdict:
    """Is this kernel's error what honest rounding explains?

    Parameters
    ----------
    op, inputs
        What `refengine.solve(op, **inputs)` takes: the problem that the candidate was given. With do [B, T, HV, V] or
        dht [N, HV, K, V] among them, as `refengine.grad` takes them, the gradients dq, dk, ..., dinitial_state are
        judged too.
    candidate
        Its outputs, {"o": ..., "final_state": ...} in the dtypes that the grade declares; or a callable taking the
        inputs by our names (those in its signature) and returning o, (o, final_state), or such a mapping. A callable
        whose signature has `o` or `final_state` is given buffers filled with NaN and writes into them. Gradients: of
        a callable that takes do and dht, its own; of any other torch function, autograd's.
    grade
        The precision that the candidate declares: "f64", "f32", "tf32", "f16", "bf16", "bf16-state16", ..., or with
        parts overridden, "bf16:chunk=32,state=bf16"; or a `refengine.verify.policy.Policy`.
    outputs
        Which outputs it must give; None for all.
    laws
        For a callable: also that it gives the same twice, cut, packed and permuted (refengine/verify/laws.py).
    strict
        The tighter element limits, for a candidate whose algorithm class is declared.
    framework, device
        Of a callable: "numpy", "torch", or "auto" (torch where its module has imported torch), and torch's device.

    Returns
    -------
    Verdict

    Raises
    ------
    refengine.InputError
        The problem, the grade or the outputs asked for do not fit.
    refengine.AdapterError
        The candidate could not be run.
    """
    asked = {name: x for name, x in inputs.items() if name not in COTANGENTS}
    given = {name: inputs[name] for name in COTANGENTS if inputs.get(name) is not None}
    judge = Judge(problem_of(op, asked), grade, strict, threads, cotangents=given)
    if not callable(candidate):
        if not isinstance(candidate, Mapping):
            raise InputError(f"candidate is a {type(candidate).__name__}; it is a mapping of outputs, or a callable.")
        if laws:
            raise InputError("laws need a candidate that can be called; these are outputs.")
        return judge.verdict(candidate, outputs)
    live = Called(candidate, framework, device)
    return judge.live(live, op, inputs, outputs, laws)
