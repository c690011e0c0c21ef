"""Gradients against the definition: a complex step through `step` for every number of every input, no kernel in
common; and what must hold of any transpose."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from spanning import case, every, of_families, problem

import refengine
from refengine import Conv, Gate, InputError, L2Norm, ops
from refengine.engine import delta_grad as running
from refengine.engine.definition import define
from refengine.spec import Delta

NAMES = of_families((Delta,))
TINY = 1e-40j
SMALL = dict(B=1, T=5, H=1, HV=2, K=3, V=2)


def cotangents(p, seed=1):
    rng = np.random.default_rng(seed)
    o, final = define(p)
    return rng.standard_normal(o.shape), rng.standard_normal(final.shape)


def stepped(p, name, index, size=TINY):
    """The problem with one number of one input moved along the imaginary axis."""

    def moved(x, at=index):
        y = np.array(x, dtype=complex)
        y[at] += size
        return y

    owner, _, part = name.partition(".")
    if name == "initial_state":
        return replace(p, initial=(moved(p.initial[0]),))
    if name == "beta_logits":
        return replace(p, beta_logits=moved(p.beta_logits))
    if owner == "gate":
        gate = p.gate
        at = index if np.ndim(getattr(gate, part)) == len(index) else np.unravel_index(index, gate.dt_bias.shape)
        return replace(p, gate=replace(gate, **{part: moved(getattr(gate, part), at)}))
    if owner == "pairing_state":
        n, channel, token = index
        rule = replace(p.pairing[part], past=moved(p.pairing[part].past, (n, token, channel)))
        return replace(p, pairing={**p.pairing, part: rule})
    if owner.startswith("conv_"):
        tensor = next(n for n in p.pairing if p.op.tensor(n).role[0] == owner[-1])
        rule = p.pairing[tensor]
        rule = replace(rule, **{part: moved(getattr(rule, part), index[::-1])})
        return replace(p, pairing={**p.pairing, tensor: rule})
    tensors = {**p.tensors, name: moved(p.tensors[name])}
    if name == "k" and p.asked.tie_values:
        tensors["v"] = tensors["k"]
    return replace(p, tensors=tensors)


def slope(p, do, dht):
    """d <do, o> + <dht, final_state> along the imaginary step."""
    o, final = define(p, "complex128")
    return ((do * o.imag).sum() + (dht * final.imag).sum()) / abs(TINY)


def agree(name, x, limit=1e-13, names=None):
    p = problem(name, x)
    do, dht = cotangents(p)
    g = refengine.grad(name, do=do, dht=dht, **x)
    for key in names or g:
        assert np.isfinite(g[key]).all()
        wanted = np.zeros(g[key].shape)
        for index in np.ndindex(wanted.shape):
            if key == "initial_state" and p.initial[0] is None:
                p = replace(p, initial=(np.zeros(wanted.shape),))
            wanted[index] = slope(stepped(p, key, index), do, dht)
        assert abs(g[key] - wanted).max() <= limit * abs(wanted).max(initial=0.0), key
    return g


@pytest.mark.parametrize(("name", "convention", "regime"), every("rich", "strong", "same_keys", names=NAMES))
def test_every_number_of_every_input(name, convention, regime):
    x = case(name, regime, **SMALL)
    g = agree(name, dict(x, convention=convention))
    assert set(g) == {n for n, y in x.items() if isinstance(y, np.ndarray)} | {"initial_state"}


@pytest.mark.parametrize("name", [n for n in NAMES if "beta" in {t.name for t in ops.get(n).inputs}])
def test_a_step_for_each_value_channel(name):
    wide = any("V" in axes.split() for t in ops.get(name).inputs if t.name == "beta" for axes in t.axes)
    agree(name, case(name, **SMALL, wide_beta=wide))


@pytest.mark.parametrize("step", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_rule", "kda", "gated_delta_product"])
def test_exact_inputs(name, step):
    """Small integers: nothing rounds but the decay of the gate."""
    rng = np.random.default_rng(3)
    x = case(name, **SMALL)
    x = {n: rng.integers(-2, 3, y.shape).astype(float) if isinstance(y, np.ndarray) else y for n, y in x.items()}
    x["beta"] = np.full(x["beta"].shape, step)
    if "g" in x:
        x["g"] = -abs(x["g"])
    agree(name, dict(x, scale=1.0))


def front_end(rng, name="gated_delta_rule", **more):
    x = case(name, **SMALL)
    out = {n: x[n] for n in ("q", "k", "v")}
    return out | dict(
        gate=Gate(
            rng.standard_normal(x["g"].shape), rng.standard_normal(2), rng.standard_normal((2, *x["g"].shape[3:]))
        ),
        beta_logits=rng.standard_normal(x["beta"].shape),
        **more,
    )


FRONT_ENDS = {
    "l2norm inside": dict(use_qk_l2norm=True),
    "l2norm outside": dict(use_qk_l2norm=L2Norm(0.1, "outside")),
    "l2norm max": dict(use_qk_l2norm=L2Norm(1.3, "max")),
    "shifts": dict(key_shift=1, query_shift=2, value_shift=1),
    "tied": dict(tie_values=True, key_shift=1),
    "twice the step": dict(allow_neg_eigval=True),
    "convolutions": dict(conv=dict()),
    "linear, residual": dict(conv=dict(activation=None, residual=True), key_shift=1, use_qk_l2norm=True),
    "all of it": dict(conv=dict(residual=True), tie_values=True, key_shift=2, use_qk_l2norm=True),
}


@pytest.mark.parametrize("what", FRONT_ENDS)
def test_the_front_end(what):
    rng = np.random.default_rng([5, *what.encode()])
    more = dict(FRONT_ENDS[what])
    conv = more.pop("conv", None)
    x = front_end(rng, **more)
    if what == "tied" or what == "all of it":
        x["k"] = rng.standard_normal((1, 5, 2, 3))
        x["q"], x["v"] = rng.standard_normal((1, 5, 2, 3)), None
    if conv is not None:
        for letter in "qkv":
            y = x["k" if x[letter] is None else letter]
            channels = y.shape[2] * y.shape[3]
            past = rng.standard_normal((1, channels, 2 + more.get("key_shift", 0) * (letter == "k")))
            weight, bias = rng.standard_normal((channels, 3)), rng.standard_normal(channels)
            x[f"conv_{letter}"] = Conv(weight, bias, state=past, **conv)
    g = agree("gated_delta_rule", x)
    assert {"gate.a", "gate.A_log", "gate.dt_bias", "beta_logits"} <= set(g)
    assert (conv is not None) == ("conv_k.weight" in g)
    assert ("v" in g) == (x["v"] is not None)


def test_the_front_end_of_packed_sequences_and_of_micro_steps():
    rng = np.random.default_rng(11)
    agree(
        "gated_delta_rule", front_end(rng, cu_seqlens=np.array([0, 0, 1, 5]), conv_k=Conv(rng.standard_normal((3, 3))))
    )
    x = case("gated_delta_product", **SMALL)
    x["conv_k"] = Conv(rng.standard_normal((6, 2)), rng.standard_normal(6))
    agree("gated_delta_product", dict(x, use_qk_l2norm=True, key_shift=1))


@pytest.mark.parametrize("bound", [None, -5.0])
@pytest.mark.parametrize("name", ["gated_delta_rule", "kda"])
def test_raw_gates(name, bound):
    x = front_end(np.random.default_rng(6), name)
    x["gate"] = replace(x["gate"], lower_bound=bound)
    agree(name, x, names=["gate.a", "gate.A_log", "gate.dt_bias", "k"])
    x["gate"] = replace(x["gate"], A_log=None if bound else x["gate"].A_log, dt_bias=None)
    agree(name, x, names=["gate.a"])


@pytest.mark.parametrize("place", ["inside", "outside", "max"])
def test_a_zero_key_and_a_tiny_one(place):
    """Under l2norm: the slope is finite and right, 1 / eps and all."""
    x = case("gated_delta_rule", **SMALL)
    x["k"][:, 1] = 0.0
    x["k"][:, 3] *= 1e-9
    p = problem("gated_delta_rule", dict(x, use_qk_l2norm=L2Norm(1e-3, place)))
    do, dht = cotangents(p)
    g = refengine.grad("gated_delta_rule", do=do, dht=dht, **x, use_qk_l2norm=L2Norm(1e-3, place))
    for index in np.ndindex(g["k"].shape):
        if index[1] != 1 or place == "inside":  # |x| itself has no complex step at 0
            assert abs(g["k"][index] - slope(stepped(p, "k", index), do, dht)) <= 1e-13 * abs(g["k"]).max()
        elif place != "inside":
            d = 1e-9  # a difference instead
            sides = []
            for size in (d, -d):
                o, final = define(stepped(p, "k", index, size), "complex128")
                sides.append((do * o.real).sum() + (dht * final.real).sum())
            assert abs(g["k"][index] - (sides[0] - sides[1]) / (2 * d)) <= 1e-5 * abs(g["k"]).max()


def test_strong_gates_over_whole_chunks():
    """g = -3 for 130 tokens, where references that divide decays give NaN; and gates that underflow to a decay of 0."""
    for gate in (-3.0, -800.0):
        x = case("kda", T=130, B=1, H=1, HV=1, K=4, V=4)
        x["g"][:] = gate
        p = problem("kda", x)
        do, dht = cotangents(p)
        g = refengine.grad("kda", do=do, dht=dht, **x)
        for name in g:
            assert np.isfinite(g[name]).all()
            for index in np.random.default_rng(0).integers(0, 1 << 30, (4, g[name].ndim)):
                at = tuple(int(i) % n for i, n in zip(index, g[name].shape, strict=True))
                wanted = slope(stepped(p, name, at), do, dht)
                assert abs(g[name][at] - wanted) <= 1e-13 * max(abs(wanted), abs(g[name]).max())


@pytest.mark.parametrize(("name", "convention", "regime"), every("rich", "unequal_gates", names=NAMES))
def test_adjoint_identity(name, convention, regime):
    """<J x, y> = <x, J' y> for a random direction x of all inputs at once."""
    x = dict(case(name, regime, T=21, B=1), convention=convention)
    p = problem(name, x)
    do, dht = cotangents(p)
    g = refengine.grad(name, do=do, dht=dht, **x)
    rng = np.random.default_rng(9)
    way = {n: rng.standard_normal(g[n].shape) for n in g}
    tensors = {n: t + abs(TINY) * 1j * way[n] for n, t in p.tensors.items()}
    start = p.initial[0] + abs(TINY) * 1j * way["initial_state"]
    forward = slope(replace(p, tensors=tensors, initial=(start,)), do, dht)
    terms = [(g[n] * way[n]) for n in g]
    assert abs(forward - sum(t.sum() for t in terms)) <= 1e-13 * sum(abs(t).sum() for t in terms)


@pytest.mark.parametrize(("name", "pre"), [("comba", True), ("comba", False), ("gdn2", False)])
def test_gate_identity(name, pre):
    """OPS 2.1: dg_t is a sum of q dq, k dk, e de over what follows, and of the state's; no state in between."""
    x = case(name, T=50, B=1, H=2, HV=2, K=4, V=4)
    x.pop("d", None)
    convention = {"convention": "splr" if pre else "iplr"} if name == "comba" else {}
    if name == "gdn2":  # with k apart from the erase vector, as Comba has it
        x = case("comba", T=50, B=1, H=2, HV=2, K=4, V=4)
        x.pop("d")
        convention = {"convention": "iplr"}
    p = problem("comba", dict(x, **convention))
    do, dht = cotangents(p)
    g = refengine.grad("comba", do=do, dht=dht, **x, **convention)
    final = refengine.solve("comba", **x, **convention).final_state

    def after(y):
        return y.sum(axis=-1)[:, ::-1].cumsum(axis=1)[:, ::-1]

    erased = after(x["p"] * g["p"])
    dg = after(x["q"] * g["q"] - x["k"] * g["k"]) + (final * dht).sum(axis=(2, 3))[:, None]
    dg += erased - (x["p"] * g["p"]).sum(axis=-1) if pre else erased
    assert abs(dg - g["g"]).max() <= 1e-13 * abs(g["g"]).max() * 10


def test_the_condition_says_how_far_a_gradient_is_cancellation():
    x = case("gated_delta_rule", T=4, B=1, H=1, HV=1, K=2, V=2, start=False)
    do = np.random.default_rng(0).standard_normal((1, 4, 1, 2))
    g = refengine.grad("gated_delta_rule", do=do, **x)
    assert set(g.condition) == {"g", "beta"}
    assert (g.condition["g"] >= 1).all() and (g.condition["g"][0, 0] == 1).all()  # nothing decays at the start
    one = refengine.grad("gated_delta_rule", do=do[..., :1], **{**x, "v": x["v"][..., :1], "k": x["k"] * [1, 0]})
    assert np.array_equal(one.condition["beta"], np.ones((1, 4, 1)))  # a single term
    # The last step's terms by hand: what was missed, times what is owed for it.
    S = refengine.solve("gated_delta_rule", **{n: y[:, :3] for n, y in x.items()}).final_state[0, 0]
    S = np.exp(x["g"][0, 3, 0]) * S
    q, k = x["q"][0, 3, 0] * 2**-0.5, x["k"][0, 3, 0]
    terms = (x["v"][0, 3, 0] - k @ S) * (k @ q) * do[0, 3, 0]
    assert np.allclose(g["beta"][0, 3, 0], terms.sum(), rtol=1e-13)
    assert np.allclose(g.condition["beta"][0, 3, 0], abs(terms).sum() / abs(terms.sum()), rtol=1e-12)


# Laws


def same(x, y):
    assert set(x) == set(y)
    for name in x:
        assert x[name].tobytes() == y[name].tobytes(), name


def cut(name, x, t0, t1):
    """The inputs from token t0 to t1."""
    out = {}
    for n, y in x.items():
        layout = next((t.layout(y.ndim) for t in ops.get(name).inputs if t.name == n), None)
        per = x.get("num_householder", 1) if layout and "T*n" in layout else 1
        out[n] = y[:, t0 * per : t1 * per] if layout and layout[0] == "B" else y
    return out


def of_tokens(name, key):
    """Whether a gradient has a token axis."""
    return key != "initial_state" and "B" in ops.get(name).tensor(key).axes[0].split()


@pytest.mark.parametrize("name", NAMES)
def test_split_and_hand_the_states_gradient_back(name):
    x = case(name, T=70, B=1)
    do, dht = cotangents(problem(name, x))
    whole = refengine.grad(name, do=do, dht=dht, **x)
    for at in (0, 1, 33, 64, 70):
        first = cut(name, x, 0, at)
        rest = dict(cut(name, x, at, 70), initial_state=refengine.solve(name, **first).final_state)
        b = refengine.grad(name, do=do[:, at:], dht=dht, **rest)
        a = refengine.grad(name, do=do[:, :at], dht=b["initial_state"], **first)
        for key in whole:
            if of_tokens(name, key):
                assert np.concatenate([a[key], b[key]], axis=1).tobytes() == whole[key].tobytes()
            elif key != "initial_state":
                assert np.allclose(a[key] + b[key], whole[key], rtol=1e-12)
        assert a["initial_state"].tobytes() == whole["initial_state"].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_separate(name):
    cu = [0, 3, 3, 4, 41]
    x = case(name, cu_seqlens=cu)
    do, dht = cotangents(problem(name, x))
    packed = refengine.grad(name, do=do, dht=dht, **x)
    starts = packed["initial_state"]
    for n, (t0, t1) in enumerate(pairwise(cu)):
        alone = {k: y for k, y in cut(name, x, t0, t1).items() if k != "cu_seqlens"}
        alone["initial_state"] = x["initial_state"][n : n + 1]
        g = refengine.grad(name, do=do[:, t0:t1], dht=dht[n : n + 1], **alone)
        for key in g:
            if of_tokens(name, key):
                per = x.get("num_householder", 1) if "T*n" in ops.get(name).tensor(key).axes[0].split() else 1
                assert g[key].tobytes() == packed[key][:, t0 * per : t1 * per].tobytes()
        assert g["initial_state"].tobytes() == starts[n : n + 1].tobytes()
    assert starts[1].tobytes() == dht[1].tobytes()  # a sequence of no tokens hands it through


@pytest.mark.parametrize("name", NAMES)
def test_shared_key_heads_sum_over_their_group(name):
    x = case(name, B=1, T=11, H=2, HV=4)
    do, dht = cotangents(problem(name, x))
    g = refengine.grad(name, do=do, dht=dht, **x)
    shared = {t.name for t in ops.get(name).inputs if "H" in t.axes[0].split()}
    many = {n: np.repeat(y, 2, axis=2) if n in shared else y for n, y in x.items()}
    h = refengine.grad(name, do=do, dht=dht, **many)
    for key in g:
        wanted = h[key].reshape(*h[key].shape[:2], 2, 2, -1).sum(axis=3) if key in shared else h[key]
        assert np.allclose(g[key], wanted, rtol=1e-12, atol=1e-13 * abs(wanted).max())


def test_nothing_asked_of_the_outputs_and_no_tokens():
    x = case("gated_delta_rule", T=9, B=1)
    p = problem("gated_delta_rule", x)
    do, dht = cotangents(p)
    both, first, last = (
        refengine.grad("gated_delta_rule", do=a, dht=b, **x) for a, b in ((do, dht), (do, None), (None, dht))
    )
    for key in both:
        assert np.allclose(first[key] + last[key], both[key], rtol=1e-12, atol=1e-13)
        assert abs(last[key]).max() > 0 or key == "q"
    none = case("gated_delta_rule", T=0, B=1)
    assert refengine.grad("gated_delta_rule", dht=dht, **none)["initial_state"].tobytes() == dht.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_threads_and_spans_do_not_touch_the_bits(name, precision, monkeypatch):
    x = dict(case(name, T=70, B=1, H=1, HV=2, V=45, K=20), precision=precision)
    do, dht = cotangents(problem(name, x))
    one = refengine.grad(name, do=do, dht=dht, threads=1, **x)
    monkeypatch.setattr(running, "SPAN", 32)
    two = refengine.grad(name, do=do, dht=dht, threads=2, **x)
    assert (one.info["threads"], two.info["threads"]) == (1, 2)
    same(one, two)
    same(one.bound, two.bound)
    same(one.condition, two.condition)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_float64(name):
    x = case(name, T=40, B=1)
    x = {n: y.astype(np.float32) if isinstance(y, np.ndarray) else y for n, y in x.items()}
    do, dht = (y.astype(np.float32) for y in cotangents(problem(name, x)))
    g, h = (refengine.grad(name, do=do, dht=dht, precision=p, **x) for p in ("float64", "float32"))
    for key in g:
        assert 0 < abs(g[key] - h[key]).max() < 1e-5 * abs(g[key]).max()


def test_refusals():
    x = case("gated_delta_rule", T=3, B=1, H=1, HV=1, K=2, V=2)
    do = np.zeros((1, 3, 1, 2))
    for given, sentence in (
        ({}, "do and dht are both missing: nothing is asked of the outputs or of the final state."),
        (dict(do=do[:, :2]), "do has shape [1, 2, 1, 2]; it is [B, T, HV, V] = [1, 3, 1, 2]."),
        (dict(dht=do), "dht has shape [1, 3, 1, 2]; it is [N, HV, K, V] = [1, 1, 2, 2]."),
        (dict(do=do, states_at=[1]), "grad takes no 'states_at'."),
    ):
        with pytest.raises(InputError) as error:
            refengine.grad("gated_delta_rule", **x, **given)
        assert str(error.value) == sentence


def test_what_solve_takes_grad_takes():
    import inspect

    from refengine.engine.gradient import WITHOUT
    from refengine.engine.problem import Asked

    named = set(inspect.signature(refengine.solve).parameters) - {"op", "tensors", "threads", "progress"}
    assert named == {f.name for f in fields(Asked)}
    assert set(WITHOUT) < named
