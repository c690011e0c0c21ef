"""`refengine solve`: a file's problem, its answer in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

import refengine
from refengine.data import path as sample_path
from refengine.engine.gradient import WITHOUT
from refengine.errors import InputError
from refengine.io import tensorfile

from . import answer, question, windows
from .bar import Bar

SAMPLE = "minilm_layer3"
RUNAWAY = "the state grows, as a delta rule's does where beta |k|^2 is over 2 (--l2norm?) or a log gate over 0"
FLAGS = {"tie_values", "use_qk_l2norm", "allow_neg_eigval", "allow_nonfinite"}


@click.command("solve")
@click.argument("source", metavar="[IN]", required=False)
@click.option("-o", "--output", "target", metavar="OUT", help="Where the answer goes; replaced if it is there.")
@click.option(
    "--sample", is_flag=True, help=f"Solve what is shipped; OUT is ./{SAMPLE}.solved.safetensors if not given."
)
@click.option("--op", metavar="NAME", help="Which op (`refengine ops`).")
@click.option("--convention", metavar="NAME", help="Which of the op's conventions (`refengine ops NAME`).")
@click.option("--key-shift", metavar="N", help="Replace k_t by k_{t-N} in each sequence.")
@click.option("--query-shift", metavar="N", help="Replace q_t by q_{t-N}.")
@click.option("--value-shift", metavar="N", help="Replace v_t by v_{t-N}.")
@click.option("--tie-values/--no-tie-values", default=None, help="Set v to k as it was before shift and convolution.")
@click.option("--scale", metavar="X", help="Of the read-out.")
@click.option("--l2norm/--no-l2norm", "use_qk_l2norm", default=None, help="Normalise q and k (use_qk_l2norm).")
@click.option("--l2norm-eps", metavar="X", help="Its eps; 1e-6 if not given.")
@click.option("--l2norm-place", metavar="inside|outside|max", help="Where the eps stands; inside if not given.")
@click.option("--allow-neg-eigval/--no-allow-neg-eigval", default=None, help="beta = 2 sigmoid(beta_logits).")
@click.option("--allow-nonfinite/--no-allow-nonfinite", default=None, help="Take NaN and infinities as they come.")
@click.option("--states-at", metavar="T,T,...", help="Also write the state after so many tokens of each sequence.")
@click.option("--precision", metavar="float64|float32|certified", help="Of the recurrence; float64 if not given.")
@click.option("--device", metavar="cpu|cuda|auto", help="Where it runs; no bit depends on it.")
@click.option("--form", metavar="auto|recurrent", help="How it is computed.")
@click.option("--grad", is_flag=True, help="Also dq, dk, ...: what a loss that owes do and dht owes to every input.")
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Any setting, as in a file's metadata.")
@click.option(
    "--window", metavar="N", type=click.IntRange(min=1), help="Solve so many tokens at a time (no bit depends on it)."
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of windows.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="How many; no bit depends on it.")
@click.option("--explain", is_flag=True, help="Say on stderr how it ran, and why so.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    source: str | None,
    target: str | None,
    sample: bool,
    grad: bool,
    assignments: tuple[str, ...],
    window: int | None,
    resume: bool,
    threads: int | None,
    explain: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """The exact outputs of the problem in IN, with a rigorous bound on how wrong they can be.

    IN is a .safetensors or .npz file of the op's inputs by name (`refengine ops NAME`). It may also hold initial_state,
    cu_seqlens, conv_k.weight, conv_k.bias, conv_k.state (and conv_q, conv_v), gate.a, gate.A_log, gate.dt_bias (instead
    of g), beta_logits (instead of beta) and pairing_state.NAME; for --grad also do and dht. Its metadata holds the
    settings: op, scale, use_qk_l2norm, key_shift and whatever else has an option here, conv_k.activation (silu, none),
    conv_k.residual, gate.lower_bound, and the op's own. An option here wins.

    OUT is a safetensors file of o, final_state, o.bound, final_state.bound and what was asked for besides (with --grad
    dq, dk, dinitial_state, dconv_k.weight and so on); its metadata says all that is needed to repeat it. The same
    question gives the same bytes on every run and machine.

    A long sequence is solved a window of tokens at a time, in memory for the states and a window. Until it is done the
    answer stands in OUT.partial, and OUT.resume beside it is what --resume goes on from.

    \b
    Example:
      refengine solve --sample
      refengine solve layer.safetensors -o answer.safetensors --key-shift 1 --l2norm
    """
    origin, goal = places(source, target, sample)
    answer.check_target(goal, origin)
    tensors, metadata = tensorfile.read(origin)
    said = question.from_assignments(assignments, settings["op"] or metadata.get("op"))
    for name, value in settings.items():
        if value is not None:
            if name in said:
                raise InputError(f"{name} is set twice, by --set and by its own option.")
            said[name] = value if name in FLAGS else question.parsed(name, value)
    asked = question.ask(tensors, metadata, said, grad)
    for line in question.doubts(asked, tensors, grad):
        click.echo(line, err=True)
    streamed = None
    if not grad:
        streamed = windows.solve(
            goal=goal, asked=asked, origin=origin, tensors=tensors, threads=threads, window=window, resume=resume
        )
    if streamed is not None:
        outputs, info = streamed
        said_plan(info["plan"] if explain else ())
        report(goal, asked, outputs, info, None, as_json)
        return
    if resume:
        raise InputError("--resume goes on with a run of windows, and this problem is solved whole.")
    with Bar(asked.op.name) as bar:
        solution = refengine.solve(asked.op.name, **asked.arguments, threads=threads, progress=bar)
    gradient = None
    if grad:
        arguments = {name: x for name, x in asked.arguments.items() if name not in WITHOUT} | asked.cotangents
        with Bar(f"{asked.op.name}, gradients") as bar:
            gradient = refengine.grad(asked.op.name, **arguments, threads=threads, progress=bar)
    answer.write(goal, asked, solution, gradient, origin)
    if explain:
        further = [line for line in gradient.info["plan"] if line not in solution.info["plan"]] if gradient else []
        said_plan([*solution.info["plan"], *(f"gradients: {line}" for line in further)])
    report(goal, asked, answer.qualities(solution), solution.info, gradient, as_json)


def said_plan(lines: Iterable[str]) -> None:
    """How it ran, on stderr."""
    for line in lines:
        click.echo(line, err=True)


def places(source: str | None, target: str | None, sample: bool) -> tuple[Path, Path]:
    """Where the question is, and where the answer goes."""
    if sample and source:
        raise InputError(f"IN ({source}) and --sample are both given; solve one or the other.")
    if not sample and not source:
        raise InputError("IN is missing: give a .safetensors or .npz file, or --sample.")
    if sample:
        return sample_path(SAMPLE), Path(target or f"{SAMPLE}.solved.safetensors")
    if not target:
        raise InputError("-o OUT is missing: where the answer shall go.")
    return Path(str(source)), Path(target)


def report(
    goal: Path,
    asked: question.Question,
    outputs: dict[str, dict[str, Any]],
    info: dict[str, Any],
    gradient: refengine.Gradient | None,
    as_json: bool,
) -> None:
    """What came of it, on stdout."""
    seconds = float(info["seconds"])
    gradients = {} if gradient is None else answer.gradients_of(gradient)
    if as_json:
        found: dict[str, Any] = {
            "output": str(goal),
            "op": asked.op.name,
            **outputs,
            "seconds": seconds,
            "info": info,
        }
        if gradient is not None:
            found["gradients"] = {
                name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in gradients.items()
            }
            found["gradient_info"] = gradient.info
        click.echo(json.dumps(found, allow_nan=False, default=str))
        return
    for name, q in outputs.items():
        if (q.get("bound_relative") or 0) > 1:
            click.echo(f"Warning: nothing is known of {name}: its bound is larger than all of it; {RUNAWAY}.", err=True)
    click.echo(str(goal))
    width = max(map(len, (*outputs, *gradients)))
    for name, q in outputs.items():
        click.echo(f"  {name:{width}}  {q['shape']} {q['dtype']}{bound_text(q)}")
    for name, x in gradients.items():
        click.echo(f"  {name:{width}}  {list(x.shape)} {x.dtype}")
    if "correctly_rounded" in info:
        counted = info["correctly_rounded"]
        click.echo(f"  {counted['proved']} of {counted['proved'] + counted['not_proved']} proved correctly rounded")
    threads = "1 thread" if info["threads"] == 1 else f"{info['threads']} threads"
    click.echo(f"  {asked.op.name} solved in {seconds:.3f} s on {threads}")


def bound_text(q: dict[str, Any]) -> str:
    """How wrong an output can be, in words."""
    if "bound" not in q:
        return ""
    if q["rows_without_bound"]:
        return f", no finite bound in {q['rows_without_bound']} of {q['rows']} rows"
    relative = "" if q["bound_relative"] is None else f" ({q['bound_relative']:.1e} of the largest)"
    return f", off by at most {q['bound']:.1e}{relative}"
