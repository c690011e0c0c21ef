"""Two mistakes at once: tried where no single one explains the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np

from ..engine.plan import available_cores
from ..spec import Op
from ..verify.mistakes import of
from .suspects import RECURRENT, Suspect, finished, ways
from .what import Lineup, distance

NEAREST = 24  # pairs that are tried in earnest


def pairs(op: Op, lineup: Lineup) -> list[Suspect]:
    """The pairs that come nearest on the worst head, or, where the second acts on the outputs, on everything."""
    local = list(local_pairs(op, lineup))
    with ThreadPoolExecutor(available_cores()) as pool:
        far = list(pool.map(lineup.rough, local))
    rated = [*zip(far, local, strict=True), *altered_answers(op, lineup)]
    rated = [pair for pair in rated if np.isfinite(pair[0])]
    return [suspect for _, suspect in sorted(rated, key=lambda pair: pair[0])[:NEAREST]]


def local_pairs(op: Op, lineup: Lineup) -> Iterator[Suspect]:
    """Two of the lowered problem, or one there and one of the chunk algebra."""
    cores = [m for m in of(op) if m.acts == "core"]
    chunks = [m for m in of(op) if m.acts == "chunk"]
    yield from (Suspect(pair) for pair in combinations(cores, 2))
    each = [way for way in ways(lineup.policy) if way.algorithm == "chunk"]
    yield from (Suspect((a, b), way) for a in cores for b in chunks for way in each)


def altered_answers(op: Op, lineup: Lineup) -> Iterator[tuple[float, Suspect]]:
    """One of the problem or of the chunk algebra, and one of the outputs, each with how far it is from those given."""
    firsts: list[Suspect] = [Suspect((m,)) for m in of(op) if m.acts == "core"]
    each = [way for way in ways(lineup.policy) if way.algorithm == "chunk"]
    firsts += [Suspect((m,), way) for m in of(op) if m.acts == "chunk" for way in each]
    seconds = [m for m in of(op) if m.acts == "answer" and m.alter is not None]
    for first in firsts:
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
