"""Where official codes disagree, both sides, and how far apart they are on ordinary inputs. Rows that need more than
two calls are with their op: test_fast_weights.py, test_mesa.py, test_gradient.py, test_degenerations.py."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from spanning import case

import refengine
from refengine.ops.parts import NEWTON_SCHULZ, orthogonalised, silu, silu_slope


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def draw(T=24, K=8, H=2, g=0.1, seed=0):
    """Unit queries and keys, Gaussian values, decays exp(-U(0, g)), steps U(0, 1)."""
    rng = np.random.default_rng(seed)
    x = {n: unit(rng.standard_normal((1, T, H, K))) for n in "qk"}
    x |= {"v": rng.standard_normal((1, T, H, K)), "g": -rng.uniform(0, g, (1, T, H))}
    return x | {"beta": rng.uniform(0, 1, (1, T, H))}


def apart(x, y):
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def solve(name, x, **changes):
    return refengine.solve(name, **{n: y for n, y in {**x, **changes}.items() if y is not None})


def test_comba_predicts_before_the_decay_or_after_it():
    """D1: 0.14, which takes inputs that forget fast: decays down to e^-2.5 (with e^-0.1 it is 0.03)."""
    for seed in range(8):
        fast, slow = draw(K=6, g=2.5, seed=seed), draw(seed=seed)
        assert 0.12 < apart(*(solve("comba", fast, convention=c).o for c in ("splr", "iplr"))) < 0.28
        assert 0.01 < apart(*(solve("comba", slow, convention=c).o for c in ("splr", "iplr"))) < 0.04


def test_combas_inner_decay_cancels_if_its_key_is_normalised():
    """D2: with p = c k, a norm of p takes c away again, but for the norm's eps; raw, it is another rule."""
    x = draw()
    p = 0.5 * x["k"]
    plain = solve("comba", x, use_qk_l2norm=True).o
    assert apart(solve("comba", x, p=p, use_qk_l2norm=True).o, plain) < 5e-6
    exact = refengine.L2Norm(1e-14)
    assert apart(solve("comba", x, p=p, use_qk_l2norm=exact).o, solve("comba", x, use_qk_l2norm=exact).o) < 5e-8
    assert apart(solve("comba", x, p=p).o, solve("comba", x).o) > 0.01


def test_combas_beta_is_doubled_or_not():
    """D3: 2 sigmoid for iplr, sigmoid for splr."""
    x = draw()
    logits = np.random.default_rng(1).standard_normal(x.pop("beta").shape)
    s = solve("comba", x, beta_logits=logits, allow_neg_eigval=True, convention="iplr")
    t = solve("comba", x, beta=2 / (1 + np.exp(-logits)), convention="iplr")
    assert apart(s.o, t.o) < 1e-14
    assert apart(s.o, solve("comba", x, beta_logits=logits, convention="iplr").o) > 0.1


@pytest.mark.parametrize(
    ("eps", "place", "length"),
    [(1e-6, "inside", 0.707), (1e-6, "outside", 0.999), (1e-5, "outside", 0.990), (1e-12, "max", 1.0)],
)
def test_how_long_a_short_key_is_after_its_norm(eps, place, length):
    """D4, at |x| = 1e-3: read back from a memory that stored it once."""
    k = np.zeros((1, 1, 1, 4))
    k[..., 1] = 1e-3
    one = np.ones((1, 1, 1))
    s = refengine.solve(
        "linear_attn", q=k, k=k, v=one[..., None], scale=1.0, use_qk_l2norm=refengine.L2Norm(eps, place)
    )
    assert float(s.final_state[0, 0, 1, 0]) == pytest.approx(length, abs=6e-4)


def test_the_scale_is_that_of_the_read_out_alone():
    """D5: also of gated_delta_product, whose naive reference ignores it."""
    for name in ("gated_delta_rule", "gated_delta_product"):
        s, t = (solve(name, draw(), scale=scale) for scale in (1.0, 0.125))
        assert np.array_equal(s.o, 8 * t.o)
        assert np.array_equal(s.final_state, t.final_state)
        assert np.array_equal(solve(name, draw(K=16)).o, solve(name, draw(K=16), scale=0.25).o)
    assert np.array_equal(solve("longhorn", draw(), g=None).o, solve("longhorn", draw(), g=None, scale=1.0).o)


def test_gates_are_natural_logarithms():
    """D6: kernels that take powers of 2 multiply by 1 / ln 2 first, which is the same decay."""
    x = draw(T=1)
    start = np.ones((1, 2, 8, 8))
    s = solve("simple_gla", x, beta=None, v=0 * x["v"], initial_state=start)
    assert abs(s.final_state[0, :, 0, 0] - 2 ** (x["g"][0, 0] / np.log(2))).max() <= 1e-15


def test_one_decayed_inverse_or_two_of_them():
    """D7: W by the inverse with the decays in it, or by the plain one and the decays outside."""
    x = draw(T=12, H=1)
    q, k, v = (x[n][0, :, 0] for n in "qkv")
    G, b = np.cumsum(x["g"][0, :, 0]), x["beta"][0, :, 0]
    ratio = np.exp(np.tril(G[:, None] - G))
    eye, S = np.eye(12), np.random.default_rng(2).standard_normal((8, 8))
    decayed = np.linalg.inv(eye + np.tril(b[:, None] * (k @ k.T) * ratio, -1))
    plain = np.linalg.inv(eye + np.tril(b[:, None] * (k @ k.T), -1))
    one = decayed @ (b[:, None] * np.exp(G)[:, None] * k)
    two = np.exp(G)[:, None] * (plain @ (b[:, None] * k))
    assert abs(one - two).max() <= 1e-14
    o = [
        np.exp(G)[:, None] * (q @ S) + np.tril(q @ k.T * ratio) @ (decayed @ (b[:, None] * v) - W @ S)
        for W in (one, two)
    ]
    s = solve("gated_delta_rule", x, scale=1.0, initial_state=S[None, None])
    assert all(abs(s.o[0, :, 0] - y).max() <= 1e-13 for y in o)


def test_positions_are_those_of_fla():
    """D11: g before beta; the two the other way round are another problem."""
    x = draw()
    o, final = refengine.ops.gated_delta_rule(*(x[n] for n in ("q", "k", "v", "g", "beta")))
    s = solve("gated_delta_rule", x)
    assert o.tobytes() == s.o.tobytes() and final.tobytes() == s.final_state.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are out of their range
        other, _ = refengine.ops.gated_delta_rule(*(x[n] for n in ("q", "k", "v", "beta", "g")))
    assert apart(other, o) > 0.5


def test_conjugate_gradients_from_the_two_starts_of_prefill_and_decode():
    """D12: after five steps 4.4e-2 and 2.3e-2 from the solution, after thirty 1.45e-3 both: the floor of eps, which is
    absolute, and so weighs more the shorter the queries are: here 0.43 long."""
    x = draw(T=64, K=32, g=0.02)
    x = dict(x, q=0.43 * x["q"], lamb=np.full((2, 32), 0.2))
    exact = solve("mesa_net", x).o
    error = {
        (n, x0): apart(solve("mesa_net", x, solver="cg", iterations=n, x0=x0).o, exact)
        for n in (5, 30)
        for x0 in ("zero", "diagonal")
    }
    assert error[5, "zero"] == pytest.approx(4.4e-2, rel=0.2)
    assert error[5, "diagonal"] == pytest.approx(2.3e-2, rel=0.25)
    assert error[30, "zero"] == pytest.approx(1.45e-3, rel=0.2)
    assert error[30, "diagonal"] == pytest.approx(error[30, "zero"], rel=0.1)


def test_mesas_ridge_is_of_heads_and_channels_and_values_may_be_wider():
    """D13: the code asks for lamb [H, K] and as many value channels as key channels, a docstring for [B, T, H]; here
    lamb is as in the code, and every value channel is a regression of its own."""
    x = dict(draw(), lamb=np.full((2, 8), 0.2))
    wide = solve("mesa_net", x, v=np.concatenate([x["v"], 2 * x["v"][..., :3]], axis=-1)).o
    assert np.array_equal(wide[..., :8], solve("mesa_net", x).o)
    assert np.array_equal(wide[..., 8:], 2 * wide[..., :3])
    with pytest.raises(refengine.InputError, match=r"lamb has 3 axes \[1, 24, 2\]"):
        solve("mesa_net", x, lamb=np.full((1, 24, 2), 0.2))


def test_lacts_weights_by_rows_or_by_columns():
    """D23: novel-view synthesis keeps W as [in, out] and rescales axis 1 of its own layout; the same function."""
    x = case("lact", B=1, T=4, H=1, HV=1, start=False)
    s = solve("lact", x, order="update_first", chunk_size=4)
    k, v, q = (x[n][0, :, 0] for n in "kvq")
    w0, w1, w2 = (x[n][0].T for n in ("w0", "w1", "w2"))
    first = [np.linalg.norm(w, axis=0, keepdims=True) for w in (w0, w1, w2)]
    rate = [x[n][0, :, 0, None] for n in ("lr0", "lr1", "lr2")]
    gate, up, back = k @ w0, k @ w2, v @ w1.T
    d = (
        k.T @ (rate[0] * back * up * silu_slope(gate)),
        (silu(gate) * up).T @ (rate[1] * v),
        k.T @ (rate[2] * back * silu(gate)),
    )
    w = [y + orthogonalised(step, NEWTON_SCHULZ["lact"]) for y, step in zip((w0, w1, w2), d, strict=True)]
    w0, w1, w2 = (y / (np.linalg.norm(y, axis=0, keepdims=True) + 1e-5) * n for y, n in zip(w, first, strict=True))
    o = (silu(q @ w0) * (q @ w2)) @ w1
    assert abs(s.o[0, :, 0] - o).max() <= 1e-12 * abs(o).max()


def test_longhorns_paper_and_its_code():
    """D24: of rank one, or the diagonal alone: 0.16 apart with 32 channels, more with fewer."""
    for K, low, high in ((32, 0.12, 0.18), (8, 0.2, 0.32)):
        for seed in range(8):
            x = draw(K=K, seed=seed)
            s, t = (solve("longhorn", x, g=None, convention=c).o for c in ("code", "paper"))
            assert low < apart(s, t) < high


def test_longhorns_last_state_is_the_last():
    """D25: the released reference returns the state after as many tokens as the state has channels, here after 8 of
    64: 1.10 away."""
    for seed in range(8):
        s = solve("longhorn", draw(T=64, seed=seed), g=None, states_at=[8, 64])
        assert s.states[1].tobytes() == s.final_state.tobytes()
        assert 1.0 < apart(s.states[0], s.final_state) < 1.4


def test_rwkv7_reads_the_memory_before_its_decay():
    """D28: a = -kappa, b = kappa * rate, at the undecayed state; at the decayed one it is another rule."""
    rng = np.random.default_rng(4)
    x = draw(T=12, g=1.0)
    g = np.repeat(x["g"][..., None], 8, axis=3)
    kappa, rate = unit(rng.standard_normal((1, 12, 2, 8))), rng.uniform(0, 1, (1, 12, 2, 8))
    given = {"q": x["q"], "k": x["k"], "v": x["v"], "a": -kappa, "b": kappa * rate, "g": g, "scale": 1.0}
    s = solve("dplr", given)
    S = np.zeros((8, 8))
    for t in range(12):
        K, A, V = x["k"][0, t, 0], kappa[0, t, 0], x["v"][0, t, 0]
        S = np.exp(g[0, t, 0])[:, None] * S - np.outer(A * rate[0, t, 0], A @ S) + np.outer(K, V)
    assert abs(s.final_state[0, 0] - S).max() <= 1e-13 * abs(S).max()
    assert apart(solve("dplr", given, a=-np.exp(g) * kappa).o, s.o) > 0.01


def test_kalmanets_first_omega():
    """D29: 1 in the first forward kernel, 2 in the others: they differ, and both converge."""
    x = draw(T=64, K=16)
    x = dict(x, alpha=x["beta"])
    exact = solve("gated_kalmanet", x).o

    def away(n, convention):
        return apart(solve("gated_kalmanet", x, solver="chebyshev", iterations=n, convention=convention).o, exact)

    assert away(5, "first") < 0.9 * away(5, "released")
    assert all(1e-5 < away(30, c) < 4e-4 and away(100, c) < 1e-11 for c in ("first", "released"))
    assert solve("gated_kalmanet", x, convention="first").o.tobytes() == exact.tobytes()


def test_a_state_the_other_way_round_is_refused():
    """D30: [K, V] here, [V, K] in papers and RWKV."""
    x = case("delta_rule", K=5, V=7)
    with pytest.raises(refengine.InputError, match="looks transposed"):
        solve("delta_rule", x, initial_state=np.swapaxes(x["initial_state"], -1, -2))
