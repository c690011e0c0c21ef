"""A file's problem, solved one window of tokens at a time: memory for the states and a window, whatever the length.

OUT.partial is the answer under way and OUT.resume what the next window goes on from, written about every second; both
are gone when OUT is there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from refengine import Solution
from refengine.engine.carry import Carry
from refengine.engine.run import NoWindows
from refengine.engine.windows import Stream
from refengine.errors import InputError
from refengine.io import tensorfile

from . import answer
from .bar import Bar
from .question import Question

STATE = ("state", "norm", "error")  # of the carry
PAIRING = "pairing_state."
PAUSE = 1.0  # seconds between two OUT.resume


def cuts_of(length: int, window: int, stops: list[int], start: int) -> list[int]:
    """Where windows end: every `window` tokens, and wherever a state is wanted."""
    if start == 0 and 0 in stops:
        return [0, *cuts_of(length, window, [t for t in stops if t], 0)]
    cuts = {start, length, *(t for t in stops if start < t < length), *range(start, length, window)}
    return sorted(cuts)


class Run:
    """An answer written window by window."""

    def __init__(self, goal: Path, asked: Question, origin: Path, stream: Stream) -> None:
        self.goal, self.asked, self.origin, self.stream = goal, asked, origin, stream
        self.memory = Path(f"{os.path.realpath(goal)}.resume")
        self.carry, self.pasts = Carry(), dict[str, NDArray[Any]]()
        self.qualities: dict[str, answer.Quality] = {"o": answer.Quality()}
        self.resumed: dict[str, str] | None = None
        self.draft: tensorfile.Draft | None = None
        self.metadata: dict[str, str] = {}
        self.next = time.monotonic() + PAUSE
        self.stops = [int(t) for t in asked.arguments.get("states_at") or ()]

    def recall(self) -> None:
        """Take up where an interrupted run stopped."""
        if not self.memory.is_file():
            raise InputError(f"There is nothing to resume: no {self.memory.name} beside {self.goal}.")
        kept, self.resumed = tensorfile.read(self.memory)
        known = {name: answer.text_of(x) for name, x in self.asked.settings.items() if name in self.resumed}
        self.same(known)
        self.carry = Carry(int(kept["tokens"][0]), *(kept[name] for name in STATE))
        self.pasts = {n.removeprefix(PAIRING): x for n, x in kept.items() if n.startswith(PAIRING)}
        largest, worst, rows, without = kept["quality"].tolist()
        self.qualities["o"] = answer.Quality(largest, worst, int(rows), int(without))

    def same(self, now: Mapping[str, str]) -> None:
        """What is resumed is the same question."""
        if self.resumed is None:
            return
        for name, value in now.items():
            before = self.resumed.get(name)
            if before != value:
                raise InputError(
                    f"{self.memory.name} is of another question: {name} was {before!r}, now it is {value!r}."
                )

    def remember(self) -> None:
        """What the next window goes on from, once what is before it is on disk."""
        if self.draft is None or time.monotonic() < self.next:
            return
        self.draft.sync()
        kept = {name: getattr(self.carry, name) for name in STATE}
        kept |= {f"{PAIRING}{name}": x for name, x in self.pasts.items()}
        kept |= {"tokens": np.array([self.carry.tokens]), "quality": np.array(astuple(self.qualities["o"]), np.float64)}
        tensorfile.write(self.memory, kept, self.metadata)
        self.next = time.monotonic() + PAUSE

    def begin(self, solution: Solution) -> tensorfile.Draft:
        """The draft, once a first window shows what the answer is made of."""
        length = self.stream.length or 0
        shapes = {name: (x.dtype, x.shape) for name, x in answer.tensors_of(solution).items()}
        for name in ("o", "o.bound"):
            dtype, shape = shapes[name]
            shapes[name] = (dtype, (shape[0], length, *shape[2:]))
        if self.stops:
            dtype, shape = shapes["final_state"]
            shapes["states"] = (dtype, (len(self.stops), *shape))
        self.metadata = answer.metadata_of(self.asked, solution, self.origin)
        self.same(self.metadata)
        return tensorfile.Draft(self.goal, shapes, self.metadata, resume=self.resumed is not None)

    def take(self, t0: int, t1: int, solution: Solution) -> None:
        """A window's answer into the draft."""
        if self.draft is None:
            self.draft = self.begin(solution)
        for b in range(len(solution.o)):
            self.draft.put("o", (b, t0), solution.o[b])
            self.draft.put("o.bound", (b, t0), solution.bound["o"][b])
        for j in (j for j, t in enumerate(self.stops) if t == t1):
            self.draft.put("states", (j,), solution.final_state)
        if t1 == self.stream.length:
            for name, x in answer.tensors_of(solution).items():
                if name not in ("o", "o.bound"):
                    self.draft.put(name, (), x)
        self.qualities["o"].add(solution, "o")
        self.pasts = solution.pairing_state

    def forget(self) -> None:
        """Nothing of an unfinished answer stays."""
        for path in (self.memory, Path(f"{os.path.realpath(self.goal)}.partial")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def solve(
    *,
    goal: Path,
    asked: Question,
    origin: Path,
    tensors: Mapping[str, NDArray[Any]],
    threads: int | None,
    window: int | None,
    resume: bool,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]] | None:
    """The answer of a long problem into `goal`; how wrong its outputs can be, and how it ran. None: it is not long, or
    cannot be cut into windows."""
    stream = Stream(asked.op, asked.arguments)
    if stream.length is None or (window is None and not resume and stream.length <= stream.default_window()):
        return None
    run, length, clock = Run(goal, asked, origin, stream), stream.length, time.perf_counter()
    if length == 0 or any(t < 0 or t > length for t in run.stops):
        return None  # the whole at once says what is wrong
    if resume:
        run.recall()
    cuts = cuts_of(length, window or stream.default_window(), run.stops, run.carry.tokens)
    with Bar(asked.op.name) as bar:

        def progress(done: int, total: int) -> None:
            at = run.carry.tokens
            ahead = next((t for t in cuts if t > at), at) - at
            bar(at + round(ahead * done / max(total, 1)), length)

        try:
            for t0, t1, solution in stream.windows(cuts, run.carry, run.pasts, threads, progress):
                run.take(t0, t1, solution)
                if t1 < length:
                    run.remember()
                tensorfile.release(tensors.values())
        except NoWindows:
            return None
        except InputError:
            if not resume:
                run.forget()
            raise
        except KeyboardInterrupt:
            if run.memory.is_file():
                click.echo(f"{goal}.partial holds the answer so far; solve again with --resume to go on.", err=True)
            else:
                run.forget()  # so early that there is nothing to go on from
            raise
    assert run.draft is not None
    run.draft.finish()
    run.forget()
    outputs = {"o": run.qualities["o"].found(run.draft.shapes["o"].shape, solution.o.dtype)}
    outputs |= {name: q for name, q in answer.qualities(solution).items() if name != "o"}
    if run.stops:
        outputs["states"] = {"shape": list(run.draft.shapes["states"].shape), "dtype": str(solution.o.dtype)}
    info = {**solution.info, "seconds": time.perf_counter() - clock, "windows": len(cuts) - 1, "states_at": run.stops}
    info["plan"] = (*info["plan"], f"{len(cuts) - 1} windows of tokens, the states carried")
    return outputs, info
