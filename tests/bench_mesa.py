"""MesaNet, exact, against the naive exact reference in one run: `python tests/bench_mesa.py`. Rounds are interleaved;
ratios, not times.

The peer is flash-linear-attention's naive exact reference where that is installed (with torch), else what it does, in
NumPy: float32, every token's H and G kept, then a batched dense solve and one product a token. Both have BLAS and
LAPACK.
"""

from __future__ import annotations

import statistics
import time
import warnings

import numpy as np

import refengine


def problem(T, heads, K, V, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, T, heads, n)) for n in (K, K, V))
    q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True)) for x in (q, k))
    g, beta = -rng.uniform(0, 0.1, (1, T, heads)), rng.uniform(0, 1, (1, T, heads))
    x = {n: y.astype(dtype) for n, y in dict(q=q, k=k, v=v, g=g, beta=beta).items()}
    return x | {"lamb": np.ones((heads, K), dtype)}


def naive(q, k, v, g, beta, lamb):
    """[B, T, H, D] to o, everything float32 and every memory kept."""
    B, T, H, K = q.shape
    h_kk, h_kv = np.zeros((B, T, H, K, K), q.dtype), np.zeros((B, T, H, K, v.shape[3]), q.dtype)
    kk, kv = np.zeros((B, H, K, K), q.dtype), np.zeros((B, H, K, v.shape[3]), q.dtype)
    for t in range(T):
        a, w = np.exp(g[:, t])[..., None, None], (beta[:, t, :, None] * k[:, t])[..., None]
        kk = a * kk + w * k[:, t][..., None, :]
        kv = a * kv + w * v[:, t][..., None, :]
        h_kk[:, t], h_kv[:, t] = kk, kv
    x = np.linalg.solve(h_kk + lamb[..., None] * np.eye(K, dtype=q.dtype), q[..., None])
    return (h_kv * x).sum(axis=-2)


def peer():
    """(its name, the reference)"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            from fla.ops.mesa_net.naive import naive_mesa_net_exact
    except ImportError:
        return "NumPy", naive

    def exact(**x):
        with torch.no_grad():
            return naive_mesa_net_exact(**{n: torch.from_numpy(y) for n, y in x.items()})[0].numpy()

    return "flash-linear-attention", exact


def clock(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def main(rounds=5, T=512, heads=2, K=128, V=128):
    print(f"MesaNet exact, T={T}, {heads} heads, K=V={K}, all cores; median of {rounds} rounds")
    x = problem(T, heads, K, V, np.float32)
    whose, reference = peer()
    o, s = reference(**x), refengine.solve("mesa_net", **x)
    print(f"the naive float32 reference ({whose}) is {np.linalg.norm(o - s.o) / np.linalg.norm(s.o):.1e} away")
    took = {"float64": [], "float32": [], "naive float32": [], "twice as long": []}
    longer = problem(2 * T, heads, K, V, np.float32)
    refengine.solve("mesa_net", **x, precision="float32")
    for _ in range(rounds):
        took["naive float32"].append(clock(lambda: reference(**x)))
        took["float64"].append(clock(lambda: refengine.solve("mesa_net", **x)))
        took["float32"].append(clock(lambda: refengine.solve("mesa_net", **x, precision="float32")))
        took["twice as long"].append(clock(lambda: refengine.solve("mesa_net", **longer)))
    median = {name: statistics.median(t) for name, t in took.items()}
    for name in ("float64", "float32"):
        print(f"{name}: {median['naive float32'] / median[name]:.1f} times the naive float32 reference's speed")
    print(f"float64, T={2 * T} against T={T}: {median['twice as long'] / median['float64']:.2f} times the time")


if __name__ == "__main__":
    main()
