"""The founding argument, one file a claim: why linear attention needs a short convolution on K, measured.

A memory trained on (k_t, v_t) with K = V learns to predict itself, and stores nothing; with the key shifted by one it
learns what follows; a short convolution is that shift, learnable. Nothing here is trained, and every figure goes
through `refengine.solve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter

from ..errors import InputError, nearest
from .claim import Claim, Findings
from .lab import Lab

NAMES = (
    "identity",
    "collapse",
    "context",
    "overlap",
    "source",
    "bigram",
    "loss",
    "shifts",
    "tap",
    "ngram",
    "values",
)


@dataclass(frozen=True)
class Outcome:
    """One claim's findings."""

    claim: Claim
    findings: Findings
    seconds: float


def get(name: str) -> Claim:
    """The claim of that name, or number: "bigram" and "C6" are the same."""
    numbered = {f"c{i}": known for i, known in enumerate(NAMES, 1)}
    known = numbered.get(name.lower(), name)
    if known not in NAMES:
        raise InputError(f"There is no claim {name!r}{nearest(name, NAMES)}.")
    claim = import_module(f".{known}", __name__).CLAIM
    assert isinstance(claim, Claim)
    return claim


def chosen(names: Iterable[str] = ()) -> list[Claim]:
    """The claims of these names, each once and in the argument's order; all of them where there is no name."""
    wanted = {get(name).number: get(name) for name in names or NAMES}
    return [wanted[number] for number in sorted(wanted)]


def outcomes(claims: Iterable[Claim], lab: Lab) -> Iterator[Outcome]:
    """Put each claim to the test."""
    for claim in claims:
        clock = perf_counter()
        findings = claim.run(lab)
        yield Outcome(claim, findings, perf_counter() - clock)
