"""Stage by stage: what a candidate feeds its recurrence (q, k, g, beta, ... after convolution, norm and gates), what it
makes on the way (w and u of the chunk algebra, the states before each chunk), each checked by itself; and the outputs
against the recurrence of exactly what was fed to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..engine.definition import inputs as prepared
from ..engine.run import execute
from ..errors import InputError, nearest
from ..io.interop import exact_widen, to_numpy
from ..verify.emulate import Core
from ..verify.mistakes import of
from ..verify.statistics import FAIL
from ..verify.verdict import Judge, problem_of

Array = NDArray[Any]
PREFIX = "stage."
MADE = ("w", "u", "h")
ROUNDINGS = 16  # of a stage's own format that it may be off by
FIELDS = {"q": "q", "k": "k", "v": "v", "g": "g", "beta": "b"}  # of the lowered problem


@dataclass(frozen=True)
class Stage:
    """One stage. holds: it is right; first: the index of the first entry that is not; worst: the largest error over
    what its format explains. like: mistakes before the op that give just this."""

    name: str
    holds: bool
    worst: float
    first: tuple[int, ...] = ()
    detail: str = ""
    like: tuple[str, ...] = ()


def split(got: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(outputs, stages by their names)."""
    stages = {name.removeprefix(PREFIX): x for name, x in got.items() if name.startswith(PREFIX)}
    return {name: x for name, x in got.items() if not name.startswith(PREFIX)}, stages


class Fed:
    """A problem with the candidate's own stages in place of what refengine makes of the raw inputs."""

    def __init__(self, judge: Judge, given: Mapping[str, Any]) -> None:
        self.judge = judge
        p = judge.problem
        self.own = prepared(p, lambda x: np.asarray(x, np.float64))
        self.given = {name: to_numpy(x, f"{PREFIX}{name}") for name, x in given.items()}
        for name, x in self.given.items():
            known = (*self.own, *MADE)
            if name not in known:
                raise InputError(f"{p.op.name} has no stage {name!r}{nearest(name, known)}.")
            if name in self.own and x.shape != self.own[name].shape:
                raise InputError(f"{PREFIX}{name} has shape {list(x.shape)}; it is {list(self.own[name].shape)}.")
        self.fed = {name: exact_widen(x, name).astype(np.float64) for name, x in self.given.items() if name in self.own}

    def recurrence(self, got: Mapping[str, Any]) -> bool | None:
        """Whether the outputs are right for what was fed; None where nothing was."""
        if not self.fed:
            return None
        judge = self.again()
        usable = judge.faults(got, [name for name in judge.names if name in got])[1]
        return bool(usable) and all(s.level != FAIL for s in judge.measured(usable))

    def again(self) -> Judge:
        """The judge of the problem as it was fed."""
        if not hasattr(self, "_again"):
            p = self.judge.problem
            kept = {
                "scale": p.scale,
                "convention": p.convention,
                "allow_nonfinite": p.asked.allow_nonfinite,
                **p.options,
            }
            if p.initial_state is not None:
                kept["initial_state"] = p.initial_state
            if p.asked.cu_seqlens is not None:
                kept["cu_seqlens"] = p.asked.cu_seqlens
            self._again = Judge(problem_of(p.op.name, {**self.own, **self.fed, **kept}), self.judge.policy)
        return self._again

    def stages(self) -> tuple[Stage, ...]:
        """Every stage that is given, in the order of the road."""
        found = [self.entered(name) for name in self.own if name in self.given]
        return (*found, *(stage for name in MADE if name in self.given for stage in [self.made(name)]))

    def entered(self, name: str) -> Stage:
        """An input of the recurrence."""
        x, y = self.fed[name], self.own[name]
        size = np.abs(y).max(axis=-1, keepdims=True) if y.ndim == 4 else np.abs(y)
        stage = compared(name, x, y, size, unit(self.given[name]))
        return stage if stage.holds else replace(stage, like=self.like(name))

    def like(self, name: str) -> tuple[str, ...]:
        """The mistakes before the op that give just this stage."""
        if name not in FIELDS:
            return ()
        core, found = self.judge.core, []
        for mutant in of(self.judge.problem.op):
            with np.errstate(all="ignore"):
                altered = mutant.alter(core) if mutant.acts == "core" and mutant.alter else None
                x = None if altered is None else getattr(altered, FIELDS[name])
            if x is not None and x.size == self.fed[name].size:
                y = x.reshape(self.fed[name].shape)
                size = np.abs(y).max(axis=-1, keepdims=True) if y.ndim == 4 else np.abs(y)
                if compared(name, self.fed[name], y, size, unit(self.given[name])).holds:
                    found.append(mutant.name)
        return tuple(found)

    def made(self, name: str) -> Stage:
        """What the algorithm makes on the way, from what was fed to it."""
        judge = self.again() if self.fed else self.judge
        x = exact_widen(self.given[name], name).astype(np.float64)
        if name == "h":
            return states(judge, x, unit(self.given[name]))
        best: Stage | None = None
        for C in dict.fromkeys((judge.policy.chunk, 64, 16, 32, 128)):
            for form, (y, size) in products(judge.core, C, name).items():
                if y.shape != x.shape:
                    raise InputError(f"{PREFIX}{name} has shape {list(x.shape)}; it is {list(y.shape)}.")
                stage = replace(compared(name, x, y, size, unit(self.given[name])), detail=f"{form}, chunks of {C}")
                best = stage if best is None or stage.worst < best.worst else best
        assert best is not None
        return best


def unit(x: Array) -> float:
    """Half a spacing at 1 of the stage's format; float32's at least, in which it is computed."""
    info: Any = ml_dtypes.finfo
    return max(float(info(x.dtype).eps), float(np.finfo(np.float32).eps)) / 2


def compared(name: str, x: Array, y: Array, size: Any, u: float) -> Stage:
    """x against the right y, where errors of ROUNDINGS u `size` are nothing."""
    with np.errstate(all="ignore"):
        off = np.abs(x - y) / (ROUNDINGS * u * np.maximum(size, np.finfo(np.float32).tiny))
    off = np.where(np.isnan(off), np.where(np.isnan(x) == np.isnan(y), 0.0, np.inf), off)
    worst = float(off.max(initial=0.0))
    late = np.argwhere(off > 1.0)
    return Stage(name, worst <= 1.0, worst, tuple(int(i) for i in late[0]) if len(late) else ())


def states(judge: Judge, x: Array, u: float) -> Stage:
    """h [B, NT, HV, K, V]: the state before each chunk, for sequences of one length."""
    p = judge.problem
    T, NT = p.sizes["T"], x.shape[1] if x.ndim == 5 else 0
    shape = (p.sizes["B"], NT, p.sizes["HV"], p.sizes["K"], p.sizes["V"])
    if x.shape != shape or not NT or p.asked.cu_seqlens is not None:
        raise InputError(
            f"{PREFIX}h has shape {list(x.shape)}; it is [B, chunks, HV, K, V], of sequences of one length."
        )
    C = next((C for C in (16, 32, 64, 128, 256) if -(-T // C) == NT), None)
    if C is None:
        raise InputError(f"{PREFIX}h has {NT} states; no chunk of 16 to 256 has so many in {T} tokens.")
    truth = execute(replace(p, states_at=tuple(range(0, T, C)))).states
    y = np.moveaxis(np.asarray(truth), 0, 1)
    size = np.sqrt((y**2).mean(axis=(3, 4), keepdims=True)) * np.sqrt(T)
    stage = compared("h", x, y, np.maximum(size, np.abs(y)), u)
    return replace(stage, detail=f"the states before chunks of {C}")


def products(core: Core, C: int, name: str) -> dict[str, tuple[Array, Array]]:
    """w or u of every token in chunks of C, by the forms they may have, each with the size of the sums it comes of.

    With A_im = b_i (k_i . k_m) e^(G_i - G_m) below the diagonal and T = (I + A)^-1: u = T b v, and w = T b e^G k, or
    the same without its e^G (as kernels have it that decay w later)."""
    if core.micro != 1 or core.pre or core.e is not core.k or (core.g is not None and core.g.shape[3] > 1):
        raise InputError(f"{PREFIX}{name} can be checked where keys erase what they write, with one decay a head.")
    B, T, HV, V = core.v.shape
    K = core.k.shape[3]
    width = K if name == "w" else V
    found = {form: (np.zeros((B, T, HV, width)), np.zeros((B, T, HV, width))) for form in (
        ("w, decayed", "w, not decayed") if name == "w" else ("u",))}  # fmt: skip

    def head(x: Array | None, b: int, t: slice, h: int, otherwise: float) -> Array:
        if x is None:
            return np.full((t.stop - t.start, 1), otherwise)
        return np.asarray(x[b, t, h // (HV // x.shape[2])])

    for b, t0, t1 in core.segments:
        for h in range(HV):
            for start in range(t0, t1, C):
                t = slice(start, min(start + C, t1))
                k, v = head(core.k, b, t, h, 0.0), head(core.v, b, t, h, 0.0)
                beta, G = head(core.b, b, t, h, 1.0), np.cumsum(head(core.g, b, t, h, 0.0), axis=0)
                A = np.tril(np.exp(np.minimum(G - G.T, 0.0)) * (beta[:, :1] * (k @ k.T)), -1)
                inverse = np.linalg.inv(np.eye(len(k)) + A)
                right = beta * v if name == "u" else beta * np.exp(G) * k
                y, size = inverse @ right, np.abs(inverse) @ np.abs(right)
                for form, (into, sizes) in found.items():
                    undo = np.exp(-G) if form.endswith("not decayed") else 1.0
                    into[b, t, h], sizes[b, t, h] = y * undo, size * undo
    return found
