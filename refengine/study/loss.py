"""C7: a small inner loss is no useful memory."""

from __future__ import annotations

import numpy as np

from . import counts
from .bigram import LAMB, TIES, counting, learners
from .claim import Claim, Figure, Findings, Table, at_least, near
from .lab import Lab, guesses, hits
from .learners import Array

ROUNDING = 1e-9


def run(lab: Lab) -> Findings:
    ids, x = lab.text.ids, lab.text.one_hot()
    coming = np.concatenate([x[:, 1:], np.zeros_like(x[:, :1])], axis=1)  # asks before it is written
    figures: list[Figure] = []
    rows: list[list[str | float | None]] = []
    for learner in learners():
        if learner.op == "linear_attn":
            continue  # its loss is not a distance
        shifted = lab.solve(learner, x, x, x, tie_values=True, key_shift=1)
        itself = lab.solve(learner, coming, x, x, tie_values=True)
        useful = hits(guesses(shifted), ids)
        useless = hits(guesses(lab.solve(learner, x, x, x, tie_values=True)), ids)
        low, high = inner_loss(itself.o, coming), inner_loss(shifted.o, coming)
        expected = late(counting(learner, ids, lab.text.size).loss)
        rows.append([learner.label, low, useless, high, useful])
        figures.append(near(f"{learner.label}, shifted: inner loss", high, expected, ROUNDING))
        figures.append(at_least(f"{learner.label}: inner loss, shifted less unshifted", high - low, 0.0))
        figures.append(at_least(f"{learner.label}: accuracy, shifted less unshifted", useful - useless, 0.0))
        if learner.op == "mesa_net":
            expected = late(counts.repeats(ids, lab.text.size, LAMB))
            figures.append(near(f"{learner.label}, unshifted: inner loss", low, expected, ROUNDING))
            figures.append(near(f"{learner.label}, unshifted: accuracy", useless, hits(ids, ids), TIES))
    columns = ["learner", "K = V: loss", "accuracy", "key shifted: loss", "accuracy"]
    return Findings(figures, [Table("Inner loss |S'k − v|² before the write, and next-token accuracy", columns, rows)])


def inner_loss(o: Array, targets: Array) -> float:
    return late(((o - targets) ** 2).sum(-1)[0, :-1, 0])


def late(loss: Array) -> float:
    """The mean over the targets of the second half; loss [T - 1] is of the tokens from the second on."""
    return float(loss[(len(loss) + 1) // 2 - 1 :].mean())


CLAIM = Claim(
    number=7,
    name="loss",
    sentence="The inner loss says nothing of usefulness: the unshifted memory has next to none and predicts nothing, "
    "the shifted one keeps a large one and predicts.",
    experiment="the text, one-hot, V = K, the error of each prediction just before its pair is written",
    run=run,
    reads_text=True,
)
