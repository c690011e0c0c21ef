"""For the tests of a kernel: every case of an op, and one assertion that a function implements it.

from refengine.testing import assert_implements
assert_implements(my_kernel, "gated_delta_rule", grade="bf16")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .errors import InputError
from .verify import suite as suites
from .verify.suite import in_grade
from .verify.trials import EXACT, REGIMES, SLACK, trial
from .verify.verdict import Judge, problem_of

NAMES = (*EXACT, *REGIMES)  # the exact ones first: whoever fails there has an index wrong
SHAPE = {"B": 2, "T": 133, "H": 2, "HV": 4, "K": 64, "V": 128}


@dataclass(frozen=True)
class Case(suites.Case):
    """One problem for a kernel: an op, inputs in one regime, and the grade it is judged by."""

    op: str
    regime: str
    grade: str = "bf16"
    shape: Mapping[str, int] = field(default_factory=lambda: SHAPE)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.regime

    @cached_property
    def inputs(self) -> dict[str, Any]:  # type: ignore[override]
        """Arguments by our names: NumPy arrays in the dtypes of the grade, and settings."""
        return in_grade(trial(self.op, self.regime, **self.shape), self.grade)  # type: ignore[arg-type]

    @cached_property
    def judge(self) -> Judge:  # type: ignore[override]
        return Judge(problem_of(self.op, self.inputs), self.grade, slack=SLACK.get(self.regime, 0.0))


def golden_cases(suite: str, op: str, grade: str = "bf16") -> Iterator[suites.Case]:
    """Every case of an op in a suite of goldens, a folder or the name of one that is shipped; the exact ones first."""
    found, wrong = suites.load(suite, grade, (op,))
    if wrong:
        raise InputError(f"The suite cannot be used: {wrong[0].text}")
    yield from found


def cases(op: str, grade: str = "bf16", shape: Mapping[str, int] | None = None) -> Iterator[Case]:
    """Every case of an op; its exact ones first, where it has any."""
    for regime in NAMES:
        if regime not in EXACT or op not in NEVER_EXACT:
            yield Case(op, regime, grade, {**SHAPE, **(shape or {})})


NEVER_EXACT = ("retention", "lightning_attn", "longhorn")  # their own coefficients are no powers of two


def assert_implements(
    function: Callable[..., Any],
    op: str,
    grade: str = "bf16",
    *,
    laws: bool = True,
    outputs: Sequence[str] | None = None,
    shape: Mapping[str, int] | None = None,
    framework: str = "auto",
    device: str = "cpu",
) -> None:
    """Assert that a function implements an op at a grade: exact inputs, five regimes, and (once) the laws.

    Parameters
    ----------
    function
        Takes the op's inputs by our names, those in its signature, and returns o, (o, final_state), or a mapping.
    op, grade
        As in `refengine.verify`.
    laws
        Also cut, pack, permute and repeat it, on the first regime.
    outputs
        Those that it gives; None for all.
    shape
        Sizes that it needs, {"K": 64, ...}; the others are B 2, T 133, H 2, HV 4, K 64, V 128.
    framework, device
        As in `refengine.verify`.

    Raises
    ------
    AssertionError
        With the verdict in words.
    refengine.AdapterError
        The function could not be called.
    """
    for case in cases(op, grade, shape):
        case.check(
            function, outputs=outputs, laws=laws and case.regime == REGIMES[0], framework=framework, device=device
        )
