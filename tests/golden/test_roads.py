"""The roads to a golden, each judged by another: the closed form by the definition, gradients by refengine.grad."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case, every, problem

import refengine
from refengine import ops
from refengine.golden import balls, certify, direct
from refengine.golden.cases import kind, suite
from refengine.golden.certify import cotangents_of
from refengine.golden.closed import closed
from refengine.golden.inputs import arguments
from refengine.golden.problems import problem as build

flint = pytest.importorskip("flint")


def overlap(x, y):
    each = np.frompyfunc(lambda a, b: a.overlaps(b) and float((a - b).rad()) < 1e-60, 2, 1)
    return each(x, y).all()


ROADS = {"delta": closed, "regression": direct.regression, "attention": direct.attention}
CLOSED = [name for name in ops.NAMES if kind(ops.get(name)) in ROADS and ops.get(name).compose is None]


@pytest.mark.parametrize(("name", "convention", "regime"), every("rich", "strong", names=CLOSED))
def test_the_closed_form_is_the_definition(name, convention, regime):
    p = problem(name, {**case(name, regime, B=1, T=9, HV=2, H=1), "convention": convention})
    with balls.bits(512):
        for x, y in zip(balls.outputs(p).values(), ROADS[kind(p.op)](p), strict=True):
            assert overlap(x, y)


def test_the_closed_form_is_cut_into_chunks(monkeypatch):
    from refengine.golden import closed as module

    p = problem("gated_delta_product", case("gated_delta_product", cu_seqlens=[0, 3, 3, 11]))
    with balls.bits(512):
        whole = closed(p)
        monkeypatch.setattr(module, "CHUNK", 5)
        for x, y in zip(whole, closed(p), strict=True):
            assert overlap(x, y)


def test_the_closed_form_takes_more_bits_until_it_is_thin(monkeypatch):
    p = problem("iplr", case("iplr", B=1, T=9, HV=2, H=1))
    monkeypatch.setattr(certify, "CLOSED_BITS", (60, 320))
    for enclosure, nearest, _ in certify.closed_form(p, "delta").values():
        assert balls.thin(enclosure, nearest)


WITH_GRADIENTS = [c for c in suite("core") if c.regime.gradients]
NO_ADJOINT = "dot_channel"  # each key channel of such a memory decays by itself


@pytest.mark.parametrize("c", [c for c in WITH_GRADIENTS if c.parts != NO_ADJOINT], ids=lambda c: c.id)
def test_gradients_in_balls_are_those_of_the_adjoint(c):
    """A tape through the definition in balls, and sweeps of a derived adjoint in float64: no line in common."""
    name = c.op.name
    a = arguments(c)
    cotangents = {n: a.pop(n) for n in ("do", "dht") if n in a}
    found = refengine.grad(name, **a, **cotangents)
    with balls.bits(256):
        _, exact = balls.gradients(build(name, a), cotangents_of(c, cotangents))
    assert set(exact) >= set(a) & {t.name for t in c.op.inputs}
    for what, ball in exact.items():
        values, _ = balls.rounded(ball)
        got = found[what].reshape(values.shape)
        assert abs(got - values).max() <= 1e-12 * abs(values).max() + 1e-13, what


LEARNING = {
    c.parts or c.op.name: c
    for c in WITH_GRADIENTS
    if kind(c.op) == "training" and c.regime.tier == "1" and c.parts in ("", "huber", NO_ADJOINT)
}
STEP = 2.0**-120


@pytest.mark.parametrize("name", LEARNING)
def test_gradients_in_balls_are_slopes(name):
    """Every input moved a little both ways along a direction of its own, in 600 bits: a second road that knows nothing
    of derivatives, off by the square of the step."""
    a = arguments(LEARNING[name])
    weighed = cotangents_of(LEARNING[name], a)
    p = build(LEARNING[name].op.name, a)
    arb = flint.arb
    with balls.bits(600):
        _, exact = balls.gradients(p, weighed)
        rng = np.random.default_rng(3)
        ways = {id(x): (rng.integers(-4, 5, np.shape(x)), n) for n, x in balls.leaves(p).items()}

        def moved(by):
            each = np.frompyfunc(lambda y, d: arb(float(y)) + by * int(d), 2, 1)

            def number(x):
                way, _ = ways.get(id(x), (np.zeros(np.shape(x), int), ""))
                return np.asarray(each(np.asarray(x, dtype=np.float64), way), dtype=object)

            return balls.outputs(p, number)

        up, down = moved(arb(STEP)), moved(-arb(STEP))
        weigh = np.frompyfunc(lambda y: arb(float(y)), 1, 1)
        rise = sum(((up[n] - down[n]) * weigh(x)).sum() for n, x in weighed.items()) / (2 * arb(STEP))
        owed = sum((exact[n] * np.frompyfunc(lambda d: arb(int(d)), 1, 1)(way)).sum() for way, n in ways.values())
        assert set(exact) == {n for _, n in ways.values()}
        assert abs(rise - owed) < 1e-60 and abs(owed) > 1e-3


def test_rounding_of_balls():
    arb = flint.arb
    with balls.bits(300):
        third, tie = arb(1) / 3, arb(1) + arb(2) ** -53
        wide = tie + arb(0, 2.0**-60)
        tiny = arb(2) ** -1080
        values, sure = balls.rounded(np.array([third, tie, wide, tiny, arb(0)], dtype=object))
    assert values.tolist() == [1 / 3, 1.0, values[2], 0.0, 0.0]
    assert sure.tolist() == [True, True, False, True, True]


def test_precision_is_raised_until_balls_are_thin_enough_to_judge_by():
    tries = []

    def compute():
        tries.append(flint.ctx.prec)
        return {"x": np.array([flint.arb(1) / 3 + flint.arb(0, 2.0**-90 if len(tries) == 1 else 2.0**-200)])}

    balls.settled(compute)
    assert tries == list(balls.PRECISIONS[:2])


def test_precision_is_raised_until_every_enclosure_rounds_to_one_number():
    tries = []

    def compute():
        tries.append(flint.ctx.prec)
        blur = flint.arb(0, 0.5 if len(tries) == 1 else 2.0**-200)
        return {"x": np.array([flint.arb(1) / 3 + blur], dtype=object)}

    _, value, sure = balls.settled(compute)["x"]
    assert tries == list(balls.PRECISIONS[:2])
    assert value[0] == 1 / 3 and sure[0]
