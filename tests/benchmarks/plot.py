"""A log-log plot as SVG, readable on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.report import number

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 240, 46, 56
_COLOURS = ("#0f9d8a", "#d9772b", "#8a6fd0", "#3b8fd4", "#c2568a")  # at least 3:1 against white and near-black
_INK = "#808080"
_LABEL_GAP = 16


def log_log(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> str:
    """One line for each name. Both axes are logarithmic, so points with a value of 0 or less are left out."""
    shown = {name: [(x, y) for x, y in points if x > 0 and y > 0] for name, points in lines.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        raise ValueError("there is nothing to draw")
    xs = [x for points in shown.values() for x, _y in points]
    ys = [y for points in shown.values() for _x, y in points]
    x_axis = _Axis(xs, _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(ys, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_described(shown, x_label, y_label))}</desc>",
        f'<text x="{_LEFT}" y="24" fill="{_INK}" font-size="15" font-weight="600">{escape(title)}</text>',
        *_grid(x_axis, y_axis),
        _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 14, x_label, "middle"),
        f'<text transform="translate(18 {(_TOP + HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle" fill="{_INK}">{escape(y_label)}</text>',
        *_lines(shown, x_axis, y_axis),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axis:
    """Whole powers of ten that hold all values, and where a value lies between `start` and `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.first = math.floor(math.log10(min(values)) + 1e-9)
        self.last = max(self.first + 1, math.ceil(math.log10(max(values)) - 1e-9))
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.first) / (self.last - self.first)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[tuple[float, str]]:
        powers = range(self.first, self.last + 1)
        return [(self.place(10.0**power), f"{10.0**power:,.{max(0, -power)}f}") for power in powers]


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for x, text in x_axis.ticks():
        parts.append(_stroke(x, _TOP, x, bottom))
        parts.append(_text(x, bottom + 20, text, "middle"))
    for y, text in y_axis.ticks():
        parts.append(_stroke(_LEFT, y, right, y))
        parts.append(_text(_LEFT - 8, y + 4, text, "end"))
    return parts


def _lines(lines: Mapping[str, Points], x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    ends: list[tuple[float, str, str]] = []
    for index, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        ends.append((places[-1][1], name, colour))
    for y, name, colour in _apart(ends):
        parts.append(
            f'<text x="{WIDTH - _RIGHT + 12}" y="{y + 4:.1f}" fill="{colour}" font-weight="600">{escape(name)}</text>'
        )
    return parts


def _apart(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Labels from top to bottom, none closer than `_LABEL_GAP` to the one above."""
    placed: list[tuple[float, str, str]] = []
    for y, name, colour in sorted(labels):
        lowest = placed[-1][0] + _LABEL_GAP if placed else y
        placed.append((max(y, lowest), name, colour))
    return placed


def _described(lines: Mapping[str, Points], x_label: str, y_label: str) -> str:
    told = (f"{name}: " + ", ".join(f"{number(y)} at {x:,.0f}" for x, y in points) for name, points in lines.items())
    return f"{y_label}, by {x_label}. " + "; ".join(told) + "."


def _stroke(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{_INK}" stroke-opacity="0.3"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'
