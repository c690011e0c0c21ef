"""The roads to a golden, each judged by another: the closed form by the definition, gradients by refengine.grad."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case, every, problem

import refengine
from refengine.engine.definition import define
from refengine.golden import balls
from refengine.golden.cases import suite
from refengine.golden.closed import closed
from refengine.golden.inputs import arguments
from refengine.golden.problems import problem as build

flint = pytest.importorskip("flint")


def overlap(x, y):
    each = np.frompyfunc(lambda a, b: a.overlaps(b) and float((a - b).rad()) < 1e-60, 2, 1)
    return each(x, y).all()


@pytest.mark.parametrize(("name", "convention", "regime"), every("rich", "strong"))
def test_the_closed_form_is_the_definition(name, convention, regime):
    if type(name) is str and not covered(name):
        pytest.skip("not of the delta core")
    p = problem(name, {**case(name, regime, B=1, T=9, HV=2, H=1), "convention": convention})
    with balls.bits(512):
        for x, y in zip(define(p, "balls"), closed(p), strict=True):
            assert overlap(x, y)


def covered(name):
    from refengine import ops
    from refengine.golden.cases import covered

    return covered(ops.get(name))


def test_the_closed_form_is_cut_into_chunks(monkeypatch):
    from refengine.golden import closed as module

    p = problem("gated_delta_product", case("gated_delta_product", cu_seqlens=[0, 3, 3, 11]))
    with balls.bits(512):
        whole = closed(p)
        monkeypatch.setattr(module, "CHUNK", 5)
        for x, y in zip(whole, closed(p), strict=True):
            assert overlap(x, y)


@pytest.mark.parametrize("regime", ["rich", "permuted", "front"])
@pytest.mark.parametrize("name", sorted({c.op.name for c in suite("core")}))
def test_gradients_in_balls_are_those_of_the_adjoint(name, regime):
    """A tape through the definition in balls, and sweeps of a derived adjoint in float64: no line in common."""
    c = next(c for c in suite("core", (name,)) if c.regime.name == regime)
    a = arguments(c)
    do, dht = a.pop("do"), a.pop("dht")
    found = refengine.grad(name, **a, do=do, dht=dht)
    with balls.bits(256):
        _, _, exact = balls.gradients(build(name, a), do, dht)
    assert set(exact) >= set(a) & {t.name for t in c.op.inputs}
    for what, ball in exact.items():
        values, _ = balls.rounded(ball)
        got = found[what].reshape(values.shape)
        assert abs(got - values).max() <= 1e-12 * abs(values).max() + 1e-13, what


def test_rounding_of_balls():
    arb = flint.arb
    with balls.bits(300):
        third, tie = arb(1) / 3, arb(1) + arb(2) ** -53
        wide = tie + arb(0, 2.0**-60)
        tiny = arb(2) ** -1080
        values, sure = balls.rounded(np.array([third, tie, wide, tiny, arb(0)], dtype=object))
    assert values.tolist() == [1 / 3, 1.0, values[2], 0.0, 0.0]
    assert sure.tolist() == [True, True, False, True, True]


def test_precision_is_raised_until_every_enclosure_rounds_to_one_number():
    tries = []

    def compute():
        tries.append(flint.ctx.prec)
        blur = flint.arb(0, 0.5 if len(tries) == 1 else 2.0**-200)
        return (np.array([flint.arb(1) / 3 + blur], dtype=object),)

    ((_, value, sure),) = balls.settled(compute)
    assert tries == list(balls.PRECISIONS)
    assert value[0] == 1 / 3 and sure[0]
