"""Ops that are points of one another: bitwise where the arithmetic is the same, within the sum of both bounds where
it is not."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import REGIMES, case

import refengine


def solve(name, arguments, **changes):
    known = dict(arguments, **changes)
    return refengine.solve(name, **{n: x for n, x in known.items() if x is not None})


def bitwise(s, t):
    assert s.o.tobytes() == t.o.tobytes()
    assert s.final_state.tobytes() == t.final_state.tobytes()


def within(s, t):
    """No further apart than both bounds together; and the bounds say something."""
    assert np.isfinite(s.bound["o"]).all()
    assert s.worst() < 1e-6 * max(1.0, abs(s.o).max())
    assert (abs(s.o - t.o) <= (s.bound["o"] + t.bound["o"])[..., None]).all()
    apart = np.sqrt(((s.final_state - t.final_state) ** 2).sum(axis=2))
    assert (apart <= s.bound["final_state"] + t.bound["final_state"]).all()


@pytest.fixture(params=REGIMES)
def gdn(request):
    return case("gated_delta_rule", request.param)


def over_channels(x, K):
    return np.repeat(x[..., None], K, axis=-1)


def without(arguments, *names):
    return {n: x for n, x in arguments.items() if n not in names}


def test_gdn_without_decay_is_deltanet(gdn):
    bitwise(solve("gated_delta_rule", gdn, g=np.zeros_like(gdn["g"])), solve("delta_rule", without(gdn, "g")))


def test_kda_with_equal_channels_is_gdn(gdn):
    bitwise(solve("kda", gdn, g=over_channels(gdn["g"], gdn["k"].shape[-1])), solve("gated_delta_rule", gdn))


def test_gdn2_with_equal_gates_is_kda(gdn):
    K, V = gdn["k"].shape[-1], gdn["v"].shape[-1]
    g, beta = over_channels(gdn["g"], K), gdn["beta"]
    two = solve("gdn2", without(gdn, "beta"), g=g, b=over_channels(beta, K), w=over_channels(beta, V))
    within(two, solve("kda", gdn, g=g))


def test_delta_product_of_one_is_gdn(gdn):
    bitwise(solve("gated_delta_product", gdn, num_householder=1), solve("gated_delta_rule", gdn))


@pytest.mark.parametrize("n", [2, 3])
def test_delta_product_is_gdn_on_the_expanded_sequence(n):
    x = case("gated_delta_product", n=n, T=9)
    s = refengine.solve("gated_delta_product", **x)
    B, T, H, K = x["q"].shape
    g = np.zeros((B, T * n, x["g"].shape[2]))
    g[:, ::n] = x["g"]
    q = np.zeros((B, T * n, H, K))
    q[:, n - 1 :: n] = x["q"]
    t = solve("gated_delta_rule", without(x, "num_householder"), g=g, q=q)
    assert s.o.tobytes() == np.ascontiguousarray(t.o[:, n - 1 :: n]).tobytes()
    assert s.final_state.tobytes() == t.final_state.tobytes()


def test_delta_product_at_two_reflects():
    """beta = 2 with unit keys and no values: an orthogonal transition keeps every column's length."""
    x = case("gated_delta_product", n=1)
    s = solve(
        "gated_delta_product",
        x,
        g=None,
        v=np.zeros_like(x["v"]),
        beta=np.full_like(x["beta"], 2.0),
        use_qk_l2norm=refengine.L2Norm(1e-140),
    )
    before, after = (np.sqrt((y**2).sum(axis=2)) for y in (x["initial_state"], s.final_state))
    assert (abs(after - before) <= s.bound["final_state"] + 1e-14 * before).all()


def test_comba_predicting_with_the_decayed_key_is_gdn(gdn):
    p = np.exp(gdn["g"])[..., None] * np.repeat(gdn["k"], 2, axis=2)
    q, k = (np.repeat(gdn[n], 2, axis=2) for n in "qk")
    within(solve("comba", gdn, q=q, k=k, p=p), solve("gated_delta_rule", gdn))


def test_comba_after_the_decay_with_its_own_key_is_gdn(gdn):
    plain = solve("gated_delta_rule", gdn)
    bitwise(solve("comba", gdn, convention="iplr"), plain)
    within(solve("comba", gdn, convention="iplr", d=np.zeros(gdn["v"].shape[2]), p=gdn["k"]), plain)


def test_comba_that_erases_nothing_is_gated_linear_attention(gdn):
    s = solve("comba", gdn, p=np.zeros_like(gdn["k"]))
    within(s, solve("simple_gla", without(gdn, "beta"), v=gdn["beta"][..., None] * gdn["v"]))


@pytest.mark.parametrize("regime", REGIMES)
def test_gated_linear_attention_by_its_many_names(regime):
    x = case("simple_gla", regime)
    gated = solve("simple_gla", x)
    bitwise(solve("gla", x, g=over_channels(x["g"], x["k"].shape[-1])), gated)
    bitwise(solve("simple_gla", x, g=np.zeros_like(x["g"])), solve("linear_attn", without(x, "g")))


def test_retention_and_lightning_are_constant_gates():
    x = case("linear_attn")
    heads = np.arange(x["v"].shape[2])
    ones = np.ones(x["v"].shape[:3])
    within(solve("retention", x), solve("simple_gla", x, g=np.log1p(-(2.0 ** -(5 + heads))) * ones))
    slope = -8 / len(heads) * (1 - 3 / 24) * heads
    within(solve("lightning_attn", x, layer_idx=3, num_layers=24), solve("simple_gla", x, g=slope * ones))


def test_longhorn_is_deltanet_with_the_implicit_step():
    x = case("longhorn")
    square = np.repeat((x["k"] ** 2).sum(-1), 2, axis=2)
    explicit = x["beta"] / (1 + x["beta"] * square)
    within(solve("longhorn", x, scale=0.5), solve("delta_rule", x, beta=explicit, scale=0.5))


def test_longhorn_without_regularisation_stores_exactly():
    """beta -> infinity is Kaczmarz' step: read with its own key, every value comes back."""
    x = case("longhorn", H=2, HV=2)
    s = solve("longhorn", x, beta=np.full_like(x["beta"], 1e18), q=x["k"])
    assert (abs(s.o - x["v"]) <= s.bound["o"][..., None] + 1e-15 * abs(x["v"])).all()


def test_rwkv7_is_dplr_renamed():
    x = case("rwkv7")
    t = solve("dplr", without(x, "r", "w"), q=x["r"], g=x["w"], scale=1.0)
    bitwise(solve("rwkv7", x), t)
    y = case("iplr")
    K, HV = y["k"].shape[-1], y["v"].shape[2]
    bitwise(solve("iplr", y), solve("dplr", y, g=np.zeros((*y["k"].shape[:2], HV, K))))


def test_kda_is_a_diagonal_plus_low_rank_transition():
    """Erasing at the decayed state with k is erasing at the state itself with exp(g) k."""
    x = case("kda", "unequal_gates", H=4)
    beta = x["beta"][..., None]
    parts = dict(a=np.exp(x["g"]) * x["k"], b=-beta * x["k"], v=beta * x["v"])
    within(solve("kda", x), solve("dplr", without(x, "beta"), **parts))


@pytest.mark.parametrize("name", ["gated_delta_rule", "comba", "gated_delta_product"])
def test_a_convolution_with_the_older_tap_alone_is_a_shift(name):
    x = case(name, T=9)
    channels = x["k"].shape[2] * x["k"].shape[3] * x.get("num_householder", 1)
    taps = np.tile([1.0, 0.0], (channels, 1))
    x.pop("p", None)
    bitwise(solve(name, x, conv_k=refengine.Conv(taps, activation=None)), solve(name, x, key_shift=1))


@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (2, 1, 0), (0, 3, 1)])
def test_the_memory_predicts_the_offset_of_the_shifts(shift):
    """Distinct one-hot tokens, k = v = q = x: what is read at t is the token at t + sk - sv - sq, where that has been
    seen."""
    T, (sq, sk, sv) = 8, shift
    x = np.eye(T)[None, :, None, :]
    s = refengine.solve("linear_attn", q=x, k=x, v=x, query_shift=sq, key_shift=sk, value_shift=sv, scale=1.0)
    offset = sk - sv - sq
    for t in range(T):
        source = t - sq + sk  # the write whose key is the query asked at t
        seen = t >= sq and sk <= source <= t and source - sv >= 0
        want = np.eye(T)[t + offset] if seen else np.zeros(T)
        assert np.array_equal(s.o[0, t, 0], want)
