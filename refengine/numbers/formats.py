"""Number formats, and rounding to them: to nearest, or with noise of the same variance.

An operation that rounds once to a format of p bits errs by at most u = 2^-p, and by KAPPA u on average (root mean
square, mantissas spread log-uniformly): KAPPA = (2 / sqrt 12) sqrt(3 / (8 ln 2)).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf, log, nan, sqrt
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, nearest
from ..kernels import rounding
from .philox import words

KAPPA = (2 / sqrt(12)) * sqrt(3 / (8 * log(2)))
ARITHMETIC = {np.dtype(np.float32): (24, 127), np.dtype(np.float64): (53, 1023)}
Array = NDArray[Any]
Form = tuple[np.floating[Any], ...]


@dataclass(frozen=True)
class Format:
    """`bits` of precision (the hidden one too), the exponent of the smallest normal number, the largest number, and
    what is beyond that. `dtype` is how arrays of it are stored; tf32 has none of its own and is stored as float32."""

    name: str
    bits: int
    least_exponent: int
    largest: float
    dtype: np.dtype[Any]
    beyond: float = inf

    @property
    def u(self) -> float:
        """The unit roundoff: the largest relative error of rounding to nearest."""
        return 2.0**-self.bits

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0**self.least_exponent

    def form(self, arithmetic: np.dtype[Any]) -> Form:
        """The format for `kernels.rounding`, in the arithmetic it will be emulated in."""
        width, top = ARITHMETIC[arithmetic]
        room = width - self.bits
        numbers = (
            1.5 * 2.0**room,
            2.0 ** (1 - self.bits),
            2.0 ** max(self.least_exponent, 1 - top),
            2.0 ** (top - room - 1),
            min(self.largest, float(np.finfo(arithmetic).max)),
            self.beyond,
        )
        return tuple(arithmetic.type(x) for x in numbers)

    def within(self, arithmetic: np.dtype[Any]) -> bool:
        """Whether that arithmetic has more numbers than the format: whether rounding to it does anything."""
        return self.bits < ARITHMETIC[arithmetic][0]


FORMATS = {
    f.name: f
    for f in (
        Format("f64", 53, -1022, float(np.finfo(np.float64).max), np.dtype(np.float64)),
        Format("f32", 24, -126, float(np.finfo(np.float32).max), np.dtype(np.float32)),
        Format("tf32", 11, -126, (2 - 2.0**-10) * 2.0**127, np.dtype(np.float32)),
        Format("f16", 11, -14, 65504.0, np.dtype(np.float16)),
        Format("bf16", 8, -126, (2 - 2.0**-7) * 2.0**127, np.dtype(ml_dtypes.bfloat16)),
        Format("e4m3", 4, -6, 448.0, np.dtype(ml_dtypes.float8_e4m3fn), nan),
        Format("e5m2", 3, -14, 57344.0, np.dtype(ml_dtypes.float8_e5m2)),
    )
}


def get(name: str) -> Format:
    """The format of that name."""
    if name not in FORMATS:
        raise InputError(f"There is no number format {name!r}{nearest(name, FORMATS)}.")
    return FORMATS[name]


@cache
def noise(seed: int, arithmetic: np.dtype[Any]) -> Array:
    """A pool of numbers in (-1/2, 1/2) from Philox's stream of that seed; seed 0 is no noise."""
    if seed == 0:
        return np.zeros(rounding.POOL, arithmetic)
    drawn = words(rounding.POOL, (0x726F756E, 0x64696E67), stream=seed) >> np.uint32(9)
    pool: Array = ((drawn.astype(np.float64) + 0.5) * 2.0**-23 - 0.5).astype(arithmetic)
    return pool


def settle(x: Array, to: Format, arithmetic: np.dtype[Any], seed: int = 0, cursor: int = 0) -> Array:
    """x in the format `to`, held in `arithmetic`: to nearest, or with the noise of `seed`, from `cursor` on.

    float64 values that a narrower arithmetic will hold are rounded as float64 first."""
    flat = np.ascontiguousarray(x).reshape(-1)
    first = flat.dtype if to.within(flat.dtype) else arithmetic
    if not to.within(first):
        return flat.astype(arithmetic).reshape(x.shape)
    out = np.empty(flat.size, first)
    flat = flat.astype(first, copy=False)
    rounding.settle_all(flat, out, to.form(first), noise(seed, first), seed != 0, cursor % rounding.POOL)
    return out.astype(arithmetic, copy=False).reshape(x.shape)


def to_nearest(x: Array, to: Format) -> Array:
    """x rounded to the nearest number of a format, ties to even, held in float64."""
    return settle(np.asarray(x, np.float64), to, np.dtype(np.float64))
