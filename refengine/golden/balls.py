"""The exact answer, enclosed: the definition in python-flint's balls, and its gradients by taking every operation back.

Nothing here shares code with the kernels or with the front end they use: `define` runs an op's `step` token by token
over numbers that remember how they came to be, and the tape of these is read backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..engine.definition import define
from ..engine.problem import Problem
from ..errors import UnavailableError
from .cases import kind

Array = NDArray[Any]
THIN = 2.0**-104  # of the largest of an output
PRECISIONS = (384, 1200, 3600)  # bits, in turn, until all are thin and round to one float64; the last for long ones


def library() -> Any:
    try:
        import flint
    except ImportError:
        raise UnavailableError("Goldens are certified by balls: python -m pip install python-flint.") from None
    return flint


class Taped:
    """A ball that knows what it was computed from: (operand, partial derivative) pairs, on a tape in order."""

    __slots__ = ("owed", "parents", "value")
    tape: ClassVar[list[Taped]]

    def __init__(self, value: Any, *parents: tuple[Taped, Any]) -> None:
        self.value, self.parents, self.owed = value, parents, None
        if parents:
            self.tape.append(self)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented  # NumPy goes through the array
        if isinstance(other, Taped):
            return type(self)(self.value + other.value, (self, 1), (other, 1))
        return type(self)(self.value + other, (self, 1))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented
        if isinstance(other, Taped):
            return type(self)(self.value * other.value, (self, other.value), (other, self.value))
        return type(self)(self.value * other, (self, other))

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented
        return self * (other.reciprocal() if isinstance(other, Taped) else library().arb(1) / other)

    def reciprocal(self) -> Taped:
        value = 1 / self.value
        return type(self)(value, (self, -value * value))

    def __rtruediv__(self, other: Any) -> Any:
        return self.reciprocal() * other

    def __neg__(self) -> Taped:
        return type(self)(-self.value, (self, -1))

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, np.ndarray) else self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __abs__(self) -> Taped:
        sign = (self.value > 0) - (self.value < 0)  # at a kink any slope between
        return type(self)(abs(self.value), (self, sign or library().arb(0, 1)))

    def exp(self) -> Taped:
        value = self.value.exp()
        return type(self)(value, (self, value))

    def log1p(self) -> Taped:
        return type(self)(self.value.log1p(), (self, 1 / (1 + self.value)))

    def tanh(self) -> Taped:
        value = self.value.tanh()
        return type(self)(value, (self, 1 - value * value))

    def __pow__(self, n: int) -> Taped:
        return type(self)(self.value**n, (self, n * self.value ** (n - 1)))

    def sqrt(self) -> Taped:
        value = self.value.sqrt()
        return type(self)(value, (self, 1 / (2 * value)))

    def __eq__(self, other: object) -> bool:
        return bool(self.value == (other.value if isinstance(other, Taped) else other))

    __hash__ = object.__hash__  # a place on the tape is no other

    def __ge__(self, other: Any) -> bool:
        return bool(self.value >= (other.value if isinstance(other, Taped) else other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.value > (other.value if isinstance(other, Taped) else other))

    def __le__(self, other: Any) -> bool:
        return not self > other

    def __lt__(self, other: Any) -> bool:
        return not self >= other


Balls = dict[str, Array]


def outputs(p: Problem, system: Any = "balls") -> Balls:
    """o and the final states by their names, as the definition has them."""
    o, final = define(p, system)
    names = p.op.final_names()
    return {"o": o, **dict(zip(names, (final,) if len(names) == 1 else final, strict=True))}


def gradients(p: Problem, cotangents: Mapping[str, Array]) -> tuple[Balls, Balls]:
    """(o and the final states, the gradient of what `cotangents` weighs of them in every input given), as balls."""
    arb = library().arb

    class Recorded(Taped):
        __slots__ = ()
        tape: ClassVar[list[Taped]] = []

    each = np.frompyfunc(lambda x: Recorded(arb(float(x))), 1, 1)
    seen: dict[int, tuple[Any, Array]] = {}

    def number(x: Any) -> Array:
        if id(x) not in seen:
            seen[id(x)] = (x, np.asarray(each(np.asarray(x, dtype=np.float64)), dtype=object))
        return seen[id(x)][1]

    read = outputs(p, number)
    for name, owed in cotangents.items():
        for node, start in zip(read[name].ravel(), owed.ravel(), strict=True):
            node.owed = arb(float(start)) + (0 if node.owed is None else node.owed)
    for node in reversed(Recorded.tape):
        if node.owed is not None:
            for parent, partial in node.parents:
                term = partial * node.owed
                parent.owed = term if parent.owed is None else parent.owed + term
    owed_of = np.frompyfunc(lambda node: arb(0) if node.owed is None else node.owed, 1, 1)
    value_of = np.frompyfunc(lambda node: node.value, 1, 1)
    found = {name: owed_of(nodes) for name, x in leaves(p).items() if (nodes := recorded(seen, x)) is not None}
    for name in found:
        if name.startswith("conv_") and name.endswith(".weight"):  # kept tap by tap
            found[name] = found[name].T
    return {name: np.asarray(value_of(nodes)) for name, nodes in read.items()}, found


def recorded(seen: Mapping[int, tuple[Any, Array]], x: Array) -> Array | None:
    """The numbers that were made of an array, or of one channel that is all of it."""
    if id(x) in seen:
        return seen[id(x)][1]
    views = (nodes for y, nodes in seen.values() if np.size(y) == x.size and np.shares_memory(np.asarray(y), x))
    found = next(views, None)
    return None if found is None else found.reshape(x.shape)


def leaves(p: Problem) -> dict[str, Any]:
    """Every input by its name in a file, as the arrays that the definition reads."""
    out: dict[str, Any] = dict(p.tensors)
    for name, rule in p.pairing.items():
        letter = {"query": "q", "key": "k", "value": "v"}[p.op.tensor(name).role]
        if rule.weight is not None and f"conv_{letter}.weight" not in out:
            out[f"conv_{letter}.weight"] = rule.weight
            if getattr(p.asked, f"conv_{letter}").bias is not None:
                out[f"conv_{letter}.bias"] = rule.bias
    if p.gate is not None:
        out |= {"gate.a": p.gate.a, "gate.A_log": p.gate.A_log, "gate.dt_bias": p.gate.dt_bias}
    if p.beta_logits is not None:
        out["beta_logits"] = p.beta_logits
    names = [name.replace("final", "initial", 1) for name in p.op.final_names()]
    out |= dict(zip(names, p.initial, strict=True))
    return {name: x for name, x in out.items() if x is not None}


def rounded(balls: Array) -> tuple[Array, Array]:
    """(the float64 nearest to every ball's middle, whether every number of the ball rounds to it)."""
    ends = [(float(ball.lower()), float(ball.mid()), float(ball.upper())) for ball in balls.ravel()]
    low, middle, high = np.array(ends, dtype=np.float64).reshape(-1, 3).T
    return middle.reshape(balls.shape), ((low == middle) & (middle == high)).reshape(balls.shape)


@contextmanager
def bits(precision: int) -> Iterator[None]:
    """That many bits in every ball made within."""
    context = library().ctx
    before, context.prec = context.prec, precision
    try:
        yield
    finally:
        context.prec = before


Settled = dict[str, tuple[Array, Array, Array]]


def settled(compute: Callable[[], Balls]) -> Settled:
    """(balls, nearest float64, whether it is the only one) of every output, at the least precision that settles all by
    balls thin enough to judge others by, or at the last one."""
    out: Settled = {}
    for precision in PRECISIONS:
        with bits(precision):
            out = {name: (balls, *rounded(balls)) for name, balls in compute().items()}
        if all(sure.all() and thin(balls, nearest) for balls, nearest, sure in out.values()):
            break
    return out


def thin(balls: Array, nearest: Array) -> bool:
    """Whether no ball is wider than a THIN part of the largest, or of 1."""
    most = THIN * float(np.abs(nearest).max(initial=1.0))
    return all(2 * float(ball.rad()) <= most for ball in balls.ravel())


def enclosed(p: Problem, cotangents: Mapping[str, Array]) -> Settled:
    """`settled`, of o, the final states and (with cotangents) dNAME for every input."""

    def compute() -> Balls:
        if not cotangents:
            return outputs(p)
        read, owed = gradients(p, cotangents)
        return read | {f"d{name}": balls for name, balls in owed.items()}

    return settled(compute)


def apart(high: Array, low: Array, balls: Array) -> tuple[Array, Array]:
    """(the least that high + low and the exact value can be apart, the most)."""
    arb = library().arb
    each = np.frompyfunc(lambda h, l, b: abs(arb(float(h)) + arb(float(l)) - b), 3, 1)
    with bits(PRECISIONS[-1]):
        off = each(high, low, balls)
        ends = [(float(x.abs_lower()), float(x.abs_upper())) for x in off.ravel()]
    least, most = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    return least.reshape(high.shape), most.reshape(high.shape)


def beyond(high: Array, balls: Array) -> Array:
    """The float64 nearest to what a ball's middle has beyond `high`."""
    arb = library().arb
    each = np.frompyfunc(lambda h, b: float((b.mid() - arb(float(h))).mid()), 2, 1)
    with bits(PRECISIONS[-1]):
        return np.asarray(each(high, balls), dtype=np.float64).reshape(high.shape)


def small(p: Problem, most: int = 4_000_000) -> bool:
    """Whether the definition can be run in balls in less than about a minute."""
    B, T, HV, K, V = (p.sizes[a] for a in ("B", "T", "HV", "K", "V"))
    each = K * V
    what = kind(p.op)
    if what == "attention":  # every token before it
        each = T * (K + V) // 2
    elif what == "training":  # every token of its mini-batch
        each = max(K, V) * p.sizes.get("R", min(K, V)) * (4 + p.options["chunk_size"])
    elif what == "regression":  # elimination
        each += K * K * (K // 3 + 2)
    return B * T * HV * each <= most
