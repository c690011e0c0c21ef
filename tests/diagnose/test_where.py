"""Where a candidate goes wrong: the first row, and what the wrong rows have in common."""

import numpy as np
import pytest

from refengine.diagnose.confusion import cases
from refengine.diagnose.where import HINTS, localise
from refengine.verify.emulate import Run, emulate
from refengine.verify.mutate import stored

OP = "gated_delta_rule"


@pytest.fixture(scope="module")
def case():
    return next(cases(OP, "bf16", 71))[1]


def localised(case, of_o=None, of_state=None):
    """Of the right outputs with something done to them."""
    judge = case.judge
    got = stored(judge, *emulate(judge.core, judge.policy, Run("chunk", 64)))
    got = {name: x.astype(np.float64) for name, x in got.items()}
    for name, change in (("o", of_o), ("final_state", of_state)):
        if change is not None:
            got[name] = np.asarray(change(got[name]))
    with np.errstate(invalid="ignore"):
        return localise(judge, judge.measured(got), got)


def test_the_first_wrong_row(case):
    def late(o):
        o[1, 70:, 2] *= 1.5
        return o

    w = localised(case, late)
    assert (w.outputs, w.right, w.sequences, w.heads) == (("o",), ("final_state",), (1,), (2,))
    assert (w.first["batch"], w.first["sequence"], w.first["t"], w.first["head"]) == (1, 1, 70, 2)
    assert w.first["of_chunk"] == {"16": 6, "32": 6, "64": 6, "128": 70} and not w.first["last"]
    assert {"only sequence 1", "only head 2"} <= set(w.patterns) and (w.rows, w.of) == (30, 800)


def test_the_state_alone(case):
    w = localised(case, of_state=lambda s: np.where(np.arange(16) == 3, 0, s))
    assert (w.outputs, w.right, w.columns) == (("final_state",), ("o",), (3,))
    assert w.patterns == ("only the state, not o", "only column 3") and w.first["sequence"] == 0


def test_nothing_is_wrong(case):
    assert localised(case).outputs == ()


def test_rows_never_written_and_tails_have_hints_of_their_own(case):
    tail = (np.arange(100) >= 96)[:, None, None]
    assert localised(case, lambda o: np.where(tail, 0, o)).hint == HINTS["unwritten"]
    assert localised(case, lambda o: np.where(tail, 2 * o, o)).hint == HINTS["tail"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda o: np.multiply(o, 1.25), "1.25 times the truth"),
        (lambda o: np.negative(o), "sign and all"),
        (lambda o: np.where(np.arange(16) == 5, 0, o), "only column 5"),
        (lambda o: np.where((np.arange(100) % 16 == 3)[:, None, None], 0, o), "at token 3 of every chunk of 16"),
        (
            lambda o: np.where((np.arange(100) >= 96)[:, None, None], 0, o),
            "only the partial last chunk of 16 or 32 tokens",
        ),
        (lambda o: np.where((np.arange(100) < 3)[:, None, None], 0, o), "only the first 3 tokens of a sequence"),
        (lambda o: np.where((np.arange(100) >= 48)[:, None, None], 0, o), "from token 48, a multiple of 16, on"),
        (lambda o: np.where(np.arange(4)[:, None] >= 2, 0, o), "all value heads of key head 1"),
        (lambda o: np.where(np.arange(100)[:, None, None] == 9, np.nan, o), "elements NaN"),
    ],
)
def test_patterns(case, change, says):
    patterns = localised(case, lambda o: np.asarray(change(o))).patterns
    assert any(says in pattern for pattern in patterns), patterns
