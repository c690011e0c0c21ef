"""`refengine verify`: a file's problem and a candidate's outputs, or the candidate itself; a verdict and an exit
code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refengine.errors import FileError, InputError
from refengine.io import tensorfile
from refengine.verify import report
from refengine.verify.candidates import LIMIT_GIB, LIMIT_S, Called, Live, Program
from refengine.verify.verdict import Judge, Verdict, problem_of

from . import question
from .solve import FLAGS


@click.command("verify")
@click.argument("source", metavar="IN")
@click.argument("got", metavar="[GOT]", required=False)
@click.option("--call", metavar="MODULE:FUNCTION", help="Judge a Python function, by our argument names.")
@click.option("--exec", "program", metavar="COMMAND", help="Judge a program: './impl {in} {out}'.")
@click.option("--grade", metavar="G", default="bf16", show_default=True, help="What precision it declares.")
@click.option("--outputs", metavar="NAME,NAME", help="The outputs it must give; all if not given.")
@click.option("--laws", is_flag=True, help="Also cut, pack, permute and repeat a candidate that can be run.")
@click.option("--strict", is_flag=True, help="Tighter limits for single elements, and exit 3 for a warning.")
@click.option("--framework", metavar="numpy|torch|auto", default="auto", help="What --call's function takes.")
@click.option("--device", metavar="cpu|cuda", default="cpu", help="Where its torch tensors lie.")
@click.option("--time-limit", metavar="S", type=float, default=LIMIT_S, show_default=True, help="Of --exec, a run.")
@click.option("--memory-limit", metavar="GIB", type=float, default=LIMIT_GIB, show_default=True, help="Of --exec.")
@click.option("--op", metavar="NAME", help="Which op (`refengine ops`).")
@click.option("--l2norm/--no-l2norm", "use_qk_l2norm", default=None, help="Normalise q and k (use_qk_l2norm).")
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Any setting, as in a file's metadata.")
@click.option("--json", "json_file", metavar="FILE", help="Write the verdict as JSON; - for stdout, alone.")
@click.option("--junit", "junit_file", metavar="FILE", help="Write it as JUnit's XML.")
@click.option("--schema", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, _, on: _schema(c, on),
              help="Print the JSON's schema.")  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    got: str | None,
    call: str | None,
    program: str | None,
    grade: str,
    outputs: str | None,
    laws: bool,
    strict: bool,
    framework: str,
    device: str,
    time_limit: float,
    memory_limit: float,
    assignments: tuple[str, ...],
    json_file: str | None,
    junit_file: str | None,
    **settings: Any,
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
    said = question.from_assignments(assignments)
    for name, value in settings.items():
        if value is not None:
            said[name] = value if name in FLAGS else question.parsed(name, value)
    asked = question.ask(*tensorfile.read(Path(source)), said)
    inputs = {name: x for name, x in asked.arguments.items() if x is not None}
    names = None if outputs is None else [name.strip() for name in outputs.split(",")]
    judge = Judge(problem_of(asked.op.name, inputs), grade, strict)
    chosen = [name for name, x in (("GOT", got), ("--call", call), ("--exec", program)) if x]
    if len(chosen) != 1:
        raise InputError(f"One of GOT, --call and --exec is needed; {' and '.join(chosen) or 'none'} is given.")
    if got:
        if laws:
            raise InputError("--laws needs a candidate that can be run, by --call or --exec.")
        found = judge.verdict(tensorfile.read(Path(got))[0], names)
    else:
        live: Live = Called.named(call, framework, device) if call else Program(str(program), time_limit, memory_limit)
        found = judge.live(live, asked.op.name, inputs, names, laws)
    publish(found, Path(source).name, json_file, junit_file)
    ctx.exit(found.exit_code(strict))


def publish(found: Verdict, name: str, json_file: str | None, junit_file: str | None) -> None:
    """The verdict where it was asked for; in words on stdout unless JSON goes there."""
    if json_file == "-":
        click.echo(found.to_json())
    else:
        click.echo(found.text)
    for target, text in ((json_file, found.to_json() + "\n"), (junit_file, report.junit([(name, found)]))):
        if target and target != "-":
            try:
                Path(target).write_text(text)
            except OSError as error:
                raise FileError(f"{target}: cannot be written ({error.strerror}).") from error


def _schema(ctx: click.Context, on: bool) -> None:
    if on:
        import json

        click.echo(json.dumps(report.SCHEMA, indent=2))
        ctx.exit(0)
