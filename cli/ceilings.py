"""What this machine can do at most, measured in the moment of what is measured against it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np

from refengine.kernels import machine
from refengine.kernels._simd import BYTES

BURST, BURSTS = 300_000, 8  # links of every chain in one burst, a millisecond or so


def ceiling(kind: Any, threads: int) -> float:
    """Operations a second of independent fused multiply-adds on so many threads.

    All start together and each times itself, burst by burst; a thread's rate is that of its best burst, and the rates
    are added. What starts a thread, or takes its core away for a while, is not in it.
    """
    x, together = kind(0.5), Barrier(threads)
    operations: float = 2.0 * BURST * machine.CHAINS * (BYTES // np.dtype(kind).itemsize)

    def rate(_: int) -> float:
        together.wait()
        return operations / min(seconds(machine.fused, BURST, x) for _ in range(BURSTS))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(rate, range(threads)))


def bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that one core reads from memory."""
    x = np.ones(megabytes << 17)
    return float(x.nbytes / seconds(machine.read, x, BYTES // 8))


def seconds(call: Any, *arguments: Any, **named: Any) -> float:
    """How long a call takes."""
    clock = time.perf_counter()
    call(*arguments, **named)
    return time.perf_counter() - clock
