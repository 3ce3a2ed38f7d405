"""Plots of curves that can be told apart in grey print, as files for the screen and for paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedcurv.simulations.reports.words import value_in_words

# PNG for the screen; PDF and SVG keep their sharpness in print
FORMATS = ("png", "pdf", "svg")
# without the hour of drawing, so that the same figures make the same file
_NO_DATE: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "os^DvP*X<>"
_SYMBOLS = {"strength": "λ", "proximal_mu": "μ"}


@dataclass(frozen=True)
class Curve:
    """A curve, perhaps with a band around it.

    Attributes:
        label: in the legend.
        x: of its points.
        y: of its points.
        low: lower edge of the band at each point; empty for none.
        high: upper edge likewise.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def draw(axes: Axes, curve: Curve, number: int) -> None:
    """Draw a curve in the colour, line and marker of its number among the others.

    Markers stand at other places on each curve, so that one that lies on another shows.
    """
    every = max(1, len(curve.x) // 8)
    # after ten colours and markers begin anew, each with another line
    line = _LINES[(number + number // 10) % len(_LINES)]
    (drawn,) = axes.plot(
        curve.x,
        curve.y,
        label=curve.label,
        color=f"C{number % 10}",
        linestyle=line,
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4,
        markevery=(number % every, every),
    )
    if curve.low:
        color = drawn.get_color()
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)


def draw_targets(axes: Axes, targets: Sequence[float]) -> None:
    """Draw a thin line at each target that lies within what is shown."""
    low, high = axes.get_ylim()
    for target in targets:
        if low < target < high:
            axes.axhline(target, color="grey", linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)


def legend_below(figure: Figure, columns: int) -> None:
    """Put one legend for all plots of a figure below them."""
    lines: dict[object, Line2D] = {}
    for axes in figure.axes:
        for line in axes.lines:
            if not str(line.get_label()).startswith("_"):  # matplotlib's own for what has no name
                lines.setdefault(line.get_label(), line)
    if lines:
        figure.legend(
            list(lines.values()), [str(n) for n in lines], loc="outside lower center", ncols=columns
        )


def label_of(name: str, options: Mapping[str, Any] | None) -> str:
    """Return a strategy's name with the weight of its term, λ or μ, as a legend has it."""
    said = []
    inner: Any = options
    while isinstance(inner, Mapping):
        said += [f"{_SYMBOLS[key]} = {_weight(inner[key])}" for key in _SYMBOLS if key in inner]
        inner = inner.get("strategy")
    return ", ".join([name, *said])


def _weight(value: Any) -> str:
    # a strength that follows a rule is a table
    return "auto" if isinstance(value, Mapping) else value_in_words(value)


def name_of_data(config: Mapping[str, Any]) -> str:
    """Return what a plot calls a configuration's data, clients and partition."""
    data, partition = config["data"], config["partition"]["name"]
    name = data["name"]
    if name == "function":
        name = data["function"]
    elif name == "arrays":
        name = Path(data["file"]).stem
    return f"{name}, {config['num_clients']} clients, {partition}"


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure into a folder, once in each of the ``FORMATS``."""
    with rc_context({"svg.hashsalt": name}):  # else its identifiers are drawn at random
        for suffix in FORMATS:
            figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=_NO_DATE.get(suffix))
