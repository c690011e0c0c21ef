"""Philox 4x32-10: random bits as a pure function of a key and a counter, the same on every machine.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (2011). Nothing is carried from draw to draw,
so whatever is drawn can be drawn again, in any order and in any language.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
STEPS = (0x9E3779B9, 0xBB67AE85)  # by which the two key words grow from round to round
ROUNDS = 10
WORD = np.uint64(0xFFFFFFFF)
HIGH = np.uint64(32)

Words = NDArray[np.uint32]


def philox(counter: NDArray[np.integer], key: tuple[int, int]) -> Words:
    """The block [..., 4] of 32-bit words for every counter [..., 4] of 32-bit words, under a key of two."""
    c = [np.asarray(counter[..., i], dtype=np.uint64) for i in range(4)]
    k = [int(key[0]), int(key[1])]
    for _ in range(ROUNDS):
        left, right = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [
            (right >> HIGH) ^ c[1] ^ np.uint64(k[0]),
            right & WORD,
            (left >> HIGH) ^ c[3] ^ np.uint64(k[1]),
            left & WORD,
        ]
        k = [(word + step) & 0xFFFFFFFF for word, step in zip(k, STEPS, strict=True)]
    return np.stack(c, axis=-1).astype(np.uint32)


def words(count: int, key: tuple[int, int], stream: int = 0) -> Words:
    """The first `count` words of one of 2^64 streams under a key: blocks 0, 1, ... in order."""
    blocks = -(-count // 4)
    counter = np.zeros((blocks, 4), np.uint64)
    counter[:, 0] = np.arange(blocks, dtype=np.uint64)
    counter[:, 2], counter[:, 3] = stream & 0xFFFFFFFF, stream >> 32
    return philox(counter, key).reshape(-1)[:count]
