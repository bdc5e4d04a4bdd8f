"""Plots as SVG by hand, so that a page needs neither a library nor a network. They take the page's colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blip3o.evaluate.reports.html import text

Points = Sequence[tuple[float, float]]

_COLORS = ("#4c78c8", "#d9822b", "#2f9e6e", "#b0489a", "#8a6d3b", "#c8453b", "#1f9bb0", "#6f7683")
_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear axis from 0 to a round number at or above `most`."""

    name: str
    most: float

    @property
    def step(self) -> float:
        """Between two ticks: 1, 2 or 5 times a power of ten."""
        least = max(self.most, 1e-6) / _TICKS
        power = 10.0 ** math.floor(math.log10(least))
        return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))

    @property
    def ticks(self) -> list[float]:
        """Their values."""
        return [self.step * number for number in range(math.ceil(self.most / self.step - 1e-9) + 1)]

    def share(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        return min(value / (self.ticks[-1] or 1), 1)


def scatter(series: Mapping[str, Points], x: str, y: str, *, marks: Points = ()) -> str:
    """Points in the colours of their series, and crosses for `marks`."""
    every = [point for points in [*series.values(), marks] for point in points]
    across, up = _axes(every, x, y)
    drawn = []
    for color, points in zip(_cycle(len(series)), series.values(), strict=True):
        dots = "".join(f'<circle cx="{_x(across, a):.1f}" cy="{_y(up, b):.1f}" r="2.4"/>' for a, b in points)
        drawn.append(f'<g fill="{color}" fill-opacity="0.65">{dots}</g>')
    crosses = "".join(f"M{_x(across, a) - 4:.1f} {_y(up, b) - 4:.1f}l8 8m0 -8l-8 8" for a, b in marks)
    drawn.append(f'<path d="{crosses}" stroke="#c8453b" stroke-width="1.6"/>' if crosses else "")
    return _figure(across, up, "".join(drawn))


def cumulative(series: Mapping[str, Sequence[float]], x: str, *, mark: float | None = None) -> str:
    """For each series the share of its values up to x, and a vertical line at `mark`."""
    most = max((value for values in series.values() for value in values), default=0.0)
    across, up = Axis(name=x, most=max(most, mark or 0)), Axis(name="share of requests", most=1)
    drawn = []
    for color, values in zip(_cycle(len(series)), series.values(), strict=True):
        path = f"M{_x(across, 0):.1f} {_y(up, 0):.1f}"
        for number, value in enumerate(sorted(values), 1):
            path += f"H{_x(across, value):.1f}V{_y(up, number / len(values)):.1f}"
        drawn.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    if mark is not None:
        line = f"M{_x(across, mark):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"
        drawn.append(f'<path d="{line}" stroke="currentColor" stroke-dasharray="4 3"/>')
    return _figure(across, up, "".join(drawn))


def legend(names: Sequence[str]) -> str:
    """The names of series in their colours."""
    colors = zip(_cycle(len(names)), names, strict=True)
    items = (f'<span style="color:{color}">●</span>&nbsp;{text(name)}' for color, name in colors)
    return f"<p>{'&emsp;'.join(items)}</p>"


def _cycle(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]


def _axes(points: Points, x: str, y: str) -> tuple[Axis, Axis]:
    across, up = zip(*points, strict=True) if points else ((0.0,), (0.0,))
    return Axis(name=x, most=max(across)), Axis(name=y, most=max(up))


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _figure(across: Axis, up: Axis, drawn: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    lines = "".join(f"M{_LEFT} {_y(up, tick):.1f}H{_WIDTH - _RIGHT}" for tick in up.ticks)
    below = "".join(
        f'<text x="{_x(across, tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in across.ticks
    )
    left = "".join(
        f'<text x="{_LEFT - 6}" y="{_y(up, tick) + 4:.1f}" text-anchor="end">{tick:g}</text>' for tick in up.ticks
    )
    middle = (_TOP + bottom) / 2
    names = (
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{text(across.name)}</text>'
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{text(up.name)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(up.name)} by {text(across.name)}" '
        'font-size="11" fill="currentColor" style="width:100%;max-width:680px;height:auto">'
        f'<path d="{lines}" stroke="currentColor" stroke-opacity="0.15"/>{below}{left}{names}{drawn}</svg>'
    )
