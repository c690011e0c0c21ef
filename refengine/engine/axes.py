"""Axes by letter: every input's shape against its declared layout, and the sentence for the first that disagrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import InputError
from ..spec import Op, Tensor

WORDS = {
    "B": "rows",
    "T": "tokens",
    "H": "key heads",
    "HV": "value heads",
    "K": "key channels",
    "V": "value channels",
    "N": "sequences",
    "R": "hidden channels",
}


class Sizes(dict[str, int]):
    """The size of each axis letter, and which tensor said so first."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, str] = {}

    def bind(self, letter: str, size: int, tensor: str, axis: int) -> None:
        """Let `letter` be `size`, or say who disagrees with whom."""
        if letter in self:
            if self[letter] != size:
                word = WORDS.get(letter, letter)
                raise InputError(
                    f"{tensor} has {size} {word} (axis {axis}, {letter}), but {self.said[letter]} has {self[letter]}."
                )
            return
        self[letter] = size
        self.said[letter] = f"{tensor} (axis {axis})"


def shape_text(array: NDArray[Any]) -> str:
    return "[" + ", ".join(str(n) for n in array.shape) + "]"


def layout_of(op: Op, tensor: Tensor, array: NDArray[Any]) -> tuple[str, ...]:
    """The declared layout an input has, by its rank; then by its last axis where two layouts have that rank."""
    layout = tensor.layout(array.ndim)
    if layout is None:
        wanted = " or ".join(f"[{', '.join(a.split())}]" for a in tensor.axes)
        raise InputError(f"{tensor.name} has {array.ndim} axes {shape_text(array)}; {op.name} takes it as {wanted}.")
    return layout


def measure(op: Op, tensors: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Sizes:
    """The sizes of all axes, agreed on by every input."""
    sizes = Sizes()
    expanded: list[tuple[str, int, int]] = []
    for tensor in op.inputs:
        if tensor.name not in tensors:
            continue
        array = tensors[tensor.name]
        for axis, (letter, size) in enumerate(zip(layout_of(op, tensor, array), array.shape, strict=True)):
            if letter == "T*n":
                expanded.append((tensor.name, size, axis))
            else:
                sizes.bind(letter, size, tensor.name, axis)
    times = options.get("num_householder", 1)
    for name, size, axis in expanded:
        if size != sizes["T"] * times:
            raise InputError(
                f"{name} has {size} tokens (axis {axis}), but {sizes.said['T']} has {sizes['T']} and num_householder "
                f"is {times}: {sizes['T'] * times} are needed."
            )
    sizes.setdefault("HV", sizes.get("H", 1))
    sizes.setdefault("V", sizes.get("K", 1))
    sizes.setdefault("H", sizes["HV"])
    if sizes["H"] == 0 or sizes["HV"] % sizes["H"]:
        raise InputError(
            f"{sizes.said.get('HV', 'v')} has {sizes['HV']} value heads, which is no multiple of the {sizes['H']} key "
            f"heads of {sizes.said.get('H', 'k')}."
        )
    for letter in ("K", "V", "R"):
        if sizes.get(letter, 1) == 0:
            raise InputError(f"{sizes.said[letter]} has 0 {WORDS[letter]}; at least 1 is needed.")
    return sizes
