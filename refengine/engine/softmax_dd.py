"""`precision="certified"` of softmax attention: its job with pairs for numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import delta_dd
from ..kernels import softmax_dd as kernel
from ..spec import Softmax
from . import softmax
from .certified import DOUBLE_DOUBLE, pairs_of, scale_of
from .problem import Problem
from .solution import Answer

Array = NDArray[Any]


class Job(softmax.Job):
    """The softmax job, and the low parts beside it."""

    def __init__(self, p: Problem, x: Softmax, threads: int | None) -> None:
        super().__init__(p, x, threads)
        self.highs, self.lows = pairs_of((x.q, x.k, x.v))
        self.scale, error = scale_of(p)
        self.constants = delta_dd.constants(self.scale[0], error, x.q.value.shape[3])
        self.low_o = np.zeros_like(self.o)

    def scratch(self) -> tuple[Any, ...]:
        if not hasattr(self.room, "pair"):
            high = super().scratch()
            self.room.pair = high, tuple(np.zeros_like(y) for y in high)
        pair: tuple[Any, ...] = self.room.pair
        return pair

    def attend(self, place: tuple[int, int, int, int], h: int) -> None:
        out = (self.o, self.low_o, self.bound[place[0], h], self.constants, self.scale, self.scratch())
        kernel.run(place, (h, h // self.shared), self.highs, self.lows, self.errors, *out)

    def answer(self) -> Answer:
        return replace(super().answer(), low=(self.low_o,), certificate=DOUBLE_DOUBLE)
