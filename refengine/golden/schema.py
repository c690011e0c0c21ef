"""The golden files' JSON Schemas (2020-12), and a check against the part of that language which they use."""

from __future__ import annotations

import re
from typing import Any

VERSION = 1  # readers refuse a greater one
DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT}
ID = {"type": "string", "pattern": "^[a-z0-9_]+/(E|1|2|3|real)/[a-z0-9_-]+/[a-z0-9-]+$"}
ROUNDED_BY = ("running_bound", "balls", "unsettled")
FILE = {"type": "string", "pattern": "^[a-z0-9_]+\\.safetensors$"}


def record(required: dict[str, Any], optional: dict[str, Any] | None = None, closed: bool = True) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {
        "type": "object",
        "required": sorted(required),
        "properties": properties,
        "additionalProperties": not closed,
    }


def mapping(values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


TENSOR = record(
    {
        "role": {"type": "string", "enum": ["input", "cotangent", "truth", "truth_lo", "certificate", "gradient"]},
        "dtype": {"type": "string", "enum": ["BF16", "F32", "F64", "I32"]},
        "shape": {"type": "array", "items": COUNT},
        "file": FILE,
        "sha256": DIGEST,
    },
    {"of": TEXT},
)
CASE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "refengine golden: one case",
    **record(
        {
            "schema": {"type": "string", "const": "refengine.case"},
            "schema_version": {"type": "integer", "minimum": 1},
            "id": ID,
            "op": record({"name": TEXT, "title": TEXT, "paper": TEXT, "equations": TEXTS, "definition_sha256": DIGEST}),
            "tier": {"type": "string", "enum": ["E", "1", "2", "3", "real"]},
            "level": {"type": "string", "enum": ["exact", "lower", "average", "higher", "real"]},
            "regime": TEXT,
            "families": TEXTS,
            "flags": TEXTS,
            "conventions": record(
                {
                    "axes": mapping(TEXT),
                    "convention": TEXT,
                    "scale": {"type": "number"},
                    "scale_hex": TEXT,
                    "gates": TEXT,
                    "heads": TEXT,
                    "output": TEXT,
                    "cu_seqlens": TEXT,
                    "key_shift": COUNT,
                    "l2norm": TEXT,
                    "convolution": TEXT,
                    "beta": TEXT,
                    "options": mapping({}),
                }
            ),
            "tensors": mapping(TENSOR),
            "certificate": record(
                {
                    "roads": TEXTS,
                    "correctly_rounded": record(dict.fromkeys(ROUNDED_BY, COUNT)),
                    "unsettled": TEXTS,
                }
            ),
            "sensitivity": mapping({"type": "number"}),
            "exposes": TEXTS,
            "does_not_expose": TEXTS,
            "does_not_test": TEXTS,
            "generator": record({"key": TEXTS, "streams": mapping(COUNT)}),
            "content_sha256": DIGEST,
            "license": TEXT,
        }
    ),
}
SUITE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "refengine golden: a suite",
    **record(
        {
            "schema": {"type": "string", "const": "refengine.suite"},
            "schema_version": {"type": "integer", "minimum": 1},
            "name": TEXT,
            "license": TEXT,
            "min_cases": COUNT,
            "min_elements": mapping(COUNT),
            "correctly_rounded": mapping(record(dict.fromkeys(ROUNDED_BY, COUNT))),
            "families": mapping(record({"what": TEXT, "exposes": TEXT, "home": TEXTS})),
            "laws": mapping(TEXT),
            "certificates": mapping(TEXT),
            "nonfinite": TEXT,
            "generator": record({"name": TEXT, "algorithm": TEXT, "transforms": mapping(TEXT)}),
            "cases": {"type": "array", "items": record({"id": ID, "elements": COUNT, "content_sha256": DIGEST})},
        }
    ),
}
SCHEMAS = {"case": CASE, "suite": SUITE}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """What in a parsed JSON value is not as the schema says, each with its place."""
    here = where or "the whole"
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, TYPES[kind]) or isinstance(value, bool)):
        return [f"{here} is {type(value).__name__}, not {kind}"]
    if "const" in schema and value != schema["const"]:
        return [f"{here} is {value!r}, not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{here} is {value!r}, none of {', '.join(schema['enum'])}"]
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return [f"{here} is {value!r}, which does not match {schema['pattern']}"]
    if "minimum" in schema and value < schema["minimum"]:
        return [f"{here} is {value}, below {schema['minimum']}"]
    found: list[str] = []
    if kind == "array" and "items" in schema:
        for i, item in enumerate(value):
            found += faults(item, schema["items"], f"{where}[{i}]")
    if kind == "object":
        found += [f"{here} lacks {name!r}" for name in schema.get("required", ()) if name not in value]
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            inner = properties.get(name, rest)
            if inner is False:
                found.append(f"{here} has {name!r}, which the schema does not know")
            elif isinstance(inner, dict):
                found += faults(item, inner, f"{where}.{name}" if where else name)
    return found
