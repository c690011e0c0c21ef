"""`refengine bench`: how fast it is here, as ratios in one run."""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path

import click

import refengine
from refengine import ops
from refengine.engine.plan import available_cores
from refengine.errors import InputError
from refengine.spec import Op

from .ceilings import bandwidth, seconds
from .contest import WAYS, Row, best, inputs, measure, median, micros, share
from .doctor import processor

LENGTHS, WIDTHS = (1024, 4096, 16384, 65536, 262144), (32, 64, 128, 256)
# name: (op, tokens or those asked for, ways)
SHOWN: dict[str, tuple[str, int | None, tuple[str, ...]]] = {
    "Gated DeltaNet": ("gated_delta_rule", None, WAYS),
    "MesaNet": ("mesa_net", 512, ("forward",)),
}
WHOSE = ("torch", "ggml")
COLUMNS = ("us a token and head", "of the FMA peak", "our forward's time", "as fast as torch", "as fast as ggml")


@click.command("bench")
@click.option("--op", "names", metavar="NAME", multiple=True, help="Which ops; gated_delta_rule if not given.")
@click.option("--tokens", metavar="T", type=click.IntRange(min=1), default=4096, show_default=True)
@click.option("--heads", metavar="H", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--width", metavar="K", type=click.IntRange(min=1), default=128, show_default=True, help="K and V.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="For ours and theirs; all cores if not given.")
@click.option("--rounds", metavar="N", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--growth", is_flag=True, help="Also how the time grows with T, K and threads.")
@click.option("--markdown", is_flag=True, help="Print the table of the README instead: two ops, one core and all.")
@click.option("--json", "target", metavar="FILE", help="Also every time of every round, as JSON.")
def command(
    names: tuple[str, ...],
    tokens: int,
    heads: int,
    width: int,
    threads: int | None,
    rounds: int,
    growth: bool,
    markdown: bool,
    target: str | None,
) -> None:
    """How fast this is, here: against the machine's own ceilings and against the peers that are installed.

    All are called in turn, round by round, so that ratios hold where times do not. Printed are medians, the fastest
    and slowest round in brackets; the work of a token and head of the delta core is 6 K V operations, what else is done
    being overhead. "backward" is what comes after a forward, of ours without the sweep that makes the forward's own
    numbers again; "both" is a forward and a backward, of ours one call of `refengine.grad`.

    \b
    Example:
      refengine bench
      refengine bench --op mesa_net --tokens 512 --growth
    """
    if markdown:
        if names or threads or growth:
            raise InputError("--markdown chooses ops and threads itself; leave --op, --threads and --growth out.")
        found = table(tokens, heads, width, rounds)
    else:
        found = []
        threads = threads or available_cores()
        for name in names or ("gated_delta_rule",):
            op = ops.get(name)
            say(f"{name}: T={tokens}, {heads} heads, K=V={width}, {threads} threads; us a token and head")
            rows = measure(op, tokens, heads, width, threads, rounds)
            say(machine(rows, rounds))
            for row in rows:
                say(line(row, rows))
            found += rows
            if growth:
                found += grown(op, tokens, heads, width, threads, rounds)
    if target:
        try:
            Path(target).write_text(json.dumps(found) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{target}: cannot be written ({error.strerror}).") from error


def say(text: str) -> None:
    click.echo(text)


def forward_of(row: Row) -> str:
    """The precision of the forward that one of ours is set against: its own, or float64."""
    return "float64" if row["precision"] == "certified" else str(row["precision"])


def against_forward(row: Row, rows: list[Row]) -> str:
    """How many times our own forward's time."""
    for other in rows:
        if not other["peer"] and other["way"] == "forward" and other["precision"] == forward_of(row):
            return "" if other is row else f"{median(row) / median(other):.2f}"
    return ""


def of_the_peak(row: Row) -> str:
    """The share of the FMA peak in words; one above the whole is no share."""
    found = share(row)
    if found is None:
        return ""
    return f"{100 * found:.0f} %" + " (the ceiling was disturbed)" * (found > 1)


def times(slow: Row, fast: Row) -> str:
    """How many times as fast."""
    found = median(slow) / median(fast)
    return f"{found:.{1 if found >= 1 else 2}f}"


def line(row: Row, rows: list[Row]) -> str:
    """One contender in words, ours beside the others of the same run."""
    scale = micros(row) / median(row)
    spread = f"({min(row['seconds']) * scale:.3f} .. {max(row['seconds']) * scale:.3f})"
    text = f"  {row['way']:8} {row['name']:38} {micros(row):8.3f} {spread}"
    if row["peer"]:
        return text
    peak, forward = of_the_peak(row), against_forward(row, rows)
    said = [f"{peak} of the FMA peak"] * bool(peak)
    said += [f"{forward} times our {forward_of(row)} forward"] * bool(forward)
    for whose in WHOSE:
        if (peer := best(rows, row["way"], whose)) is not None:
            said.append(f"{times(peer, row)} times as fast as {peer['name']} (float32)")
    return f"{text}  {'; '.join(said)}".rstrip()


def machine(rows: list[Row], rounds: int) -> str:
    """The ceilings in words."""
    top = max(c for row in rows if row["precision"] == "float64" for c in row["ceiling"])
    read = statistics.median(bandwidth() for _ in range(rounds))
    return (
        f"  this machine: {top / 1e9:.0f} GF/s of float64 FMA on {rows[0]['threads']} threads, "
        f"{read / 1e9:.0f} GB/s read by one"
    )


def against(row: Row, rows: list[Row]) -> list[str]:
    """Of one of ours, what stands in COLUMNS."""
    cells = [f"{micros(row):.2f}", of_the_peak(row), against_forward(row, rows)]
    fastest = [best(rows, row["way"], whose) for whose in WHOSE]
    return cells + ["" if peer is None else times(peer, row) for peer in fastest]


def table(tokens: int, heads: int, width: int, rounds: int) -> list[Row]:
    """Print the README's table, and give what is in it."""
    cores = sorted({1, available_cores()})
    body: list[tuple[str, ...]] = []
    found: list[Row] = []
    beside: dict[str, None] = {}
    for name, (op, fixed, ways) in SHOWN.items():
        runs = [measure(ops.get(op), fixed or tokens, heads, width, n, rounds, ways) for n in cores]
        shown = [[row for row in rows if not row["peer"]] for rows in runs]
        for same in zip(*shown, strict=True):
            each = [against(row, rows) for row, rows in zip(same, runs, strict=True)]
            cells = (" / ".join(x) if any(x) else "" for x in zip(*each, strict=True))
            body.append((f"{name}, {same[0]['way']}, {same[0]['precision']}", *cells))
        fastest = [best(rows, way, whose) for rows in runs for way in ways for whose in WHOSE]
        beside |= {peer["name"]: None for peer in fastest if peer is not None}
        found += [row for rows in runs for row in rows]
    for line_ in (("", *COLUMNS), ("---",) * (1 + len(COLUMNS)), *body):
        say("| " + " | ".join(line_) + " |")
    on = " / ".join(f"{n} core{'s' * (n > 1)}" for n in cores)
    sizes = ", ".join(f"T = {fixed or tokens}" + f" ({name})" * bool(fixed) for name, (_, fixed, _) in SHOWN.items())
    say(f"\n{processor()}, {on}; {sizes}; {heads} heads, K = V = {width}.")
    say(f"The others, all in float32: {', '.join(beside) or 'none installed'}.")
    return found


def grown(op: Op, tokens: int, heads: int, width: int, threads: int, rounds: int) -> list[Row]:
    """How the time of a token grows with T, K and threads: interleaved rounds of float64."""
    asked = [("T", T, T, 1, width, threads) for T in LENGTHS] + [("K", K, tokens, heads, K, threads) for K in WIDTHS]
    asked += [("threads", n, tokens, heads, width, n) for n in sorted({1, available_cores()})]
    calls: list[partial[refengine.Solution]] = []
    rows: list[Row] = []
    for axis, value, T, H, K, n in asked:
        calls.append(partial(refengine.solve, op.name, **inputs(op, T, H, K), threads=n))
        rows.append({"op": op.name, "axis": axis, "value": value, "tokens": T, "heads": H, "seconds": []})
        calls[-1]()
    for _ in range(rounds):
        for row, call in zip(rows, calls, strict=True):
            row["seconds"].append(seconds(call))
    for row in rows:
        say(f"  {row['axis']:7} = {row['value']:<6} {micros(row):8.3f}")
    of_t = [micros(row) for row in rows if row["axis"] == "T"]
    say(f"  over T the slowest token takes {max(of_t) / min(of_t):.2f} times the fastest")
    return rows
