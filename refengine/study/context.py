"""C3: with K = V a regression remembers nothing of its context; attention does."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

import refengine

from . import resolvent
from .claim import Claim, Figure, Findings, Table, at_least, at_most, near
from .lab import SURE, Lab, directions, sensitivity
from .learners import Learner, comba, delta, gated_delta, kimi, lact, linear, mesa, softmax, titans, ttt
from .moments import of_delta, of_linear, of_momentum

D, T = 32, 256  # channels, tokens
SAMPLES = 32
UNRELATED = sqrt(2)
CHANNELS = np.linspace(0.9, 0.99, D)  # KDA's decays
LEADING = 0.05  # relative: what a theory leaves out that is exact only as d grows
FIRST_ORDER = 0.12  # relative: what softmax's leaves out, which is the first order in 1 / T

CORRECTING = ("delta_rule", "mesa_net", "titans", "ttt_linear")  # their errors, without forgetting
BENT = ("ttt_linear", "lact")  # not linear in their values: what they output without any is left in it
NOTHING, ATTENDS = 0.1, 0.3  # sensitivities

SELF, SHIFTED, APART = "K = V", "key shifted", "K, V apart"
CONVOLVED = ("conv K 2", "conv K 3", "conv K 4", "conv Q 2", "conv V 2")


def learners(rng: np.random.Generator) -> list[tuple[Learner, float | None, float]]:
    """Each with the theory of its sensitivity for K = V, if there is one, and what it leaves out, relatively."""
    exact = [
        (linear(), of_linear(T, D)),
        (delta(1.0), of_delta(T, D, 1.0)),
        (delta(0.5), of_delta(T, D, 0.5)),
        (gated_delta(0.5, 0.95), of_delta(T, D, 0.5, 0.95)),
        (kimi(0.5, CHANNELS), of_delta(T, D, 0.5, CHANNELS)),
        (comba(0.5, 0.95), of_delta(T, D, 0.5, 0.95, "pre")),
        (titans(0.25, 0.5), of_momentum(T, D, 0.25, 0.5)),
    ]
    return [
        *((learner, float(moments.sensitivity()[-1]), 0.0) for learner, moments in exact),
        (mesa(1e-6), of_mesa(1e-6), LEADING),
        (mesa(1.0), of_mesa(1.0), LEADING),
        (ttt(rng, D, 10.0, 0.2), None, 0.0),  # its target v - k is 0 and no LayerNorm can shrink: only eps is learnt
        (lact(rng, D, D), None, 0.0),
        (softmax(sqrt(D)), of_softmax(sqrt(D)), FIRST_ORDER),
    ]


def of_mesa(lamb: float) -> float:
    """S = H (H + lambda I)^-1: what is not a multiple of the identity is all that differs between contexts."""
    r = resolvent.of_weights(np.ones(T), D, lamb)
    return sqrt(2 * r.spread / (r.share**2 + r.spread))


def of_softmax(scale: float) -> float:
    """o = sum w k / sum w with w = exp(scale q'k): x = q'k has density (1 - x^2)^((d - 3) / 2); to first order in 1 / T
    o is M q with M = E wx / E w, and its variance E w^2 |k - M q|^2 / (T (E w)^2)."""
    x = np.linspace(-1, 1, 20_001)
    density = (1 - x * x) ** ((D - 3) / 2)
    density /= density.sum()
    w = np.exp(scale * x)
    total = (density * w).sum()
    M = (density * w * x).sum() / total
    variance = (density * w * w * (1 - 2 * M * x + M * M)).sum() / (T * total**2)
    return float(sqrt(2 * variance / (M * M + variance)))


def pairings(channels: int) -> dict[str, dict[str, Any]]:
    """What `solve` is told for each; the convolutions average."""

    def average(width: int) -> refengine.Conv:
        return refengine.Conv(np.full((channels, width), 1 / width), activation=None)

    return {
        SELF: {"tie_values": True},
        SHIFTED: {"tie_values": True, "key_shift": 1},
        APART: {},
        **{f"conv K {n}": {"tie_values": True, "conv_k": average(n)} for n in (2, 3, 4)},
        "conv Q 2": {"tie_values": True, "conv_q": average(2)},
        "conv V 2": {"tie_values": True, "conv_v": average(2)},
    }


def run(lab: Lab) -> Findings:
    n = SAMPLES * lab.scale
    rng = lab.rng(3)
    k, v = directions(rng, 2, T, n, D), directions(rng, 2, T, n, D)
    q = np.broadcast_to(directions(rng, 1, T, n, D), k.shape)  # both contexts are asked the same
    figures: list[Figure] = []
    rows: list[list[str | float | None]] = []
    for learner, theory, left_out in learners(lab.rng(3, 0)):
        found = {
            name: sensitivity(lab.solve(learner, q, k, v, **how).o[:, -1]) for name, how in pairings(n * D).items()
        }
        rows.append([learner.label, theory, *(value for value, _ in found.values())])
        value, error = found[SELF]
        if theory is not None:
            figures.append(near(f"{learner.label}, {SELF}", value, theory, SURE * error + left_out * theory))
        for name in (SHIFTED, APART):
            value, error = found[name]
            if learner.op in BENT:
                figures.append(at_least(f"{learner.label}, {name}", value, ATTENDS))
            else:
                figures.append(near(f"{learner.label}, {name}", value, UNRELATED, SURE * error))
        value, _ = found[SELF]
        if learner.op == "softmax_attention":
            figures.append(at_least(f"{learner.label}, {SELF}: attends all the same", value, ATTENDS))
        elif learner.op in CORRECTING:
            figures.append(at_most(f"{learner.label}, {SELF}: next to nothing", value, NOTHING))
        else:
            figures.append(at_least(f"{learner.label}, {SELF}: something after all", value, ATTENDS, limit=True))
    title = f"|o_A − o_B| / rms of two contexts of {T} tokens (0: ignored, 1.41: nothing in common)"
    columns = ["learner", f"{SELF}: theory", *pairings(1)]
    return Findings(figures, [Table(title, columns, rows)], {"columns": columns, "rows": rows})


CLAIM = Claim(
    number=3,
    name="context",
    sentence="With K = V a memory remembers nothing of its context; with the key shifted, everything. It is a fault of "
    "regression: attention does without.",
    experiment=f"two contexts of {T} random unit keys in d = {D}, one query; √2 is what unrelated outputs differ by",
    run=run,
    limit="a memory that only adds has not become the identity after eight times as many tokens as channels, and "
    "one that forgets never does: what it keeps of K = V are its last tokens",
    weight=16.0,
)
