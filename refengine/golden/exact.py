"""Tier E: inputs chosen so that every number met on the way, in any chunking and any order, has at most eight
significant bits: one-hot keys, small integers, steps of 0, 1/2 and 1, gates that keep all or nothing (exp(-1024) is 0).
A kernel is then right exactly if its answer is the golden's to the bit, in any format from bfloat16 up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, kind
from .draw import Array, stored

CLOSED = -1024.0  # a gate whose exp is 0 even in float64
FAR = 8192.0  # an eighth of it is where a sigmoid is 0 or 1 even in float64
OFTEN = {"alpha": 0.125, "eta": 0.25, "theta": 0.75, "g": 0.125, "tok": 0.75}
POWERS = (1, 4, 16)  # what has a root and a reciprocal in few bits


def signs(case: Case, name: str, shape: tuple[int, ...], size: int = 1) -> Array:
    """-size, 0 or size in tier E, else nearly normal numbers."""
    stream = case.stream(name)
    if case.regime.tier == "E":
        return stream.integers(shape, -1, 1) * float(size)
    return stream.normal(shape)


def writes(case: Case) -> int:
    """What must divide a value so that halving it at every write of its row leaves an integer."""
    if case.regime.name != "permuted" and case.op.name != "longhorn":
        return 1
    longest = max(case.lengths or (case.size["T"],)) * case.options.get("num_householder", 1)
    return int(2 ** -(-longest // case.size["K"]))


def hot(case: Case, shape: tuple[int, ...]) -> Array:
    """One-hot keys: at random, or in permutation after permutation (every row equally often)."""
    stream, K = case.stream("k"), shape[-1]
    B, T, H = shape[:3]
    if case.regime.name == "permuted" or case.op.name == "longhorn":
        at = stream.permutations(B * H * -(-T // K), K).reshape(B, H, -1)[:, :, :T].swapaxes(1, 2)
    else:
        at = stream.integers((B, T, H), 0, K - 1)
    return np.asarray(np.eye(K)[at])


def delta(case: Case) -> dict[str, Array]:
    """Inputs of the delta core."""
    op = case.op
    permuted = case.regime.name == "permuted"
    key = next(t for t in op.inputs if t.role == "key")
    keys = hot(case, case.shape(key))
    out: dict[str, Array] = {}
    for tensor in op.inputs:
        shape, stream = case.shape(tensor), case.stream(tensor.name)
        if tensor.role == "query":
            x = stream.integers(shape, -2, 2) * 1.0
            if permuted:
                four = stream.permutations(int(np.prod(shape[:-1])), shape[-1]).reshape(shape) < 4
                x = np.where(four, stream.integers(shape, 0, 1) * 2.0 - 1, 0.0)
        elif tensor.role == "key":
            x = keys
            if tensor.name == "p" and not permuted:  # now and then another key predicts
                x = np.where(stream.integers((*shape[:-1], 1), 0, 3) > 0, keys, np.roll(keys, 1, axis=-1))
        elif tensor.role == "value":
            forgets = bool(op.role("decay")) or any(t.name == "beta" for t in op.inputs)
            x = stream.integers(shape, -1, 1) * float(writes(case) * (3 if forgets and writes(case) == 1 else 1))
        elif tensor.role == "decay":
            x = np.where(stream.integers(shape, 0, 3) == 0, CLOSED, 0.0)
            x[:, -2:] = 0.0  # so that something is left to see in the final state
        elif tensor.name == "d":
            x = stream.integers(shape, 0, 1) * 1.0
        elif op.name in ("rwkv7", "dplr", "iplr"):  # a = -k, b = k rate
            rate = stream.integers((*shape[:-1], 1), 0, 1) * 1.0
            x = -keys if tensor.name == "a" else keys * (0.5 + 0.5 * rate if permuted else rate)
            if tensor.name == "b" and not permuted:  # now and then what is read goes to another key
                x = np.where(stream.integers((*shape[:-1], 1), 0, 7) > 0, x, np.roll(x, 1, axis=-1))
        else:  # steps, and gates of what is erased and written
            x = stream.integers(shape, 0, 1) * 1.0
            if permuted and op.name != "longhorn":
                x = 0.5 + 0.5 * x
        out[tensor.name] = np.asarray(x)
    return out


# ---- what is no recurrence of the delta core ----


def sequences(case: Case) -> Iterator[tuple[int, int, int, int]]:
    """(number, row, first token, one past the last)."""
    if not case.lengths:
        yield from ((b, b, 0, case.size["T"]) for b in range(case.size["B"]))
        return
    ends = np.cumsum([0, *case.lengths]).tolist()
    yield from ((n, 0, ends[n], ends[n + 1]) for n in range(len(case.lengths)))


def attention(case: Case) -> dict[str, Array]:
    """One-hot queries and keys so long that a weight is 1 or 0; a query asks for a key that stood there 1, 2, 4 or 8
    times by then, so that the mean of its values has few bits. The first key of a sequence never comes again."""
    q, k, v = (np.zeros(case.shape(t)) for t in case.op.inputs)
    choice, K = case.stream("choice"), q.shape[3]
    v[:] = 8.0 * case.stream("v").integers(v.shape, -3, 3)
    for _, row, t0, t1 in sequences(case):
        for h in range(k.shape[2]):
            seen = np.zeros(K, np.int64)
            for t in range(t0, t1):
                c = 0 if t == t0 else int(choice.integers((), 1, K - 1))
                seen[c] += 1
                k[row, t, h, c] = 128.0
                known = np.flatnonzero(np.isin(seen, (1, 2, 4, 8)))
                times = q.shape[2] // k.shape[2]
                for j in range(h * times, (h + 1) * times):
                    q[row, t, j, known[int(choice.integers((), 0, len(known) - 1))]] = 128.0
    return {"q": q, "k": k, "v": v}


def regression(case: Case) -> dict[str, Array]:
    """One-hot keys, the same until a gate closes: H is a number n at one place of its diagonal. Where n and the ridge
    together are no power of four nothing is asked (mesa_net) or nothing of the solution mixed in (gated_kalmanet), and
    no cotangent is given."""
    size, K, times = case.size, case.size["K"], case.size["HV"] // case.size["H"]
    named: dict[str, Array] = {t.name: np.zeros(case.shape(t)) for t in case.op.inputs}
    mesa, choice = "lamb" in named, case.stream("choice")
    named["v"] = case.stream("v").integers(named["v"].shape, -3, 3) * 1.0
    if mesa:
        named["lamb"][:] = case.stream("lamb").integers((K,), 1, 3)
    asked = case.stream("q").integers(named["q"].shape, -2, 2) * 1.0
    named["do"] = case.stream("do").integers((size["B"], size["T"], size["HV"], size["V"]), -1, 1) * 1.0
    shapes = case.of_states("initial_state")
    starts: dict[str, Array] = {name: np.zeros(shape) for name, shape in shapes.items()}
    h_kk, h_kv = starts.values()
    for n, row, t0, t1 in sequences(case):
        for h in range(size["H"]):
            heads = range(h * times, (h + 1) * times)
            c = int(choice.integers((), 0, K - 1))
            count = dict.fromkeys(heads, 1)
            for j in heads:
                h_kk[n, j, c, c] = 1.0
                h_kv[n, j, c] = choice.integers((size["V"],), -1, 1)
            for t in range(t0, t1):
                other = t > t0 and int(choice.integers((), 0, 1 if min(count.values()) > 2 else 8)) == 0
                c = int(choice.integers((), 0, K - 1)) if other else c
                together = int(choice.integers((), 0, 2)) > 0
                named["k"][row, t, h, c] = 1.0
                few = True
                for j in heads:
                    closed = other or int(choice.integers((), 0, 31)) == 0
                    writes_now = closed or (together and (mesa or int(choice.integers((), 0, 7)) > 0))
                    count[j] = (0 if closed else count[j]) + writes_now
                    named["g"][row, t, j] = CLOSED if closed else 0.0
                    named["beta"][row, t, j] = float(writes_now)
                    fits = (count[j] + named["lamb"][j, c] if mesa else 2 * count[j]) in POWERS
                    few = few and fits
                    if "alpha" in named:
                        named["alpha"][row, t, j] = 0.5 * int(choice.integers((), 0, 2)) if fits else 0.0
                    if not fits:
                        named["do"][row, t, j] = 0.0
                for i in range(K):
                    if (few or not mesa) if i == c else mesa and named["lamb"][0, i] == 1.0:
                        named["q"][row, t, h, i] = asked[row, t, h, i]
    return named | starts


def learner(case: Case) -> dict[str, Array]:
    """A memory that learns by mini-batches: keys that come once in each, gates that forget all or nothing, steps that
    reach the value or none."""
    named: dict[str, Array] = {t.name: np.zeros(case.shape(t)) for t in case.op.inputs if not t.integer}
    K, layers, units = case.size["K"], "R" in case.size, units_of(case)
    for name, x in named.items():
        stream = case.stream(name)
        if name == "k":
            for _, row, t0, t1 in sequences(case):
                for h in range(x.shape[2]):
                    at = stream.permutations(-(-(t1 - t0) // K), K).ravel()[: t1 - t0]
                    x[row, t0:t1, h] = np.eye(K)[at]
        elif name == "q" and layers:
            x[:] = np.eye(K)[stream.integers(x.shape[:-1], 0, K - 1)] * odd(stream.integers((*x.shape[:-1], 1), -1, 0))
        elif name in ("q", "v"):
            x[:] = stream.integers(x.shape, -1, 1) if layers else stream.integers(x.shape, -2, 2)
        elif name in ("w0", "w1", "w2"):
            x[:] = stream.integers(x.shape, -1, 1)
        elif name != "tok" and (layers or case.parts == "bias"):
            once(case, name, x)
        else:  # forgotten, carried on, learnt
            x[:] = (stream.uniform(x.shape) < OFTEN[name]) * (CLOSED if name == "g" else 1.0)
        x *= units.get(name, 1.0)
    if case.convention == "whole":
        named["theta"] *= 0.5
    if case.options.get("loss") == "p_norm":  # an error is 0 or +-2, and half of its square is itself
        named["v"], named["theta"] = odd(named["v"]), 0.5 * named["theta"]
    return named


def once(case: Case, name: str, x: Array) -> None:
    """What would soon take many bits, once in every sequence and head: all steps at one token, momentum at the next (or
    in the first chunk), and everything forgotten near the end of the last head."""
    choice, size = case.stream("choice"), case.options["chunk_size"]
    for _, row, t0, t1 in sequences(case):
        last = max(0, (t1 - t0) // size * size - 1)  # of the mini-batches that are full
        for h in range(x.shape[2]):
            place, late = (int(choice.integers((), low, last)) for low in (0, 3 * last // 4))
            at = {"eta": place + 1, "momentum": 0, "alpha": late, "g": late}.get(name, place)
            if h == x.shape[2] - 1 or name not in ("alpha", "g"):
                end = t0 + at + (size if name == "momentum" else 1)
                x[row, t0 + at : min(end, t1), h] = CLOSED if name == "g" else 1.0


def odd(x: NDArray[Any]) -> Array:
    """One where it was 0 or more, else minus one."""
    return np.where(x >= 0, 1.0, -1.0)


def units_of(case: Case) -> dict[str, float]:
    """A memory with hidden numbers: what its weights and their momenta, steps, values and cotangents are multiples of.
    Hidden numbers are multiples of FAR, where silu and gelu are 0 or x themselves, odd ones for every key, since the
    first layer begins odd and learns by even steps; all else cancels that unit."""
    names, unit = {t.name for t in case.op.inputs}, {}
    if "lr0" in names:
        unit = {"w0": FAR, "m0": 2 * FAR, "lr0": 2 * FAR, "lr1": 1 / FAR, "lr2": 1 / FAR, "do": 1 / FAR}
    elif "theta_up" in names:
        unit = {"w0": FAR, "m_w0": 2 * FAR, "theta": 2 * FAR, "theta_out": 1 / FAR, "theta_up": 1 / FAR, "do": 1 / FAR}
    elif "R" in case.size:
        unit = dict.fromkeys(("w1", "w2", "m2", "m_w2"), FAR) | {"m1": 2 * FAR, "m_w1": 2 * FAR, "v": FAR**2}
        unit |= {"theta": 2 / FAR**2, "theta_out": 1 / FAR**2, "do": 1 / FAR**2}
    return unit


def first_memory(case: Case, name: str, shape: tuple[int, ...], size: int) -> Array:
    """What a memory starts from. With hidden numbers no two of them make one output, and each has momentum in one
    layer."""
    x = signs(case, name, shape, size)
    if case.options.get("loss") == "p_norm":
        return odd(x)
    if "R" not in case.size:
        return x
    states = [t.name for t in case.op.states]
    weights = [s for s in states if s[0] == "w"]
    state = name.partition(".")[2]
    layer = states.index(state) % len(weights)
    axes = case.op.states[states.index(state)].axes[0].split()[2:]
    if state == weights[0]:
        x = odd(x)
    elif state[0] == "m":
        x = x * (np.indices(shape[2:])[axes.index("R")] % len(weights) == layer)
    if "V" in axes:
        x = x * (np.subtract(*np.indices(shape[2:])) == 0)
    return x * units_of(case).get(state, 1.0)


EXACT = {"delta": delta, "attention": attention, "regression": regression, "training": learner}


def exact(case: Case) -> dict[str, NDArray[Any]]:
    """Inputs whose every intermediate has at most eight bits; with them what else their kind must choose together: the
    initial states of a regression and its cotangent."""
    types = {t.name: case.kept_as(t) for t in case.op.inputs}
    return {name: stored(x, types.get(name, "float32")) for name, x in EXACT[kind(case.op)](case).items()}
