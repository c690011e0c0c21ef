"""The composed learner: most ops are points of it, parts combine freely, and what means nothing is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from spanning import CHUNK, REGIMES, case, problem

import refengine
from refengine import ops
from refengine.engine import fast_weights as running
from refengine.engine.checks import chosen
from refengine.engine.definition import define
from refengine.engine.run import execute

OPTIONS = ops.get("ttt").options
PARTS = ("model", "loss", "optimiser", "forgetting", "order", "read", "norm", "weight_norm")


def solve(name, *given, **changes):
    known = {n: x for part in (*given, changes) for n, x in part.items()}
    return refengine.solve(name, **{n: x for n, x in known.items() if x is not None})


def ttt(x, taken, **changes):
    """The composed learner on the tensors of another op's case, renamed."""
    renamed = {new: x[old] for old, new in taken.items() if x.get(old) is not None}
    return solve("ttt", renamed, **changes)


def within(s, t, slack=0.0):
    """No further apart than both bounds together, outputs and final states; `slack` is for inputs that are the same
    only to the last place, relative to the largest output."""
    slack *= max(1.0, abs(s.o).max())
    assert (abs(s.o - t.o) <= (s.bound["o"] + t.bound["o"])[..., None] + slack).all()
    assert len(s.finals) == len(t.finals)
    for mine, theirs in zip(s.finals.items(), t.finals.items(), strict=True):
        apart = np.sqrt(((mine[1] - theirs[1]) ** 2).sum(axis=2))
        assert (apart <= s.bound[mine[0]] + t.bound[theirs[0]] + slack).all()
    assert s.worst() < 1e-7 * max(1.0, abs(s.o).max())


PLAIN = {n: n for n in ("q", "k", "v", "initial_state", "scale", "chunk_size")}
DELTA = PLAIN | {"g": "g", "beta": "theta"}


# ---- points of it ----


@pytest.mark.parametrize("regime", REGIMES)
def test_the_delta_family(regime):
    x = case("delta_rule", regime)
    within(ttt(x, DELTA, scale=0.5), solve("delta_rule", x, scale=0.5))
    x = case("gated_delta_rule", regime)
    within(ttt(x, DELTA, forgetting="scalar", scale=0.5), solve("gated_delta_rule", x, scale=0.5))
    x = case("kda", regime)
    within(ttt(x, DELTA, forgetting="channel", scale=0.5), solve("kda", x, scale=0.5))
    x = dict(case("comba", regime), p=None)
    s = ttt(x, DELTA, forgetting="scalar", order="gradient_first", scale=0.5)
    within(s, solve("comba", x, d=None, scale=0.5))


def test_linear_attention_is_the_dot_product_loss():
    x = case("gla")
    ones = np.ones(x["v"].shape[:3])
    within(ttt(x, DELTA, theta=ones, loss="dot", forgetting="channel", scale=0.5), solve("gla", x, scale=0.5))


@pytest.mark.parametrize("regime", REGIMES)
def test_longhorn_is_the_implicit_step(regime):
    x = case("longhorn", regime)
    within(ttt(x, DELTA, optimiser="implicit"), solve("longhorn", x))


def test_longhorn_with_a_bias_is_longhorn_with_a_channel_of_ones():
    x = case("longhorn", V=5)
    wide = {n: np.concatenate([x[n], np.ones((*x[n].shape[:3], 1))], axis=3) for n in "qk"}
    start = np.concatenate([x["initial_state"], np.zeros_like(x["initial_state"][:, :, :1])], axis=2)
    s = ttt(x, DELTA, optimiser="implicit", model="linear_bias", initial_state={"w": x["initial_state"]})
    t = solve("longhorn", x, **wide, initial_state=start)
    assert (abs(s.o - t.o) <= (s.bound["o"] + t.bound["o"])[..., None]).all()
    assert abs(s.final_state[1] - t.final_state[:, :, -1]).max() <= 1e-12


@pytest.mark.parametrize("regime", REGIMES)
def test_mesa_is_the_exact_optimiser(regime):
    x = case("mesa_net", regime)
    within(ttt(x, DELTA | {"lamb": "lamb"}, optimiser="exact", forgetting="scalar"), solve("mesa_net", x))
    still = {n: y for n, y in x.items() if n != "g"}
    plain = ttt(still, DELTA | {"lamb": "lamb"}, optimiser="exact")
    within(plain, solve("mesa_net", x, g=np.zeros_like(x["g"])))


LOG = 1e-14  # exp(log(1 - alpha)) is 1 - alpha to the last place


def titans_of(x):
    return {n: n for n in ("q", "k", "v", "theta", "eta", "chunk_size", "initial_state")}, dict(
        g=np.log1p(-x["alpha"]), optimiser="heavy_ball", forgetting="scalar", order="gradient_first"
    )


@pytest.mark.parametrize("chunk", [1, CHUNK])
def test_titans_is_the_heavy_ball(chunk):
    x = dict(case("titans", "unequal_gates"), chunk_size=chunk)
    taken, parts = titans_of(x)
    within(ttt(x, taken, **parts), solve("titans", x), LOG)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_titans_mlp_is_the_heavy_ball_on_two_layers(activation):
    x = dict(case("titans_mlp", T=9, B=1), activation=activation)
    taken, parts = titans_of(x)
    w1, w2, _, _ = x["initial_state"]
    first = dict(w1=w1[0], w2=w2[0], activation=activation, model="mlp")
    within(ttt(x, taken, **parts, **first), solve("titans_mlp", x), LOG)


LN = {"w": "ln_weight", "b": "ln_bias"} | {n: n for n in ("q", "k", "v", "chunk_size", "initial_state")}


def harmonic(x):
    T = x["q"].shape[1]
    return np.broadcast_to((1 / np.arange(1, CHUNK + 1))[np.arange(T) % CHUNK][:, None], x["eta"].shape)


def test_ttt_linear_is_a_linear_model_with_a_layer_norm():
    x = case("ttt_linear", B=1)
    s = ttt(x, LN | {"eta": "theta"}, model="linear_bias", norm="query", tok=harmonic(x))
    within(s, solve("ttt_linear", x))
    ones = np.ones_like(x["eta"])
    s = ttt(x, LN | {"eta": "tok"}, theta=ones, model="linear_bias", norm="self", scale=5**-0.5)
    within(s, solve("ttt_linear", x, convention="fla"))


def test_ttt_mlp_is_an_mlp_with_a_layer_norm():
    x = case("ttt_mlp", B=1, T=9)
    first = dict(zip(("w1", "b1", "w2", "b2"), (y[0] for y in x["initial_state"]), strict=True))
    parts = dict(model="mlp_bias", activation="gelu", norm="query")
    within(ttt(x, LN | {"eta": "theta"}, tok=harmonic(x), **first, **parts), solve("ttt_mlp", x))


LACT = {"lr0": "theta", "lr1": "theta_out", "lr2": "theta_up", "momentum": "eta"} | {
    n: n for n in ("q", "k", "v", "w0", "w1", "w2", "chunk_size", "initial_state")
}


@pytest.mark.parametrize("weight_norm", ["post", "pre", "none"])
@pytest.mark.parametrize(("order", "read"), [("apply_first", "before"), ("update_first", "after")])
@pytest.mark.parametrize("muon", [True, False])
def test_lact_is_swiglu_with_the_dot_product_loss(weight_norm, order, read, muon):
    x = case("lact", B=1, start=False)
    x["momentum"] = np.random.default_rng(2).uniform(0, 0.9, x["lr0"].shape)
    parts = dict(model="swiglu", loss="dot", read=read, weight_norm=weight_norm)
    s = ttt(x, LACT, **parts, optimiser="muon" if muon else "heavy_ball")
    t = solve("lact", x, order=order, weight_norm=weight_norm, use_muon=muon)
    assert s.o.tobytes() == t.o.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(s.final_state, t.final_state, strict=True))


def test_lact_without_momentum():
    x = case("lact", B=1, start=False)
    parts = dict(model="swiglu", loss="dot", read="before", weight_norm="post")
    assert ttt(x, LACT, **parts, optimiser="muon").o.tobytes() == solve("lact", x).o.tobytes()
    assert ttt(x, LACT, **parts).o.tobytes() == solve("lact", x, use_muon=False).o.tobytes()


def test_lact_by_a_schedule():
    x = case("lact", T=7, start=False)
    rows = np.array([(0, 5, 1, 0), (0, 7, 0, 1)])
    s = ttt(x, LACT, model="swiglu", loss="dot", optimiser="muon", read="after", weight_norm="post", schedule=rows)
    assert s.o.tobytes() == solve("lact", x, order="update_first", schedule=rows).o.tobytes()


def test_linear_lact_is_linear_attention_that_lags_a_chunk():
    """Token i sees the chunks before its own: the mask [i // C > j // C]."""
    x = case("linear_attn", B=1, H=1, HV=1, start=False)
    q, k, v = (x[n][0, :, 0] for n in "qkv")
    s = solve("ttt", q=x["q"], k=x["k"], v=x["v"], theta=np.ones((1, 37, 1)), loss="dot", read="before", chunk_size=4)
    chunk = np.arange(37) // 4
    want = np.where(chunk[:, None] > chunk, q @ k.T, 0) @ v
    assert abs(s.o[0, :, 0] - want).max() <= 1e-13 * abs(want).max()


def test_a_chunk_read_before_its_squared_loss_lags_too():
    x = case("titans", B=1, start=False)
    same = dict(q=x["q"], k=x["k"], v=x["v"], theta=x["theta"], chunk_size=4)
    during, before = solve("ttt", same), solve("ttt", same, read="before")
    w = np.zeros_like(during.finals["final_state"][0])
    for t in range(0, 36, 4):
        q = np.repeat(x["q"][0, t : t + 4], 2, axis=1)
        want = np.einsum("thk,hkv->thv", q, w)
        assert abs(before.o[0, t : t + 4] - want).max() <= 1e-12 * max(1, abs(want).max())
        w = solve("ttt", same, states_at=[t + 4]).states[0, 0]


def test_a_step_of_nvlabs_longhorn_norm_is_the_implicit_step_at_the_decayed_state():
    """D10: beta / (1 + beta |k|^2) for beta, and no norm of the keys."""
    x = case("gated_delta_rule")
    size = np.repeat((x["k"] ** 2).sum(-1), 2, axis=2)
    t = solve("gated_delta_rule", x, beta=x["beta"] / (1 + x["beta"] * size), scale=1.0)
    within(ttt(x, DELTA, forgetting="scalar", optimiser="implicit"), t)


# ---- roads that do not meet elsewhere ----


@pytest.mark.parametrize(
    ("forgetting", "order"),
    [("none", "decay_first"), *itertools.product(("scalar", "channel"), ("decay_first", "gradient_first"))],
)
def test_the_fast_weights_and_the_delta_core_agree(forgetting, order):
    """A loss that is the squared one under another name goes by another kernel."""
    x = case("kda", "unequal_gates", B=1)
    g = {"none": None, "scalar": x["g"][..., 0], "channel": x["g"]}[forgetting]
    known = dict(x, g=g)
    parts = dict(forgetting=forgetting, order=order, scale=1.0)
    s = ttt(known, DELTA, **parts)
    for loss in (dict(loss="huber", huber_delta=1e9), dict(loss="p_norm", power=2)):
        other = ttt(known, DELTA, **parts, **loss)
        assert other.info["certificate"] != s.info["certificate"]
        within(s, other)


def test_channels_that_decay_alike_are_a_scalar():
    x = case("titans", B=1)
    g = np.log1p(-x["alpha"])
    for read, optimiser in itertools.product(("during", "before", "after"), ("gradient", "heavy_ball")):
        start = x["initial_state"][0] if optimiser == "gradient" else x["initial_state"]
        same = dict(q=x["q"], k=x["k"], v=x["v"], theta=x["theta"], chunk_size=4, read=read, optimiser=optimiser)
        same |= dict(initial_state=start, eta=None if optimiser == "gradient" else x["eta"])
        for order in ("decay_first", "gradient_first"):
            s = solve("ttt", same, g=g, forgetting="scalar", order=order)
            wide = np.repeat(g[..., None], 5, axis=3)
            within(s, solve("ttt", same, g=wide, forgetting="channel", order=order))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gated_delta_rule", dict(forgetting="scalar")),
        ("longhorn", dict(optimiser="implicit")),
        ("mesa_net", dict(optimiser="exact", forgetting="scalar")),
    ],
)
def test_gradients_and_double_double_are_those_of_the_point(name, parts):
    x = case(name, B=1, T=7)
    y = {"theta" if n == "beta" else n: v for n, v in x.items()}
    do = np.random.default_rng(1).standard_normal((1, 7, 4, 7))
    g, h = refengine.grad(name, **x, scale=0.5, do=do), refengine.grad("ttt", **y, **parts, scale=0.5, do=do)
    for n in g:
        assert g[n].tobytes() == h["theta" if n == "beta" else n].tobytes(), n
    s, t = (solve(*z, scale=0.5, precision="certified") for z in ((name, x), ("ttt", y, parts)))
    assert s.o.tobytes() == t.o.tobytes()


# ---- the losses ----


def one_step(**parts):
    rng = np.random.default_rng(8)
    x = {n: rng.standard_normal((1, 1, 1, 5)) for n in "qkv"}
    w = rng.standard_normal((1, 5, 5))
    s = solve("ttt", x, initial_state=w, theta=np.full((1, 1, 1), 0.5), **parts)
    d = x["k"][0, 0, 0] @ w[0] - x["v"][0, 0, 0]
    return x["k"][0, 0, 0], d, (w[0] - s.final_state[0, 0]) / 0.5


def test_huber_is_squared_near_zero_and_linear_beyond():
    k, d, slope = one_step(loss="huber", huber_delta=1.5)
    assert (abs(d) > 1.5).any() and (abs(d) < 1.5).any()
    want = np.where(abs(d) < 1.5, d, 1.5 * np.sign(d))
    assert abs(slope - np.outer(k, want)).max() <= 1e-14 * abs(want).max()


@pytest.mark.parametrize("power", [2, 3, 4, 7])
def test_a_p_norm(power):
    k, d, slope = one_step(loss="p_norm", power=power)
    want = np.outer(k, abs(d) ** (power - 1) * np.sign(d))
    assert abs(slope - want).max() <= 1e-13 * abs(want).max()


# ---- any combination ----


def drawn(op, seed):
    """Tame inputs: even two layers with momentum and a steep loss do not diverge in seven tokens."""
    rng = np.random.default_rng(seed)
    size = dict(B=1, T=7, H=1, HV=2, K=4, V=3, R=5)
    x = {}
    for t in op.inputs:
        shape = tuple(size.get(a, 0) for a in t.axes[0].split())
        if t.role == "decay":
            x[t.name] = -rng.uniform(0, 0.5, shape)
        elif t.name in ("q", "k", "v", "w", "w0", "w1", "w2"):
            x[t.name] = rng.standard_normal(shape) / 2
        elif not t.integer:
            x[t.name] = rng.uniform(0.02, 0.1, shape)
    return x


def every_combination():
    for values in itertools.product(*(OPTIONS[n].choices for n in PARTS), (1, 3)):
        given = dict(zip((*PARTS, "chunk_size"), values, strict=True))
        try:
            yield given, chosen(ops.get("ttt"), given)[0]
        except refengine.InputError as refused:
            yield given, str(refused)


def test_parts_combine_freely():
    """Of all combinations with a meaning, one in forty: the kernel against the definition, in every family."""
    meant = [(given, op) for given, op in every_combination() if not isinstance(op, str)]
    assert len(meant) > 3000
    seen = set()
    few = [pair for pair in meant if pair[0]["optimiser"] in ("exact", "implicit")]
    for seed, (given, op) in enumerate(meant[::41] + few[::3]):
        p = problem("ttt", {**drawn(op, seed), **given})
        s = execute(p)
        o, final = define(p)
        # Newton-Schulz of a matrix of rank one divides by what rounding left of it.
        loose = 1e-10 if given["optimiser"] == "muon" else 1e-12
        assert abs(s.o - o).max() <= loose * max(1.0, abs(o).max()), given
        finals = final if isinstance(final, tuple) else (final,)
        for mine, theirs in zip(s.finals.values(), finals, strict=True):
            assert abs(mine - theirs).max() <= loose * max(1.0, abs(theirs).max()), given
        assert np.isfinite(s.bound["o"]).all(), given
        seen |= set(given.values())
    assert seen >= {choice for n in PARTS for choice in OPTIONS[n].choices}


def test_gradients_of_what_is_composed(monkeypatch):
    """Along a random line through all inputs: what `grad` says against the difference of two answers."""
    monkeypatch.setattr(running, "BALLS", 0)
    meant = [(given, op) for given, op in every_combination() if not isinstance(op, str)]
    kept = [pair for pair in meant if pair[0]["forgetting"] != "channel"]
    for seed, (given, op) in enumerate(kept[3::173]):
        x, rng = drawn(op, seed), np.random.default_rng(seed)
        do = rng.standard_normal(solve("ttt", x, given).o.shape)
        along = {n: rng.standard_normal(y.shape) for n, y in x.items()}
        g = refengine.grad("ttt", **x, **given, do=do)

        def loss(t, x=x, along=along, given=given, do=do):
            return float((do * solve("ttt", {n: y + t * along[n] for n, y in x.items()}, given).o).sum())

        parts = [float((g[n] * along[n]).sum()) for n in x]
        apart = (loss(1e-7) - loss(-1e-7)) / 2e-7 - sum(parts)
        assert abs(apart) <= 2e-6 * max(1e-2, sum(map(abs, parts))), given


def test_a_decay_of_each_channel_has_no_gradient_where_the_fast_weights_solve_it():
    x = {n: np.ones((1, 3, 1, 2)) for n in "qkvg"} | {"theta": np.ones((1, 3, 1))}
    x["g"] = -x["g"]
    with pytest.raises(refengine.InputError, match="each key channel"):
        refengine.grad("ttt", **x, forgetting="channel", loss="huber", do=x["v"])


def test_what_means_nothing_is_refused_with_the_reason():
    refused = [(given, said) for given, said in every_combination() if isinstance(said, str)]
    assert len(refused) > 10000
    for given, said in refused:
        assert "\n" not in said and said.endswith(".") and ": " in said
        named = [n for n in given if f"{n} {given[n]}" in said]
        assert len(named) >= 2, said


BAD = {
    "exact on two layers": (dict(optimiser="exact", model="mlp"), "optimiser exact", "model mlp", "closed form"),
    "exact without a minimum": (dict(optimiser="exact", loss="dot"), "loss dot", "no minimum"),
    "exact by mini-batches": (dict(optimiser="exact", chunk_size=16), "chunk_size 16", "one token"),
    "implicit Huber": (dict(optimiser="implicit", loss="huber"), "loss huber", "squared loss"),
    "Muon token by token": (dict(optimiser="muon"), "read during", "one step a mini-batch"),
    "Muon of a bias": (dict(optimiser="muon", read="after", model="linear_bias"), "bias is a vector"),
    "a layer's own channels": (dict(forgetting="channel", model="swiglu"), "hidden channels are no key channels"),
    "a LayerNorm of another loss": (dict(norm="query", loss="dot"), "norm query", "squared"),
    "rescaled by tokens": (dict(weight_norm="post"), "weight_norm post", "read during", "once a mini-batch"),
    "rescaled from nothing": (dict(weight_norm="post", read="after"), "ttt needs w [HV, K, V]"),
    "a Huber of nothing": (dict(loss="huber", huber_delta=0.0), "huber_delta is 0", "positive"),
    "a norm of 1": (dict(loss="p_norm", power=1), "power is 1", "at least 2"),
    "a mini-batch of nothing": (dict(chunk_size=0), "chunk_size is 0", "at least 1"),
    "no momentum": (dict(optimiser="heavy_ball"), "ttt needs eta", "missing"),
    "momentum of none": (dict(eta=np.ones((1, 3, 1))), "with optimiser gradient; it goes with optimiser heavy_ball."),
    "a decay of nothing": (
        dict(g=np.zeros((1, 3, 1))), "no 'g' with forgetting none; it goes with forgetting scalar or channel.",
    ),
    "lengths of nothing": (dict(w=np.ones((1, 2, 2))), "ttt takes no 'w' with these options; it is: first weights of"),
    "a name of nothing": (dict(gg=np.ones((1, 3, 1))), "ttt takes no 'gg' (known: "),
    "no decay": (dict(forgetting="scalar"), "ttt needs g [B, T, HV]"),
    "no first weights": (dict(model="swiglu"), "ttt needs w0 [HV, R, K]"),
    "no ridge": (dict(optimiser="exact"), "ttt needs lamb [HV, K]"),
    "a ridge of 0": (dict(optimiser="exact", lamb=np.zeros((1, 2))), "lamb is 0 at [0, 0]", "positive"),
    "an unknown part": (dict(optimiser="adam"), "There is no optimiser 'adam'"),
    "a width that does not fit": (
        dict(model="mlp", w1=np.ones((1, 2, 6)), w2=np.ones((1, 8, 2))), "w2 has 8 hidden channels", "6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_named(mistake):
    changes, *words = BAD[mistake]
    x = {n: np.ones((1, 3, 1, 2)) for n in "qkv"}
    with pytest.raises(refengine.InputError) as caught:
        solve("ttt", x, theta=np.ones((1, 3, 1)), **changes)
    said = str(caught.value)
    assert "\n" not in said and said.endswith((".", ")"))
    for word in words:
        assert word in said


def test_muon_of_no_gradient_at_all_leaves_the_weights():
    x = {n: np.ones((1, 4, 1, 2)) for n in "qk"}
    w = np.arange(4.0).reshape(1, 2, 2)
    parts = dict(loss="dot", optimiser="muon", read="after", chunk_size=2, initial_state={"w": w})
    s = solve("ttt", x, parts, v=np.zeros((1, 4, 1, 2)), theta=np.ones((1, 4, 1)))
    assert np.array_equal(s.finals["final_state.w"][0], w)
    assert np.isfinite(s.o).all()
