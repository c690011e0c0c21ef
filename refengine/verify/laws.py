"""Laws that any implementation obeys, tried on a candidate that can be run.

    repeat    the same call gives the same bits
    split     cut after t tokens and carried on, the answer is the same; the first cut that breaks it is named
    decode    the last tokens one at a time
    heads     heads permuted, the answer is permuted
    batch     rows reversed, the answer is reversed
    poison    a row of NaN beside the others does not touch them
    pack      two sequences packed by cu_seqlens are two sequences

A split or permuted answer is judged against the truth by the candidate's own grade, and its difference from the whole
answer may be at most R = 2.1 (two honest errors, sqrt(2) times 1.5). To the bit where nothing is left to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AdapterError, InputError, RefengineError
from ..io.interop import exact_widen, to_numpy
from ..spec import Tensor
from .candidates import Live
from .statistics import FAIL, ratio
from .yardstick import views

if TYPE_CHECKING:
    from .verdict import Judge

Array = NDArray[Any]
Inputs = Mapping[str, Any]
APART = 2.1
DECODED = 8
CONVS = {"query": "conv_q", "key": "conv_k", "value": "conv_v"}


@dataclass(frozen=True)
class Law:
    """What came of one law: holds is None where it could not be tried, and `detail` says why, or where it broke."""

    name: str
    holds: bool | None
    detail: str


class MisshapenError(RefengineError):
    """An output for a changed problem that has another shape than that problem's."""


class Trial:
    """One candidate on one problem, changed in ways that should not matter."""

    def __init__(self, live: Live, op: str, inputs: Inputs, judge: Judge, outputs: Sequence[str] | None) -> None:
        self.live, self.op, self.inputs, self.judge, self.asked = live, op, dict(inputs), judge, outputs
        self.sizes = judge.problem.sizes
        rules = judge.problem.pairing.values()
        self.width = max((len(r.weight) for r in rules if r.weight is not None), default=1)
        self.names = tuple(name for name in judge.forward if outputs is None or name in outputs)

    def run(self, inputs: Inputs, T: int, rows: int | None = None) -> dict[str, Array]:
        """The outputs for changed inputs of T tokens (and so many rows or sequences)."""
        shapes = {}
        for name in self.names:
            shape = list(self.judge.values(name).shape)
            shape[0] = shape[0] if rows is None else rows
            if name == "o":
                shape[1] = T
            shapes[name] = tuple(shape)
        return self.asked_for(inputs, shapes)

    def asked_for(self, inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """The outputs, which must have those shapes."""
        got = self.live.outputs(self.op, inputs, shapes, self.judge.policy)
        missing = [name for name in self.names if got.get(name) is None]
        if missing:
            raise AdapterError(f"{missing[0]} is missing.")
        found = {name: to_numpy(got[name], name) for name in self.names}
        for name, x in found.items():
            if x.shape != shapes[name]:
                raise MisshapenError(f"{name} has shape {list(x.shape)}; it is {list(shapes[name])}.")
        return found

    def each(self, change: Callable[[Array, tuple[str, ...]], Array]) -> dict[str, Any]:
        """The inputs, every tensor changed by `change(array, its axes)`: those of the op, raw gates and steps, and what
        convolutions and shifts hold, their channels as heads and the rest."""
        op, changed = self.judge.problem.op, dict(self.inputs)

        def apply(x: Any, name: str, axes: tuple[str, ...] | None = None) -> Array:
            array = to_numpy(x, name)
            return change(array, axes or op.tensor(name).layout(array.ndim) or ())

        for tensor in op.inputs:
            if changed.get(tensor.name) is not None:
                changed[tensor.name] = apply(changed[tensor.name], tensor.name)
        if changed.get("beta_logits") is not None:
            axes = op.tensor("beta").layout(to_numpy(changed["beta_logits"], "beta_logits").ndim)
            changed["beta_logits"] = apply(changed["beta_logits"], "beta_logits", axes)
        if (gate := changed.get("gate")) is not None:
            a = apply(gate.a, op.role("decay")[0].name)
            rest = {n: x for n in ("A_log", "dt_bias") if (x := getattr(gate, n)) is not None}
            rest = {n: self.by_heads(x, n, ("HV",), change, "HV") for n, x in rest.items()}
            changed["gate"] = replace(gate, a=a, **rest)
        for name, tensor in self.paired():
            heads = tensor.axes[0].split()[2]
            conv, state = CONVS[tensor.role], (changed.get("pairing_state") or {}).get(name)
            if changed.get(conv) is not None and tensor is op.role(tensor.role)[0]:
                kinds = {"weight": (heads,), "bias": (heads,), "state": ("B", heads)}
                parts = {n: x for n in kinds if (x := getattr(changed[conv], n)) is not None}
                new = {n: self.by_heads(x, f"{conv}.{n}", kinds[n], change, heads) for n, x in parts.items()}
                changed[conv] = replace(changed[conv], **new)
            if state is not None:
                state = self.by_heads(state, name, ("B", heads), change, heads)
                changed["pairing_state"] = {**changed["pairing_state"], name: state}
        return changed

    def by_heads(
        self, x: Any, name: str, axes: tuple[str, ...], change: Callable[[Array, tuple[str, ...]], Array], heads: str
    ) -> Array:
        """An array whose axis of channels, the last of `axes`, is those of every head in turn."""
        array, at, count = to_numpy(x, name), len(axes) - 1, self.sizes[heads]
        apart = array.reshape(*array.shape[:at], count, array.shape[at] // count, *array.shape[at + 1 :])
        done = change(apart, (*axes, *["."] * (apart.ndim - len(axes))))
        return np.ascontiguousarray(done.reshape(*done.shape[:at], -1, *done.shape[at + 2 :]))

    def paired(self) -> list[tuple[str, Tensor]]:
        """The tensors that are shifted or convolved."""
        p = self.judge.problem
        return [(name, p.op.tensor(name)) for name in p.pairing]

    def before(self, t0: int, changed: dict[str, Any]) -> None:
        """What convolutions and shifts see before token t0."""
        p = self.judge.problem
        for name, tensor in self.paired():
            rule, x = p.pairing[name], p.tensors[name]
            tokens = np.concatenate([rule.past, x.reshape(len(x), self.sizes["T"], -1)[:, :t0]], axis=1)
            given = self.inputs.get(name, self.inputs.get("k"))  # tied values are keys
            past = (
                tokens[:, tokens.shape[1] - rule.past.shape[1] :].transpose(0, 2, 1).astype(to_numpy(given, name).dtype)
            )
            conv = CONVS[tensor.role]
            if rule.weight is not None:
                changed[conv] = replace(changed[conv], state=np.ascontiguousarray(past))
            else:
                changed["pairing_state"] = {**(changed.get("pairing_state") or {}), name: np.ascontiguousarray(past)}

    def tokens(self, t0: int, t1: int, state: Array | None) -> dict[str, Any]:
        """The problem's tokens t0 .. t1, from a state."""

        def cut(x: Array, axes: tuple[str, ...]) -> Array:
            for axis, letter in enumerate(axes):
                if letter in ("T", "T*n"):
                    n = x.shape[axis] // max(self.sizes["T"], 1)
                    x = np.ascontiguousarray(x.take(range(t0 * n, t1 * n), axis))
            return x

        changed = self.each(cut)
        if t0 > 0:
            self.before(t0, changed)
        if state is not None:
            changed["initial_state"] = state
        return changed

    def split(self, cuts: Sequence[int]) -> dict[str, Array]:
        """The answer in pieces, the state carried on."""
        at = [0, *cuts, self.sizes["T"]]
        state: Any = self.inputs.get("initial_state")
        pieces = []
        for t0, t1 in pairwise(at):
            got = self.run(self.tokens(t0, t1, state), t1 - t0)
            pieces.append(got["o"])
            state = got["final_state"]
        return {"o": np.concatenate(pieces, axis=1), "final_state": state}

    def disagreement(self, got: Mapping[str, Array], whole: Mapping[str, Array]) -> str:
        """Why another road's answer is not the same answer; nothing if it is."""
        found = self.judge.verdict(got, self.names)
        if found.verdict == FAIL:
            late = next((s for s in found.statistics if s.level == FAIL), None)
            if late is None:
                return found.faults[0]
            which = late.beyond()[0]
            return f"{late.view} fails its grade ({which} {late.values[which]:.3g})"
        both = {n: exact_widen(got[n], n).astype(np.float64) for n in self.names}
        for view in views(both):
            other = next(v for v in views(dict(whole)) if v.name == view.name)
            apart = ((view.values - exact_widen(other.values, view.name)) ** 2).sum(axis=-1)
            R = ratio(apart, self.judge.scale[view.name].sigma ** 2)
            if not R <= APART:
                return f"{view.name} differs from the whole call's by R {R:.3g}"
        return ""


def of_states(x: Any, change: Callable[[Array], Array]) -> Any:
    """Every initial state changed: one array, or several by their names or in order."""
    if isinstance(x, Mapping):
        return {name: of_states(y, change) for name, y in x.items()}
    if isinstance(x, tuple):
        return tuple(of_states(y, change) for y in x)
    return np.ascontiguousarray(change(to_numpy(x, "initial_state")))


def cuts_of(T: int, chunk: int, width: int = 1) -> list[int]:
    """Where calls are cut: around one token, a convolution's width, a chunk, and the end."""
    at = {1, width - 1, chunk - 1, chunk, chunk + 1, T - 1}
    return sorted(t for t in at if 0 < t < T)


def check(live: Live, op: str, inputs: Inputs, judge: Judge, outputs: Sequence[str] | None = None) -> list[Law]:
    """Every law that the candidate and the problem allow."""
    if getattr(live, "needs", lambda name: False)("do"):
        return [Law("laws", None, "the candidate cannot be called without do")]
    forward = {name: x for name, x in inputs.items() if name not in ("do", "dht")}
    trial = Trial(live, op, forward, judge, outputs)
    whole = trial.run(forward, trial.sizes["T"])
    found = []
    for name, rule in LAWS.items():
        try:
            found.append(next(iter(rule(trial, whole))))
        except MisshapenError as error:
            found.append(Law(name, False, str(error)))
        except (AdapterError, InputError) as error:
            refused = rule is poison  # who refuses NaN aloud lets none leak
            found.append(Law(name, None if refused else False, f"the call failed: {error}"))
    return found


def repeat(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    again = trial.run(trial.inputs, trial.sizes["T"])
    for name in trial.names:
        if again[name].tobytes() != whole[name].tobytes():
            yield Law("repeat", False, f"{name} has other bits the second time")
    yield Law("repeat", True, "the same bits twice")


def _cannot_be_cut(trial: Trial) -> str:
    if "final_state" not in trial.names or len(trial.names) != 2:
        return "no final_state to carry on"
    if not trial.live.takes("initial_state"):
        return "the candidate takes no initial_state"
    if trial.inputs.get("cu_seqlens") is not None:
        return "the problem is packed"
    if not trial.live.takes("pairing_state") and any(r.weight is None for r in trial.judge.problem.pairing.values()):
        return "the candidate takes no pairing_state"
    return ""


def split(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    why = _cannot_be_cut(trial)
    cuts = cuts_of(trial.sizes["T"], trial.judge.policy.chunk, trial.width)
    if why or not cuts:
        yield Law("split", None, why or "there is nothing to cut")
    for t in cuts:
        if wrong := trial.disagreement(trial.split([t]), whole):
            yield Law("split", False, f"cut after {t} of {trial.sizes['T']} tokens, {wrong}")
    yield Law("split", True, f"cut after {', '.join(map(str, cuts))}")


def decode(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    T = trial.sizes["T"]
    first = max(1, T - DECODED)
    if why := _cannot_be_cut(trial) or ("" if T > 1 else "there is one token"):
        yield Law("decode", None, why)
    got = trial.split(list(range(first, T)))
    wrong = trial.disagreement(got, whole)
    yield Law("decode", not wrong, wrong or f"the last {T - first} tokens one at a time")


def _taken(letter: str, order: Sequence[int]) -> Callable[[Array, tuple[str, ...]], Array]:
    def change(x: Array, axes: tuple[str, ...]) -> Array:
        return np.ascontiguousarray(x.take(order, axes.index(letter))) if letter in axes else x

    return change


def heads(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    H, HV = trial.sizes["H"], trial.sizes["HV"]
    group = HV // H
    if H == 1 or trial.op in BY_HEAD:
        yield Law("heads", None, "one key head, or a decay that is the head's number")
    if any("T*n" in tensor.axes[0].split() for _, tensor in trial.paired()):
        yield Law("heads", None, "a convolution whose channels are those of several entries a token")
    order = [h for h in reversed(range(H))]
    wide = [h * group + j for h in order for j in range(group)]

    def change(x: Array, axes: tuple[str, ...]) -> Array:
        return _taken("HV", wide)(_taken("H", order)(x, axes), axes)

    changed = trial.each(change)
    if changed.get("initial_state") is not None:
        changed["initial_state"] = of_states(changed["initial_state"], lambda h0: h0[:, wide])
    got = trial.run(changed, trial.sizes["T"])
    back = np.argsort(wide)
    axis = {"o": 2}
    same = {n: np.ascontiguousarray(x.take(back, axis.get(n, 1))) for n, x in got.items()}
    wrong = trial.disagreement(same, whole)
    yield Law("heads", not wrong, wrong or f"{H} key heads reversed")


BY_HEAD = ("retention", "lightning_attn")  # whose decay is the head's number


def batch(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    B = trial.sizes["B"]
    if B < 2:
        yield Law("batch", None, "one row")
    order = list(reversed(range(B)))
    changed = trial.each(_taken("B", order))
    if changed.get("initial_state") is not None:
        changed["initial_state"] = of_states(changed["initial_state"], lambda h0: h0[order])
    got = {n: np.ascontiguousarray(x[order]) for n, x in trial.run(changed, trial.sizes["T"]).items()}
    wrong = trial.disagreement(got, whole)
    yield Law("batch", not wrong, wrong or f"{B} rows reversed")


def _doubled(trial: Trial, poisoned: bool) -> dict[str, Any]:
    """Every row twice, the second ones holding NaN or the same."""

    def change(x: Array, axes: tuple[str, ...]) -> Array:
        if "B" not in axes:
            return x
        return np.concatenate([x, np.full_like(x, np.nan) if poisoned else x], axis=axes.index("B"))

    changed = trial.each(change)
    if changed.get("initial_state") is not None:
        changed["initial_state"] = of_states(
            changed["initial_state"], lambda h0: np.concatenate([h0, np.full_like(h0, np.nan) if poisoned else h0])
        )
    return changed


def poison(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    if trial.inputs.get("cu_seqlens") is not None:
        yield Law("poison", None, "the problem is packed")
    B = trial.sizes["B"]
    got = trial.run(_doubled(trial, True), trial.sizes["T"], 2 * B)
    wrong = trial.disagreement({n: np.ascontiguousarray(x[:B]) for n, x in got.items()}, whole)
    yield Law("poison", not wrong, wrong or "a row of NaN beside each row leaves it as it was")


def pack(trial: Trial, whole: Mapping[str, Array]) -> Iterator[Law]:
    B, T = trial.sizes["B"], trial.sizes["T"]
    if not trial.live.takes("cu_seqlens"):
        yield Law("pack", None, "the candidate takes no cu_seqlens")
    if trial.inputs.get("cu_seqlens") is not None:
        yield Law("pack", None, "the problem is packed")

    def change(x: Array, axes: tuple[str, ...]) -> Array:
        if axes[:1] != ("B",):
            return x
        if axes[1] not in ("T", "T*n"):
            return np.concatenate([x, x])
        return np.concatenate([x, x]).reshape(1, 2 * x.shape[0] * x.shape[1], *x.shape[2:])

    changed = trial.each(change)
    if changed.get("initial_state") is not None:
        changed["initial_state"] = of_states(changed["initial_state"], lambda h0: np.concatenate([h0, h0]))
    changed["cu_seqlens"] = np.arange(0, 2 * B * T + 1, T, dtype=np.int32)
    shapes = {n: list(trial.judge.values(n).shape) for n in trial.names}
    wanted = {n: (1, 2 * B * T, *s[2:]) if n == "o" else (2 * B, *s[1:]) for n, s in shapes.items()}
    got = trial.asked_for(changed, wanted)
    for half in range(2):
        part = {}
        for n in trial.names:
            x = got[n].reshape(2 * B, T, *got[n].shape[2:]) if n == "o" else got[n]
            part[n] = np.ascontiguousarray(x[half * B : half * B + B])
        if wrong := trial.disagreement(part, whole):
            yield Law("pack", False, f"the {'first' if half == 0 else 'second'} copy: {wrong}")
    yield Law("pack", True, f"{2 * B} sequences of {T} tokens in one row")


LAWS = {rule.__name__: rule for rule in (repeat, split, decode, heads, batch, poison, pack)}
