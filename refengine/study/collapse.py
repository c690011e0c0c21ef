"""C2: one step a token is no rescue from K = V; only forgetting is."""

from __future__ import annotations

from typing import Any

import numpy as np

from .claim import Claim, Figure, Findings, at_least, at_most, near
from .lab import SURE, Lab, directions, mean
from .learners import Array, Learner, comba, delta, gated_delta, kimi
from .moments import Moments, of_delta

D, T = 32, 512  # channels, tokens
SAMPLES = 128
STOPS = (64, 256)
DENSE = list(range(0, T + 1, 16))  # for the plot
BETA, ALPHA = 0.5, 0.98
CHANNELS = np.linspace(0.96, 0.99, D)  # KDA's decays
ONE_HOT_BETA, ROUNDING = 0.1, 1e-12
KEPT = 0.1  # E|I - S|^2 / d of a memory that has not become the identity


def run(lab: Lab) -> Findings:
    k = directions(lab.rng(2), 1, T, SAMPLES * lab.scale, D)
    figures: list[Figure] = []
    curves: list[dict[str, Any]] = []
    for beta in (1.0, 0.5):
        learner, distance = delta(beta), (1 - beta * (2 - beta) / D) ** np.arange(T + 1)
        measured, _ = identity(lab, learner, k)
        curves.append(curve(learner, measured, distance))
        for t in STOPS:
            value, error = mean(measured[DENSE.index(t)])
            figures.append(near(f"{learner.label}, T = {t}: E|I − S|²/d", value, distance[t], SURE * error))
    for learner, trace, moments in forgetting():
        measured, traces = identity(lab, learner, k)
        curves.append(curve(learner, measured, moments.distance()))
        value, error = mean(traces[-1])
        not_yet = abs(trace - moments.trace()[-1])
        figures.append(near(f"{learner.label}, T = {T}: tr S/d", value, trace, SURE * error + not_yet))
        figures.append(at_least(f"{learner.label}, T = {T}: E|I − S|²/d", measured[-1].mean(), KEPT))
    figures.append(at_most("one-hot text: max |S − diag(1 − (1 − β)ⁿ)|", one_hot_error(lab), ROUNDING))
    return Findings(figures, data={"t": DENSE, "curves": curves})


def forgetting() -> list[tuple[Learner, float, Moments]]:
    """Learners with a decay, the stationary tr S / d of each, and their moments on the way there."""
    each = (BETA / D) / (1 - CHANNELS + CHANNELS * BETA / D)
    return [
        (
            gated_delta(BETA, ALPHA),
            (BETA / D) / (1 - ALPHA + ALPHA * BETA / D),
            of_delta(T, D, BETA, ALPHA),
        ),
        (comba(BETA, ALPHA), (BETA / D) / (1 - ALPHA + BETA / D), of_delta(T, D, BETA, ALPHA, "pre")),
        (kimi(BETA, CHANNELS), float(each.mean()), of_delta(T, D, BETA, CHANNELS)),
    ]


def identity(lab: Lab, learner: Learner, k: Array) -> tuple[Array, Array]:
    """|I - S|^2 / d and tr S / d [stops, samples] of a memory with V = K."""
    states = lab.solve(learner, k, k, k, tie_values=True, states_at=DENSE).states[:, 0]
    return ((states - np.eye(D)) ** 2).sum((-1, -2)) / D, np.trace(states, axis1=-2, axis2=-1) / D


def curve(learner: Learner, measured: Array, theory: Array) -> dict[str, Any]:
    return {"label": learner.label, "measured": measured.mean(1).tolist(), "theory": theory[DENSE].tolist()}


def one_hot_error(lab: Lab) -> float:
    """The largest difference on the text from what n repetitions of a token make of it."""
    x = lab.text.one_hot()
    state = lab.solve(delta(ONE_HOT_BETA), x, x, x).final_state[0, 0]
    n = np.bincount(lab.text.ids, minlength=lab.text.size)
    return float(abs(state - np.diag(1 - (1 - ONE_HOT_BETA) ** n)).max())


CLAIM = Claim(
    number=2,
    name="collapse",
    sentence="One step a token does not rescue DeltaNet: with K = V its memory becomes the identity exponentially "
    "fast, and only forgetting keeps it from that.",
    experiment=f"random unit keys in d = {D}, V = K, T to {T}; and the text, one-hot",
    run=run,
    reads_text=True,
)
