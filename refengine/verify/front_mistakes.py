"""Mistakes before the op: in raw gates, norms, convolutions and shifts, and where packed sequences begin.

Each alters the problem that a Core was lowered from and lowers it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.problem import Problem
from ..frontend.norm import L2Norm
from ..frontend.pairing import Paired
from ..kernels import elementwise
from ..numbers.bounded import apply
from .emulate import Core

Array = NDArray[Any]
BOUND = -5.0  # the lower bound of gates in Kimi Delta Attention


def lowered(change: Callable[[Problem], Problem | None]) -> Callable[[Core], Core | None]:
    """An alteration of the problem as one of its Core."""

    def alter(core: Core) -> Core | None:
        altered = None if core.problem is None else change(core.problem)
        return None if altered is None else Core.of(altered)

    return alter


# Gates from raw parameters: x = a + dt_bias, A = exp(A_log)


def softplus(x: Array) -> Array:
    return apply(elementwise.softplus, x)


def regated(p: Problem, g: Callable[[Array, Array, Array], Array]) -> Problem | None:
    """The log decay g(a, A_log, dt_bias) in place of the raw gate's."""
    if p.gate is None:
        return None
    a = np.asarray(p.gate.a, np.float64)
    wide = a if a.ndim == 4 else a[..., None]
    none = np.zeros((1, 1, 1, 1))
    A_log = none if p.gate.A_log is None else p.gate.A_log[None, None, :, None]
    dt_bias = none if p.gate.dt_bias is None else p.gate.dt_bias[None, None]
    with np.errstate(all="ignore"):
        found = np.ascontiguousarray(np.broadcast_to(g(wide, A_log, dt_bias), wide.shape)).reshape(a.shape)
    return replace(p, gate=None, tensors={**p.tensors, p.op.role("decay")[0].name: found})


def other_gate(p: Problem) -> Problem | None:
    """The bounded form for the softplus form, and the other way round."""
    if p.gate is None or p.gate.A_log is None:
        return None
    return replace(p, gate=replace(p.gate, lower_bound=BOUND if p.gate.lower_bound is None else None))


def gate_with(p: Problem, name: str, factor: float) -> Problem | None:
    """One of its parameters times a factor."""
    if p.gate is None or getattr(p.gate, name) is None:
        return None
    return replace(p, gate=replace(p.gate, **{name: getattr(p.gate, name) * factor}))


def softplus_only(p: Problem, g: Callable[[Array, Array, Array], Array]) -> Problem | None:
    return None if p.gate is None or p.gate.lower_bound is not None else regated(p, g)


# Norms


def normed(p: Problem, change: Callable[[L2Norm, int], L2Norm | None]) -> Problem | None:
    if p.norm is None:
        return None
    other = change(p.norm, p.sizes["K"])
    return None if other == p.norm else replace(p, norm=other)


def raw(core: Core, names: str) -> Core | None:
    """Some operands as they are without the norm."""
    if core.problem is None or core.problem.norm is None:
        return None
    plain = Core.of(replace(core.problem, norm=None))
    if names == "e" and (core.e is None or core.e is core.k):
        return None
    if names == "k" and core.e is core.k:
        return replace(core, k=plain.k, e=plain.k)
    return replace(core, **{name: getattr(plain, name) for name in names})


def twice(core: Core) -> Core | None:
    """q and k divided by their length once more, where the eps shows."""
    if core.problem is None or core.problem.norm is None:
        return None
    eps = core.problem.norm.eps
    k = unit(core.k, eps)
    return replace(core, q=unit(core.q, eps), k=k, e=k if core.e is core.k else core.e)


def unit(x: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + eps))


def norm_first(p: Problem) -> Problem | None:
    """What a convolution sees normalised, what comes out of it not."""
    rules = {n: rule for n, rule in p.pairing.items() if rule.weight is not None and p.op.tensor(n).role != "value"}
    normed = [t.name for t in p.op.inputs if t.role in ("query", "key") and p.tensors.get(t.name) is not None]
    if p.norm is None or set(normed) != set(rules):
        return None
    eps, K = p.norm.eps, p.sizes["K"]
    pasts = {n: unit(rule.past.reshape(*rule.past.shape[:2], -1, K), eps) for n, rule in rules.items()}
    return replace(
        p,
        norm=None,
        tensors={**p.tensors, **{n: unit(p.tensors[n], eps) for n in rules}},
        pairing={**p.pairing, **{n: replace(r, past=pasts[n].reshape(r.past.shape)) for n, r in rules.items()}},
    )


# Shifts and short convolutions


def paired(p: Problem, change: Callable[[Paired], Paired | None], conv: bool = True) -> Problem | None:
    """Every rule (of convolutions, or of shifts) that the change applies to."""
    rules = {n: rule for n, rule in p.pairing.items() if (rule.weight is not None if conv else rule.shift > 0)}
    changed = {n: new for n, rule in rules.items() if (new := change(rule)) is not None}
    return replace(p, pairing={**p.pairing, **changed}) if changed else None


def flipped(rule: Paired) -> Paired | None:
    assert rule.weight is not None
    back = np.ascontiguousarray(rule.weight[::-1])
    return None if np.array_equal(back, rule.weight) else replace(rule, weight=back)


def unconvolved(rule: Paired) -> Paired:
    assert rule.weight is not None and rule.bias is not None
    weight = np.zeros_like(rule.weight)
    weight[-1] = 1.0
    return replace(rule, weight=weight, bias=np.zeros_like(rule.bias), silu=False, residual=False)


def later(rule: Paired) -> Paired:
    """Everything seen one token late."""
    past = np.concatenate([np.zeros_like(rule.past[:, :1]), rule.past], axis=1) if rule.past.shape[1] else None
    N, _, C = rule.past.shape
    return replace(rule, shift=rule.shift + 1, past=np.zeros((N, 1, C)) if past is None else past)


def unshifted(rule: Paired) -> Paired:
    return replace(rule, shift=0, past=np.ascontiguousarray(rule.past[:, rule.shift :]))


def with_past(rule: Paired, change: Callable[[Array], Array]) -> Paired | None:
    past = np.ascontiguousarray(change(rule.past))
    return None if np.array_equal(past, rule.past) else replace(rule, past=past)


def unbiased(rule: Paired) -> Paired | None:
    return replace(rule, bias=np.zeros_like(rule.bias)) if rule.bias is not None and rule.bias.any() else None


def weights_swapped(p: Problem) -> Problem | None:
    """The queries with the keys' taps and the keys with the queries'."""
    by_role = {p.op.tensor(n).role: n for n, rule in p.pairing.items() if rule.weight is not None}
    if not {"query", "key"} <= set(by_role):
        return None
    q, k = (p.pairing[by_role[role]] for role in ("query", "key"))
    if np.shape(q.weight) != np.shape(k.weight) or np.array_equal(q.weight, k.weight):  # type: ignore[arg-type]
        return None
    swapped = {by_role["query"]: replace(q, weight=k.weight), by_role["key"]: replace(k, weight=q.weight)}
    return replace(p, pairing={**p.pairing, **swapped})


def across_sequences(p: Problem) -> Problem | None:
    """The last tokens of each sequence as those before the next one in its row."""
    changed = {}
    for name, rule in p.pairing.items():
        x, past, reach = p.tensors[name], rule.past.copy(), rule.past.shape[1]
        for n, (row, t0, _) in enumerate(p.segments):
            if t0 > 0 and reach:
                each = x.reshape(x.shape[0], p.sizes["T"], -1)
                seen = each[row, max(t0 - reach, 0) : t0]
                past[n, reach - len(seen) :] = seen
        if not np.array_equal(past, rule.past):
            changed[name] = replace(rule, past=past)
    return replace(p, pairing={**p.pairing, **changed}) if changed else None


def to(place: str) -> Callable[[L2Norm, int], L2Norm]:
    return lambda norm, K: replace(norm, place=place)


GATES: dict[str, tuple[str, Callable[[Problem], Problem | None]]] = {
    "gate_bounded": ("the bounded gate for the softplus one, or the other way round [6]", other_gate),
    "A_log_plain": (
        "A_log where exp(A_log) is meant [6]",
        partial(softplus_only, g=lambda a, A, d: -A * softplus(a + d)),
    ),
    "A_log_twice": (
        "exp(exp(A_log)) for exp(A_log) [6]",
        partial(softplus_only, g=lambda a, A, d: -np.exp(np.exp(A)) * softplus(a + d)),
    ),
    "dt_bias_missing": ("a without its dt_bias [6]", partial(gate_with, name="dt_bias", factor=0.0)),
    "dt_bias_twice": ("dt_bias added twice [6]", partial(gate_with, name="dt_bias", factor=2.0)),
    "dt_bias_outside": (
        "dt_bias added after the softplus [6]",
        partial(softplus_only, g=lambda a, A, d: -np.exp(A) * (softplus(a) + d)),
    ),
    "softplus_missing": (
        "the gate's softplus left out [6]",
        partial(softplus_only, g=lambda a, A, d: -np.exp(A) * np.maximum(a + d, 0.0)),
    ),
    "gate_of_no_token": ("a gate that does not depend on its token [6]", partial(gate_with, name="a", factor=0.0)),
}
NORMS: dict[str, tuple[str, Callable[[Core], Core | None]]] = {
    "norm_missing": ("q and k not normalised [9]", partial(raw, names="qk")),
    "q_norm_missing": ("q not normalised [9]", partial(raw, names="q")),
    "k_norm_missing": ("k not normalised [9]", partial(raw, names="k")),
    "p_norm_missing": ("the auxiliary key not normalised [9]", partial(raw, names="e")),
    "norm_twice": ("q and k normalised twice [9]", twice),
    "norm_eps_outside": ("the norm's eps outside the root [9]", lowered(partial(normed, change=to("outside")))),
    "norm_eps_inside": ("the norm's eps inside the root [9]", lowered(partial(normed, change=to("inside")))),
    "norm_eps_maximum": ("the norm's eps as a floor of the length [9]", lowered(partial(normed, change=to("max")))),
    "norm_eps_of_mean": (
        "the norm's eps added to the mean square [9]",
        lowered(partial(normed, change=lambda norm, K: replace(norm, eps=norm.eps * K))),
    ),
    "norm_eps_10_times": (
        "the norm's eps ten times too large [9]",
        lowered(partial(normed, change=lambda norm, K: replace(norm, eps=norm.eps * 10))),
    ),
}
PAIRING: dict[str, tuple[str, Callable[[Problem], Problem | None]]] = {
    "taps_flipped": ("the convolution's taps in reverse [16]", partial(paired, change=flipped)),
    "conv_missing": ("no convolution [16]", partial(paired, change=unconvolved)),
    "conv_late": ("the convolution one token late [16]", partial(paired, change=later)),
    "silu_missing": (
        "the convolution without its SiLU [16]",
        partial(paired, change=lambda r: replace(r, silu=False) if r.silu else None),
    ),
    "silu_added": (
        "a SiLU after a convolution that has none [16]",
        partial(paired, change=lambda r: None if r.silu else replace(r, silu=True)),
    ),
    "conv_bias_missing": ("the convolution without its bias [16]", partial(paired, change=unbiased)),
    "conv_weights_swapped": ("the taps of q on k and those of k on q [16]", weights_swapped),
    "norm_before_conv": ("q and k normalised before their convolution, not after [16]", norm_first),
    "conv_history_lost": (
        "the tokens before the first taken as zero [16]",
        partial(paired, change=partial(with_past, change=np.zeros_like)),
    ),
    "conv_history_reversed": (
        "the tokens before the first in reverse [16]",
        partial(paired, change=partial(with_past, change=lambda x: x[:, ::-1])),
    ),
    "conv_across_sequences": ("a packed sequence sees the end of the one before it [9]", across_sequences),
    "shift_missing": ("no shift [16]", partial(paired, change=unshifted, conv=False)),
    "shift_one_more": ("shifted by one token more [16]", partial(paired, change=later, conv=False)),
}
FRONT: dict[str, tuple[str, Callable[..., Any]]] = {
    **{name: (doc, lowered(change)) for name, (doc, change) in {**GATES, **PAIRING}.items()},
    **NORMS,
}
