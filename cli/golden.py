"""`refengine golden`: certified cases as files, made, checked, listed and handed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refengine.data import goldens
from refengine.errors import InputError
from refengine.golden import cases, files

from .bar import Bar

CODES = {"corrupt": 4, "stale": 4, "numbers": 1, "short": 5}  # the first that applies, in this order


@click.group("golden")
def command() -> None:
    """Golden cases: difficult inputs with their certified answers, readable in any language.

    \b
    Example:
      refengine golden list core
      refengine golden make core -o goldens --jobs 2
      refengine golden check goldens
    """


@command.command("list")
@click.argument("suite", default="core")
@click.option("--ops", metavar="NAME,...", help="Only these ops.")
@click.option("--tier", "tiers", metavar="TIER", multiple=True, help="Only this tier: E, 1, 2, 3 or real; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_cases(suite: str, ops: str | None, tiers: tuple[str, ...], as_json: bool) -> None:
    """The cases of a suite (core or full): nothing is computed."""
    found = cases.suite(suite, split(ops), tiers)
    folder = goldens(suite)
    shipped = {"folder": str(folder)} if folder.is_dir() else {}
    if as_json:
        click.echo(json.dumps({"suite": suite, **shipped, "cases": [case.id for case in found]}))
        return
    for case in found:
        click.echo(case.id)
    click.echo(f"{len(found)} cases{''.join(f', shipped in {x}' for x in shipped.values())}", err=True)


@command.command("make")
@click.argument("suite", default="core")
@click.option("-o", "target", metavar="DIR", required=True, help="Where: a new or empty folder, or one to go on with.")
@click.option("--ops", metavar="NAME,...", help="Only these ops.")
@click.option("--tier", "tiers", metavar="TIER", multiple=True, help="Only this tier: E, 1, 2, 3 or real; repeatable.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), default=1, help="Processes; no bit depends on it.")
@click.option("--low", is_flag=True, help="Also write the low parts (o.lo), which make about 100 bits with o.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def make(suite: str, target: str, ops: str | None, tiers: tuple[str, ...], jobs: int, low: bool, as_json: bool) -> None:
    """Make a suite, each case by two or three independent roads that must agree.

    A run that was interrupted goes on where it was: a finished case is never made twice, and none is ever half-written.
    """
    with Bar(f"golden {suite}") as bar:
        said = files.make(suite, Path(target), split(ops), tiers, jobs, low, bar)
    numbers = sum(case["elements"] for case in said["cases"])
    proved = said["correctly_rounded"]
    if as_json:
        found = {"output": target, "cases": said["min_cases"], "elements": numbers, "correctly_rounded": proved}
        click.echo(json.dumps(found))
    else:
        click.echo(f"{target}: {said['min_cases']} cases, {numbers} numbers")
        for tier, by in sorted(proved.items()):
            share = f"correctly rounded: {by['running_bound']} proved by the running bound, {by['balls']} by balls"
            click.echo(f"tier {tier}: {share}, {by['unsettled']} by neither")


@command.command("check")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--quick", is_flag=True, help="Checksums, schema and definitions only; make nothing again.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), default=1, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(folder: str | None, quick: bool, jobs: int, as_json: bool) -> None:
    """Whether a suite (the shipped core suite without DIR) is whole, untouched, of this version's definitions, and made
    again has the same bits. That last needs python-flint; without it outputs are made again within their bounds, and
    what is left out is said.

    Exit 0: all of that. 4: corrupt or stale. 1: made again it has other numbers. 5: fewer cases than it promises.
    2: there is no suite at that path.
    """
    with Bar("golden check") as bar:
        findings, said = files.check(Path(folder) if folder else goldens("core"), not quick, jobs, bar)
    kinds = {finding.kind for finding in findings}
    code = next((code for kind, code in CODES.items() if kind in kinds), 0)
    verdict = {0: "PASS", 1: "FAIL", 4: "CORRUPT OR STALE", 5: "TOO LITTLE"}[code]
    missing = None if quick else files.left_out()
    if missing:
        click.echo(missing, err=True)
    if as_json:
        found: dict[str, Any] = {"verdict": verdict, "cases": len(said.get("cases", [])), "left_out": missing}
        click.echo(json.dumps(found | {"findings": [vars(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.kind}: {finding.text}", err=True)
        click.echo(f"{verdict}: {len(said.get('cases', []))} cases")
    raise SystemExit(code)


@command.command("export")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("-o", "target", metavar="OUT", required=True, help="The folder to write to.")
@click.option("--npy", "form", flag_value="npy", help="One .npy a tensor; bfloat16 as its bits, in NAME.bf16.npy.")
@click.option("--json-hex", "form", flag_value="json-hex", help="JSON with every number in hexadecimal, exactly.")
@click.option("--onnx", "form", flag_value="onnx", help="model.onnx and test data, of what LinearAttention expresses.")
@click.option("--ops", metavar="NAME,...", help="Only these ops.")
@click.option("--tier", "tiers", metavar="TIER", multiple=True, help="Only this tier; repeatable.")
def export_cases(folder: str | None, target: str, form: str | None, ops: str | None, tiers: tuple[str, ...]) -> None:
    """A suite (the shipped core suite without DIR) in another form."""
    from refengine.golden.export import export

    if form is None:
        raise InputError("Give one of --npy, --json-hex and --onnx.")
    count = export(Path(folder) if folder else goldens("core"), Path(target), form, split(ops), tiers)
    click.echo(f"{target}: {count} cases as {form}")


@command.command("sigma")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("-o", "target", metavar="OUT", required=True, help="The folder to write to.")
@click.option("--grade", metavar="GRADE", required=True, help="The precision that a candidate declares: f32, bf16, ...")
@click.option("--ops", metavar="NAME,...", help="Only these ops.")
@click.option("--tier", "tiers", metavar="TIER", multiple=True, help="Only this tier; repeatable.")
@click.option("--grad", is_flag=True, help="Of gradients too, where a case has them.")
def sigmas(folder: str | None, target: str, grade: str, ops: str | None, tiers: tuple[str, ...], grad: bool) -> None:
    """What an honest kernel of that precision errs on each row of a suite (the shipped core suite without DIR), as
    files: OUT/ID/sigma.GRADE.safetensors. With them a candidate in any language judges itself; `refengine.verify.sigma`
    has the formulas.
    """
    from refengine.verify.sigma import write_all

    with Bar("golden sigma") as bar:
        done, without = write_all(folder or "core", Path(target), grade, split(ops), tiers, grad, bar)
    for reason in without:
        click.echo(f"none: {reason}", err=True)
    click.echo(f"{target}: {done} cases")


@command.command("audit")
@click.option(
    "--numbers", metavar="N", type=click.IntRange(min=1), default=10_000_000, help="How many outputs; ten million."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def audit_bounds(numbers: int, as_json: bool) -> None:
    """Whether the bounds hold: float64 against double-double, and double-double against balls where balls can."""
    from refengine.golden.audit import audit

    with Bar("golden audit") as bar:
        many, few = audit(numbers, bar)
    if as_json:
        click.echo(json.dumps({"float64": vars(many), "double_double": vars(few)}))
    else:
        for what, other, tally in (("float64", "double-double", many), ("double-double", "balls", few)):
            click.echo(
                f"{what} against {other}: {tally.numbers} numbers, {tally.outside} outside their bounds, at most "
                f"{tally.used:.1e} of a bound used"
            )
        click.echo(f"proved correctly rounded by the bound alone: {many.proved} of {many.numbers}; not:")
        for case, count in many.unproved.items():
            click.echo(f"  {count:6} of {case}")
    raise SystemExit(1 if many.outside or few.outside else 0)


def split(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip()) if words else ()
