"""What `refengine verify` and `refengine diagnose` are given: a file's problem, and a candidate's outputs or the
candidate itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from refengine.errors import FileError, InputError
from refengine.io import tensorfile
from refengine.verify.candidates import LIMIT_GIB, LIMIT_S, Called, Live, Program

from . import question
from .answer import check_target
from .solve import FLAGS

OPTIONS = (
    click.argument("got", metavar="[GOT]", required=False),
    click.option("--call", metavar="MODULE:FUNCTION", help="A Python function, by our argument names."),
    click.option("--exec", "program", metavar="COMMAND", help="A program: './impl {in} {out}'."),
    click.option("--grade", metavar="G", default="bf16", show_default=True, help="What precision it declares."),
    click.option("--outputs", metavar="NAME,NAME", help="The outputs it must give; all if not given."),
    click.option("--framework", metavar="numpy|torch|auto", default="auto", help="What --call's function takes."),
    click.option("--device", metavar="cpu|cuda", default="cpu", help="Where its torch tensors lie."),
    click.option("--time-limit", metavar="S", type=float, default=LIMIT_S, show_default=True, help="Of --exec, a run."),
    click.option("--memory-limit", metavar="GIB", type=float, default=LIMIT_GIB, show_default=True, help="Of --exec."),
    click.option("--op", metavar="NAME", help="Which op (`refengine ops`)."),
    click.option("--l2norm/--no-l2norm", "use_qk_l2norm", default=None, help="Normalise q and k (use_qk_l2norm)."),
    click.option(
        "--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Any setting, as in a file's metadata."
    ),
    click.option("--json", "json_file", metavar="FILE", help="Write it as JSON; - for stdout, alone."),
)


def options_of(source: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Everything that says which problem and which candidate, after an argument IN of the command's own."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((source, *OPTIONS)):
            command = option(command)
        return command

    return add


@dataclass(frozen=True)
class Asked:
    """A file's problem, as `refengine.solve(op, **inputs)` has it, and which outputs are wanted of it."""

    op: str
    inputs: dict[str, Any]
    names: list[str] | None
    cotangents: dict[str, Any]


def asked(source: str, outputs: str | None, given: Mapping[str, Any], grad: bool | None = None) -> Asked:
    """The problem in a file, with what the command line says in place of what the file says; its do and dht, if there
    are any, unless grad is False."""
    tensors, metadata = tensorfile.read(Path(source))
    said = question.from_assignments(given["assignments"], given["op"] or metadata.get("op"))
    for name in ("op", "use_qk_l2norm"):
        value = given[name]
        if value is not None:
            said[name] = value if name in FLAGS else question.parsed(name, value)
    has = any(name.partition(".")[0] in ("do", "dht") for name in tensors)
    found = question.ask(tensors, metadata, said, has if grad is None else grad or has)
    inputs = {name: x for name, x in found.arguments.items() if x is not None}
    names = None if outputs is None else [name.strip() for name in outputs.split(",")]
    return Asked(found.op.name, inputs, names, {} if grad is False else found.cotangents)


def candidate(given: Mapping[str, Any]) -> dict[str, Any] | Live:
    """The one that is given: outputs in a file, or what can be run."""
    ways = (("GOT", given["got"]), ("--call", given["call"]), ("--exec", given["program"]))
    chosen = [name for name, x in ways if x]
    if len(chosen) != 1:
        raise InputError(f"One of GOT, --call and --exec is needed; {' and '.join(chosen) or 'none'} is given.")
    if given["got"]:
        return dict(tensorfile.read(Path(given["got"]))[0])
    if given["call"]:
        return Called.named(given["call"], given["framework"], given["device"])
    return Program(given["program"], given["time_limit"], given["memory_limit"])


def suite_candidate(folder: str | None, given: Mapping[str, Any]) -> Path | Live:
    """The one that is given for a suite: a folder of outputs, or what can be run."""
    if given["got"]:
        raise InputError(f"With --suite there is no IN: {folder} and {given['got']} are both given.")
    if not folder or given["call"] or given["program"]:
        found = candidate({**given, "got": folder})
        assert not isinstance(found, dict)
        return found
    if not Path(folder).is_dir():
        raise FileError(f"{folder}: is no folder; with --suite, GOT is a folder of ID.safetensors.")
    return Path(folder)


def schema_option(schema: Mapping[str, Any]) -> Callable[..., Any]:
    """--schema: what --json writes, as JSON's own schemas have it."""

    def show(ctx: click.Context, _: click.Parameter, on: bool) -> None:
        if on:
            click.echo(json.dumps(schema, indent=2))
            ctx.exit(0)

    return click.option(
        "--schema", is_flag=True, is_eager=True, expose_value=False, callback=show, help="Print the JSON's schema."
    )


def tell(found: Any, target: str | None) -> None:
    """A verdict or a diagnosis in words, and as JSON where that was asked for."""
    click.echo(found.to_json() if target == "-" else found.text)
    write(target, found.to_json() + "\n")


def check_reports(source: str, targets: Mapping[str, str | None]) -> None:
    """Refuse, before any work is done, reports that could not be written after it; `targets` by their options."""
    for option, target in targets.items():
        if target and target != "-":
            check_target(Path(target), Path(source), option)


def write(target: str | None, text: str) -> None:
    """A report where it was asked for, if it was; - is stdout."""
    if target and target != "-":
        try:
            Path(target).write_text(text)
        except OSError as error:
            raise FileError(f"{target}: cannot be written ({error.strerror}).") from error
