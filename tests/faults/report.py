"""The table of faults and its place in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.report import Table
from tests.faults.catalogue import Fault, faults
from tests.faults.trial import Trial

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by pytest tests/faults --write-table -->", "<!-- end: faults -->"
HEAD = (
    "fault",
    "how",
    "struck",
    "program outcome identical",
    "messages lost",
    "exceptions leaked",
    "loop blocked at most",
)

Findings = dict[str, Trial]


def row(fault: Fault, trial: Trial) -> tuple[str, ...]:
    """One line of the table."""
    blocked = "no loop" if trial.blocked_s is None else f"{1000.0 * trial.blocked_s:.0f} ms"
    identical = "yes" if trial.is_identical else "NO"
    return fault.name, fault.how, f"{trial.tried:,}", identical, str(trial.lost), str(len(trial.leaked)), blocked


def table(found: Findings, page: str = "", all_faults: Sequence[Fault] | None = None) -> str:
    """Markdown, with all faults of the catalogue. What can't be tried on this Python has the row that it had in `page`.

    Raises ValueError where a fault was not tried, and has no such row.
    """
    former = {cells[0]: cells for cells in rows(page)}
    lines: dict[str, tuple[str, ...]] = {}
    for fault in faults() if all_faults is None else all_faults:
        if fault.name in found:
            lines[fault.name] = row(fault, found[fault.name])
        elif fault.missing is not None and fault.name in former:
            lines[fault.name] = former[fault.name]
        else:
            raise ValueError(f"not tried here, so the table can't be written: {fault.name}")
    return Table(HEAD, tuple(lines.values()), texts=2).markdown()


def paste(page: str, content: str) -> str:
    """`page` with the table between the markers. Raises ValueError where it has none."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs the markers {BEGIN} and {END}, once each")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def write(found: Findings, path: Path) -> None:
    """Put the table into the page."""
    page = path.read_text(encoding="utf-8")
    path.write_text(paste(page, table(found, page)), encoding="utf-8")


def rows(page: str) -> list[tuple[str, ...]]:
    """The table that is in a page, without its head."""
    lines = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    return [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in lines[2:]]
