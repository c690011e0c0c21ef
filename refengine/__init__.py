"""refengine: the right answer of a linear-attention recurrence, with a bound on how wrong it can be.

    import refengine
    s = refengine.solve("gated_delta_rule", q=q, k=k, v=v, g=g, beta=beta, use_qk_l2norm=True)
    s.o, s.final_state, s.bound["o"]

Names are found when first used: importing costs nothing.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diagnose.diagnosis import Diagnosis, diagnose
    from .engine.gradient import Gradient, grad
    from .engine.solution import Solution
    from .engine.solve import solve
    from .errors import (
        AdapterError,
        FileError,
        GrowingGateWarning,
        InputError,
        RefengineError,
        StepSizeWarning,
        UnavailableError,
    )
    from .frontend.gates import Gate
    from .frontend.norm import L2Norm
    from .frontend.pairing import Conv
    from .verify.verdict import Verdict, verify

__version__ = "0.1.0"

_HOME = {
    "solve": ".engine.solve",
    "grad": ".engine.gradient",
    "Gradient": ".engine.gradient",
    "Solution": ".engine.solution",
    "Verdict": ".verify.verdict",
    "Diagnosis": ".diagnose.diagnosis",
    "Conv": ".frontend.pairing",
    "Gate": ".frontend.gates",
    "L2Norm": ".frontend.norm",
    "RefengineError": ".errors",
    "InputError": ".errors",
    "FileError": ".errors",
    "UnavailableError": ".errors",
    "GrowingGateWarning": ".errors",
    "StepSizeWarning": ".errors",
    "AdapterError": ".errors",
}
__all__ = [
    "AdapterError",
    "Conv",
    "Diagnosis",
    "FileError",
    "Gate",
    "Gradient",
    "GrowingGateWarning",
    "InputError",
    "L2Norm",
    "RefengineError",
    "Solution",
    "StepSizeWarning",
    "UnavailableError",
    "Verdict",
    "diagnose",
    "grad",
    "ops",
    "solve",
    "testing",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(_import_module(_HOME[name], __name__), name)
    elif name in ("ops", "verify", "diagnose", "testing"):
        value = _import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
