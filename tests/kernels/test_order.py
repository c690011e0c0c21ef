"""The order of operations is part of the definition: the kernel, bit for bit, against that order in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from spanning import case

import refengine
from refengine.kernels import elementwise
from refengine.numbers.bounded import apply


def fma(a, b, c):
    """a b + c rounded once; a zero keeps the sign that IEEE arithmetic gives it, which no case here depends on."""
    return float(Fraction(a) * Fraction(b) + Fraction(c))


def segments(terms):
    """(0 + 1) + (2 + 3) over four runs of ceil(K / 4) fused multiply-adds from zero."""
    m = -(-len(terms) // 4)
    sums = []
    for n in range(4):
        s = 0.0
        for a, b in terms[n * m : n * m + m]:
            s = fma(a, b, s)
        sums.append(s)
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


def column(q, k, e, a, v, b, S, scale, pre):
    """One value column of one head, token by token."""
    o = []
    for t in range(len(v)):
        decayed = [a[t][i] * S[i] for i in range(len(S))]
        p = segments(list(zip(e[t], S if pre else decayed, strict=True)))
        d = b[t] * (v[t] - p)
        S = [fma(k[t][i], d, decayed[i]) for i in range(len(S))]
        o.append(scale * segments(list(zip(q[t], S, strict=True))))
    return o, S


@pytest.mark.parametrize("name", ["gated_delta_rule", "kda", "comba"])
@pytest.mark.parametrize("K", [1, 3, 4, 5, 9, 16])
def test_the_canonical_order(name, K):
    """The decays are what our exp gives, which tests/kernels/test_math.py judges."""
    x = case(name, B=1, T=5, H=1, HV=1, K=K, V=2)
    x.pop("d", None)
    g = x["g"] if x["g"].ndim == 4 else np.repeat(x["g"][..., None], K, axis=-1)
    s = refengine.solve(name, **x, scale=0.3)
    e = x.get("p", x["k"])
    parts = [y[0, :, 0].tolist() for y in (x["q"], x["k"], e, apply(elementwise.exp, g))]
    for j in range(2):
        start = x["initial_state"][0, 0, :, j].tolist()
        o, S = column(*parts, x["v"][0, :, 0, j].tolist(), x["beta"][0, :, 0].tolist(), start, 0.3, name == "comba")
        assert s.o[0, :, 0, j].tolist() == o
        assert s.final_state[0, 0, :, j].tolist() == S
