"""C10: a convolution of width n on K, and the nonlinearity after it, make the memory an n-gram model."""

from __future__ import annotations

from math import sqrt

import refengine

from . import counts
from .claim import Claim, Figure, Findings, Table, at_least, at_most, near
from .lab import Lab, guesses, hits
from .learners import Learner, delta, linear, mesa

D = 256  # channels of a token's embedding, random
LAMB = 0.1
WIDTHS = (1, 2, 3, 4)
TOKENS = 6_000  # at scale 1
SHARE = 0.5  # of what one more token of context gains by counting
CHANCE = 3.0  # standard errors of an accuracy
LEARNERS: tuple[tuple[str, Learner, str | None], ...] = (
    ("Mesa, SiLU", mesa(LAMB), "silu"),
    ("Mesa, linear", mesa(LAMB), None),
    ("DeltaNet 0.3, SiLU", delta(0.3), "silu"),
    ("linear attention, SiLU", linear(), "silu"),
)
COUNTS, SILU, LINEAR, _, HEBB = ("counting", *(label for label, _, _ in LEARNERS))


def run(lab: Lab) -> Findings:
    ids = lab.text.upto(TOKENS * lab.scale).ids
    found = {
        width: {COUNTS: hits(counts.backoff(ids, width + 1), ids)}
        | {label: accuracy(lab, learner, width, activation) for label, learner, activation in LEARNERS}
        for width in WIDTHS
    }
    frequent = hits(0 * ids, ids)
    noise = CHANCE * sqrt(0.25 / (len(ids) - len(ids) // 2))
    figures: list[Figure] = [
        near("W = 1: Mesa, linear, beside bigram counts", found[1][LINEAR], found[1][COUNTS], noise),
        near("W = 1: Mesa, SiLU, beside bigram counts", found[1][SILU], found[1][COUNTS], noise),
    ]
    for width in WIDTHS[1:]:
        gained = found[width][SILU] - found[1][SILU]
        counted = found[2][COUNTS] - found[1][COUNTS]
        what = f"W = {width}: Mesa's gain over W = 1, SiLU"
        figures.append(at_least(f"{what} (half of what trigrams gain)", gained, SHARE * counted - noise))
        figures.append(
            at_most(
                f"W = {width}: Mesa, SiLU, over {width + 1}-gram counts",
                found[width][SILU] - found[width][COUNTS],
                noise,
            )
        )
        more = found[width][SILU] - found[width][LINEAR]
        figures.append(at_least(f"W = {width}: Mesa, SiLU over linear", more, -noise))
    last = WIDTHS[-1]
    missing = found[last][COUNTS] - found[last][SILU]
    figures.append(
        at_least(f"W = {last}: what {last + 1}-gram counts know and Mesa does not", missing, noise, limit=True)
    )
    above = found[last][HEBB] - frequent
    figures.append(at_most(f"W = {last}: linear attention over the most frequent token", above, noise, limit=True))
    rows: list[list[str | float | None]] = [[f"{width}", *rates.values()] for width, rates in found.items()]
    columns = ["conv width", *found[1]]
    data = {
        "widths": list(WIDTHS),
        "series": {name: [found[w][name] for w in WIDTHS] for name in found[1]},
        "frequent": frequent,
    }
    return Findings(figures, [Table("Next-token accuracy; counting: of n-grams, n = width + 1", columns, rows)], data)


def accuracy(lab: Lab, learner: Learner, width: int, activation: str | None) -> float:
    """Keys are l2norm(act(sum_{i = 1..width} w_i * E x_{t - i})), queries the same of x_t and before; E, w random."""
    text, rng = lab.text.upto(TOKENS * lab.scale), lab.rng(10)
    embedded = rng.standard_normal((text.size, D))[text.ids][None, :, None]
    taps = rng.standard_normal((D, max(WIDTHS)))[:, -width:]
    conv = refengine.Conv(taps, activation=activation)
    more = {"key_shift": 1, "conv_k": conv, "conv_q": conv, "use_qk_l2norm": True}
    return hits(guesses(lab.solve(learner, embedded, embedded, text.one_hot(), **more)), text.ids)


CLAIM = Claim(
    number=10,
    name="ngram",
    sentence="A convolution of width n on K with a nonlinearity makes the memory a model of (n + 1)-grams.",
    experiment=f"random embeddings of {D} channels, shifted, convolved with random taps, SiLU, l2norm; V one-hot; "
    "nothing trained",
    run=run,
    reads_text=True,
    limit="untrained taps stop gaining at a width of three, and linear attention cannot use positive features without "
    "decorrelating them",
    weight=14.0,
)
