"""The findings as plots for a talk: one message each, readable in grey and by the colour-blind.

matplotlib (the extra `plot`) is imported by whoever draws. Colours: Okabe and Ito; every line and point also has a
marker or a label of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

from ..errors import UnavailableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "os^Dv<>PX*"
STYLE: Any = {
    "font.size": 13,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 15,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.dpi": 150,
}


def available() -> None:
    """Refuse before any work is done."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnavailableError("Plots need matplotlib: python -m pip install matplotlib.") from error


def canvas(width: float = 10, height: float = 6) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def collapse(data: Mapping[str, Any], source: str) -> Figure:
    figure, axes = canvas()
    for i, curve in enumerate(data["curves"]):
        colour = COLOURS[i]
        axes.plot(data["t"], curve["theory"], color=colour, linewidth=2)
        axes.plot(
            data["t"],
            curve["measured"],
            MARKERS[i],
            color=colour,
            markersize=7,
            markerfacecolor="none",
            label=curve["label"],
        )
    axes.set(yscale="log", ylim=(1e-7, 2), xlim=(0, data["t"][-1]))
    axes.set(xlabel="tokens seen, t", ylabel="E |I − S|² / d")
    axes.set_title("With K = V the memory becomes the identity; only forgetting stops it")
    axes.legend(title="points: measured · lines: theory", loc="lower left")
    return figure


def context(data: Mapping[str, Any], source: str) -> Figure:
    figure, axes = canvas(10, 6.5)
    shown = (
        (2, "K = V", VERMILION, "o"),
        (5, "conv K 2, V = K", ORANGE, "D"),
        (3, "key shifted, V = K", BLUE, "s"),
        (4, "K, V apart", GREY, "x"),
    )
    rows = data["rows"][::-1]
    for i, row in enumerate(rows):
        axes.plot([row[2], row[3]], [i, i], color="#dddddd", linewidth=1, zorder=0)
    for column, label, colour, marker in shown:
        axes.plot([row[column] for row in rows], range(len(rows)), marker, color=colour, markersize=9, label=label)
    theory = [(row[1], i) for i, row in enumerate(rows) if row[1] is not None]
    axes.plot(*zip(*theory, strict=True), "|", color=BLACK, markersize=20, markeredgewidth=2, label="K = V: theory")
    axes.axvline(sqrt(2), color=GREY, linestyle=":", zorder=0, label="√2: nothing in common")
    axes.set(
        xscale="log",
        xlabel="how far the outputs of two contexts differ:  $|o_A - o_B|$ / rms",
    )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_title("With K = V, memories that forget nothing ignore their context")
    axes.legend(loc="upper left", bbox_to_anchor=(0.02, 0.98))
    return figure


def shifts(data: Mapping[str, Any], source: str) -> Figure:
    figure, axes = canvas()
    names, ahead = list(data["grid"]), data["offsets"].index(1)
    places = range(len(data["shifts"]))
    for j, name in enumerate(names):
        heights = [data["grid"][name][i][ahead] for i in places]
        axes.plot(
            [i + (j - (len(names) - 1) / 2) * 0.08 for i in places],
            heights,
            MARKERS[j],
            color=COLOURS[j % len(COLOURS)],
            markersize=8,
            label=name,
        )
    axes.axvspan(1.5, 2.5, color=SKY, alpha=0.2, zorder=0)
    axes.set_xticks(list(places), [shifted(*shift) for shift in data["shifts"]])
    axes.set(ylim=(0, None), xlabel="what is shifted by one token", ylabel="next-token accuracy")
    axes.set_title("Of the eight shifts only K's alone predicts the next token")
    axes.legend(ncols=2, fontsize=11)
    note(figure, source)
    return figure


def offsets(data: Mapping[str, Any], source: str) -> Figure:
    name, rates = next(iter(data["grid"].items()))
    figure, axes = canvas(9, 6.5)
    image = axes.imshow(rates, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i, shift in enumerate(data["shifts"]):
        for j, offset in enumerate(data["offsets"]):
            predicted = offset == shift[1] - shift[2] - shift[0]
            axes.text(
                j,
                i,
                f"{rates[i][j]:.2f}",
                ha="center",
                va="center",
                color="white" if rates[i][j] < 0.55 else "black",
                weight="bold" if predicted else "normal",
            )
            if predicted:
                axes.add_patch(outline(j, i))
    axes.set_xticks(range(len(data["offsets"])), [f"{offset:+d}" if offset else "0" for offset in data["offsets"]])
    axes.set_yticks(range(len(data["shifts"])), [shifted(*shift) for shift in data["shifts"]])
    axes.set(xlabel="offset of the token that the output names", ylabel="what is shifted by one token")
    axes.set_title(f"The memory predicts the offset K − V − Q ({name})")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="how often it is that token")
    note(figure, f"{source}; framed: the predicted offset")
    return figure


def tap(data: Mapping[str, Any], source: str) -> Figure:
    figure, axes = canvas()
    for i, (name, rates) in enumerate(data["sweep"].items()):
        if name != "off diagonal":
            masked = name.endswith("masked")
            colour = COLOURS[i // 3]
            axes.plot(
                data["angles"], rates, MARKERS[i] + ("--" if masked else "-"), color=colour, markersize=8, label=name
            )
    axes.axhline(data["counting"], color=GREY, linestyle=":", label="bigram counts")
    axes.set_xticks(data["angles"])
    axes.set(ylim=(0, None), xlabel="θ in degrees:  k = cos θ · present + sin θ · past", ylabel="next-token accuracy")
    axes.set_title("A convolution on K turns self-prediction into a bigram model")
    axes.legend(fontsize=11)
    note(figure, f"{source}; masked: the present token may not be guessed")
    return figure


def ngram(data: Mapping[str, Any], source: str) -> Figure:
    figure, axes = canvas()
    for i, (name, rates) in enumerate(data["series"].items()):
        colour, line = (BLACK, ":") if name == "counting" else (COLOURS[i - 1], "-")
        label = "n-gram counts, n = width + 1" if name == "counting" else name
        axes.plot(data["widths"], rates, MARKERS[i] + line, color=colour, linewidth=2, markersize=9, label=label)
    axes.axhline(data["frequent"], color=GREY, linestyle="--", label="the most frequent token")
    axes.set_xticks(data["widths"])
    axes.set(ylim=(0, None), xlabel="width of the convolution on K, over past tokens", ylabel="next-token accuracy")
    axes.set_title("A wider convolution on K reads longer n-grams, through a nonlinearity")
    axes.legend(fontsize=11, loc="upper left", bbox_to_anchor=(1, 1))
    note(figure, source)
    return figure


def shifted(sq: int, sk: int, sv: int) -> str:
    """The names of what is shifted."""
    return " ".join(name for name, by in zip("QKV", (sq, sk, sv), strict=True) if by) or "nothing"


def outline(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=3)


def note(figure: Figure, text: str) -> None:
    """What it was measured on, small, below."""
    figure.supxlabel(text, fontsize=10, color=GREY, x=0.99, ha="right")


DRAWN: dict[str, dict[str, Callable[[Mapping[str, Any], str], Any]]] = {
    "collapse": {"collapse": collapse},
    "context": {"context": context},
    "shifts": {"shifts": shifts, "offsets": offsets},
    "tap": {"tap": tap},
    "ngram": {"ngram": ngram},
}


def draw(claim: str, data: Mapping[str, Any], source: str) -> dict[str, Figure]:
    """A claim's plots by name."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return {name: plot(data, source) for name, plot in DRAWN.get(claim, {}).items()}
