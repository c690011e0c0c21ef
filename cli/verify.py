"""`refengine verify`: a file's problem and a candidate's outputs, or the candidate itself; a verdict and an exit
code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refengine.errors import InputError
from refengine.verify import report
from refengine.verify import suite as suites
from refengine.verify.verdict import Judge, problem_of

from . import candidate
from .bar import Bar
from .golden import split


@click.command("verify")
@candidate.options_of(click.argument("source", metavar="[IN]", required=False))
@click.option("--suite", metavar="DIR", help="Judge by a suite of goldens, a folder or core; GOT is a folder then.")
@click.option("--ops", "only_ops", metavar="NAME,...", help="Of the suite only these ops.")
@click.option("--tier", "tiers", metavar="TIER", multiple=True, help="Of the suite only this tier; repeatable.")
@click.option("--skip", "skipped", metavar="ID=REASON", multiple=True, help="Leave out cases; * stands for anything.")
@click.option("--grad/--no-grad", default=None, help="Gradients too; if not given, where IN holds do or dht.")
@click.option("--laws", is_flag=True, help="Also cut, pack, permute and repeat a candidate that can be run.")
@click.option("--strict", is_flag=True, help="Tighter limits for single elements, and exit 3 for a warning.")
@click.option("--junit", "junit_file", metavar="FILE", help="Write it as JUnit's XML.")
@candidate.schema_option(report.SCHEMA)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str | None,
    suite: str | None,
    only_ops: str | None,
    tiers: tuple[str, ...],
    skipped: tuple[str, ...],
    grade: str,
    outputs: str | None,
    grad: bool | None,
    laws: bool,
    strict: bool,
    json_file: str | None,
    junit_file: str | None,
    **given: Any,
) -> None:
    """Whether the error of a kernel is what honest rounding explains.

    IN is a problem as `refengine solve` reads it. GOT is a file of the candidate's outputs (o, final_state) in the
    dtypes that its grade declares; instead of GOT, --call or --exec run the candidate.

    Where IN holds do [B, T, HV, V] or dht [N, HV, K, V], the gradients dq, dk, ..., dinitial_state are outputs too;
    --call's function may take do and dht and give them, or be a torch function, which is differentiated.

    A grade is f64, f32, tf32, f16, bf16, f16-state16, bf16-state16, fp8-e4m3 or fp8-e5m2, with parts after a colon:
    bf16:chunk=32, f32:recurrent, bf16:state=bf16,gate=bf16,ftz.

    With --suite the problems are the cases of goldens, the exact ones first, and GOT is a folder that holds
    ID.safetensors for each; a case that is left out by --skip needs a reason.

    Exit codes: 0 pass, 1 fail, 2 what a person or the candidate got wrong, 3 a warning under --strict, 4 goldens that
    are corrupt or stale, 5 too little was compared, 6 inconclusive: the truth is not known well enough for this grade.

    \b
    Example:
      refengine verify layer.safetensors mine.safetensors --grade bf16
      refengine verify layer.safetensors --exec './impl {in} {out}' --grade f32:recurrent --laws
      refengine verify --suite core --ops gated_delta_rule --call mykernel:run --skip '*/front/*=it has no convolution'
    """
    targets = {"--json": json_file, "--junit": junit_file}
    if suite is not None:
        for name, value in (("--outputs", outputs), ("--op", given["op"]), ("--set", given["assignments"])):
            if value:
                raise InputError(f"{name} has no meaning with --suite, whose cases say it themselves.")
        candidate.check_reports("", targets)
        with Bar("verify") as bar:
            chosen = candidate.suite_candidate(source, given)
            asked_for = (split(only_ops), tiers, reasons(skipped))
            results = suites.run(
                suite, chosen, grade, *asked_for, laws=laws, strict=strict, grad=bool(grad), progress=bar
            )
        whole = json.dumps(results.as_data(), allow_nan=False, sort_keys=True)
        click.echo(whole if json_file == "-" else "\n".join(results.lines()))
        candidate.write(json_file, whole + "\n")
        candidate.write(junit_file, report.junit([(row.name, row.verdict) for row in results.rows if row.verdict]))
        ctx.exit(results.exit_code(strict))
    if source is None:
        raise InputError("IN is missing: a problem's file, or --suite DIR.")
    if only_ops or tiers or skipped:
        raise InputError("--ops, --tier and --skip choose among the cases of --suite, which is not given.")
    asked = candidate.asked(source, outputs, given, grad)
    candidate.check_reports(source, targets)
    judge = Judge(problem_of(asked.op, asked.inputs), grade, strict, cotangents=asked.cotangents)
    alone = candidate.candidate(given)
    if not isinstance(alone, dict):
        found = judge.live(alone, asked.op, asked.inputs | asked.cotangents, asked.names, laws)
    elif laws:
        raise InputError("--laws needs a candidate that can be run, by --call or --exec.")
    else:
        found = judge.verdict(alone, asked.names)
    candidate.tell(found, json_file)
    candidate.write(junit_file, report.junit([(Path(source).name, found)]))
    ctx.exit(found.exit_code(strict))


def reasons(words: tuple[str, ...]) -> dict[str, str]:
    """Why cases are left out, by patterns of their ids."""
    found = {}
    for word in words:
        pattern, equals, why = word.partition("=")
        if not (equals and pattern and why.strip()):
            raise InputError(f"--skip takes ID=REASON; {word!r} has no reason.")
        found[pattern] = why.strip()
    return found
