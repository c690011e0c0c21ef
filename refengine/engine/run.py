"""The running: a family's tasks, in turn or on threads, with the same bits either way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib import import_module
from threading import Event, Lock
from typing import Any, Protocol

from ..errors import InputError
from ..spec import Delta, FastWeights, Mesa, Softmax
from .carry import Carry
from .certified import correctly_rounded, of_the_high_part
from .crew import CREW
from .device import home
from .plan import Plan
from .prepare import prepare
from .problem import Problem
from .solution import Answer, Solution

Progress = Callable[[int, int], None]
# Where the `Job` of what an op lowers to is, and where in double-double.
FAMILIES: dict[type, str] = {Delta: ".delta", FastWeights: ".fast_weights", Mesa: ".mesa", Softmax: ".softmax"}
CERTIFIED: dict[type, str] = {Delta: ".certified", Mesa: ".mesa_dd", Softmax: ".softmax_dd"}


class Work(Protocol):
    """Something cut into tasks."""

    plan: Plan

    @property
    def work(self) -> int:
        """What `done` counts to, over all tasks."""

    def tasks(self) -> Iterable[Any]:
        """The longest first; no two touch the same memory."""

    def run(self, task: Any, stop: Event, done: Callable[[int], None]) -> None:
        """One task, with a look at `stop` now and then."""

    def compile(self) -> None:
        """Have the kernels compiled here, where Ctrl-C is heard."""


class Job(Work, Protocol):
    """One problem under way, and the answer its tasks leave."""

    def answer(self) -> Answer:
        """When all tasks are done."""


def run_all(job: Work, progress: Progress | None) -> None:
    """Every task, the caller's thread among those that work; Ctrl-C stops within one look at the flag."""
    total, finished = job.work, 0
    stop, lock = Event(), Lock()
    tasks = iter(job.tasks())

    def done(work: int) -> None:
        nonlocal finished
        with lock:
            finished += work
            if progress is not None:
                progress(finished, total)

    def work() -> None:
        while not stop.is_set():
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            job.run(task, stop, done)

    if job.plan.threads > 1:
        job.compile()
    CREW.share(work, job.plan.threads, stop)


class NoWindows(Exception):  # noqa: N818  # no error of anybody's: the caller solves the whole at once
    """This problem cannot be solved one window of tokens at a time."""


def execute(
    p: Problem, threads: int | None = None, progress: Progress | None = None, carry: Carry | None = None
) -> Solution:
    """Solve a problem; with `carry` one window of a longer one, which goes on from it and leaves it for the next."""
    clock = time.perf_counter()
    lowered, pasts = prepare(p)
    prepared = time.perf_counter()
    certified = p.precision == "certified"
    homes = CERTIFIED if certified else FAMILIES
    if type(lowered) not in homes:
        raise InputError(f"{p.op.name} has no precision 'certified'; 'float64' carries a bound too.")
    on_gpu, why_not = home(p, lowered)
    job: Any = import_module(on_gpu or homes[type(lowered)], __package__).Job(p, lowered, threads)
    if carry is not None:
        if type(lowered) is not Delta or certified or on_gpu:
            raise NoWindows
        job.windowed(carry)
    run_all(job, progress)
    found = job.answer()
    if carry is not None:
        job.pass_on()
    names = p.op.final_names()
    ran: dict[str, Any] = {
        "plan": job.plan.lines() if why_not is None else (why_not, *job.plan.lines()),
        "device": "cuda" if on_gpu else "cpu",
        "form": job.plan.form,
        "threads": job.plan.threads,
        "seconds": time.perf_counter() - clock,
        "seconds_front_end": prepared - clock,
        "certificate": found.certificate,
    }
    finals = dict(zip(names, found.final, strict=True))
    bound = {"o": found.o_bound, **dict(zip(names, found.final_bound, strict=True))}
    low = dict(zip(bound, found.low, strict=True)) if certified else {}
    if certified:
        outputs = {"o": (found.o, low["o"], found.o_bound[..., None])}
        outputs |= {
            n: (x, low[n], b[:, :, None]) for n, x, b in zip(names, found.final, found.final_bound, strict=True)
        }
        ran["correctly_rounded"] = correctly_rounded(outputs)
        alone = {n: of_the_high_part(low[n], b, -1 if n == "o" else -2) for n, b in bound.items()}
        bound = alone | {f"{n}.lo": b for n, b in bound.items()}
    return Solution(
        o=found.o,
        final_state=found.final[0] if len(names) == 1 else found.final,
        bound=bound,
        states=None if not p.states_at else found.states[0] if len(names) == 1 else found.states,
        pairing_state=pasts,
        finals=finals,
        low=low,
        info=p.conventions() | ran,
    )
