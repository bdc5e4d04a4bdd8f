"""Loss curves as one SVG of small multiples: a panel a stage, every step faint, their running mean in full colour.

Text and axes take the colour of the page around them, so the picture reads on light and dark ground alike.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOR = "#4c78c8"
_COLUMNS = 3
_PANEL = (3.3, 2.2)  # width and height, inches
_PAGE_INK = "#010203"  # stands for the page's own colour until the SVG is finished
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


def loss_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """An `<svg>` element with a panel for each stage of `metrics` (rows with `step` and `loss`), in their order.

    A stage without rows is left out; "" where nothing remains.
    """
    stages = {name: rows for name, rows in metrics.items() if rows}
    if not stages:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(len(stages) / _COLUMNS)
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * _COLUMNS, _PANEL[1] * rows), layout="constrained")
        panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
        for panel in panels[len(stages) :]:
            panel.set_axis_off()
        for panel, (name, points) in zip(panels, stages.items(), strict=False):
            _draw(panel, name, points)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_PAGE_INK, "currentColor")


def _draw(panel: "Axes", name: str, points: Sequence[Mapping[str, Any]]) -> None:
    steps = np.array([row["step"] for row in points])
    losses = np.array([row["loss"] for row in points], dtype=float)
    panel.plot(steps, losses, color=COLOR, alpha=0.3, linewidth=0.7)
    panel.plot(steps, smoothed(losses), color=COLOR, linewidth=1.6)
    if losses.min() > 0 and losses.max() / losses.min() > _LOG_RANGE:
        _make_logarithmic(panel)
    panel.set_title(name)
    panel.set_xlabel("step")
    panel.set_ylabel("loss")
    panel.margins(x=0.02)


def _make_logarithmic(panel: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean [n] over a window of about a twentieth of all steps, centred; narrower at both ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
