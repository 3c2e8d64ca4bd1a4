"""The table as text: rows in, lines out, fitted to a width. Knows nothing of terminals or time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amptalk_otel._buckets import DURATION_BOUNDS_S

from .board import Row, Totals

PLAIN, BOLD, DIM, RED, YELLOW = "", "1", "2", "31", "33"
_GAPS = ("  ", " ")


@dataclass(frozen=True)
class Usage:
    """What the process uses. `cpu_share` is 1.0 for one busy core."""

    cpu_share: float
    memory_bytes: int
    uptime_s: float


@dataclass(frozen=True)
class Column:
    """One column: a heading of two lines, how to show a row, and how soon it may be left out."""

    above: str
    heading: str
    show: Callable[[Row], str]
    importance: int
    style: Callable[[Row], str] = lambda _: PLAIN
    left: bool = False


def _count(value: int) -> str:
    return f"{value:,}"


def _alert(value: Callable[[Row], int], style: str) -> Callable[[Row], str]:
    return lambda row: style if value(row) else DIM


COLUMNS: tuple[Column, ...] = (
    Column("", "agent", lambda row: row.name, 99, left=True),
    Column(
        "", "state", lambda row: "running" if row.running else "stopped", 3,
        lambda row: PLAIN if row.running else DIM, left=True,
    ),
    Column("", "queue", lambda row: _count(row.queue), 10),
    Column("in", "flight", lambda row: _count(row.in_flight), 4),
    Column("", "received", lambda row: _count(row.received), 8),
    Column("", "proc/s", lambda row: f"{row.processed_per_s:,.1f}", 9),
    Column("", "failed", lambda row: _count(row.failed), 7, _alert(lambda row: row.failed, RED)),
    Column("", "dropped", lambda row: _count(row.dropped), 5, _alert(lambda r: r.dropped, RED)),
    Column("", "retries", lambda row: _count(row.retries), 4, _alert(lambda r: r.retries, YELLOW)),
    Column("wait", "p50", lambda row: format_duration(row.wait_p50_s), 1),
    Column("wait", "p95", lambda row: format_duration(row.wait_p95_s), 6),
    Column("process", "p50", lambda row: format_duration(row.process_p50_s), 2),
    Column("process", "p95", lambda row: format_duration(row.process_p95_s), 8),
)  # fmt: skip


def render(rows: Sequence[Row], usage: Usage, summary: str | None, *, width: int, color: bool = False) -> list[str]:
    """The whole display: table, what the process uses, and the summary in one line."""
    lines = render_table(rows, width=width, color=color)
    lines += ["", _fit(_usage_line(usage), width)]
    lines.append(_fit(f"summary: {summary}" if summary else "summary: -", width))
    return lines


def render_table(rows: Sequence[Row], *, width: int, color: bool = False) -> list[str]:
    """Two heading lines and a line per row; gaps and columns of least importance give way first."""
    columns, gap = _choose_columns(rows, width)
    sized = [(column, min(width, _column_width(column, rows))) for column in columns]
    above = gap.join(_pad(column, size, column.above) for column, size in sized)
    heading = gap.join(_pad(column, size, column.heading) for column, size in sized)
    lines = [_paint(line.rstrip(), BOLD, color=color) for line in (above, heading)]
    for row in rows:
        cells = [_paint(_pad(column, size, column.show(row)), column.style(row), color=color) for column, size in sized]
        lines.append(gap.join(cells).rstrip())
    return lines


def render_totals(totals: Totals) -> str:
    """One line that tells where all messages went."""
    sign = "=" if totals.accounted_for == totals.received else "!="
    return (
        f"received {totals.received:,} {sign} processed {totals.processed:,}"
        f" + failed {totals.failed:,} + dropped {totals.dropped:,}"
        f" + in flight {totals.in_flight:,} + queued {totals.queued:,}"
        f"; retries {totals.retries:,}, undeliverable {totals.undeliverable:,}"
    )


def format_duration(seconds: float | None) -> str:
    """A duration in at most six characters: <0.5ms, 0.82ms, 3.1ms, 120ms, 4.2s, 95s, 12m.

    What is in the lowest bucket of a histogram can't be told apart: a quantile there is no measurement.
    """
    if seconds is None:
        return "-"
    if seconds < DURATION_BOUNDS_S[0]:
        return f"<{DURATION_BOUNDS_S[0] * 1000:g}ms"
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        digits = 2 if milliseconds < 0.995 else 1 if milliseconds < 9.95 else 0
        return f"{milliseconds:.{digits}f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    return f"{seconds:.0f}s" if seconds < 119.5 else f"{seconds / 60:.0f}m"


def format_clock(seconds: float) -> str:
    """Minutes and seconds, with hours where needed: 0:07, 12:30, 1:02:03."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def _usage_line(usage: Usage) -> str:
    return (
        f"cpu {usage.cpu_share:.0%} of a core"
        f"   memory {usage.memory_bytes / 1_000_000:.0f} MB"
        f"   up {format_clock(usage.uptime_s)}"
    )


def _choose_columns(rows: Sequence[Row], width: int) -> tuple[list[Column], str]:
    columns = list(COLUMNS)
    while True:
        text = sum(_column_width(column, rows) for column in columns)
        for gap in _GAPS:
            if text + len(gap) * (len(columns) - 1) <= width or len(columns) == 1:
                return columns, gap
        columns.remove(min(columns, key=lambda column: column.importance))


def _column_width(column: Column, rows: Sequence[Row]) -> int:
    texts = [column.above, column.heading, *(column.show(row) for row in rows)]
    return max(len(text) for text in texts)


def _pad(column: Column, width: int, text: str) -> str:
    text = _fit(text, width)
    return text.ljust(width) if column.left else text.rjust(width)


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."[:width]


def _paint(text: str, style: str, *, color: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if color and style and text else text
