"""C5: keys and values of one source are nearly a K = V; a head much narrower than its source less so."""

from __future__ import annotations

from math import exp, lgamma, sqrt
from typing import Any

import numpy as np

import refengine

from .claim import Claim, Figure, Findings, Table, at_least, at_most, near
from .lab import SURE, Lab, directions, sensitivity
from .learners import Array, mesa, softmax

HEAD, T = 32, 256  # the head's channels, tokens
SAMPLES = 64
LAMB = 1e-6
WIDTHS = (16, 24, 64, 512)  # of the source
NARROW, WIDE = 16, 512
LEADING = 0.1  # relative: what theories to the first order in width / T leave out
NOTHING = 1e-5  # sensitivity of a memory that only knows how V follows from K: of the order of LAMB
ATTENDS = 0.3  # sensitivity of an attention that uses its context
UNRELATED = sqrt(2)


def of_ratio(r: float) -> float:
    """Of how much a read-out differs, relative to what it is in every context."""
    return sqrt(2 * r / (1 + r))


def raw(width: int) -> float:
    """v = B k + rest, where the rest has (width - HEAD) / HEAD times the size of B k and is independent of k; a
    regression on T keys carries HEAD / (T - HEAD - 1) of it. Exact for Gaussian sources."""
    return of_ratio(max(0, width - HEAD) / (T - HEAD - 1))


def normalised(width: int) -> float:
    """With k / |k| for k the length of k is lost too, of which E|k| is no news: |k| is chi with min(width, HEAD)
    degrees."""
    n = min(width, HEAD)
    mean = sqrt(2) * exp(lgamma((n + 1) / 2) - lgamma(n / 2))
    return of_ratio((max(0, width - HEAD) + n - mean**2) / (mean**2 * (T / n - 1)))


def convolved(width: int) -> float:
    """k_t = (x_t + x_{t-1}) / 2 predicts x_t up to (x_t - x_{t-1}) / 2, which its neighbours contradict in part."""
    return of_ratio((width - 1) / (2 * (T - width)))


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """A random matrix with orthonormal rows, or columns where those are fewer."""
    long, short = max(rows, columns), min(rows, columns)
    basis = np.linalg.qr(rng.standard_normal((long, short)))[0]
    return np.asarray(basis if rows == long else basis.T)


def run(lab: Lab) -> Findings:
    figures: list[Figure] = []
    rows: list[list[str | float | None]] = []
    for width in WIDTHS:
        q, k, v = projected(lab, width)
        averaged = refengine.Conv(np.full((k.shape[2] * HEAD, 2), 0.5), activation=None)
        asked: dict[str, dict[str, Any]] = {
            "as projected": {},
            "l2norm": {"use_qk_l2norm": True},
            "key shifted": {"key_shift": 1},
            "conv K (½, ½)": {"conv_k": averaged},
        }
        found = {name: sensitivity(lab.solve(mesa(LAMB), q, k, v, **how).o[:, -1]) for name, how in asked.items()}
        attention = sensitivity(lab.solve(softmax(1.0), q, k, v).o[:, -1])[0]
        rows.append([str(width), raw(width), normalised(width), *(value for value, _ in found.values()), attention])
        what = f"source {width} wide, head {HEAD}"
        value, error = found["as projected"]
        if width > HEAD:
            figures.append(near(f"{what}: sensitivity", value, raw(width), SURE * error))
        else:
            figures.append(at_most(f"{what}: sensitivity", value, NOTHING))
            figures.append(at_least(f"{what}: softmax attention's", attention, ATTENDS))
        value, error = found["l2norm"]
        expected = normalised(width)
        figures.append(near(f"{what}, l2norm: sensitivity", value, expected, SURE * error + LEADING * expected))
        value, error = found["key shifted"]
        figures.append(near(f"{what}, key shifted: sensitivity", value, UNRELATED, SURE * error))
        if width == NARROW:
            value, error = found["conv K (½, ½)"]
            expected = convolved(width)
            figures.append(near(f"{what}, conv K (½, ½)", value, expected, SURE * error + LEADING * expected))
        if width == WIDE:
            value, error = found["as projected"]
            figures.append(at_least(f"{what}: most of the context is there", value, UNRELATED / 2, limit=True))
    columns = ["source", "theory", "l2norm: theory", *asked, "softmax"]
    return Findings(figures, [Table("Sensitivity to context", columns, rows)])


def projected(lab: Lab, width: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values [2, T, samples, HEAD]: x through two maps of each sample's own, both contexts through
    the same; the two are asked the same."""
    rng = lab.rng(5, width)
    k, v = np.empty((2, 2, T, SAMPLES * lab.scale, HEAD))
    for n in range(k.shape[2]):
        x = rng.standard_normal((2, T, width))
        k[:, :, n], v[:, :, n] = x @ orthonormal(rng, HEAD, width).T, x @ orthonormal(rng, HEAD, width).T
    return np.broadcast_to(directions(rng, 1, T, k.shape[2], HEAD), k.shape), k, v


CLAIM = Claim(
    number=5,
    name="source",
    sentence="Keys and values that are two projections of one x teach the memory next to nothing of its context.",
    experiment=f"x Gaussian of 16 to 512 channels, a head of {HEAD}, T = {T}, Mesa λ = {LAMB:g}",
    run=run,
    limit="only while the source is not much wider than the head: of 512 channels a head of 32 sees so few that V is "
    "mostly news",
    weight=10.0,
)
