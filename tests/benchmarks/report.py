"""Results as JSON and Markdown, and their place in docs/performance.md."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Summary

PICTURES = "images"  # the folder, seen from the page
TIMES = "\N{MULTIPLICATION SIGN}"
_PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-prometheus", "prometheus_client", "psutil")


@dataclass(frozen=True)
class Table:
    """Cells are text already. The first `texts` columns are aligned left, the others right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    texts: int = 1

    def markdown(self) -> str:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"{len(row)} cells under {len(self.head)} headings: {row}")
        rule = ["---"] * self.texts + ["---:"] * (len(self.head) - self.texts)
        lines = [_line(self.head), "|" + "|".join(rule) + "|", *map(_line, self.rows)]
        return "\n".join([f"**{self.caption}**", "", *lines] if self.caption else lines)


@dataclass(frozen=True)
class Result:
    """What one benchmark found. `ratios` are what `bounds` knows by name; `pictures` are SVG by file name."""

    name: str
    tables: tuple[Table, ...]
    ratios: Mapping[str, Summary] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        parts = [f"![{_title(picture)}]({PICTURES}/{name})" for name, picture in self.pictures.items()]
        parts += [table.markdown() for table in self.tables]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Without the pictures: they are drawn from the numbers."""
        return {name: value for name, value in asdict(self).items() if name != "pictures"}


def _title(picture: str) -> str:
    found = re.search(r"<title>(.*?)</title>", picture)
    return found[1] if found else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# -- numbers -------------------------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """A number for people: so many digits that count, thousands parted, no exponent."""
    if not value:
        return "0"
    size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    text = f"{value:,.{max(0, digits - size)}f}"
    if abs(value) < 1:
        text = f"{value:.{digits}g}" if abs(value) >= 0.001 else f"{value:.6f}".rstrip("0")
    return text


def spread(summary: Summary, digits: int = 3) -> str:
    """A median with its quartiles."""
    if summary.rounds == 1 or summary.low == summary.high:
        return number(summary.median, digits)
    return f"{number(summary.median, digits)} ({number(summary.low, digits)} to {number(summary.high, digits)})"


def times(summary: Summary) -> str:
    """A ratio."""
    return f"{number(summary.median)} {TIMES}"


# -- the machine ---------------------------------------------------------------------------------------


def machine(*, short: bool) -> Table:
    """What the numbers depend on. Nothing in it tells whose machine it is."""
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    rows = (
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("packages", versions),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("CPU", _cpu_model()),
        ("cores available", str(_cores())),
        ("form", "short" if short else "full"),
    )
    return Table(("measured with", ""), rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or "unknown"


# -- the page ------------------------------------------------------------------------------------------


def paste(page: str, section: str, content: str) -> str:
    """`page` with `content` between the markers of `section`. Raises ValueError where it has no such markers."""
    begin, end = f"<!-- benchmark: {section} -->", f"<!-- end: {section} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs the markers {begin} and {end}, in this order and once each")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"
