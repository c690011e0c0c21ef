"""exp, log, sigmoid, softplus and 1/sqrt against balls: within the 0.51 ulp they claim (the quick sigmoid: 0.7), from
the smallest to the largest argument."""

from __future__ import annotations

import numpy as np
import pytest

from refengine.kernels import _math, elementwise
from refengine.kernels._jit import njit
from refengine.kernels._simd import BLOCK, spread, store, take
from refengine.numbers.bounded import apply

flint = pytest.importorskip("flint")
RNG = np.random.default_rng(7)
SMALL = 10.0 ** RNG.uniform(-300, -1, 2000)
GATES = np.concatenate([RNG.uniform(-700, 700, 3000), RNG.uniform(-30, 3, 6000), SMALL, -SMALL])
POSITIVE = np.concatenate(
    [10.0 ** RNG.uniform(-300, 300, 4000), 1 + RNG.uniform(-0.5, 1, 3000), 1 + SMALL[:1000], 1 - SMALL[:1000]]
)


@njit
def quick_sigmoid(x, y):
    """Whole vectors, and number by number what is left."""
    L = BLOCK // 8
    whole = x.size - x.size % L
    for i in range(0, whole, L):
        store(y, i, _math.quick_sigmoid(take(x, i, spread(1.0))))
    for i in range(whole, x.size):
        y[i] = _math.quick_sigmoid(x[i])


EXACT = {
    "exp": (GATES, lambda x: x.exp()),
    "sigmoid": (GATES, lambda x: 1 / (1 + (-x).exp())),
    "quick_sigmoid": (GATES, lambda x: 1 / (1 + (-x).exp())),
    "softplus": (GATES, lambda x: x.exp().log1p()),
    "log": (POSITIVE, lambda x: x.log()),
    "rsqrt": (POSITIVE, lambda x: x.rsqrt()),
}


@pytest.mark.parametrize("name", EXACT)
def test_within_half_an_ulp_and_a_little(name):
    x, exact = EXACT[name]
    y = apply(quick_sigmoid if name == "quick_sigmoid" else getattr(elementwise, name), x)
    flint.ctx.prec = 1200
    truth = [exact(flint.arb(float(t))) for t in x]
    away = np.array([float(abs(flint.arb(float(a)) - b).abs_upper()) for a, b in zip(y, truth, strict=True)])
    normal = abs(y) >= np.finfo(float).tiny
    assert normal.sum() > 0.5 * y.size
    assert (away[normal] <= (0.7 if name == "quick_sigmoid" else 0.51) * np.spacing(abs(y[normal]))).all()
    assert (away[~normal] <= 2.0**-1074).all()


def test_at_the_edges():
    inf, nan = np.inf, np.nan
    edges = np.array([0.0, -0.0, inf, -inf, nan, -745.2, 709.0, 710.0])
    with np.errstate(all="ignore"):
        assert np.array_equal(apply(elementwise.exp, edges)[:6], [1, 1, inf, 0, nan, 0], equal_nan=True)
        assert apply(elementwise.exp, edges)[7] == inf
        assert np.array_equal(apply(elementwise.sigmoid, edges)[:5], [0.5, 0.5, 1, 0, nan], equal_nan=True)
        assert np.array_equal(apply(quick_sigmoid, edges)[:5], [0.5, 0.5, 1, 0, nan], equal_nan=True)
        assert np.array_equal(apply(elementwise.softplus, edges)[2:5], [inf, 0, nan], equal_nan=True)
        assert np.array_equal(apply(elementwise.log, edges)[:5], [-inf, -inf, inf, nan, nan], equal_nan=True)


def test_lanes_do_as_numbers_do():
    whole = apply(quick_sigmoid, GATES)
    assert np.array_equal(whole, [apply(quick_sigmoid, GATES[i : i + 1])[0] for i in range(len(GATES))])


def test_sums_of_squares():
    for width in (1, 7, 8, 9, 64, 100):
        x = RNG.standard_normal((5, width))
        y = np.empty(5)
        elementwise.square_sums(x, y)
        assert np.allclose(y, (x.astype(np.longdouble) ** 2).sum(1), rtol=1e-14, atol=0)
