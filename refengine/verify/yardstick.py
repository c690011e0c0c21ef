"""The yardstick: for every row, the error that a faithful implementation of the declared policy would make.

    sigma_r = max(E_r, W_r, KAPPA u_out |y_r|, |delta_r|, sqrt(V) eta)

E_r is what an ensemble of emulations errs: the larger of its root mean square and 0.8 times its worst, for each class
of algorithm that the policy allows. Members differ in chunk size and phase, in the order of sums (key channels
permuted; value channels never meet in a sum) and in the noise that stands for every rounding. W_r keeps a row from
being judged by the luck of its own ensemble: a share of what nine in ten rows near it stay below, less where the row is
smaller than they are. Then the output's own rounding, what the truth itself may be off by, and eta, the spacing of
the output's smallest numbers (its smallest normal one where subnormals may be flushed). All of it is drawn from
counters: the same bits on every run. Where one row is judged alone (rho, Q, z), it may err as much as members do near
it in rows where their chunks begin or end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.plan import available_cores
from ..engine.problem import Problem
from ..engine.solution import Solution
from ..kernels import compare
from ..numbers.formats import KAPPA
from .emulate import Core, Run
from .policy import Policy

Array = NDArray[Any]
NEAR = 64  # rows on either side that a row's neighbourhood has
WORST_COUNTS = 0.8
ALONG = [compare.WITH_TRUTH, compare.WITH_SIGN]
LARGEST = 1.73  # of eight normal numbers in units of their deviation: the median
SMOOTHING, FINE_SMOOTHING = 0.75, 1.0  # where nothing is rounded below the arithmetic, rows may be almost exact by luck
QUANTILE = 0.9
COLUMNS = " columns"  # a state seen by columns
WINDOWS, WINDOW = " windows", 16  # gradients of one number a token and head, so many tokens a row
PIECE = 2**21  # numbers that one thread compares at a time
END = -1  # a phase that makes the last chunk whole


@dataclass(frozen=True)
class View:
    """One way to see an output as rows: its name, the values [..., V], along which axis rows are neighbours, what the
    rows' axes are ("tokens": batch, token, head; "windows" of tokens likewise; "state": sequence, head, row; "flat"),
    and, of a truth, what it has beyond the values."""

    name: str
    values: Array
    along: int
    kind: str
    low: Array | None = None

    @property
    def base(self) -> str:
        """The output's name."""
        return self.name.removesuffix(COLUMNS).removesuffix(WINDOWS)


@dataclass(frozen=True)
class Scale:
    """What the rows of one view are measured by: sigma and its parts; `row`, what one row alone may be measured by;
    `bias`, the largest coherent gain of a member, or what that is by chance, in units of the view's expected relative
    error."""

    sigma: Array
    row: Array
    certificate: Array  # |delta_r|: what the truth may be off by
    bias: float
    parts: Mapping[str, Array] = field(default_factory=dict)


def views(outputs: Mapping[str, Array], low: Mapping[str, Array] | None = None) -> Iterator[View]:
    """o, and gradients of vectors, by rows; states by rows and by columns; gradients of numbers by windows of tokens;
    those of weights by rows."""
    for name, x in outputs.items():
        rest = None if low is None else low.get(name)
        if is_state(name):
            yield View(name, x, 2, "state", rest)
            turned = None if rest is None else np.swapaxes(rest, -1, -2)
            yield View(f"{name}{COLUMNS}", np.swapaxes(x, -1, -2), 2, "state", turned)
        elif x.ndim == 4:
            yield View(name, x, 1, "tokens", rest)
        elif x.ndim == 3 and "pairing_state" not in name:
            yield View(f"{name}{WINDOWS}", windows(x), 1, "windows")
        else:
            rows = x if x.ndim > 1 else x[None]
            yield View(name, rows, rows.ndim - 2, "flat")


def is_state(name: str) -> bool:
    """Of a memory: final_state, dinitial_state, and so on."""
    return "_state" in name and "pairing_state" not in name


def part_of(name: str, rank: int) -> str:
    """Which of the policy's formats an output is stored in: gradients of vectors as outputs are, of states as states,
    of gates, steps and weights as gates."""
    return "state" if is_state(name) else "io" if rank == 4 else "gate"


def windows(x: Array) -> Array:
    """[B, T, heads] as [B, windows, heads, WINDOW], zeros behind the last token."""
    B, T, heads = x.shape
    padded = np.zeros((B, -(-T // WINDOW) * WINDOW, heads), np.float64)
    padded[:, :T] = x
    return np.ascontiguousarray(padded.reshape(B, -1, WINDOW, heads).swapaxes(2, 3))


def truth_views(truth: Solution) -> dict[str, View]:
    """Every output of a solution, as rows."""
    return {view.name: view for view in views({"o": truth.o, **truth.finals}, truth.low)}


def moments(x: Array, true: View) -> Array:
    """The sums of kernels.compare.rows for every row, [..., 6]."""
    y = true.values
    shape = (int(np.prod(y.shape[:-1])), y.shape[-1])
    low = np.empty((0, 0)) if true.low is None else _rows(true.low, shape)
    out = np.empty((shape[0], compare.MOMENTS))
    given, whole = np.ascontiguousarray(x).reshape(shape), _rows(y, shape)
    pieces = -(-whole.size // PIECE) or 1
    edges = [shape[0] * i // pieces for i in range(pieces + 1)]

    def fill(rows: slice) -> None:
        compare.rows(given[rows], whole[rows], low[rows], out[rows])

    parts = [slice(*edge) for edge in pairwise(edges)]
    if pieces == 1:
        fill(parts[0])
    else:
        with ThreadPoolExecutor(min(available_cores(), pieces)) as pool:
            list(pool.map(fill, parts))
    return out.reshape(*y.shape[:-1], compare.MOMENTS)


def _rows(x: Array, shape: tuple[int, int]) -> Array:
    return np.ascontiguousarray(x, dtype=np.float64).reshape(shape)


def members(policy: Policy) -> dict[str, list[Run]]:
    """The ensemble, by class of algorithm."""
    C = policy.chunk
    half = max(1, C // 2)
    # phases by a quarter and a little, so that tiles of 16 rows inside the chunks fall elsewhere too; the final state
    # is one slice of time and meets the longest sums where the last chunk is whole
    ways = [(C, 0), (C, C // 4 + 5), (C, 3 * C // 4 + 15), (C, END), (half, 0), (half, END), (2 * C, 0), (2 * C, END)]
    chunk = [
        Run("chunk", c, max(phase, 0), phase == END, seed=101 + i, permutation=201 + i)
        for i, (c, phase) in enumerate(ways)
    ]
    steps = 2 if policy.algorithm == "any" else len(ways)
    recurrent = [Run("recurrent", seed=301 + i, permutation=401 + i) for i in range(steps)]
    every = {"chunk": chunk, "recurrent": recurrent}
    return every if policy.algorithm == "any" else {policy.algorithm: every[policy.algorithm]}


def certificates(view: View, bound: Array) -> Any:
    """A bound on the Euclidean error of every row of a view, from that of its output."""
    if view.kind == "tokens" and bound.ndim == 4:
        return np.sqrt((bound**2).sum(axis=-1))
    if view.kind == "tokens":
        return bound * np.sqrt(view.values.shape[-1])
    if view.kind == "windows":
        return np.sqrt((windows(bound) ** 2).sum(axis=-1))
    if view.kind == "flat":
        return np.sqrt((bound.reshape(view.values.shape) ** 2).sum(axis=-1))
    if view.name.endswith(COLUMNS):
        return bound
    whole = np.sqrt((bound**2).sum(axis=-1, keepdims=True))
    return np.broadcast_to(whole, view.values.shape[:3])


def bounds(truth: Solution) -> dict[str, Array]:
    """How wrong each output of a solution may be."""
    names = {name: f"{name}.lo" if name in truth.low else name for name in ("o", *truth.finals)}
    return {name: np.asarray(truth.bound[key], np.float64) for name, key in names.items()}


def yardstick(p: Problem, truth: Solution, policy: Policy, core: Any = None) -> dict[str, Scale]:
    """The scale of every view of every output."""
    core = Core.of(p) if core is None else core
    groups = members(policy).values()
    begins = core.begins if isinstance(core, Core) else None
    return scales(truth_views(truth), bounds(truth), policy, groups, lambda run: core.outputs(policy, run), begins)


def scales(
    true: Mapping[str, View],
    bound: Mapping[str, Array],
    policy: Policy,
    groups: Iterable[Iterable[Run]],
    outputs: Callable[[Run], Mapping[str, Array]],
    begins: Callable[[Run], NDArray[np.bool_]] | None = None,
) -> dict[str, Scale]:
    """The scale of every true view, from the outputs of an ensemble whose members are of several groups; `begins`
    says at which tokens [B, T] a member's chunks begin."""
    squares: dict[str, list[list[Array]]] = {name: [] for name in true}
    gains: dict[str, list[Array]] = {name: [] for name in true}
    alone: dict[str, list[Array]] = {name: [] for name in true}
    ends = {name: Ends(view.values.shape[:-1], policy.chunk) for name, view in true.items() if view.kind == "tokens"}
    for runs in groups:
        for found in squares.values():
            found.append([])
        for run in runs:
            starts = None if begins is None else begins(run)
            for view in views(outputs(run)):
                sums = moments(view.values, true[view.name])
                squares[view.name][-1].append(sums[..., compare.SQUARES])
                rows = sums.reshape(-1, compare.MOMENTS)
                gains[view.name].append(rows.sum(axis=0))
                alone[view.name].append(np.hypot.reduce(rows[:, ALONG], axis=0))
                if starts is not None and view.name in ends:
                    ends[view.name].see(sums[..., compare.SQUARES], starts)
    for name, view in true.items():
        each = [np.hypot.reduce(alone[n]) / np.sqrt(len(alone[n])) for n in true if true[n].base == view.base]
        gains[name].append(by_chance(gains[name][0], np.max(each, axis=0)))
    return {
        name: scale_of(view, squares[name], gains[name], certificates(view, bound[view.base]), policy, ends.get(name))
        for name, view in true.items()
    }


def by_chance(sums: Array, alone: Array) -> Array:
    """A member's sums as those of the largest of so many members would be, if rows (or columns, whichever scatter
    more) erred independently, by `alone` together: eight numbers are few, and may all be small by luck."""
    found = sums.copy()
    found[ALONG] = LARGEST * alone
    return found


class Ends:
    """What members err in rows that begin a chunk, and in rows that end one.

    Nobody says where a candidate's chunks begin, and such rows may err several times as much as those between (of dk
    and dv, where keys are nearly parallel: three times on average). The members' borders are at few tokens, so that a
    row's own ensemble has rarely seen what it errs as one; it has seen what rows near it do. One row is measured by
    that; in sums over many, where few are at borders, sigma counts."""

    def __init__(self, shape: tuple[int, ...], chunk: int) -> None:
        self.reach = max(NEAR, chunk)
        self.squares, self.count = np.zeros((2, *shape)), np.zeros((2, *shape[:2], 1))

    def see(self, squares: Array, begins: NDArray[np.bool_]) -> None:
        """One member's squared errors [B, rows, heads], and at which tokens [B, T] its chunks begin."""
        each = squares.shape[1] // max(begins.shape[1], 1)
        for b, t in np.argwhere(begins):
            for place, at in enumerate((t * each, t * each - 1)):
                near = slice(max(0, at - self.reach * each), at + self.reach * each + 1)
                self.squares[place, b, near] += squares[b, at]
                self.count[place, b, near] += 1

    def expected(self) -> Array:
        """Root mean squares [B, rows, heads] of such rows near each row, of whichever of the two err more."""
        return np.asarray(np.sqrt((self.squares / np.maximum(self.count, 1)).max(axis=0)))


def scale_of(
    view: View, squares: list[list[Array]], gains: list[Array], delta: Array, policy: Policy, ends: Ends | None
) -> Scale:
    """sigma of one view from what its ensemble erred."""
    spread = np.zeros(view.values.shape[:-1])
    for group in squares:
        both = np.maximum(np.mean(group, axis=0), WORST_COUNTS**2 * np.max(group, axis=0))
        spread = np.maximum(spread, np.sqrt(both))
    norm = np.sqrt((np.asarray(view.values, np.float64) ** 2).sum(axis=-1))
    out = policy.format({"state": "state", "tokens": "io"}.get(view.kind, "gate"))
    width = np.sqrt(view.values.shape[-1])
    eta = out.tiny if policy.ftz else out.tiny * 2 * out.u
    usual, share = neighbourhood(spread, norm, view.along)
    parts = {
        "ensemble": spread,
        "neighbours": (FINE_SMOOTHING if policy.fine else SMOOTHING) * usual * share,
        "output rounding": KAPPA * out.u * norm,
        "truth": delta,
        "smallest number": np.full(spread.shape, width * eta),
    }
    sigma = np.maximum.reduce(list(parts.values()))
    expected = np.sqrt((sigma**2).sum()) / max(np.sqrt((norm**2).sum()), np.finfo(float).tiny)
    row = sigma if ends is None else np.maximum(sigma, ends.expected())
    return Scale(sigma, row, delta, max((gain(g, expected) for g in gains), default=0.0), parts)


def gain(sums: Array, expected: float) -> float:
    """The coherent gain of an error, in units of the expected relative error: what truncation or a wrong scale
    shows."""
    along = abs(sums[compare.WITH_TRUTH]) / max(sums[compare.TRUTH_SQUARES], np.finfo(float).tiny)
    signs = abs(sums[compare.WITH_SIGN]) / max(sums[compare.TRUTH_SIZE], np.finfo(float).tiny)
    return float(max(along, signs) / expected) if expected > 0 else 0.0


def neighbourhood(spread: Array, norm: Array, along: int) -> tuple[Array, Array]:
    """(what nine in ten of a row's neighbours stay below, the row's size in units of their median but at most 1)."""
    if spread.shape[along] == 0:
        return spread, spread
    errs, sizes = np.moveaxis(spread, along, -1), np.moveaxis(norm, along, -1)
    flat = np.stack([errs.reshape(-1, errs.shape[-1]), sizes.reshape(-1, sizes.shape[-1])])
    near = min(NEAR, flat.shape[-1] - 1)
    padded = np.pad(flat, ((0, 0), (0, 0), (near, near)), mode="reflect" if near else "edge")
    out = np.empty(flat.shape)
    count = 2 * near + 1
    high, middle = min(count - 1, round(QUANTILE * (count - 1))), count // 2
    for i in range(flat.shape[1]):
        windows = np.lib.stride_tricks.sliding_window_view(padded[:, i], count, axis=-1)
        out[0, i] = np.partition(windows[0], high, axis=-1)[:, high]
        median = np.partition(windows[1], middle, axis=-1)[:, middle]
        with np.errstate(over="ignore"):
            out[1, i] = np.minimum(1.0, flat[1, i] / np.maximum(median, np.finfo(float).tiny))
    usual, share = (np.moveaxis(x.reshape(errs.shape), -1, along) for x in out)
    return usual, share
