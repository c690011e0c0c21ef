"""Who takes part in `refengine bench`, and the rounds in which all are called in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import numpy as np

import refengine
from refengine import ops
from refengine.engine.checks import chosen
from refengine.errors import InputError
from refengine.spec import Op

from . import peers
from .ceilings import ceiling, seconds

Row = dict[str, Any]
WAYS = ("forward", "backward", "both")  # the second without a forward, the third with it
PRECISIONS = ("float64", "float32", "certified")
APART = 0.01  # an answer further from ours, of the largest, is to another question, and not timed


def inputs(op: Op, T: int, heads: int, width: int) -> dict[str, Any]:
    """Random inputs of an op, float32: unit keys, decays near 1, everything else in (0, 1)."""
    rng = np.random.default_rng(0)
    size = {"B": 1, "T": T, "T*n": T, "H": heads, "HV": heads, "K": width, "V": width, "R": width}
    given: dict[str, Any] = {}
    for tensor in (t for t in chosen(op, {})[0].inputs if not t.integer):
        try:
            shape = tuple(size[a] for a in tensor.axes[0].split())
        except KeyError:
            raise InputError(f"bench has no inputs for {op.name} yet ({tensor.name} [{tensor.axes[0]}]).") from None
        if tensor.role == "decay":
            x = -rng.uniform(0, 0.1, shape)
        elif tensor.role in ("query", "value"):
            x = rng.standard_normal(shape)
        elif tensor.role == "key" or tensor.name == "a":
            x = rng.standard_normal(shape)
            x /= np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
        else:
            x = rng.uniform(0, 1, shape)
        given[tensor.name] = x.astype(np.float32)
    if {"a", "b"} <= given.keys() and given["a"].shape == given["b"].shape:
        given["b"] *= -given["a"]  # a contraction, as rwkv7's and dplr's are
    return given


@dataclass(frozen=True)
class Contender:
    """One that takes part: `call` gives the seconds of one call, by way; whose: "" if ours."""

    name: str
    whose: str
    precision: str
    ways: tuple[str, ...]
    call: Callable[[], dict[str, float]]


def ours(op: Op, x: dict[str, Any], threads: int, ways: tuple[str, ...]) -> Iterator[Contender]:
    """Every precision of these ways that the op has; what must be compiled is compiled."""
    given = dict(x, threads=threads)
    shape = refengine.solve(op.name, **given).o.shape

    def forward(precision: str) -> dict[str, float]:
        return {"forward": seconds(refengine.solve, op.name, **given, precision=precision)}

    def grad(precision: str) -> dict[str, float]:
        info: dict[str, Any] = {}
        do = np.ones(shape, np.float32)
        both = seconds(lambda: info.update(refengine.grad(op.name, **given, do=do, precision=precision).info))
        again = info.get("seconds_forward")
        return {"both": both} if again is None else {"backward": both - again, "both": both}

    for kind in (forward, grad) if "both" in ways else (forward,):
        for precision in PRECISIONS:
            call = partial(kind, precision)
            try:
                taken = tuple(call())
            except InputError:
                continue
            yield Contender(f"refengine {precision}", "", precision, taken, call)


def theirs(op: Op, x: dict[str, Any], threads: int, ways: tuple[str, ...]) -> Iterator[Contender]:
    """Every peer that is installed, runs, and gives our answer; of the others, why not."""
    o = refengine.solve(op.name, **x, threads=threads).o
    for peer in (p for p in peers.of(op.name, x, threads) if set(p.ways) <= set(ways)):
        try:
            peer.call()
            apart = float(np.abs(peer.o() - o).max() / np.abs(o).max()) if peer.o else 0.0
        except Exception as error:  # other people's code raises what it likes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            click.echo(f"{peer.name} is installed but does not run here ({reason}).", err=True)
            continue
        if apart <= APART:
            yield Contender(peer.name, peer.whose, "float32", peer.ways, peer.call)
        else:
            click.echo(f"{peer.name} is not timed: its answer is {apart:.1g} of the largest away.", err=True)


def measure(
    op: Op, tokens: int, heads: int, width: int, threads: int, rounds: int, ways: tuple[str, ...] = WAYS
) -> list[Row]:
    """Every contender, round by round, each between two looks at the ceiling of its precision."""
    x = inputs(op, tokens, heads, width)
    everyone = [*ours(op, x, threads, ways), *theirs(op, x, threads, ways)]
    about = {"op": op.name, "tokens": tokens, "heads": heads, "width": width, "threads": threads}
    rows: list[Row] = []
    for c in everyone:
        told = about | {"name": c.name, "whose": c.whose, "peer": bool(c.whose), "precision": c.precision}
        rows += [told | {"way": way, "seconds": [], "ceiling": []} for way in c.ways]
    for round_ in range(-1, rounds):
        taken = iter(rows)
        for c in everyone:
            kind = np.float32 if c.precision == "float32" else np.float64
            before = ceiling(kind, threads)
            took = c.call()
            top = max(before, ceiling(kind, threads))
            for way, row in zip(c.ways, taken, strict=False):
                if round_ >= 0:
                    row["seconds"].append(took[way])
                    row["ceiling"].append(top)
    return sorted(rows, key=lambda row: WAYS.index(row["way"]))


def median(row: Row) -> float:
    return float(statistics.median(row["seconds"]))


def micros(row: Row) -> float:
    """Microseconds a token and head."""
    return float(median(row) / (row["tokens"] * row["heads"]) * 1e6)


def share(row: Row) -> float | None:
    """The share of the FMA peak that a forward of the delta core reaches."""
    if row["way"] != "forward" or row["precision"] == "certified" or len(ops.get(row["op"]).states) != 1:
        return None
    work = 6 * row["width"] ** 2 * row["tokens"] * row["heads"]
    return float(statistics.median(work / t / c for t, c in zip(row["seconds"], row["ceiling"], strict=True)))


def best(rows: list[Row], way: str, whose: str) -> Row | None:
    """The fastest of theirs."""
    their = (row for row in rows if row["whose"] == whose and row["way"] == way)
    return min(their, key=median, default=None)
