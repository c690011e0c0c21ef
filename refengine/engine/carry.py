"""What passes from one window of tokens to the next, where a long sequence is solved in windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Carry:
    """What one window of tokens leaves to the next, so that windows answer, and are bounded, to the bit as one.

    tokens: how many are behind. state [N, heads, K, columns], and of its columns the norms and the errors
    [N, heads, padded columns], as the kernel has them.
    """

    tokens: int = 0
    state: Array | None = None
    norm: Array | None = None
    error: Array | None = None

    def enter(self, n: int, h: int, first: int, state: tuple[Array, ...]) -> None:
        """A block's tiles, its columns from `first` on, put where the last window left them."""
        S, N, E = state
        tiles, K, lanes = S.shape
        for kept, to in ((self.norm, N), (self.error, E)):
            part = kept[n, h, first : first + tiles * lanes]  # type: ignore[index]  # there, once tokens are behind
            to.reshape(-1)[: len(part)] = part
        part = self.state[n, h, :, first : first + tiles * lanes]  # type: ignore[index]
        padded = np.zeros((K, tiles * lanes), S.dtype)
        padded[:, : part.shape[1]] = part
        S[:] = padded.reshape(K, tiles, lanes).swapaxes(0, 1)
