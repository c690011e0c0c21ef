"""l2norm of queries and keys, and where its eps stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, nearest
from ..kernels import elementwise, norm
from ..numbers.bounded import TINY, UP, Array, Bounded, U, apply
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

    def __call__(self, x: Any) -> Any:
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
        unit = Bounded(y.reshape(x.value.shape), dy.reshape(x.error.shape))
        plain = x.plain

        def pull(d: Bounded) -> tuple[Bounded]:
            r, w = self.slopes(plain, unit, squares.reshape(x.error.shape))
            return ((d - w * (w * d).row_sum()) * r,)

        return x.derive(unit, pull)

    def slopes(self, x: Bounded, y: Bounded, squares: Array) -> tuple[Bounded, Bounded]:
        """r, w of the derivative r (I - w w'): r is 1 / denominator; w is y where that is |(x, eps)|, x / |x| or 0 on
        the two sides of a maximum, and x / sqrt(|x| (|x| + eps)), 0 at 0, where eps is added to |x|.

        A denominator changes by at most dx with x, w by at most dx times its largest slope between x and x + dx, and
        never by more than 2.
        """
        rounding = (0.5 * (x.value.shape[-1] // 8 + 24) + 8.0) * U * UP
        size = np.sqrt(squares)
        near = np.maximum(size * (1.0 - rounding) - x.error, 0.0)  # |x| is at least that
        floor = float(np.sqrt(self.eps)) * (1 - 2 * U) if self.place == "inside" else self.eps
        if self.place == "inside":
            r = apply(elementwise.rsqrt, squares + self.eps)
        else:
            r = 1.0 / (size + self.eps if self.place == "outside" else np.maximum(size, self.eps))
        least = np.maximum(1.0 / r * (1.0 - rounding) - x.error, floor)
        r_error = r * (rounding + x.error / least) * UP + TINY
        w = y
        if self.place == "outside":
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.where(size[..., None] > 0, x.value / np.sqrt(size * (size + self.eps))[..., None], 0.0)
                moved = np.where(x.error > 0, x.error / np.sqrt(near * (near + self.eps)), 0.0)
            w = Bounded(value, np.minimum(moved + 2 * rounding, 2.0) * UP)
        elif self.place == "max":
            doubtful = np.abs(size - self.eps) <= x.error + rounding * size
            inside = size > self.eps
            w = Bounded(
                np.where(inside[..., None], y.value, 0.0), np.where(doubtful, 2.0, np.where(inside, y.error, 0))
            )
        return Bounded(r[..., None], r_error), w
