"""Where a problem runs: the CPU, or a GPU if one was asked for and can take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

from ..errors import InputError, RefengineError, UnavailableError
from ..kernels.conv import short_conv
from ..spec import Delta, Mesa
from .problem import Problem

# Where the `Job` on a GPU of what an op lowers to is, and the `adjoint`.
CUDA: dict[type, str] = {Delta: ".delta_cuda", Mesa: ".mesa_cuda"}
GRADIENTS: dict[type, str] = {Delta: ".delta_grad_cuda"}


def convolver(p: Problem) -> Callable[..., None]:
    """What convolves: on the GPU where one is there and may be taken, else on the CPU, with the same bits."""
    found: Callable[..., None] = short_conv
    if p.asked.device != "cpu":
        with suppress(UnavailableError):  # what is asked for and cannot be had, the family refuses
            if import_module("..kernels.cuda._device", __package__).refusal() is None:
                found = import_module(".conv_cuda", __package__).short_conv
    return found


class Home(Protocol):
    """A module that runs a family on a GPU."""

    def refusal(self, lowered: Any) -> RefengineError | None:
        """Why it cannot run this on this machine; None if it can."""


def home(p: Problem, lowered: Any, homes: Mapping[type, str] = CUDA) -> tuple[str | None, str | None]:
    """The module on a GPU, None for the CPU; and why the CPU, where that was left open."""
    if p.asked.device == "cpu":
        return None, None
    name = homes.get(type(lowered))
    try:
        why = unfit(p, name, homes is GRADIENTS) or import_module(str(name), __package__).refusal(lowered)
    except UnavailableError as error:
        why = error
    if why is None:
        return name, None
    if p.asked.device == "cuda":
        raise why
    return None, f"device auto: the CPU, because {str(why).removeprefix('device ')}"


def unfit(p: Problem, name: str | None, gradients: bool) -> RefengineError | None:
    """What no GPU could change."""
    if name is None:
        return InputError(f"device 'cuda' has no kernels for {'gradients of ' * gradients}{p.op.name} yet.")
    if p.precision == "certified":
        return InputError("device 'cuda' has no double-double kernels yet, which precision 'certified' needs.")
    return None
