"""What any argument must be, each refusal one sentence that names the tensor, the axis and both numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, nearest
from ..frontend.pairing import Segment
from ..io.interop import exact_widen, to_numpy
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
        total = array.sum(dtype=np.float64)  # finite only if every entry is
    if not allow_nonfinite and not np.isfinite(total) and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))
        at = ", ".join(str(int(i)) for i in where[0])
        raise InputError(
            f"{name} holds {len(where)} values that are NaN or infinite, the first at [{at}]; allow them with "
            "--allow-nonfinite (allow_nonfinite=True)."
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
        raise InputError(f"{name} has shape {shape_text(array)}; it is {meaning} = {list(shape)}.")
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


def state(value: Any, sizes: Sizes, count: int, allow_nonfinite: bool) -> NDArray[Any] | None:
    if value is None:
        return None
    h0 = floats("initial_state", value, allow_nonfinite)
    wanted = (count, sizes["HV"], sizes["K"], sizes["V"])
    if h0.ndim != 4:
        raise InputError(f"initial_state has {h0.ndim} axes {shape_text(h0)}; it is [N, HV, K, V] = {list(wanted)}.")
    for axis, (letter, have, want) in enumerate(zip(("N", "HV", "K", "V"), h0.shape, wanted, strict=True)):
        if have != want:
            swapped = (
                " (it looks transposed: the layout is [N, HV, K, V])"
                if h0.shape == (*wanted[:2], wanted[3], wanted[2])
                else ""
            )
            raise InputError(
                f"initial_state has {have} on axis {axis} ({letter}), but the problem has {want}{swapped}."
            )
    return h0


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
