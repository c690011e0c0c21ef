"""Suspects: one known mistake, or several at once, as something that can be computed at any precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec import Mutant, Op
from ..verify.emulate import Core, Run
from ..verify.mistakes import EXACT, Outputs, mutated, of
from ..verify.policy import Policy

Array = NDArray[Any]
PLACES = frozenset({"at", "token", "tokens", "sequence"})  # parameters that are one
CHUNKS = (64, 16, 32, 128)


@dataclass(frozen=True)
class Suspect:
    """Mistakes made together. way: the algorithm, where what is computed depends on it: mistakes of the chunk algebra,
    and roundings. parameters: what was fitted. within: names of those whose special case this one is, so that they are
    no rivals."""

    mutants: tuple[Mutant, ...]
    way: Run | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    within: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.mutants)

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    @property
    def doc(self) -> str:
        said = " and ".join(m.doc for m in self.mutants)
        chunked = self.way is not None and self.way.algorithm == "chunk"
        return f"{said}, in chunks of {self.way.chunk}" if self.way is not None and chunked else said

    @property
    def rounds(self) -> bool:
        """It rounds where it should not."""
        return any(m.precision for m in self.mutants)

    @property
    def sized(self) -> bool:
        """It rounds where it should not, by an unknown algorithm: it foretells how large the error is and no more."""
        return self.way is None and self.rounds

    @property
    def located(self) -> bool:
        """It is about one place of these outputs, which no other problem has."""
        return not PLACES.isdisjoint(self.parameters)

    @property
    def structural(self) -> tuple[Mutant, ...]:
        """The mistakes that what is foretold has in it."""
        return tuple(m for m in self.mutants if not (self.sized and m.precision)) or (NONE,)

    @property
    def local(self) -> bool:
        """One sequence and head of it can be computed alone."""
        return all(m.acts in ("core", "chunk", "rounding") for m in self.mutants)

    def altered(self, core: Core) -> tuple[Core | None, tuple[Mutant, ...]]:
        """The lowered problem after every mistake made there, and the mistakes that are left."""
        left = []
        for mutant in self.mutants:
            if mutant.acts != "core":
                left.append(mutant)
                continue
            assert mutant.alter is not None
            changed = mutant.alter(core)
            if changed is None:
                return None, ()
            core = changed
        return core, tuple(left)

    def exact(self, core: Core, policy: Policy, narrow: bool = False) -> Outputs | None:
        """What an implementation with these mistakes would compute if it rounded nothing else."""
        return self.outputs(core, self.unrounded(policy, narrow), self.way or RECURRENT)

    def unrounded(self, policy: Policy, narrow: bool = False) -> Policy:
        """Nothing is rounded, but the outputs where a mistake is in how they are; in the policy's own arithmetic where
        one is in what overflows, or (narrow) something did."""
        if narrow or any(m.precision and m.acts == "chunk" for m in self.mutants):
            a = policy.accum
            return Policy("unrounded", a, a, a, a, a)
        return replace(EXACT, io=policy.io) if any("io" in m.rounds for m in self.mutants) else EXACT

    def outputs(self, core: Core, policy: Policy, run: Run) -> Outputs | None:
        """What an implementation with these mistakes computes; None where one of them cannot be made here."""
        if len(self.mutants) == 1:
            return mutated(self.mutants[0], core, policy, run)
        changed, left = self.altered(core)
        return None if changed is None else finished(left, changed, policy, run)


def finished(left: tuple[Mutant, ...], core: Core, policy: Policy, run: Run) -> Outputs | None:
    """What is computed with the mistakes that remain after the lowered problem is altered."""
    if not left:
        return mutated(NONE, core, policy, run)
    got = mutated(left[0], core, policy, run)
    for mutant in left[1:]:
        if got is None or mutant.acts != "answer" or mutant.alter is None:
            return None
        got = mutant.alter(got, core)
    return got


RECURRENT = Run("recurrent")
NONE = Mutant("none", "nothing", "core", lambda core: core)


def ways(policy: Policy) -> list[Run]:
    """The algorithms that a policy allows, chunks of the usual sizes among them."""
    chunks = () if policy.algorithm == "recurrent" else (policy.chunk, *(C for C in CHUNKS if policy.chunk != C))
    return [*(Run("chunk", C) for C in chunks), *([RECURRENT] if policy.algorithm != "chunk" else [])]


def singles(op: Op, policy: Policy) -> Iterator[Suspect]:
    """Every declared mistake alone, each way where that matters; of roundings also whatever the way."""
    each = ways(policy)
    for mutant in of(op):
        if mutant.acts == "chunk":
            yield from (Suspect((mutant,), way) for way in each if way.algorithm == "chunk")
        elif mutant.precision:
            yield from (Suspect((mutant,), way) for way in (*each, None))
        else:
            yield Suspect((mutant,))


def part(core: Core, n: int, h: int) -> Core:
    """One sequence and value head alone."""
    b, t0, t1 = core.segments[n]
    heads, tokens, micro = core.v.shape[2], core.v.shape[1] // core.micro, core.micro
    width = core.folded[1] if core.folded else 1
    low, high = h * width, (h + 1) * width

    def cut(x: Array | None) -> Array | None:
        if x is None:
            return None
        ratio = heads // x.shape[2]
        step = 1 if x.shape[1] == tokens else micro
        some = x[b : b + 1, t0 * step : t1 * step, low // ratio : (high - 1) // ratio + 1]
        return np.ascontiguousarray(some)

    k = cut(core.k)
    q, v = cut(core.q), cut(core.v)
    assert k is not None and q is not None and v is not None
    return replace(
        core,
        q=q,
        k=k,
        e=k if core.e is core.k else cut(core.e),
        v=v,
        b=cut(core.b),
        g=cut(core.g),
        start=None if core.start is None else np.ascontiguousarray(core.start[n : n + 1, low:high]),
        segments=((0, 0, t1 - t0),),
        folded=(1, width) if core.folded else None,
    )
