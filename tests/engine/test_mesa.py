"""MesaNet against what it must degenerate to, against dense solves in twice the precision, and the kernels' own
conjugate gradients against it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from spanning import REGIMES, case, problem

import refengine
from refengine.engine.definition import define
from refengine.engine.run import execute

flint = pytest.importorskip("flint")


def furthest(values, balls):
    away = np.frompyfunc(lambda x, ball: float(abs(flint.arb(float(x)) - ball).abs_upper()), 2, 1)
    return np.asarray(away(values, balls), dtype=np.float64)


def solve(arguments, name="mesa_net", **changes):
    known = dict(arguments, **changes)
    return refengine.solve(name, **{n: x for n, x in known.items() if x is not None})


def within(s, t, times=1.0):
    """No further apart than both bounds together; and the bounds say something."""
    assert s.worst() < 1e-6 * max(1.0, abs(s.o).max())
    assert (abs(s.o - times * t.o) <= (s.bound["o"] + times * t.bound["o"])[..., None]).all()


@pytest.fixture(params=REGIMES)
def fresh(request):
    """A case that starts from nothing."""
    return case("mesa_net", request.param, start=False)


def ill(cond, T=7, K=8, V=3, seed=0):
    """Keys that span too little, a ridge of 1 / cond of the largest eigenvalue."""
    x = case("mesa_net", B=1, T=T, H=1, HV=1, K=K, V=V, seed=seed, start=False)
    weights = x["beta"][0, :, 0, None] * x["k"][0, :, 0]
    largest = np.linalg.eigvalsh(weights.T @ x["k"][0, :, 0])[-1]
    x["g"] = 0 * x["g"]
    x["lamb"] = np.full((1, K), largest / cond)
    return x


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6, 1e8, 1e10])
def test_ill_conditioned_systems_stay_within_their_bound(cond, seed):
    """By the definition in balls, and by a dense solve of the closed form in 106 bits."""
    x = ill(cond, seed=seed)
    p = problem("mesa_net", x)
    s = execute(p)
    flint.ctx.prec = 300
    o, _ = define(p, "balls")
    away = furthest(s.o, o).max(axis=-1)
    assert (away <= s.bound["o"]).all()
    assert s.worst() < 100 * np.sqrt(cond) * 2.0**-53 * cond * abs(x["q"]).max() * 8
    flint.ctx.prec = 106
    q, k, v = (x[n][0, :, 0] for n in "qkv")
    for t in range(len(q)):
        W = flint.arb_mat(
            [[float(b) * flint.arb(float(e)) for e in row] for b, row in zip(x["beta"][0, : t + 1, 0], k, strict=False)]
        )
        H = W.transpose() * flint.arb_mat(k[: t + 1].tolist()) + flint.arb_mat(np.diag(x["lamb"][0]).tolist())
        y = H.solve(flint.arb_mat(q[t][:, None].tolist()))
        dense = (W.transpose() * flint.arb_mat(v[: t + 1].tolist())).transpose() * y
        for j in range(v.shape[1]):
            assert abs(dense[j, 0] - float(s.o[0, t, 0, j])) <= s.bound["o"][0, t, 0]


def test_the_bound_is_tight_enough_to_be_useful():
    s = solve(case("mesa_net", T=300, K=32, V=16, B=1))
    assert s.worst() < 2.0**-24 * abs(s.o).max() / 16


@pytest.mark.parametrize(("size", "floor"), [(1.0, 5.6e-4), (0.1, 5.4e-3), (0.01, 4.6e-2)])
def test_thirty_steps_of_conjugate_gradients_have_an_error_floor(size, floor):
    """Their eps is absolute, so the smaller the query the larger the relative error; it is no rounding."""
    rng = np.random.default_rng(0)
    K, T = 16, 64
    q, k = (rng.standard_normal((1, T, 1, K)) for _ in range(2))
    q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True)) for y in (q, k))
    x = dict(
        q=size * q,
        k=k,
        v=rng.standard_normal((1, T, 1, K)),
        g=-rng.uniform(0, 0.1, (1, T, 1)),
        beta=rng.uniform(0, 1, (1, T, 1)),
        lamb=np.full((1, K), 0.25),
    )
    exact, cg = solve(x), solve(x, solver="cg")
    error = np.linalg.norm(cg.o - exact.o) / np.linalg.norm(exact.o)
    assert 0.8 * floor < error < 1.25 * floor
    assert (abs(cg.o - exact.o) <= (cg.bound["o"] + exact.bound["o"])[..., None]).all()
    assert "exact solution" in cg.info["certificate"]
    longer = solve(x, solver="cg", iterations=200)
    assert 0.2 * error < np.linalg.norm(longer.o - exact.o) / np.linalg.norm(exact.o) < 0.6 * error


@pytest.mark.parametrize("x0", ["zero", "diagonal"])
@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_conjugate_gradients_are_the_kernels_own(x0, iterations):
    """Step by step as the definition has them, from both starts; the two starts differ until they converge."""
    x = dict(case("mesa_net", B=1, T=9), solver="cg", iterations=iterations, x0=x0)
    o, _ = define(problem("mesa_net", x))
    s = solve(x)
    assert abs(s.o - o).max() <= 1e-11 * abs(o).max()
    other = solve(x, x0="zero" if x0 == "diagonal" else "diagonal")
    if iterations < 30:
        assert abs(s.o - other.o).max() > 1e-3 * abs(o).max()


def test_as_many_exact_steps_as_channels_are_exact(fresh):
    s = solve(fresh, solver="cg", iterations=2 * fresh["k"].shape[-1], eps=0.0)
    assert abs(s.o - solve(fresh).o).max() <= 1e-9 * abs(s.o).max()


def test_one_step_is_scaled_gated_linear_attention(fresh):
    s = solve(fresh, solver="cg", iterations=1, eps=0.0)
    beta = fresh["beta"][..., None]
    given = {n: fresh[n] for n in ("q", "k", "g")}
    gla = solve(given, "simple_gla", v=beta * fresh["v"], scale=1.0)
    q = np.repeat(fresh["q"], 2, axis=2)
    keys = solve(given, "simple_gla", v=beta * np.repeat(fresh["k"], 2, axis=2), scale=1.0)
    length = (q * q).sum(-1) / ((q * keys.o).sum(-1) + (q * q * fresh["lamb"]).sum(-1))
    assert abs(s.o - length[..., None] * gla.o).max() <= 1e-12 * abs(s.o).max()


def test_without_forgetting_it_is_recursive_least_squares():
    """Sherman and Morrison, P_0 = Lambda^-1: the road that solves nothing."""
    x = case("mesa_net", "still", B=1, H=1, HV=1, start=False)
    s = solve(x)
    P, S = np.diag(1 / x["lamb"][0]), np.zeros((5, 5))
    for t in range(x["q"].shape[1]):
        k, v, beta = x["k"][0, t, 0], x["v"][0, t, 0], x["beta"][0, t, 0]
        gain = beta * (P @ k) / (1 + beta * (k @ P @ k))
        S = S + np.outer(gain, v - S.T @ k)
        P = P - np.outer(gain, P @ k)
        assert abs(S.T @ x["q"][0, t, 0] - s.o[0, t, 0]).max() <= 1e-12


def test_forgetting_in_recursive_least_squares_is_another_rule():
    """P <- P / gamma lets the ridge decay as well: the Mesa layer of 2024, not MesaNet."""
    x = case("mesa_net", B=1, H=1, HV=1, start=False)
    s = solve(x)
    P, S, o = np.diag(1 / x["lamb"][0]), np.zeros((5, 7)), []
    for t in range(x["q"].shape[1]):
        k, v, beta = x["k"][0, t, 0], x["v"][0, t, 0], x["beta"][0, t, 0]
        P = P / np.exp(x["g"][0, t, 0])
        gain = beta * (P @ k) / (1 + beta * (k @ P @ k))
        S = S + np.outer(gain, v - S.T @ k)
        P = P - np.outer(gain, P @ k)
        o.append(S.T @ x["q"][0, t, 0])
    apart = np.linalg.norm(s.o[0, :, 0] - o) / np.linalg.norm(s.o)
    assert 0.1 < apart < 1.0
    decayed = [
        solve(
            {n: y[:, : t + 1] if y.ndim > 2 else y for n, y in x.items()},
            lamb=x["lamb"] * np.exp(x["g"][0, : t + 1, 0].sum()),
        ).o[0, t, 0]
        for t in range(x["q"].shape[1])
    ]
    assert abs(np.array(decayed) - o).max() <= 1e-11


def test_the_first_token_is_a_step_of_longhorn(fresh):
    lamb = fresh["lamb"][:, :1]
    first = {n: fresh[n][:, :1] for n in ("q", "k", "v")}
    s = solve(first, g=fresh["g"][:, :1], beta=fresh["beta"][:, :1], lamb=np.repeat(lamb, fresh["k"].shape[-1], 1))
    within(s, solve(first, "longhorn", beta=fresh["beta"][:, :1] / lamb[:, 0]))


def test_with_orthonormal_keys_it_is_deltanet():
    x = case("mesa_net", "still", B=1, T=5, K=5, start=False)
    rng = np.random.default_rng(1)
    k = np.stack([np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(2)], axis=1)[None]
    s = solve(x, k=k, lamb=np.full((4, 5), 0.5))
    t = solve({n: x[n] for n in "qv"}, "delta_rule", k=k, beta=x["beta"] / (x["beta"] + 0.5), scale=1.0)
    assert abs(s.o - t.o).max() <= 1e-14 * max(1, abs(s.o).max())


def test_a_large_ridge_leaves_gated_linear_attention(fresh):
    s = solve(fresh, lamb=np.full_like(fresh["lamb"], 1e7))
    gla = solve(
        {n: fresh[n] for n in ("q", "k", "g")}, "simple_gla", v=fresh["beta"][..., None] * fresh["v"], scale=1.0
    )
    apart = abs(1e7 * s.o - gla.o).max() / abs(gla.o).max()
    assert apart < 1e-5
    if np.all(fresh["g"] < 0) and abs(fresh["k"]).max() > 0.1:
        assert apart > 1e-9


def test_a_start_that_is_not_proven_semidefinite_is_paid_for():
    """A start short of semidefinite by rounding is taken, and the bound says what that costs."""
    x = case("mesa_net", B=1, T=5)
    h_kk, h_kv = x["initial_state"]
    short = h_kk - (np.linalg.eigvalsh(h_kk).min() + 1e-7) * np.eye(5)
    s = solve(x, initial_state=((short + short.swapaxes(-1, -2)) / 2, h_kv))
    assert np.isfinite(s.bound["o"]).all()


def test_negative_weights_leave_no_bound_where_the_ridge_does_not_cover_them():
    x = case("mesa_net", "still", B=1, T=6, H=1, HV=1, start=False)
    x["beta"][0, 3, 0] = -5.0
    s = solve(x)
    assert np.isfinite(s.bound["o"][0, :3]).all()
    assert np.isinf(s.bound["o"][0, 3:]).all()


BAD = {
    "a ridge of 0": (lambda x: dict(lamb=np.where(np.arange(5) == 3, 0.0, x["lamb"])), "lamb is 0 at [0, 3]"),
    "a negative ridge": (lambda x: dict(lamb=-x["lamb"]), "lamb is -", "positive"),
    "a ridge for each token": (lambda x: dict(lamb=np.ones((2, 5, 4))), "lamb", "3 axes", "[HV, K]"),
    "not symmetric": (
        lambda x: dict(initial_state=(x["initial_state"][0] + np.eye(5, k=1), x["initial_state"][1])),
        "initial_state.h_kk[0, 0]",
        "[0, 1]",
        "symmetric",
    ),
    "not semidefinite": (
        lambda x: dict(
            initial_state=(-np.broadcast_to(np.diag([0, 0, 0, 0, 2.0]), (2, 4, 5, 5)), x["initial_state"][1])
        ),
        "initial_state.h_kk[0, 0]",
        "eigenvalue -2",
    ),
    "one state of two": (lambda x: dict(initial_state=x["initial_state"][1]), "initial_state", "h_kk, h_kv"),
    "no such solver": (lambda x: dict(solver="lu"), "lu", "solver"),
    "no steps": (lambda x: dict(solver="cg", iterations=0), "iterations is 0"),
    "a negative eps": (lambda x: dict(solver="cg", eps=-1.0), "eps"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_named(mistake):
    x = case("mesa_net", T=5)
    alter, *words = BAD[mistake]
    with pytest.raises(refengine.InputError) as caught:
        solve(x, **alter(x))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_matrix_is_kept_for_a_token():
    """What a longer sequence takes besides its inputs: less than a key and a value more of each token."""
    peaks = []
    for T in (500, 1000):
        x = case("mesa_net", B=1, H=1, HV=1, T=T, K=32, V=32)
        solve(x, threads=1)
        tracemalloc.start()
        solve(x, threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 500 * (32 + 32) * 8
