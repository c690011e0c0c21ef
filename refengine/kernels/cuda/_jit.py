"""The door to numba.cuda: what compiles a kernel, and the operations whose meaning on a GPU must be spelled.

NVVM contracts a product that feeds a sum, and numba-cuda has no switch for it: a kernel here fuses by `fma` where the
definition fuses, and rounds by `product` what else feeds a sum. The simulator (NUMBA_ENABLE_CUDASIM=1) has no shuffle,
its `cuda.fma` rounds twice and its libdevice returns nothing, so each operation has a second meaning there, in exact
IEEE arithmetic. Importing this raises `UnavailableError` where numba-cuda is missing.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numba
import numpy as np

from ...errors import UnavailableError
from .. import _jit, _simd

if find_spec("numba_cuda") is None:
    raise UnavailableError("device 'cuda' needs numba-cuda, which is not installed: pip install 'refengine[cuda]'.")

from numba import cuda

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
LANES = 4  # threads of one value column, a segment of rows each
COLUMNS = 4 if SIMULATED else 32  # value columns of one block; a simulated thread is a Python thread
ALIGNMENT = None if SIMULATED else 16  # bytes, of a shared array; the simulator knows none
EVERY_LANE = 0xFFFFFFFF
small: Any = np.int32  # of counters within a block: numba's own take two registers each
natural: Any = np.uint64  # of an index that is never counted from the end, which numba looks at each time


def kind_of(dtype: np.dtype[Any]) -> Any:
    """numba's name of a float type, which a kernel calls to make a number of it."""
    return numba.from_dtype(dtype)


def jit(threads: int, blocks: int) -> Callable[[Callable[..., Any]], Any]:
    """Compile a kernel for blocks of `threads`, of which `blocks` or more shall fit one multiprocessor. It is optimised
    when it is linked: linked from finished code, a shuffle is a call on what is older than Hopper, and spills."""
    return cuda.jit if SIMULATED else cuda.jit(launch_bounds=(threads, blocks), lto=True)  # type: ignore[no-any-return]


def part(function: Callable[..., Any]) -> Any:
    """A piece of a kernel, which becomes its callers' code."""
    options = {} if SIMULATED else {"forceinline": True}
    return cuda.jit(device=True, **options)(function)


def ready(kernel: Any, grid: tuple[int, int, int], threads: int, stream: Any) -> Any:
    """The kernel, to be called; that a small problem leaves the GPU idle is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kernel[grid, threads, stream]


if SIMULATED:

    @_jit.njit
    def _fma(x, y, z):
        return _simd.fma(x, y, z)

    def fma(x, y, z):
        return type(z)(_fma(x, y, z))

    def product(x, y):
        return x * y

    def sqrt(x):
        return np.sqrt(x)

    def maximum(x, y):
        return x if x >= y or x != x else y

    def minimum(x, y):
        return x if x <= y or x != x else y

    def fence():
        pass

    def power_of_two(x):
        return ((np.float64(x).view(np.int64) << 52) + (1023 << 52)).view(np.float64)

    _said: dict[tuple[int, int], Any] = {}  # by turn and thread; the simulator runs one block at a time

    def shfl_xor_sync(members, x, mask):
        here: Any = threading.current_thread()
        here.turn = 1 - getattr(here, "turn", 0)  # what was said last is still being read
        _said[here.turn, here.threadIdx.x] = x
        here.syncthreads()
        return _said[here.turn, here.threadIdx.x ^ mask]

else:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.cuda.extending import intrinsic

    shfl_xor_sync = cuda.shfl_xor_sync

    def _call(name: str, **suffixes: str) -> Any:
        """Code that calls the NVVM function of this name and its suffix by type."""

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            number = context.get_value_type(sig.return_type)
            full = f"llvm.{name}.{suffixes[str(number)]}"
            signature = ir.FunctionType(number, [number] * len(args))
            return builder.call(cgutils.get_or_insert_function(builder.module, signature, full), args)

        return code

    def _choose(comparison: str) -> Any:
        """Code that takes x where it compares so to y or is NaN."""

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, y = args
            first = builder.or_(builder.fcmp_ordered(comparison, x, y), builder.fcmp_unordered("uno", x, x))
            return builder.select(first, x, y)

        return code

    @intrinsic
    def fence(typing):
        """The threads of a warp wait for one another, and no load of what follows is moved before."""

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            mask = ir.IntType(32)
            signature = ir.FunctionType(ir.VoidType(), [mask])
            builder.call(
                cgutils.get_or_insert_function(builder.module, signature, "llvm.nvvm.bar.warp.sync"), [mask(EVERY_LANE)]
            )
            return context.get_dummy_value()

        return numba.types.none(), code

    @intrinsic
    def power_of_two(typing, shifted):
        """2^n from n + 1.5 * 2^52, as on the CPU."""

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            word = ir.IntType(64)
            bits = builder.shl(builder.bitcast(args[0], word), word(52))
            return builder.bitcast(builder.add(bits, word(1023 << 52)), ir.DoubleType())

        return shifted(shifted), code

    @intrinsic
    def fma(typing, x, y, z):
        """x y + z, rounded once."""
        return x(x, x, x), _call("fma", float="f32", double="f64")

    @intrinsic
    def product(typing, x, y):
        """x y, rounded, whatever it feeds."""
        return x(x, x), _call("nvvm.mul.rn", float="f", double="d")

    @intrinsic
    def sqrt(typing, x):
        """Correctly rounded."""
        return x(x), _call("nvvm.sqrt.rn", float="f", double="d")

    @intrinsic
    def maximum(typing, x, y):
        """The larger; NaN if either is."""
        return x(x, x), _choose(">=")

    @intrinsic
    def minimum(typing, x, y):
        """The smaller; NaN if either is."""
        return x(x, x), _choose("<=")


__all__ = [
    "ALIGNMENT",
    "COLUMNS",
    "EVERY_LANE",
    "LANES",
    "SIMULATED",
    "cuda",
    "fence",
    "fma",
    "jit",
    "kind_of",
    "maximum",
    "minimum",
    "natural",
    "part",
    "power_of_two",
    "product",
    "ready",
    "shfl_xor_sync",
    "small",
    "sqrt",
]
