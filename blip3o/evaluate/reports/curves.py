"""Curves over steps as one SVG of small multiples: every step faint, the running mean in full colour.

Text and axes inherit the colour of the surrounding page, so the figure is readable on light and dark backgrounds.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOR = "#4c78c8"
# Of several runs: told apart in black and white print by their order only, and by most people who see colours.
COLORS = (COLOR, "#d9822b", "#2f9e6e", "#b0489a", "#8a6d3b", "#c8453b", "#1f9bb0", "#6f7683")
_COLUMNS = 3
_PANEL = (3.3, 2.2)  # width and height, inches
_PAGE_INK = "#010203"  # a placeholder for the page's own colour until the SVG is finished
_LOG_RANGE = 8  # a loss that falls by more than this factor is drawn on a logarithmic axis
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "blip3o",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _PAGE_INK,
    "axes.edgecolor": _PAGE_INK,
    "axes.labelcolor": _PAGE_INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "figure.constrained_layout.hspace": 0.12,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "xtick.color": _PAGE_INK,
    "ytick.color": _PAGE_INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small plot: lines by name, each of points (x, y). A single line is drawn with its running mean.

    With `runs`, so is every line, in the color of its place among `COLORS`; the page has the legend.
    """

    title: str
    unit: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x: str = "step"
    runs: bool = False


def loss_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """An `<svg>` element with a panel for each stage of `metrics` (rows with `step` and `loss`), in their order.

    Stages without rows are left out; "" if none remains.
    """
    lines = {name: {"": [(row["step"], row["loss"]) for row in rows]} for name, rows in metrics.items()}
    return draw_panels([Panel(title=name, unit="loss", lines=points) for name, points in lines.items()])


def draw_panels(wanted: Sequence[Panel]) -> str:
    """An `<svg>` element of panels over steps. Panels without points are left out; "" if none remains."""
    panels = [panel for panel in wanted if any(panel.lines.values())]
    if not panels:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / _COLUMNS)
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * _COLUMNS, _PANEL[1] * rows), layout="constrained")
        places = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
        for place in places[len(panels) :]:
            place.set_axis_off()
        for place, panel in zip(places, panels, strict=False):
            _draw(place, panel)
        # Without date and creator, and with a fixed hash salt, equal data give equal bytes.
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_PAGE_INK, "currentColor")


def _draw(place: "Axes", panel: Panel) -> None:
    lines = {name: np.array(points, dtype=float) for name, points in panel.lines.items() if points}
    values = np.concatenate([points[:, 1] for points in lines.values()])
    if len(lines) == 1 or panel.runs:
        colors = dict(zip(panel.lines, COLORS, strict=False)) if panel.runs else dict.fromkeys(lines, COLOR)
        for name, points in lines.items():
            place.plot(points[:, 0], points[:, 1], color=colors[name], alpha=0.3, linewidth=0.7)
            place.plot(points[:, 0], smoothed(points[:, 1]), color=colors[name], linewidth=1.6)
    else:
        _draw_several(place, lines)
    if values.min() > 0 and values.max() / values.min() > _LOG_RANGE:
        _make_logarithmic(place)
    place.set_title(panel.title)
    place.set_xlabel(panel.x)
    place.set_ylabel(panel.unit)
    place.margins(x=0.02)


def _draw_several(place: "Axes", lines: Mapping[str, np.ndarray]) -> None:
    """Draws lines in their order from light to dark, each labelled at its end."""
    for number, (name, points) in enumerate(lines.items()):
        place.plot(*points.T, color=COLOR, alpha=0.25 + 0.75 * (number + 1) / len(lines), linewidth=1.2, marker=".")
        place.annotate(name, points[-1], xytext=(4, 0), textcoords="offset points", va="center", fontsize=6)


def _make_logarithmic(place: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    place.set_yscale("log")
    place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    place.yaxis.set_minor_formatter(NullFormatter())


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean [n] over a window of about a twentieth of all steps, centred; narrower at both ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
