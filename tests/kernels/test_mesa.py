"""The exact learner's order of operations, bit for bit, against that order in exact fractions; and its systems apart
from one another."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from spanning import case

import refengine
from refengine.kernels import elementwise, spd
from refengine.numbers.bounded import apply


def fma(a, b, c):
    return float(Fraction(a) * Fraction(b) + Fraction(c))


def root(x):
    """sqrt(x) correctly rounded, for x of ordinary size."""
    top = Fraction(x) * 4**120
    r = isqrt(int(top))
    return float(Fraction(2 * r + (r * r != top), 2 ** (120 + 1)))


def triangle(H, lamb):
    """L of H + diag(lamb), with 1 / L_ii on its diagonal."""
    L = [[0.0] * len(H) for _ in H]
    for i in range(len(H)):
        for j in range(i + 1):
            s = H[i][j] + lamb[i] if i == j else H[i][j]
            for k in range(j):
                s = fma(-L[i][k], L[j][k], s)
            L[i][j] = 1.0 / root(s) if i == j else s * L[j][j]
    return L


def solution(L, q):
    K = len(q)
    x = list(q)
    for i in range(K):
        for k in range(i):
            x[i] = fma(L[i][k], -x[k], x[i])
        x[i] *= L[i][i]
    for i in reversed(range(K)):
        for k in reversed(range(i + 1, K)):
            x[i] = fma(L[k][i], -x[k], x[i])
        x[i] *= L[i][i]
    return x


def segments(x, y):
    m = -(-len(x) // 4)
    sums = []
    for n in range(4):
        s = 0.0
        for a, b in zip(x[n * m : n * m + m], y[n * m : n * m + m], strict=True):
            s = fma(a, b, s)
        sums.append(s)
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


@pytest.mark.parametrize("K", [1, 2, 4, 5, 7, 9])
def test_the_canonical_order(K):
    x = case("mesa_net", B=1, T=11, H=1, HV=1, K=K, V=2)
    s = refengine.solve("mesa_net", **x, scale=0.3)
    h_kk, h_kv = (y[0, 0].tolist() for y in x["initial_state"])
    lamb = x["lamb"][0].tolist()
    for t in range(11):
        q, k, v = (x[n][0, t, 0].tolist() for n in "qkv")
        a, b = float(apply(elementwise.exp, x["g"])[0, t, 0]), float(x["beta"][0, t, 0])
        w = [b * y for y in k]
        for i in range(K):
            h_kk[i] = [fma(w[i], k[j], a * h_kk[i][j]) for j in range(i + 1)]
            h_kv[i] = [fma(w[i], v[j], a * h_kv[i][j]) for j in range(2)]
        y = solution(triangle(h_kk, lamb), q)
        assert s.o[0, t, 0].tolist() == [0.3 * segments(y, [row[j] for row in h_kv]) for j in range(2)]
    whole = [[h_kk[max(i, j)][min(i, j)] for j in range(K)] for i in range(K)]
    assert s.final_state[0][0, 0].tolist() == whole
    assert s.final_state[1][0, 0].tolist() == h_kv


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_system_does_not_see_its_neighbours(dtype):
    """One good system among others that break down: the same bits as among copies of itself."""
    rng = np.random.default_rng(3)
    n, L = 7, spd.lanes(np.dtype(dtype))
    m = rng.standard_normal((n, n))
    m = m @ m.T + np.eye(n)
    answers = []
    for others in (m, -m, np.full((n, n), np.nan), np.zeros((n, n))):
        A, F = (np.zeros(spd.panels(n, L), dtype) for _ in range(2))
        x, r = np.ones(8 * L, dtype), np.ones(8 * L, dtype)
        for i in range(n):
            for j in range(i + 1):
                at = 8 * L * (i // 4) * (i // 4 + 1) + (4 * j + i % 4) * L
                A[at : at + L] = others[i, j]
                A[at + 2] = m[i, j]
        spd.shift(A, n, np.zeros((n, L), dtype), 1, dtype(1))
        spd.factor(A, n, F, dtype(1))
        spd.substitute(F, n, x)
        spd.defect(A, n, x, np.ones(8 * L, dtype), r)
        answers.append((x.reshape(8, L)[:n, 2].tobytes(), r.reshape(8, L)[:n, 2].tobytes()))
        good = x.reshape(8, L)[:n, 2].astype(float)
        assert abs(m @ good - 1).max() < (1e-12 if dtype is np.float64 else 1e-3)
    assert len(set(answers)) == 1
