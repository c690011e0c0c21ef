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


def outputs_of(solution, names):
    return {"o": solution.o, **{name: solution.finals[name] for name in names}}


def check(name, arguments):
    flint.ctx.prec = 320
    p = problem(name, {**arguments, "precision": "certified"})
    s, plain = execute(p), execute(problem(name, arguments))
    o, final = define(p, "balls")
    names = p.op.final_names()
    exact_of = {"o": o, **dict(zip(names, final if len(names) != 1 else (final,), strict=True))}
    highs, before_of = outputs_of(s, names), outputs_of(plain, names)
    sure = 0
    for what, exact in exact_of.items():
        high, low, bound = highs[what], s.low[what], s.bound[f"{what}.lo"]
        wrong, alone = upper(away(high, low, exact)), upper(away(high, 0 * low, exact))
        before = upper(away(before_of[what], 0 * low, exact))
        wide = np.s_[..., None] if what == "o" else np.s_[...]
        if what != "o":
            wrong, alone, before = (np.sqrt((x**2).sum(axis=2)) for x in (wrong, alone, before))
        assert (wrong <= bound[wide]).all()
        assert (alone <= s.bound[what][wide]).all()
        assert (before <= plain.bound[what][wide]).all()
        assert bound.max(initial=0) <= 2.0**-40 * plain.bound[what].max(initial=0)
        claimed = proved(high, low, bound[..., None] if what == "o" else bound[:, :, None])
        nearest = is_nearest(high, exact)
        # What is not claimed is a zero, or lies half-way by balls of 320 bits too.
        assert ((claimed == nearest) | (high == 0.0)).all()
        sure += claimed.sum()
    said = s.info["correctly_rounded"]
    assert said["proved"] == sure
    assert said["proved"] + said["not_proved"] == sum(x.size for x in highs.values())
    return s, plain


@pytest.mark.parametrize(
    ("name", "convention", "regime"), every("rich", "same_keys", "unequal_gates", names=of_families(CERTIFIED))
)
def test_every_op(name, convention, regime):
    s, plain = check(name, {**case(name, regime, B=1, T=11, HV=2, H=1), "convention": convention})
    assert (plain.o != s.o).any()


@pytest.mark.parametrize("shape", [dict(T=0), dict(T=1, K=1), dict(T=3, K=96, V=3), dict(T=3, K=3, V=70), dict(T=37)])
def test_awkward_shapes(shape):
    check("gdn2", case("gdn2", **{"B": 1, "H": 1, "HV": 1, **shape}))


@pytest.mark.parametrize("name", ["mesa_net", "gated_kalmanet", "softmax_attention"])
@pytest.mark.parametrize("shape", [dict(T=0), dict(T=1, K=1), dict(T=19, K=13, V=70), dict(cu_seqlens=[0, 0, 3, 12])])
def test_awkward_shapes_of_the_other_families(name, shape):
    check(name, {**case(name, **{"B": 1, "H": 1, "HV": 2, **shape}), "use_qk_l2norm": True})


@pytest.mark.parametrize("lamb", [1e-3, 1e-7, 1e6])
def test_a_system_that_is_nearly_singular(lamb):
    """Fewer tokens than channels: only the ridge makes it solvable."""
    x = case("mesa_net", T=5, K=12, V=3, B=1, H=1, HV=1, start=False)
    check("mesa_net", {**x, "lamb": np.full_like(x["lamb"], lamb)})


def test_only_the_exact_solver_is_certified():
    with pytest.raises(refengine.InputError, match="solver='exact' only, not for 'cg'"):
        refengine.solve("mesa_net", **case("mesa_net", T=2), precision="certified", solver="cg")


def test_packed_and_a_step_per_value_channel():
    check("longhorn", case("longhorn", cu_seqlens=[0, 0, 3, 8, 8], wide_beta=True, H=1, HV=1))


@pytest.mark.parametrize("name", ["gated_delta_rule", "rwkv7", "gated_kalmanet", "softmax_attention"])
def test_the_bits_do_not_depend_on_threads_or_cuts(name):
    x = case(name, T=40, B=1, H=1, HV=1, V=100)
    one = refengine.solve(name, **x, precision="certified", threads=1)
    many = refengine.solve(name, **x, precision="certified", threads=3)
    for what in one.low:
        assert one.low[what].tobytes() == many.low[what].tobytes()
        assert one.bound[f"{what}.lo"].tobytes() == many.bound[f"{what}.lo"].tobytes()
    part = {n: y[:, :17] if n != "initial_state" else y for n, y in x.items()}
    first = refengine.solve(name, **part, precision="certified")
    assert first.o.tobytes() == np.ascontiguousarray(one.o[:, :17]).tobytes()
    assert first.low["o"].tobytes() == np.ascontiguousarray(one.low["o"][:, :17]).tobytes()
    if first.finals:
        states = refengine.solve(name, **x, precision="certified", states_at=[17]).states
        for mine, final in zip((states,) if len(first.finals) == 1 else states, first.finals.values(), strict=True):
            assert mine[0].tobytes() == final.tobytes()


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
    assert proved(np.zeros(1), np.zeros(1), np.zeros(1)).all()
    assert not proved(np.zeros(1), np.array([5e-324]), np.zeros(1)).any()
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
