"""`refengine mutate`: the verifier, judged by its own bug zoo."""

from __future__ import annotations

import json

import click

from refengine.errors import InputError
from refengine.verify import mutate

HELD_OUT = (30, 31)  # no limit was chosen by looking at these
SMALL = (32,)
GRADES = ("bf16", "f32")
MESA = "mesa_net"


@click.command("mutate")
@click.option("--op", metavar="NAME", default="gated_delta_rule", show_default=True, help="Which op of the delta core.")
@click.option("--grade", "grades", metavar="G", multiple=True, help="Which grades; bf16 and f32 if not given.")
@click.option(
    "--seeds", metavar="N,N,...", help="Of the inputs; those held out from the choice of limits if not given."
)
@click.option("--small", is_flag=True, help="One seed, a few honest runs: seconds.")
@click.option("--every", is_flag=True, help="A line for every mistake, not only for those that survive.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(op: str, grades: tuple[str, ...], seeds: str | None, small: bool, every: bool, as_json: bool) -> None:
    """What the verifier kills of the mistakes people make, and how often it alarms at honest kernels.

    Every mistake is made in an emulation of each grade, over five regimes of inputs; honest emulations are recurrent,
    or have chunks of 16 to 128, each under eight patterns of calls. The usual criteria judge the same outputs.
    Gradients and mesa_net have their own mistakes and rows.

    \b
    Example:
      refengine mutate
      refengine mutate --small --every --op kda
    """
    try:
        chosen = tuple(int(n) for n in seeds.split(",")) if seeds else SMALL if small else HELD_OUT
    except ValueError:
        raise InputError(f"--seeds is {seeds!r}; it is whole numbers with commas between them.") from None
    tier = mutate.tier_e(op, chosen if len(chosen) > 1 else (chosen[0], chosen[0] + 1))
    some = 6 if small else None
    rows = [(make, op, g) for make in (mutate.matrix, mutate.gradient_matrix) for g in grades or GRADES]
    rows += [(mutate.learner_matrix, MESA, g) for g in grades or GRADES]
    found = []
    for i, (make, name, grade) in enumerate(rows):
        click.echo(f"Row {i + 1} of {len(rows)}: {name}, {grade}", err=True)
        found.append(make(name, grade, chosen, some))
    if as_json:
        click.echo(json.dumps(mutate.as_data(found, tier), allow_nan=False))
        return
    for line in mutate.lines(found, tier, every):
        click.echo(line)
