"""The exact learner's job with a GPU: every token's system is built and solved there, a factorisation a block; what is
read and the bound, which needs the residual, stay here, with the CPU's own code."""

from __future__ import annotations

from dataclasses import asdict
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RefengineError, UnavailableError
from ..kernels import mesa as cpu
from ..kernels.cuda import _device
from ..kernels.cuda import mesa as kernel
from ..kernels.cuda._jit import cuda, kind_of, ready
from ..spec import Mesa
from . import mesa
from .delta_cuda import SHARE, DevicePlan, halving
from .problem import Problem

WINDOW = 1024  # tokens whose systems are in the device's memory at a time, at the most
Array = NDArray[Any]


def refusal(x: Mesa) -> RefengineError | None:
    """Why a problem cannot run on this machine's GPU."""
    K = x.k.value.shape[3]
    if K > kernel.MAX_K:
        return InputError(f"device 'cuda' takes at most {kernel.MAX_K} key channels, and k has K = {K}.")
    if x.share:
        return InputError("device 'cuda' has no kernel for a ridge that grows with the memory yet.")
    if x.solver != "exact":
        return InputError(f"device 'cuda' has no kernel for solver {x.solver!r} yet; it has 'exact'.")
    why = _device.refusal()
    return None if why is None else UnavailableError(why)


class Job(mesa.Job):
    """The CPU's job, with the systems solved elsewhere."""

    def __init__(self, p: Problem, x: Mesa, threads: int | None) -> None:
        super().__init__(p, x, threads)
        self.turn = Lock()  # one task fills the device, and its memory is one
        self.window, self.notes = WINDOW, [f"what is read, and the bound, on {self.plan.threads} threads of the CPU"]
        cut = f"a factorisation a block of {kernel.threads(self.K)} threads"
        self.plan = DevicePlan(**asdict(self.plan), device=_device.name(), cut=cut, notes=self.notes)

    def advance(self, where: tuple[int, ...], given: tuple[Any, ...], memory: tuple[Array, ...], bound: Array) -> None:
        _, t0, t1 = where
        solved = np.empty((t1 - t0, self.K), self.dtype)
        if t1 > t0:
            with self.turn:
                self.solve(where, given, memory[0], solved)
        cpu.run(where, *given, memory, self.o, bound, self.scratch(), solved)

    def solve(self, where: tuple[int, ...], given: tuple[Any, ...], H: Array, solved: Array) -> None:
        """Every token's solution, by windows that fit the device's memory."""
        each = 2 * self.K**2 * self.dtype.itemsize
        while self.window > 1 and self.window * each > SHARE * _device.free():
            self.window = -(-self.window // 2)
        self.window = window = halving(
            self.window,
            lambda tokens: self.through(where, given, H, solved, tokens),
            lambda: f"one token's system: {each} bytes needed",
        )
        note = f"windows of {window} tokens, as the device's memory allows"
        if window < min(WINDOW, len(solved)) and note not in self.notes:
            self.notes.append(note)

    def through(self, where: tuple[int, ...], given: tuple[Any, ...], H: Array, solved: Array, window: int) -> None:
        """The memory of pairs token by token, and a system for each."""
        row, t0, t1 = where
        hq, hk, _, hb, ha, _ = given[0]
        q, k, _, b, a, _ = self.arrays
        stream, kind, K = cuda.stream(), kind_of(self.dtype), self.K
        of_keys = cuda.to_device(np.ascontiguousarray(H[:, :K].T), stream=stream)
        ridge = cuda.to_device(np.ascontiguousarray(given[3][0][:, 0]), stream=stream)
        for low in range(t0, t1, window):
            high = min(low + window, t1)
            keys, queries, weights, decays = (
                cuda.to_device(np.ascontiguousarray(x, self.dtype), stream=stream)
                for x in (k[row, low:high, hk], q[row, low:high, hq], b[row, low:high, hb, 0], a[row, low:high, ha, 0])
            )
            A, F = (cuda.device_array((high - low, K, K), self.dtype, stream=stream) for _ in range(2))
            x = cuda.device_array((high - low, K), self.dtype, stream=stream)
            blocks = -(-K * K // kernel.THREADS)
            ready(kernel.advance(kind), (blocks, 1, 1), kernel.THREADS, stream)(
                keys, weights, decays, ridge, of_keys, A
            )
            ready(kernel.solve(K, kind), (high - low, 1, 1), kernel.threads(K), stream)(A, queries, F, x)
            found = x.copy_to_host(stream=stream)
            stream.synchronize()
            solved[low - t0 : high - t0] = found
