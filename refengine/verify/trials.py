"""Inputs to judge a verifier on: five regimes, and inputs whose answer every faithful implementation has to the bit.

Regimes: `fla` (positive queries and values, log-sigmoid gates: the field's usual test), `mamba` (gates as a layer
initialises them), `nodecay`, `corr` (keys almost parallel, steps near 1) and `strong` (decays from 0.4 to 1e-4).
Tensors that meet in a product are bfloat16, gates float32, and all of it comes from Philox: the same everywhere.

Exact inputs (`e1`, `e2`) keep every intermediate of every association, chunking and precision of 8 bits
representable: one-hot keys, small integers, steps 0, 1/2 and 1, decays 1 and 0 (a log of -1024). Whoever is not
bit-identical to the truth has an index wrong. In `e3` some decays are 1/2, whose logarithm no format holds: answers
are whole multiples of 1/8 but for that one rounding, and must be within a quarter of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import UnavailableError
from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv
from ..kernels import elementwise
from ..numbers.bounded import apply
from ..numbers.philox import words
from ..spec import Op, Tensor

Array = NDArray[Any]
REGIMES = ("fla", "mamba", "nodecay", "corr", "strong")
EXACT = ("e1", "e2", "e3")
SLACK = {"e3": 2.0**-5}  # how far from the truth is still the same multiple of 1/8
WINDOW = 8  # tokens of e3 after which everything is forgotten, so that nothing is halved more than twice
SEEDED = (*REGIMES, "e1", "e2", "front", "e3")  # whose place is part of the seed
FRONT = "front"  # what may come before the op: raw gates, norms, convolutions, a shift
WIDTH = 4  # of a convolution
GONE = -1024.0  # exp of it is 0 in float64 too; -256 is not enough


class Draw:
    """Numbers in order from one Philox stream a draw."""

    def __init__(self, seed: int) -> None:
        self.seed, self.stream = seed, 0

    def bits(self, shape: tuple[int, ...], per: int = 1) -> NDArray[np.uint32]:
        self.stream += 1
        count = int(np.prod(shape)) * per
        return words(count, (0x74726961, self.seed), stream=self.stream).reshape(*shape, per)

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Array:
        return low + (high - low) * ((self.bits(shape)[..., 0] >> np.uint32(8)).astype(np.float64) * 2.0**-24)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """The centred sum of four uniform numbers, of variance 1."""
        drawn = (self.bits(shape, 4) >> np.uint32(16)).astype(np.float64).sum(axis=-1) * 2.0**-16
        return np.asarray((drawn - (2.0 - 2.0**-15)) * np.sqrt(3.0))

    def whole(self, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
        """From low to high, both possible."""
        return low + (self.bits(shape)[..., 0] % np.uint32(high - low + 1)).astype(np.int64)


def trial(
    name: str,
    regime: str,
    seed: int = 0,
    *,
    B: int = 1,
    T: int = 250,
    H: int = 2,
    HV: int = 4,
    K: int = 64,
    V: int = 64,
    start: bool = True,
) -> dict[str, Any]:
    """Arguments of `solve` for one op of the delta core in one regime."""
    op = ops.get(name)
    micro = 2 if "num_householder" in op.options else 1
    size = {"B": B, "T": T, "H": H, "HV": HV, "K": K, "V": V, "T*n": T * micro}
    draw = Draw(1 + seed * 64 + SEEDED.index(regime))
    given: dict[str, Any] = {}
    for tensor in op.inputs:
        shape = tuple(size[axis] if axis in size else _unknown(name, tensor) for axis in tensor.axes[0].split())
        rule = exact_values if regime in EXACT else values
        scalar = tensor.role == "decay" or tensor.name in ("beta", "b", "w", "d", "lamb")
        dtype = np.float32 if scalar else ml_dtypes.bfloat16
        given[tensor.name] = rule(draw, regime, tensor, shape).astype(dtype)
    if "a" in given and "b" in given:  # what is removed along a is written back against it, a part of it each time
        shape = given["a"].shape
        b = -given["a"].astype(np.float64) * (1.0 if regime in EXACT else draw.uniform(shape))
        if regime in EXACT:  # or all of it elsewhere, now and then: one row's content moves, and never grows
            elsewhere = one_hot(draw.whole(shape[:-1], 0, shape[-1] - 1), shape[-1])
            b += elsewhere * (draw.whole((*shape[:-1], 1), 0, 3) == 0)
        given["b"] = b.astype(ml_dtypes.bfloat16)
    if "p" in given and regime in ("e2", "e3"):  # halved wherever it is read, a state would run out of bits
        given["p"] = given["k"]
    elif "p" in given and regime not in EXACT:  # a key of its own would feed the memory back into itself without bound
        given["p"] = (given["k"].astype(np.float64) * draw.uniform(given["k"].shape, 0.5, 1.0)).astype(
            ml_dtypes.bfloat16
        )
    if micro > 1:
        given["num_householder"] = micro
    if start and len(op.states) == 2:  # of the exact learner: semidefinite, and what values there were
        u = draw.normal((B, HV, K))
        keys = 0.5 * np.eye(K) + u[..., None] * u[..., None, :]
        given["initial_state"] = keys.astype(np.float32), draw.normal((B, HV, K, V)).astype(np.float32)
    elif start:
        state = (B, HV, K, V)
        h0 = draw.whole(state, -3, 3) * (4 if regime == "e3" else 1) if regime in EXACT else draw.normal(state) * 0.5
        given["initial_state"] = h0.astype(np.float32)
    if regime in EXACT:
        given["scale"] = 0.125
    return {**given, **before(op, draw, size, micro, start)} if regime == FRONT else given


def before(op: Op, draw: Draw, size: Mapping[str, int], micro: int, start: bool) -> dict[str, Any]:
    """A norm with an eps that shows, convolutions of queries, keys and values, keys shifted, the gate from raw
    parameters."""
    found: dict[str, Any] = {"use_qk_l2norm": L2Norm(1e-2), "key_shift": 1}
    for role, name in (("query", "conv_q"), ("key", "conv_k"), ("value", "conv_v")):
        axes = op.role(role)[0].axes[0].split()
        channels = size[axes[2]] * size[axes[3]] * (micro if "T*n" in axes else 1)
        reach = WIDTH - 1 + found["key_shift"] * (role == "key")
        taps = (draw.normal((channels, WIDTH)) * 0.5).astype(np.float32)
        bias = draw.uniform((channels,), -0.3, 0.3).astype(np.float32)
        past = draw.normal((size["B"], channels, reach)).astype(ml_dtypes.bfloat16) if start else None
        found[name] = Conv(taps, bias, state=past)
    if len(op.role("decay")) == 1:
        decay = op.role("decay")[0]
        shape = tuple(size[axis] for axis in decay.axes[0].split())
        a = draw.normal(shape).astype(np.float32)
        A_log = draw.uniform((size["HV"],), -1.0, 1.0).astype(np.float32)
        dt_bias = draw.uniform(shape[2:], -3.0, 1.0).astype(np.float32)
        found |= {"gate": Gate(a, A_log, dt_bias), decay.name: None}
    return found


def _unknown(name: str, tensor: Tensor) -> int:
    raise UnavailableError(f"There are no trials for {name} yet: its {tensor.name} is no tensor of one entry a token.")


def unit(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.maximum((x * x).sum(axis=-1, keepdims=True), 1e-30)))


def keys(draw: Draw, regime: str, shape: tuple[int, ...]) -> Array:
    x = draw.uniform(shape) if regime == "fla" else draw.normal(shape)
    if regime == "corr":
        x = draw.normal((1, 1, *shape[2:])) + 0.2 * x
    return unit(x)


def log_sigmoid(x: Array) -> Array:
    return -apply(elementwise.softplus, -x)


def gates(draw: Draw, regime: str, shape: tuple[int, ...]) -> Array:
    """Log decays."""
    if regime == "nodecay":
        return np.zeros(shape)
    if regime == "mamba":  # exp(A_log) in 1 .. 16 a head, dt log-uniform in 0.001 .. 0.1
        heads = draw.uniform((1, 1, shape[2], *[1] * (len(shape) - 3)), 1.0, 16.0)
        return np.asarray(-heads * apply(elementwise.exp, draw.uniform(shape, np.log(0.001), np.log(0.1))))
    if regime == "corr":
        return -0.01 * draw.uniform(shape)
    if regime == "strong":
        return apply(elementwise.log, draw.uniform(shape, 1e-4, 0.4))
    return log_sigmoid(draw.normal(shape))


def values(draw: Draw, regime: str, tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """One input in one regime."""
    roles: dict[str, Callable[[], Array]] = {
        "decay": lambda: gates(draw, regime, shape),
        "key": lambda: keys(draw, regime, shape),
    }
    if tensor.role in roles:
        return roles[tensor.role]()
    if tensor.role in ("query", "value"):
        return draw.uniform(shape) if regime == "fla" else draw.normal(shape)
    if tensor.name in ("beta", "b", "w") and "K" not in tensor.axes[0].split():
        return draw.uniform(shape, 0.9, 1.0) if regime == "corr" else apply(elementwise.sigmoid, draw.normal(shape))
    if tensor.name in ("b", "w"):
        return draw.uniform(shape, 0.0, 1.0)
    if tensor.name == "d":
        return draw.uniform(shape, 0.0, 0.1)
    if tensor.name == "lamb":
        return draw.uniform(shape, 0.25, 1.25)
    return -keys(draw, regime, shape)


def one_hot(index: NDArray[np.int64], K: int) -> Array:
    return np.asarray((index[..., None] == np.arange(K)).astype(np.float64))


def exact_values(draw: Draw, regime: str, tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """One exact input."""
    if tensor.role == "decay" and regime == "e3":  # two tokens of each window may halve, its last one forgets
        t = np.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2)) % WINDOW
        halves = ((t == 2) | (t == 5)) & (draw.whole(shape, 0, 3) > 0)
        return np.where(t == WINDOW - 1, GONE, np.where(halves, np.log(0.5), 0.0))
    if tensor.role == "decay":
        return np.where(draw.whole(shape, 0, 15) == 0, GONE, 0.0)
    if tensor.role == "key" and regime == "e1":
        return one_hot(draw.whole(shape[:-1], 0, shape[-1] - 1), shape[-1])
    if tensor.role == "key" and regime == "e3":  # few channels, so that each is written again and again
        return one_hot(draw.whole(shape[:-1], 0, min(1, shape[-1] - 1)), shape[-1])
    if tensor.role == "key":  # every channel in turn, by a permutation of its own each time round
        B, T, H, K = shape
        order = np.argsort(draw.bits((B, -(-T // K), H, K))[..., 0], axis=-1, kind="stable")
        return one_hot(order.transpose(0, 1, 3, 2).reshape(B, -1, H)[:, :T], K)
    if tensor.role == "query" and regime in ("e2", "e3"):
        chosen = np.argsort(draw.bits(shape)[..., 0], axis=-1, kind="stable") < 4
        return np.asarray(np.where(chosen, 2.0 * draw.whole(shape, 0, 1) - 1.0, 0.0))
    if tensor.role == "query":
        return draw.whole(shape, -2, 2).astype(np.float64)
    if tensor.role == "value":
        return draw.whole(shape, -3, 3) * (4.0 if regime == "e3" else 1.0)
    if tensor.name in ("beta", "b", "w"):
        if regime == "e3":
            return np.minimum(draw.whole(shape, 0, 3), 1).astype(np.float64)
        return draw.whole(shape, 1, 2) * 0.5 if regime == "e2" else draw.whole(shape, 0, 1).astype(np.float64)
    if tensor.name == "a":
        return -one_hot(draw.whole(shape[:-1], 0, shape[-1] - 1), shape[-1])
    return np.zeros(shape)
