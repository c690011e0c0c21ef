"""l2norm of queries and keys, and where its eps stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, nearest
from ..kernels import elementwise, norm
from ..numbers.bounded import Bounded
from ..numbers.doubled import Doubled

PLACES = {"inside": norm.INSIDE, "outside": norm.OUTSIDE, "max": norm.MAX}


@dataclass(frozen=True)
class L2Norm:
    """x / sqrt(|x|^2 + eps) ("inside"), x / (|x| + eps) ("outside"), or x / max(|x|, eps) ("max"), over the last axis.

    "inside" with 1e-6 is flash-linear-attention's and Hugging Face's; "outside" 1e-6 the Comba repository's recurrent
    kernel and Gated KalmaNet, 1e-5 LaCT; "max" 1e-12 `torch.nn.functional.normalize` and RWKV-7. They differ by 1e-6
    at |x| = 1 and by a third at 1e-3.
    """

    eps: float = 1e-6
    place: str = "inside"

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise InputError(f"There is no l2norm {self.place!r}{nearest(str(self.place), PLACES)}.")
        if not 1e-140 <= self.eps < float("inf"):
            raise InputError(f"The eps of l2norm is {self.eps}; it must be finite, and at least 1e-140.")

    def __call__(self, x: Bounded) -> Bounded:
        if isinstance(x, Doubled):
            size = x.square_sum()
            if self.place == "inside":
                return x / (size + size.filled(self.eps)).root()
            length = size.root()
            return x / (length + length.filled(self.eps) if self.place == "outside" else length.at_least(self.eps))
        rows = np.ascontiguousarray(x.value, dtype=np.float64).reshape(-1, x.value.shape[-1])
        squares, y, dy = np.empty(len(rows)), np.empty_like(rows), np.empty(len(rows))
        elementwise.square_sums(rows, squares)
        norm.l2norm(rows, squares, np.ascontiguousarray(x.error).ravel(), self.eps, PLACES[self.place], y, dy)
        return Bounded(y.reshape(x.value.shape), dy.reshape(x.error.shape))
