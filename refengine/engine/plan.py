"""How a problem will run, and why: data that `info` and `--explain` print."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import gcd

from .problem import Problem


@dataclass(frozen=True)
class Plan:
    """One task is one sequence, one value head and one block of value columns; the cut touches no bit of the answer."""

    form: str
    why: str
    threads: int
    blocks: int
    lanes: int
    tasks: int

    def lines(self) -> tuple[str, ...]:
        cut = "whole heads" if self.blocks == 1 else f"heads in {self.blocks} blocks of columns"
        return (
            f"form {self.form}: {self.why}",
            f"{self.tasks} tasks ({cut}, {self.lanes} columns a tile) on {self.threads} threads",
        )


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(p: Problem, heads: int, columns: int, lanes: int, threads: int | None) -> Plan:
    """As few cuts as give every thread the same number of tasks: each block packs its head's q and k again."""
    wanted = threads or available_cores()
    tiles = -(-columns // lanes)
    whole = len(p.segments) * heads
    even = wanted // gcd(whole, wanted)
    blocks = 1 if whole >= 4 * wanted or whole == 0 else min(tiles, even)
    tasks = whole * blocks
    why = "the sequential recurrence is the definition's own order, and the fastest form on a CPU"
    return Plan("recurrent", why, max(1, min(wanted, tasks)), blocks, lanes, tasks)
