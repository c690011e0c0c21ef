"""The mistakes people make in these kernels, each an exact alteration: a catalogue for every op of the delta core.

They act on the lowered problem (verify/emulate.py's Core), in the chunk algebra, in the roundings, or on what was
computed. The same alteration serves the float64 solution and an emulation at any precision. Sources: the issue
trackers of the projects that write the kernels; the number in brackets is the kind (scale, layout, order, gates, ...)
they were filed under. The families that no core hosts have theirs in their definitions (ops/slips.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.definition import define
from ..engine.problem import Problem
from ..errors import InputError, nearest
from ..kernels import elementwise
from ..numbers import formats
from ..numbers.bounded import apply
from ..spec import Mutant, Op
from .emulate import WIPED, Core, Run, emulate
from .front_mistakes import FRONT
from .policy import Policy

Array = NDArray[Any]
Outputs = dict[str, Array]
TAIL = 64  # tokens of the chunks whose partial last one is left out
BORDER = 128  # where a state is lost, if the sequence is that long; else in its middle


def middle(core: Core) -> int:
    """A micro-step well inside the first sequence, where a token begins."""
    _, t0, t1 = core.segments[0]
    return (t0 + (BORDER if t1 - t0 > BORDER else (t1 - t0) // 2)) * core.micro


def row(core: Core) -> int:
    return core.segments[0][0]


# On the lowered problem


def scaled(core: Core, factor: Callable[[Core], float]) -> Core:
    return replace(core, scale=core.scale * factor(core))


def state_transposed_in(core: Core) -> Core | None:
    if core.start is None or core.start.shape[2] != core.start.shape[3]:
        return None
    return replace(core, start=np.ascontiguousarray(np.swapaxes(core.start, -1, -2)))


def state_reshaped_in(core: Core) -> Core | None:
    """[V, K] in memory, taken for [K, V]."""
    if core.start is None or core.start.shape[2] == core.start.shape[3]:
        return None
    return replace(core, start=reshaped(core.start, core))


def no_start(core: Core) -> Core | None:
    return None if core.start is None else replace(core, start=None)


def one_start_for_all(core: Core) -> Core | None:
    if core.start is None or len(core.segments) < 2:
        return None
    return replace(core, start=np.repeat(core.start[:1], len(core.start), 0))


def before_decay(core: Core) -> Core | None:
    return None if core.e is None or core.g is None or core.pre else replace(core, pre=True)


def gated(core: Core, change: Callable[[Array], Array | None]) -> Core | None:
    """The log decay changed."""
    return None if core.g is None else replace(core, g=change(core.g))


def shifted(x: Array, by: int) -> Array:
    """Along the tokens, the first or last one repeated."""
    at = np.clip(np.arange(x.shape[1]) - by, 0, max(x.shape[1] - 1, 0))
    return np.ascontiguousarray(x[:, at])


def erased(core: Core, change: Callable[[Array], Array | None]) -> Core | None:
    return None if core.e is None else replace(core, e=change(core.e))


def stepped(core: Core, change: Callable[[Array], Array | None]) -> Core | None:
    return None if core.b is None else replace(core, b=change(core.b))


def only_on_v(core: Core) -> Core | None:
    """b in what is written, not in what is corrected: d = b v - e.X."""
    return None if core.b is None or core.e is None else replace(core, v=core.v * core.b, b=None)


def squared(core: Core) -> Core | None:
    return None if core.b is None else replace(core, b=core.b**2)


def first_head_gate(core: Core) -> Core | None:
    if core.g is None or core.g.shape[2] == 1:
        return None
    return replace(core, g=np.repeat(core.g[:, :, :1], core.g.shape[2], 2))


def tiled_heads(core: Core) -> Core | None:
    """Value head h with key head h % H, where h // (HV / H) is meant."""
    H, HV = core.k.shape[2], core.v.shape[2]
    if H == 1 or H == HV:
        return None
    order = np.arange(HV) % H
    k = np.ascontiguousarray(core.k[:, :, order])
    own = core.e is None or core.e is core.k or core.e.shape[2] == HV
    e = k if core.e is core.k else core.e if own or core.e is None else np.ascontiguousarray(core.e[:, :, order])
    return replace(core, q=np.ascontiguousarray(core.q[:, :, order]), k=k, e=e)


def gate_after_write(core: Core) -> Core | None:
    """S <- a (S + k d'), the error taken at the state before it."""
    if core.g is None or core.micro > 1:
        return None
    heads = core.v.shape[2]
    k = np.repeat(core.k, heads // core.k.shape[2], 2)
    decay = np.exp(np.repeat(core.g, heads // core.g.shape[2], 2))
    return replace(core, k=k * decay, e=k if core.e is core.k else core.e, pre=True)


def averaged_gate(core: Core, axis: int) -> Core | None:
    """One gate for all channels, or for all tokens."""
    if core.g is None or core.g.shape[axis] < 2:
        return None
    mean = core.g.mean(axis=axis, keepdims=True)
    return replace(core, g=mean if axis == 3 else np.repeat(mean, core.g.shape[axis], axis))


def gate_in_micro_steps(core: Core, last: bool) -> Core | None:
    """A token's decay in every micro-step, or in the last where it belongs in the first."""
    n = core.micro
    if n == 1 or core.g is None:
        return None
    each = core.g.reshape(core.g.shape[0], -1, n, *core.g.shape[2:])
    moved = np.zeros_like(each)
    moved[:, :, n - 1 if last else slice(None)] = each[:, :, 0] if last else each[:, :, :1]
    return replace(core, g=moved.reshape(core.g.shape))


def factors_swapped(core: Core) -> Core | None:
    """b (a' S) as a (b' S), where a token's first micro-step is that."""
    if not (core.micro == 2 and core.pre) or core.e is None or core.e.shape != core.k.shape:
        return None
    k, e = core.k.copy(), core.e.copy()
    k[:, ::2], e[:, ::2] = -core.e[:, ::2], -core.k[:, ::2]
    return replace(core, k=k, e=e)


def of_first_head(core: Core) -> Core | None:
    if core.b is None or core.b.shape[2] == 1:
        return None
    return replace(core, b=np.repeat(core.b[:, :, :1], core.b.shape[2], 2))


def carried_over(core: Core) -> Core | None:
    """Every packed sequence goes on from the state that the one before it left."""
    return joined(core) if core.segments and core.segments[0][0] == core.segments[-1][0] else None


def joined(core: Core) -> Core | None:
    """Every sequence, and batch row, likewise."""
    if len(core.segments) < 2:
        return None
    V, K = core.v.shape[3], core.k.shape[3]
    given = np.zeros((len(core.segments), core.v.shape[2], K, V)) if core.start is None else core.start.copy()
    for n in range(1, len(core.segments)):
        before = replace(core, segments=core.segments[n - 1 : n], start=given[n - 1 : n], folded=None)
        given[n] = emulate(before, EXACT, Run(), threads=1)[1][0]
    return replace(core, start=given)


def rows_reversed(core: Core) -> Core | None:
    if core.q.shape[0] < 2:
        return None
    return replace(core, g=None if core.g is None else core.g[::-1].copy(), v=core.v[::-1].copy())


def reset(core: Core) -> Core | None:
    """Everything forgotten at one token."""
    if core.pre or core.segments[0][2] - core.segments[0][1] < 2:
        return None
    g = np.zeros((*core.v.shape[:3], 1)) if core.g is None else core.g.copy()
    g[row(core), middle(core)] = WIPED
    return replace(core, g=g)


def dropped_write(core: Core) -> Core:
    b = np.ones((*core.v.shape[:3], 1)) if core.b is None else core.b.copy()
    b[row(core), middle(core) : middle(core) + core.micro] = 0.0
    return replace(core, b=b)


def stale_key(core: Core) -> Core | None:
    """The last token with the key of the one before it."""
    b, t0, t1 = core.segments[-1]
    n = core.micro
    if t1 - t0 < 2:
        return None
    k = core.k.copy()
    k[b, t1 * n - n : t1 * n] = k[b, t1 * n - 2 * n : t1 * n - n]
    return replace(core, k=k, e=k if core.e is core.k else core.e)


def read_late(core: Core) -> Core | None:
    """o from the state before the token's own write."""
    if core.micro > 1 or core.pre or any(t1 == t0 for _, t0, t1 in core.segments):
        return None
    b = np.ones((*core.v.shape[:3], 1)) if core.b is None else core.b
    g = np.zeros((*core.v.shape[:3], 1)) if core.g is None else core.g
    moved: dict[str, Any] = {"k": core.k, "v": core.v, "b": b, "g": g}
    for name, x in moved.items():
        y = shifted(x, 1)
        for batch, t0, _ in core.segments:
            y[batch, t0] = 0.0
        moved[name] = y
    return replace(core, **moved, e=None if core.e is None else moved["k"] if core.e is core.k else shifted(core.e, 1))


# On what was computed


def on(name: str, change: Callable[[Array, Core], Array | None]) -> Callable[[Outputs, Core], Outputs | None]:
    def alter(got: Outputs, core: Core) -> Outputs | None:
        changed = change(got[name].copy(), core)
        return None if changed is None else {**got, name: changed}

    return alter


def transposed(x: Array, _: Core) -> Array | None:
    return np.ascontiguousarray(np.swapaxes(x, -1, -2)) if x.shape[-1] == x.shape[-2] else None


def reshaped(x: Array, _: Core) -> Array | None:
    """The other way round in memory, and not told."""
    if x.shape[-1] == x.shape[-2]:
        return None
    return np.ascontiguousarray(np.swapaxes(x, -1, -2)).reshape(x.shape)


def put(at: Callable[[Array, Core], Any], value: Callable[[Array], Any]) -> Callable[[Array, Core], Array]:
    """Some entries replaced by a function of themselves."""

    def change(x: Array, core: Core) -> Array:
        where = at(x, core)
        x[where] = value(x[where])
        return x

    return change


def token(x: Array, core: Core) -> Any:
    return row(core), min(64, x.shape[1] - 1)


def largest(x: Array, core: Core) -> Any:
    return np.unravel_index(int(np.abs(x).argmax()), x.shape)


def swapped_rows(x: Array, core: Core) -> Array | None:
    t = middle(core) // core.micro
    if x.shape[1] < t + 2:
        return None
    x[row(core), [t, t + 1]] = x[row(core), [t + 1, t]]
    return x


def reversed_tile(x: Array, core: Core) -> Array | None:
    x[row(core), 4:8] = x[row(core), 4:8][::-1].copy()
    return x if x.shape[1] > 7 else None


def without_length(x: Array, _: Core, axes: tuple[int, ...] = (-1,)) -> Array:
    """Every row of o divided by its root mean square."""
    size = np.sqrt((x.astype(np.float64) ** 2).mean(axis=axes, keepdims=True))
    return np.asarray(x / np.maximum(size, 1e-6))


def activated(x: Array, _: Core) -> Array:
    """What a gate of the output by itself leaves."""
    return np.asarray(x * apply(elementwise.sigmoid, x.astype(np.float64)))


def one_token_behind(got: Outputs, core: Core) -> Outputs | None:
    """The final state from before the last token."""
    if core.folded or any(t1 - t0 < 2 for _, t0, t1 in core.segments):
        return None
    shorter = replace(core, segments=tuple((row, t0, t1 - 1) for row, t0, t1 in core.segments))
    return {**got, "final_state": emulate(shorter, EXACT, Run())[1]}


def tail(core: Core, chunk: int) -> list[slice]:
    """Of every sequence the tokens that whole chunks leave."""
    return [slice(t1 - (t1 - t0) % chunk, t1) for _, t0, t1 in core.segments]


def tail_unwritten(got: Outputs, core: Core, chunk: int = TAIL) -> Outputs | None:
    """The rows of a partial last chunk never stored."""
    o = got["o"].copy()
    for (row, _, _), t in zip(core.segments, tail(core, chunk), strict=True):
        o[row, t] = 0.0
    return {**got, "o": o} if any(t.start < t.stop for t in tail(core, chunk)) else None


def tail_ignored(got: Outputs, core: Core, chunk: int = TAIL) -> Outputs | None:
    """As many chunks as fit whole: no rows of a partial one, and a final state from before it."""
    unwritten = tail_unwritten(got, core, chunk)
    if unwritten is None or core.folded:
        return None
    at = tail(core, chunk)
    whole = replace(core, segments=tuple((row, t0, t.start) for (row, t0, _), t in zip(core.segments, at, strict=True)))
    return {**unwritten, "final_state": emulate(whole, EXACT, Run())[1]}


def stale_column(got: Outputs, core: Core) -> Outputs | None:
    """The last value column of the state never updated."""
    start = np.zeros_like(got["final_state"]) if core.start is None or core.folded else core.start
    final = got["final_state"].copy()
    final[..., -1] = start[..., -1]
    return {**got, "final_state": final}


def apart(alter: Callable[[Core], Core | None], core: Core) -> Core | None:
    """The altered core, no longer what its problem is lowered to: mistakes before the op must be made first."""
    altered = alter(core)
    return None if altered is None else replace(altered, problem=None)


CORE: dict[str, tuple[str, Callable[..., Any]]] = {
    "scale_missing": ("o without its scale [1]", partial(scaled, factor=lambda c: 1 / c.scale)),
    "scale_twice": ("the scale applied twice [1]", partial(scaled, factor=lambda c: c.scale)),
    "scale_off_1_percent": ("the scale 1 % too large [1]", partial(scaled, factor=lambda c: 1.01)),
    "initial_state_transposed": ("the initial state read as [V, K] [2]", state_transposed_in),
    "initial_state_reshaped": ("the initial state's memory read as if [V, K] were [K, V] [2]", state_reshaped_in),
    "prediction_before_decay": ("the error taken at the state before its decay [3]", before_decay),
    "read_before_write": ("o read from the state before the token's write [3]", read_late),
    "delta_missing": ("nothing is erased: plain linear attention [4]", partial(erased, change=lambda e: None)),
    "delta_sign": ("the prediction added, not taken away [4]", partial(erased, change=lambda e: -e)),
    "delta_twice": ("the prediction taken away twice [4]", partial(erased, change=lambda e: 2 * e)),
    "gate_base_2": ("2^g for e^g [5]", partial(gated, change=lambda g: np.maximum(g * np.log(2.0), WIPED))),
    "gate_missing": ("nothing decays [5]", partial(gated, change=lambda g: None)),
    "gate_twice": ("the decay applied twice [5]", partial(gated, change=lambda g: np.maximum(2 * g, WIPED))),
    "gate_inverse": ("e^-g for e^g [5]", partial(gated, change=lambda g: -np.maximum(g, -1.0))),
    "gate_exp_twice": ("e^-(e^g) for e^g [5]", partial(gated, change=lambda g: -np.exp(g))),
    "gate_after_write": ("the decay after the token's write, which it reaches too [3]", gate_after_write),
    "gate_of_all_channels": ("every channel with the mean of the gates [21]", partial(averaged_gate, axis=3)),
    "gate_of_all_tokens": ("every token with the mean of the gates: retention [21]", partial(averaged_gate, axis=1)),
    "gate_every_micro_step": ("the decay at every inner step [20]", partial(gate_in_micro_steps, last=False)),
    "gate_last_micro_step": ("the decay at the last inner step [20]", partial(gate_in_micro_steps, last=True)),
    "factors_swapped": ("a and b of the removal swapped [19]", factors_swapped),
    "gate_late": ("the gate of the token before [5]", partial(gated, change=lambda g: shifted(g, 1))),
    "gate_early": ("the gate of the token after [5]", partial(gated, change=lambda g: shifted(g, -1))),
    "beta_missing": ("beta taken as 1 [7]", partial(stepped, change=lambda b: None)),
    "beta_half": ("beta halved [7]", partial(stepped, change=lambda b: 0.5 * b)),
    "beta_twice": ("beta doubled [7]", partial(stepped, change=lambda b: 2.0 * b)),
    "beta_sigmoid_twice": ("the sigmoid of beta [7]", partial(stepped, change=lambda b: 1.0 / (1.0 + np.exp(-b)))),
    "beta_of_head_0": ("every head with the beta of the first [8]", of_first_head),
    "beta_squared": ("beta squared [7]", squared),
    "beta_on_v_only": ("beta on the value, not on the correction [7]", only_on_v),
    "heads_tiled": ("value head h with key head h mod H [8]", tiled_heads),
    "gate_of_head_0": ("every head with the gate of the first [8]", first_head_gate),
    "rows_permuted": ("values and gates of another batch row [8]", rows_reversed),
    "one_start_for_all": ("every sequence from the state of the first [9]", one_start_for_all),
    "sequences_joined": ("a packed sequence goes on from the end of the one before it [9]", carried_over),
    "initial_state_ignored": ("the initial state taken as zero [11]", no_start),
    "state_lost": ("the state lost at token 128 [11]", reset),
    "write_dropped": ("one token's write left out [11]", dropped_write),
    "stale_key": ("the last token with the key before it [12]", stale_key),
}
# Of the series I - A + A^2 - ... of (I + A)^-1 the shortest are mistakes: one term (no_correction), two
# (one_newton_step), three (truncated_inverse), which leaves A^3 (I + A)^-1. Between random unit keys A has entries of
# beta / sqrt(K), and every further term is smaller by about beta sqrt(C / K): longer ones hide behind bfloat16 more.
CHUNK = {
    "state_lost": "every chunk starts from nothing [10]",
    "tail_gate": "the last gate of a partial chunk taken as 0 [10]",
    "no_diagonal": "the causal mask leaves out the diagonal [10]",
    "mask_without_decay": "the mask without its decay [10]",
    "w_ungated": "W without its decay [10]",
    "exclusive_gate": "the query decayed by one token less [10]",
    "no_correction": "the writes of a chunk do not see one another [10]",
    "last_diagonal": "the diagonal missing in the last row of each chunk [10]",
    "u_doubly_gated": "U with the decay that only W has [10]",
    "truncated_inverse": "the inverse by the first three terms of its series [15]",
    "one_newton_step": "the inverse by one Newton step from the identity [15]",
    "turned_in_read": "the state read as [V, K] where q meets it [2]",
    "turned_in_correction": "the state read as [V, K] where it is corrected [2]",
}
TURNED = ("turned_in_read", "turned_in_correction")
OVERFLOWS = {
    "factored_decay": "e^(G_i - G_m) as e^G_i e^-G_m [13]",
    "unmasked_decay": "e^(G_i - G_m) above the diagonal too, and then masked by a product with 0 [13]",
}
# Right in exact arithmetic: what they round is in kernels/emulate.py, its format here for comparison.
INVERSE_ROUNDING = {
    "squares_in_half": ("the inverse by repeated squares in float16 [15]", "f16"),
    "blocks_in_bf16": ("blocks of the inverse multiplied in bfloat16 [15]", "bf16"),
}
ANSWER: dict[str, tuple[str, Callable[..., Any]]] = {
    "final_state_transposed": ("the final state written as [V, K] [2]", on("final_state", transposed)),
    "final_state_reshaped": (
        "the final state's memory written as [V, K] and called [K, V] [2]",
        on("final_state", reshaped),
    ),
    "state_behind": ("the final state from before the last token [12]", one_token_behind),
    "tail_unwritten": ("o zero in the partial last chunk of 64 [10]", tail_unwritten),
    "tail_ignored": ("the partial last chunk of 64 left out, of the state too [10]", tail_ignored),
    "rows_normed": ("o divided by its root mean square [18]", on("o", without_length)),
    "rows_normed_together": (
        "o divided by the root mean square of all heads' channels [18]",
        on("o", partial(without_length, axes=(-2, -1))),
    ),
    "rows_activated": ("a SiLU on o [18]", on("o", activated)),
    "stale_column": ("the state's last column never updated [12]", stale_column),
    "zeros": ("o all zero", on("o", put(lambda x, c: ..., np.zeros_like))),
    "last_row_zero": ("the last token of one head zero", on("o", put(lambda x, c: (row(c), -1, 0), np.zeros_like))),
    "rows_swapped": ("two adjacent tokens of o swapped", on("o", swapped_rows)),
    "tile_reversed": ("four tokens of o in reverse", on("o", reversed_tile)),
    "sign_flipped": ("the largest element of o negated", on("o", put(largest, np.negative))),
    "token_5_percent": ("one token of o 5 % too large", on("o", put(token, lambda x: 1.05 * x))),
    "nan": ("one NaN in o", on("o", put(largest, lambda x: np.nan))),
}
ROUNDING: dict[str, tuple[str, dict[str, str]]] = {
    "state_bf16": ("the state kept in bfloat16 [14]", {"state": "bf16"}),
    "operands_tf32": ("products in TF32 [14]", {"operand": "tf32"}),
    "gates_bf16": ("g and beta rounded to bfloat16 [14]", {"gate": "bf16"}),
    "truncated": ("o cut off, not rounded [14]", {"io": "truncated"}),
}
CATALOGUE = (
    *(Mutant(name, doc, "core", alter) for name, (doc, alter) in FRONT.items()),
    *(Mutant(name, doc, "core", partial(apart, alter)) for name, (doc, alter) in CORE.items()),
    *(Mutant(f"chunk_{name}", doc, "chunk", slips=(name,)) for name, doc in CHUNK.items()),
    Mutant("chunk_turned", "the state read as [V, K] everywhere in a chunk [2]", "chunk", slips=TURNED),
    *(Mutant(f"chunk_{name}", doc, "chunk", slips=(name,), precision=True) for name, doc in OVERFLOWS.items()),
    *(
        Mutant(f"chunk_{name}", doc, "chunk", slips=(name,), rounds={"operand": form}, precision=True)
        for name, (doc, form) in INVERSE_ROUNDING.items()
    ),
    *(Mutant(name, doc, "answer", alter) for name, (doc, alter) in ANSWER.items()),
    *(Mutant(name, doc, "rounding", rounds=rounds, precision=True) for name, (doc, rounds) in ROUNDING.items()),
)


def of(op: Op) -> tuple[Mutant, ...]:
    """Every mutant that may apply to an op: the catalogue's and its own."""
    return (*CATALOGUE, *op.mutants)


def find(op: Op, name: str) -> Mutant:
    """The mutant of that name."""
    known = {m.name: m for m in of(op)}
    if name not in known:
        raise InputError(f"{op.name} has no mutant {name!r}{nearest(name, known)}.")
    return known[name]


def defined(mutant: Mutant, p: Problem) -> Outputs:
    """What the op's definition gives with a mistake in its step (float64): for the families that no core hosts."""
    assert mutant.acts == "step" and mutant.alter is not None
    o, final = define(replace(p, op=replace(p.op, step=mutant.alter(p.op.step))))
    finals = final if isinstance(final, tuple) else (final,)
    return {"o": o, **dict(zip(p.op.final_names(), finals, strict=True))}


INVERSES = ("no_correction", "truncated_inverse", "one_newton_step", *INVERSE_ROUNDING)
EXACT = Policy("exact", "f64", "f64", "f64", "f64", "f64")


def mutated(mutant: Mutant, core: Core, policy: Policy = EXACT, run: Run | None = None) -> Outputs | None:
    """What an implementation with that mistake computes: exactly (float64, nothing rounded), or under a policy. None
    where the mistake does not apply: to the problem, or (precision) to that policy."""
    run = Run("chunk" if mutant.acts == "chunk" else "recurrent") if run is None else run
    cut = False
    if mutant.acts == "core":
        assert mutant.alter is not None
        altered = mutant.alter(core)
        if altered is None:
            return None
        core = altered
    elif mutant.acts == "chunk":
        if run.algorithm != "chunk" or not all(meets(core, slip) for slip in mutant.slips):
            return None
        run = replace(run, slips=mutant.slips)
    elif mutant.acts == "rounding":
        changed, cut = coarser(policy, mutant.rounds)
        if changed is None:
            return None
        policy = changed
    got: Outputs | None = core.outputs(policy, run)
    if mutant.acts == "answer":
        assert mutant.alter is not None
        got = mutant.alter(got, core)
    if cut and got is not None:
        got["o"] = truncated(got["o"], policy)
    return got


def meets(core: Core, slip: str) -> bool:
    """Whether the problem has what that switch of the chunk algebra acts on."""
    if slip in ("w_ungated", "u_doubly_gated", "turned_in_correction", *INVERSES) and core.e is None:
        return False
    if slip in TURNED and core.k.shape[3] != core.v.shape[3]:
        return False
    if slip in ("mask_without_decay", "u_doubly_gated", *OVERFLOWS) and (core.g is None or core.g.shape[3] > 1):
        return False
    if slip == "exclusive_gate" and core.micro > 1:  # a token's last inner step has no decay of its own
        return False
    return core.g is not None or slip not in ("tail_gate", "w_ungated", "exclusive_gate")


def coarser(policy: Policy, rounds: Mapping[str, str]) -> tuple[Policy | None, bool]:
    """The policy with some formats secretly coarser, and whether o is cut off, not rounded; None if it is so
    already."""
    if rounds.get("io") == "truncated":
        return (replace(policy, io=policy.accum), True) if policy.io == "bf16" else (None, False)
    worse = {part: name for part, name in rounds.items() if formats.get(name).bits < policy.format(part).bits}
    return (replace(policy, **worse), False) if worse else (None, False)  # type: ignore[arg-type]


def truncated(x: Array, policy: Policy) -> Array:
    """Towards zero in bfloat16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)
