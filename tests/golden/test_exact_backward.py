"""Tier E backwards: the chunkwise adjoint, every product rounded to bfloat16, has the golden's gradients to the bit.

The decay's own gradient is left out: the chunk form sums it over all later tokens, which takes more than eight bits.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refengine.data import goldens
from refengine.golden.cases import suite
from refengine.golden.inputs import arguments
from refengine.golden.problems import problem
from refengine.io.tensorfile import read
from refengine.verify.emulate import Core

DIRECT = ("linear_attn", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda", "gated_delta_product")
CASES = [case for case in suite("core", DIRECT, ("E",))]
FORMATS = {"float32": lambda x: x.astype(np.float32), "bfloat16": lambda x: bf16(x)}


def bf16(x):
    return np.asarray(x, dtype=np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def chunk_adjoint(q, k, e, v, b, G, R, S, dO, Z, s, rd):
    """One chunk: (dq, dk, de, dv, db, dS) from the state S before it, dO of its outputs and Z of the state after it."""
    C = len(v)
    low, strict = np.tril(np.ones((C, C)))[..., None], np.tril(np.ones((C, C)), -1)[..., None]
    with np.errstate(over="ignore"):
        D, F = low * np.exp(np.minimum(G[:, None] - G[None], 0)), strict * np.exp(np.minimum(R[:, None] - G[None], 0))
    last, gone, seen = np.exp(G[-1]), np.exp(G), np.exp(R)
    a = rd(np.einsum("id,jd,ijd->ij", e, k, F))
    P = rd(s * np.einsum("id,jd,ijd->ij", q, k, D))
    T = rd(np.linalg.inv(np.eye(C) + b[:, None] * a))
    right = rd(v - rd((e * seen) @ S))
    U = rd(T @ (b[:, None] * right))
    dU = rd(P.T @ dO + (k * np.exp(G[-1] - G)) @ Z)
    Y = rd(T.T @ dU)
    da, dP = rd(-(b[:, None] * Y) @ U.T), rd(s * dO @ U.T)
    dq = rd(s * gone * (dO @ S.T) + np.einsum("ij,jd,ijd->id", dP, k, D))
    de = rd(-seen * ((b[:, None] * Y) @ S.T) + np.einsum("ij,jd,ijd->id", da, k, F))
    dk = np.einsum("ij,id,ijd->jd", dP, q, D) + np.einsum("ij,id,ijd->jd", da, e, F)
    dk = rd(dk + np.exp(G[-1] - G) * (U @ Z.T))
    db = rd((Y * (right - a @ U)).sum(axis=1))
    dS = rd(s * (q * gone).T @ dO + last[:, None] * Z - (e * seen).T @ (b[:, None] * Y))
    return (dq, dk, de, rd(b[:, None] * Y), db, dS), rd(last[:, None] * S + (k * np.exp(G[-1] - G)).T @ U)


def head_adjoint(x, n, h, dO, Z, span, rd):
    """One sequence and head, chunk after chunk from the last: gradients of its micro-steps, and of its start."""
    row, t0, t1 = x.segments[n]
    m0, m1 = t0 * x.micro, t1 * x.micro

    def of(y, width=None):
        if y is None:
            return np.zeros((m1 - m0, width))
        return np.asarray(y[row, m0:m1, h // (x.v.shape[2] // y.shape[2])], dtype=np.float64)

    k, v = of(x.k), of(x.v)
    K = k.shape[1]
    e, b = of(x.e, K), of(x.b)[:, 0] if x.b is not None else np.ones(m1 - m0)
    g = np.broadcast_to(of(x.g, 1), k.shape)
    q, given = np.zeros_like(k), np.zeros_like(v)
    q[x.micro - 1 :: x.micro] = x.q[row, t0:t1, h // (x.v.shape[2] // x.q.shape[2])]
    given[x.micro - 1 :: x.micro] = dO[row, t0:t1, h]
    cuts = [slice(m, min(m + span, m1 - m0)) for m in range(0, m1 - m0, span)]
    states, out = [x.start[n, h]], {}
    S, pieces = x.start[n, h], []
    for cut in cuts:  # forwards, for the state before every chunk
        G = np.cumsum(g[cut], axis=0)
        parts = (q[cut], k[cut], e[cut], v[cut], b[cut], G, G - g[cut] if x.pre else G)
        _, S = chunk_adjoint(*parts, S, given[cut], 0 * S, x.scale, rd)
        states.append(S)
        pieces.append(parts)
    Z = Z[n, h]
    for i in reversed(range(len(cuts))):
        found, _ = chunk_adjoint(*pieces[i], states[i], given[cuts[i]], Z, x.scale, rd)
        *gradients, Z = found
        out[i] = gradients
    joined = [np.concatenate([out[i][j] for i in range(len(cuts))]) if cuts else None for j in range(5)]
    return joined, Z


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("span", [4, 16, 64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_chunkwise_adjoint_has_the_same_bits(case, span, form):
    given = arguments(case)
    do, dht = given.pop("do").astype(float), given.pop("dht").astype(float)
    x = Core.of(problem(case.op.name, given))
    truth, _ = read(goldens("core") / "cases" / case.id / "truth.safetensors")
    found = {
        name: np.zeros(truth[name].shape) for name in truth if name in ("dq", "dk", "dv", "dbeta", "dinitial_state")
    }
    for n, (row, t0, t1) in enumerate(x.segments):
        when = slice(t0 * x.micro, t1 * x.micro)
        for h in range(x.v.shape[2]):
            (dq, dk, de, dv, db), dS = head_adjoint(x, n, h, do, dht, span, FORMATS[form])
            found["dinitial_state"][n, h] = dS
            if t1 > t0:
                shared = h // (x.v.shape[2] // x.k.shape[2])
                found["dq"][row, t0:t1, shared] += dq[x.micro - 1 :: x.micro]
                found["dk"][row, when, shared] += dk + (de if x.e is x.k else 0)
                found["dv"][row, when, h] = dv
                if "dbeta" in found:
                    found["dbeta"][row, when, h] = db
    for name, y in found.items():
        assert np.array_equal(y + 0.0, truth[name] + 0.0), name
