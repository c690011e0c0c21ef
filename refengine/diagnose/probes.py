"""Inputs that tell suspects apart: of the same op, sizes and dtypes, in regimes that each hide other mistakes; run
where the candidate can be run, and written to a file where it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..engine.problem import Problem
from ..errors import RefengineError
from ..io.interop import to_numpy
from ..verify.candidates import Live
from ..verify.mutate import stored
from ..verify.policy import Policy
from ..verify.statistics import FAIL
from ..verify.trials import EXACT, Draw, trial
from ..verify.verdict import Judge, problem_of
from .floors import NOTHING, Fit
from .suspects import RECURRENT
from .what import BEATS, Finding, fit_whole, named, ranked

Array = NDArray[Any]
Inputs = dict[str, Any]
SHARP = "sharp"  # one-hot keys, whole numbers below 128, four of which o sums: next to nothing is rounded
WIDE = "wide"  # the same, o times 5, which is rounded
FAINT = "faint"  # queries and keys so short that the eps of their norm shows
STILL = "still"  # no key: the initial state decays and nothing meets it, so that only gates and the state's format err
SHORT, WIDER = 0.03, 5.0
REGIMES = ("nodecay", "mamba", SHARP, WIDE, FAINT, "strong", "corr", STILL)
LONGEST = 149  # tokens: two chunks of 64 and a part
SEED = 4711
MOST = 6  # suspects that are told apart


def probes(p: Problem, inputs: Mapping[str, Any], start: bool) -> Iterator[tuple[str, Inputs]]:
    """(name, arguments of `solve`): the inputs given, with the op's own tensors drawn anew; shorter, unpacked and, if
    `start`, with an initial state, unless raw gates, logits or carried tokens fix the size."""
    fixed = [p.asked.gate, p.asked.beta_logits, p.asked.pairing_state or None]
    fixed += [conv.state for conv in (p.asked.conv_q, p.asked.conv_k, p.asked.conv_v) if conv is not None]
    whole = any(x is not None for x in fixed)
    size = {axis: p.sizes[axis] for axis in ("B", "T", "H", "HV", "K", "V")}
    size["T"] = size["T"] if whole else min(size["T"], LONGEST)
    for regime in REGIMES:
        if (regime == FAINT and p.norm is None) or (regime == STILL and (whole or not start)):
            continue
        try:
            new = drawn(p.op.name, regime, SEED, **size, start=start and not whole)
        except RefengineError:
            return
        lost = () if whole else ("cu_seqlens", "states_at", "initial_state")
        made = {name: x for name, x in inputs.items() if name not in lost}
        for name, x in new.items():
            given = inputs.get(name)
            if name in p.tensors or name == "initial_state" or name in p.op.options:
                made[name] = x if given is None or not isinstance(x, np.ndarray) else alike(x, given, name)
        yield regime, made


def stilled(p: Problem, inputs: Mapping[str, Any]) -> Inputs:
    """STILL for a problem: where a state or gates in a coarser format than declared show that hide behind the rounding
    of products elsewhere. {} where there is none."""
    return dict(probes(p, inputs, True)).get(STILL, {})


def drawn(op: str, regime: str, seed: int, **size: Any) -> Inputs:
    """Arguments of `solve` in one regime of verify/trials.py, or in SHARP, WIDE, FAINT or STILL."""
    by = {role: [t.name for t in ops.get(op).role(role)] for role in ("query", "key", "value")}

    def times(given: Inputs, factor: float, *roles: str) -> Inputs:
        names = [name for role in roles for name in by[role] if name in given]
        return {n: (factor * given[n].astype(np.float64)).astype(given[n].dtype) for n in names}

    if regime == FAINT:
        given = trial(op, "mamba", seed, **size)
        return given | times(given, SHORT, "query", "key")
    if regime == STILL:
        given = trial(op, "mamba", seed, **size)
        none = [n for n in (*by["key"], *("ab" if "a" in given else "")) if n in given]
        return given | {n: np.zeros_like(given[n]) for n in none}
    if regime not in (SHARP, WIDE):
        return trial(op, regime, seed, **size)
    given, draw = trial(op, EXACT[0], seed, **size), Draw(seed)
    given |= times(trial(op, EXACT[1], seed, **size), WIDER if regime == WIDE else 1.0, "query")
    whole = [n for n in (*by["value"], "initial_state") if n in given]
    given |= {n: draw.whole(given[n].shape, -127, 127).astype(given[n].dtype) for n in whole}
    return given | ({"beta": np.ones_like(given["beta"])} if "beta" in given else {})


def alike(x: Array, given: Any, name: str) -> Array:
    """In the dtype of what was given."""
    return x.astype(np.float64).astype(to_numpy(given, name).dtype)


def apart(judge: Judge, a: Finding, b: Finding) -> float:
    """How many times further b would be from what a kernel with mistake a gives for this problem; 0 where that would
    not even be seen."""
    with np.errstate(all="ignore"):
        got = a.suspect.outputs(judge.core, judge.policy, a.suspect.way or RECURRENT)
        outputs = None if got is None else stored(judge, got["o"], got["final_state"])
        if outputs is None or judge.level(outputs) != FAIL:
            return 0.0
    given = {name: x.astype(np.float64) for name, x in outputs.items()}
    own, other = (fit_whole(f.suspect, judge.core, judge.policy, given) for f in (a, b))
    return other.score / max(own.score, BEATS**-1) if np.isfinite(own.score) else 0.0


def contenders(findings: Sequence[Finding]) -> list[Finding]:
    """Those between which the outputs do not decide."""
    return [f for f in findings if f.explains or f.times(findings[0]) < BEATS][:MOST]


def settling(
    p: Problem, inputs: Mapping[str, Any], policy: Policy, findings: Sequence[Finding]
) -> tuple[str, Inputs, float]:
    """The probe on which the first two contenders differ most: (its name, its arguments, how many times)."""
    best: tuple[str, Inputs, float] = ("", {}, 0.0)
    some = contenders(findings)
    if len(some) < 2 or any(f.suspect.located for f in some[:2]):
        return best
    for name, made in probes(p, inputs, True):
        try:
            judge = Judge(problem_of(p.op.name, made), policy)
        except RefengineError:
            continue
        far = min(apart(judge, *some[:2]), apart(judge, *some[1::-1]))
        if far > best[2]:
            best = (name, made, far)
    return best


def settled(
    judge: Judge, inputs: Mapping[str, Any], live: Live, findings: Sequence[Finding], names: Sequence[str]
) -> tuple[list[Finding], list[str]]:
    """(the findings after the candidate was run on probes, the probes that were run): until one is named, or none is
    left."""
    p = judge.problem
    ran: list[str] = []
    open_ = contenders(findings)
    rest = [f for f in findings if f not in open_]
    if any(f.suspect.located for f in open_):
        return list(findings), ran
    for name, made in probes(p, inputs, live.takes("initial_state")):
        try:
            other = Judge(problem_of(p.op.name, made), judge.policy)
            shapes = {n: other.values(n).shape for n in names}
            given = other.faults(live.outputs(p.op.name, made, shapes, judge.policy), names)[1]
        except RefengineError:
            continue
        if len(given) < len(names):
            continue
        ran.append(name)
        fits = [here(f, other, given) for f in open_]
        open_ = ranked(replace(f, fits=(*f.fits, fit)) for f, fit in zip(open_, fits, strict=True))
        sure, candidates = named([*open_, *rest])
        if len(sure) == 1 or not (sure or candidates):
            break
    return [*open_, *rest], ran


def here(f: Finding, judge: Judge, given: Mapping[str, Array]) -> Fit:
    """On a probe; a mistake that cannot be made there explains what is right."""
    with np.errstate(all="ignore"):
        possible = f.suspect.exact(judge.core, judge.policy) is not None
    if not possible:
        levels = judge.measured(given)
        return Fit(0.0, 0.0, all(s.level != FAIL for s in levels), {})
    return fit_whole(f.suspect, judge.core, judge.policy, given) if given else NOTHING
