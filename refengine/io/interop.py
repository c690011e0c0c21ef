"""Arrays of other libraries as NumPy arrays: without losing a bit, without a copy where none is needed.

No library is imported for this: who holds a torch tensor has imported torch.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from refengine.errors import InputError


def to_numpy(x: Any, name: str) -> NDArray[Any]:
    """`x` with its own dtype: a NumPy, torch or jax array, numbers in lists, anything with `__array__` or
    `__dlpack__`."""
    try:
        array = _convert(x)
    except Exception as error:  # the libraries raise what they like
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} is a {_kind(x)} that does not convert to an array ({reason})") from error
    if array.dtype.kind not in "biufc" and not _is_ml(array.dtype):
        raise InputError(f"{name} is a {_kind(x)} that converts to dtype {array.dtype}, not to numbers")
    return array.copy() if array.size < 2 else array  # a broadcast one so small passes for contiguous, and warns


def exact_widen(x: Any, name: str) -> NDArray[Any]:
    """`x` in float64 if it is float64, else in float32, which holds every bfloat16, float16 and float8 exactly."""
    array = to_numpy(x, name)
    dtype = array.dtype.newbyteorder("=")
    if dtype == np.float64:
        return array.astype(np.float64, copy=False)
    if dtype in (np.float32, np.float16) or (_is_ml(dtype) and "float" in dtype.name):
        with np.errstate(invalid="ignore"):  # a signalling NaN may pass
            return array.astype(np.float32, copy=False)
    raise InputError(f"{name} is {dtype}; it must be a floating dtype (bfloat16, float16, float8, float32, float64).")


def _convert(x: Any) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    if isinstance(x, getattr(torch, "Tensor", ())):
        return _from_torch(x, torch)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("a mask has no meaning here; fill it first")
    if hasattr(x, "__cuda_array_interface__") and not hasattr(x, "__array__") and not hasattr(x, "__dlpack__"):
        return _from_cuda(x)
    if not hasattr(x, "__dlpack__"):
        array = np.asarray(x)
        _check_integers(x, array)
        return array
    if hasattr(x, "__array__"):
        with contextlib.suppress(TypeError):  # what lies on another device refuses this road, not the next
            return np.asarray(x)
    if hasattr(x, "__cuda_array_interface__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError, BufferError):  # DLPack before 1.0 copies nothing
            return np.from_dlpack(x, device="cpu")
        return _from_cuda(x)
    return np.from_dlpack(x, device="cpu")


def _from_torch(x: Any, torch: Any) -> NDArray[Any]:
    """torch gives NumPy no bfloat16 and no float8: their bits go over as integers of the same size."""
    format_name = str(x.dtype).removeprefix("torch.")
    if not format_name.startswith(("bfloat16", "float8")):
        plain: NDArray[Any] = x.numpy(force=True)
        return plain
    bits = torch.int16 if x.element_size() == 2 else torch.uint8
    carried: NDArray[Any] = x.view(bits).numpy(force=True)
    return carried.view(getattr(ml_dtypes, format_name))


def _from_cuda(x: Any) -> NDArray[Any]:
    """An array on a GPU that says only where it lies."""
    from refengine.kernels.cuda._device import to_host

    return to_host(x)


def _check_integers(x: Any, array: NDArray[Any]) -> None:
    """NumPy rounds whole numbers above 2^53 when a list also holds a float, or a negative with one above 2^63."""
    if isinstance(x, list | tuple) and array.dtype == np.float64:
        for given, got in zip(np.array(x, dtype=object).flat, array.flat, strict=True):
            if isinstance(given, int) and given != float(got):
                raise ValueError(f"{given} would be rounded to {got}")


def _is_ml(dtype: np.dtype[Any]) -> bool:
    return dtype.type.__module__ == "ml_dtypes"


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
