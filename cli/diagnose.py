"""`refengine diagnose`: where a candidate goes wrong, and which known mistake it is."""

from __future__ import annotations

import json
from typing import Any

import click

from refengine.diagnose import words
from refengine.diagnose.diagnosis import Case

from . import candidate


@click.command("diagnose")
@candidate.options
@click.option("--schema", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, _, on: _schema(c, on),
              help="Print the JSON's schema.")  # fmt: skip
def command(source: str, grade: str, outputs: str | None, json_file: str | None, **given: Any) -> None:
    """Where a kernel goes wrong, and which known mistake reproduces what it gives.

    IN, GOT, --call, --exec and the grades are those of `refengine verify`. A mistake is named only if it leaves no more
    than honest rounding would, and every other leaves ten times as much; else the place is all that is said.

    \b
    Example:
      refengine diagnose layer.safetensors mine.safetensors --grade bf16
      refengine diagnose layer.safetensors --exec './impl {in} {out}' --grade f32:recurrent
    """
    asked = candidate.asked(source, outputs, given)
    candidate.check_reports(source, {"--json": json_file})
    case = Case(asked.op, asked.inputs, grade)
    chosen = candidate.candidate(given)
    got = chosen if isinstance(chosen, dict) else case.outputs(chosen, asked.names)
    found = case.diagnosis(got, asked.names)
    click.echo(found.to_json() if json_file == "-" else found.text)
    candidate.write(json_file, found.to_json() + "\n")


def _schema(ctx: click.Context, on: bool) -> None:
    if on:
        click.echo(json.dumps(words.SCHEMA, indent=2))
        ctx.exit(0)
