"""The front end against plain arithmetic in balls, through the whole road, within the bound that the solution
carries: in float64, and at a hundred bits in double-double."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case, problem

import refengine
from refengine.engine.definition import define
from refengine.engine.run import execute
from refengine.frontend.norm import PLACES

flint = pytest.importorskip("flint")
CHANNELS = 10  # H K = 2 * 5


def check(name, arguments):
    p = problem(name, arguments)
    s = execute(p)
    flint.ctx.prec = 256
    o, final = define(p, "balls")
    c = execute(problem(name, dict(arguments, precision="certified")))
    within(s.o, 0 * s.o, o, s.bound["o"][..., None])
    within(s.final_state, 0 * s.final_state, final, s.bound["final_state"], axis=2)
    within(c.o, c.low["o"], o, c.bound["o.lo"][..., None])
    within(c.final_state, c.low["final_state"], final, c.bound["final_state.lo"], axis=2)
    assert (c.bound["o.lo"].max(axis=1) <= 2.0**-40 * s.bound["o"].max(axis=1)).all()
    return s


def within(high, low, exact, bound, axis=None):
    """Every sum is as near to the exact value as its bound says: by itself, or in the norm of an axis."""
    away = np.frompyfunc(lambda x, y, b: float(abs(flint.arb(float(x)) + flint.arb(float(y)) - b).abs_upper()), 3, 1)
    wrong = np.asarray(away(high, low, exact), dtype=float)
    assert np.isfinite(bound).all()
    assert ((wrong if axis is None else np.sqrt((wrong**2).sum(axis=axis))) <= bound).all()


def short(name="gated_delta_rule", **shape):
    return case(name, T=13, B=1, **shape)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-200, 0.0])
def test_l2norm(place, size):
    x = short()
    x["k"] = x["k"] * size
    s = check("gated_delta_rule", dict(x, use_qk_l2norm=refengine.L2Norm(1e-6, place)))
    assert s.worst() < 1e-10


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("residual", [False, True])
def test_short_convolution(width, activation, residual):
    rng = np.random.default_rng(width)
    conv = refengine.Conv(
        rng.standard_normal((CHANNELS, width)), rng.standard_normal(CHANNELS), activation, residual=residual
    )
    check("gated_delta_rule", dict(short(), conv_k=conv, use_qk_l2norm=True))


def test_convolutions_on_all_three_with_shifts_states_and_packing():
    rng = np.random.default_rng(1)
    x = case("gated_delta_rule", cu_seqlens=[0, 0, 2, 9, 9])
    for letter, channels, shift in (("q", 10, 1), ("k", 10, 2), ("v", 28, 0)):
        state = rng.standard_normal((4, channels, 3 + shift))
        x[f"conv_{letter}"] = refengine.Conv(rng.standard_normal((channels, 4)), None, "silu", state)
    check("gated_delta_rule", dict(x, query_shift=1, key_shift=2))


def test_flash_linear_attention_keeps_one_slot_more_in_its_convolution_state():
    rng = np.random.default_rng(2)
    weight, state = rng.standard_normal((CHANNELS, 4)), rng.standard_normal((1, CHANNELS, 4))
    ours = refengine.solve("gated_delta_rule", **short(), conv_k=refengine.Conv(weight, state=state[..., 1:]))
    theirs = refengine.solve("gated_delta_rule", **short(), conv_k=refengine.Conv(weight, state=state))
    assert ours.o.tobytes() == theirs.o.tobytes()


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("bound", [None, -5.0])
def test_raw_gate_per_head(size, bound):
    rng = np.random.default_rng(3)
    x = short()
    gate = refengine.Gate(
        size * rng.standard_normal(x.pop("g").shape), rng.uniform(-2, 2, 4), rng.standard_normal(4), bound
    )
    check("gated_delta_rule", dict(x, gate=gate))


@pytest.mark.parametrize("bound", [None, -5.0])
def test_raw_gate_per_channel(bound):
    rng = np.random.default_rng(4)
    x = short("kda")
    raw = 3 * rng.standard_normal(x.pop("g").shape)
    A_log = None if bound else rng.uniform(-2, 2, 4)
    check("kda", dict(x, gate=refengine.Gate(raw, A_log, rng.standard_normal(4 * 5), bound)))


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("name", ["gated_delta_rule", "longhorn"])
def test_beta_from_logits(name, doubled):
    x = short(name)
    logits = 10 * np.random.default_rng(5).standard_normal(x.pop("beta").shape)
    check(name, dict(x, beta_logits=logits, allow_neg_eigval=doubled))


def test_tied_values_are_the_keys_before_shift_and_convolution():
    x = case("delta_rule", "still", H=2, HV=2, T=9)
    conv = refengine.Conv(np.ones((CHANNELS, 2)))
    tied = check("delta_rule", dict(x, tie_values=True, conv_k=conv, key_shift=1))
    plain = refengine.solve("delta_rule", **{**x, "v": x["k"]}, conv_k=conv, key_shift=1)
    assert tied.o.tobytes() == plain.o.tobytes()


@pytest.mark.parametrize("name", ["gated_delta_product", "comba", "rwkv7", "gdn2"])
def test_other_ops_through_the_whole_front_end(name):
    x = case(name, T=7, B=1)
    channels = CHANNELS * x.get("num_householder", 1)
    conv = refengine.Conv(np.random.default_rng(6).standard_normal((channels, 3)))
    check(name, dict(x, conv_k=conv, key_shift=1, use_qk_l2norm=True))


def test_the_real_sample_is_within_its_bound():
    """Two heads of the shipped sample: trained q, k, v in bfloat16."""
    from refengine.data import path
    from refengine.io.tensorfile import read

    tensors, _ = read(path("minilm_layer3"))
    part = {n: np.asarray(x)[:, :40, :2] for n, x in tensors.items()}
    s = check("gated_delta_rule", dict(part, use_qk_l2norm=True, key_shift=1))
    assert s.worst() < 1e-12 * abs(s.o).max()
