"""C11: V is unnecessary; a shifted K suffices."""

from __future__ import annotations

import numpy as np

import refengine

from .claim import Claim, Figure, Findings, Table, at_most, near
from .lab import Lab, guesses, hits
from .learners import Array, Learner, delta, gated_delta, linear, mesa, softmax

TOKENS = 3_000  # at scale 1
PROJECTED = 24  # channels of a V of its own
ROUNDING = 1e-11  # relative to the largest output


def learners() -> list[Learner]:
    return [linear(), delta(0.1), gated_delta(0.1, 0.99), mesa(1.0), softmax(8.0)]


def run(lab: Lab) -> Findings:
    text = lab.text.upto(TOKENS * lab.scale)
    x, project = text.one_hot(), lab.rng(11).standard_normal((text.size, PROJECTED))
    figures: list[Figure] = []
    rows: list[list[str | float | None]] = []
    for learner in learners():
        tied = lab.solve(learner, x, x, np.zeros_like(x), key_shift=1, tie_values=True)
        given = lab.solve(learner, x, x, x, key_shift=1)
        seen = lab.solve(learner, x, x, x @ project, key_shift=1)
        figures.append(at_most(f"{learner.label}: tied values, bits that differ", differing(tied.o, given.o), 0))
        through = given.o @ project
        far = float(abs(seen.o - through).max() / abs(through).max())
        figures.append(at_most(f"{learner.label}: any V = xM is the same memory read through M, off by", far, ROUNDING))
        accuracy, expected = hits(guesses(tied), text.ids), hits(guesses(given), text.ids)
        figures.append(near(f"{learner.label}: next-token accuracy without a V", accuracy, expected, 0.0))
        rows.append([learner.label, accuracy, expected, float(kept(tied)), float(kept(given))])
    columns = ["learner", "V = K tied", "V given", "state, tied", "state, given"]
    return Findings(figures, [Table("Next-token accuracy, key shifted; numbers in the state", columns, rows)])


def differing(a: Array, b: Array) -> int:
    """How many float64 are not the same bits."""
    return int((a.view(np.uint64) != b.view(np.uint64)).sum())


def kept(solution: refengine.Solution) -> int:
    """Numbers in the final state."""
    return sum(state.size for state in solution.finals.values())


CLAIM = Claim(
    number=11,
    name="values",
    sentence="A projection for V is unnecessary: with the key shifted V = K learns the same, and any other V is that "
    "memory seen through a matrix.",
    experiment="the text, one-hot, key_shift = 1: tied values, the same values given, and a random projection of them",
    run=run,
    reads_text=True,
)
