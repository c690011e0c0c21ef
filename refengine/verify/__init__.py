"""Judging a candidate: how an honest implementation would err (policy, emulate, yardstick), how this one does
(statistics), and what follows (verdict). The package is also the function: `refengine.verify(op, inputs, candidate)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Verify(ModuleType):
    """A package that can be called, so that `refengine.verify` is the function whatever was imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .verdict import verify

        return verify(*args, **kwargs)


sys.modules[__name__].__class__ = _Verify
