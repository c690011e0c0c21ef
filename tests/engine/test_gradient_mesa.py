"""Gradients of the exact learners against a complex step through their definitions, and what must hold of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from spanning import case, of_families, problem

import refengine
from refengine.engine.definition import define
from refengine.ops.gated_kalmanet import iterate
from refengine.ops.mesa_net import descend
from refengine.spec import Mesa

NAMES = of_families((Mesa,))
MEMORIES = ("h_kk", "h_kv")
TINY = 1e-40


def asked(p, seed=1):
    rng = np.random.default_rng(seed)
    o, final = define(p)
    return rng.standard_normal(o.shape), {n: rng.standard_normal(x.shape) for n, x in zip(MEMORIES, final, strict=True)}


def stepped(p, key, index):
    """The problem with one number moved along the imaginary axis."""
    whole = p.initial[MEMORIES.index(key.partition(".")[2])] if "." in key else p.tensors[key]
    moved = np.array(whole, dtype=complex)
    moved[index] += TINY * 1j
    if "." not in key:
        return replace(p, tensors={**p.tensors, key: moved})
    return replace(
        p, initial=tuple(moved if n == key.partition(".")[2] else x for n, x in zip(MEMORIES, p.initial, strict=True))
    )


@pytest.mark.parametrize("regime", ["rich", "strong", "same_keys"])
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_every_input(name, regime):
    x = case(name, regime, B=1, T=5, H=1, HV=2, K=3, V=2)
    p = problem(name, x)
    do, dht = asked(p)
    g = refengine.grad(name, do=do, dht=dht, **x)
    assert set(g) == set(p.tensors) | {f"initial_state.{n}" for n in MEMORIES}
    assert g.info["certificate"] == "compared (with the channels in reverse order)"
    for key in g:
        wanted = np.zeros(g[key].shape)
        for index in np.ndindex(wanted.shape):
            o, final = define(stepped(p, key, index), "complex128")
            terms = [(dht[n] * y.imag).sum() for n, y in zip(MEMORIES, final, strict=True)]
            wanted[index] = ((do * o.imag).sum() + sum(terms)) / TINY
        assert abs(g[key] - wanted).max() <= 1e-13 * abs(wanted).max(), key
        assert 0 <= g.bound[key].max() < 1e-11 * abs(wanted).max()


@pytest.mark.parametrize("name", NAMES)
def test_split_and_packed(name):
    """Over more than a window: the first part is handed the memories' gradients, and packing changes nothing."""
    x = case(name, B=1, T=70, K=3, V=2)
    do, dht = asked(problem(name, x))
    whole = refengine.grad(name, do=do, dht=dht, **x)
    tokens = [n for n, y in x.items() if isinstance(y, np.ndarray) and n != "lamb"]
    parts = [{**x, **{n: x[n][:, s] for n in tokens}} for s in (slice(0, 66), slice(66, 70))]
    parts[1]["initial_state"] = refengine.solve(name, **parts[0]).final_state
    b = refengine.grad(name, do=do[:, 66:], dht=dht, **parts[1])
    a = refengine.grad(name, do=do[:, :66], dht={n: b[f"initial_state.{n}"] for n in MEMORIES}, **parts[0])
    for key in whole:
        if key in tokens:
            together = np.concatenate([a[key], b[key]], axis=1)
        else:
            together = a[key] + b[key] if key == "lamb" else a[key]
        assert np.allclose(together, whole[key], rtol=1e-10, atol=1e-13 * abs(whole[key]).max())
    packed = {n: y for n, y in x.items() if n != "initial_state"}
    alone = refengine.grad(name, do=do, **packed)
    again = refengine.grad(name, do=do, cu_seqlens=np.array([0, 0, 70]), **packed)
    for key in alone:
        assert (again[key][1:] if "." in key else again[key]).tobytes() == alone[key].tobytes()


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_threads_do_not_touch_the_bits(precision):
    x = dict(case("mesa_net", B=1, T=9, H=1, HV=2, K=5, V=3), precision=precision)
    do, dht = asked(problem("mesa_net", x))
    one, two = (refengine.grad("mesa_net", do=do, dht=dht, threads=n, **x) for n in (1, 2))
    for key in one:
        assert one[key].tobytes() == two[key].tobytes()
        assert one.bound[key].tobytes() == two.bound[key].tobytes()


def memories(x):
    """H, G after every token of one head, token by token."""
    H, G = (y[0, 0].copy() for y in x["initial_state"])
    for t in range(x["k"].shape[1]):
        a, b, k = np.exp(x["g"][0, t, 0]), x["beta"][0, t, 0], x["k"][0, t, 0]
        H, G = a * H + b * np.outer(k, k), a * G + b * np.outer(k, x["v"][0, t, 0])
        yield H, G


@pytest.mark.parametrize("start", ["zero", "diagonal"])
def test_conjugate_gradients_are_taken_as_exact(start):
    """Two steps, far from the solution: the adjoint system by the same two steps, as the released kernels do."""
    x = case("mesa_net", B=1, T=5, H=1, HV=1, K=4, V=3)
    do = asked(problem("mesa_net", x))[0]
    g = refengine.grad("mesa_net", do=do, solver="cg", iterations=2, x0=start, **x)
    dlamb = np.zeros(4)
    for t, (H, G) in enumerate(memories(x)):
        A = H + np.diag(x["lamb"][0])
        z, y = (descend(A, rhs, 2, 1e-5, start) for rhs in (G @ do[0, t, 0], x["q"][0, t, 0]))
        assert np.allclose(g["q"][0, t, 0], z, rtol=1e-12)
        dlamb -= z * y
    assert np.allclose(g["lamb"][0], dlamb, rtol=1e-12)
    assert "cg taken as exact" in g.info["certificate"]


def test_chebyshev_is_taken_as_exact():
    x = case("gated_kalmanet", B=1, T=5, H=1, HV=1, K=4, V=3)
    x["alpha"] = np.linspace(0.2, 0.9, 5)[None, :, None]
    do = asked(problem("gated_kalmanet", x))[0]
    g = refengine.grad("gated_kalmanet", do=do, solver="chebyshev", iterations=3, ridge=0.1, eps=0.0, scale=1.0, **x)
    squared = dict(x, beta=x["beta"] ** 2)
    for t, (H, G) in enumerate(memories(squared)):
        size = np.sqrt((H * H).sum())
        m, owed = x["alpha"][0, t, 0], G @ do[0, t, 0]
        z = iterate(H + 0.1 * size * np.eye(4), m * owed, size, 0.1 * size, 3, 2.0)
        assert np.allclose(g["q"][0, t, 0], z + (1 - m) * owed, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mesa_net", dict(solver="cg", iterations=30, eps=1e-200)),
        ("gated_kalmanet", dict(solver="chebyshev", iterations=300, ridge=0.5)),
    ],
)
def test_a_solver_that_converged_has_the_exact_gradient(name, options):
    x = case(name, B=1, T=5, H=1, HV=2, K=3, V=2)
    do, dht = asked(problem(name, x))
    kept = {n: y for n, y in options.items() if n == "ridge"}
    one, two = (refengine.grad(name, do=do, dht=dht, **x, **more) for more in (options, dict(kept, solver="exact")))
    for key in one:
        assert np.allclose(one[key], two[key], rtol=1e-9, atol=1e-11 * abs(two[key]).max()), key
