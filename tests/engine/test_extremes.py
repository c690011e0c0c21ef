"""At the ends of the exponent range: vanishing squares, subnormal products, casts out of range. Each broke a bound
once."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import problem

import refengine
from refengine.engine.definition import define
from refengine.engine.run import execute

flint = pytest.importorskip("flint")
CANCEL = [1.1, 3.3e-4, -(1.1 + 3.3e-4)]  # three writes whose exact sum is below their rounded one


def single(T=1, **values):
    """One head, K = V = 1: inputs by name as numbers, or as a list over tokens."""
    out = {}
    for name, value in values.items():
        if name in ("scale", "precision"):
            out[name] = value
        elif name == "h0":
            out["initial_state"] = np.full((1, 1, 1, 1), value)
        elif name == "d":
            out[name] = np.array([value])
        else:
            row = np.zeros(T)
            row[: np.size(value)] = value
            row = np.full(T, float(value)) if np.ndim(value) == 0 else row
            out[name] = row.reshape(1, T, 1, 1) if name in "qkvp" else row.reshape(1, T, 1)
    return out


def late(g, T=40):
    gates = [0.0] * T
    gates[35] = g
    return gates


def writes(size):
    return [x * size for x in CANCEL]


F32 = dict(precision="float32")
CASES = {
    "k's square": ("linear_attn", single(q=1, k=1.23456e-163, v=1.98765e163)),
    "k's square, float32": ("linear_attn", single(q=1, k=1.23e-23, v=2e23, **F32)),
    "q's square": ("linear_attn", single(q=1e-163, k=1, v=1.7e163)),
    "q's square, float32": ("linear_attn", single(20, q=1e-24, k=1, v=1.1e18, **F32)),
    "the state's squares": ("simple_gla", single(q=1, k=0, v=0, g=-0.1, h0=1.2345e-170)),
    "the state's squares, float32": ("simple_gla", single(q=1, k=0, v=0, g=-0.1, h0=1.2e-24, **F32)),
    "the operator": ("comba", single(40, q=1, k=1, p=0, beta=1, g=late(-390.0), v=writes(1e150))),
    "the operator, float32": ("comba", single(40, q=1, k=1, p=0, beta=1, g=late(-60.0), v=writes(1e28), **F32)),
    "an error's square": ("comba", single(q=1.2345e-164 / 3, p=1.2345e-164, d=1 / 3, k=0, v=0, beta=0, g=0, h0=1e150)),
    "the correction": ("delta_rule", single(q=1, k=1e150, v=1.23e-15, beta=1.1e-300)),
    "the correction, float32": ("delta_rule", single(q=1, k=1e15, v=1.23e-20, beta=1.1e-22, **F32)),
    "before the scale": ("linear_attn", single(q=1.23e-160, k=1, v=1.7e-160, scale=1e100)),
    "before the scale, float32": ("linear_attn", single(q=1.23e-20, k=1, v=1.7e-22, scale=1e10, **F32)),
    "the decayed state": ("gated_delta_rule", single(q=1, k=1e10, v=0, beta=1, g=-0.1, h0=1.23e-310)),
    "the decay": ("simple_gla", single(40, q=1, k=1, g=late(-746.0), v=writes(1e150))),
    "the decay, float32": ("simple_gla", single(40, q=1, k=1, g=late(-110.0), v=writes(1e28), **F32)),
    "a cast key": ("linear_attn", single(q=1, k=1e-46, v=1e38, **F32)),
    "a cast query": ("linear_attn", single(q=1e-46, k=1, v=1e37, **F32)),
    "a cast step": ("delta_rule", single(q=1, k=1e10, v=1e38, beta=5e-46, **F32)),
    "a cast scale": ("linear_attn", single(q=1, k=1, v=1e37, scale=1e-46, **F32)),
    "a cast state": ("linear_attn", single(0, q=1, k=1, v=1, h0=0.1, **F32)),
    "a cast state out of range": ("linear_attn", single(0, q=1, k=1, v=1, h0=1e300, **F32)),
    "a negative step": ("longhorn", single(q=1, k=1.3, v=1.7, beta=-3.1)),
    "a step at the pole": ("longhorn", single(q=1, k=1.3, v=1.7, beta=-(1 + 1e-9) / 1.69)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_still_within_the_bound(name):
    op, arguments = CASES[name]
    p = problem(op, arguments)
    s = execute(p)
    flint.ctx.prec = 3000
    o, final = define(p, "balls")
    for value, ball, bound in (
        (s.o, o, s.bound["o"][..., None]),
        (s.final_state, final, s.bound["final_state"][:, :, None]),
    ):
        limit = np.broadcast_to(bound, value.shape)
        for x, exact, most in zip(value.ravel(), ball.ravel(), limit.ravel(), strict=True):
            assert np.isinf(most) or abs(flint.arb(float(x)) - exact) <= flint.arb(float(most))


def test_a_gate_from_a_softplus_in_the_subnormals():
    x = single(q=1, k=0, v=0, h0=1.0)
    x["gate"] = refengine.Gate(np.full((1, 1, 1, 1), -744.6), np.array([709.7]))
    p = problem("gla", x)
    s = execute(p)
    flint.ctx.prec = 3000
    _, final = define(p, "balls")
    assert abs(flint.arb(float(s.final_state.item())) - final.item()) <= flint.arb(float(s.bound["final_state"].item()))


def test_one_channel_is_bounded_as_tightly_as_many():
    s = refengine.solve("delta_rule", **single(30, q=1, k=1, v=1, beta=0.5))
    assert s.worst() < 1e-12


def test_an_eps_whose_use_could_vanish_is_refused():
    with pytest.raises(refengine.InputError, match="1e-140"):
        refengine.L2Norm(1e-150)
