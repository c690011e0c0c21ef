"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from typing import Any


def write(target: str, pieces: Iterable[Any]) -> None:
    """Write beside `target` and rename; whatever interrupts it, no partial file and no draft stays behind."""
    draft = os.path.join(os.path.dirname(target), f".refengine-{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
