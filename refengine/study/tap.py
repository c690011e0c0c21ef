"""C9: a short convolution on K is the shift, learnable."""

from __future__ import annotations

from itertools import pairwise
from math import cos, radians, sin

import numpy as np

import refengine

from . import counts
from .claim import Claim, Figure, Findings, Table, at_most, near
from .lab import Lab, guesses, hits
from .learners import Array, delta, linear, mesa

MESA, HEBB, ENERGY = "Mesa", "linear attention", "off diagonal"
COLUMNS = (MESA, "Mesa, masked", ENERGY, HEBB, f"{HEBB}, masked")
STEEP = 75
ANGLES = (0, 15, 30, 45, 60, 75, 85, 90)
LAMB = 1.0
ROUNDING = 1e-9
TIES = 0.003
TOKENS = 6_000  # at scale 1
SLACK = 0.01  # accuracy by which a step up in the angle may fall and still count as none


def taps(degrees: float, channels: int) -> refengine.Conv:
    """sin for the past token, cos for the present one."""
    past, present = sin(radians(degrees)), cos(radians(degrees))
    if degrees % 90 == 0:
        past, present = float(round(past)), float(round(present))  # 90 degrees are the shift itself
    return refengine.Conv(np.tile([past, present], (channels, 1)), activation=None)


def by_counts(ids: counts.Ids, size: int, degrees: float) -> Array:
    """Mesa's memory for keys cos x_t + sin x_{t-1} and values x_t, from the text's bigram counts C alone."""
    conv = taps(degrees, 1).weight[0]
    C, n, before = counts.bigrams(ids, size), np.bincount(ids, minlength=size), np.bincount(ids[:-1], minlength=size)
    H = np.diag(conv[1] ** 2 * n + conv[0] ** 2 * before) + conv[0] * conv[1] * (C + C.T)
    return np.asarray(np.linalg.solve(H + LAMB * np.eye(size), conv[1] * np.diag(n) + conv[0] * C))


def run(lab: Lab) -> Findings:
    text = lab.text.upto(TOKENS * lab.scale)
    ids, size, x = text.ids, text.size, text.one_hot()
    figures: list[Figure] = []
    sweep: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for degrees in ANGLES:
        exact = lab.solve(mesa(LAMB), x, x, x, tie_values=True, conv_k=taps(degrees, size))
        hebb = lab.solve(linear(), x, x, x, tie_values=True, conv_k=taps(degrees, size))
        S = lab.ridge(LAMB, exact.final_state)[0]
        far = float(abs(S - by_counts(ids, size, degrees)).max())
        figures.append(at_most(f"{degrees}°: Mesa's memory, furthest from the counts'", far, ROUNDING))
        for name, value in zip(
            COLUMNS, (*scores(exact, ids), 1 - (np.diag(S) ** 2).sum() / (S**2).sum(), *scores(hebb, ids)), strict=True
        ):
            sweep[name].append(float(value))
    counted = hits(counts.counted(ids, size, LAMB).guess, ids)
    for name in (MESA, HEBB):
        figures.append(near(f"0°, {name}: only repeats", sweep[name][0], hits(ids, ids), TIES))
        figures.append(near(f"90°, {name}: bigram counts", sweep[name][-1], counted, TIES))
        figures.append(at_most(f"{name}: largest fall from one angle to the next", fall(sweep[name]), SLACK))
    figures.append(at_most("off-diagonal energy: largest fall", fall(sweep[ENERGY]), ROUNDING))
    rows: list[list[str | float | None]] = [
        [f"{degrees}°", *(sweep[name][i] for name in COLUMNS)] for i, degrees in enumerate(ANGLES)
    ]
    tables = [Table("Next-token accuracy for K convolved with (sin θ, cos θ)", ["θ", *COLUMNS], rows)]
    return Findings(
        [*figures, *explained_away(lab, x, ids)],
        [*tables, elsewhere(lab, x, ids)],
        {"angles": list(ANGLES), "sweep": sweep, "counting": counted},
    )


def fall(values: list[float]) -> float:
    return max(a - b for a, b in pairwise(values))


def scores(solution: refengine.Solution, ids: counts.Ids) -> tuple[float, float]:
    """Next-token accuracy as it is, and where the token just read may not be guessed again."""
    return hits(guesses(solution), ids), hits(others(solution.o, ids), ids)


def elsewhere(lab: Lab, x: Array, ids: counts.Ids) -> Table:
    """The same taps, and averages of up to four tokens, on K, Q or V."""
    channels = x.shape[-1]
    kinds = {f"(sin, cos) of {STEEP}°": taps(STEEP, channels)}
    kinds |= {f"average of {n}": refengine.Conv(np.full((channels, n), 1 / n), activation=None) for n in (2, 3, 4)}
    rows: list[list[str | float | None]] = []
    for kind, conv in kinds.items():
        row: list[str | float | None] = [kind]
        for name in ("conv_k", "conv_q", "conv_v"):
            row += scores(lab.solve(mesa(LAMB), x, x, x, **{name: conv}), ids)
        rows.append(row)
    columns = ["taps", *(f"{name}{masked}" for name in ("K", "Q", "V") for masked in ("", ", masked"))]
    return Table("Mesa's next-token accuracy by what is convolved", columns, rows)


def explained_away(lab: Lab, x: Array, ids: counts.Ids) -> list[Figure]:
    """Keys [x_t; x_{t-1}] side by side, read through the past's half alone."""
    past = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    k, q = np.concatenate([x, past], axis=-1), np.concatenate([np.zeros_like(x), x], axis=-1)
    found = {
        learner.label: hits(guesses(lab.solve(learner, q, k, x)), ids) for learner in (linear(), mesa(LAMB), delta(0.3))
    }
    hebb, *correcting = found.items()
    counted = hits(counts.counted(ids, x.shape[-1]).guess, ids)
    return [
        near("keys of present and past, read by the past: linear attention", hebb[1], counted, TIES),
        *(
            at_most(f"the same: {label} over linear attention", rate - hebb[1], -SLACK, limit=True)
            for label, rate in correcting
        ),
    ]


def others(o: Array, ids: counts.Ids) -> counts.Ids:
    """The guess where the token just read may not be guessed again."""
    masked = o[0, :, 0].copy()
    masked[np.arange(len(ids)), ids] = -np.inf
    return np.asarray(masked.argmax(axis=-1), np.int64)


CLAIM = Claim(
    number=9,
    name="tap",
    sentence="A short convolution on K is the shift in learnable form: the more it weighs the past token, the better "
    "the memory predicts the next.",
    experiment="the text, one-hot, V = K, K convolved with (sin θ, cos θ); masked: the present token may not "
    "be guessed",
    run=run,
    reads_text=True,
    limit="with K = V and the present token in the key too, a learner that corrects its errors explains the past away; "
    "only adding (linear attention) does not",
    weight=3.0,
)
