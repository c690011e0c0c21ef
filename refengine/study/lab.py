"""What every experiment uses: seeded samples, the text, `refengine.solve`, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refengine

from .learners import Array, Learner, mesa
from .text import Text, load

SURE = 4.0  # standard errors that a sampled figure may be from its theory


@dataclass
class Lab:
    """text: None for the shipped prose, which is then read only if a claim wants it. scale: how many times the usual
    samples and tokens. tick: called after each solve."""

    given: Text | None = None
    scale: int = 1
    tick: Callable[[], None] = lambda: None
    threads: int | None = None
    seed: int = field(default=0)

    @cached_property
    def text(self) -> Text:
        return load(scale=self.scale) if self.given is None else self.given

    def rng(self, *stream: int) -> np.random.Generator:
        """A generator of its own for each use, so that no claim's figures depend on which others run."""
        return np.random.default_rng([self.seed, *stream])

    def solve(self, learner: Learner, q: Array, k: Array, v: Array, **more: Any) -> refengine.Solution:
        """One question of `refengine.solve`; more: its pairing, states and so on."""
        asked = learner.arguments(q, k, v) | learner.starting(v.shape[2]) | more
        solution = refengine.solve(learner.op, **asked, threads=self.threads)
        self.tick()
        return solution

    def ridge(self, lamb: float, state: Any) -> Array:
        """The memory S [N, K, V] of Mesa's state of N heads: read with unit vectors by tokens that write nothing."""
        N, K, V = state[1].shape[1:]
        units = np.broadcast_to(np.eye(K)[None, :, None], (1, K, N, K))
        nothing = np.zeros((1, K, N, V))
        o = self.solve(mesa(lamb, beta=0.0), units, np.zeros_like(units), nothing, initial_state=state).o
        return np.asarray(o[0].transpose(1, 0, 2))


def directions(rng: np.random.Generator, *shape: int) -> Array:
    """Isotropic unit vectors."""
    x = rng.standard_normal(shape)
    return np.asarray(x / np.sqrt((x * x).sum(-1, keepdims=True)))


def mean(x: Array) -> tuple[float, float]:
    """The mean of independent samples, and its standard error."""
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(x.size))


def hits(guess: NDArray[np.integer[Any]], ids: NDArray[np.int64], offset: int = 1) -> float:
    """How often what was guessed at t is the token at t + offset, over the second half of the text."""
    targets = np.arange(len(ids) // 2, len(ids))
    targets = targets[(targets >= offset) & (targets - offset < len(ids))]
    return float((guess[targets - offset] == ids[targets]).mean())


def guesses(solution: refengine.Solution) -> NDArray[np.int64]:
    """The token that the read-out names at each t: the largest entry, the more frequent token in a tie."""
    return np.asarray(solution.o[0, :, 0].argmax(axis=-1), np.int64)


def sensitivity(o: Array) -> tuple[float, float]:
    """How much a read-out depends on what was stored: sqrt(mean |o_A - o_B|^2 / mean |o|^2) over samples, and its
    standard error by the jackknife. 0 where the context is ignored, sqrt 2 where the two have nothing in common.

    o [2, samples, channels]: one query read from the memories of two independent contexts."""
    apart, size = ((o[0] - o[1]) ** 2).sum(-1), (o * o).sum(-1).mean(0)
    n = len(apart)
    left_out = np.sqrt((apart.sum() - apart) / (size.sum() - size))
    error = np.sqrt((n - 1) * left_out.var())
    return float(np.sqrt(apart.sum() / size.sum())), float(error)
