"""The second road: the delta core in its closed (triangular) form, in balls.

With P_t the product of the decays up to micro-step t, R = P (order "post") or P before t ("pre"), and chunks of at
most CHUNK micro-steps between which the state is carried:

    A_ij = (e_i R_i) . (k_j / P_j)    j < i          U = (I + diag(b) A)^-1 diag(b) (V - (E R) S_0)
    W_ij = (q_i P_i) . (k_j / P_j)    j <= i         O = s ((Q P) S_0 + W U),   S_C = P_C (S_0 + (K / P)' U)

A ball has any exponent, so the quotients are safe. The lowering of an op is the one the kernels use, over balls; the
recurrence is another one, with no sequence in it but the triangular solve.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..engine.definition import inputs, number_system
from ..engine.prepare import rank4
from ..engine.problem import Problem
from ..numbers.bounded import Bounded
from ..spec import ERASE_KEY
from .balls import library

Array = NDArray[Any]
CHUNK = 160


class Ball(Bounded):
    """`Bounded`'s arithmetic over arrays of balls, which carry their own errors."""

    @classmethod
    def exact(cls, value: NDArray[Any]) -> Self:
        return cls(value if value.dtype == object else number_system("balls")(value), np.zeros(value.shape[:-1]))

    def _of(self, value: Array) -> Self:
        return type(self)(value, np.zeros(value.shape[:-1]))

    def __mul__(self, other: Self) -> Self:
        return self._of(self.value * other.value)

    def __add__(self, other: Self) -> Self:
        return self._of(self.value + other.value)

    def __sub__(self, other: Self) -> Self:
        return self._of(self.value - other.value)

    def __truediv__(self, other: Self) -> Self:
        return self._of(self.value / other.value)

    def __neg__(self) -> Self:
        return self._of(-self.value)

    def square_sum(self) -> Self:
        return self._of((self.value * self.value).sum(axis=-1, keepdims=True))

    def relative(self) -> Self:
        return self

    def decay(self) -> Self:
        return self._of(np.exp(self.value))

    def unfold(self, channels: int) -> Self:
        B, T, heads, _ = self.value.shape
        return self._of(self.value.reshape(B, T, heads // channels, channels))


def lowered(p: Problem) -> Any:
    """The family's inputs in balls: the definition's front end, then the op's own lowering."""
    known = inputs(p, number_system("balls"))
    given = {t.name: None if known.get(t.name) is None else Ball.exact(rank4(t, known[t.name])) for t in p.op.inputs}
    return p.op.lower(given, convention=p.convention, **p.sizes, **p.options)


def scale_of(p: Problem) -> Any:
    arb = library().arb
    if p.scale is not None:
        return arb(p.scale)
    return arb(1) / arb(p.sizes["K"]).sqrt() if p.scale_is == "K^-1/2" else arb(1)


def matrix(rows: Array) -> Any:
    flint = library()
    return flint.arb_mat(rows.shape[0], rows.shape[1], rows.ravel().tolist())


def array(m: Any) -> Array:
    out = np.empty(m.nrows() * m.ncols(), dtype=object)
    out[:] = m.entries()
    return out.reshape(m.nrows(), m.ncols())


def product(x: Array, y: Array) -> Array:
    return array(matrix(x) * matrix(y))


def triangle(x: Array, y: Array, diagonal: int) -> Array:
    """x y', zero above that diagonal."""
    full = product(x, y.T)
    above = np.triu_indices(full.shape[0], diagonal + 1, full.shape[1])
    full[above] = library().arb(0)
    return full


def chunk(q: Array, k: Array, e: Array, a: Array, v: Array, b: Array, S: Array, pre: bool) -> tuple[Array, Array]:
    """(read-outs [C, V] before the scale, state [K, V] after) of one chunk."""
    arb = library().arb
    C, V = v.shape
    P = np.multiply.accumulate(a, axis=0) if C else a
    R = np.concatenate([a[:1] * 0 + 1, P[:-1]]) if pre else P
    A = triangle(e * R, k / P, -1)
    right = v - product(e * R, S)
    U = np.empty((C, V), dtype=object)
    for columns in [range(V)] if b.shape[1] == 1 else [[j] for j in range(V)]:
        step = b[:, columns[0] if b.shape[1] > 1 else 0][:, None]
        system = step * A
        for i in range(C):
            system[i, i] = arb(1)
        U[:, columns] = array(matrix(system).solve(matrix(step * right[:, columns])))
    o = product(q * P, S) + product(triangle(q * P, k / P, 0), U)
    last = P[-1][:, None]
    return o, last * (S + product((k / P).T, U))


def closed(p: Problem) -> tuple[Array, Array]:
    """(o, final_state) in balls."""
    x = lowered(p)
    one = x.v.exact(np.ones((*x.v.value.shape[:2], 1, 1)))
    e = x.k.filled(0.0) if x.e is None else x.k if x.e is ERASE_KEY else x.e
    parts = {"q": x.q, "k": x.k, "e": e, "a": x.a or one, "v": x.v, "b": x.b or one}
    heads, V, K = x.v.value.shape[2], x.v.value.shape[3], x.k.value.shape[3]
    o = np.empty((*x.q.value.shape[:2], heads, V), dtype=object)
    number = number_system("balls")
    first = np.zeros((len(p.segments), heads, K, V)) if p.initial_state is None else p.initial_state
    if x.folded:
        first = np.asarray(first).reshape(len(p.segments), p.sizes["HV"], K, -1).swapaxes(2, 3)
        first = first.reshape(len(p.segments), heads, K, 1)
    final = number(first).copy()
    for n, (row, t0, t1) in enumerate(p.segments):
        for h in range(heads):
            mine = {name: y.value[row, :, h // (heads // y.value.shape[2])] for name, y in parts.items()}
            for t in range(t0, t1, max(1, CHUNK // x.micro)):
                end = min(t + max(1, CHUNK // x.micro), t1)
                span = slice(t * x.micro, end * x.micro)
                cut = {name: mine[name][span] for name in "keavb"}
                if cut["a"].shape[1] == 1:
                    cut["a"] = np.repeat(cut["a"], K, axis=1)
                q = np.repeat(mine["q"][t:end], x.micro, axis=0)  # read after every micro-step, the last one is kept
                read, final[n, h] = chunk(q, S=final[n, h], pre=x.order == "pre", **cut)
                o[row, t:end, h] = read[x.micro - 1 :: x.micro]
    o = o * scale_of(p)
    if x.folded:
        HV, V = p.sizes["HV"], p.sizes["V"]
        o = o.reshape(*o.shape[:2], HV, V)
        final = final.reshape(-1, HV, V, K).swapaxes(2, 3)
    return o, final
