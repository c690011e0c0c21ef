"""Softmax attention: what it must be in cases that need no arithmetic, and its bound where that is hard."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case, problem

import refengine
from refengine.engine.definition import define
from refengine.engine.run import execute

flint = pytest.importorskip("flint")
NAME = "softmax_attention"


def within(arguments):
    """The answer inside its bound, by balls."""
    p = problem(NAME, arguments)
    s = execute(p)
    flint.ctx.prec = 300
    o, final = define(p, "balls")
    assert final == s.final_state == ()
    away = np.frompyfunc(lambda x, ball: float(abs(flint.arb(float(x)) - ball).abs_upper()), 2, 1)
    assert np.isfinite(s.bound["o"]).all()
    assert (np.asarray(away(s.o, o), dtype=float) <= s.bound["o"][..., None]).all()
    return s


def test_the_first_token_reads_itself_and_equal_scores_the_mean():
    x = case(NAME, T=9, B=1)
    s = refengine.solve(NAME, **x, scale=0.0)
    v = np.repeat(x["v"], 2, axis=2)
    assert (s.o[:, 0] == v[:, 0]).all()
    mean = np.cumsum(v, axis=1) / np.arange(1, 10)[:, None, None]
    assert (abs(s.o - mean) <= s.bound["o"][..., None] + 1e-14).all()


def test_a_key_that_fits_far_better_is_looked_up():
    T = 12
    x = np.eye(T)[None, :, None, :]
    s = refengine.solve(NAME, q=np.roll(x, 3, axis=1), k=x, v=x, scale=1e4)
    assert (s.o[0, 3:, 0] == x[0, : T - 3, 0]).all()


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e3, 1e5])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_sharp_and_flat_weights(size, precision):
    x = case(NAME, B=1, T=33)
    s = within(dict(x, q=x["q"] * size, precision=precision))
    if size <= 30.0:
        assert s.worst() < (1e-11 if precision == "float64" else 1e-2) * abs(s.o).max()


def test_values_of_very_different_lengths():
    x = case(NAME, B=1, T=33)
    x["v"] = x["v"] * 10.0 ** np.arange(33)[None, :, None, None]
    within(x)


def test_it_has_no_state_to_start_from():
    with pytest.raises(refengine.InputError, match="softmax_attention carries 0"):
        refengine.solve(NAME, **case(NAME, T=3), initial_state=np.zeros((2, 4, 5, 7)))
    o, final = refengine.ops.softmax_attention(*(case(NAME, T=3)[n] for n in "qkv"))
    assert final is None
    assert o.shape == (2, 3, 4, 7)
