"""A diagnosis in words, and as JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ..verify.report import as_data as verdict_as_data
from ..verify.report import clean
from .what import BEATS, Finding

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

SHOWN = 3  # suspects that get a line of their own
FAR = 100.0  # times of what rounding allows beyond which nothing is near
NUMBER = {"type": ["number", "null"]}
SUSPECT = {
    "type": "object",
    "required": ["names", "doc", "score", "R", "explains", "parameters"],
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "doc": {"type": "string"},
        "score": {**NUMBER, "description": "the largest statistic over its limit; 1 is where PASS ends"},
        "R": {**NUMBER, "description": "root mean square of what is left, in units of honest rounding"},
        "explains": {"type": "boolean"},
        "parameters": {"type": "object"},
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "refengine diagnose",
    "type": "object",
    "required": [
        "schema_version",
        "outcome",
        "op",
        "best",
        "twins",
        "open",
        "part",
        "still",
        "ranking",
        "where",
        "verdict",
        "probed",
        "text",
    ],
    "properties": {
        "schema_version": {"const": 1},
        "outcome": {
            "enum": ["named", "twins", "partly named", "open", "fed wrong", "unknown", "nothing wrong", "unusable"]
        },
        "op": {"type": "string"},
        "best": {"type": ["string", "null"]},
        "twins": {"type": "array", "items": {"type": "string"}},
        "open": {"type": "array", "items": {"type": "string"}},
        "part": {"type": "array", "items": {"type": "string"}, "description": "mistakes that are sure beside another"},
        "still": {"type": "boolean", "description": "of an input without keys: those given show nothing"},
        "ranking": {"type": "array", "items": SUSPECT},
        "where": {
            "type": "object",
            "required": [
                "outputs",
                "right",
                "first",
                "rows",
                "of",
                "heads",
                "sequences",
                "columns",
                "patterns",
                "gain",
            ],
            "properties": {
                "outputs": {"type": "array", "items": {"type": "string"}},
                "right": {"type": "array", "items": {"type": "string"}},
                "first": {"type": ["object", "null"]},
                "rows": {"type": "integer", "minimum": 0},
                "of": {"type": "integer", "minimum": 0},
                "heads": {"type": "array", "items": {"type": "integer"}},
                "sequences": {"type": "array", "items": {"type": "integer"}},
                "columns": {"type": "array", "items": {"type": "integer"}},
                "patterns": {"type": "array", "items": {"type": "string"}},
                "gain": NUMBER,
                "hint": {"type": "string"},
            },
        },
        "recurrence": {"type": ["boolean", "null"], "description": "right for the stages given"},
        "stages": {
            "type": "array",
            "items": {"type": "object", "required": ["name", "holds", "worst", "first", "detail", "like"]},
        },
        "probed": {"type": "array", "items": {"type": "string"}},
        "verdict": {"type": "object", "description": "as `refengine verify --json` has it"},
        "text": {"type": "string"},
    },
}


def as_data(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as `SCHEMA` has it; a number that is none is null."""
    data = {
        "schema_version": 1,
        "outcome": found.outcome,
        "op": found.verdict.op,
        "best": found.best.name if found.best else None,
        "twins": [f.name for f in found.twins],
        "open": [f.name for f in found.open],
        "part": list(found.part),
        "still": found.still,
        "ranking": [suspect(f) for f in found.ranking],
        "where": dict(found.where.__dict__),
        "probed": list(found.probed),
        "recurrence": found.recurrence,
        "stages": [dict(stage.__dict__) for stage in found.stages],
        "verdict": verdict_as_data(found.verdict),
        "text": found.text,
    }
    cleaned: dict[str, Any] = clean(data)
    return cleaned


def suspect(f: Finding) -> dict[str, Any]:
    return {
        "names": list(f.suspect.names),
        "doc": f.suspect.doc,
        "score": f.score,
        "R": f.R,
        "explains": f.explains,
        "parameters": dict(f.suspect.parameters),
    }


def to_json(found: Diagnosis) -> str:
    return json.dumps(as_data(found), allow_nan=False, sort_keys=True)


def lines(found: Diagnosis) -> list[str]:
    """One paragraph, then the nearest suspects."""
    nearest = found.ranking[:SHOWN] if found.outcome not in ("nothing wrong", "unusable") else ()
    nearest = tuple(f for f in nearest if found.outcome != "unknown" or f.score < FAR)
    return [
        " ".join([*seen(found), *most_like(found), *of_stages(found)]),
        *(f"  {left(f):36} {f.name}: {f.suspect.doc}" for f in nearest),
    ]


def left(f: Finding) -> str:
    return f"left, of what rounding allows: {f.score:.3g}" if math.isfinite(f.score) else "nothing to compare"


def seen(found: Diagnosis) -> list[str]:
    """What was seen."""
    if found.outcome == "nothing wrong":
        return [
            f"{found.verdict.op} as {found.verdict.policy.name}: {found.verdict.verdict}.",
            "Nothing is wrong that could be named." + unseen(found),
        ]
    if found.outcome == "unusable":
        return ["The outputs cannot be compared: " + " ".join(found.verdict.faults)]
    w = found.where
    on = "On the inputs given nothing is wrong. On one where no key writes and the initial state only decays, "
    right = f"; {' and '.join(w.right)} {'is' if len(w.right) == 1 else 'are'} right" if w.right else ""
    said = [f"{on * found.still}{' and '.join(w.outputs)} {'is' if len(w.outputs) == 1 else 'are'} wrong{right}."]
    if w.first and "t" in w.first:
        f = w.first
        last = " (the last)" if f["last"] else ""
        place = f"token {f['t']}{last} of sequence {f['sequence']}, head {f['head']}, most in column {f['column']}"
        chunk = ", ".join(f"{t} in chunks of {C}" for C, t in f["of_chunk"].items() if f["t"] >= int(C))
        said.append(f"The first wrong row is {place}{f' ({chunk})' * bool(chunk)}; {w.rows} of {w.of} rows are.")
    elif w.first and "output" in w.first:
        place = ""
        if "tokens" in w.first:
            t0, t1 = w.first["tokens"]
            tokens = f"token {t0}" if t0 == t1 else f"tokens {t0} to {t1}"
            place = f", first (on the way back) at batch {w.first['batch']}, {tokens}, head {w.first['head']}"
        said.append(f"Of {w.first['output']} {w.rows} of {w.of} rows are wrong{place}.")
    elif w.first:
        said.append(f"First in sequence {w.first['sequence']}, head {w.first['head']}.")
    if w.patterns:
        said.append(f"Pattern: {'; '.join(w.patterns)}.")
    return said + [f"Also: {fault}" for fault in found.verdict.faults[:2]]


def unseen(found: Diagnosis) -> str:
    """What rounding would hide."""
    policy = found.verdict.policy
    hide = [part for part in ("state", "gate") if policy.format("operand").bits < policy.format(part).bits]
    if not hide or found.verdict.exact:
        return ""
    kept = " or ".join({"state": "a state", "gate": "gates"}[part] for part in hide)
    return f" {kept.capitalize()} kept in {policy.operand} would not show here; `--probe FILE` writes an input for it."


def most_like(found: Diagnosis) -> list[str]:
    """What it is most like, how sure and why."""
    if found.outcome in ("nothing wrong", "unusable"):
        return []
    if found.outcome == "fed wrong":
        return []
    others = [f for f in found.ranking if not f.explains]
    runner = others[0] if others else None
    if found.outcome == "unknown":
        near = " Nothing comes near."
        if runner and runner.score < FAR:
            near = f" The nearest, {runner.name}, leaves {times(runner.score)} of what rounding allows."
        return [
            f"No known mistake explains it, nor do two of them.{near} What usually looks like this: {found.where.hint}."
        ]
    best = (found.twins or found.open)[0]
    if found.outcome == "partly named":
        docs = {m.name: m.doc for m in best.suspect.mutants}
        sure = " and ".join(f"{name} ({docs[name]})" for name in found.part)
        rest = " and ".join(f"{name} ({doc})" for name, doc in docs.items() if name not in found.part)
        said = f"No single mistake explains it. It is {sure} and another, most like {rest}: the two explain it"
        if runner:
            said += f", but {runner.name} is only {runner.times(best):.1f} times further"
        return [f"{said}. {settle(found)}"]
    if found.outcome == "open":
        names = " or ".join(f.name for f in found.open)
        said = f"It is most like {names} ({best.suspect.doc}), which explains it"
        if runner:
            said += f", but {runner.name} is only {runner.times(best):.1f} times further"
        return [f"{said}: less than {BEATS:g} times, so it is not named. {settle(found)}"]
    more = " and a second, smaller mistake may remain" if best.score > 1 else ""
    rest = "more than rounding usually leaves" if more else "honest rounding"
    sure = f"What is left then is {rest} (R {best.R:.2f}){more}"
    if runner:
        sure += f"; the next, {runner.name}, leaves {times(runner.times(best))} as much"
    if found.probed and not found.still:
        sure += f" (also on {', '.join(found.probed)})"
    if found.outcome == "twins":
        names = " or ".join(f"{f.name} ({f.suspect.doc})" for f in found.twins)
        return [f"It is {names}: this input cannot tell them apart. {sure}. {settle(found)}"]
    return [f"It is {best.name}: {best.suspect.doc}. {sure}."]


def of_stages(found: Diagnosis) -> list[str]:
    """What the stages say."""
    wrong = [s for s in found.stages if not s.holds]
    if not found.stages:
        return []
    said = []
    if found.outcome == "fed wrong":
        differ = " and ".join(s.name for s in wrong) or "none of the stages given"
        said.append(
            f"The recurrence is fine: its outputs are right for what it was fed; "
            f"{differ} differ{'s' * (len(wrong) < 2)}."
        )
    elif found.recurrence is False:
        said.append("The recurrence is wrong also for the stages that it was fed.")
    for s in wrong:
        like = f"; it is what {' or '.join(s.like)} gives" if s.like else ""
        what = f" ({s.detail})" if s.detail else ""
        said.append(
            f"{s.name}{what} is first off at {list(s.first)}, "
            f"at most {s.worst:.3g} times what its format explains{like}."
        )
    right = [s.name for s in found.stages if s.holds]
    return [*said, f"{' and '.join(right)} {'is' if len(right) == 1 else 'are'} right."] if right else said


def settle(found: Diagnosis) -> str:
    """What would tell them apart."""
    if found.probed:
        return f"Nor do other inputs ({', '.join(found.probed)}) decide."
    return (
        "To settle it, give a candidate that can be run, or `--probe FILE`: that writes an input on which they differ "
        "more; run the kernel on it and diagnose that."
    )


def times(x: float) -> str:
    return f"{x:.3g} times" if math.isfinite(x) else "no comparable part"
