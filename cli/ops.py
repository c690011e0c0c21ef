"""`refengine ops`: what can be solved, from the ops' own declarations."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import click

from refengine import ops
from refengine.engine import checks
from refengine.errors import InputError, nearest
from refengine.spec import Op, Tensor

from . import question

HEAD = ("name", "what it is", "model", "loss", "optimiser", "forgetting")


@click.command("ops")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="The op as these options make it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print the table of all ops as Markdown.")
def command(name: str | None, assignments: tuple[str, ...], as_json: bool, markdown: bool) -> None:
    """The ops that can be solved, each as online learning: what is trained, on which loss, how, and how it forgets.

    With NAME all about one: paper, equations, inputs with their axes, conventions, options, and a command line.

    \b
    Example:
      refengine ops
      refengine ops gated_delta_rule
      refengine ops ttt --set model=mlp --set optimiser=heavy_ball
    """
    if assignments and name is None:
        raise InputError("--set is for the options of one op; name it.")
    if name is not None:
        op, chosen = made(ops.get(name), assignments)
        click.echo(json.dumps(about(op, chosen)) if as_json else page(op, chosen))
        return
    every = [ops.get(known) for known in ops.names()]
    if as_json:
        click.echo(json.dumps({op.name: about(op, {}) for op in every}))
    elif markdown:
        click.echo(table(every))
    else:
        click.echo("\n\n".join(entry(op) for op in every))


def made(op: Op, assignments: tuple[str, ...]) -> tuple[Op, dict[str, Any]]:
    """The op with some of its options set, and all that it has then."""
    given = question.from_assignments(assignments, op.name)
    for name in given:
        if name not in op.options:
            known = nearest(name, op.options) if op.options else "; it has none"
            raise InputError(f"{op.name} has no option {name!r}{known}.")
    return checks.chosen(op, given) if given else (op, {})


def about(op: Op, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All that is declared of an op, as plain data; its example has the options chosen."""
    return {
        "name": op.name,
        "title": op.title,
        "paper": op.paper,
        "reading": vars(op.reading),
        "equations": [line.strip() for line in equations(op)],
        "inputs": [
            {"name": t.name, "axes": [axes.split() for axes in t.axes], "doc": t.doc, "required": t.required}
            for t in op.inputs
        ],
        "conventions": {
            convention: {"doc": doc, "scale": op.scale_of.get(convention, op.scale)}
            for convention, doc in op.conventions.items()
        },
        "options": {name: vars(rule) for name, rule in op.options.items()},
        "states": [{"name": t.name, "axes": [axes.split() for axes in t.axes], "doc": t.doc} for t in op.states],
        "mistakes": {m.name: m.doc for m in op.mutants},
        "example": example(op, chosen),
    }


def equations(op: Op) -> list[str]:
    return textwrap.dedent(op.equations).strip("\n").splitlines()


def cells(op: Op) -> tuple[str, ...]:
    r = op.reading
    return op.name, op.title, r.model, r.loss, r.optimiser, r.forgetting


def entry(op: Op) -> str:
    """One op in five lines."""
    name, title, *rest = cells(op)
    lines = [f"{click.style(f'{name:20}', bold=True)} {title}"]
    return "\n".join(lines + [f"  {what:12} {text}" for what, text in zip(HEAD[2:], rest, strict=True)])


def table(every: list[Op]) -> str:
    """All ops as a Markdown table."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for op in every:
        name, title, model, *rest = (cell.replace("|", "\\|") for cell in cells(op))
        lines.append("| " + " | ".join((f"`{name}`", title, f"`{model}`", *rest)) + " |")
    return "\n".join(lines)


def axes_text(tensor: Tensor) -> str:
    return " or ".join(f"[{', '.join(axes.split())}]" for axes in tensor.axes)


def example(op: Op, chosen: Mapping[str, Any]) -> str:
    values = {name: chosen.get(name, rule.default) for name, rule in op.options.items()}
    options = "".join(f" --set {name}={str(value).lower()}" for name, value in values.items())
    return f"refengine solve inputs.safetensors -o answer.safetensors --op {op.name}{options}"


def page(op: Op, chosen: Mapping[str, Any]) -> str:
    """All about one op, for a person; its example has the options chosen."""
    r, wide = op.reading, max(len(axes_text(t)) for t in op.inputs)
    long = max(6, *(len(t.name) for t in op.inputs))
    lines = [click.style(f"{op.name}: {op.title}", bold=True), op.paper, ""]
    lines += [f"  {line}" for line in equations(op)]
    lines += ["", "As online learning"]
    lines += [f"  {what:12} {text}" for what, text in {**vars(r)}.items()]
    lines += ["", "Inputs"]
    lines += [
        f"  {t.name:{long}} {axes_text(t):{wide}}  {t.doc}{'' if t.required else ' (optional)'}" for t in op.inputs
    ]
    lines += ["", "States (initial_state in, final_state out; a tuple where there are several)"]
    lines += [f"  {t.name:13} {axes_text(t)}  {t.doc}" for t in op.states]
    lines += ["", "Conventions (the first is the default)"]
    for name, doc in op.conventions.items():
        lines.append(f"  {name:12} {doc}; scale, if not given, is {op.scale_of.get(name, op.scale)}")
    if op.options:
        lines += ["", "Options"]
        for name, rule in op.options.items():
            choices = f" ({', '.join(rule.choices)})" if rule.choices else ""
            other, users = rule.goes_with or ("", ())
            only = f"of {other} {' or '.join(map(str, users))}: " if users else ""
            lines.append(f"  {name:16} {only}{rule.doc}{choices}; {rule.default} if not given")
    if op.mutants:
        lines += ["", "Mistakes people make (the kind in brackets)"]
        lines += [f"  {m.name:18} {m.doc}" for m in op.mutants]
    return "\n".join([*lines, "", "Example", f"  {example(op, chosen)}"])
