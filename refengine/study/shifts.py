"""C8: of the eight shifts of Q, K and V only K's makes a memory predict what follows."""

from __future__ import annotations

from itertools import product

import numpy as np

from .claim import Claim, Figure, Findings, Table, at_least, at_most
from .lab import Lab, guesses, hits
from .learners import Learner, comba, delta, gated_delta, kimi, lact, linear, mesa, softmax, titans, ttt
from .text import Text

SHIFTS = list(product((0, 1), repeat=3))  # of Q, K, V
OFFSETS = (-3, -2, -1, 0, 1, 2)
LAMB = 1.0
SHARP = 8.0  # softmax's scale: e^8 to one for a key that is the query
TOKENS = 6_000  # at scale 1


def learners(rng: np.random.Generator, size: int) -> list[Learner]:
    decays = np.linspace(0.99, 1.0, size)
    return [
        mesa(LAMB),
        linear(),
        delta(0.1),
        gated_delta(0.1, 0.99),
        kimi(0.1, decays),
        comba(0.1, 0.99),
        titans(0.05, 0.5),
        ttt(rng, size, 1.0, 0.02),
        lact(rng, size, size),
        softmax(SHARP),
    ]


def run(lab: Lab) -> Findings:
    text = lab.text.upto(TOKENS * lab.scale)
    figures: list[Figure] = []
    grid: dict[str, list[list[float]]] = {}  # by learner: hits of each shift at each offset
    for learner in learners(lab.rng(8), text.size):
        found = [hit_rates(lab, learner, text, *shift) for shift in SHIFTS]
        at = [OFFSETS.index(sk - sv - sq) for sq, sk, sv in SHIFTS]
        elsewhere = sum(rates[i] < max(rates) for rates, i in zip(found, at, strict=True))
        what = f"{learner.label}: shifts that hit another offset than K − V − Q more often"
        if learner.op == "ttt_linear":
            figures.append(at_least(what, elsewhere, 1, limit=True))
        else:
            following = [rates[OFFSETS.index(1)] for rates in found]
            only = following.pop(SHIFTS.index((0, 1, 0)))
            figures.append(at_most(what, elsewhere, 0))
            what = f"{learner.label}: next-token accuracy of K's shift less the best other"
            figures.append(at_least(what, only - max(following), 0.0))
        grid[learner.label] = found
    columns = ["Q K V", "K − V − Q", *grid]
    rows: list[list[str | float | None]] = [
        [f"{sq} {sk} {sv}", f"{sk - sv - sq:+d}", *(rates[i][OFFSETS.index(1)] for rates in grid.values())]
        for i, (sq, sk, sv) in enumerate(SHIFTS)
    ]
    data = {"offsets": list(OFFSETS), "shifts": [list(shift) for shift in SHIFTS], "grid": grid}
    return Findings(figures, [Table("Next-token accuracy by shift of Q, K, V", columns, rows)], data)


def hit_rates(lab: Lab, learner: Learner, text: Text, sq: int, sk: int, sv: int) -> list[float]:
    """How often the read-out's largest entry is the token at each offset."""
    x = text.one_hot()
    guess = guesses(lab.solve(learner, x, x, x, query_shift=sq, key_shift=sk, value_shift=sv))
    return [hits(guess, text.ids, offset) for offset in OFFSETS]


CLAIM = Claim(
    number=8,
    name="shifts",
    sentence="A memory predicts the offset (K's shift) − (V's) − (Q's): of the eight shifts only K's alone predicts "
    "the next token.",
    experiment="the text, one-hot, Q = K = V before the shifts, at which offset the read-out's largest entry hits",
    run=run,
    reads_text=True,
    limit="TTT-Linear adds the query to what it reads, and names the query where it has learnt too little to "
    "outweigh it",
    weight=14.0,
)
