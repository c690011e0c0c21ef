"""The short convolution on a GPU: what frontend/pairing.py calls in place of the CPU's kernel, with its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.conv import U
from ..kernels.cuda import _device
from ..kernels.cuda import conv as kernel
from ..kernels.cuda._jit import cuda, ready
from .delta_cuda import SHARE, halving

Array = NDArray[Any]


def short_conv(
    x: Array, w: Array, bias: Array, silu: bool, residual: bool, y: Array, error: Array, scratch: Array
) -> None:
    """`kernels.conv.short_conv`, by windows of tokens that fit the device's memory; `scratch` is not needed."""
    T, C = y.shape
    each = 8 * (2 * C + error.shape[1])
    window = max(1, min(T, int(SHARE * _device.free()) // each - len(w)))

    def attempt(tokens: int) -> None:
        for low in range(0, T, tokens):
            high = min(low + tokens, T)
            through(x[low : high + len(w) - 1], w, bias, silu, residual, y[low:high], error[low:high])

    halving(window, attempt, lambda: f"one token's convolution: {each * len(w)} bytes needed")


def through(x: Array, w: Array, bias: Array, silu: bool, residual: bool, y: Array, error: Array) -> None:
    """One window, which begins W - 1 tokens early."""
    stream = cuda.stream()
    given = [cuda.to_device(np.ascontiguousarray(a, np.float64), stream=stream) for a in (x, w, bias)]
    found, off = (cuda.device_array(a.shape, np.float64, stream=stream) for a in (y, error))
    rounding, floor = (len(w) + 2) * U * (1.0 + 1e-9), y.shape[1] // error.shape[1] * 2.0**-536
    grid = (-(-len(y) // kernel.THREADS), error.shape[1], 1)
    ready(kernel.short_conv(silu, residual), grid, kernel.THREADS, stream)(*given, rounding, floor, found, off)
    y[...], error[...] = found.copy_to_host(stream=stream), off.copy_to_host(stream=stream)
