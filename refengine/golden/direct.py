"""The second road of what is no recurrence of the delta core, in balls: all past pairs at once.

The exact learner: with P_t the product of the decays up to token t, H_t = P_t (H_0 + sum b_j k_j k_j' / P_j), G_t
likewise, and python-flint's own solver for H_t + Lambda. Softmax attention: the quotient of two sums, nothing taken off
the scores first. A ball has any exponent, so both are safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.definition import number_system
from ..engine.problem import Problem
from ..spec import Mesa, Softmax
from .closed import array, lowered, matrix, product, scale_of

Array = NDArray[Any]


def solved(H: Array, lamb: Array, share: bool, q: Array) -> Array:
    """(H + Lambda)^-1 q, Lambda a diagonal or, as a share, a multiple of |H|; where H is 0, one."""
    A, size = H.copy(), (H * H).sum().sqrt()
    ridge = lamb if not share else lamb * size if size != 0 else lamb / lamb
    for i in range(len(A)):
        A[i, i] = A[i, i] + ridge[i % len(ridge)]
    return np.asarray(array(matrix(A).solve(matrix(q[:, None])))[:, 0])


def regression(p: Problem) -> tuple[Array, ...]:
    """(o, h_kk, h_kv) of an exact learner."""
    x: Mesa = lowered(p)
    number, scale = number_system("balls"), scale_of(p)
    B, T, HV, V, K = (p.sizes[a] for a in ("B", "T", "HV", "V", "K"))
    given = {name: getattr(x, name) for name in ("q", "k", "v", "a", "b", "mix")}
    values = {name: y.value for name, y in given.items() if y is not None}
    first = [np.zeros((len(p.segments), HV, K, n)) if s is None else s for s, n in zip(p.initial, (K, V), strict=True)]
    o, (H, G) = number(np.zeros((B, T, HV, V))), [number(s).copy() for s in first]
    for n, (row, t0, t1) in enumerate(p.segments):
        for h in range(HV):
            mine = {name: y[row, :, h // (HV // y.shape[2])] for name, y in values.items()}
            kept, keys, pairs = number(1.0)[()], H[n, h], G[n, h]
            for t in range(t0, t1):
                kept = kept * mine["a"][t, 0]
                weighted = (mine["b"][t, 0] / kept * mine["k"][t])[:, None]
                keys, pairs = keys + weighted * mine["k"][t], pairs + weighted * mine["v"][t]
                y = solved(kept * keys, x.lamb.value[0, 0, h], x.share, mine["q"][t])
                if "mix" in mine:
                    y = mine["q"][t] + mine["mix"][t, 0] * (y - mine["q"][t])
                o[row, t, h] = scale * kept * product(y[None], pairs)[0]
            H[n, h], G[n, h] = kept * keys, kept * pairs
    return o, H, G


def attention(p: Problem) -> tuple[Array, ...]:
    """(o,) of softmax attention."""
    x: Softmax = lowered(p)
    q, k, v = (y.value for y in (x.q, x.k, x.v))
    o, scale = number_system("balls")(np.zeros((*q.shape[:3], v.shape[3]))), scale_of(p)
    for row, t0, t1 in p.segments:
        for h in range(q.shape[2]):
            shared = h // (q.shape[2] // k.shape[2])
            weights = np.exp(scale * product(q[row, t0:t1, h], k[row, t0:t1, shared].T))
            for t in range(t1 - t0):
                seen = weights[t, : t + 1]
                o[row, t0 + t, h] = product(seen[None], v[row, t0 : t0 + t + 1, shared])[0] / seen.sum()
    return (o,)
