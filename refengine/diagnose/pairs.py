"""Two mistakes at once: tried where no single one explains the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np

from ..engine.plan import available_cores
from ..spec import Op
from ..verify.mistakes import Outputs, of
from ..verify.mutate import HIDDEN
from .suspects import NONE, RECURRENT, Suspect, finished, ways
from .what import BEST, NEAR, Finding, Lineup, distance

NEAREST = 16  # pairs of each kind that are tried in earnest
FIRSTS = 40  # mistakes that are paired with one of the outputs


def pairs(op: Op, lineup: Lineup) -> list[Suspect]:
    """The pairs that come nearest: on the worst head, or, where the second acts on the outputs or does not show there,
    on everything."""
    right = lineup.foretold(Suspect((NONE,)))
    local = list(local_pairs(op, lineup, right))
    with ThreadPoolExecutor(available_cores()) as pool:
        far = list(pool.map(lineup.rough, local))
    kinds = zip(far, local, strict=True), altered_answers(op, lineup), elsewhere(op, lineup, right)
    return [suspect for rated in kinds for suspect in nearest(rated)]


def nearest(rated: Iterable[tuple[float, Suspect]]) -> list[Suspect]:
    """Those that are least far; how far is not the same on one head and on everything. Where all of them have one
    mistake, also the nearest without it."""
    order = [suspect for far, suspect in sorted(rated, key=lambda pair: pair[0]) if np.isfinite(far)]
    chosen, rest = order[:NEAREST], order[NEAREST:]
    for name in set.intersection(*(set(s.names) for s in chosen)) if chosen else ():
        chosen += [s for s in rest if name not in s.names][:1]
    return chosen


def local_pairs(op: Op, lineup: Lineup, right: Outputs | None) -> Iterator[Suspect]:
    """Two of the lowered problem, or one there and one of the chunk algebra, of those that change anything here."""
    cores = [m for m in of(op) if m.acts == "core" and shows(lineup, Suspect((m,)), right)]
    yield from (Suspect(pair) for pair in permutations(cores, 2))
    for way in ways(lineup.policy):
        if way.algorithm == "chunk":
            chunks = [m for m in of(op) if m.acts == "chunk" and shows(lineup, Suspect((m,), way), right)]
            yield from (Suspect((a, b), way) for a in cores for b in chunks)


def shows(lineup: Lineup, suspect: Suspect, right: Outputs | None) -> bool:
    """Whether it changes the worst head at all."""
    made = lineup.foretold(suspect)
    return made is not None and right is not None and distance(made, right) > HIDDEN


def likelihood(f: Finding) -> float:
    """How far the outputs are off one with another, so that one that is quite another thing decides nothing."""
    return sum(float(np.log(max(score, BEST))) for score in f.fits[0].views.values())


def altered_answers(op: Op, lineup: Lineup) -> Iterator[tuple[float, Suspect]]:
    """One that explains some output, and one that alters the others, each with how far it is from those given."""
    seconds = [m for m in of(op) if m.acts == "answer" and m.alter is not None]
    near: dict[str, Suspect] = {}  # of several ways of a mistake the likeliest
    for f in sorted(lineup.seen, key=likelihood):
        if min(f.fits[0].views.values(), default=np.inf) <= NEAR:
            near.setdefault(f.name, f.suspect)
    for first in list(near.values())[:FIRSTS]:
        if len(first.mutants) > 1 or first.mutants[0].acts not in ("core", "chunk"):
            continue
        with np.errstate(all="ignore"):
            core, left = first.altered(lineup.core)
            run = first.way or RECURRENT
            got = None if core is None else finished(left, core, first.unrounded(lineup.policy), run)
            if got is None or core is None:
                continue
            for second in seconds:
                assert second.alter is not None
                made = second.alter(dict(got), core)
                if made is not None:
                    both = (*first.mutants, second)
                    yield distance(made, lineup.got), Suspect(both, first.way, first.parameters, first.within)


def elsewhere(op: Op, lineup: Lineup, right: Outputs | None) -> Iterator[tuple[float, Suspect]]:
    """One that explains the worst head, and one that changes only others."""
    hidden = [m for m in of(op) if m.acts == "core" and not shows(lineup, Suspect((m,)), right)]
    for first in lineup.near:
        for second in hidden:
            for both in ((*first.mutants, second), (second, *first.mutants)):  # some must be made before others
                suspect = Suspect(both, first.way, first.parameters, first.within)
                with np.errstate(all="ignore"):
                    made = suspect.exact(lineup.core, lineup.policy)
                if made is not None:
                    yield distance(made, lineup.got), suspect
                    break
