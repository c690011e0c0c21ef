"""`precision="certified"` of the exact learner: its job with pairs for numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels import delta as columns
from ..kernels import delta_dd, spd
from ..kernels import mesa as single
from ..kernels import mesa_dd as kernel
from ..numbers.doubled import Doubled
from ..spec import Mesa
from . import mesa
from .certified import DOUBLE_DOUBLE, pairs_of, scale_of
from .delta import aligned
from .problem import Problem
from .solution import Answer

Array = NDArray[Any]


class Job(mesa.Job):
    """The exact learner's job, and the low parts beside it."""

    def __init__(self, p: Problem, x: Mesa, threads: int | None) -> None:
        if x.solver != "exact":
            raise InputError(f"{p.op.name} has precision 'certified' for solver='exact' only, not for {x.solver!r}.")
        super().__init__(p, x, threads)
        none = Doubled.exact(np.zeros((0, 0, 1, 1)))
        self.highs, self.lows = pairs_of((x.q, x.k, x.v, x.b, x.a, none if x.mix is None else x.mix))
        self.scale, error = scale_of(p)
        self.constants = delta_dd.constants(self.scale[0], error, self.K)
        self.low_o, self.low_final = np.zeros_like(self.o), tuple(np.zeros_like(y) for y in self.final)

    def scratch(self) -> tuple[Array, ...]:
        if not hasattr(self.room, "pairs"):
            L, rows, lanes = self.lanes, -(-self.K // 4) * 4, columns.lanes(self.dtype)
            P, panels = -(-self.K // L) * L, spd.panels(self.K, L)
            shapes = [(L, P)] * 4 + [(L,), (L, L), (panels,)] + [(rows * L,)] * 2 + [(L, lanes)] * 2
            pairs = tuple((aligned(shape, self.dtype), aligned(shape, self.dtype)) for shape in shapes)
            alone = [(panels,), (rows * L,), (rows * L,), (4, L), (L, single.SLOTS), (L, lanes)]
            self.room.pairs = pairs, tuple(aligned(shape, self.dtype) for shape in alone)
        room: tuple[Any, ...] = self.room.pairs
        return room

    def memory(self, n: int, h: int) -> tuple[Array, ...]:
        known = super().memory(n, h)
        return *known, np.zeros_like(known[0]), np.zeros_like(known[2])

    def arguments(self, h: int) -> tuple[Any, ...]:
        heads, _, errors, (lamb, *ridge), _, _ = super().arguments(h)
        return heads, self.highs, self.lows, errors, (lamb, np.zeros_like(lamb), *ridge), self.constants, self.scale

    def advance(self, where: tuple[int, ...], given: tuple[Any, ...], memory: tuple[Array, ...], bound: Array) -> None:
        kernel.run(where, *given, memory, self.o, self.low_o, bound, self.scratch())

    def leave(self, n: int, h: int, memory: tuple[Array, ...]) -> None:
        super().leave(n, h, memory)
        *_, low_h, low_s = memory
        lows = self.read((low_h, memory[1], low_s, *memory[3:7]))
        self.low_final[0][n, h], self.low_final[1][n, h], _ = lows

    def answer(self) -> Answer:
        return replace(super().answer(), low=(self.low_o, *self.low_final), certificate=DOUBLE_DOUBLE)
