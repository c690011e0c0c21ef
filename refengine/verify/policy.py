"""Policies: what precision an implementation declares. Grades are the named ones.

A grade is spelled NAME[:part[,part ...]], the parts overriding the named policy: `bf16`, `bf16:chunk=32`,
`f32:recurrent`, `f16:state=f16,ftz`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError, nearest
from ..numbers import formats
from ..numbers.formats import Format

CLASSES = ("any", "chunk", "recurrent")
DEFAULT_CHUNK = 64


@dataclass(frozen=True)
class Policy:
    """Formats by what they hold: `io` the outputs, `operand` what enters a product, `accum` the sums, `state` what is
    carried from chunk to chunk (or step to step) and returned, `gate` g and beta. `algorithm` is "recurrent", "chunk"
    (of `chunk` steps), or "any": whichever of the two errs more. `ftz`: subnormal outputs may be flushed to zero."""

    name: str
    io: str = "f32"
    operand: str = "f32"
    accum: str = "f32"
    state: str = "f32"
    gate: str = "f32"
    algorithm: str = "any"
    chunk: int = DEFAULT_CHUNK
    ftz: bool = False

    @property
    def arithmetic(self) -> np.dtype[np.floating]:
        """What sums are emulated in."""
        return np.dtype(np.float64 if self.accum == "f64" else np.float32)

    @property
    def fine(self) -> bool:
        """Nothing is rounded below the arithmetic: errors are small and their tails wide."""
        return not any(self.format(part).within(self.arithmetic) for part in ("operand", "state", "io", "gate"))

    def format(self, part: str) -> Format:
        return formats.get(getattr(self, part))

    def spelled(self) -> dict[str, str | int | bool]:
        """The policy as data, for a report."""
        said: dict[str, str | int | bool] = {p: getattr(self, p) for p in (*PARTS, "algorithm", "ftz")}
        return said if self.algorithm == "recurrent" else {**said, "chunk": self.chunk}


PARTS = ("io", "operand", "accum", "state", "gate")


def _uniform(name: str, fmt: str) -> Policy:
    return Policy(name, fmt, fmt, fmt, fmt, fmt)


GRADES = {
    p.name: p
    for p in (
        _uniform("f64", "f64"),
        _uniform("f32", "f32"),
        Policy("tf32", operand="tf32"),
        Policy("f16", io="f16", operand="f16"),
        Policy("bf16", io="bf16", operand="bf16"),
        Policy("f16-state16", io="f16", operand="f16", state="f16"),
        Policy("bf16-state16", io="bf16", operand="bf16", state="bf16"),
        Policy("fp8-e4m3", io="bf16", operand="e4m3"),
        Policy("fp8-e5m2", io="bf16", operand="e5m2"),
    )
}


def policy(grade: str | Policy) -> Policy:
    """The policy that a grade names, with its overriding parts."""
    if isinstance(grade, Policy):
        return grade
    name, _, rest = str(grade).partition(":")
    if name not in GRADES:
        raise InputError(f"There is no grade {name!r}{nearest(name, GRADES)}.")
    changes: dict[str, str | int | bool] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.strip().partition("=")
        if key in PARTS and equals:
            changes[key] = formats.get(value).name
        elif key == "chunk":
            changes["algorithm"] = "chunk"
            if equals:
                changes["chunk"] = _chunk(value)
        elif key in CLASSES and not equals:
            changes["algorithm"] = key
        elif key == "ftz" and not equals:
            changes["ftz"] = True
        else:
            known = (*(f"{p}=FORMAT" for p in PARTS), "chunk=N", "recurrent", "any", "ftz")
            raise InputError(f"The grade {grade!r} has a part {part!r}{nearest(part, known)}.")
    if changes.get("accum") not in (None, "f32", "f64"):
        raise InputError(f"The grade {grade!r} accumulates in {changes['accum']}; sums are emulated in f32 or f64.")
    chosen = replace(GRADES[name], name=str(grade), **changes)  # type: ignore[arg-type]
    widest = chosen.format("accum").bits
    for part in PARTS:
        if chosen.format(part).bits > widest:
            raise InputError(
                f"The grade {grade!r} has {part}={getattr(chosen, part)}, wider than its sums ({chosen.accum})."
            )
    return chosen


def _chunk(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InputError(f"chunk is {text!r}; it is a whole number from 1 to 1024.")
    return int(text)
