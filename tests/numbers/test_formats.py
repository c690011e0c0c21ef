"""Rounding against ml_dtypes and NumPy, whose conversions are other people's; the noise's variance against theory."""

import numpy as np
import pytest

from refengine.numbers import formats

STORED = [f for f in formats.FORMATS.values() if f.name not in ("tf32", "f64")]


def values():
    rng = np.random.default_rng(7)
    wide = rng.standard_normal(20000) * 2.0 ** rng.integers(-160, 130, 20000)
    near = np.concatenate([f.tiny * rng.uniform(0, 4, 500) for f in formats.FORMATS.values()])
    top = np.concatenate([f.largest * rng.uniform(0.9, 1.1, 500) for f in formats.FORMATS.values() if f.bits < 24])
    ties = (1 + np.arange(1, 64, 2) * 2.0**-9)[:, None] * 2.0 ** np.arange(-20, 10)
    return np.concatenate([wide, near, top, ties.ravel(), [0.0, -0.0, np.inf, -np.inf, np.nan]])


@pytest.mark.parametrize("form", STORED, ids=lambda f: f.name)
def test_nearest_is_what_others_convert_to(form):
    with np.errstate(all="ignore"):
        x = values().astype(np.float32).astype(np.float64)  # they go through float32, and would round twice
        want = x.astype(np.float32).astype(form.dtype).astype(np.float64)
    got = formats.to_nearest(x, form)
    np.testing.assert_array_equal(got, want)


def test_float32_arithmetic_rounds_as_float64_does():
    x = values()
    x = x[np.abs(x) < 2.0**100].astype(np.float32)
    for name in ("bf16", "f16", "tf32", "e5m2"):
        form = formats.get(name)
        narrow = formats.settle(x, form, np.dtype(np.float32))
        np.testing.assert_array_equal(narrow, formats.to_nearest(x, form).astype(np.float32))


def test_tf32_keeps_ten_bits():
    x = np.array([1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-12])
    np.testing.assert_array_equal(formats.to_nearest(x, formats.get("tf32")), [1 + 2.0**-10, 1, 1 + 2.0**-9, 1])


@pytest.mark.parametrize("arithmetic", [np.float32, np.float64])
def test_noise_has_the_variance_of_rounding_and_spares_what_is_exact(arithmetic):
    form, dtype = formats.get("bf16"), np.dtype(arithmetic)
    rng = np.random.default_rng(3)
    x = np.exp2(rng.uniform(0, 8, 200_000)).astype(dtype)
    noisy = formats.settle(x, form, dtype, seed=5).astype(np.float64) / x - 1
    near = formats.settle(x, form, dtype).astype(np.float64) / x - 1
    expected = formats.KAPPA * form.u
    assert np.sqrt((near**2).mean()) == pytest.approx(expected, rel=0.01)
    assert np.sqrt((noisy**2).mean()) == pytest.approx(expected, rel=0.01)
    assert abs(noisy.mean()) < 5 * expected / np.sqrt(x.size)
    exact = formats.settle(x, form, dtype)
    np.testing.assert_array_equal(formats.settle(exact, form, dtype, seed=5), exact)
    assert not np.array_equal(formats.settle(x, form, dtype, seed=5), formats.settle(x, form, dtype, seed=6))
