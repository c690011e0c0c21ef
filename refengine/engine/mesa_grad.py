"""The exact learner's adjoint: a task for every sequence and value head, and a second road to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import mesa_grad as kernel
from ..kernels import spd
from ..numbers.bounded import Bounded, U, row_norm
from ..numbers.traced import Traced
from ..spec import Mesa
from .mesa import SOLVERS
from .plan import Plan, plan
from .prepare import scale_of
from .problem import Problem
from .run import Progress, run_all
from .solution import Cotangents

Array = NDArray[Any]
SIDES = "q k v b a mix"


class Adjoint:
    """One problem's adjoint under way in one float type, its channels in order or reversed."""

    def __init__(
        self,
        p: Problem,
        x: Mesa,
        do: Array,
        dfinal: tuple[Array | None, ...],
        dtype: Any,
        way: int,
        threads: int | None,
    ) -> None:
        self.p, self.x, self.way, self.dtype = p, x, way, np.dtype(dtype)
        none = np.zeros((0, 0, 1, 1))
        given = [none if y is None else y.value for y in (x.q, x.k, x.v, x.b, x.a, x.mix)]
        self.arrays = tuple(np.ascontiguousarray(y[..., ::way], self.dtype) for y in given)
        q, _, v, *_ = self.arrays
        self.do = np.ascontiguousarray(do[..., ::way], self.dtype)
        self.K, self.V, self.heads = q.shape[3], v.shape[3], v.shape[2]
        B, T = q.shape[:2]
        self.found = tuple(np.zeros((B, T, self.heads, y.shape[3]), self.dtype) for y in self.arrays)
        N, sizes = len(p.segments), (self.K, self.V)
        self.lamb = np.ascontiguousarray(x.lamb.value[0, 0, :, ::way], self.dtype)
        self.dlamb = np.zeros((N, self.heads, self.lamb.shape[1]), self.dtype)
        self.owed = tuple(np.zeros((N, self.heads, self.K, n), self.dtype) for n in sizes)
        self.start = tuple(np.zeros_like(y) for y in self.owed)
        for whole, parts in ((self.owed, dfinal), (self.start, p.initial)):
            for to, part in zip(whole, parts, strict=True):
                if part is not None:
                    to[:] = part[..., ::way, ::way]
        self.scale = self.dtype.type(scale_of(p)[0])
        solver = SOLVERS[x.solver] + (x.solver == "cg" and x.start == "diagonal")
        self.rule = (solver, x.iterations, self.dtype.type(x.omega if x.solver == "chebyshev" else x.eps))
        self.plan: Plan = plan(p, self.heads, 1, 1, threads)

    @property
    def work(self) -> int:
        return int(sum(t1 - t0 for _, t0, t1 in self.p.segments) * self.heads)

    def tasks(self) -> Iterator[tuple[int, int]]:
        """(sequence, head), longest sequences first."""
        order = sorted(range(len(self.p.segments)), key=lambda n: self.p.segments[n][1] - self.p.segments[n][2])
        return ((n, h) for n in order for h in range(self.heads))

    def run(self, task: tuple[int, int], stop: Event, done: Callable[[int], None]) -> None:
        n, h = task
        if not stop.is_set():
            self.sweep(self.p.segments[n], n, h)
            done(self.p.segments[n][2] - self.p.segments[n][1])

    def sweep(self, place: tuple[int, int, int], n: int, h: int) -> None:
        heads = tuple(h // (self.heads // y.shape[2]) if y.size else 0 for y in self.arrays)
        _, k, v, b, a, _ = self.arrays
        windows, W = -(-(place[2] - place[1]) // kernel.WINDOW), kernel.WINDOW + 1
        K, V, d = self.K, self.V, self.dtype
        marks = np.empty((windows, K, K), d), np.empty((windows, K, V), d)
        kernel.forth(place, heads, k, v, a, b, self.start[0][n, h].copy(), self.start[1][n, h].copy(), *marks)
        L = spd.lanes(d)
        panels = [np.zeros(spd.panels(K, L), d) for _ in range(2)]
        vectors = np.zeros((kernel.VECTORS, -(-K // 4) * 4 * L), d), np.zeros((3, L), d)
        few = np.zeros((kernel.ROWS, K), d), np.zeros((2, V), d)
        room = (np.empty((W, K, K), d), np.empty((W, K, V), d), *panels, *vectors, *few)
        lamb = np.repeat(self.lamb[h if self.lamb.shape[0] > 1 else 0][:, None], L, axis=1)
        given = (self.arrays, lamb, self.x.share, self.x.mix is not None, self.scale, self.do)
        owed = self.owed[0][n, h], self.owed[1][n, h]
        kernel.back(place, heads, *given, *marks, *owed, room, self.rule, (*self.found, self.dlamb[n, h]))

    def compile(self) -> None:
        if self.p.segments and self.heads:
            self.sweep((0, 0, 0), 0, 0)

    def operands(self) -> dict[str, Array]:
        """What is owed to every operand by its name, channels in order, value heads apart, float64."""
        values = {
            name: y for name, y in zip(SIDES.split(), self.found, strict=True) if getattr(self.x, name) is not None
        }
        lamb = np.zeros(self.dlamb.shape[1:])
        for part in self.dlamb.astype(np.float64):
            lamb += part
        values["lamb"] = lamb[None, None]
        return {name: y[..., :: self.way].astype(np.float64) for name, y in values.items()}

    def initial(self) -> tuple[Array, ...]:
        return tuple(y[..., :: self.way, :: self.way].astype(np.float64) for y in self.owed)


def adjoint(
    p: Problem, x: Mesa, do: Array, dfinal: tuple[Array | None, ...], threads: int | None, progress: Progress | None
) -> Cotangents:
    """What a loss owes to every operand of the lowered problem, and to its initial memories: in float64 twice, the
    second time with all channels in reverse; in float32 once, against float64.

    A solver that iterates is taken as exact, as in flash-linear-attention: its answer stands for x, and the same
    iteration solves the adjoint system.
    """
    plain: dict[str, Any] = {n: y.plain for n, y in vars(x).items() if isinstance(y, Traced)}
    x = replace(x, **plain)
    roads = ((p.precision, 1), ("float64", 1 if p.precision == "float32" else -1))
    first, second = (Adjoint(p, x, do, dfinal, dtype, way, threads) for dtype, way in roads)
    run_all(first, progress and (lambda n, _: progress(n, 2 * first.work)))
    run_all(second, progress and (lambda n, _: progress(first.work + n, 2 * first.work)))
    other = second.operands()
    owed = {}
    for name, value in first.operands().items():
        number = getattr(x, name)
        apart = row_norm(value - other[name]) + U * row_norm(value)
        together = Bounded(value, apart).gathered(number.value.shape[2])
        owed[name] = together
    initial = first.initial()
    off = tuple(np.sqrt(((y - z) ** 2).sum(axis=2)) for y, z in zip(initial, second.initial(), strict=True))
    said = "compared (with float64)" if p.precision == "float32" else "compared (with the channels in reverse order)"
    if x.solver != "exact":
        said += f"; {x.solver} taken as exact, the adjoint system by the same iteration"
    return Cotangents(owed, {}, initial, off, said, (first.plan,))
