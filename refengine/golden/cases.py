"""Golden cases: a name, and from it alone the inputs.

A case is an op, a tier (`E` exact, NIST's `1` lower, `2` average, `3` higher difficulty, `real`), a regime and a shape.
Its inputs are in inputs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .. import ops
from ..errors import InputError, nearest
from ..spec import Op, Tensor
from . import compositions
from .compositions import COMPOSITIONS, MINI_BATCH, composed, in_the_core
from .draw import Stream, key_of

TIERS = ("E", "1", "2", "3", "real")


@dataclass(frozen=True)
class Regime:
    """What all cases of one kind have in common. `needs`: roles or inputs an op must have; `shapes`: sizes by axis."""

    name: str
    tier: str
    shapes: tuple[Mapping[str, int], ...]
    needs: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    start: bool = True
    gradients: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


SMALL = dict(B=1, T=21, H=1, HV=2, K=8, V=4)
CHUNK_AND_5 = dict(SMALL, T=69)
TWO_CHUNKS_AND_5 = dict(SMALL, T=133)
SQUARE = dict(SMALL, K=8, V=8)
LENGTHS = (0, 1, 0, 3, 17, 0)
PACKED = dict(SMALL, T=sum(LENGTHS))
SAMPLE = dict(B=1, T=16, H=1, HV=1, K=32, V=32)
HEADS = dict(B=2, T=7, H=2, HV=6, K=5, V=3)

CORE = (
    Regime("one_hot", "E", (CHUNK_AND_5,), gradients=True),
    Regime("permuted", "E", (PACKED,), lengths=LENGTHS, gradients=True),
    Regime("rich", "1", (TWO_CHUNKS_AND_5,)),
    Regime("heads", "1", (HEADS,), gradients=True),
    Regime("packed", "1", (PACKED,), lengths=LENGTHS),
    Regime("still", "1", (SQUARE,), needs=("decay",)),
    Regime("strong", "2", (SMALL,), needs=("decay",)),
    Regime("unequal", "2", (SMALL,), needs=("decay",)),
    Regime("key_norms", "2", (SMALL,), settings=dict(use_qk_l2norm=True)),
    Regime("front", "2", (SMALL,), gradients=True, settings=dict(use_qk_l2norm=True, key_shift=1)),
    Regime("steps", "2", (SMALL,), needs=("beta",)),
    Regime("same_keys", "3", (SMALL,), needs=("beta",)),
    Regime("real", "real", (SAMPLE,), start=False, settings=dict(use_qk_l2norm=True)),
)
BIG = (dict(B=1, T=197, H=2, HV=4, K=64, V=64), dict(B=1, T=261, H=1, HV=1, K=128, V=128))
FULL = (
    *CORE,
    Regime("rich", "1", (*BIG, dict(B=3, T=64, H=2, HV=6, K=32, V=48))),
    Regime("wide", "1", tuple(dict(B=1, T=67, H=1, HV=1, K=n, V=m) for n, m in ((256, 16), (16, 256), (96, 192)))),
    Regime("odd", "1", tuple(dict(B=1, T=67, H=1, HV=2, K=n, V=m) for n, m in ((1, 3), (3, 1), (48, 100)))),
    Regime("packed", "1", (dict(BIG[0], T=267),), lengths=(1, 0, 3, 64, 65, 0, 134)),
    Regime("padded", "2", (SMALL, BIG[0]), needs=("beta",)),
    Regime("strong", "2", BIG, needs=("decay",)),
    Regime("unequal", "2", BIG, needs=("decay",)),
    Regime("key_norms", "2", BIG, settings=dict(use_qk_l2norm=True)),
    Regime("front", "2", BIG, settings=dict(use_qk_l2norm=True, key_shift=1)),
    Regime("same_keys", "3", BIG, needs=("beta",)),
    Regime("parallel_keys", "3", (SMALL, *BIG), needs=("beta",)),
    Regime("long", "3", (dict(B=1, T=4096, H=1, HV=2, K=16, V=16),)),
    Regime("real", "real", (dict(B=1, T=256, H=4, HV=4, K=32, V=32),), start=False, settings=dict(use_qk_l2norm=True)),
)
# What is no recurrence of the delta core: the same regimes in sizes that balls can do, and none for gates it has not.
SHORT = (1, 0, 9, 16)
FEW = dict(SMALL, T=sum(SHORT))
OTHERS = (
    Regime("one_hot", "E", (SMALL,), gradients=True),
    Regime("permuted", "E", (FEW,), lengths=SHORT),
    Regime("rich", "1", (SMALL,), gradients=True),
    Regime("heads", "1", (HEADS,)),
    Regime("packed", "1", (FEW,), lengths=SHORT),
    Regime("strong", "2", (SMALL,), needs=("decay",)),
    Regime("key_norms", "2", (SMALL,), settings=dict(use_qk_l2norm=True)),
    Regime("front", "2", (SMALL,), settings=dict(use_qk_l2norm=True, key_shift=1)),
    Regime("same_keys", "3", (SMALL,)),
    Regime("real", "real", (SAMPLE,), start=False, settings=dict(use_qk_l2norm=True)),
)
MIDDLE = (dict(B=1, T=69, H=2, HV=4, K=16, V=16), dict(B=2, T=33, H=1, HV=1, K=32, V=24))
OTHERS_FULL = (
    *OTHERS,
    Regime("rich", "1", MIDDLE, gradients=True),
    Regime("odd", "1", tuple(dict(B=1, T=37, H=1, HV=2, K=n, V=m) for n, m in ((1, 3), (3, 1), (12, 20)))),
    Regime("unequal", "2", MIDDLE, needs=("decay",)),
    Regime("key_norms", "2", MIDDLE, settings=dict(use_qk_l2norm=True)),
    Regime("front", "2", MIDDLE, settings=dict(use_qk_l2norm=True, key_shift=1)),
    Regime("parallel_keys", "3", (SMALL, *MIDDLE)),
)
# Every composition of the composed learner's parts.
TINY = dict(SMALL, T=13, K=6, V=3)
COMPOSED = (
    Regime("one_hot", "E", (TINY,), gradients=True),
    Regime("rich", "1", (dict(TINY, HV=1),), gradients=True),
)
MORE = ("heads", "packed", "strong", "key_norms", "front", "real")
COMPOSED_FULL = (*COMPOSED, *(regime for regime in OTHERS if regime.name in MORE))
SUITES = {"core": (CORE, OTHERS, COMPOSED), "full": (FULL, OTHERS_FULL, COMPOSED_FULL)}
# A decay that is no power of two soon needs more than eight bits: two tokens, from zero.
FEW_BITS: Mapping[str, Mapping[str, Any]] = {
    "retention": dict(T=2, lengths=(), start=False),
    "lightning_attn": dict(H=1, HV=1),
    "longhorn": dict(T=24, lengths=()),
}
INEXACT = ("ttt_linear", "ttt_mlp")  # LayerNorm: no tier E
EXACT_WITH: Mapping[str, Mapping[str, Any]] = {  # options in tier E, where no root is taken
    "gated_kalmanet": dict(ridge=1.0, eps=0.0),
    "lact": dict(use_muon=False, weight_norm="none"),
}
KNOWN = {  # inputs that are drawn here, and states
    *("q", "k", "v", "p", "g", "beta", "d", "r", "w", "a", "b", "lamb", "alpha", "eta", "theta", "tok", "momentum"),
    *("w0", "w1", "w2", "lr0", "lr1", "lr2", "schedule", "initial_state", "h_kk", "h_kv", "weight", "bias", "memory"),
    *("b1", "b2", "m0", "m1", "m2", "theta_out", "theta_up", "ln_weight", "ln_bias"),
    *("m_w", "m_b", "m_w0", "m_w1", "m_w2", "m_b1", "m_b2"),
}
HIDDEN = 6  # channels between two layers, the axis R


def kind(op: Op) -> str:
    """What draws its inputs and closes its answer: "delta", "regression" (the exact learners), "attention" or
    "training" (memories that learn by mini-batches)."""
    if not op.states:
        return "attention"
    if any(t.name == "h_kk" for t in op.states):
        return "regression"
    return "training" if "chunk_size" in op.options and not in_the_core(op) else "delta"


@dataclass(frozen=True)
class Case:
    """One golden's question; `parts` names a composition."""

    op: Op
    convention: str
    regime: Regime
    size: Mapping[str, int]
    parts: str = ""

    @property
    def few(self) -> Mapping[str, Any]:
        return FEW_BITS.get(self.op.name, {}) if self.regime.tier == "E" else {}

    @property
    def lengths(self) -> tuple[int, ...]:
        lengths: tuple[int, ...] = self.few.get("lengths", self.regime.lengths)
        return lengths

    @property
    def start(self) -> bool:
        return self.regime.start and bool(self.few.get("start", True))

    @property
    def id(self) -> str:
        s = self.size
        shape = f"b{s['B']}-t{s['T']}-h{s['H']}-hv{s['HV']}-k{s['K']}-v{s['V']}"
        shape += f"-r{s['R']}" if "R" in s else ""
        packed = f"-varlen{len(self.lengths)}" if self.lengths else ""
        regime = self.regime.name + (f"-{self.parts}" if self.parts else "")
        regime += "" if self.convention == self.op.convention(None) else f"-{self.convention}"
        return f"{self.op.name}/{self.regime.tier}/{regime}/{shape}{packed}-bf16"

    @property
    def sequences(self) -> int:
        return len(self.lengths) or self.size["B"]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor that may be drawn, in the order of their streams."""
        starts, ends = self.of_states("initial_state"), self.of_states("dht")
        return (*(t.name for t in self.op.inputs), *starts, "do", *ends, "conv", "gate", "choice")

    def of_states(self, what: str) -> dict[str, tuple[int, ...]]:
        """What a file calls each state's `what`, and its shape: `what` of one state, `what`.NAME of several."""
        names = [what] if len(self.op.states) == 1 else [f"{what}.{t.name}" for t in self.op.states]
        sizes = {**self.size, "N": self.sequences}
        shapes = [tuple(sizes[a] for a in t.axes[0].split()) for t in self.op.states]
        return dict(zip(names, shapes, strict=True))

    def kept_as(self, tensor: Tensor) -> str:
        """bfloat16 for vectors of a layer's width, float32 for gates and steps."""
        low_rank = self.op.name in ("rwkv7", "dplr", "iplr") and tensor.name in "ab"
        return "bfloat16" if tensor.role in ("query", "key", "value") or low_rank else "float32"

    def stream(self, name: str) -> Stream:
        return Stream(key_of(self.id), self.names.index(name))

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        times = self.options.get("num_householder", 1)
        return tuple({**self.size, "T*n": self.size["T"] * times}[a] for a in tensor.axes[0].split())

    @property
    def options(self) -> dict[str, Any]:
        """The op's own options: more than one step a token, a layer that is not the first."""
        chosen: dict[str, Any] = {"num_householder": 2, "layer_idx": 1, "num_layers": 4, "chunk_size": MINI_BATCH}
        chosen |= EXACT_WITH.get(self.op.name, {}) if self.regime.tier == "E" else {}
        chosen |= COMPOSITIONS[self.parts] if self.parts else {}
        return {name: chosen.get(name, rule.default) for name, rule in self.op.options.items()}


def covered(op: Op) -> bool:
    """Whether every input of the op is one that is drawn here."""
    return {t.name for t in (*op.inputs, *op.states)} <= KNOWN and (op.compose is None or op.name == "ttt")


def cases_of(op: Op, regimes: tuple[tuple[Regime, ...], ...]) -> Iterator[Case]:
    """Every regime that applies, in the op's default convention; the other conventions in one regime."""
    if op.compose is None:
        yield from applied(op, regimes[kind(op) != "delta"])
        return
    for parts in COMPOSITIONS:
        yield from applied(composed(op, parts), regimes[2], parts)


def applied(op: Op, regimes: tuple[Regime, ...], parts: str = "") -> Iterator[Case]:
    roles = {t.role for t in op.inputs} | {t.name for t in op.inputs}
    axes = {a for t in (*op.inputs, *op.states) for a in t.axes[0].split()}
    first, *others = op.conventions
    inexact = op.name in INEXACT or parts in compositions.INEXACT
    for regime in regimes:
        if set(regime.needs) <= roles and not (regime.tier == "E" and inexact):
            for shape in regime.shapes:
                size = {**shape, "R": HIDDEN} if "R" in axes else dict(shape)
                if not any("V" in t.axes[0].split() for t in op.inputs):
                    size["V"] = size["K"]
                few = {a: n for a, n in FEW_BITS.get(op.name, {}).items() if a in size} if regime.tier == "E" else {}
                yield Case(op, first, regime, {**size, **few}, parts)
                if regime.name == "key_norms" and kind(op) != "regression":  # whose are of a solver that iterates
                    yield from (Case(op, other, regime, size) for other in others)


def suite(name: str, only_ops: tuple[str, ...] = (), tiers: tuple[str, ...] = ()) -> list[Case]:
    """The cases of a suite, all or some."""
    if name not in SUITES:
        hint = f"; for the cases of an op give --ops {name}" if name in ops.names() else nearest(name, SUITES)
        raise InputError(f"There is no suite {name!r}{hint}.")
    for tier in tiers:
        if tier not in TIERS:
            raise InputError(f"There is no tier {tier!r}{nearest(tier, TIERS)}.")
    every = [ops.get(n) for n in only_ops or ops.names()]
    for op in every:
        if only_ops and not covered(op):
            raise InputError(f"{op.name} has no golden cases in this version.")
    found = {case.id: case for op in every if covered(op) for case in cases_of(op, SUITES[name])}
    return [case for case in found.values() if not tiers or case.regime.tier in tiers]
