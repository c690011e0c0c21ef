"""Tier E of what is no recurrence of the delta core: programs that round every operation to bfloat16 give the same
bits as float64, and so does float32; the usual mistakes give others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import refengine
from refengine import ops
from refengine.engine.run import execute
from refengine.golden.balls import outputs
from refengine.golden.cases import kind, suite
from refengine.golden.exact import sequences
from refengine.golden.exposure import exposure
from refengine.golden.inputs import arguments
from refengine.golden.problems import problem
from refengine.verify.mistakes import defined

CASES = [case for case in suite("core", tiers=("E",)) if kind(case.op) != "delta"]
ATTENTION = ("segments ignored",)
REGRESSION = (
    *("initial state ignored", "decay of the token before", "decay ignored", "decay to base 2"),
    *("decay of the first head for all", "beta ignored", "beta doubled", "scale missing", "queries and keys swapped"),
)
UNSEEN = {"lact": ("rows_not_rescaled", "eps_of_the_other")}  # a row's length and Newton-Schulz are not exact
LEARNER = (
    *("initial state ignored", "scale missing", "segments ignored", "mini-batches twice as long"),
    "queries and keys swapped",
)
TITANS = (*LEARNER, "alpha ignored", "eta ignored", "theta doubled")
STRUCTURAL = {
    "softmax_attention": ATTENTION,
    "mesa_net": (*REGRESSION, *ATTENTION, "ridge halved"),
    "gated_kalmanet": (*REGRESSION, *ATTENTION, "alpha ignored"),
    "titans": TITANS,
    "titans_mlp": [name for name in TITANS if name not in ("initial state ignored", "mini-batches twice as long")],
    "lact": (*LEARNER, "order update_first", "weight_norm post", "weight_norm pre"),
    "ttt": (
        *(set(LEARNER) - {"segments ignored"}),
        *("decay ignored", "decay of the token before", "decay of the first head for all", "eta ignored"),
        *("theta doubled", "loss squared", "loss huber", "read before"),
    ),
}


def bf16(x):
    return np.asarray(x, dtype=np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def same(x, y):
    return np.array_equal(x + 0.0, y + 0.0)  # a zero's sign is ignored


def attention(q, k, v, scale):
    """A tile at a time, with a running maximum."""
    o = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        top, total, sums = -np.inf, 0.0, np.zeros(v.shape[1])
        for j in range(0, t + 1, 4):
            tile = slice(j, min(j + 4, t + 1))
            s = bf16(scale * bf16(k[tile] @ q[t]))
            before, top = top, max(top, s.max())
            w, kept = bf16(np.exp(s - top)), bf16(np.exp(before - top))
            total, sums = bf16(kept * total + w.sum()), bf16(kept * sums + w @ v[tile])
        o[t] = bf16(sums * bf16(1 / total))
    return (o,)


def cholesky(A, y):
    """A^-1 y, every operation rounded."""
    n = len(y)
    L, x = np.zeros((n, n)), np.array(y)
    for j in range(n):
        L[j, j] = bf16(np.sqrt(bf16(A[j, j] - bf16(L[j, :j] @ L[j, :j]))))
        L[j + 1 :, j] = bf16(bf16(A[j + 1 :, j] - bf16(L[j + 1 :, :j] @ L[j, :j])) / L[j, j])
    for i in range(n):
        x[i] = bf16(bf16(x[i] - bf16(L[i, :i] @ x[:i])) / L[i, i])
    for i in reversed(range(n)):
        x[i] = bf16(bf16(x[i] - bf16(L[i + 1 :, i] @ x[i + 1 :])) / L[i, i])
    return x


def regression(q, k, v, g, beta, ridge, alpha, scale, H, G):
    o = []
    for t in range(len(q)):
        a, b = bf16(np.exp(g[t])), beta[t]
        H = bf16(a * H + bf16(b * k[t])[:, None] * k[t])
        G = bf16(a * G + bf16(b * k[t])[:, None] * v[t])
        size = bf16(np.sqrt(bf16((H * H).sum())))
        x = cholesky(bf16(H + np.diag(ridge if alpha is None else np.full(len(H), size))), q[t])
        y = x if alpha is None else bf16(q[t] + bf16(alpha[t] * bf16(x - q[t])))
        o.append(bf16(scale * bf16(y @ G)))
    return np.array(o).reshape(len(q), v.shape[1]), H, G


class Narrow:
    """A number that is rounded to bfloat16 after every operation."""

    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x.x if isinstance(x, Narrow) else float(bf16(x))

    def with_other(self, other, operation):
        if isinstance(other, np.ndarray):
            return NotImplemented  # NumPy goes through the array
        return Narrow(operation(self.x, other.x if isinstance(other, Narrow) else other))

    def __add__(self, other):
        return self.with_other(other, lambda x, y: x + y)

    def __sub__(self, other):
        return self.with_other(other, lambda x, y: x - y)

    def __rsub__(self, other):
        return self.with_other(other, lambda x, y: y - x)

    def __mul__(self, other):
        return self.with_other(other, lambda x, y: x * y)

    def __truediv__(self, other):
        return self.with_other(other, lambda x, y: x / y)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self):
        return Narrow(-self.x)

    def __abs__(self):
        return Narrow(abs(self.x))

    def __pow__(self, n):
        return Narrow(self.x**n)

    def exp(self):
        return Narrow(np.exp(self.x))

    def tanh(self):
        return Narrow(np.tanh(self.x))

    def sqrt(self):
        return Narrow(np.sqrt(self.x))


def learner(p):
    """o and the final states by the op's definition."""
    each = np.frompyfunc(Narrow, 1, 1)
    values = np.frompyfunc(lambda y: y.x, 1, 1)
    read = outputs(p, lambda x: np.asarray(each(np.asarray(x, dtype=np.float64)), dtype=object))
    return {name: values(y).astype(float) for name, y in read.items()}


def rounded(case, a):
    """o and the final states by the programs above."""
    size, x = case.size, {n: np.asarray(y, dtype=float) for n, y in a.items() if isinstance(y, np.ndarray)}
    o, finals = np.zeros((size["B"], size["T"], size["HV"], size["V"])), {}
    starts = {n: np.asarray(y, dtype=float) for n, y in a.get("initial_state", {}).items()}
    for n, row, t0, t1 in sequences(case):
        for h in range(size["HV"]):
            per = {m: y for m, y in x.items() if y.ndim > 2}
            cut = {m: y[row, t0:t1, h // (size["HV"] // y.shape[2])] for m, y in per.items()}
            S = [y[n, h] for y in starts.values()]
            if kind(case.op) == "attention":
                found = attention(cut["q"], cut["k"], cut["v"], a["scale"])
            else:
                ridge, alpha = x["lamb"][h] if "lamb" in x else None, cut.get("alpha")
                found = regression(*(cut[m] for m in ("q", "k", "v", "g", "beta")), ridge, alpha, a["scale"], *S)
            o[row, t0:t1, h] = found[0]
            for name, y in zip(case.op.final_names() if starts else (), found[1:], strict=True):
                finals.setdefault(name, np.zeros((case.sequences, size["HV"], *y.shape)))[n, h] = y
    return {"o": o, **finals}


def given(case):
    a = arguments(case)
    return a, {n: a.pop(n) for n in ("do", "dht") if n in a}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_operation_rounded_to_bfloat16_gives_the_same_bits(case):
    a, _ = given(case)
    p = problem(case.op.name, a)
    truth, narrow = execute(p, 1), execute(problem(case.op.name, {**a, "precision": "float32"}), 1)
    with np.errstate(over="ignore", under="ignore"):
        narrowest = learner(p) if kind(case.op) == "training" else rounded(case, a)
    for name, x in narrowest.items():
        exact, short = (s.o if name == "o" else s.finals[name] for s in (truth, narrow))
        assert same(x, exact) and same(short.astype(float), exact), name
    assert (truth.o != 0).mean() > 0.05


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.regime.gradients and c.parts != "dot_channel"], ids=lambda case: case.id
)
def test_gradients_have_the_same_bits_in_float32(case):
    a, cotangents = given(case)
    plain = refengine.grad(case.op.name, **a, **cotangents)
    narrow = refengine.grad(case.op.name, **a, **cotangents, precision="float32")
    for name, x in plain.items():
        assert same(x, narrow[name].astype(np.float64)), name
        assert same(x, x.astype(np.float32).astype(np.float64)), name


@pytest.mark.parametrize("name", [n for n in ops.NAMES if n in {case.op.name for case in CASES}])
def test_the_usual_mistakes_have_other_bits(name):
    seen = [exposure(case.op, given(case)[0], 5e-324)[1] for case in CASES if case.op.name == name]
    assert set(STRUCTURAL[name]) - set().union(*seen) == set()


@pytest.mark.parametrize("name", [n for n in ops.NAMES if n in {case.op.name for case in CASES}])
def test_the_ops_own_mistakes_have_other_bits(name):
    for mutant in (m for m in ops.get(name).mutants if not m.precision and m.name not in UNSEEN.get(name, ())):
        caught = []
        for case in (case for case in CASES if case.op.name == name):
            p = problem(name, given(case)[0])
            truth = {"o": execute(p, 1).o, **execute(p, 1).finals}
            with np.errstate(all="ignore"):
                caught += [not same(x, truth[n]) for n, x in defined(mutant, p).items()]
        assert any(caught), mutant.name
