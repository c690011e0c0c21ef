"""`refengine verify`: a file's problem and a candidate's outputs, or the candidate itself; a verdict and an exit
code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refengine.errors import InputError
from refengine.verify import report
from refengine.verify.verdict import Judge, problem_of

from . import candidate


@click.command("verify")
@candidate.options
@click.option("--laws", is_flag=True, help="Also cut, pack, permute and repeat a candidate that can be run.")
@click.option("--strict", is_flag=True, help="Tighter limits for single elements, and exit 3 for a warning.")
@click.option("--junit", "junit_file", metavar="FILE", help="Write it as JUnit's XML.")
@click.option("--schema", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, _, on: _schema(c, on),
              help="Print the JSON's schema.")  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    grade: str,
    outputs: str | None,
    laws: bool,
    strict: bool,
    json_file: str | None,
    junit_file: str | None,
    **given: Any,
) -> None:
    """Whether the error of a kernel is what honest rounding explains.

    IN is a problem as `refengine solve` reads it. GOT is a file of the candidate's outputs (o, final_state) in the
    dtypes that its grade declares; instead of GOT, --call or --exec run the candidate.

    A grade is f64, f32, tf32, f16, bf16, f16-state16, bf16-state16, fp8-e4m3 or fp8-e5m2, with parts after a colon:
    bf16:chunk=32, f32:recurrent, bf16:state=bf16,gate=bf16,ftz.

    Exit codes: 0 pass, 1 fail, 2 what a person or the candidate got wrong, 3 a warning under --strict, 5 nothing was
    compared, 6 inconclusive: the truth is not known well enough for this grade.

    \b
    Example:
      refengine verify layer.safetensors mine.safetensors --grade bf16
      refengine verify layer.safetensors --exec './impl {in} {out}' --grade f32:recurrent --laws
    """
    asked = candidate.asked(source, outputs, given)
    candidate.check_reports(source, {"--json": json_file, "--junit": junit_file})
    judge = Judge(problem_of(asked.op, asked.inputs), grade, strict)
    chosen = candidate.candidate(given)
    if not isinstance(chosen, dict):
        found = judge.live(chosen, asked.op, asked.inputs, asked.names, laws)
    elif laws:
        raise InputError("--laws needs a candidate that can be run, by --call or --exec.")
    else:
        found = judge.verdict(chosen, asked.names)
    click.echo(found.to_json() if json_file == "-" else found.text)
    candidate.write(json_file, found.to_json() + "\n")
    candidate.write(junit_file, report.junit([(Path(source).name, found)]))
    ctx.exit(found.exit_code(strict))


def _schema(ctx: click.Context, on: bool) -> None:
    if on:
        import json

        click.echo(json.dumps(report.SCHEMA, indent=2))
        ctx.exit(0)
