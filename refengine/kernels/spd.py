"""Symmetric positive definite systems, one in each lane: A x = y by Cholesky, by conjugate gradients, by Chebyshev's
iteration.

A lane is a system of its own, and nothing is added across lanes: its bits depend neither on its neighbours nor on how
many there are. A block of BLOCK bytes holds one number of each system.

The lower triangle of A lies in panels of four rows, its order n rounded up to a multiple of four (the rows beyond are
those of the identity). Panel I holds rows 4 I .. 4 I + 3, its entries [column 0 .. 4 I + 3][row][lane]; the factor L of
A = L L' likewise, with 1 / L_ii on its diagonal. Vectors are [n][lane].

Order of operations: every entry of L, y and x is one chain of fused multiply-adds, over columns from the first to the
last (in the back substitution from the last to the first), times 1 / L_ii; a dot product is four chains, of the rows
4 i + r for r = 0 .. 3, added as (0 + 1) + (2 + 3).
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit
from ._simd import BLOCK, block, fma, negative, spread, sqrt, store


def lanes(dtype: np.dtype) -> int:
    """Systems solved at once."""
    return BLOCK // dtype.itemsize


def panels(n: int, count: int) -> int:
    """Numbers in the panels of `count` systems of order n, with room for what `turn` puts beyond the last row."""
    rows = -(-n // 4)
    return 8 * count * rows * (rows + 1) + 4 * count * count


@inline
def place(i, j, L):
    """Where entry (i, j) of the lower triangle lies."""
    return 8 * L * (i // 4) * (i // 4 + 1) + (4 * j + i % 4) * L


@inline
def tile(A, base, L):
    """Four rows and four columns."""
    a00, a10, a20, a30 = block(A, base), block(A, base + L), block(A, base + 2 * L), block(A, base + 3 * L)
    base += 4 * L
    a01, a11, a21, a31 = block(A, base), block(A, base + L), block(A, base + 2 * L), block(A, base + 3 * L)
    base += 4 * L
    a02, a12, a22, a32 = block(A, base), block(A, base + L), block(A, base + 2 * L), block(A, base + 3 * L)
    base += 4 * L
    a03, a13, a23, a33 = block(A, base), block(A, base + L), block(A, base + 2 * L), block(A, base + 3 * L)
    return a00, a01, a02, a03, a10, a11, a12, a13, a20, a21, a22, a23, a30, a31, a32, a33


@inline
def less(F, i, j, count, a, L):
    """A tile minus sum over k < count of L_ik L_jk, its panels at i and j."""
    a00, a01, a02, a03, a10, a11, a12, a13, a20, a21, a22, a23, a30, a31, a32, a33 = a
    for _ in range(count):
        b0, b1, b2, b3 = block(F, j), block(F, j + L), block(F, j + 2 * L), block(F, j + 3 * L)
        t = negative(block(F, i))
        a00, a01, a02, a03 = fma(t, b0, a00), fma(t, b1, a01), fma(t, b2, a02), fma(t, b3, a03)
        t = negative(block(F, i + L))
        a10, a11, a12, a13 = fma(t, b0, a10), fma(t, b1, a11), fma(t, b2, a12), fma(t, b3, a13)
        t = negative(block(F, i + 2 * L))
        a20, a21, a22, a23 = fma(t, b0, a20), fma(t, b1, a21), fma(t, b2, a22), fma(t, b3, a23)
        t = negative(block(F, i + 3 * L))
        a30, a31, a32, a33 = fma(t, b0, a30), fma(t, b1, a31), fma(t, b2, a32), fma(t, b3, a33)
        i += 4 * L
        j += 4 * L
    return a00, a01, a02, a03, a10, a11, a12, a13, a20, a21, a22, a23, a30, a31, a32, a33


@inline
def column(F, base, a0, a1, a2, a3, L):
    """Put one column of a tile."""
    store(F, base, a0)
    store(F, base + L, a1)
    store(F, base + 2 * L, a2)
    store(F, base + 3 * L, a3)


@inline
def below_diagonal(F, i, j, a, L):
    """X with X L_jj' = a, into the panel at i; L_jj at j."""
    a00, a01, a02, a03, a10, a11, a12, a13, a20, a21, a22, a23, a30, a31, a32, a33 = a
    t = block(F, j)
    a00, a10, a20, a30 = a00 * t, a10 * t, a20 * t, a30 * t
    column(F, i, a00, a10, a20, a30, L)
    t, d = negative(block(F, j + L)), block(F, j + 5 * L)
    a01, a11, a21, a31 = fma(a00, t, a01) * d, fma(a10, t, a11) * d, fma(a20, t, a21) * d, fma(a30, t, a31) * d
    column(F, i + 4 * L, a01, a11, a21, a31, L)
    t, s, d = negative(block(F, j + 2 * L)), negative(block(F, j + 6 * L)), block(F, j + 10 * L)
    a02, a12, a22, a32 = fma(a00, t, a02), fma(a10, t, a12), fma(a20, t, a22), fma(a30, t, a32)
    a02, a12, a22, a32 = fma(a01, s, a02) * d, fma(a11, s, a12) * d, fma(a21, s, a22) * d, fma(a31, s, a32) * d
    column(F, i + 8 * L, a02, a12, a22, a32, L)
    t, s = negative(block(F, j + 3 * L)), negative(block(F, j + 7 * L))
    a03, a13, a23, a33 = fma(a00, t, a03), fma(a10, t, a13), fma(a20, t, a23), fma(a30, t, a33)
    a03, a13, a23, a33 = fma(a01, s, a03), fma(a11, s, a13), fma(a21, s, a23), fma(a31, s, a33)
    t, d = negative(block(F, j + 11 * L)), block(F, j + 15 * L)
    a03, a13, a23, a33 = fma(a02, t, a03) * d, fma(a12, t, a13) * d, fma(a22, t, a23) * d, fma(a32, t, a33) * d
    column(F, i + 12 * L, a03, a13, a23, a33, L)


@inline
def on_diagonal(F, i, a, one, L):
    """The factor of a tile, with 1 / L_ii for L_ii."""
    a00, _, _, _, a10, a11, _, _, a20, a21, a22, _, a30, a31, a32, a33 = a
    d = one / sqrt(a00)
    a10, a20, a30 = a10 * d, a20 * d, a30 * d
    column(F, i, d, a10, a20, a30, L)
    t = negative(a10)
    d = one / sqrt(fma(t, a10, a11))
    a21, a31 = fma(a20, t, a21) * d, fma(a30, t, a31) * d
    column(F, i + 4 * L, d, d, a21, a31, L)
    t, s = negative(a20), negative(a21)
    d = one / sqrt(fma(s, a21, fma(t, a20, a22)))
    a32 = fma(a31, s, fma(a30, t, a32)) * d
    column(F, i + 8 * L, d, d, d, a32, L)
    d = one / sqrt(fma(negative(a32), a32, fma(negative(a31), a31, fma(negative(a30), a30, a33))))
    column(F, i + 12 * L, d, d, d, d, L)


@njit
def factor(A, n, F, one):
    """A = L L'. A lane whose A is not positive definite holds NaN from there on."""
    L = BLOCK // A.itemsize
    unit = spread(one)
    for I in range((n + 3) // 4):
        i = 8 * L * I * (I + 1)
        j = 0
        for J in range(I + 1):
            left = 16 * L * J  # numbers before column 4 J in a panel
            a = less(F, i, j, 4 * J, tile(A, i + left, L), L)
            if J < I:
                below_diagonal(F, i + left, j + left, a, L)
            else:
                on_diagonal(F, i + left, a, unit, L)
            j += 16 * L * (J + 1)


@njit
def substitute(F, n, x):
    """x <- A^-1 x: L y = x, then L' x = y."""
    L = BLOCK // F.itemsize
    rows = (n + 3) // 4
    for I in range(rows):
        i = 8 * L * I * (I + 1)
        top = 4 * I * L
        a0, a1, a2, a3 = block(x, top), block(x, top + L), block(x, top + 2 * L), block(x, top + 3 * L)
        for k in range(4 * I):
            t = negative(block(x, k * L))
            a0, a1 = fma(block(F, i), t, a0), fma(block(F, i + L), t, a1)
            a2, a3 = fma(block(F, i + 2 * L), t, a2), fma(block(F, i + 3 * L), t, a3)
            i += 4 * L
        a0 = a0 * block(F, i)
        t = negative(a0)
        a1, a2, a3 = fma(block(F, i + L), t, a1), fma(block(F, i + 2 * L), t, a2), fma(block(F, i + 3 * L), t, a3)
        a1 = a1 * block(F, i + 5 * L)
        t = negative(a1)
        a2, a3 = fma(block(F, i + 6 * L), t, a2), fma(block(F, i + 7 * L), t, a3)
        a2 = a2 * block(F, i + 10 * L)
        a3 = fma(block(F, i + 11 * L), negative(a2), a3) * block(F, i + 15 * L)
        column(x, top, a0, a1, a2, a3, L)
    for I in range(rows - 1, -1, -1):
        top = 4 * I * L
        i = 8 * L * I * (I + 1) + 4 * top
        a0, a1, a2, a3 = block(x, top), block(x, top + L), block(x, top + 2 * L), block(x, top + 3 * L)
        a3 = a3 * block(F, i + 15 * L)
        t3 = negative(a3)
        a2 = fma(block(F, i + 11 * L), t3, a2) * block(F, i + 10 * L)
        t2 = negative(a2)
        a1 = fma(block(F, i + 6 * L), t2, fma(block(F, i + 7 * L), t3, a1)) * block(F, i + 5 * L)
        t1 = negative(a1)
        a0 = fma(block(F, i + 3 * L), t3, a0)
        a0 = fma(block(F, i + L), t1, fma(block(F, i + 2 * L), t2, a0)) * block(F, i)
        t0 = negative(a0)
        column(x, top, a0, a1, a2, a3, L)
        i -= 4 * top
        for k in range(4 * I):
            t = fma(block(F, i + 3 * L), t3, block(x, k * L))
            t = fma(block(F, i + L), t1, fma(block(F, i + 2 * L), t2, t))
            store(x, k * L, fma(block(F, i), t0, t))
            i += 4 * L


@njit
def defect(A, n, x, y, r):
    """r = y - A x, each entry one chain over the columns; y may be r."""
    L = BLOCK // A.itemsize
    i = 0
    for I in range((n + 3) // 4):
        top = 4 * I * L
        x0, x1, x2, x3 = (
            negative(block(x, top)),
            negative(block(x, top + L)),
            negative(block(x, top + 2 * L)),
            negative(block(x, top + 3 * L)),
        )
        r0, r1, r2, r3 = block(y, top), block(y, top + L), block(y, top + 2 * L), block(y, top + 3 * L)
        for k in range(4 * I):
            a0, a1, a2, a3 = block(A, i), block(A, i + L), block(A, i + 2 * L), block(A, i + 3 * L)
            s = negative(block(x, k * L))
            r0, r1, r2, r3 = fma(a0, s, r0), fma(a1, s, r1), fma(a2, s, r2), fma(a3, s, r3)
            store(r, k * L, fma(a3, x3, fma(a2, x2, fma(a1, x1, fma(a0, x0, block(r, k * L))))))
            i += 4 * L
        a10, a20, a30 = block(A, i + L), block(A, i + 2 * L), block(A, i + 3 * L)
        a21, a31, a32 = block(A, i + 6 * L), block(A, i + 7 * L), block(A, i + 11 * L)
        r0 = fma(a30, x3, fma(a20, x2, fma(a10, x1, fma(block(A, i), x0, r0))))
        r1 = fma(a31, x3, fma(a21, x2, fma(block(A, i + 5 * L), x1, fma(a10, x0, r1))))
        r2 = fma(a32, x3, fma(block(A, i + 10 * L), x2, fma(a21, x1, fma(a20, x0, r2))))
        r3 = fma(block(A, i + 15 * L), x3, fma(a32, x2, fma(a31, x1, fma(a30, x0, r3))))
        column(r, top, r0, r1, r2, r3, L)
        i += 16 * L


@inline
def inner(x, y):
    """x . y, over vectors of a multiple of four rows."""
    L = BLOCK // x.itemsize
    s0, s1, s2, s3 = (
        block(x, 0) * block(y, 0),
        block(x, L) * block(y, L),
        block(x, 2 * L) * block(y, 2 * L),
        block(x, 3 * L) * block(y, 3 * L),
    )
    for i in range(4 * L, x.size, 4 * L):
        s0, s1 = fma(block(x, i), block(y, i), s0), fma(block(x, i + L), block(y, i + L), s1)
        s2, s3 = fma(block(x, i + 2 * L), block(y, i + 2 * L), s2), fma(block(x, i + 3 * L), block(y, i + 3 * L), s3)
    return (s0 + s1) + (s2 + s3)


@inline
def onward(x, t, p):
    """x <- x + t p"""
    L = BLOCK // x.itemsize
    for i in range(0, x.size, L):
        store(x, i, fma(t, block(p, i), block(x, i)))


@njit
def conjugate_gradients(A, n, q, x, r, p, w, steps, eps, diagonal, zero):
    """x after so many steps on A x = q, as the released MesaNet kernels take them: no test, and eps added to both
    denominators. From x = 0, or from q over the diagonal of A plus eps."""
    L = BLOCK // A.itemsize
    tiny = spread(eps)
    none = spread(zero)
    for i in range(x.size // L):
        store(x, i * L, block(q, i * L) / (block(A, place(i, i, L)) + tiny) if diagonal else none)
        store(r, i * L, block(q, i * L))
    if diagonal:
        defect(A, n, x, r, r)
    for i in range(0, x.size, L):
        store(p, i, block(r, i))
    rr = inner(r, r)
    for _ in range(steps):
        for i in range(0, x.size, L):
            store(w, i, none)
        defect(A, n, p, w, w)  # w = -A p
        step = rr / (tiny - inner(p, w))
        onward(x, step, p)
        onward(r, step, w)
        after = inner(r, r)
        turned = after / (rr + tiny)
        rr = after
        for i in range(0, x.size, L):
            store(p, i, fma(turned, block(p, i), block(r, i)))


@njit
def chebyshev(A, n, q, size, shift, x, old, w, steps, first, one):
    """x after so many steps on A x = q, A = H + shift with its eigenvalues between shift and shift + size [lane].

    x_0 = eta q, eta = 2 / (2 shift + size), omega_0 = first; then with s = (size / (2 shift + size))^2 / 4
    omega <- 1 / (1 - s omega);   x <- omega (x + eta (q - A x)) - (omega - 1) x_before
    """
    L = BLOCK // A.itemsize
    unit = spread(one)
    whole = (block(shift, 0) + block(shift, 0)) + block(size, 0)
    eta = (unit + unit) / whole
    half = block(size, 0) / (whole + whole)
    s = half * half
    omega = spread(first)
    for i in range(0, x.size, L):
        store(x, i, eta * block(q, i))
        store(old, i, block(q, i) - block(q, i))
    for _ in range(steps):
        omega = unit / (unit - s * omega)
        defect(A, n, x, q, w)
        for i in range(0, x.size, L):
            now = block(x, i)
            store(x, i, omega * fma(eta, block(w, i), now) - (omega - unit) * block(old, i))
            store(old, i, now)


@njit
def frobenius(A, n, size, zero):
    """|A| in the Frobenius norm, [lane]: of the rows 4 i + r four chains below the diagonal and four on it, added as
    in a dot product, the first taken twice. The rows beyond n, which may hold anything, are emptied first."""
    L = BLOCK // A.itemsize
    z = spread(zero)
    for i in range(n, (n + 3) // 4 * 4):
        for j in range(i + 1):
            store(A, place(i, j, L), z)
    b0, b1, b2, b3 = z, z, z, z
    d0, d1, d2, d3 = z, z, z, z
    i = 0
    for I in range((n + 3) // 4):
        for _ in range(4 * I):
            a0, a1, a2, a3 = block(A, i), block(A, i + L), block(A, i + 2 * L), block(A, i + 3 * L)
            b0, b1, b2, b3 = fma(a0, a0, b0), fma(a1, a1, b1), fma(a2, a2, b2), fma(a3, a3, b3)
            i += 4 * L
        a1, a2, a3 = block(A, i + L), block(A, i + 2 * L), block(A, i + 3 * L)
        b1, b2, b3 = fma(a1, a1, b1), fma(a2, a2, b2), fma(a3, a3, b3)
        a2, a3 = block(A, i + 6 * L), block(A, i + 7 * L)
        b2, b3 = fma(a2, a2, b2), fma(a3, a3, b3)
        a3 = block(A, i + 11 * L)
        b3 = fma(a3, a3, b3)
        a0, a1, a2, a3 = block(A, i), block(A, i + 5 * L), block(A, i + 10 * L), block(A, i + 15 * L)
        d0, d1, d2, d3 = fma(a0, a0, d0), fma(a1, a1, d1), fma(a2, a2, d2), fma(a3, a3, d3)
        i += 16 * L
    below = (b0 + b1) + (b2 + b3)
    store(size, 0, sqrt((below + below) + ((d0 + d1) + (d2 + d3))))


@njit
def shift(A, n, by, step, one):
    """A_ii + by_i, a block for each row (step 1) or the same for all (step 0); and the rows beyond n are made those
    of the identity."""
    L = BLOCK // A.itemsize
    for i in range(n):
        at = place(i, i, L)
        store(A, at, block(A, at) + block(by, i * step * L))
    zero = spread(one - one)
    for i in range(n, (n + 3) // 4 * 4):
        for j in range(i):
            store(A, place(i, j, L), zero)
        store(A, place(i, i, L), spread(one))
