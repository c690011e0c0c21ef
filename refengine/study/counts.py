"""What counting says of a text: the oracle beside every figure on text. It shares nothing with the solvers.

A one-hot memory is a table: row a is what it expects after token a. Each rule writes one row a step, and the row that
the present token names is the guess about the next one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .learners import Array

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Ledger:
    """table [V, V] at the end; guess [T] about the token at t + 1, and how far, squared, the row that made it was from
    that token [T - 1]."""

    table: Array
    guess: Ids
    loss: Array


def counted(ids: Ids, size: int, lamb: float = 0.0) -> Ledger:
    """Bigram counts; over lamb + the number of times the row was written, where lamb is positive."""
    counts, written = np.zeros((size, size)), np.zeros(size)
    guess, loss = np.empty(len(ids), np.int64), np.empty(len(ids) - 1)
    for t, now in enumerate(ids):
        if t:
            counts[ids[t - 1], now] += 1
            written[ids[t - 1]] += 1
        row = counts[now] / (written[now] + lamb) if lamb else counts[now]
        _note(t, row, ids, guess, loss)
    return Ledger(counts / (written + lamb)[:, None] if lamb else counts, guess, loss)


def averaged(ids: Ids, size: int, beta: float, g: float = 0.0) -> Ledger:
    """A moving average of each context's successors: its row goes beta of the way to the token that came, after every
    row was multiplied by e^g."""
    table = np.zeros((size, size))
    guess, loss = np.empty(len(ids), np.int64), np.empty(len(ids) - 1)
    for t, now in enumerate(ids):
        if g:
            table *= np.exp(g)
        if t:
            table[ids[t - 1]] *= 1 - beta
            table[ids[t - 1], now] += beta
        _note(t, table[now], ids, guess, loss)
    return Ledger(table, guess, loss)


def _note(t: int, row: Array, ids: Ids, guess: Ids, loss: Array) -> None:
    guess[t] = row.argmax()
    if t + 1 < len(ids):
        miss = row.copy()
        miss[ids[t + 1]] -= 1
        loss[t] = miss @ miss


def repeats(ids: Ids, size: int, lamb: float) -> Array:
    """How far, squared, an unshifted ridge regression is from each token before it is written [T - 1]: (lamb / (n +
    lamb))^2 after n times."""
    seen, loss = np.zeros(size), np.empty(len(ids) - 1)
    for t, now in enumerate(ids[:-1]):
        seen[now] += 1
        loss[t] = (lamb / (seen[ids[t + 1]] + lamb)) ** 2
    return loss


def backoff(ids: Ids, order: int) -> Ids:
    """Guesses [T] by the longest context of up to `order` - 1 tokens that was seen before; the more frequent token in a
    tie, and where nothing was seen."""
    seen: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    guess = np.zeros(len(ids), np.int64)
    tokens: Sequence[int] = ids.tolist()
    for t, now in enumerate(tokens):
        for n in range(1, min(order - 1, t) + 1):
            seen[tuple(tokens[t - n : t])][now] += 1
        for n in range(min(order - 1, t + 1), 0, -1):
            if found := seen.get(tuple(tokens[t + 1 - n : t + 1])):
                guess[t] = min(found, key=lambda token: (-found[token], token))
                break
    return guess


def bigrams(ids: Ids, size: int) -> Array:
    """C[a, b]: how often b follows a."""
    table = np.zeros((size, size))
    np.add.at(table, (ids[:-1], ids[1:]), 1)
    return table
