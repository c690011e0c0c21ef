"""`refengine diagnose`: where a candidate goes wrong, and which known mistake it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refengine.diagnose import confusion as judged
from refengine.diagnose import words
from refengine.diagnose.diagnosis import NOTHING_WRONG, UNUSABLE, Case, Diagnosis
from refengine.diagnose.probes import contenders, settling, stilled
from refengine.diagnose.shrink import shrink
from refengine.errors import InputError
from refengine.io import tensorfile
from refengine.verify.candidates import as_file
from refengine.verify.statistics import FAIL

from . import candidate

WRONG = 1  # the exit code of an outcome that is not here
EXIT = {NOTHING_WRONG: 0, UNUSABLE: 2}
HELD_OUT = 92  # the seed of the inputs that mistakes are made on: nothing was chosen by looking at them


@click.command("diagnose")
@candidate.options_of(click.argument("source", metavar="[IN]", required=False))
@click.option("--probe", metavar="FILE", help="Write an input that would tell apart what this one does not.")
@click.option(
    "--shrink", "folder", metavar="DIR", help="Write the smallest problem that it still fails; --call, --exec."
)
@click.option("--confusion", is_flag=True, help="Instead: every mistake of the zoo, and what it is called (minutes).")
@candidate.schema_option(words.SCHEMA)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str | None,
    grade: str,
    outputs: str | None,
    json_file: str | None,
    probe: str | None,
    folder: str | None,
    confusion: bool,
    **given: Any,
) -> None:
    """Where a kernel goes wrong, and which known mistake reproduces what it gives.

    IN, GOT, --call, --exec and the grades are those of `refengine verify`. A mistake is named only if it leaves no more
    than honest rounding would, and every other leaves ten times as much; else the place is all that is said.

    Exit codes: 0 nothing is wrong, 1 something is, named or not, 2 the outputs cannot be compared, or what a person got
    wrong.

    \b
    Example:
      refengine diagnose layer.safetensors mine.safetensors --grade bf16
      refengine diagnose layer.safetensors --exec './impl {in} {out}' --grade f32:recurrent --shrink bug
      refengine diagnose --confusion --grade f32
    """
    if confusion:
        op = given["op"] or "gated_delta_rule"
        table = judged.table(op, grade, HELD_OUT)
        whole = json.dumps(table.as_data(), sort_keys=True)
        click.echo(whole if json_file == "-" else "\n".join(table.lines()))
        candidate.write(json_file, whole + "\n")
        return
    if source is None:
        raise InputError("IN is missing: a problem's file.")
    asked = candidate.asked(source, outputs, given)
    candidate.check_reports(source, {"--json": json_file, "--probe": probe})
    case = Case(asked.op, asked.inputs | asked.cotangents, grade)
    chosen = candidate.candidate(given)
    if folder and isinstance(chosen, dict):
        raise InputError("--shrink needs a candidate that can be run, by --call or --exec.")
    found = case.diagnosis(chosen, asked.names) if isinstance(chosen, dict) else case.live(chosen, asked.names)
    candidate.tell(found, json_file)
    if folder and not isinstance(chosen, dict) and found.verdict.verdict == FAIL:
        small = shrink(asked.op, asked.inputs, chosen, grade, outputs=asked.names)
        command = small.write(Path(folder))
        click.echo(f"{folder}: {small.text}. To see it again: {command}", err=json_file == "-")
    if probe:
        if found.outcome == NOTHING_WRONG:
            inputs, said = (
                stilled(case.judge.problem, case.inputs),
                "coarser gates or a coarser state than declared show",
            )
        else:
            _, inputs, times = settling(case.judge.problem, case.inputs, case.judge.policy, found.ranking)
            said = f"they differ {times:.3g} times"
        if not inputs:
            raise InputError(f"{probe} is not written: {untold(found)}.")
        tensorfile.write(Path(probe), *as_file(case.op, inputs))
        click.echo(f"{probe}: on this input {said}.", err=True)
    ctx.exit(EXIT.get(found.outcome, WRONG))


def untold(found: Diagnosis) -> str:
    """Why there is no input to write."""
    if found.outcome == NOTHING_WRONG:
        return "nothing is wrong, and with raw gates, logits or carried tokens no input without keys can be made"
    if len(contenders(found.ranking)) < 2:
        return "one mistake is named, and nothing comes near it" if found.best else "no two mistakes come near"
    return "no input is known on which those that come near differ more than on this one"
