"""A sequence longer than memory, one window of tokens at a time: the same bits as the whole at once, bounds too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

from ..errors import InputError, InputWarning
from ..frontend.gates import Gate
from ..spec import Op
from .carry import Carry
from .problem import Asked, build
from .run import Progress, execute
from .solution import Solution

ROOM = 1 << 26  # bytes of one window's inputs as float64
LEAST = 512  # tokens of a window


class Stream:
    """The arguments of `solve`, sliced along the tokens.

    length: how many tokens there are, or None where the arguments cannot be cut into windows: packed sequences, a wrong
    rank, tensors that disagree. Then the whole at once says what is wrong, or solves it.
    """

    def __init__(self, op: Op, arguments: Mapping[str, Any]) -> None:
        self.op, self.arguments = op, arguments
        rule = op.options.get("num_householder")
        times = 1 if rule is None else arguments.get("num_householder", rule.default)
        self.times = {t.name: times for t in op.inputs if any("T*n" in axes.split() for axes in t.axes)}
        lengths = {self._tokens(name, x) for name, x in self._tensors()}
        length = lengths.pop() if len(lengths) == 1 else None
        packed = arguments.get("cu_seqlens") is not None
        self.length: int | None = None if packed or op.chunked else length

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        """Every argument with a token axis, which is its second."""
        for tensor in self.op.inputs:
            x = self.arguments.get(tensor.name)
            if x is not None and any("T" in axes.replace("*n", "").split() for axes in tensor.axes):
                yield tensor.name, x
        if self.arguments.get("beta_logits") is not None:
            yield "beta_logits", self.arguments["beta_logits"]
        if isinstance(self.arguments.get("gate"), Gate):
            yield "gate", self.arguments["gate"].a

    def _tokens(self, name: str, x: Any) -> int | None:
        times = self.times.get(name, 1)
        if getattr(x, "ndim", 0) < 3 or not isinstance(times, int) or times < 1 or x.shape[1] % times:
            return None
        return int(x.shape[1]) // times

    def default_window(self) -> int:
        """As many tokens as fit the room."""
        numbers = sum(x.size for _, x in self._tensors())
        return max(LEAST, int(ROOM * (self.length or 0) // max(8 * numbers, 1)))

    def piece(self, t0: int, t1: int, carried: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the tokens t0 .. t1; `carried`: the tokens before them, as `Solution.pairing_state`."""
        given = dict(self.arguments)
        for name, x in self._tensors():
            times = self.times.get(name, 1)
            cut = x[:, t0 * times : t1 * times]
            given[name] = replace(given["gate"], a=cut) if name == "gate" else cut
        given.pop("states_at", None)
        if t0 > 0 or carried:
            given["initial_state"] = None
            given["pairing_state"] = carried
            given |= {n: replace(given[n], state=None) for n in ("conv_q", "conv_k", "conv_v") if given.get(n)}
        return given

    def windows(
        self,
        cuts: Sequence[int],
        carry: Carry,
        carried: Mapping[str, Any],
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, int, Solution]]:
        """(first token, one past the last, their solution) of each piece between two of `cuts`; `carry` goes along."""
        options = {f.name for f in fields(Asked)}
        for t0, t1 in pairwise(cuts):
            given = self.piece(t0, t1, carried)
            asked = Asked(**{name: x for name, x in given.items() if name in options})
            tensors = {name: x for name, x in given.items() if name not in options}
            try:
                with warnings.catch_warnings():
                    if t0 > cuts[0]:
                        warnings.simplefilter("ignore", InputWarning)  # said once
                    solution = execute(build(self.op.name, tensors, asked), threads, progress, carry)
            except InputError as error:
                raise InputError(f"In tokens {t0} to {t1}, counted from there: {error}") from error
            carried = solution.pairing_state
            yield t0, t1, solution
