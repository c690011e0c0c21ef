"""Every input error the bound of a gradient knows of: an operand or a cotangent is moved as far as that says, and the
gradient must stay within."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from spanning import case, of_families, problem

import refengine
from refengine import L2Norm
from refengine.engine.delta_grad import adjoint
from refengine.engine.prepare import prepare
from refengine.kernels.delta_grad_bound import norm
from refengine.numbers.bounded import Bounded
from refengine.numbers.traced import Traced, pull_back
from refengine.spec import ERASE_KEY, Delta

SIZE = 1e-6  # far above float64 rounding, far below second order
CASES = {
    "gated_delta_rule": "qkvba",  # the write key erases, after a scalar decay
    "kda": "qkvba",  # a decay of each channel
    "gdn2": "qkeva",  # an erase vector of its own
    "comba": "qkevba",  # that predicts before the decay
    "rwkv7": "qkeva",  # two micro-steps, decays of each channel, before them
    "delta_rule": "qkvb",  # nothing decays
    "gla": "qkva",  # nothing is erased
}


def moved(x, rng, relative=False):
    """x pushed by SIZE in every row (or by SIZE of each entry), and an error that says so."""
    push = rng.standard_normal(x.value.shape)
    if relative:
        push = SIZE * np.sign(push) * x.value
    else:
        push *= SIZE / np.sqrt((push**2).sum(-1, keepdims=True))
    return Bounded(x.value + push, np.full(x.value.shape[:-1], SIZE * (1 + 1e-9)))


def apart(x, y):
    """How far two gradients are from each other, row by row, and how far their bounds let them be."""
    return np.sqrt(((x.value - y.value) ** 2).sum(axis=-1)), x.error + y.error


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "operand"), [(n, operand) for n, operands in CASES.items() for operand in operands])
def test_an_inexact_operand_is_covered(name, operand, seed):
    rng = np.random.default_rng([seed, *name.encode()])
    p = problem(name, case(name, T=6, B=1, seed=seed))
    x, _ = prepare(p)
    y = replace(x, **{operand: moved(getattr(x, operand), rng, operand == "a")})
    if y.e is not ERASE_KEY and operand == "k" and x.e is x.k:
        y = replace(y, e=y.k)
    HV, K, V = (p.sizes[n] for n in ("HV", "K", "V"))
    do, dht = rng.standard_normal((1, 6, HV, V)), rng.standard_normal((1, HV, K, V))
    a, b = (adjoint(p, z, do, (dht,), 1, None) for z in (x, y))
    most = 0.0
    for key in a.operands:
        far, limit = apart(a.operands[key], b.operands[key])
        assert (far <= limit).all(), key
        assert limit.max() < 1e5 * far.max() + 1e-9
        most = max(most, far.max())
    assert most > 0.1 * SIZE
    columns = np.sqrt(((a.initial[0] - b.initial[0]) ** 2).sum(axis=2))
    assert (columns <= a.initial_bound[0] + b.initial_bound[0]).all()


@pytest.mark.parametrize("name", of_families((Delta,)))
def test_float32_and_float64_are_within_their_bounds(name):
    x = case(name, T=40, B=1, K=12, V=21)
    rng = np.random.default_rng(1)
    s = refengine.solve(name, **x)
    do, dht = rng.standard_normal(s.o.shape), rng.standard_normal(s.final_state.shape)
    g, h = (refengine.grad(name, do=do, dht=dht, precision=n, **x) for n in ("float64", "float32"))
    assert g.info["certificate"].startswith("rigorous")
    for key in g:
        far, limit = abs(g[key] - h[key]), g.bound[key] + h.bound[key]
        if key == "initial_state":
            far = np.sqrt((far**2).sum(axis=2))
        elif far.ndim == limit.ndim + 1:
            far = np.sqrt((far**2).sum(axis=-1))
        assert (far <= limit).all(), key
        assert g.bound[key].max() < 1e-8 * abs(g[key]).max()


def test_the_bound_is_tight_enough_to_be_useful():
    """On ordinary inputs it stays far below float32 noise."""
    x = case("gated_delta_rule", T=300, K=32, V=16, B=1)
    do = np.random.default_rng(0).standard_normal((1, 300, 4, 16))
    g = refengine.grad("gated_delta_rule", do=do, **x)
    for key in g:
        assert g.bound[key].max() < 2.0**-24 * abs(g[key]).max() / 16


@pytest.mark.parametrize(("dtype", "range_"), [(np.float64, 300), (np.float32, 36)])
def test_a_norm_is_covered_at_the_ends_of_the_range(dtype, range_):
    rng = np.random.default_rng(2)
    u = float(np.finfo(dtype).eps) / 2
    least = 200 * float(np.finfo(dtype).smallest_subnormal) / u
    for n in (1, 7, 16, 21, 128):
        for power in (-range_, -range_ // 2, 0, range_ // 2, range_):
            x = (rng.standard_normal(n) * 10.0**power).astype(dtype)
            exact = math.hypot(*x.tolist())
            far = 2 * math.sqrt(n) if abs(power) > range_ // 4 else 1 + (2 * n + 40) * u
            assert exact <= norm(x, u, least) <= far * exact
        assert norm(np.zeros(n, dtype), u, least) == 0
        assert np.isnan(norm(np.full(n, np.nan, dtype), u, least))


@pytest.mark.parametrize("place", ["inside", "outside", "max"])
def test_l2norm_covers_its_input_and_its_cotangent(place):
    rng = np.random.default_rng(4)
    norm = L2Norm(0.5, place)
    x, d = (Bounded.exact(rng.standard_normal((1, 40, 2, 5)) * 10.0 ** rng.uniform(-2, 0, (1, 40, 2, 1))) for _ in "xd")
    found = []
    for given, cotangent in ((x, d), (moved(x, rng), d), (x, moved(d, rng))):
        leaf = Traced(given)
        found.append(pull_back([(norm(leaf), cotangent)])[leaf.serial])
    for other in found[1:]:
        far, limit = apart(found[0], other)
        assert far.max() > 0.1 * SIZE * abs(d.value).max() / 10
        assert (far <= limit).all()
        assert limit.max() < 100 * far.max()


def test_what_comes_before_the_op_covers_its_cotangent():
    """Convolutions, gates, logits, shifts: linear in what is handed to them."""
    rng = np.random.default_rng(8)
    x = case("kda", B=1, T=9, H=1, HV=2, K=3, V=2)
    conv = refengine.Conv(rng.standard_normal((3, 3)), rng.standard_normal(3), residual=True)
    gate = refengine.Gate(rng.standard_normal(x["g"].shape), rng.standard_normal(2), rng.standard_normal((2, 3)))
    for low in (None, -5.0):
        given = {n: x[n] for n in ("q", "k", "v")} | dict(beta_logits=rng.standard_normal(x["beta"].shape), key_shift=1)
        p = problem("kda", dict(given, gate=replace(gate, lower_bound=low), conv_k=conv, conv_q=conv))
        leaves = {}
        lowered, _ = prepare(
            p, lambda name, array, leaves=leaves: leaves.setdefault(name, Traced(Bounded.exact(array)))
        )
        for operand in "qkvba":
            number = getattr(lowered, operand)
            d = Bounded.exact(rng.standard_normal(number.value.shape))
            one, other = (pull_back([(number, y)]) for y in (d, moved(d, rng)))
            reached = [leaf.serial for leaf in leaves.values() if leaf.serial in one]
            assert reached
            for serial in reached:
                far, limit = apart(one[serial], other[serial])
                assert (far <= limit).all()
                assert far.max() > 0
