"""The kernel against the definition: in float64 within both bounds, in 128-bit balls within its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spanning import REGIMES, SHAPES, case, every, problem

import refengine
from refengine import ops
from refengine.engine.definition import define
from refengine.engine.run import execute

flint = pytest.importorskip("flint")
BITS = 1024  # of a ball: Newton-Schulz widens one by many orders of magnitude
BATCHED = tuple(name for name in ops.NAMES if "chunk_size" in ops.get(name).options)
PACKED = [0, 0, 3, 4, 4, 9, 11, 11]  # empty sequences first, last and in between


def furthest(values, balls):
    """Upper bounds on |value - exact|, element by element."""
    away = np.frompyfunc(lambda x, ball: float(abs(flint.arb(float(x)) - ball).abs_upper()), 2, 1)
    return np.asarray(away(values, balls), dtype=np.float64) if values.size else np.zeros(values.shape)


def parts(final):
    """The final states of an op, however many."""
    return final if isinstance(final, tuple) else (final,)


def check_states(s, final, furthest=furthest, times=1):
    for name, balls in zip(s.finals, parts(final), strict=True):
        away = furthest(s.finals[name], balls)
        assert (np.sqrt((away**2).sum(axis=2)) <= times * s.bound[name]).all()


def check(name, arguments):
    """Both outputs of one problem inside their bounds, by balls; returns the largest share of a bound used."""
    p = problem(name, arguments)
    s = execute(p)
    flint.ctx.prec = BITS
    o, final = define(p, "balls")
    used_o = furthest(s.o, o)
    assert all(np.isfinite(bound).all() for bound in s.bound.values())
    assert (used_o <= s.bound["o"][..., None]).all()
    check_states(s, final)
    return s, p


@pytest.mark.parametrize(("name", "convention", "regime"), every())
def test_kernel_is_within_its_bound_of_the_balls(name, convention, regime):
    check(name, {**case(name, regime, B=1), "convention": convention})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ops.NAMES)
def test_awkward_shapes(name, shape):
    check(name, case(name, **{"T": 9, **SHAPES[shape]}))


@pytest.mark.parametrize("name", ops.NAMES)
def test_packed_sequences_with_empty_ones(name):
    s, _ = check(name, case(name, cu_seqlens=PACKED))
    assert all(final.shape[0] == len(PACKED) - 1 for final in s.finals.values())


@pytest.mark.parametrize("name", [n for n in ops.NAMES if any(len(t.axes) > 1 for t in ops.get(n).inputs)])
def test_a_step_per_value_channel(name):
    check(name, case(name, wide_beta=True, T=11))


@pytest.mark.parametrize(("name", "convention", "regime"), every())
def test_float64_step_agrees_within_both_bounds(name, convention, regime):
    """NumPy sums a dot product in an order of its own: K roundings where the kernel has K / 4 + 2, so at most four
    times the bound, and libm's exp. LaCT's Newton-Schulz steps can make 1e-11 of what rounds by 1e-16; there both err
    about as much, which the kernel's bound says."""
    p = problem(name, {**case(name, regime), "convention": convention})
    s = execute(p)
    o, final = define(p)
    if name not in BATCHED:  # whose bound is the error found, which says nothing of other roundings
        assert (abs(s.o - o) <= 6 * s.bound["o"][..., None]).all()
        check_states(s, final, lambda x, y: abs(x - y), 6)
    scale = abs(o).max()
    assert abs(s.o - o).max() <= max(1e-11 * scale, 6 * s.bound["o"].max() if name in BATCHED else 0)


@pytest.mark.parametrize("name", ops.NAMES)
def test_step_runs_in_complex128(name):
    p = problem(name, case(name, T=5))
    real, _ = define(p)
    o, _ = define(p, "complex128")
    assert o.dtype == np.complex128
    assert abs(o - real).max() <= 1e-12 * abs(real).max()


@pytest.mark.parametrize("name", ops.NAMES)
def test_float32_is_within_its_own_bound(name):
    p = problem(name, {**case(name, B=1, T=21), "precision": "float32"})
    s = execute(p)
    assert s.o.dtype == np.float32
    flint.ctx.prec = BITS
    o, final = define(p, "balls")
    assert (furthest(s.o, o) <= s.bound["o"][..., None]).all()
    check_states(s, final)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    """Shapes, grouping, packing and regimes drawn at random."""
    name = data.draw(st.sampled_from(ops.NAMES))
    H = data.draw(st.integers(1, 3))
    lengths = data.draw(st.none() | st.lists(st.integers(0, 7), min_size=1, max_size=4))
    shape = dict(
        H=H, HV=H * data.draw(st.integers(1, 3)), K=data.draw(st.integers(1, 18)), V=data.draw(st.integers(1, 18))
    )
    if lengths is None:
        shape |= dict(B=data.draw(st.integers(1, 2)), T=data.draw(st.integers(0, 9)))
    else:
        shape |= dict(cu_seqlens=[0, *np.cumsum(lengths).tolist()])
    regime = data.draw(st.sampled_from(REGIMES))
    check(name, case(name, regime, seed=data.draw(st.integers(0, 99)), start=data.draw(st.booleans()), **shape))


def test_the_bound_is_tight_enough_to_be_useful():
    """On ordinary inputs the worst bound stays far below float32 noise: what certifies the verification of float32
    kernels."""
    s = refengine.solve("gated_delta_rule", **case("gated_delta_rule", T=300, K=32, V=16, B=1))
    assert s.worst() < 2.0**-24 * abs(s.o).max() / 16
