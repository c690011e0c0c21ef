"""What any argument must be, each refusal one sentence that names the tensor, the axis and both numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import InputError, nearest
from ..frontend.pairing import Segment
from ..io.interop import exact_widen, to_numpy
from ..spec import Op, Option, Tensor
from .axes import Sizes, shape_text


def room(what: str, numbers: int, given: Collection[NDArray[Any]], times: int) -> None:
    """Refuse what is out of all proportion to the input: a few bytes can claim any number of heads, or any shift."""
    needed, most = 8 * numbers, (1 << 26) + times * sum(x.nbytes for x in given)
    if needed > most:
        raise InputError(
            f"{what} would take {needed / 2**30:.1f} GiB for inputs of {sum(x.nbytes for x in given)} bytes; "
            f"the most is {most / 2**30:.1f} GiB."
        )


def one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise InputError(f"There is no {what} {value!r}{nearest(str(value), known)}.")
    return value


def whole(what: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{what} is {value!r}; it is a whole number of at least {least}.")
    return int(value)


def finite(what: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{what} is {value!r}; it is a number.") from None
    if not np.isfinite(number):
        raise InputError(f"{what} is {number}; it must be finite.")
    return number


def floats(name: str, value: Any, allow_nonfinite: bool) -> NDArray[Any]:
    """Any array as float32 or float64, losing nothing."""
    array = exact_widen(to_numpy(value, name), name)
    with np.errstate(all="ignore"):
        total = np.einsum("i->", array.ravel("K"))  # finite only if every entry is; half the time of `sum`
    if not allow_nonfinite and not np.isfinite(total) and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))
        at = ", ".join(str(int(i)) for i in where[0])
        raise InputError(
            f"{name} holds {len(where)} values that are NaN or infinite, the first at [{at}]; allow them with "
            "allow_nonfinite=True (--set allow_nonfinite=true)."
        )
    return array


def fit(name: str, array: NDArray[Any], shape: tuple[int, ...], meaning: str) -> NDArray[np.float64]:
    """An array that must have one shape, or as many numbers in that order."""
    if (
        array.shape != shape
        and (array.ndim == 1 or array.ndim >= len(shape))
        and array.size == int(np.prod(shape))
        and array.shape[-1] == (shape[-1] if array.ndim > 1 else array.size)
    ):
        array = array.reshape(shape)
    if array.shape != shape:
        axes = [i for i, n in enumerate(shape) if array.ndim == len(shape) and array.shape[i] != n]
        first = f", {array.shape[axes[0]]} on axis {axes[0]} where {shape[axes[0]]} belong" if axes else ""
        raise InputError(f"{name} has shape {shape_text(array)}{first}; it is {meaning} = {list(shape)}.")
    return np.ascontiguousarray(array, dtype=np.float64)


def offsets(cu_seqlens: Any, sizes: Sizes) -> tuple[Segment, ...]:
    """The sequences as (row, first token, one past the last)."""
    B, T = sizes["B"], sizes["T"]
    if cu_seqlens is None:
        return tuple((b, 0, T) for b in range(B))
    cu = to_numpy(cu_seqlens, "cu_seqlens")
    if cu.dtype.kind not in "iu":
        raise InputError(f"cu_seqlens is {cu.dtype}; it must be an integer dtype (int32, int64).")
    if cu.ndim != 1 or cu.size < 2:
        raise InputError(f"cu_seqlens has shape {shape_text(cu)}; it is one axis of N + 1 offsets, at least 2.")
    if B != 1:
        raise InputError(
            f"cu_seqlens packs sequences into one row, but {sizes.said['B']} has {B} rows (axis 0, B); it must have 1."
        )
    at = [int(x) for x in cu]
    if at[0] != 0:
        raise InputError(f"cu_seqlens starts at {at[0]}; it must start at 0.")
    for n, (left, right) in enumerate(pairwise(at)):
        if right < left:
            raise InputError(f"cu_seqlens falls from {left} to {right} at entry {n + 1}; offsets never fall.")
    if at[-1] != T:
        raise InputError(f"cu_seqlens ends at {at[-1]}, but {sizes.said['T']} has {T} tokens; it must end there.")
    return tuple((0, left, right) for left, right in pairwise(at))


def integers(name: str, value: Any) -> NDArray[np.int64]:
    array = to_numpy(value, name)
    if array.dtype.kind not in "iub":
        raise InputError(f"{name} is {array.dtype}; it must be an integer dtype (int32, int64).")
    return array.astype(np.int64)


def schedule(rows: NDArray[np.int64], segments: tuple[Segment, ...], states_at: tuple[int, ...]) -> None:
    """A list of mini-batches (first token, one past the last, update, apply): every token is applied once and in
    order, and trained on at most once."""
    if rows.shape[1] != 4:
        raise InputError(f"schedule has {rows.shape[1]} columns (axis 1); they are 4: start, end, update, apply.")
    if states_at:
        raise InputError("states_at and a schedule are both given; a schedule has no state after so many tokens.")
    lengths = sorted({t1 - t0 for _, t0, t1 in segments})
    if len(lengths) > 1:
        raise InputError(f"schedule is one for all sequences, but they have {lengths[0]} to {lengths[-1]} tokens.")
    T = lengths[0] if lengths else 0
    for i, (a, b, _, _) in enumerate(rows.tolist()):
        if not 0 <= a < b <= T:
            raise InputError(f"schedule has tokens {a} to {b} in row {i}; a row has at least 1, of 0 to {T}.")
    applied = [(a, b) for a, b, _, use in rows.tolist() if use]
    trained = sorted((a, b) for a, b, use, _ in rows.tolist() if use)
    for what, spans, whole in (("applies", applied, True), ("updates on", trained, False)):
        at = 0
        for a, b in spans:
            if a < at:
                raise InputError(f"schedule overlaps: it {what} token {a} again, after tokens up to {at}.")
            if whole and a > at:
                raise InputError(f"schedule has a gap: it {what} token {a} next, but tokens up to {at} are done.")
            at = b
        if whole and at != T:
            raise InputError(f"schedule {what} {at} tokens, but there are {T}.")


def option(name: str, rule: Option, value: Any) -> Any:
    """One of an op's own options, of its default's type."""
    default = rule.default
    if isinstance(default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(f"{name} is {value!r}; it is True or False.")
        return bool(value)
    if isinstance(default, str):
        return one_of(name, value, rule.choices)
    if isinstance(default, int):
        return whole(name, value, int(rule.least))
    number = finite(name, value)
    if number is None or number < rule.least:
        raise InputError(f"{name} is {value!r}; it is a number of at least {rule.least:g}.")
    return number


def chosen(op: Op, given: Mapping[str, Any]) -> tuple[Op, dict[str, Any]]:
    """The op's own options among `given`, with its defaults, and the op that they make."""
    options = {name: option(name, rule, given.get(name, rule.default)) for name, rule in op.options.items()}
    for name, rule in op.options.items():
        if rule.goes_with and options[name] != rule.default and options[rule.goes_with[0]] not in rule.goes_with[1]:
            other, users = rule.goes_with
            raise InputError(
                f"{name} {options[name]} does not go with {other} {options[other]}: it is of {other} "
                f"{' or '.join(map(str, users))}."
            )
    return op if op.compose is None else op.compose(**options), options


def unused(op: Op, options: Mapping[str, Any], name: str) -> str:
    """Why another of an op's tensors is none with these options, if it is one: which of them it goes with."""
    whole = {t.name: t.doc for t in ops.get(op.name).inputs}
    if op.compose is None or name not in whole:
        return ""

    def takes(changed: str, to: Any) -> bool:
        assert op.compose is not None
        try:
            return any(t.name == name for t in op.compose(**{**options, changed: to}).inputs)
        except InputError:
            return False

    for option, rule in op.options.items():
        takers = [x for x in rule.choices if takes(option, x)]
        if takers:
            return f" with {option} {options[option]}; it goes with {option} {' or '.join(takers)}"
    return f" with these options; it is: {whole[name]}"


def states(
    op: Op, value: Any, sizes: Sizes, allow_nonfinite: bool, tensors: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any] | None, ...]:
    """The initial state of each of the op's memories: as given, or else the input of that name, or None for zeros. A
    new axis letter is bound by it."""
    return tuple(
        np.broadcast_to(tensors[t.name], (sizes["N"], *tensors[t.name].shape)) if x is None and t.name in tensors else x
        for t, x in zip(op.states, given_states(op, value, sizes, allow_nonfinite), strict=True)
    )


def given_states(op: Op, value: Any, sizes: Sizes, allow_nonfinite: bool) -> tuple[NDArray[Any] | None, ...]:
    """The initial states that were given."""
    needed = [t.name for t in op.states if t.required]
    if value is None and needed:
        raise InputError(f"{op.name} needs initial_state ({', '.join(needed)}): a memory of zeros learns nothing.")
    if value is None:
        return (None,) * len(op.states)
    names = [f"initial_state.{t.name}" for t in op.states] if len(op.states) != 1 else ["initial_state"]
    if len(op.states) == 1:
        given = [value]
    elif isinstance(value, Mapping):
        known = [t.name for t in op.states]
        for name in value:
            if name not in known:
                raise InputError(f"{op.name} has no state {name!r}{nearest(str(name), known)}.")
        given = [value.get(name) for name in known]
    else:
        given = list(value) if isinstance(value, (tuple, list)) else [value]
        if len(given) != len(op.states):
            wanted = ", ".join(t.name for t in op.states) or "nothing"
            raise InputError(f"initial_state has {len(given)} parts; {op.name} carries {len(op.states)} ({wanted}).")
    for t, x in zip(op.states, given, strict=True):
        if x is None and t.required:
            raise InputError(f"{op.name} needs initial_state.{t.name} [{', '.join(t.axes[0].split())}] ({t.doc}).")
    return tuple(
        None if x is None else state(name, t, x, sizes, allow_nonfinite)
        for name, t, x in zip(names, op.states, given, strict=True)
    )


def state(name: str, tensor: Tensor, value: Any, sizes: Sizes, allow_nonfinite: bool) -> NDArray[Any]:
    """One memory at its start, with an axis for the sequences."""
    x = floats(name, value, allow_nonfinite)
    layout = tensor.layout(x.ndim)
    if layout is None:
        axes = tensor.axes[0].split()
        wanted = [sizes.get(a, a) for a in axes]
        raise InputError(f"{name} has {x.ndim} axes {shape_text(x)}; it is [{', '.join(axes)}] = {wanted}.")
    wanted = [sizes.get(a, n) for a, n in zip(layout, x.shape, strict=True)]
    for axis, (letter, have, want) in enumerate(zip(layout, x.shape, wanted, strict=True)):
        if have != want:
            swapped = list(x.shape) == [*wanted[:-2], wanted[-1], wanted[-2]]
            hint = f" (it looks transposed: the layout is [{', '.join(layout)}])" if swapped else ""
            raise InputError(f"{name} has {have} on axis {axis} ({letter}), but the problem has {want}{hint}.")
        sizes.setdefault(letter, have)
    return x if layout[0] == "N" else np.broadcast_to(x, (sizes["N"], *x.shape))


def stops(states_at: Sequence[int] | None, segments: tuple[Segment, ...]) -> tuple[int, ...]:
    """After how many tokens of each sequence the state is wanted."""
    if states_at is None:
        return ()
    wanted = tuple(whole("states_at", t, 0) for t in np.atleast_1d(np.asarray(states_at)).tolist())
    for t in wanted:
        for n, (_, t0, t1) in enumerate(segments):
            if t > t1 - t0:
                raise InputError(f"states_at asks for the state after {t} tokens, but sequence {n} has {t1 - t0}.")
    return wanted
