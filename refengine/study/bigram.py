"""C6: with the key shifted by one, K = V learns the bigrams of the text."""

from __future__ import annotations

from . import counts
from .claim import Claim, Figure, Findings, Table, at_least, at_most, near
from .lab import Lab, guesses, hits
from .learners import Learner, delta, gated_delta, linear, mesa

LAMB = 1.0
ROUNDING = 1e-12  # relative to the largest entry
TIES = 0.003  # accuracy that rounding may move where two successors are equally frequent


def learners() -> list[Learner]:
    return [linear(), mesa(LAMB), delta(0.03), delta(0.1), delta(1.0), gated_delta(0.1, 0.99)]


def counting(learner: Learner, ids: counts.Ids, size: int) -> counts.Ledger:
    """The same learner, by counting."""
    if learner.op == "linear_attn":
        return counts.counted(ids, size)
    if learner.op == "mesa_net":
        return counts.counted(ids, size, LAMB)
    return counts.averaged(ids, size, learner.constants["beta"], learner.constants.get("g", 0.0))


def run(lab: Lab) -> Findings:
    ids, x = lab.text.ids, lab.text.one_hot()
    figures: list[Figure] = []
    rows: list[list[str | float | None]] = []
    for learner in learners():
        ledger = counting(learner, ids, lab.text.size)
        shifted = lab.solve(learner, x, x, x, tie_values=True, key_shift=1)
        state = shifted.final_state
        memory = lab.ridge(LAMB, state)[0] if learner.op == "mesa_net" else state[0, 0]
        far = float(abs(memory - ledger.table).max() / max(1.0, ledger.table.max()))
        figures.append(at_most(f"{learner.label}: memory, furthest from counting", far, ROUNDING))
        accuracy, expected = hits(guesses(shifted), ids), hits(ledger.guess, ids)
        figures.append(near(f"{learner.label}: next-token accuracy", accuracy, expected, TIES))
        unshifted = hits(guesses(lab.solve(learner, x, x, x, tie_values=True)), ids)
        rows.append([learner.label, accuracy, expected, unshifted])
        figures.append(near(f"{learner.label}, unshifted: only repeats", unshifted, hits(ids, ids), TIES))
    best = max(float(str(row[1])) for row in rows)
    figures.append(at_least("best of them over the most frequent token", best, hits(0 * ids, ids)))
    return Findings(figures, [Table("Next-token accuracy", ["learner", "key shifted", "counting", "K = V"], rows)])


CLAIM = Claim(
    number=6,
    name="bigram",
    sentence="Shift the key by one and even K = V learns: the memory is the text's bigram table, and predicts the next "
    "token.",
    experiment="the text, one-hot, V = K, key_shift = 1, read with the present token; scored on the second half",
    run=run,
    reads_text=True,
)
