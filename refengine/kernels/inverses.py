"""Two ways to (I + A)^-1 of a chunk whose own precision is too low, A strictly lower triangular: by squares, and by
blocks. Both are exact where nothing is rounded; A, T and B are flat rows of Cp numbers, T zero beforehand."""

from __future__ import annotations

import numpy as np

from ._jit import part
from .rounding import rounded

BLOCK = 16  # rows whose inverse is found by substitution


@part
def by_squares(A, T, B, F, n, Cp, form, zero):
    """T = (I + B)(I + B^2)(I + B^4) ..., B = -A: factors and products in `form`."""
    for i in range(n):
        row = i * Cp
        for j in range(i):
            B[row + j] = rounded(-A[row + j], zero, form, False)
            T[row + j] = B[row + j]
        T[row + i] = zero + np.float32(1)
    power = 2
    while power < n:
        for i in range(n - 1, -1, -1):  # a row of the square needs those before it as they were
            row = i * Cp
            for j in range(i):
                F[j] = zero
                for m in range(j + 1, i):
                    F[j] += B[row + m] * B[m * Cp + j]
            for j in range(i):
                B[row + j] = rounded(F[j], zero, form, False)
        for i in range(n):
            row = i * Cp
            for j in range(i):
                F[j] = T[row + j]
                for m in range(j + 1, i + 1):
                    F[j] += T[row + m] * B[m * Cp + j]
            for j in range(i):
                T[row + j] = rounded(F[j], zero, form, False)
        power *= 2


@part
def by_blocks(A, T, F, n, Cp, form, zero):
    """T_ij = -T_ii (sum over blocks m < i of A_im T_mj): what is multiplied in `form`."""
    for first in range(0, n, BLOCK):
        end = min(first + BLOCK, n)
        for i in range(first, end):
            T[i * Cp + i] = zero + np.float32(1)
            for j in range(first, i):
                total = zero
                for m in range(j, i):
                    total -= A[i * Cp + m] * T[m * Cp + j]
                T[i * Cp + j] = total
        for j in range(first):
            for i in range(first, end):
                total = zero
                for m in range(j, first):
                    x = rounded(T[m * Cp + j], zero, form, False)
                    total += rounded(A[i * Cp + m], zero, form, False) * x
                F[i - first] = rounded(total, zero, form, False)
            for i in range(first, end):
                total = zero
                for l in range(first, i + 1):
                    total -= rounded(T[i * Cp + l], zero, form, False) * F[l - first]
                T[i * Cp + j] = total
