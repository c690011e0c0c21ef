"""The threads that share a piece of work. They are kept for the process: to start one takes a quarter of a millisecond,
a fiftieth of a long solve's and half of a short one's."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

MOST = 1024  # how many work at once is for a plan to say; a thread starts where none is idle


class Crew:
    """The threads beside the caller's."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """None yet, as in a process just forked: no thread comes along."""
        self.pool = ThreadPoolExecutor(MOST, "refengine")

    def share(self, work: Callable[[], None], threads: int, stop: Event) -> None:
        """`work` on so many threads, the caller's among them. It takes tasks until there are none, so that a thread
        that is late may stay away. What goes wrong anywhere sets `stop`, and nobody is at work any more on return."""

        def careful() -> None:
            try:
                work()
            except BaseException:
                stop.set()
                raise

        others = [self.pool.submit(careful) for _ in range(threads - 1)]
        try:
            careful()
            for other in others:
                if not other.cancel():
                    other.result()
        except BaseException:
            stop.set()  # also where Ctrl-C comes while the others are waited for
            wait([other for other in others if not other.cancel()])
            raise


CREW = Crew()
