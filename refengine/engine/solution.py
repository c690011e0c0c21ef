"""The answer, how wrong it can be, and how it was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numbers.bounded import Bounded
from .plan import Plan


@dataclass(frozen=True)
class Answer:
    """What a family's job leaves. Of each of the op's states: final [N, HV, ...], its bound, and its values at
    `states_at`."""

    o: NDArray[Any]
    o_bound: NDArray[Any]
    final: tuple[NDArray[Any], ...]
    final_bound: tuple[NDArray[Any], ...]
    states: tuple[NDArray[Any], ...]
    certificate: str  # what kind of bound it is
    low: tuple[NDArray[Any], ...] = ()  # in double-double: the low parts of o and of each final state


@dataclass(frozen=True)
class Cotangents:
    """What a family's adjoint leaves: of each operand of the lowered problem, by its name there; of some also the sum
    of the sizes of its terms; and of each of the op's initial states, with bounds as of the final ones."""

    operands: Mapping[str, Bounded]
    sizes: Mapping[str, NDArray[Any]]
    initial: tuple[NDArray[Any], ...]
    initial_bound: tuple[NDArray[Any], ...]
    certificate: str  # what kind of bound it is
    plans: tuple[Plan, ...]
    inputs: Mapping[str, Bounded] = field(default_factory=dict)  # and of inputs that reach the family by no operand
    seconds_forward: float | None = None  # in sweeps that only compute again what the forward did, where told apart


@dataclass(frozen=True, repr=False)
class Solution:
    """What `solve` returns; NumPy arrays, float64 (float32 where precision="float32").

    o [B, T, HV, V]. final_state [N, HV, K, V]. bound["o"] [B, T, HV]: no entry of that row is further than this from
    the exact answer for the inputs as given. bound["final_state"] [N, HV, V]: the Euclidean norm of that column's
    error is at most this. Both are rigorous where info["certificate"] says so (the running bound of kernels/delta.py,
    the definition in balls); "compared" is a measure and no proof. They are infinite where the answer is not finite or
    nothing can be said. states [len(states_at), N, HV, K, V]: the state after so many tokens.
    pairing_state: for each shifted or convolved tensor the tokens [N, channels, width - 1 + shift] that the next call
    takes as `Conv.state` or `pairing_state`. info: how it ran.

    With precision="certified": low["o"] and low["final_state"] are what the exact answer has beyond o and final_state,
    to about another 50 bits; bound["o.lo"] and bound["final_state.lo"] bound the sums o + low["o"] and so on, as
    bound["o"] and bound["final_state"] still do o and final_state alone. info["correctly_rounded"] says how many
    elements of them are proved to be the float64 nearest to the exact answer.

    Where an op carries several states (`refengine ops NAME`), final_state and states are tuples in that order, and
    their bounds are bound["final_state.NAME"]; where it carries none, the tuple is empty. finals: the final states by
    those names.
    """

    o: NDArray[Any]
    final_state: Any
    bound: dict[str, NDArray[Any]]
    states: Any = None
    pairing_state: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    finals: dict[str, NDArray[Any]] = field(default_factory=dict)
    low: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def worst(self, name: str = "o") -> float:
        """The largest bound of an output."""
        return float(self.bound[name].max(initial=0.0))

    def __repr__(self) -> str:
        found = {"o": self.o, **self.finals}
        said = [f"{n} {list(x.shape)} {x.dtype} off by at most {self.worst(n):.1e}" for n, x in found.items()]
        return f"<Solution of {self.info.get('op')}: {'; '.join(said)} ({self.info.get('certificate')})>"
