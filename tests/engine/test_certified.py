"""precision="certified" against balls: double-double within its bound, float64 within its own, and what is called
proved is."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case, every, family, of_families, problem

import refengine
from refengine import ops
from refengine.engine.certified import correctly_rounded, proved
from refengine.engine.definition import define
from refengine.engine.run import CERTIFIED, execute

flint = pytest.importorskip("flint")
REGIMES = ("rich", "same_keys", "unequal_gates")


def away(high, low, exact):
    """|high + low - exact|, element by element, in balls."""
    each = np.frompyfunc(lambda h, l, b: abs(flint.arb(float(h)) + flint.arb(float(l)) - b), 3, 1)
    return each(high, low, exact)


def upper(x):
    return np.asarray(np.frompyfunc(lambda b: float(b.abs_upper()), 1, 1)(x), dtype=float)


def is_nearest(high, exact):
    """Whether each float64 is surely the one nearest to its ball."""
    up, down = np.nextafter(high, np.inf), np.nextafter(high, -np.inf)
    each = np.frompyfunc(
        lambda h, u, d, b: bool(b < (flint.arb(float(h)) + float(u)) / 2 and b > (flint.arb(float(h)) + float(d)) / 2),
        4,
        1,
    )
    return np.asarray(each(high, up, down, exact), dtype=bool)


def check(name, arguments):
    flint.ctx.prec = 320
    p = problem(name, {**arguments, "precision": "certified"})
    s, plain = execute(p), execute(problem(name, arguments))
    o, final = define(p, "balls")
    outputs = (("o", s.o, o, np.s_[..., None]), ("final_state", s.final_state, final, np.s_[:, :, None]))
    sure = 0
    for what, high, exact, wide in outputs:
        low, bound = s.low[what], s.bound[f"{what}.lo"]
        wrong, alone = upper(away(high, low, exact)), upper(away(high, 0 * low, exact))
        before = upper(away(plain.o if what == "o" else plain.final_state, 0 * low, exact))
        if what != "o":
            wrong, alone, before = (np.sqrt((x**2).sum(axis=2)) for x in (wrong, alone, before))
            wide = np.s_[...]
        assert (wrong <= bound[wide]).all()
        assert (alone <= s.bound[what][wide]).all()
        assert (before <= plain.bound[what][wide]).all()
        assert bound.max(initial=0) <= 2.0**-40 * plain.bound[what].max(initial=0)
        elementwise = bound[..., None] if what == "o" else bound[:, :, None]
        claimed = proved(high, low, elementwise)
        assert is_nearest(high, exact)[claimed].all()
        sure += claimed.sum()
    said = s.info["correctly_rounded"]
    assert said["proved"] == sure
    assert said["proved"] + said["not_proved"] == s.o.size + s.final_state.size
    return s, plain


@pytest.mark.parametrize(
    ("name", "convention", "regime"), every("rich", "same_keys", "unequal_gates", names=of_families(CERTIFIED))
)
def test_every_op(name, convention, regime):
    s, plain = check(name, {**case(name, regime, B=1, T=11, HV=2, H=1), "convention": convention})
    assert s.info["correctly_rounded"]["not_proved"] == 0
    assert (plain.o != s.o).any()


@pytest.mark.parametrize("shape", [dict(T=0), dict(T=1, K=1), dict(T=3, K=96, V=3), dict(T=3, K=3, V=70), dict(T=37)])
def test_awkward_shapes(shape):
    check("gdn2", case("gdn2", **{"B": 1, "H": 1, "HV": 1, **shape}))


def test_packed_and_a_step_per_value_channel():
    check("longhorn", case("longhorn", cu_seqlens=[0, 0, 3, 8, 8], wide_beta=True, H=1, HV=1))


@pytest.mark.parametrize("name", ["gated_delta_rule", "rwkv7"])
def test_the_bits_do_not_depend_on_threads_or_cuts(name):
    x = case(name, T=40, B=1, H=1, HV=1, V=100)
    one = refengine.solve(name, **x, precision="certified", threads=1)
    many = refengine.solve(name, **x, precision="certified", threads=3)
    for what in one.low:
        assert one.low[what].tobytes() == many.low[what].tobytes()
        assert one.bound[f"{what}.lo"].tobytes() == many.bound[f"{what}.lo"].tobytes()
    part = {n: y[:, :17] if n != "initial_state" else y for n, y in x.items()}
    states = refengine.solve(name, **x, precision="certified", states_at=[17]).states
    assert states[0].tobytes() == refengine.solve(name, **part, precision="certified").final_state.tobytes()


def test_a_tie_is_not_called_proved():
    """1 + 2^-53 lies half-way between two float64 numbers: neither is proved, whatever the precision."""
    tie = {"k": [1.0, 1.0], "v": [1.0, 2.0**-53]}
    x = {n: np.array(y).reshape(1, 2, 1, 1) for n, y in tie.items()}
    s = refengine.solve("linear_attn", q=np.ones((1, 2, 1, 1)), **x, precision="certified", scale=1.0)
    assert s.o.ravel().tolist() == [1.0, 1.0]
    assert s.low["o"].ravel().tolist() == [0.0, 2.0**-53]
    assert s.info["correctly_rounded"] == {
        "proved": 1,
        "not_proved": 2,
        "where": ["o[0, 1, 0, 0]", "final_state[0, 0, 0, 0]"],
    }


def test_what_a_bound_proves():
    one, half = np.array([1.0]), np.array([2.0**-53])
    assert proved(one, half * 0.5, half * 0.49).all()
    assert not proved(one, half * 0.5, half * 0.5).any()
    assert not proved(one, half * -0.4, half * 0.11).any()  # below 1 the next float64 is twice as near
    assert proved(one, half * -0.4, half * 0.09).all()
    assert not proved(np.zeros(1), np.zeros(1), np.array([1e-300])).any()
    assert not proved(one, 0 * one, np.array([np.inf])).any()
    assert correctly_rounded({"o": (np.ones(20), np.zeros(20), np.full(20, np.inf))})["not_proved"] == 20


def test_only_where_a_double_double_kernel_exists():
    for name in ops.NAMES:
        p = problem(name, {**case(name, T=2), "precision": "certified"})
        if family(name) in CERTIFIED:
            assert set(execute(p).low) == {"o", *p.op.final_names()}
        else:
            with pytest.raises(refengine.InputError, match="certified"):
                execute(p)
