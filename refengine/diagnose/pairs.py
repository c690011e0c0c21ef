"""Two mistakes at once: tried where no single one explains the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np

from ..engine.plan import available_cores
from ..spec import Op
from ..verify.mistakes import Outputs, of
from ..verify.mutate import HIDDEN
from .suspects import NONE, RECURRENT, Suspect, finished, ways
from .what import NEAR, Finding, Lineup, distance

NEAREST = 16  # pairs of either kind that are tried in earnest
FIRSTS = 16  # mistakes that are paired with one of the outputs


def pairs(op: Op, lineup: Lineup, findings: Sequence[Finding]) -> list[Suspect]:
    """The pairs that come nearest on the worst head, or, where the second acts on the outputs, on everything."""
    local = list(local_pairs(op, lineup))
    with ThreadPoolExecutor(available_cores()) as pool:
        far = list(pool.map(lineup.rough, local))
    several = (list(zip(far, local, strict=True)), list(altered_answers(op, lineup, findings)))
    return [suspect for rated in several for suspect in nearest(rated)]


def nearest(rated: Iterable[tuple[float, Suspect]]) -> list[Suspect]:
    """Those that are least far; how far is not the same on one head and on everything."""
    finite = [pair for pair in rated if np.isfinite(pair[0])]
    return [suspect for _, suspect in sorted(finite, key=lambda pair: pair[0])[:NEAREST]]


def local_pairs(op: Op, lineup: Lineup) -> Iterator[Suspect]:
    """Two of the lowered problem, or one there and one of the chunk algebra, of those that change anything here."""
    right = lineup.foretold(Suspect((NONE,)))
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


def altered_answers(op: Op, lineup: Lineup, findings: Sequence[Finding]) -> Iterator[tuple[float, Suspect]]:
    """One that explains some output, and one that alters the others, each with how far it is from those given."""
    seconds = [m for m in of(op) if m.acts == "answer" and m.alter is not None]
    near = [f.suspect for f in findings if min(f.fits[0].views.values(), default=np.inf) <= NEAR]
    for first in near[:FIRSTS]:
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
                    yield distance(made, lineup.got), Suspect((*first.mutants, second), first.way)
