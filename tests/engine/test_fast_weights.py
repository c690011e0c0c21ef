"""Memories that learn by mini-batches: points of one another and of the delta core, both sides of what official codes
disagree on, closed forms, gradients by complex step, and how far to trust the bound."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from spanning import CHUNK, case, problem

import refengine
from refengine.engine import fast_weights as running
from refengine.engine.definition import define
from refengine.engine.prepare import prepare
from refengine.ops import parts

lact = importlib.import_module("refengine.ops.lact")  # the file: refengine.ops.lact is the op
rng = np.random.default_rng(3)
MEMORIES = ("ttt_linear", "ttt_mlp", "lact", "titans", "titans_mlp")


def solve(name, arguments, **changes):
    known = dict(arguments, **changes)
    return refengine.solve(name, **{n: x for n, x in known.items() if x is not None})


def apart(x, y):
    return float(np.linalg.norm(x - y) / np.linalg.norm(x))


def within(s, t, state=None):
    """No further apart than both bounds together."""
    assert (abs(s.o - t.o) <= (s.bound["o"] + t.bound["o"])[..., None]).all()
    mine, theirs = next(iter(s.finals.values())), next(iter(t.finals.values()))
    assert abs(mine - theirs).max() <= 1e-13 * max(1.0, abs(mine).max())


def deltas(x, M, **changes):
    """The case as an error-correcting rule of the delta core reads it."""
    plain = {n: x[n] for n in "qkv"} | {"initial_state": M, "scale": 1.0}
    return plain | changes


# ---- points of one another ----


def test_titans_without_momentum_is_gradient_descent_with_decoupled_decay():
    x = case("titans")
    M, P = x["initial_state"]
    s = solve("titans", x, chunk_size=1, eta=0 * x["eta"], initial_state=(M, 0 * P))
    within(s, refengine.solve("comba", **deltas(x, M, g=np.log1p(-x["alpha"]), beta=x["theta"])))


def test_titans_that_forgets_nothing_is_deltanet():
    x = case("titans")
    M, P = x["initial_state"]
    s = solve("titans", x, chunk_size=1, eta=0 * x["eta"], alpha=0 * x["alpha"], initial_state=(M, 0 * P))
    within(s, refengine.solve("delta_rule", **deltas(x, M, beta=x["theta"])))


def test_a_residual_is_an_identity_in_the_first_memory():
    """q + M'q with targets v - k is DeltaNet from I + M."""
    x = case("titans", V=5)
    M, P = x["initial_state"]
    k = np.repeat(x["k"], 2, axis=2)
    plain = dict(chunk_size=1, eta=0 * x["eta"], alpha=0 * x["alpha"])
    s = solve("titans", x, v=x["v"] - k, initial_state=(M, 0 * P), **plain)
    t = refengine.solve("delta_rule", **deltas(x, np.eye(5) + M, beta=x["theta"]))
    assert abs(s.o + np.repeat(x["q"], 2, axis=2) - t.o).max() <= 1e-13 * abs(t.o).max()
    assert abs(s.final_state[0] + np.eye(5) - t.final_state).max() <= 1e-13


def test_a_mini_batch_is_the_triangular_form_with_the_identity_for_its_inverse():
    """One mini-batch of DeltaNet's loss: U = diag(b) (V - K S), O = Q S + tril(Q K') U, S + K' U."""
    x = case("titans", B=1, T=9, H=1, HV=1)
    M, P = x["initial_state"]
    plain = dict(chunk_size=9, eta=0 * x["eta"], alpha=0 * x["alpha"])
    s = solve("titans", x, initial_state=(M, 0 * P), **plain)
    q, k, v, b, S = x["q"][0, :, 0], x["k"][0, :, 0], x["v"][0, :, 0], x["theta"][0, :, 0], M[0, 0]
    U = b[:, None] * (v - k @ S)
    assert abs(s.o[0, :, 0] - (q @ S + np.tril(q @ k.T) @ U)).max() <= 1e-13
    assert abs(s.final_state[0][0, 0] - (S + k.T @ U)).max() <= 1e-13


def test_titans_mini_batch_in_closed_form():
    """M_T = B_T M_0 + f_T P_0 - sum_j G_Tj g_j with frozen gradients."""
    x = case("titans", B=1, T=6, H=1, HV=1)
    M, P = x["initial_state"]
    s = solve("titans", x, chunk_size=6)
    a, eta, theta = 1 - x["alpha"][0, :, 0], x["eta"][0, :, 0], x["theta"][0, :, 0]
    k, v = x["k"][0, :, 0], x["v"][0, :, 0]
    T = len(a)
    total = np.prod(a) * M[0, 0] + sum(np.prod(a[i + 1 :]) * np.prod(eta[: i + 1]) for i in range(T)) * P[0, 0]
    for j in range(T):
        G = sum(np.prod(a[i + 1 :]) * theta[j] * np.prod(eta[j + 1 : i + 1]) for i in range(j, T))
        total -= G * np.outer(k[j], k[j] @ M[0, 0] - v[j])
    assert abs(s.final_state[0][0, 0] - total).max() <= 1e-13


@pytest.mark.parametrize("name", ["titans", "titans_mlp"])
def test_the_papers_loss_is_twice_the_step(name):
    x = case(name)
    s, t = solve(name, x, convention="whole"), solve(name, x, theta=2 * x["theta"])
    assert s.o.tobytes() == t.o.tobytes()


# ---- what official codes disagree on ----


def test_ttt_outputs_add_the_query_or_the_prediction():
    """D15: one token; the state is the same, the outputs differ by q - z."""
    x = case("ttt_linear", T=1)
    s, t = solve("ttt_linear", x), solve("ttt_linear", x, convention="fla", scale=1.0)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(s.final_state, t.final_state, strict=True))
    q = np.repeat(x["q"], 2, axis=2)
    W, c = s.final_state
    z = np.einsum("nhk,nhkv->nhv", q[:, 0], W) + c
    assert abs((s.o - t.o)[:, 0] - (q[:, 0] - z)).max() <= 1e-13 * abs(z).max()
    assert apart(s.o, t.o) > 0.5


def test_ttt_steps_belong_to_the_source_or_to_the_reader():
    """D16: with one step for all tokens and no other factor both rules agree; with unequal steps the states differ."""
    x = case("ttt_linear", T=2 * CHUNK)
    even = dict(eta=np.full_like(x["eta"], 0.2))
    s = solve("ttt_linear", x, tok=np.ones_like(x["eta"]), **even)
    t = solve("ttt_linear", x, convention="fla", scale=1.0, **even)
    assert all(apart(a, b) <= 1e-13 for a, b in zip(s.final_state, t.final_state, strict=True))
    s, t = solve("ttt_linear", x, tok=np.ones_like(x["eta"])), solve("ttt_linear", x, convention="fla", scale=1.0)
    assert apart(s.final_state[0], t.final_state[0]) > 0.01


def test_the_reader_of_ttt_is_its_place_in_the_mini_batch():
    x = case("ttt_mlp", T=2 * CHUNK + 1)
    tok = np.broadcast_to((1 / np.arange(1, CHUNK + 1))[np.arange(2 * CHUNK + 1) % CHUNK][:, None], x["eta"].shape)
    assert solve("ttt_mlp", x).o.tobytes() == solve("ttt_mlp", x, tok=tok).o.tobytes()


def test_fla_scales_the_query_but_not_the_bias():
    """D17: at the first token's own weights, z = (q / sqrt K) W + c, and nothing else is scaled."""
    x = case("ttt_linear", T=1)
    scaled = solve("ttt_linear", x, convention="fla")
    by_hand = solve("ttt_linear", x, convention="fla", scale=1.0, q=x["q"] / np.sqrt(x["q"].shape[-1]))
    assert abs(scaled.o - by_hand.o).max() <= 1e-14 * abs(scaled.o).max()
    assert solve("ttt_linear", x).info["scale"] == "1"
    assert scaled.info["scale"] == "K^-1/2"


@pytest.mark.parametrize("name", MEMORIES)
def test_inputs_are_left_alone(name):
    """D18: a released reference scales its caller's q in place."""
    x = case(name, T=5)
    before = {n: np.copy(y) for n, y in x.items() if isinstance(y, np.ndarray)}
    solve(name, x)
    assert all(np.array_equal(y, x[n]) for n, y in before.items())


def test_orthogonalising_two_gradients_at_once_is_another_rule():
    """D20: NS([dW0; dW2]) against NS(dW0), NS(dW2): as long as one of the two, half apart."""
    G = [rng.standard_normal((32, 32)) for _ in range(3)]
    one, both = (lact.directions(G, c, parts.NEWTON_SCHULZ["lact"]) for c in ("reference", "fused"))
    one, both = (np.concatenate([d[0], d[2]]) for d in (one, both))
    assert np.linalg.norm(both) / np.linalg.norm(one) == pytest.approx(0.5**0.5, abs=0.02)
    assert apart(one, both) == pytest.approx(0.54, abs=0.04)
    x = case("lact", T=2 * CHUNK)
    s, t = (solve("lact", x, convention=c) for c in ("reference", "fused"))
    assert s.o[:, :CHUNK].tobytes() == t.o[:, :CHUNK].tobytes()
    assert apart(s.o[:, CHUNK:], t.o[:, CHUNK:]) > 0.1


def test_overwriting_the_weights_is_another_rule():
    """D21: W <- NS(D) + D forgets W; without Muon the code adds, as intended."""
    x = case("lact", T=2 * CHUNK)
    s, t = (solve("lact", x, convention=c) for c in ("reference", "overwrite"))
    assert apart(s.o[:, CHUNK:], t.o[:, CHUNK:]) > 0.3
    s, t = (solve("lact", x, convention=c, use_muon=False) for c in ("reference", "overwrite"))
    assert s.o.tobytes() == t.o.tobytes()
    weights = dict(weight_norm="none", convention="overwrite", momentum=None, order="update_first")
    once = solve("lact", {n: y for n, y in case("lact", T=CHUNK, start=False).items()}, **weights)
    D = [once.final_state[i][0, 0] for i in range(3)]
    y = case("lact", T=CHUNK, start=False)
    w = [y[n][0] for n in ("w0", "w1", "w2")]
    steps = [y[n][0, :, 0] for n in ("lr0", "lr1", "lr2")]
    d = lact.ascent(w, y["k"][0, :, 0], y["v"][0, :, 0], *steps)
    for found, step in zip(D, d, strict=True):
        want = parts.orthogonalised(step, parts.NEWTON_SCHULZ["lact"]) + step
        assert abs(found - want).max() <= 1e-12 * abs(want).max()


@pytest.mark.parametrize("convention", ["reference", "fused"])
def test_the_place_of_the_norms_eps(convention):
    """D22: |row| + 1e-5, or sqrt(|row|^2 + 1e-5)."""
    x = dict(case("lact", T=CHUNK, start=False), use_muon=False, momentum=None, convention=convention)
    after, kept = (solve("lact", x, weight_norm=w).final_state[0] for w in ("none", "post"))
    square = (after**2).sum(axis=3, keepdims=True)
    length = np.sqrt(square + 1e-5) if convention == "fused" else np.sqrt(square) + 1e-5
    want = after / length * np.sqrt((x["w0"] ** 2).sum(axis=2, keepdims=True))
    assert abs(kept - want).max() <= 1e-15 * 8 * abs(want).max()


def test_muon_does_not_see_the_learning_rates_common_size():
    x = case("lact", K=16, V=16, T=3 * CHUNK, start=False)
    many = {n: 50 * x[n] for n in ("lr0", "lr1", "lr2")}
    assert 1e-9 < apart(solve("lact", x).o, solve("lact", x, **many).o) < 1e-5
    assert apart(solve("lact", x, use_muon=False).o, solve("lact", x, use_muon=False, **many).o) > 1e-2


@pytest.mark.parametrize(("name", "low", "high"), [("lact", 0.977, 1.146), ("muon", 0.68, 1.21)])
def test_newton_schulz_draws_singular_values_to_one(name, low, high):
    for value in np.geomspace(0.01, 1, 60):
        G = np.diag([value, np.sqrt(max(0.0, 1 - value**2))])
        s = np.linalg.svd(parts.orthogonalised(G, parts.NEWTON_SCHULZ[name]))[1]
        assert ((s >= low) & (s <= high) | (s < 1e-3)).all()


def test_newton_schulz_of_nothing_is_nothing():
    """No values, so no gradient at all: the weights stay, and nothing is NaN."""
    x = case("lact", T=3 * CHUNK, start=False)
    s = solve("lact", x, v=0 * x["v"], weight_norm="none")
    for i, n in enumerate(("w0", "w1", "w2")):
        assert np.array_equal(s.final_state[i], np.broadcast_to(x[n], s.final_state[i].shape))
    assert np.isfinite(s.o).all()
    assert np.isfinite(solve("lact", x, v=0 * x["v"]).o).all()


# ---- schedules ----


@pytest.mark.parametrize(("order", "weight_norm"), [("apply_first", "pre"), ("update_first", "post")])
def test_pieces_of_a_mini_batch_do_not_touch_the_bits(monkeypatch, order, weight_norm):
    x = case("lact", T=41) | {"chunk_size": 19, "order": order, "weight_norm": weight_norm}
    w = case("titans", T=41)
    channels = {n: w[n] for n in ("q", "k", "v", "theta", "eta")} | {"g": -rng.uniform(0, 1, (2, 41, 4, 5))}
    parts = dict(forgetting="channel", optimiser="heavy_ball", read="before", chunk_size=19)
    whole = [solve("lact", x), solve("ttt", channels, **parts)]
    monkeypatch.setattr(running, "PIECE", 5)
    for s, t in zip(whole, [solve("lact", x), solve("ttt", channels, **parts)], strict=True):
        assert s.o.tobytes() == t.o.tobytes()
        for mine, theirs in zip(s.finals.values(), t.finals.values(), strict=True):
            assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def test_room_does_not_grow_with_a_mini_batch_that_is_one_step():
    def room(chunk):
        p = problem("lact", case("lact", T=3000) | {"chunk_size": chunk})
        job = running.Job(p, prepare(p)[0], 1)
        return sum(x.nbytes for part in job.scratch()[:3] for x in part)

    assert room(3000) == room(300) > room(100)


def test_a_schedule_of_even_chunks_is_the_chunk_size():
    x = case("lact", T=3 * CHUNK)
    rows = [(t, t + CHUNK, 1, 1) for t in range(0, 3 * CHUNK, CHUNK)]
    s, t = solve("lact", x), solve("lact", x, schedule=np.array(rows))
    assert s.o.tobytes() == t.o.tobytes()
    assert s.final_state[0].tobytes() == t.final_state[0].tobytes()


def test_a_schedule_may_train_on_some_tokens_and_apply_to_all():
    """Novel-view synthesis: learn from the first five tokens, then answer all seven."""
    x = case("lact", T=7)
    rows = np.array([(0, 5, 1, 0), (0, 7, 0, 1)])
    s = solve("lact", x, schedule=rows, order="update_first")
    p = problem("lact", dict(x, schedule=rows, order="update_first"))
    o, _ = define(p)
    assert abs(s.o - o).max() <= 1e-12 * abs(o).max()
    first = {n: y[:, :5] if n in "qkv" or n.startswith("lr") or n == "momentum" else y for n, y in x.items()}
    alone = solve("lact", first, schedule=np.array([(0, 5, 1, 1)]), order="update_first")
    assert apart(alone.o, s.o[:, :5]) <= 1e-13


def test_lact_answers_a_chunk_before_it_learns_from_it():
    x = case("lact", T=3 * CHUNK)
    s = solve("lact", x)
    later = {n: np.concatenate([x[n][:, : 2 * CHUNK], 9 * x[n][:, 2 * CHUNK :]], axis=1) for n in "kv"}
    assert solve("lact", x, **later).o.tobytes() == s.o.tobytes()


BAD = {
    "a gap": ("lact", dict(schedule=np.array([(0, 4, 1, 1), (5, 8, 1, 1)])), "gap", "5", "4"),
    "an overlap": ("lact", dict(schedule=np.array([(0, 4, 1, 1), (3, 8, 1, 1)])), "overlaps", "3", "4"),
    "trained twice": ("lact", dict(schedule=np.array([(0, 8, 1, 1), (2, 4, 1, 0)])), "overlaps", "2", "8"),
    "the end missing": ("lact", dict(schedule=np.array([(0, 4, 1, 1)])), "4", "8"),
    "beyond the end": ("lact", dict(schedule=np.array([(0, 9, 1, 1)])), "0 to 9", "8"),
    "three columns": ("lact", dict(schedule=np.array([(0, 8, 1)])), "3", "4"),
    "a schedule of floats": ("lact", dict(schedule=np.array([(0.0, 8.0, 1.0, 1.0)])), "float64", "integer"),
    "states and a schedule": ("lact", dict(schedule=np.array([(0, 8, 1, 1)]), states_at=[3]), "states_at", "schedule"),
    "a mini-batch of nothing": ("ttt_linear", dict(chunk_size=0), "chunk_size", "0", "1"),
    "no first weights": ("ttt_mlp", dict(initial_state=None), "initial_state", "w1"),
    "half of them": ("titans_mlp", dict(initial_state={"w1": np.ones((4, 5, 6))}), "initial_state.w2", "W2"),
    "a width that does not fit": ("lact", dict(w1=np.ones((4, 7, 8))), "8 hidden channels", "6"),
    "a second layer that does not fit": (
        "ttt_mlp", dict(initial_state={"w1": np.ones((4, 5, 6)), "w2": np.ones((4, 8, 5))}), "w2", "8", "6",
    ),
    "targets of another width": ("ttt_linear", dict(v=np.ones((2, 8, 4, 7))), "v", "7", "5"),
    "a reader for fla": ("ttt_linear", dict(convention="fla", tok=np.ones((2, 8, 4))), "tok", "fla"),
    "an unknown word": ("lact", dict(order="update_frist"), "update_frist", "update_first"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_named(mistake):
    name, changes, *words = BAD[mistake]
    with pytest.raises(refengine.InputError) as caught:
        solve(name, case(name, T=8), **changes)
    said = str(caught.value)
    assert "\n" not in said and said.endswith((".", ")"))
    for word in words:
        assert word in said


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp", "titans", "titans_mlp"])
@pytest.mark.parametrize("at", [1, 5, 10])
def test_nan_reaches_no_earlier_token_of_its_mini_batch(name, at):
    """Tokens before it, of the same mini-batch too, have the bits they have without it; it and those after are NaN."""
    x = dict(case(name, B=1, T=11, H=1, HV=1), chunk_size=11)
    plain = solve(name, x)
    v = x["v"].copy()
    v[0, at, 0, 2] = np.nan
    s = solve(name, x, v=v, allow_nonfinite=True)
    assert s.o[:, :at].tobytes() == plain.o[:, :at].tobytes()
    assert np.isnan(s.o[:, at:]).any(axis=-1).all()


# ---- gradients, by complex step ----


def complex_step(f, x):
    """The gradient of a real function of an array."""
    out = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[i] += 1e-30j
        out[i] = f(moved).imag / 1e-30
    return out


def test_the_gradient_behind_a_layer_norm():
    z, t, w, b = rng.standard_normal((4, 1, 7))
    found = parts.layer_norm_errors(z, t, w, b, 1e-6)
    want = complex_step(lambda y: ((parts.layer_norm(y, w, b, 1e-6) - t) ** 2).sum() / 2, z)
    assert abs(found - want).max() <= 1e-14 * abs(want).max()


@pytest.mark.parametrize(("f", "slope"), [(parts.silu, parts.silu_slope), (parts.gelu, parts.gelu_slope)])
def test_the_slopes_of_the_activations(f, slope):
    x = np.linspace(-6, 6, 41)
    assert abs(complex_step(lambda y: f(y).sum(), x) - slope(x)).max() <= 1e-15 * 4


def test_lacts_ascent_directions():
    w0, w1, w2 = (rng.standard_normal(s) for s in ((6, 5), (7, 6), (6, 5)))
    k, v = rng.standard_normal((4, 5)), rng.standard_normal((4, 7))
    rates = rng.uniform(0, 1, (3, 4))

    def gain(rate, *w):
        return (rate[:, None] * v * lact.swiglu(w, k)).sum()

    found = lact.ascent((w0, w1, w2), k, v, *rates)
    want = (
        complex_step(lambda w: gain(rates[0], w, w1, w2), w0),
        complex_step(lambda w: gain(rates[1], w0, w, w2), w1),
        complex_step(lambda w: gain(rates[2], w0, w1, w), w2),
    )
    for d, e in zip(found, want, strict=True):
        assert abs(d - e).max() <= 1e-14 * abs(e).max()


def test_ttt_mlps_first_step_is_its_gradient():
    x = case("ttt_mlp", B=1, T=1, H=1, HV=1)
    s = solve("ttt_mlp", x)
    first = [y[0, 0] for y in x["initial_state"]]
    k, v, w, b = x["k"][0, :, 0], x["v"][0, :, 0], x["w"][0], x["b"][0]

    def loss(*W):
        z = parts.gelu(k @ W[0] + W[1]) @ W[2] + W[3]
        return ((parts.layer_norm(z, w, b, 1e-6) - (v - k)) ** 2).sum() / 2

    for i, (before, after) in enumerate(zip(first, s.final_state, strict=True)):
        slope = complex_step(lambda y, i=i: loss(*[y if j == i else W for j, W in enumerate(first)]), before)
        assert abs(before - after[0, 0] - x["eta"][0, 0, 0] * slope).max() <= 1e-14


# ---- the bound ----


@pytest.mark.parametrize("name", MEMORIES)
def test_the_compared_bound_covers_the_error_and_says_what_it_is(name, monkeypatch):
    for seed in range(4):
        x = case(name, B=1, T=21, K=9, V=6, seed=seed)
        exact = solve(name, x)
        assert exact.info["certificate"].startswith("rigorous (the definition in balls")
        with monkeypatch.context() as changed:
            changed.setattr(running, "BALLS", 0)
            s = solve(name, x)
        assert s.info["certificate"].startswith("compared")
        assert s.o.tobytes() == exact.o.tobytes()
        for output, bound in s.bound.items():
            assert (exact.bound[output] <= bound).all()
        assert s.worst() <= 1e5 * exact.worst()


@pytest.mark.parametrize("name", MEMORIES)
def test_the_compared_bound_sees_the_front_end(name, monkeypatch):
    """A convolution and a norm before the memory round too."""
    monkeypatch.setattr(running, "BALLS", 0)
    x = case(name, B=1, T=12, H=2, HV=2)
    taps = rng.standard_normal((x["k"].shape[2] * x["k"].shape[3], 3))
    more = dict(conv_k=refengine.Conv(taps), use_qk_l2norm=True)
    s = solve(name, x, **more)
    o, _ = define(problem(name, {**x, **more}))
    assert (abs(s.o - o) <= 2 * s.bound["o"][..., None]).all()


def test_the_compared_bound_is_infinite_where_nothing_is_finite_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(running, "BALLS", 0)
    x = case("ttt_linear", B=1, T=9, H=2, HV=2)
    x["v"][0, 5, 1, 2] = np.nan
    s = solve("ttt_linear", x, allow_nonfinite=True)
    assert np.array_equal(np.isinf(s.bound["o"]), np.isnan(s.o).any(axis=-1))
    assert np.array_equal(np.isinf(s.bound["o"][0]), np.arange(9)[:, None] >= [9, 5])
