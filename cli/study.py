"""`refengine study`: the founding argument as numbers anyone can rerun."""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import click

from refengine import study
from refengine.errors import FileError, InputError
from refengine.study import Outcome, plots
from refengine.study.claim import FAILS, HOLDS, LIMITED, Claim, Figure, Table
from refengine.study.lab import Lab
from refengine.study.text import Text, load

COLOURS = {HOLDS: "green", LIMITED: "yellow", FAILS: "red"}


@click.command("study")
@click.argument("claims", metavar="[CLAIM ...]", nargs=-1)
@click.option("--text", "path", metavar="FILE", help="UTF-8 text to learn; CPython's own help if not given.")
@click.option("--words", is_flag=True, help="Its tokens are words; characters if not given.")
@click.option(
    "--scale", metavar="N", type=click.IntRange(min=1), default=1, help="So many times the samples and tokens."
)
@click.option("--plot", "folder", metavar="DIR", help="Also draw what was found, as PNG files in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print the tables alone, as Markdown.")
def command(
    claims: tuple[str, ...],
    path: str | None,
    words: bool,
    scale: int,
    folder: str | None,
    as_json: bool,
    markdown: bool,
) -> None:
    """Why linear attention needs a short convolution on K: eleven claims, measured, with theory beside each figure.

    CLAIM is a name or a number (bigram, C6); all of them if none is given. Nothing is trained. A claim holds if every
    figure lies where it must; it holds with a limit if a figure shows where the argument ends.

    \b
    Example:
      refengine study
      refengine study bigram --text book.txt --words
      refengine study --plot plots
    """
    clock = time.perf_counter()
    if as_json and markdown:
        raise InputError("--json and --markdown are both given; print one or the other.")
    wanted = study.chosen(claims)
    target = None if folder is None else place(folder, wanted)
    reads = path is not None or words or any(claim.reads_text for claim in wanted)
    text = load(path, "words" if words else "characters", scale) if reads else None
    found: list[Outcome] = []
    with Progress(wanted) as progress:
        for outcome in study.outcomes(wanted, Lab(text, scale, progress.tick)):
            found.append(outcome)
            progress.done(outcome)
            if target is not None:
                draw(outcome, text, target)
            if markdown:
                click.echo("\n\n".join(in_markdown(table) for table in outcome.findings.tables) + "\n")
            elif not as_json:
                click.echo(page(outcome))
    seconds = time.perf_counter() - clock
    if as_json:
        about = None if text is None else {**about_text(text), "rest": text.rest}
        report = {"text": about, "scale": scale, "seconds": seconds, "claims": [as_data(outcome) for outcome in found]}
        click.echo(json.dumps(report, allow_nan=False))
    elif not markdown:
        click.echo(summary(found, text, seconds))


class Progress:
    """Which claim is at work and how many questions it has asked, on a terminal only."""

    def __init__(self, wanted: list[Claim]) -> None:
        self.waiting = list(wanted)
        self.asked = 0
        total = sum(claim.weight for claim in wanted)
        self.bar: Any = click.progressbar(
            length=round(total), file=sys.stderr, hidden=not sys.stderr.isatty(), item_show_func=lambda _: self.now()
        )

    def now(self) -> str:
        return f"C{self.waiting[0].number} {self.waiting[0].name}, {self.asked} solved" if self.waiting else ""

    def tick(self) -> None:
        self.asked += 1
        self.bar.render_progress()

    def done(self, outcome: Outcome) -> None:
        self.waiting.pop(0)
        self.asked = 0
        self.bar.update(round(outcome.claim.weight))
        if not self.bar.hidden:
            click.echo("\r\033[K", nl=False, err=True)  # what is printed next takes the bar's line

    def __enter__(self) -> Progress:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


def place(folder: str, wanted: list[Claim]) -> Path:
    """Where the plots go; refused before any work is done."""
    plots.available()
    if not any(claim.name in plots.DRAWN for claim in wanted):
        known = ", ".join(plots.DRAWN)
        raise InputError(f"--plot draws nothing of {', '.join(claim.name for claim in wanted)}; it draws {known}.")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            return target
    except OSError as error:
        raise FileError(f"{folder}: is no folder that can be written to ({error.strerror}).") from error


def draw(outcome: Outcome, text: Text | None, target: Path) -> None:
    source = f"{text.source}, {text.unit}" if text is not None else ""
    for name, figure in plots.draw(outcome.claim.name, outcome.findings.data, source).items():
        path = target / f"{name}.png"
        try:
            figure.savefig(path)
        except OSError as error:
            raise FileError(f"{path}: cannot be written ({error.strerror}).") from error
        click.echo(str(path), err=True)


def number(x: float | str | None) -> str:
    if x is None:
        return ""
    return x if isinstance(x, str) else f"{x:.3g}"


def grid(rows: list[list[str]]) -> list[str]:
    """Columns flush right, the first flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def where(figure: Figure) -> str:
    """Where it must lie; of a limit, where it shows."""
    low, high = number(figure.low), number(figure.high)
    text = f"at most {high}" if low == "-inf" else f"at least {low}" if high == "inf" else f"{low} to {high}"
    return text


def mark(figure: Figure) -> str:
    if figure.limit:
        return "a limit" if figure.within else "no limit seen"
    return "" if figure.within else "OUT"


def page(outcome: Outcome) -> str:
    """One claim for a person."""
    claim, findings = outcome.claim, outcome.findings
    lines = [click.style(f"C{claim.number} {claim.name}", bold=True)]
    lines += textwrap.wrap(claim.sentence, 118, initial_indent="  ", subsequent_indent="  ")
    lines += textwrap.wrap(claim.experiment, 118, initial_indent="  ", subsequent_indent="  ")
    rows = [["", "measured", "theory", "must be", ""]]
    rows += [[f.what, number(f.measured), number(f.theory), where(f), mark(f)] for f in findings.figures]
    lines += ["", *(f"  {line}".rstrip() for line in grid(rows))]
    for table in findings.tables:
        body = [list(table.columns), *([number(cell) for cell in row] for row in table.rows)]
        lines += ["", f"  {table.title}", *(f"  {line}".rstrip() for line in grid(body))]
    lines += ["", f"  {verdict(outcome)} ({outcome.seconds:.1f} s)", ""]
    return "\n".join(lines)


def verdict(outcome: Outcome) -> str:
    said = outcome.findings.verdict
    more = f": {outcome.claim.limit}" if said == LIMITED else ""
    return click.style(said, fg=COLOURS[said], bold=True) + more


def about_text(text: Text) -> dict[str, Any]:
    return {"source": text.source, "unit": text.unit, "tokens": len(text.ids), "kinds": text.size}


def summary(found: list[Outcome], text: Text | None, seconds: float) -> str:
    """All verdicts in a line each."""
    lines = [f"  C{outcome.claim.number:<3} {outcome.claim.name:9} {verdict(outcome)}" for outcome in found]
    if text is not None:
        rest = f", {text.rest:.0%} of them beyond the most frequent {text.size - 1}" if text.rest else ""
        lines.append(f"Text: {text.source}, {len(text.ids)} {text.unit} of {text.size} kinds{rest}.")
    return "\n".join([*lines, f"{len(found)} claim{'s' * (len(found) != 1)} in {seconds:.0f} s."])


def in_markdown(table: Table) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *([number(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_data(outcome: Outcome) -> dict[str, Any]:
    """One claim for a program. An open end of where a figure must lie is null."""
    claim, findings = outcome.claim, outcome.findings
    figures = [{**vars(f), "low": finite(f.low), "high": finite(f.high), "within": f.within} for f in findings.figures]
    return {
        "number": claim.number,
        "name": claim.name,
        "claim": claim.sentence,
        "experiment": claim.experiment,
        "verdict": findings.verdict,
        "limit": claim.limit if findings.verdict == LIMITED else None,
        "seconds": outcome.seconds,
        "figures": figures,
        "tables": [vars(table) for table in findings.tables],
        "data": findings.data,
    }


def finite(x: float) -> float | None:
    return None if abs(x) == float("inf") else x
