"""Numbers for golden inputs: from Philox words by integer arithmetic and exact scaling alone, so that any language can
draw them again. No library's distributions, no exp, no log."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..numbers.philox import words

Array = NDArray[np.floating[Any]]
BITS = {"bfloat16": 8, "float32": 24}


def key_of(text: str) -> tuple[int, int]:
    """The Philox key of a name: the first eight bytes of its SHA-256, as two big-endian words."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def rounded(x: Array, dtype: str) -> Array:
    """To the nearest number of that many bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    bits = BITS[dtype]
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits), dtype=np.float64)


def stored(x: Array, dtype: str) -> NDArray[Any]:
    """In the type a golden keeps it in, to which it has been rounded before."""
    return rounded(x, dtype).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


class Stream:
    """One tensor's numbers: stream n under a case's key, taken in order."""

    def __init__(self, key: tuple[int, int], stream: int) -> None:
        self.key, self.stream, self.used = key, stream, 0

    def take(self, count: int) -> NDArray[np.uint64]:
        got = words(self.used + count, self.key, self.stream)[self.used :]
        self.used += count
        return got.astype(np.uint64)

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
        """low .. high, both ends included: floor(word (high - low + 1) / 2^32) above low."""
        span = np.uint64(high - low + 1)
        drawn = (self.take(int(np.prod(shape))) * span) >> np.uint64(32)
        return drawn.astype(np.int64).reshape(shape) + low

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """(m + 1/2) 2^-24, m the word's 24 high bits: never 0 or 1."""
        m = self.take(int(np.prod(shape))) >> np.uint64(8)
        return ((m.astype(np.float64) + 0.5) * 2.0**-24).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Nearly normal: the centred sum of four 16-bit numbers, times 1.75 2^-16 (a standard deviation of 1.01)."""
        pairs = self.take(2 * int(np.prod(shape))).reshape(-1, 2)
        low, high = pairs & np.uint64(0xFFFF), pairs >> np.uint64(16)
        total = (low + high).sum(axis=1).astype(np.int64) - 2 * 0xFFFF
        scaled: Array = total * np.float64(1.75 * 2.0**-16)
        return scaled.reshape(shape)

    def permutations(self, count: int, size: int) -> NDArray[np.int64]:
        """[count, size]: permutations of 0 .. size - 1, by Fisher and Yates from the last entry down."""
        out = np.tile(np.arange(size), (count, 1))
        for row in out:
            for i in range(size - 1, 0, -1):
                j = int(self.integers((), 0, i))
                row[i], row[j] = row[j], row[i]
        return out


def unit(x: Array) -> Array:
    """Rows over their Euclidean norm: sums in order, a root and quotients, each one IEEE rounding. A zero row stays."""
    total = np.zeros(x.shape[:-1])
    for i in range(x.shape[-1]):
        total = total + x[..., i] * x[..., i]
    length = np.sqrt(total)
    return np.asarray(x / np.where(length > 0, length, 1.0)[..., None])
