"""Suspects that alter o itself, where these outputs are wrong: an element, a row, two rows, a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec import Mutant
from ..verify.emulate import Core
from ..verify.mistakes import Outputs
from ..verify.verdict import Judge
from .suspects import Suspect
from .what import Lineup
from .where import Where

Array = NDArray[Any]


def places(judge: Judge, lineup: Lineup, where: Where) -> Iterator[Suspect]:
    """Alterations of o itself, where these outputs have them."""
    first = where.first
    if first is None or "t" not in first:
        return
    x, truth = lineup.got["o"], judge.values("o")
    b, h = first["batch"], first["head"]
    _, t0, _ = judge.segments[first["sequence"]]
    t = t0 + first["t"]

    def put(name: str, doc: str, change: Callable[[Array], None], **parameters: Any) -> Suspect:
        def alter(got: Outputs, _: Core) -> Outputs:
            o = got["o"].copy()
            change(o)
            return {**got, "o": o}

        return Suspect((Mutant(name, doc, "answer", alter),), parameters=parameters)

    holes = [tuple(int(i) for i in at) for at in np.argwhere(np.isnan(x) & ~np.isnan(truth))]
    if holes:

        def hole(o: Array) -> None:
            o[tuple(np.array(holes).T)] = np.nan

        yield put("nan", f"{len(holes)} elements of o NaN, the first at {list(holes[0])}", hole, at=list(holes[0]))
    row = x[b, t, h]
    if not row.any():

        def blank(o: Array) -> None:
            o[b, t, h] = 0.0

        yield put("last_row_zero" if first["last"] else "row_zero", f"o[{b}, {t}, {h}] zero", blank, at=[b, t, h])
    i = int(np.argmax(np.abs(row - truth[b, t, h]))) if np.isfinite(row).all() else first["column"]

    def negate(o: Array) -> None:
        o[b, t, h, i] *= -1

    yield put("sign_flipped", f"o[{b}, {t}, {h}, {i}] negated", negate, at=[b, t, h, i])
    if t + 1 < x.shape[1]:

        def swap(o: Array) -> None:
            o[b, [t, t + 1]] = o[b, [t + 1, t]]

        yield put("rows_swapped", f"tokens {t} and {t + 1} of o swapped", swap, tokens=[t, t + 1])
    size = float((truth[b, t] ** 2).sum())
    c = float((x[b, t] * truth[b, t]).sum()) / size if size else np.nan
    if np.isfinite(c):

        def gain(o: Array) -> None:
            o[b, t] *= c

        yield put("token_gain", f"token {t} of o {c:.4g} times as large", gain, token=t, gain=c)
