"""Gradients of softmax attention against a complex step through its definition, and what must hold of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from spanning import case, problem

import refengine
from refengine.engine.definition import define

NAME = "softmax_attention"
TINY = 1e-40


@pytest.mark.parametrize("more", [{}, {"use_qk_l2norm": True, "key_shift": 1}, {"cu_seqlens": np.array([0, 0, 2, 6])}])
def test_every_number_of_every_input(more):
    x = {n: y for n, y in case(NAME, B=1, T=6, H=1, HV=2, K=3, V=2).items() if n in ("q", "k", "v")} | more
    p = problem(NAME, x)
    do = np.random.default_rng(1).standard_normal((1, 6, 2, 2))
    g = refengine.grad(NAME, do=do, **x)
    assert {"q", "k", "v"} <= set(g)
    for key in ("q", "k", "v"):
        wanted = np.zeros(g[key].shape)
        for index in np.ndindex(wanted.shape):
            moved = p.tensors[key].astype(complex)
            moved[index] += TINY * 1j
            o, _ = define(replace(p, tensors={**p.tensors, key: moved}), "complex128")
            wanted[index] = (do * o.imag).sum() / TINY
        assert abs(g[key] - wanted).max() <= 1e-13 * abs(wanted).max(), key
        assert 0 <= g.bound[key].max() < 1e-12 * abs(wanted).max()


def test_large_scores_and_threads_and_float32():
    rng = np.random.default_rng(2)
    q, k, v, do = (rng.standard_normal((1, 9, 2, 4)) for _ in range(4))
    one, two = (refengine.grad(NAME, q=300 * q, k=k, v=v, do=do, threads=n) for n in (1, 2))
    for key in one:
        assert np.isfinite(one[key]).all()
        assert one[key].tobytes() == two[key].tobytes()
    f64, f32 = (refengine.grad(NAME, q=q, k=k, v=v, do=do, precision=n) for n in ("float64", "float32"))
    for key in f64:
        assert (abs(f64[key] - f32[key]).max(axis=-1) <= f64.bound[key] + f32.bound[key]).all()
        assert 0 < f32.bound[key].max() < 1e-5 * abs(f64[key]).max()
