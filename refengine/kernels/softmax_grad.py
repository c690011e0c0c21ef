"""The adjoint of causal softmax attention, token by token.

    s_j = scale q.k_j;   p_j = exp(s_j - max s) / sum;   o = sum p_j v_j        j <= t
    e_j = p_j (v_j.o' - sum p_i v_i.o')
    dq = scale sum e_j k_j;   dk_j += scale e_j q;   dv_j += p_j o'

Plain arithmetic in one order: sums over channels and over past tokens go in the order of their index.
"""

from __future__ import annotations

from . import _math
from ._jit import njit


@njit
def back(place, heads, q, k, v, do, scale, room, dq, dk, dv):
    """Tokens t0 .. t1 of one head, `heads` those of q, k, v and its own. do, dq, dk, dv [B, T, HV, *], the last three
    from zeros; room [2, tokens]."""
    batch, t0, t1 = place
    hq, hk, hv, h = heads
    zero = scale - scale
    p, e = room[0], room[1]
    for t in range(t0, t1):
        qt, ot = q[batch, t, hq], do[batch, t, h]
        most = zero
        for j in range(t - t0 + 1):
            s = zero
            for i in range(qt.size):
                s = s + qt[i] * k[batch, t0 + j, hk, i]
            p[j] = scale * s
            most = p[j] if j == 0 else max(most, p[j])
        whole, mean = zero, zero
        for j in range(t - t0 + 1):
            p[j] = _math.exp(p[j] - most)
            whole = whole + p[j]
        for j in range(t - t0 + 1):
            p[j] = p[j] / whole
            s = zero
            for c in range(ot.size):
                s = s + v[batch, t0 + j, hv, c] * ot[c]
            e[j] = s
            mean = mean + p[j] * s
        for j in range(t - t0 + 1):
            owed = scale * (p[j] * (e[j] - mean))
            for i in range(qt.size):
                dq[batch, t, h, i] = dq[batch, t, h, i] + owed * k[batch, t0 + j, hk, i]
                dk[batch, t0 + j, h, i] = dk[batch, t0 + j, h, i] + owed * qt[i]
            for c in range(ot.size):
                dv[batch, t0 + j, h, c] = dv[batch, t0 + j, h, c] + p[j] * ot[c]
