"""Suspects with a free parameter, fitted: a factor, the token at which something is lost, which head goes with which,
how old a state is, where an element is wrong. Made only where no declared mistake explains the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec import Mutant
from ..verify.emulate import WIPED, Core, Run, emulate
from ..verify.mistakes import EXACT, TAIL, Outputs, joined, read_late, tail_ignored, tail_unwritten
from ..verify.policy import Policy
from ..verify.verdict import Judge
from .floors import cut
from .places import places
from .suspects import Suspect, part
from .what import Lineup, distance
from .where import CHUNKS, Where

Array = NDArray[Any]
STEPS = 12
CLOSE = 1e-10  # a step of a factor below which it is found
NEAR_POWER = 1e-3  # relative; a gain nearer than that to a power of K or V is called by it
BACK = 8  # tokens that a state may be behind

# What may be multiplied by a factor: what it is called, the field of the lowered problem, starting points, and the
# declared mistakes that are special cases.
FACTORS: dict[str, tuple[str, str, tuple[float, ...], frozenset[str]]] = {
    "gate_factor": (
        "g",
        "the log decay times",
        (0.7, 2.0),
        frozenset({"gate_base_2", "gate_twice", "gate_missing", "gate_inverse"}),
    ),
    "beta_factor": ("b", "beta times", (0.5, 2.0), frozenset({"beta_half", "beta_twice"})),
    "delta_factor": (
        "e",
        "the prediction times",
        (0.0, 2.0),
        frozenset({"delta_missing", "delta_sign", "delta_twice"}),
    ),
    "key_factor": ("k", "the key times", (0.5, 2.0), frozenset()),
    "value_factor": ("v", "the value times", (0.5, 2.0), frozenset()),
    "start_factor": ("start", "the initial state times", (0.5,), frozenset({"initial_state_ignored"})),
}
SCALES = frozenset({"scale_missing", "scale_twice", "scale_off_1_percent"})
HEADS = frozenset({"gate_of_head_0", "beta_of_head_0", "heads_tiled"})
ROLES = {"g": "gate", "b": "beta", "k": "key", "q": "query", "v": "value"}


def fitted(judge: Judge, lineup: Lineup, where: Where) -> Iterator[Suspect]:
    """Every suspect whose parameter these outputs settle."""
    yield from gains(lineup)
    yield from factors(lineup)
    yield from positions(judge, where)
    yield from heads(lineup)
    yield from tails()
    yield from stale(lineup, where)
    yield from rows(where)
    yield from places(judge, lineup, where)


# A factor


def gains(lineup: Lineup) -> Iterator[Suspect]:
    """o a constant times too large."""
    alone = part(lineup.core, *lineup.at)
    y = emulate(alone, EXACT, Run("recurrent"))[0].reshape(-1)
    x = lineup.small.get("o")
    size = float(y @ y)
    if x is None or not size or not np.isfinite(x).all():
        return
    c = float(x.reshape(-1) @ y) / size
    if c:
        called = power(c, alone.k.shape[3], alone.v.shape[3] if not alone.folded else alone.folded[1])
        doc = f"o {c:.4g} times as large{f' ({called})' if called else ''}"
        alter = partial(times_field, field="scale", factor=c)
        yield Suspect((Mutant("scale", doc, "core", alter),), parameters={"gain": c}, within=SCALES)


def power(c: float, K: int, V: int) -> str:
    """What power of K or V the factor is, if it is one."""
    found = []
    for word, size in (("K", K), ("V", V)):
        for exponent, text in ((0.5, "1/2"), (-0.5, "-1/2"), (1.0, "1"), (-1.0, "-1")):
            if size > 1 and abs(c / size**exponent - 1) < NEAR_POWER:
                found.append(f"{word}^{text}" if text != "1" else word)
    alike = ": K = V here, and with another K they would differ" if len(found) > 1 else ""
    return " or ".join(found) + alike


def times_field(core: Core, field: str, factor: float) -> Core | None:
    x = getattr(core, field)
    if x is None:
        return None
    changed = x * factor
    return replace(core, **{field: np.maximum(changed, WIPED) if field == "g" else changed})


def factors(lineup: Lineup) -> Iterator[Suspect]:
    """Each field of the lowered problem times the factor that brings the outputs nearest."""
    alone = part(lineup.core, *lineup.at)
    for name, (field, words, starts, within) in FACTORS.items():
        if getattr(alone, field) is None:
            continue
        alter = partial(scaled_key, field=field) if field == "k" else partial(times_field, field=field)
        found = [minimum(alone, alter, lineup.small, c) for c in starts]
        left, c = min(found, key=lambda pair: pair[0])
        if np.isfinite(left):
            mutant = Mutant(name, f"{words} {c:.4g}", "core", partial(alter, factor=c))
            yield Suspect((mutant,), parameters={"factor": c}, within=within)


def scaled_key(core: Core, field: str, factor: float) -> Core:
    k = core.k * factor
    return replace(core, k=k, e=k if core.e is core.k else core.e)


def minimum(core: Core, alter: Callable[..., Core | None], got: Mapping[str, Array], c: float) -> tuple[float, float]:
    """(what is left, the factor), by Gauss and Newton."""

    def left(c: float) -> Array:
        changed = alter(core, factor=c)
        assert changed is not None
        o, final = emulate(changed, EXACT, Run("recurrent"), threads=1)
        made = {"o": o, "final_state": final}
        parts = [
            (got[n] - made[n]).reshape(-1) / max(float(np.abs(got[n]).max(initial=0.0)), 1e-300)
            for n in got
            if n in made
        ]
        return np.concatenate(parts)

    with np.errstate(all="ignore"):
        now = left(c)
        for _ in range(STEPS):
            h = 1e-6 * max(1.0, abs(c))
            slope = (left(c + h) - now) / h
            size = float(slope @ slope)
            if not np.isfinite(size) or size == 0:
                break
            step = -float(slope @ now) / size
            after = left(c + step)
            if not float(after @ after) <= float(now @ now):
                step *= 0.25
                after = left(c + step)
                if not float(after @ after) <= float(now @ now):
                    break
            c, now = c + step, after
            if abs(step) < CLOSE * max(1.0, abs(c)):
                break
        total = float(now @ now)
    return (total if np.isfinite(total) else np.inf), c


# A token


def positions(judge: Judge, where: Where) -> Iterator[Suspect]:
    """Something happens at the first wrong token, or every so many tokens."""
    first = where.first
    if first is None or "t" not in first:
        return
    n, t = first["sequence"], first["t"]
    for name, words, alter in (
        ("state_lost", "the state lost", lose),
        ("write_dropped", "the write left out", drop),
        ("decay_dropped", "the decay left out", still),
        ("stale_key", "the key of the token before", repeat_key),
    ):
        for s in {t, t - 1} if name != "state_lost" else {t}:
            if s >= 0:
                doc = f"{words} at token {s} of sequence {n}"
                mutant = Mutant(name, doc, "core", partial(alter, n=n, t=s))
                yield Suspect((mutant,), parameters={"sequence": n, "token": s})
        if name == "state_lost":
            for P in sorted({*CHUNKS, t} - {0}):
                mutant = Mutant(name, f"{words} every {P} tokens", "core", partial(every, period=P))
                yield Suspect((mutant,), parameters={"every": P})


def lose(core: Core, n: int, t: int) -> Core | None:
    b, t0, t1 = core.segments[n]
    if core.pre or t0 + t >= t1:
        return None
    g = np.zeros((*core.v.shape[:3], 1)) if core.g is None else core.g.copy()
    g[b, (t0 + t) * core.micro] = WIPED
    return replace(core, g=g)


def every(core: Core, period: int) -> Core | None:
    if core.pre:
        return None
    g = np.zeros((*core.v.shape[:3], 1)) if core.g is None else core.g.copy()
    for b, t0, t1 in core.segments:
        g[b, (t0 + period) * core.micro : t1 * core.micro : period * core.micro] = WIPED
    return replace(core, g=g)


def drop(core: Core, n: int, t: int) -> Core:
    row, t0, _ = core.segments[n]
    b = np.ones((*core.v.shape[:3], 1)) if core.b is None else core.b.copy()
    b[row, (t0 + t) * core.micro : (t0 + t + 1) * core.micro] = 0.0
    return replace(core, b=b)


def still(core: Core, n: int, t: int) -> Core | None:
    if core.g is None:
        return None
    row, t0, _ = core.segments[n]
    g = core.g.copy()
    g[row, (t0 + t) * core.micro : (t0 + t + 1) * core.micro] = 0.0
    return replace(core, g=g)


def repeat_key(core: Core, n: int, t: int) -> Core | None:
    if t < 1:
        return None
    row, t0, _ = core.segments[n]
    m, at = core.micro, (t0 + t) * core.micro
    k = core.k.copy()
    k[row, at : at + m] = k[row, at - m : at]
    return replace(core, k=k, e=k if core.e is core.k else core.e)


def tails() -> Iterator[Suspect]:
    """A partial last chunk left out, of other chunks than the declared ones."""
    for C in (C for C in CHUNKS if C != TAIL):
        for name, words, alter in (
            ("tail_unwritten", f"o zero in the partial last chunk of {C}", tail_unwritten),
            ("tail_ignored", f"the partial last chunk of {C} left out, of the state too", tail_ignored),
        ):
            yield Suspect((Mutant(name, words, "answer", partial(alter, chunk=C)),), parameters={"chunk": C})


# Which head goes with which


def heads(lineup: Lineup) -> Iterator[Suspect]:
    """Each head with another's gate, beta, key, query or value: searched head by head."""
    core = lineup.core
    HV = core.v.shape[2]
    if HV == 1 or core.folded:
        return
    n, worst = lineup.at
    for field, word in ROLES.items():
        x = getattr(core, field)
        if x is None:
            continue
        order = [nearest_head(lineup, core, field, n, h) for h in range(HV)]
        if order[worst] != worst:
            mutant = Mutant(
                f"{word}_heads", f"the {word} of heads {order}", "core", partial(reheaded, field=field, order=order)
            )
            yield Suspect((mutant,), parameters={"heads": order}, within=HEADS)


def nearest_head(lineup: Lineup, core: Core, field: str, n: int, h: int) -> int:
    """Whose field head h has."""
    HV = core.v.shape[2]
    got, best = cut(core, lineup.got, n, h), (np.inf, h)
    for other in (h, *(j for j in range(HV) if j != h)):
        alone = part(reheaded(core, field, [other if i == h else i for i in range(HV)]), n, h)
        with np.errstate(all="ignore"):
            o, final = emulate(alone, EXACT, Run("recurrent"), threads=1)
        best = min(best, (distance({"o": o, "final_state": final}, got), other), key=lambda pair: pair[0])
    return best[1]


def reheaded(core: Core, field: str, order: Sequence[int]) -> Core:
    """Value heads with the field of others."""
    HV = core.v.shape[2]
    x = getattr(core, field)
    moved = np.ascontiguousarray(x[:, :, [j // (HV // x.shape[2]) for j in order]])
    fields: dict[str, Any] = {field: moved, **({"e": moved} if field == "k" and core.e is core.k else {})}
    return replace(core, **fields)


# One output of another problem


@dataclass(frozen=True)
class Elsewhere(Suspect):
    """One output is that of an altered problem, the others are right."""

    output: str = "o"
    alter: Callable[[Core], Core | None] = read_late

    def outputs(self, core: Core, policy: Policy, run: Run) -> Outputs | None:
        other = self.alter(core)
        if other is None:
            return None
        return {**core.outputs(policy, run), self.output: other.outputs(policy, run)[self.output]}


def stale(lineup: Lineup, where: Where) -> Iterator[Suspect]:
    """How old what is read or left is, where one output is wrong and another right."""
    if where.outputs == ("o",):
        late = Mutant("read_last_state", "o read from the state that the token before left, not decayed", "answer")
        yield Elsewhere((late,), output="o", alter=read_late)
    elif where.outputs and "o" not in where.outputs:
        for r in range(1, BACK + 1):
            mutant = Mutant("state_stale", f"the final state is that of {r} tokens before", "answer")
            early = partial(shorter, by=r)
            yield Elsewhere((mutant,), parameters={"tokens": r}, output="final_state", alter=early)


def shorter(core: Core, by: int) -> Core | None:
    if any(t1 - t0 < by for _, t0, t1 in core.segments):
        return None
    return replace(core, segments=tuple((b, t0, t1 - by) for b, t0, t1 in core.segments))


def rows(where: Where) -> Iterator[Suspect]:
    """What an earlier batch row or sequence left, where the first is right."""
    if where.sequences and 0 not in where.sequences:
        doc = "every batch row or sequence goes on from the end of the one before it"
        yield Suspect((Mutant("rows_joined", doc, "core", joined),))
