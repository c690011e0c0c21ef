"""The yardstick as files: who has a suite and these needs one loop, in any language, and no refengine.

OUT/ID/sigma.GRADE.safetensors holds for every output, and for a state once more by columns ("NAME.columns"), of rows
[..., V] one number each in float64: NAME.sigma, the Euclidean norm that an honest error of the row is expected to have,
and NAME.row, what one row alone may be measured by. With d = candidate - truth, e of a row its norm:

    R = sqrt(sum e^2 / sum sigma^2)    rho = max e / row    Q the 99.9 % quantile of e / row
    z = max |d| sqrt(V) / row
    G = max(|sum d y / sum y^2|, |sum d sign y / sum |y||) sqrt(sum y^2 / sum sigma^2)

The metadata's `limits` is JSON: up to where each of them is PASS and up to where WARN, by output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import FileError, UnavailableError
from ..io import tensorfile
from .statistics import bias_limit, limits_of
from .suite import Golden, StaleError, load
from .yardstick import COLUMNS, WINDOWS

Array = NDArray[Any]


def write(golden: Golden, target: Path) -> None:
    """The file of one case."""
    judge = golden.judge
    tensors: dict[str, Array] = {}
    limits: dict[str, dict[str, tuple[float, float]]] = {}
    for view, scale in judge.scale.items():
        name = view.replace(COLUMNS, ".columns").replace(WINDOWS, ".windows")
        tensors |= {f"{name}.sigma": scale.sigma, f"{name}.row": scale.row}
        most = limits_of(judge.policy, judge.true[view].values.size, golden.strict)
        least = bias_limit(scale)
        most["G"] = (least * most["G"][0], least * most["G"][1])
        limits[name] = most
    metadata = {"case": golden.name, "grade": golden.grade, "limits": json.dumps(limits, sort_keys=True)}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{target.parent}: cannot be made a folder ({error.strerror}).") from error
    tensorfile.write(target, tensors, metadata)


def write_all(
    where: str,
    target: Path,
    grade: str,
    only_ops: Sequence[str] = (),
    tiers: Sequence[str] = (),
    grad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[str]]:
    """(how many cases have their file now, why others have none)."""
    found, wrong = load(where, grade, only_ops, tiers, grad=grad)
    if wrong:
        raise StaleError(wrong[0].text)
    done, without = 0, []
    for i, golden in enumerate(found):
        try:
            write(golden, target / golden.name / f"sigma.{grade.replace(':', '-')}.safetensors")
            done += 1
        except UnavailableError as error:
            without.append(str(error))
        if progress is not None:
            progress(i + 1, len(found))
    return done, list(dict.fromkeys(without))
