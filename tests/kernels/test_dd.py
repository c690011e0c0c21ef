"""Double-double arithmetic and elementary functions against balls: within the units that the bounds assume."""

from __future__ import annotations

import numpy as np
import pytest

from refengine.kernels import elementwise_dd
from refengine.numbers.doubled import Doubled, apply

flint = pytest.importorskip("flint")
RNG = np.random.default_rng(11)
U = 2.0**-53


def some(size, low, high):
    """Normal pairs of either sign, with magnitudes 2^low to 2^high."""
    x = np.ldexp(RNG.uniform(1, 2, size), RNG.integers(low, high, size)) * RNG.choice([-1, 1], size)
    return x, x * RNG.uniform(-U / 2, U / 2, size)


def close(values, by=1e-12):
    """Pairs that nearly cancel those."""
    x = -values[0] * (1 + by * RNG.standard_normal(values[0].size))
    return x, x * RNG.uniform(-U / 2, U / 2, x.size)


X, Y = some(4000, -30, 30), some(4000, -30, 30)
GATES = [
    np.concatenate(parts) for parts in zip(some(1500, -60, 4), some(1500, 3, 9), some(500, -200, -60), strict=True)
]
PAIRS = {
    "add": [(X, Y, 3.01), (X, close(X), 3.01)],
    "times": [(X, Y, 5.0), (X, close(X), 5.0)],
    "over": [(X, Y, 16.0), (X, close(X), 16.0)],
}
FUNCTIONS = {
    "root": lambda x: x.sqrt(),
    "exp": lambda x: x.exp(),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "softplus": lambda x: x.exp().log1p(),
}


def balls(parts):
    each = np.frompyfunc(lambda h, l: flint.arb(float(h)) + flint.arb(float(l)), 2, 1)
    return each(*parts)


def relative(parts, exact):
    away = np.frompyfunc(lambda a, b: float((abs(a - b) / abs(b)).abs_upper()) if b != 0 else float(a != 0), 2, 1)
    return np.asarray(away(balls(parts), exact), dtype=float)


@pytest.mark.parametrize("name", PAIRS)
def test_arithmetic(name):
    flint.ctx.prec = 400
    operation = {"add": "__add__", "times": "__mul__", "over": "__truediv__"}[name]
    for x, y, units in PAIRS[name]:
        z = apply(getattr(elementwise_dd, name), x, y)
        exact = [getattr(a, operation)(b) for a, b in zip(balls(x), balls(y), strict=True)]
        assert relative(z, exact).max() <= units * U * U
        assert units * U * U <= Doubled.unit
        assert (abs(z[1]) <= np.spacing(abs(z[0])) / 2).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions(name):
    flint.ctx.prec = 1500
    x = [part.copy() for part in GATES]
    if name == "root":
        x[1] *= np.sign(x[0])
        x[0] = abs(x[0])
    inside = abs(x[0]) < 600  # beyond, the low part of e^-|x| underflows
    x = [part[inside] for part in x]
    z = apply(getattr(elementwise_dd, name), tuple(x))
    used = relative(z, [FUNCTIONS[name](b) for b in balls(x)]) / Doubled.elementary
    assert used.max() <= 0.25
    assert used.max() >= 1e-4
    assert (abs(z[1]) <= np.spacing(abs(z[0])) / 2).all()


def test_where_the_low_part_underflows():
    flint.ctx.prec = 1500
    x = RNG.uniform(-745, -640, 200), np.zeros(200)
    for name in ("exp", "sigmoid", "softplus"):
        high, low = apply(getattr(elementwise_dd, name), x)
        exact = [FUNCTIONS[name](b) for b in balls(x)]
        for h, l, b in zip(high, low, exact, strict=True):
            assert abs(flint.arb(float(h)) + flint.arb(float(l)) - b) <= abs(b) * Doubled.elementary + 2.0**-1072


def test_at_the_edges():
    inf, nan = np.inf, np.nan
    edges = (np.array([0.0, -0.0, -inf, -800.0, nan]), np.zeros(5))
    with np.errstate(all="ignore"):
        assert np.array_equal(apply(elementwise_dd.exp, edges)[0], [1, 1, 0, 0, nan], equal_nan=True)
        assert np.array_equal(apply(elementwise_dd.sigmoid, edges)[0], [0.5, 0.5, 0, 0, nan], equal_nan=True)
    assert apply(elementwise_dd.root, (np.zeros(1), np.zeros(1)))[0] == 0


def test_sums_of_squares():
    flint.ctx.prec = 300
    for width in (1, 7, 64):
        x = some(5 * width, -5, 5)
        x = tuple(part.reshape(5, width) for part in x)
        sums = Doubled.squares(x)
        exact = [sum((b * b for b in row), flint.arb(0)) for row in balls(x)]
        assert relative(sums, exact).max() <= (width + 8) * Doubled.unit
