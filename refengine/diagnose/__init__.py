"""Which mistake is it? Where a candidate departs from the truth (where), which known mistake reproduces what it gave
(suspects, floors, what), what would settle it (probes), and a paragraph about it (words). The package is also the
function: `refengine.diagnose(op, inputs, candidate)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Diagnose(ModuleType):
    """A package that can be called, so that `refengine.diagnose` is the function whatever was imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .diagnosis import diagnose

        return diagnose(*args, **kwargs)


sys.modules[__name__].__class__ = _Diagnose
