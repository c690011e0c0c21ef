"""A progress bar on a terminal, fed from any thread."""

from __future__ import annotations

import sys
import time
from threading import Lock
from types import TracebackType
from typing import Any

import click

PATIENCE = 0.5  # seconds before a bar is worth showing
PAUSE = 0.1  # seconds between two drawings


class Bar:
    """`progress(done, total)` for `refengine.solve`. No worker waits for another's drawing."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.lock = Lock()
        self.next = time.monotonic() + PATIENCE
        self.bar: Any = None
        self.shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if not self.shown or time.monotonic() < self.next or not self.lock.acquire(blocking=False):
            return
        try:
            if self.bar is None:
                self.bar = click.progressbar(length=total, label=self.label, file=sys.stderr).__enter__()
            self.bar.update(max(0, done - self.bar.pos))
            self.next = time.monotonic() + PAUSE
        finally:
            self.lock.release()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            self.shown = False
            if self.bar is not None:
                if kind is None:
                    self.bar.update(max(0, self.bar.length - self.bar.pos))
                self.bar.__exit__(kind, error, trace)
