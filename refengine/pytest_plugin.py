"""A kernel author's suite in five lines: pytest finds this by its entry point.

    def test_my_kernel(refengine_case):
        refengine_case.check(my_kernel)

runs once for every case of every op of --refengine-ops. Nothing heavy is imported until a test asks for a case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .errors import InputError, RefengineError

if TYPE_CHECKING:
    from .verify.suite import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("refengine", "judging kernels of linear attention")
    group.addoption(
        "--refengine-ops", metavar="NAME,...", default="gated_delta_rule", help="ops that refengine_case takes"
    )
    group.addoption("--refengine-grade", metavar="G", default="bf16", help="the precision that the kernels declare")
    group.addoption(
        "--refengine-suite", metavar="DIR", default="", help="a suite of goldens to take the cases from, or core"
    )
    group.addoption("--refengine-shape", metavar="K=64,...", default="", help="sizes B, T, H, HV, K, V of the cases")


def _shape(text: str) -> dict[str, int]:
    try:
        sizes = {name.strip(): int(n) for name, n in (word.split("=") for word in text.split(",") if word.strip())}
    except ValueError:
        raise InputError(f"--refengine-shape is {text!r}; it is sizes such as K=64,V=64.") from None
    unknown = sorted(set(sizes) - {"B", "T", "H", "HV", "K", "V"})
    if unknown:
        raise InputError(f"--refengine-shape has {unknown[0]}; the sizes are B, T, H, HV, K and V.")
    return sizes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case."""
    if "refengine_case" not in metafunc.fixturenames:
        return
    from .testing import cases, golden_cases
    from .verify.policy import policy

    config = metafunc.config
    try:
        shape = _shape(config.getoption("--refengine-shape"))
        grade = policy(config.getoption("--refengine-grade")).name
        from . import ops

        names = [ops.get(name.strip()).name for name in config.getoption("--refengine-ops").split(",")]
        suite = config.getoption("--refengine-suite")
        found = [
            c for name in names for c in (golden_cases(suite, name, grade) if suite else cases(name, grade, shape))
        ]
    except RefengineError as error:
        pytest.fail(str(error), pytrace=False)
    ids = [case.name if suite else f"{case.op}-{case.name}" for case in found]
    metafunc.parametrize("refengine_case", found, ids=ids, indirect=True)


@pytest.fixture
def refengine_case(request: pytest.FixtureRequest) -> Case:
    """A problem: `.inputs`, and `.check(kernel)`, which fails in the words of the verdict."""
    found: Any = request.param
    return found  # type: ignore[no-any-return]
