"""The smallest problem that a candidate still fails: fewer rows, tokens, heads and channels, then plainer numbers. What
is left is small enough to be attached to a bug report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.definition import inputs as prepared
from ..engine.problem import Problem
from ..engine.run import execute
from ..errors import FileError, InputError, RefengineError
from ..io import tensorfile
from ..io.interop import to_numpy
from ..verify.candidates import Live, as_file
from ..verify.policy import Policy, policy
from ..verify.statistics import FAIL
from ..verify.verdict import Judge, problem_of

Array = NDArray[Any]
Inputs = dict[str, Any]
SECONDS = 110.0
TOKENS = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    96,
    127,
    128,
    129,
    191,
    192,
    193,
    255,
    256,
)
CHANNELS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
WINDOWED = 16  # tokens beyond which the first ones are tried without
FRONT = (
    "use_qk_l2norm",
    "key_shift",
    "query_shift",
    "value_shift",
    "tie_values",
    "pairing_state",
    "gate",
    "beta_logits",
)
CONVS = ("conv_q", "conv_k", "conv_v")
INPUTS, TRUTH, GOT = "inputs.safetensors", "truth.safetensors", "got.safetensors"


@dataclass
class Shrunk:
    """A problem that still fails. sizes: of its axes; simplified: which tensors became what; tried: how many problems
    the candidate was given."""

    op: str
    grade: str
    inputs: Inputs
    sizes: Mapping[str, int]
    simplified: tuple[str, ...]
    tried: int
    seconds: float
    got: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        size = ", ".join(f"{axis}={n}" for axis, n in self.sizes.items())
        plain = f"; {', '.join(self.simplified)}" if self.simplified else ""
        return f"still fails at {size}{plain} ({self.tried} problems tried in {self.seconds:.0f} s)"

    def write(self, folder: Path) -> str:
        """The problem, its certified answer and what the candidate gave, as files. Returns the command that judges them
        again; the problem's file says it too."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot be made a folder ({error.strerror}).") from error
        tensors, settings = as_file(self.op, self.inputs)
        tensorfile.write(folder / INPUTS, tensors, {**settings, "reproduce": self.command()})
        problem = problem_of(self.op, self.inputs)
        try:
            truth = execute(replace(problem, asked=replace(problem.asked, precision="certified")))
        except InputError:
            truth = execute(problem)
        answer = {"o": truth.o, **truth.finals, **{f"{name}.bound": x for name, x in truth.bound.items()}}
        tensorfile.write(folder / TRUTH, answer, {"op": self.op, "certificate": str(truth.info["certificate"])})
        tensorfile.write(folder / GOT, {name: to_numpy(x, name) for name, x in self.got.items()}, {"op": self.op})
        return self.command(folder)

    def command(self, folder: Path = Path()) -> str:
        files = (shlex.quote(str(folder / name)) for name in (INPUTS, GOT))
        return f"refengine verify {' '.join(files)} --grade {self.grade}"


class Shrinking:
    """One search: what it has come down to, and how long it may go on."""

    def __init__(
        self,
        op: str,
        inputs: Mapping[str, Any],
        live: Live,
        grade: str | Policy,
        seconds: float = SECONDS,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self.op, self.live, self.policy, self.names = op, live, policy(grade), outputs
        self.until, self.begun, self.tried = time.monotonic() + seconds, time.monotonic(), 0
        self.inputs: Inputs = {n: x for n, x in inputs.items() if x is not None}
        self.got: Mapping[str, Any] = {}
        self.late = 0  # tokens up to the first that is wrong

    @property
    def problem(self) -> Problem:
        return problem_of(self.op, self.inputs)

    def fails(self, made: Inputs) -> bool:
        """Whether the candidate fails this problem; what cannot be asked or run is no failure."""
        if time.monotonic() > self.until:
            return False
        self.tried += 1
        try:
            with np.errstate(all="ignore"):
                judge = Judge(problem_of(self.op, made), self.policy)
                names = tuple(self.names or judge.names)
                got = self.live.outputs(self.op, made, {n: judge.values(n).shape for n in names}, self.policy)
                outputs = {name: x for name, x in got.items() if name in names}
                verdict = judge.verdict(outputs, names)
        except (RefengineError, ValueError):
            return False
        if verdict.verdict != FAIL:
            return False
        self.got, first = outputs, verdict.first_divergence
        self.late = 0 if first is None else first["t"] + 1
        return True

    def first(self, tries: Iterator[Inputs]) -> bool:
        """Go on from the first of these that fails."""
        for made in tries:
            if self.fails(made):
                self.inputs = made
                return True
        return False

    def run(self) -> Shrunk:
        if not self.fails(self.inputs):
            raise InputError("There is nothing to shrink: the candidate does not fail this problem.")
        self.first(iter([self.dressed()]))
        self.first(self.sequences())
        self.first(self.lengths())
        if self.problem.sizes["T"] > WINDOWED and self.live.takes("initial_state"):
            self.first(self.windows())
        if not any(self.inputs.get(name) is not None for name in (*CONVS, *FRONT)):
            self.first(self.heads())
            for axis in ("V", "K"):
                self.first(self.channels(axis))
            self.first(self.lengths())
        simplified = tuple(self.simplify())
        sizes = {axis: self.problem.sizes[axis] for axis in ("B", "T", "H", "HV", "K", "V")}
        took = time.monotonic() - self.begun
        return Shrunk(self.op, self.policy.name, self.inputs, sizes, simplified, self.tried, took, self.got)

    # Smaller

    def dressed(self) -> Inputs:
        """The same problem with what comes before the op already done."""
        own = prepared(self.problem, lambda x: np.asarray(x, np.float64))
        kept = {n: x for n, x in self.inputs.items() if n not in (*FRONT, *CONVS)}
        for name, x in own.items():
            given = self.inputs.get(name)
            kept[name] = x.astype(np.float32 if given is None else to_numpy(given, name).dtype)
        return kept

    def cut(self, **which: Any) -> Inputs:
        """Some indices of some axes, of every tensor that has them."""
        p = self.problem
        made = dict(self.inputs)
        layouts = {t.name: t for t in (*p.op.inputs, *p.op.states)}
        if p.gate is not None:
            raw = to_numpy(self.inputs["gate"].a, "a")
            made["gate"] = replace(self.inputs["gate"], a=taken(raw, p.op.role("decay")[0].layout(raw.ndim), which))
        if p.beta_logits is not None:
            raw = to_numpy(self.inputs["beta_logits"], "beta_logits")
            made["beta_logits"] = taken(raw, p.op.tensor("beta").layout(raw.ndim), which)
        for name, tensor in layouts.items():
            if made.get(name) is not None:
                x = to_numpy(made[name], name)
                made[name] = taken(x, tensor.layout(x.ndim), which, p.options.get("num_householder", 1))
        if "N" in which or "B" in which:
            for name in CONVS:
                conv = made.get(name)
                if conv is not None and conv.state is not None:
                    state = to_numpy(conv.state, name)
                    made[name] = replace(conv, state=state[which.get("N", which.get("B"))])
        return made

    def sequences(self) -> Iterator[Inputs]:
        """One sequence alone, unpacked."""
        p = self.problem
        if len(p.segments) > 1 or p.asked.cu_seqlens is not None:
            for n, (b, t0, t1) in enumerate(p.segments):
                made = self.cut(B=[b], N=[n], T=list(range(t0, t1)))
                made.pop("cu_seqlens", None)
                yield made

    def lengths(self) -> Iterator[Inputs]:
        """The first tokens, few first."""
        p = self.problem
        if p.asked.cu_seqlens is None:
            T = p.sizes["T"]
            some = {*TOKENS, self.late, *(n for n in range(320, T, 64)), *(n for n in range(321, T, 64))}
            yield from (self.cut(T=list(range(n))) for n in sorted(some) if 0 < n < T)

    def windows(self) -> Iterator[Inputs]:
        """The last tokens, from the state that the others leave."""
        p = self.problem
        if p.asked.cu_seqlens is not None or len(p.op.states) != 1 or p.pairing:
            return
        T = p.sizes["T"]
        for n in [n for n in TOKENS if n < T]:
            before = execute(problem_of(self.op, self.cut(T=list(range(T - n))))).final_state
            yield {**self.cut(T=list(range(T - n, T))), "initial_state": before.astype(np.float32)}

    def heads(self) -> Iterator[Inputs]:
        """One value head and its key head, or one key head and all of its value heads."""
        H, HV = self.problem.sizes["H"], self.problem.sizes["HV"]
        if HV > 1:
            yield from (self.cut(H=[h // (HV // H)], HV=[h]) for h in range(HV))
            if H > 1:
                r = HV // H
                yield from (self.cut(H=[h], HV=list(range(h * r, (h + 1) * r))) for h in range(H))
                yield self.cut(H=[0, 1], HV=list(range(2 * r)))

    def channels(self, axis: str) -> Iterator[Inputs]:
        size = self.problem.sizes[axis]
        yield from (self.cut(**{axis: list(range(n))}) for n in CHANNELS if n < size)

    # Plainer

    def simplify(self) -> Iterator[str]:
        """Every tensor as plain as it may be; what each became."""
        p = self.problem
        if self.inputs.get("initial_state") is not None and self.first(iter([without(self.inputs, "initial_state")])):
            yield "no initial_state"
        for tensor in (*p.op.inputs, *p.op.states):
            name = tensor.name
            if self.inputs.get(name) is None:
                continue
            x = to_numpy(self.inputs[name], name)
            for word, plain in plainer(x, tensor.role):
                if self.first(iter([{**self.inputs, name: plain.astype(x.dtype)}])):
                    yield f"{name} {word}"
                    break
            else:
                yield from self.sparser(name, x)

    def sparser(self, name: str, x: Array) -> Iterator[str]:
        """As many tokens zero as may be, a half of them at a time."""
        if x.ndim < 3:
            return
        zeroed, step = 0, max(1, x.shape[1] // 2)
        while step:
            for t in range(0, x.shape[1], step):
                y = to_numpy(self.inputs[name], name).copy()
                if not y[:, t : t + step].any():
                    continue
                y[:, t : t + step] = 0
                zeroed += step * self.first(iter([{**self.inputs, name: y}]))
            step //= 2
        if zeroed:
            yield f"{min(zeroed, x.shape[1])} of {x.shape[1]} tokens of {name} zero"


def without(inputs: Inputs, name: str) -> Inputs:
    return {n: x for n, x in inputs.items() if n != name}


def taken(x: Array, layout: tuple[str, ...] | None, which: Mapping[str, Sequence[int]], micro: int = 1) -> Array:
    """x at those indices of those axes."""
    for axis, letter in enumerate(layout or ()):
        at = which.get(letter)
        if letter == "T*n" and "T" in which:
            at = [t * micro + i for t in which["T"] for i in range(micro)]
        elif letter == "N" and at is None:
            at = which.get("B")
        if at is not None and x.shape[axis] > max(at, default=-1):
            x = x.take(at, axis=axis)
    return np.ascontiguousarray(x)


def plainer(x: Array, role: str) -> Iterator[tuple[str, Array]]:
    """What a tensor may become, the plainest first."""
    y = x.astype(np.float64)
    yield "zero", np.zeros_like(y)
    yield "-1" if role == "decay" else "1", np.full_like(y, -1.0 if role == "decay" else 1.0)
    if role in ("query", "key") and y.ndim == 4:
        tokens = np.arange(y.shape[1]) % y.shape[3]
        yield "one-hot", np.broadcast_to(np.eye(y.shape[3])[tokens][None, :, None], y.shape)
    for word, grid in (("whole", 1.0), ("in quarters", 0.25)):
        rounded = np.round(y / grid) * grid
        if rounded.any():
            yield word, rounded


def shrink(op: str, inputs: Mapping[str, Any], candidate: Live, grade: str | Policy = "bf16", **how: Any) -> Shrunk:
    """The smallest problem found within `seconds` (of `how`; also `outputs`, those that it must give) that the
    candidate, one that can be run, still fails.

    Raises
    ------
    refengine.InputError
        It does not fail the problem given.
    """
    return Shrinking(op, inputs, candidate, grade, **how).run()
