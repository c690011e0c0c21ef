"""Wrong gradients where the outputs are right: the mistakes of backward passes, held against what was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..verify.emulate import Run
from ..verify.gradient_mistakes import CATALOGUE, mutated
from ..verify.gradients import Backward
from ..verify.mistakes import EXACT, Outputs
from ..verify.policy import Policy
from .floors import Fit, fit
from .suspects import CHUNKS, Suspect
from .what import Lineup

Array = NDArray[Any]


class BackwardLineup(Lineup):
    """The gradients of one candidate, held against suspects; always all of them."""

    def __init__(self, back: Backward, policy: Policy, got: Mapping[str, Array]) -> None:
        self.back, self.core, self.policy, self.got = back, back.core, policy, got
        self.near, self.seen = [], []

    def quick(self, suspect: Suspect) -> Fit:
        return self.fit(suspect, quick=True)

    def fit(self, suspect: Suspect, quick: bool = False) -> Fit:
        compute = partial(self.outputs, suspect)
        with np.errstate(all="ignore"):
            exact = compute(EXACT, suspect.way or Run("chunk"))
        return fit(suspect, compute, exact, self.got, self.policy, self.core.segments, quick)

    def outputs(self, suspect: Suspect, policy: Policy, run: Run) -> Outputs | None:
        made = mutated(suspect.mutants[0], self.back, policy, run)
        return None if made is None else {name: made[name] for name in self.got}

    def suspects(self) -> Iterator[Suspect]:
        """Every mistake; of the chunk algebra, with each usual chunk."""
        for mutant in CATALOGUE:
            sizes = CHUNKS if mutant.acts == "backward" else (self.policy.chunk,)
            for C in dict.fromkeys((self.policy.chunk, *sizes)):
                yield Suspect((mutant,), Run("chunk", C))
