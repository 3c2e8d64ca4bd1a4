"""`pytest tests/faults --write-table`: the suite's findings, into docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.report import PAGE, Findings, write


def pytest_addoption(parser: pytest.Parser) -> None:
    """Seen where this folder is named on the command line."""
    parser.addoption("--write-table", action="store_true", help="write the table of faults into docs/reliability.md")


@pytest.fixture(scope="session")
def findings(request: pytest.FixtureRequest) -> Iterator[Findings]:
    """Where each trial is put; written at the end if that was asked for and every fault was tried."""
    found: Findings = {}
    yield found
    if request.config.getoption("--write-table", default=False):
        write(found, PAGE)
