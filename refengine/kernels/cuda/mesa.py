"""The exact learner's systems on a GPU: the memory of pairs token by token, and a factorisation a block, in the order
of kernels/mesa.py and kernels/spd.py, so with their bits. What is read and the bound are the CPU's.

Of one head and a window of tokens: keys [T, K], weights b and decays [T], ridge [K]; H [K, K] by columns, of which the
lower triangle alone is computed; A and F [T, K, K] likewise, F with 1 / L_ii on its diagonal.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ._jit import cuda, fma, jit, sqrt

THREADS = 128
PANEL = 8  # columns of a factor that go together: their sums are in registers
MAX_K = 256


@cache
def advance(kind: Any) -> Any:
    """H <- a H + (b k) k', and A = H + diag(ridge) after every token; a thread is an entry.

    Grid (ceil(K K / THREADS), 1, 1), blocks of THREADS threads.
    """

    @jit(THREADS, 1)
    def kernel(keys, weights, decays, ridge, H, A):
        T, K = keys.shape
        e = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        j = e // K
        i = e - j * K
        if j <= i and j < K:
            h = H[j, i]
            for t in range(T):
                h = fma(weights[t] * keys[t, i], keys[t, j], decays[t] * h)
                A[t, j, i] = h + ridge[i] if i == j else h
            H[j, i] = h

    return kernel


def threads(K: int) -> int:
    """Of a block that solves a system of order K, a thread a row."""
    return -(-K // 32) * 32


@cache
def solve(K: int, kind: Any) -> Any:
    """x = A^-1 q by Cholesky: each entry of the factor and of x is one chain over columns, in their order.

    Grid (T, 1, 1), blocks of `threads(K)` threads. queries and x [T, K].
    """
    zero, one = kind(0), kind(1)
    width = threads(K)

    @jit(width, 1)
    def kernel(A, queries, F, x):
        above = cuda.shared.array((K, PANEL), kind)  # of the panel's own rows, what lies left of it
        inside = cuda.shared.array(PANEL, kind)
        solved = cuda.shared.array(K, kind)
        sums = cuda.local.array(PANEL, kind)
        t = cuda.blockIdx.x
        i = cuda.threadIdx.x
        for left in range(0, K, PANEL):
            for e in range(i, left * PANEL, width):
                k = e // PANEL
                c = e - k * PANEL
                if left + c < K:
                    above[k, c] = F[t, k, left + c]
            for c in range(PANEL):
                sums[c] = A[t, left + c, i] if left + c <= i and i < K else zero
            cuda.syncthreads()
            if left <= i and i < K:
                for k in range(left):
                    f = -F[t, k, i]
                    for c in range(PANEL):
                        sums[c] = fma(f, above[k, c], sums[c])
            for c in range(PANEL):
                if i == left + c and i < K:
                    sums[c] = one / sqrt(sums[c])
                    inside[c] = sums[c]
                    F[t, left + c, i] = sums[c]
                cuda.syncthreads()
                if i > left + c and i < K:
                    sums[c] = sums[c] * inside[c]
                    F[t, left + c, i] = sums[c]
                cuda.syncthreads()
                if left + c < i and i < left + PANEL:
                    inside[i - left] = sums[c]
                cuda.syncthreads()
                for later in range(PANEL):
                    if later > c and left + later <= i and i < K:
                        sums[later] = fma(-sums[c], inside[later], sums[later])
                cuda.syncthreads()
        r = queries[t, i] if i < K else zero
        for k in range(K):
            if i == k:
                r = r * F[t, k, k]
                solved[k] = r
            cuda.syncthreads()
            if k < i and i < K:
                r = fma(F[t, k, i], -solved[k], r)
        for back in range(K):
            k = K - 1 - back
            if i == k:
                r = r * F[t, k, k]
                solved[k] = r
            cuda.syncthreads()
            if i < k:
                r = fma(F[t, i, k], -solved[k], r)
        if i < K:
            x[t, i] = r

    return kernel


__all__ = ["MAX_K", "THREADS", "advance", "solve", "threads"]
