"""A verdict in words, as JSON, and as JUnit's XML."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from .statistics import ALLOWANCE, NAMES, PASS

if TYPE_CHECKING:
    from .verdict import Verdict

MOST_LINES = 25
ALIKE = math.log(2.0)
NUMBER = {"type": ["number", "null"]}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "refengine verify",
    "type": "object",
    "required": ["schema_version", "verdict", "op", "policy", "compared", "exact", "statistics", "faults"],
    "properties": {
        "schema_version": {"const": 1},
        "verdict": {"enum": ["PASS", "WARN", "FAIL", "INCONCLUSIVE"]},
        "op": {"type": "string"},
        "policy": {"type": "object"},
        "compared": {"type": "integer", "minimum": 0},
        "exact": {"type": "boolean"},
        "faults": {"type": "array", "items": {"type": "string"}},
        "statistics": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["view", "level", "values", "limits", "groups", "uncertain"],
                "properties": {
                    "view": {"type": "string"},
                    "level": {"enum": ["PASS", "WARN", "FAIL"]},
                    "values": {"type": "object", "required": list(NAMES), "additionalProperties": NUMBER},
                    "limits": {"type": "object", "additionalProperties": {"type": "array", "items": NUMBER}},
                    "groups": {"type": "object", "additionalProperties": NUMBER},
                    "uncertain": {"type": "integer", "minimum": 0},
                },
            },
        },
        "worst": {"type": ["object", "null"]},
        "first_divergence": {"type": ["object", "null"]},
        "behaves_as": {"type": "object", "additionalProperties": NUMBER},
        "criteria": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "laws": {"type": "array", "items": {"type": "object", "required": ["name", "holds", "detail"]}},
    },
}


def as_data(found: Verdict) -> dict[str, Any]:
    """The verdict as `SCHEMA` has it; a number that is none is null."""
    data = {
        "schema_version": 1,
        "verdict": found.verdict,
        "op": found.op,
        "policy": {"name": found.policy.name, **found.policy.spelled()},
        "compared": found.compared,
        "exact": found.exact,
        "faults": list(found.faults),
        "statistics": [
            {
                "view": s.view,
                "level": s.level,
                "values": dict(s.values),
                "limits": {name: list(pair) for name, pair in s.limits.items()},
                "groups": dict(s.groups),
                "uncertain": s.uncertain,
            }
            for s in found.statistics
        ],
        "worst": found.worst,
        "first_divergence": found.first_divergence,
        "behaves_as": dict(found.behaves_as),
        "criteria": dict(found.criteria),
        "laws": [asdict(law) for law in found.laws],
    }
    cleaned: dict[str, Any] = clean(data)
    return cleaned


def clean(x: Any) -> Any:
    """What JSON can hold: null for a number that is none."""
    if isinstance(x, dict):
        return {key: clean(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [clean(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def to_json(found: Verdict) -> str:
    return json.dumps(as_data(found), allow_nan=False, sort_keys=True)


def lines(found: Verdict) -> list[str]:
    """For a person, at most 25 lines."""
    said = [f"{found.verdict}  {found.op} as {found.policy.name} ({_policy(found)}), {found.compared} elements"]
    said += [f"  {fault}" for fault in found.faults[:5]]
    if found.exact:
        said.append("  the inputs leave nothing to rounding: equality was asked for")
    for s in found.statistics:
        marks = "  ".join(f"{name} {_short(s.values[name])}/{_short(s.limits[name][0])}" for name in NAMES)
        said.append(f"  {s.view:20} {s.level:4}  {marks}")
        late = {g: R for g, R in s.groups.items() if g != "whole" and R / ALLOWANCE[g] > s.limits["R"][0]}
        if late and s.level != PASS:
            said.append(f"  {'':20}       R of the worst {', '.join(f'{g} {_short(R)}' for g, R in late.items())}")
        if s.uncertain and not found.exact:
            said.append(f"  {'':20}       the truth is not known well enough in {s.uncertain} of {s.rho.size} rows")
    said += _where(found)
    if found.behaves_as:
        near = min(found.behaves_as, key=lambda g: _apart(found.behaves_as[g]))
        what = f"errs as {near} does" if _apart(found.behaves_as[near]) < ALIKE else "errs as none of them does"
        if found.passed and max(found.behaves_as.values()) < 1 / math.exp(ALIKE):
            what = "errs less than any"
        said.append(f"  R as {', '.join(f'{g} {_short(R)}' for g, R in found.behaves_as.items())}: {what}")
    if found.criteria:
        said.append(f"  others would say: {', '.join(f'{n} {_yes(ok)}' for n, ok in found.criteria.items())}")
    for law in sorted(found.laws, key=lambda law: (law.holds is not False, law.holds is None)):
        word = "skipped" if law.holds is None else "holds" if law.holds else "BROKEN"
        said.append(f"  law {law.name:9} {word}: {law.detail}")
    return said if len(said) <= MOST_LINES else [*said[: MOST_LINES - 1], "  ... (--json has all of it)"]


def _where(found: Verdict) -> list[str]:
    said = []
    if found.worst:
        w = found.worst
        at = ", ".join(map(str, w["index"]))
        numbers = f"truth {w['truth']:.6g}, candidate {w['candidate']:.6g}, sigma {w['sigma']:.2g}"
        said.append(f"  worst {w['view']}[{at}]: {numbers}; its row is off by {_short(w['rho'])} sigma")
    if found.first_divergence:
        d = found.first_divergence
        chunk = ", ".join(f"{t} of {C}" for C, t in d["of_chunk"].items())
        kind = "and stays" if d["persists"] else "alone"
        heads = f"head {d['head']}" if len(d["heads"]) == 1 else f"heads {', '.join(map(str, d['heads'][:8]))}"
        token = f"token {d['t']}{' (the last)' if d['last'] else ''}"
        place = f"batch {d['batch']}, sequence {d['sequence']}, {token}, {heads}"
        said.append(f"  first off at {place}, {kind}; token {chunk}")
    return said


def _policy(found: Verdict) -> str:
    p = found.policy
    how = f"chunk {p.chunk}" if p.algorithm == "chunk" else p.algorithm
    return f"io {p.io}, operands {p.operand}, sums {p.accum}, state {p.state}, gates {p.gate}, {how}"


def _short(x: float) -> str:
    return "nan" if math.isnan(x) else f"{x:.3g}"


def _apart(R: float) -> float:
    """How far R is from 1, in factors."""
    return abs(math.log(R)) if R > 0 and math.isfinite(R) else math.inf


def _yes(ok: bool) -> str:
    return "pass" if ok else "fail"


def junit(cases: Sequence[tuple[str, Verdict]]) -> str:
    """JUnit's XML for named verdicts: FAIL is a failure, INCONCLUSIVE an error."""
    failures = sum(v.verdict == "FAIL" for _, v in cases)
    errors = sum(v.verdict == "INCONCLUSIVE" for _, v in cases)
    root = ElementTree.Element(
        "testsuite", name="refengine verify", tests=str(len(cases)), failures=str(failures), errors=str(errors)
    )
    for name, found in cases:
        case = ElementTree.SubElement(root, "testcase", classname=f"refengine.{found.op}", name=name)
        if found.verdict in ("FAIL", "INCONCLUSIVE"):
            tag = "failure" if found.verdict == "FAIL" else "error"
            ElementTree.SubElement(case, tag, message=found.verdict).text = "\n".join(lines(found))
        else:
            ElementTree.SubElement(case, "system-out").text = "\n".join(lines(found))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
