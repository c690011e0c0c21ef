"""Matrix products in a fixed order, near the speed of a BLAS and without one.

Every entry of a product is one chain of fused multiply-adds along the inner axis, first to last, from zero or from
what is there already. Cutting the work into panels and tiles never touches that chain, so neither lanes nor cuts
touch the bits. Matrices are C order; a transposed one is read in place.
"""

from __future__ import annotations

from ._jit import inline, part
from ._simd import BYTES, at, called, fma, load, put, splat, store

DEPTH = 32768 // BYTES  # rows of a packed panel, 32 KiB: it stays in the first-level cache, or nearly
EDGE = 4  # rows behind it, for results that are narrower than the lanes


def panel_shape(itemsize: int) -> tuple[int, int]:
    """The packing room that a product needs."""
    return DEPTH + EDGE, BYTES // itemsize


@inline
def pack(panel, B, transposed, sign, top, depth, left, width):
    """Rows top .. top + depth, columns left .. left + width of B (or of its transpose) times `sign`; zeros beyond."""
    L = panel.shape[1]
    N = B.shape[1]
    if width == L and not transposed:
        for k in range(depth):
            store(panel, k * L, load(B, (top + k) * N + left) * sign)
        return
    down = 1 if transposed else N
    along = N if transposed else 1
    for k in range(depth):
        base = top * down + k * down + left * along
        for j in range(width):
            put(panel, k * L + j, at(B, base + j * along) * sign)
        for j in range(width, L):
            put(panel, k * L + j, sign - sign)


@inline
def four(C, to, row, A, base, si, sk, panel, depth):
    """Four rows of C, `row` apart from flat `to` on, plus A times the panel."""
    L = panel.shape[1]
    c0 = load(C, to)
    c1 = load(C, to + row)
    c2 = load(C, to + 2 * row)
    c3 = load(C, to + 3 * row)
    for k in range(depth):
        p = load(panel, k * L)
        a = base + k * sk
        c0 = fma(splat(at(A, a)), p, c0)
        c1 = fma(splat(at(A, a + si)), p, c1)
        c2 = fma(splat(at(A, a + 2 * si)), p, c2)
        c3 = fma(splat(at(A, a + 3 * si)), p, c3)
    store(C, to, c0)
    store(C, to + row, c1)
    store(C, to + 2 * row, c2)
    store(C, to + 3 * row, c3)


@inline
def one(C, to, A, base, sk, panel, first, depth):
    """The same for one row, from row `first` of the panel on."""
    L = panel.shape[1]
    c = load(C, to)
    for k in range(first, depth):
        c = fma(splat(at(A, base + k * sk)), load(panel, k * L), c)
    store(C, to, c)


@inline
def edge(C, to, row, count, width, panel, out):
    """Count rows of `width` columns between C and the rows behind the panel."""
    L = panel.shape[1]
    for i in range(count):
        for j in range(width):
            if out:
                put(C, to + i * row + j, at(panel, (DEPTH + i) * L + j))
            else:
                put(panel, (DEPTH + i) * L + j, at(C, to + i * row + j))


@part
def product(C, A, A_transposed, B, B_transposed, sign, panel):
    """C += sign A B, for sign 1 or -1 of the arrays' type; `panel` as `panel_shape` says."""
    called()
    M, N = C.shape
    D = A.shape[0] if A_transposed else A.shape[1]
    si = 1 if A_transposed else A.shape[1]
    sk = A.shape[1] if A_transposed else 1
    L = panel.shape[1]
    whole = M - M % 4
    for top in range(0, D, DEPTH):
        depth = min(DEPTH, D - top)
        for left in range(0, N, L):
            width = min(L, N - left)
            pack(panel, B, B_transposed, sign, top, depth, left, width)
            for i in range(0, whole, 4):
                base = i * si + top * sk
                if width == L:
                    four(C, i * N + left, N, A, base, si, sk, panel, depth)
                else:
                    edge(C, i * N + left, N, 4, width, panel, False)
                    four(panel, DEPTH * L, L, A, base, si, sk, panel, depth)
                    edge(C, i * N + left, N, 4, width, panel, True)
            for i in range(whole, M):
                base = i * si + top * sk
                if width == L:
                    one(C, i * N + left, A, base, sk, panel, 0, depth)
                else:
                    edge(C, i * N + left, N, 1, width, panel, False)
                    one(panel, DEPTH * L, A, base, sk, panel, 0, depth)
                    edge(C, i * N + left, N, 1, width, panel, True)


@part
def lower_product(C, A, B, sign, panel):
    """C += sign A B for a lower triangular A [n, n]. What lies above its diagonal is not read, nor does row j of B
    reach an earlier row of C: not even as zero times NaN."""
    called()
    n, N = C.shape
    L = panel.shape[1]
    for top in range(0, n, DEPTH):
        depth = min(DEPTH, n - top)
        for left in range(0, N, L):
            width = min(L, N - left)
            pack(panel, B, 0, sign, top, depth, left, width)
            for i in range(top, n, 4):
                base = i * n + top
                rows = min(4, n - i)
                tile, to, row = C, i * N + left, N
                if width < L:
                    edge(C, i * N + left, N, rows, width, panel, False)
                    tile, to, row = panel, DEPTH * L, L
                common = 0
                if rows == 4:
                    common = min(depth, i + 1 - top)
                    four(tile, to, row, A, base, n, 1, panel, common)
                for r in range(rows):
                    one(tile, to + r * row, A, base + r * n, 1, panel, common, min(depth, i + r + 1 - top))
                if width < L:
                    edge(C, i * N + left, N, rows, width, panel, True)
