"""Where lines go: redrawn in place on a terminal, printed one block after the other elsewhere."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_TO_LINE_END, _TO_SCREEN_END, _CLEAR_SCREEN = "\x1b[K", "\x1b[J", "\x1b[H\x1b[2J"
_DEFAULT_SIZE = os.terminal_size((120, 40))


class Screen(Protocol):
    """Shows blocks of lines."""

    first_after_s: float
    period_s: float
    color: bool

    def introduce(self, *lines: str) -> None: ...
    def width(self) -> int: ...
    def show(self, lines: Sequence[str]) -> None: ...
    def close(self) -> None: ...
    def conclude(self, *lines: str) -> None: ...


class PlainScreen:
    """Prints each block below the one before."""

    first_after_s: float = 2.0
    period_s: float = 2.0
    color = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def introduce(self, *lines: str) -> None:
        """Print the lines once, above everything."""
        self._out.write("\n".join([*lines, "", ""]))
        self._out.flush()

    def width(self) -> int:
        return _DEFAULT_SIZE.columns

    def show(self, lines: Sequence[str]) -> None:
        self._out.write("\n".join([*lines, "", ""]))
        self._out.flush()

    def close(self) -> None:
        """Nothing to put back."""

    def conclude(self, *lines: str) -> None:
        """Print the lines below everything."""
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()


class LiveScreen:
    """Draws each block over the one before, in one write, with the cursor hidden."""

    first_after_s: float = 0.0
    period_s: float = 0.5

    def __init__(self, out: TextIO, *, color: bool) -> None:
        self.color = color
        self._out = out
        self._top: list[str] = []
        self._height = 0
        self._drawn_at: os.terminal_size | None = None

    def introduce(self, *lines: str) -> None:
        """Keep the lines on top of every block."""
        self._top = [*lines, ""]

    def width(self) -> int:
        return self._size().columns

    def show(self, lines: Sequence[str]) -> None:
        size = self._size()
        # What has scrolled off the screen can't be drawn over, so nothing may be higher than it.
        lines = [*_wrapped(self._top, size.columns), *lines][: max(1, size.lines - 1)]
        text = "".join(f"{line}{_TO_LINE_END}\n" for line in lines)
        self._out.write(f"{self._way_to_top(size)}{text}{_TO_SCREEN_END}")
        self._out.flush()
        self._height, self._drawn_at = len(lines), size

    def close(self) -> None:
        """Show the cursor again, below the last block and an empty line."""
        if self._drawn_at is not None:
            self._drawn_at = None
            self._out.write(f"\n{_SHOW_CURSOR}")
            self._out.flush()

    def conclude(self, *lines: str) -> None:
        """Print the lines below everything, wrapped at words."""
        self._out.write("".join(f"{line}\n" for line in _wrapped(lines, self.width())))
        self._out.flush()

    def _way_to_top(self, size: os.terminal_size) -> str:
        if self._drawn_at is None:
            return _HIDE_CURSOR
        if size != self._drawn_at:
            return _CLEAR_SCREEN  # resizing has wrapped the lines, nobody knows where
        return f"\r\x1b[{self._height}A"

    def _size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return _DEFAULT_SIZE
        return size if size.columns > 0 and size.lines > 0 else _DEFAULT_SIZE


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""]]


def choose_screen(out: TextIO, environ: Mapping[str, str]) -> Screen:
    """A live screen on a terminal that can move its cursor, a plain one otherwise."""
    if not out.isatty() or environ.get("TERM", "dumb") in ("", "dumb"):
        return PlainScreen(out)
    return LiveScreen(out, color=not environ.get("NO_COLOR"))
