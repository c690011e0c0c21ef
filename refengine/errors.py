"""What a person can mend: every error here is one sentence that names the tensor, the axis and both numbers.

The CLI prints the sentence and exits with 2; in Python the classes also derive from the built-in a caller would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RefengineError(Exception):
    """Base of all errors a caller can mend."""


class InputError(RefengineError, ValueError):
    """A tensor or an option does not fit the op."""


class FileError(RefengineError, OSError):
    """A file cannot be read or written, or is not what it claims to be."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnavailableError(RefengineError, RuntimeError):
    """Something asked for is not on this machine (a device, an extra)."""


class AdapterError(RefengineError, RuntimeError):
    """A candidate could not be run, or gave nothing that can be judged; its own words are in the sentence."""


class InputWarning(UserWarning):
    """An input that is legal, and seldom meant."""


class GrowingGateWarning(InputWarning):
    """A positive log gate: the state grows."""


class StepSizeWarning(InputWarning):
    """A step below 0 or above 2: away from the value, whatever the key; often logits given as beta."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown `name`: the nearest known one, and then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
