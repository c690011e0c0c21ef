"""Gradients of memories that learn by mini-batches, against a complex step through their definitions, and what must
hold of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from spanning import case, problem

import refengine
from refengine import InputError
from refengine.engine.definition import define

TINY = 1e-40
SMALL = dict(B=1, T=6, H=1, HV=2, K=3, V=2)  # two mini-batches of four, the second of them not full
rng = np.random.default_rng(7)
MOMENTUM = {"momentum": rng.uniform(0, 0.9, (1, 6, 2))}
CASES = {
    "titans": {},
    "titans, token by token": dict(chunk_size=1),
    "titans, the paper's loss": dict(convention="whole"),
    "titans_mlp": {},
    "titans_mlp, gelu": dict(activation="gelu"),
    "ttt_linear": {},
    "ttt_linear, fla": dict(convention="fla"),
    "ttt_linear, factors of the reader": dict(tok=rng.uniform(0, 0.5, (1, 6, 2))),
    "ttt_mlp": {},
    "ttt_mlp, fla": dict(convention="fla"),
    "lact": MOMENTUM,
    "lact, one gradient step": dict(use_muon=False, **MOMENTUM),
    "lact, rows by their lengths": dict(weight_norm="pre", use_muon=False),
    "lact, fused": dict(convention="fused", weight_norm="pre", order="update_first"),
    "lact, overwritten": dict(convention="overwrite", chunk_size=3, **MOMENTUM),
    "lact, no lengths": dict(weight_norm="none", order="update_first", convention="fused", use_muon=False),
    "lact, a schedule": dict(schedule=np.array([[0, 4, 1, 0], [0, 3, 0, 1], [4, 6, 1, 0], [3, 6, 0, 1]])),
}


def given(what, **size):
    name = what.partition(",")[0]
    return name, {**case(name, **{**SMALL, **size}), **CASES[what]}


def limit(x):
    """Newton-Schulz draws the singular values apart before it brings them together, the complex step's too."""
    return 1e-12 if x.get("use_muon", "lr0" in x) else 1e-13


def several(final):
    return final if isinstance(final, tuple) else (final,)


def asked(p, seed=1):
    draw = np.random.default_rng(seed)
    o, final = define(p)
    return draw.standard_normal(o.shape), tuple(draw.standard_normal(y.shape) for y in several(final))


def moved(p, way):
    """The problem with its inputs moved along the imaginary axis; the input that a state starts from takes it along."""
    names = [t.name for t in p.op.states]
    tensors = {n: x + 1j * TINY * way[n] if n in way else x for n, x in p.tensors.items()}
    initial = list(p.initial)
    for i, name in enumerate(names):
        key = "initial_state" if len(names) == 1 else f"initial_state.{name}"
        if name in tensors and p.asked.initial_state is None:
            initial[i] = np.broadcast_to(tensors[name], (len(p.segments), *tensors[name].shape))
        if key in way:
            initial[i] = (0.0 if initial[i] is None else initial[i]) + 1j * TINY * way[key]
    return replace(p, tensors=tensors, initial=tuple(initial))


def slope(p, way, do, dht):
    o, final = define(moved(p, way), "complex128")
    return ((do * o.imag).sum() + sum((d * y.imag).sum() for d, y in zip(dht, several(final), strict=True))) / TINY


def gradient(name, x, do, dht, **more):
    return refengine.grad(name, do=do, dht=dht if len(dht) > 1 else dht[0], **x, **more)


@pytest.mark.parametrize("what", CASES)
def test_every_number_of_every_input(what):
    name, x = given(what)
    p = problem(name, x)
    do, dht = asked(p)
    g = gradient(name, x, do, dht)
    states = {f"initial_state.{t.name}" for t in p.op.states}
    assert set(g) == {n for n in p.tensors if n != "schedule"} | states
    assert g.info["certificate"] == "compared (with the channels in reverse order)"
    for key in g:
        wanted = np.zeros(g[key].shape)
        for index in np.ndindex(wanted.shape):
            one = np.zeros(wanted.shape)
            one[index] = 1.0
            wanted[index] = slope(p, {key: one}, do, dht)
        assert abs(g[key] - wanted).max() <= limit(x) * abs(wanted).max(), key
        assert g.bound[key].max() <= 1e-10 * abs(wanted).max() + 1e-150


@pytest.mark.parametrize("regime", ["rich", "same_keys"])
@pytest.mark.parametrize("what", [w for w in CASES if w.count(",") == 0 or "fla" in w])
def test_a_direction_of_all_inputs_over_many_mini_batches(what, regime):
    """Shared key heads, several rows, weights found again from marks; where no initial state is given, the inputs
    that stand for it are owed its gradient too."""
    name, options = what.partition(",")[0], CASES[what]
    x = case(name, regime, T=37, K=4, V=4)
    x |= {n: y for n, y in options.items() if n not in ("tok", "momentum")}
    if name == "lact":
        x.pop("initial_state")
        x["chunk_size"] = 16  # each Newton-Schulz makes what rounds before it some ten times larger
    p = problem(name, x)
    do, dht = asked(p)
    g = gradient(name, x, do, dht)
    way = {n: np.random.default_rng([4, *n.encode()]).standard_normal(g[n].shape) for n in g}
    if name == "lact":
        way = {n: y for n, y in way.items() if n not in ("initial_state.w0", "initial_state.w1", "initial_state.w2")}
    terms = [(g[n] * way[n]).sum() for n in way]
    assert abs(sum(terms) - slope(p, way, do, dht)) <= limit(x) * sum(map(abs, terms))


@pytest.mark.parametrize("what", ["titans", "ttt_linear", "ttt_mlp", "titans_mlp", "lact"])
def test_split_and_packed(what):
    """The first part is handed the memories' gradients, and packing changes nothing."""
    name, x = given(what, T=12)
    x = {n: y for n, y in x.items() if n != "momentum"}
    p = problem(name, x)
    do, dht = asked(p)
    whole = gradient(name, x, do, dht)
    tokens = [t.name for t in p.op.inputs if t.name in x and t.axes[0].startswith("B T")]
    parts = [{**x, **{n: x[n][:, s] for n in tokens}} for s in (slice(0, 8), slice(8, 12))]
    parts[1]["initial_state"] = refengine.solve(name, **parts[0]).final_state
    b = gradient(name, parts[1], do[:, 8:], dht)
    a = gradient(name, parts[0], do[:, :8], tuple(y for n, y in b.items() if n.startswith("initial_state")))
    for key in whole:
        if key.startswith("initial_state"):
            together = a[key]
        else:
            together = np.concatenate([a[key], b[key]], axis=1) if key in tokens else a[key] + b[key]
        assert np.allclose(together, whole[key], rtol=1e-9, atol=1e-12 * abs(whole[key]).max()), key
    packed = dict(x, cu_seqlens=np.array([0, 8, 8, 12]))
    start = x["initial_state"] if isinstance(x["initial_state"], tuple) else (x["initial_state"],)
    later = several(parts[1]["initial_state"])
    three = [np.concatenate([y, z, z]) for y, z in zip(start, later, strict=True)]
    packed["initial_state"] = tuple(three) if len(three) > 1 else three[0]
    ends = tuple(np.concatenate([a_dht, 0 * d, d]) for a_dht, d in zip(
        [y for n, y in b.items() if n.startswith("initial_state")], dht, strict=True))  # fmt: skip
    together = gradient(name, packed, do, ends)
    for key in tokens:
        assert together[key].tobytes() == np.concatenate([a[key], b[key]], axis=1).tobytes()


def test_no_tokens():
    """The final state is the initial one: so are their gradients."""
    name, x = given("titans", T=0)
    do, dht = asked(problem(name, x))
    g = gradient(name, x, do, dht)
    assert g["initial_state.memory"].tobytes() == dht[0].tobytes()
    assert g["initial_state.momentum"].tobytes() == dht[1].tobytes()
    assert g["k"].shape == x["k"].shape


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("what", ["ttt_mlp", "lact, one gradient step", "titans"])
def test_threads_do_not_touch_the_bits_and_the_bound_holds(what, precision):
    name, x = given(what)
    do, dht = asked(problem(name, x))
    one, two = (gradient(name, dict(x, precision=precision), do, dht, threads=n) for n in (1, 2))
    exact = gradient(name, x, do, dht)
    for key in one:
        assert one[key].tobytes() == two[key].tobytes()
        assert one.bound[key].tobytes() == two.bound[key].tobytes()
        wrong = abs(one[key] - exact[key])
        room = one.bound[key] + exact.bound[key]
        if room.ndim == wrong.ndim - 1:
            room = room[..., None] if "initial" not in key else room[:, :, None]
        assert (wrong <= room).all(), key


@pytest.mark.parametrize("what", ["titans", "ttt_linear", "ttt_mlp", "titans_mlp", "lact", "lact, fused"])
def test_nothing_to_learn_from_is_finite(what):
    """Keys of zeros, steps of zero, equal values: no norm of nothing is divided by."""
    name, x = given(what)
    x = {n: y for n, y in x.items() if n != "momentum"} | {"k": 0 * x["k"], "v": 0 * x["v"] + 1.0}
    for steps in ("eta", "theta", "lr0", "lr1", "lr2"):
        if steps in x:
            x[steps] = 0 * x[steps]
    do, dht = asked(problem(name, x))
    g = gradient(name, x, do, dht)
    assert all(np.isfinite(y).all() for y in g.values())


OPTIONS = {
    "huber": dict(loss="huber", huber_delta=0.7),
    "p_norm": dict(loss="p_norm", chunk_size=3),
    "before": dict(loss="dot", read="before", chunk_size=4, optimiser="heavy_ball"),
    "after the decay": dict(model="mlp", forgetting="scalar", order="decay_first", chunk_size=4),
    "muon": dict(model="swiglu", optimiser="muon", read="after", chunk_size=4, weight_norm="post"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_the_composed_learner(what):
    options = OPTIONS[what]
    draw = np.random.default_rng([2, *what.encode()])
    shape = (1, 10, 2)
    x = {n: draw.standard_normal((*shape, 3)) for n in "qkv"} | {"theta": draw.uniform(0, 0.3, shape)}
    if "optimiser" in options:
        x["eta"] = draw.uniform(0, 0.9, shape)
    if "forgetting" in options:
        x["g"] = -draw.uniform(0, 0.3, shape)
    weights = {"mlp": ("w1", "w2"), "swiglu": ("w0", "w1", "w2")}.get(options.get("model"), ("w",))
    drawn = {n: draw.standard_normal((2, 3, 3)) for n in weights}
    if "model" in options:
        x |= drawn
    else:
        momenta = [None] * (len(drawn) if "eta" in x else 0)
        start = [y[None] for y in drawn.values()] + momenta
        x["initial_state"] = tuple(start) if len(start) > 1 else start[0]
    p = problem("ttt", dict(x, **options))
    do, dht = asked(p)
    g = gradient("ttt", dict(x, **options), do, dht)
    way = {n: draw.standard_normal(g[n].shape) for n in g if "model" not in options or "initial" not in n}
    terms = [(g[n] * way[n]).sum() for n in way]
    tolerance = 1e-12 if what == "muon" else 1e-13
    assert abs(sum(terms) - slope(p, way, do, dht)) <= tolerance * sum(map(abs, terms))


def test_channels_that_decay_apart():
    x = {n: rng.standard_normal((1, 4, 1, 3)) for n in "qkv"} | {"theta": rng.uniform(0, 0.3, (1, 4, 1))}
    x |= {"g": -rng.uniform(0, 1, (1, 4, 1, 3)), "eta": rng.uniform(0, 1, (1, 4, 1))}
    options = dict(forgetting="channel", optimiser="heavy_ball")
    with pytest.raises(InputError, match="no gradient where each key channel"):
        refengine.grad("ttt", do=np.ones((1, 4, 1, 3)), **x, **options)
