"""`precision="certified"`: a family's job in double-double, and which of its elements are proved correctly rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import delta_dd as kernel
from ..kernels.delta import SLOTS, WINDOW
from ..numbers.doubled import Doubled
from ..spec import Delta
from . import delta
from .delta import Operands, aligned, certain, unfolded
from .problem import Problem
from .solution import Answer

Array = NDArray[Any]
SHOWN = 8  # elements listed by place, of those not proved
DOUBLE_DOUBLE = "rigorous (running bound, double-double)"


def pairs_of(numbers: Iterable[Any]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The high parts of some operands and their low parts, as kernels take them."""
    each = [tuple(np.ascontiguousarray(part, np.float64) for part in x.parts) for x in numbers]
    return tuple(high for high, _ in each), tuple(low for _, low in each)


def scale_of(p: Problem) -> tuple[tuple[float, float], float]:
    """The scale's pair, and how far that may be from the number it stands for, relative to it."""
    if p.scale is not None or p.scale_is == "1":
        return (1.0 if p.scale is None else p.scale, 0.0), 0.0
    one = Doubled.exact(np.ones((1, 1, 1, 1)))
    scale = (one / one.filled(p.sizes["K"]).root()).relative()
    return (float(scale.value.item()), float(scale.low.item())), float(scale.error.item())


def two_halves(S: Array) -> Array:
    """Tiles [n, K, L] as [2 n, K, L / 2]."""
    n, K, L = S.shape
    return np.ascontiguousarray(S.reshape(n, K, 2, L // 2).swapaxes(1, 2)).reshape(2 * n, K, L // 2)


def whole(S: Array) -> Array:
    """Back from `two_halves`."""
    n, K, L = S.shape
    return np.ascontiguousarray(S.reshape(n // 2, 2, K, L).swapaxes(1, 2)).reshape(n // 2, K, 2 * L)


class Job(delta.Job):
    """The delta family's job with pairs for numbers: everything a float64 job has, and the low parts beside it."""

    def __init__(self, p: Problem, x: Delta, threads: int | None) -> None:
        super().__init__(p, x, threads)
        self.highs, self.lows = pairs_of(Operands.order(x))
        self.scale, error = scale_of(p)
        self.constants = kernel.constants(self.scale[0], error, self.K)
        self.low_o, self.low_final = np.empty_like(self.o), np.empty_like(self.final)

    def scratch(self) -> tuple[Array, ...]:
        if not hasattr(self.room, "arrays"):
            x, lines = (WINDOW + 1, self.K * kernel.CELLS), (4, -(-self.K // 16) * 16)
            shapes = (x, lines, (WINDOW, SLOTS), *[(WINDOW, self.lanes)] * 12)
            self.room.arrays = tuple(aligned(shape, self.dtype) for shape in shapes)
        arrays: tuple[Array, ...] = self.room.arrays
        return arrays

    def enter(self, tiles: int, start: Array | None) -> tuple[Array, ...]:
        S, N, E = super().enter(tiles, start)
        S = two_halves(S)
        high, low = aligned(S.shape, self.dtype), aligned(S.shape, self.dtype)
        high[:] = S
        return high, low, N, E

    def advance(self, place: tuple[int, ...], heads: tuple[int, ...], state: tuple[Array, ...], bound: Array) -> None:
        out = (self.o, self.low_o, bound, self.scratch(), self.rule, self.constants, self.scale)
        kernel.run(place, heads, self.highs, self.lows, self.operands.errors, *state, *out)

    def leave(self, n: int, h: int, columns: slice, state: tuple[Array, ...]) -> None:
        super().leave(n, h, columns, state)
        _, low, N, E = state
        self.low_final[n, h, :, columns], _ = self.columns_of((low, low, N, E), columns.stop - columns.start)

    def columns_of(self, state: tuple[Array, ...], width: int) -> tuple[Array, Array]:
        high, _, N, E = state
        return super().columns_of((whole(high), N, E), width)

    def answer(self) -> Answer:
        found = super().answer()
        low_o, low_final = self.low_o, self.low_final
        if self.folded:
            low_o, low_final = low_o.reshape(found.o.shape), unfolded(low_final, self.p.sizes["HV"], self.p.sizes["V"])
        return replace(found, low=(low_o, low_final), certificate=DOUBLE_DOUBLE)


def of_the_high_part(low: Array, bound: Array, axis: int) -> Array:
    """The bound on the rounded value alone: o by the largest entry of a row, a state by the norm of a column."""
    rest = (
        np.abs(low).max(axis=axis, initial=0.0) if axis == -1 else np.sqrt((low * low).sum(axis=axis)) * (1 + 2.0**-40)
    )
    return certain((rest + bound) * (1 + 2.0**-50), True)


def proved(high: Array, low: Array, bound: Array) -> Array:
    """Which elements are surely the exact answer's nearest float64: high + low +- bound lies between the midpoints to
    high's neighbours. An exact zero is proved by a bound of zero alone."""
    up, down = np.nextafter(high, np.inf) - high, high - np.nextafter(high, -np.inf)
    with np.errstate(invalid="ignore", under="ignore"):
        reach = bound * (1 + 2.0**-50)
        near = (low + reach < 0.5 * up * (1 - 2.0**-50)) & (reach - low < 0.5 * down * (1 - 2.0**-50))
        return np.asarray(near | ((bound == 0.0) & (low == 0.0)))


def correctly_rounded(outputs: Mapping[str, tuple[Array, Array, Array]]) -> dict[str, Any]:
    """How many elements of all outputs are proved correctly rounded, how many not, and where the first of those are."""
    count, missed = 0, 0
    where: list[str] = []
    for name, (high, low, bound) in outputs.items():
        sure = proved(high, low, bound)
        count += int(sure.sum())
        missed += int(sure.size - sure.sum())
        where += [f"{name}[{', '.join(map(str, at))}]" for at in np.argwhere(~sure)[: SHOWN - len(where)].tolist()]
    return {"proved": count, "not_proved": missed, "where": where}
