"""Panels of a page: curves of one kind beside each other, as SVG inside HTML."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedcurv.simulations.reports.elements import Markup, element
from fedcurv.simulations.reports.pictures import Curve, draw, draw_targets

# a phone's screen has no room for more points of a curve
_MOST_POINTS = 300
# whatever stands for the hour of drawing, its program, and addresses of vocabularies
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten
_SIZE = (4.4, 2.9)  # inches of 72 points, about a phone's width

# what curves are drawn over, and the axis' label
AXES = {
    "round": "round",
    "megabytes": "sent and received by all clients (MB)",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Panel:
    """Curves over one axis.

    Attributes:
        title: above it: what is drawn, over what.
        x_label: below it.
        curves: by the number that gives their colour, line and marker.
        targets: where a thin line is drawn.
        whole: whether the values of x are whole numbers.
    """

    title: str
    x_label: str
    curves: Mapping[int, Curve]
    targets: Sequence[float] = ()
    whole: bool = False


def over(cost: str, what: str, curves: Mapping[int, Curve], targets: Sequence[float] = ()) -> Panel:
    """Return a panel of curves over one of the ``AXES``."""
    rounds = cost == "round"
    title = f"{what} over {'rounds' if rounds else cost}"
    return Panel(title, AXES[cost], curves, targets, whole=rounds)


def figure_of(panel: Panel) -> Markup:
    """Return a panel as a figure with its title.

    Nothing that a user names is drawn: names stand in the page's legend, as text.
    """
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0.15, 0.17, 0.82, 0.79))
    for number, curve in panel.curves.items():
        draw(axes, replace(_shown(curve), label=""), number)
    draw_targets(axes, panel.targets)
    axes.set_xlabel(panel.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.whole, steps=_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.grid(alpha=0.3)
    return element("figure", element("figcaption", panel.title), _svg(figure, panel.title))


def swatch(number: int) -> Markup:
    """Return the colour, line and marker of a curve's number for a legend."""
    figure = Figure(figsize=(0.6, 0.2))
    axes: Axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw(axes, Curve("", [0, 1, 2], [0, 0, 0]), number)
    return _svg(figure, f"swatch {number}")


def _shown(curve: Curve) -> Curve:
    """Return a curve with gaps where a value is not finite, and no more points than can be seen."""
    step = math.ceil(len(curve.x) / _MOST_POINTS)
    # the last is always among them
    places = range((len(curve.x) - 1) % step, len(curve.x), step) if curve.x else range(0)

    def of(values: Sequence[float]) -> list[float]:
        return [values[i] if math.isfinite(values[i]) else math.nan for i in places if values]

    return Curve(curve.label, of(curve.x), of(curve.y), of(curve.low), of(curve.high))


def _svg(figure: Figure, salt: str) -> Markup:
    text = io.StringIO()
    # the browser's letters: an own outline for each would be most of the file
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata=_NO_METADATA)
    drawn = text.getvalue().partition("<svg")[2]
    # in HTML names of vocabularies have no place, identifiers would be there twice, and a screen
    # shows no thousandths of a point
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[a-zA-Z]+_\d+"', "", drawn)
    drawn = re.sub(r'(?<=\bd=")[^"]*', lambda path: _rounded(path[0]), drawn)
    return Markup(f"<svg{drawn}".strip())


def _rounded(path: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path).replace("\n", "")
