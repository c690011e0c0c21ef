"""`refengine bench`: how fast it is here, as ratios in one run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import refengine
from refengine import ops
from refengine.engine.checks import chosen
from refengine.engine.plan import available_cores
from refengine.errors import InputError
from refengine.kernels import machine
from refengine.kernels._simd import BYTES
from refengine.spec import Op

from . import peers

Array = NDArray[Any]
LENGTHS, WIDTHS = (1024, 4096, 16384, 65536), (32, 64, 128, 256)


@click.command("bench")
@click.option("--op", "names", metavar="NAME", multiple=True, help="Which ops; gated_delta_rule if not given.")
@click.option("--tokens", metavar="T", type=click.IntRange(min=1), default=4096, show_default=True)
@click.option("--heads", metavar="H", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--width", metavar="K", type=click.IntRange(min=1), default=128, show_default=True, help="K and V.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="For ours and theirs; all cores if not given.")
@click.option("--rounds", metavar="N", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--growth", is_flag=True, help="Also how the time grows with T, threads and K.")
@click.option("--json", "target", metavar="FILE", help="Also every time of every round, as JSON.")
def command(
    names: tuple[str, ...],
    tokens: int,
    heads: int,
    width: int,
    threads: int | None,
    rounds: int,
    growth: bool,
    target: str | None,
) -> None:
    """How fast this is, here: against the machine's own ceilings and against the peers that are installed.

    All are called in turn, round by round, so that ratios hold where times do not. Printed are medians, the fastest
    and slowest round in brackets; the work of a token and head of the delta core is 6 K V operations, what else is done
    being overhead.

    \b
    Example:
      refengine bench
      refengine bench --op mesa_net --tokens 512 --growth
    """
    threads = threads or available_cores()
    found: list[dict[str, Any]] = []
    for name in names or ("gated_delta_rule",):
        op = ops.get(name)
        say(f"{name}: T={tokens}, {heads} heads, K=V={width}, {threads} threads; us a token and head")
        rows = measure(op, inputs(op, tokens, heads, width), threads, rounds)
        work = tokens * heads
        best_peer = {way: min((median(r) for r in rows if r["peer"] and r["way"] == way), default=None) for way in WAYS}
        for row in rows:
            row |= {"op": name, "tokens": tokens, "heads": heads, "width": width, "threads": threads}
            say(line(row, work, width, best_peer[row["way"]]))
        found += rows
        if growth:
            found += grown(op, tokens, heads, width, threads, rounds)
    if target:
        try:
            Path(target).write_text(json.dumps(found) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{target}: cannot be written ({error.strerror}).") from error


WAYS = ("forward", "backward")


def say(text: str) -> None:
    click.echo(text)


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


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        clock = time.perf_counter()
        call()
        return time.perf_counter() - clock

    return seconds


def ceiling(kind: Any, threads: int, n: int = 500_000) -> float:
    """Operations a second of independent fused multiply-adds on so many threads."""
    x = kind(0.5)
    clock = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: machine.fused(n, x), range(threads)))
    lanes = BYTES // np.dtype(kind).itemsize
    return float(threads * n * machine.CHAINS * 2 * lanes / (time.perf_counter() - clock))


def bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that one core reads from memory."""
    x = np.ones(megabytes << 17)
    clock = time.perf_counter()
    machine.read(x, BYTES // 8)
    return float(x.nbytes / (time.perf_counter() - clock))


def ours(op: Op, x: dict[str, Any], threads: int) -> Iterable[tuple[str, str, Callable[[], float]]]:
    """(name, way, timed call) of every precision and way the op has."""
    for precision in ("float64", "float32", "certified"):
        call = timed(partial(refengine.solve, op.name, **x, precision=precision, threads=threads))
        if possible(call):
            yield f"refengine {precision}", "forward", call
    o = refengine.solve(op.name, **x, threads=threads).o
    call = timed(partial(refengine.grad, op.name, **x, do=np.ones_like(o), threads=threads))
    if possible(call):
        yield "refengine float64", "backward", call


def possible(call: Callable[[], float]) -> bool:
    """Whether the op has it; what must be compiled is compiled."""
    try:
        call()
    except InputError:
        return False
    return True


def runs(name: str, call: Callable[[], float]) -> bool:
    """Whether a peer works here; if not, why not."""
    try:
        call()
    except Exception as error:  # other people's code raises what it likes
        say(f"  {name} is installed but does not run here ({(str(error) or type(error).__name__).splitlines()[0]})")
        return False
    return True


def measure(op: Op, x: dict[str, Any], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Every contender, round by round, and the machine's ceilings among them."""
    everyone = [(n, w, c, False) for n, w, c in ours(op, x, threads)]
    everyone += [(n, w, c, True) for n, w, c in peers.of(op.name, x, threads) if runs(n, c)]
    rows: list[dict[str, Any]] = [
        {"name": n, "way": w, "peer": peer, "seconds": [], "ceiling": []} for n, w, _, peer in everyone
    ]
    for _, _, call, _ in everyone:
        call()
    ceiling(np.float64, threads), ceiling(np.float32, threads)
    streams = []
    for _ in range(rounds):
        streams.append(bandwidth())
        for row, (name, _, call, _) in zip(rows, everyone, strict=True):
            kind = np.float32 if name.endswith("float32") else np.float64
            row["ceiling"].append(ceiling(kind, threads))
            row["seconds"].append(call())
    top = max(c for row in rows if row["name"] == "refengine float64" for c in row["ceiling"])
    say(
        f"  this machine: {top / 1e9:.0f} GF/s of float64 FMA on {threads} threads, "
        f"{statistics.median(streams) / 1e9:.0f} GB/s read by one"
    )
    return rows


def median(row: dict[str, Any]) -> float:
    return float(statistics.median(row["seconds"]))


def line(row: dict[str, Any], work: int, width: int, best_peer: float | None) -> str:
    """One contender in words."""
    took, scale = row["seconds"], 1e6 / work
    spread = f"({min(took) * scale:.3f} .. {max(took) * scale:.3f})"
    text = f"  {row['way']:8} {row['name']:38} {median(row) * scale:8.3f} {spread}"
    delta = len(ops.get(row["op"]).states) == 1
    if delta and not row["peer"] and row["way"] == "forward" and row["name"] != "refengine certified":
        share = statistics.median(6 * width * width * work / t / c for t, c in zip(took, row["ceiling"], strict=True))
        text += f"  {100 * share:.0f} % of the FMA peak"
    if not row["peer"] and best_peer is not None:
        text += f"  {best_peer / median(row):.1f} times the best peer (float32)"
    return text


def grown(op: Op, tokens: int, heads: int, width: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """How the time of a token grows with T, K and threads: interleaved rounds of float64."""
    asked = [("T", T, T, width, threads) for T in LENGTHS] + [("K", K, tokens, K, threads) for K in WIDTHS]
    asked += [("threads", n, tokens, width, n) for n in sorted({1, available_cores()})]
    rows: list[dict[str, Any]] = []
    for axis, value, T, K, n in asked:
        x = inputs(op, T, heads if axis != "T" else 1, K)
        call = timed(partial(refengine.solve, op.name, **x, threads=n))
        call()
        rows.append(
            {"op": op.name, "axis": axis, "value": value, "work": T * x["q"].shape[2], "seconds": [], "call": call}
        )
    for _ in range(rounds):
        for row in rows:
            row["seconds"].append(row["call"]())
    for row in rows:
        del row["call"]
        say(f"  {row['axis']:7} = {row['value']:<6} {median(row) / row['work'] * 1e6:8.3f}")
    return rows
