"""`pytest tests/faults --write-table`: the suite's findings, into docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.catalogue import Fault
from tests.faults.report import PAGE, Findings, write
from tests.faults.trial import Trial

_AT_ONCE = 4  # most of them wait


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


@pytest.fixture(scope="class")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Trial]]]:
    """Trials in processes of their own, some at a time: those of the tests that were chosen, by name of the fault."""
    chosen = [
        item.callspec.params["fault"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.cls is request.cls
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield {fault.name: pool.submit(fault.attempt) for fault in chosen if isinstance(fault, Fault)}
