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


# What other projects call it.
ELSEWHERE = {
    "use_qk_l2norm_in_kernel": "use_qk_l2norm",
    "gk": "g",
    "query": "q",
    "key": "k",
    "value": "v",
    "h0": "initial_state",
    "gdn": "gated_delta_rule",
    "gated_deltanet": "gated_delta_rule",
    "deltanet": "delta_rule",
    "mamba": "simple_gla",
    "mamba2": "simple_gla",
    "ssd": "simple_gla",
    "retnet": "retention",
    "mesa": "mesa_net",
}
NOT_HERE = {
    "head_first": "the layout is [B, T, heads, channels]",
    "output_final_state": "the final state is always given",
}
FORMS = ("chunk_", "fused_recurrent_", "fused_chunk_", "parallel_", "naive_recurrent_", "naive_chunk_")


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown `name`: the nearest known one, and then all of them."""
    names = sorted(known)
    if name in NOT_HERE:
        return f": {NOT_HERE[name]}"
    plain = name.lower().replace("-", "_")
    for form in FORMS:
        plain = plain.removeprefix(form)
    plain = ELSEWHERE.get(plain, plain)
    close = [plain] if plain in names else difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
