"""The composed learner: model x loss x optimiser x forgetting x batch, of which most other ops are points."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ...spec import Op, Option, Reading, Tensor
from ..mesa_net import MEMORY
from .learning import Rule, step
from .losses import LOSSES
from .lowering import lower
from .models import ACTIVATIONS, MODELS
from .refusals import check

OPTIMISERS = {
    "gradient": "gradient descent, step theta",
    "heavy_ball": "gradient descent, step theta, with momentum eta",
    "muon": "one step a mini-batch, with momentum eta if given, orthogonalised by Newton-Schulz",
    "implicit": "implicit (proximal): argmin over w of 1/2 |w - w_before|^2 + theta L",
    "exact": "the exact minimiser of all losses so far, weighted by theta, with the ridge 1/2 tr(w' diag(lamb) w)",
}
FORGETTING = {"none": "none", "scalar": "exp(g)", "channel": "exp(g), of each key channel its own"}
ORDERS = {"decay_first": "before the gradient", "gradient_first": "after the gradient (decoupled)"}
READS = {
    "during": "each token sees what it and those before it have taught",
    "before": "the mini-batch is one step, read before it",
    "after": "the mini-batch is one step, read after it",
}
NORMS = ("none", "query", "self")

q, k, v = (
    Tensor("q", ("B T H K",), "queries", role="query"),
    Tensor("k", ("B T H K",), "keys", role="key"),
    Tensor("v", ("B T HV V",), "values", role="value"),
)
THETA = Tensor("theta", ("B T HV",), "step, positive; of implicit and exact the weight of the token's loss")
OUT = Tensor("theta_out", ("B T HV",), "step of the last layer, if another", required=False)
UP = Tensor("theta_up", ("B T HV",), "step of w2 of swiglu, if another", required=False)
SCALAR, CHANNEL = "B T HV", "B T HV K"
DECAY = Tensor("g", (SCALAR, CHANNEL), "log decay (natural logarithm, at most 0), if something is forgotten", False)
ETA = Tensor("eta", ("B T HV",), "momentum, in (0, 1); of muon none if absent", False)
TOK = Tensor("tok", ("B T HV",), "a factor of the steps that a token sees of its own mini-batch (read during)", False)
LAMB = Tensor("lamb", ("HV K",), "exact: ridge of each key channel, positive", False)
LN = (
    Tensor("ln_weight", ("HV K",), "weight of the LayerNorm (norm)", False),
    Tensor("ln_bias", ("HV K",), "bias of the LayerNorm (norm)", False),
)
FIRST = (
    Tensor("w", ("HV K V",), "first weights of linear, where weight_norm keeps their lengths", False),
    Tensor("w0", ("HV R K",), "first weights of swiglu's gate", False),
    Tensor("w1", ("HV K R", "HV V R"), "first weights of mlp's first layer, of swiglu's last", False),
    Tensor("w2", ("HV R V", "HV R K"), "first weights of mlp's second layer, of swiglu's beside the gate", False),
    Tensor("b1", ("HV R",), "first bias of mlp_bias's first layer", False),
    Tensor("b2", ("HV V",), "first bias of its second", False),
)
SCHEDULE = Tensor("schedule", ("S U",), "rows (start, end, update, apply) instead of chunk_size (read before, after)",
                  False, integer=True)  # fmt: skip


def needed(tensor):
    return replace(tensor, required=True)


def weights(rule):
    """The first weights as inputs: where zeros would learn nothing, or lengths are kept. A single layer that starts
    from anything else has an initial state."""
    if rule.memory.kind == "linear" and rule.weight_norm == "none":
        return ()
    axes = [f"HV {w.axes}" if rule.norm == "none" else f"HV {w.axes}".replace(" V", " K") for w in rule.memory.weights]
    return tuple(Tensor(w.name, (a,), "first weights") for w, a in zip(rule.memory.weights, axes, strict=True))


def states(rule):
    """The memory, and its momentum."""
    if rule.optimiser == "exact":
        return MEMORY
    doc = "the memory; the input {} if absent" if weights(rule) else "the memory; zeros if absent"
    memory = tuple(
        Tensor(w.name, (f"N HV {w.axes}", f"HV {w.axes}"), doc.format(w.name), False) for w in rule.memory.weights
    )
    momenta = tuple(
        Tensor(f"m_{w.name}", (f"N HV {w.axes}",), f"momentum of {w.name}; zeros if absent", False)
        for w in rule.memory.weights
    )
    return memory + momenta if rule.momentum else memory


def inputs(rule):
    """What the parts chosen take."""
    value = v if rule.norm == "none" else replace(v, axes=("B T HV K",))
    taken = [q, k, value, THETA]
    if rule.memory.kind != "linear":
        taken += [OUT, UP] if rule.model == "swiglu" else [OUT]
    if rule.forgetting != "none":
        taken += [
            replace(DECAY, axes=(SCALAR if rule.forgetting == "scalar" else CHANNEL,), required=True, role="decay")
        ]
    if rule.momentum:
        taken += [needed(ETA) if rule.optimiser == "heavy_ball" else ETA]
    if rule.optimiser == "exact":
        return (*taken, needed(LAMB))
    if not rule.whole:
        taken += [TOK]
    if rule.norm != "none":
        taken += [needed(t) for t in LN]
    return (*taken, *weights(rule), SCHEDULE) if rule.whole else (*taken, *weights(rule))


def reading(rule):
    forgotten = FORGETTING[rule.forgetting]
    if rule.forgetting != "none":
        forgotten += ", of old losses" if rule.optimiser == "exact" else f", {ORDERS[rule.order]}"
    loss = rule.objective.equation
    return Reading(
        model=rule.memory.equation.removeprefix("f(x) = "),
        loss=loss if rule.norm == "none" else "1/2 |LN(f(k)) - (v - k)|^2",
        optimiser=OPTIMISERS[rule.optimiser],
        forgetting=forgotten,
        batch="all tokens so far" if rule.optimiser == "exact" else
        "1 token" if rule.chunk_size == 1 else f"{rule.chunk_size} tokens, gradients at the weights of its start",
    )  # fmt: skip


def equations(rule):
    """The learner in equations; t counts the tokens of a mini-batch, W its first weights."""
    A = {"none": "", "scalar": "exp(g_t) ", "channel": "diag(exp(g_t)) "}[rule.forgetting]
    lines = [rule.memory.equation]
    if rule.optimiser == "exact":
        return "\n".join([*lines, f"H_t = {A}H_{{t-1}} + theta_t k_t k_t',  G_t = {A}G_{{t-1}} + theta_t k_t v_t'",
                          "o_t = scale G_t' (H_t + diag(lamb))^-1 q_t"])  # fmt: skip
    aged = ", decayed as far as token t" if A and rule.order == "decay_first" else ""
    lines += [f"D_t = the gradient of {reading(rule).loss} by the weights, at the mini-batch's first{aged}"]
    if rule.optimiser == "implicit":
        size = "|k_t|^2" if not rule.memory.biased else "(|k_t|^2 + 1)"
        lines += [f"b_t = theta_t / (1 + theta_t {size}), which is taken for theta_t"]
    if not rule.whole:
        pushed = "P_t" if rule.momentum else "- theta_t D_t"
        lines += ["P_t = eta_t P_{t-1} - theta_t D_t"] if rule.momentum else []
        lines += [f"W_t = {A}W_{{t-1}} {'+ ' if rule.momentum else ''}{pushed}"]
        lines += ["with tok, W_t sees of its own mini-batch's steps tok_t times as much"]
        seen = "W_t"
    else:
        lines += ["P <- mean(eta) P - sum_t theta_t D_t" if rule.momentum else "P = - sum_t theta_t D_t"]
        turned = "NS(P)" if rule.optimiser == "muon" else "P"
        lines += [f"W <- {'(product of ' + A.strip() + ') ' if A else ''}W + {turned}"]
        lines += ["a mini-batch that is not full does not update, unless a schedule says so"]
        seen = "W before the step" if rule.read == "before" else "W after the step"
        if rule.weight_norm != "none":
            lines += ["every unit's weights w w0 / (|w| + 1e-5), w0 their first length: " + (
                "W after each step" if rule.weight_norm == "post" else "as f and D take them")]  # fmt: skip
    o = {"none": "f(scale q_t)", "query": "scale q_t + LN(f(scale q_t))", "self": "z + LN(z), z = f(scale q_t)"}
    return "\n".join([*lines, f"o_t = {o[rule.norm]} by {seen}"])


def compose(**options):
    """The op that these parts make, or the reason why they make none."""
    rule = Rule(**options)
    check(rule)
    return replace(
        OP,
        reading=reading(rule),
        equations=equations(rule),
        inputs=inputs(rule),
        step=partial(step, rule),
        lower=partial(lower, rule),
        states=states(rule),
        scheduled=rule.whole,
    )


OPTIONS = {
    "model": Option("linear", "what is trained", choices=tuple(MODELS)),
    "loss": Option("squared", "on what", choices=tuple(LOSSES)),
    "optimiser": Option("gradient", "how", choices=tuple(OPTIMISERS)),
    "forgetting": Option(
        "none", "what decays by exp(g): nothing, all alike, or each key channel", choices=tuple(FORGETTING)
    ),
    "order": Option(
        "decay_first",
        "whether the gradient is that of the decayed weights",
        choices=tuple(ORDERS),
        goes_with=("forgetting", ("scalar", "channel")),
    ),
    "chunk_size": Option(1, "tokens in a mini-batch, whose gradients are those at its first weights"),
    "read": Option("during", "; ".join(f"{name}: {what}" for name, what in READS.items()), choices=tuple(READS)),
    "norm": Option(
        "none",
        "a LayerNorm behind the model, its targets v - k; o = q + LN(z) (query), z + LN(z) (self)",
        choices=NORMS,
    ),
    "weight_norm": Option(
        "none", "where units are brought back to their first length", choices=("none", "post", "pre")
    ),
    "activation": Option(
        "silu", "between the layers", choices=tuple(ACTIVATIONS), goes_with=("model", ("mlp", "mlp_bias"))
    ),
    "ns_coefficients": Option(
        "lact",
        "LaCT's language model's, or KellerJordan's",
        choices=("lact", "muon"),
        goes_with=("optimiser", ("muon",)),
    ),
    "huber_delta": Option(1.0, "where it turns linear", least=0, goes_with=("loss", ("huber",))),
    "power": Option(3, "p", least=2, goes_with=("loss", ("p_norm",))),
}
PLAIN: dict[str, Any] = {name: option.default for name, option in OPTIONS.items()}
DEFAULT = Rule(**PLAIN)
OP = Op(
    name="ttt",
    title="The composed learner",
    paper="The parts are those of the ops that are points of it, delta_rule to lact; see their papers",
    reading=Reading(
        model="linear, with or without bias; two layers, likewise; SwiGLU",
        loss="squared, dot product, Huber, p-norm",
        optimiser="gradient descent, heavy ball, Muon, implicit, exact",
        forgetting="none, scalar, per key channel; before or after the gradient",
        batch="1 token, or chunk_size tokens",
    ),
    equations=equations(DEFAULT),
    inputs=(q, k, v, THETA, OUT, UP, DECAY, ETA, TOK, LAMB, *LN, *FIRST, SCHEDULE),
    step=partial(step, DEFAULT),
    lower=partial(lower, DEFAULT),
    states=states(DEFAULT),
    chunked=True,
    scale="1",
    options=OPTIONS,
    compose=compose,
)
