"""Inputs to judge a verifier on: five regimes, and inputs whose answer every faithful implementation has to the bit.

Regimes: `fla` (positive queries and values, log-sigmoid gates: the field's usual test), `mamba` (gates as a layer
initialises them), `nodecay`, `corr` (keys almost parallel, steps near 1) and `strong` (decays from 0.4 to 1e-4).
Tensors that meet in a product are bfloat16, gates float32, and all of it comes from Philox: the same everywhere.

Exact inputs (`e1`, `e2`) keep every intermediate of every association, chunking and precision of 8 bits
representable: one-hot keys, small integers, steps 0, 1/2 and 1, decays 1 and 0 (a log of -1024). Whoever is not
bit-identical to the truth has an index wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import UnavailableError
from ..kernels import elementwise
from ..numbers.bounded import apply
from ..numbers.philox import words
from ..spec import Tensor

Array = NDArray[Any]
REGIMES = ("fla", "mamba", "nodecay", "corr", "strong")
EXACT = ("e1", "e2")
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
    draw = Draw(1 + seed * 64 + (*REGIMES, *EXACT).index(regime))
    given: dict[str, Any] = {}
    for tensor in op.inputs:
        shape = tuple(size[axis] if axis in size else _unknown(name, tensor) for axis in tensor.axes[0].split())
        rule = exact_values if regime in EXACT else values
        dtype = np.float32 if tensor.role == "decay" or tensor.name in ("beta", "b", "w", "d") else ml_dtypes.bfloat16
        given[tensor.name] = rule(draw, regime, tensor, shape).astype(dtype)
    if "a" in given and "b" in given:  # what is removed along a is written back against it, a part of it each time
        rate = 1.0 if regime in EXACT else draw.uniform(given["a"].shape)
        given["b"] = (-given["a"].astype(np.float64) * rate).astype(ml_dtypes.bfloat16)
    if "p" in given and regime not in EXACT:  # a key of its own would feed the memory back into itself without bound
        given["p"] = (given["k"].astype(np.float64) * draw.uniform(given["k"].shape, 0.5, 1.0)).astype(
            ml_dtypes.bfloat16
        )
    if micro > 1:
        given["num_householder"] = micro
    if start:
        state = (B, HV, K, V)
        h0 = draw.whole(state, -3, 3) if regime in EXACT else draw.normal(state) * 0.5
        given["initial_state"] = h0.astype(np.float32)
    if regime in EXACT:
        given["scale"] = 0.125
    return given


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
    return -keys(draw, regime, shape)


def one_hot(index: NDArray[np.int64], K: int) -> Array:
    return np.asarray((index[..., None] == np.arange(K)).astype(np.float64))


def exact_values(draw: Draw, regime: str, tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """One exact input."""
    if tensor.role == "decay":
        return np.where(draw.whole(shape, 0, 15) == 0, GONE, 0.0)
    if tensor.role == "key" and regime == "e1":
        return one_hot(draw.whole(shape[:-1], 0, shape[-1] - 1), shape[-1])
    if tensor.role == "key":  # every channel in turn, by a permutation of its own each time round
        B, T, H, K = shape
        order = np.argsort(draw.bits((B, -(-T // K), H, K))[..., 0], axis=-1, kind="stable")
        return one_hot(order.transpose(0, 1, 3, 2).reshape(B, -1, H)[:, :T], K)
    if tensor.role == "query" and regime == "e2":
        chosen = np.argsort(draw.bits(shape)[..., 0], axis=-1, kind="stable") < 4
        return np.asarray(np.where(chosen, 2.0 * draw.whole(shape, 0, 1) - 1.0, 0.0))
    if tensor.role == "query":
        return draw.whole(shape, -2, 2).astype(np.float64)
    if tensor.role == "value":
        return draw.whole(shape, -3, 3).astype(np.float64)
    if tensor.name in ("beta", "b", "w"):
        return draw.whole(shape, 0, 1).astype(np.float64) if regime == "e1" else draw.whole(shape, 1, 2) * 0.5
    if tensor.name == "a":
        return -one_hot(draw.whole(shape[:-1], 0, shape[-1] - 1), shape[-1])
    return np.zeros(shape)
