"""Fixtures that hand real servers to the integration tests.

A test whose server is not installed is skipped, with the command that installs it; where CI is set, it fails instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tests.integration.servers import INSTALL_SCRIPT, Collector, Prometheus, Server, VictoriaMetrics, find_server

_P = ParamSpec("_P")
_S = TypeVar("_S", bound=Server)


def _require_server(name: str) -> Path:
    path = find_server(name)
    if path is None:
        reason = f"{name} is not installed: run `python {INSTALL_SCRIPT}`"
        if os.environ.get("CI", "").strip().lower() in ("1", "true", "yes"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def _tracked(kind: Callable[_P, _S], left_over: contextlib.ExitStack) -> Callable[_P, _S]:
    def make(*args: _P.args, **kwargs: _P.kwargs) -> _S:
        server = kind(*args, **kwargs)
        left_over.callback(server.close)
        return server

    return make


@pytest.fixture(scope="session")
def require_server() -> Callable[[str], Path]:
    """Return a function that gives a program's path, or skips (in CI: fails) the test."""
    return _require_server


@pytest.fixture(scope="session")
def left_over_servers() -> Iterator[contextlib.ExitStack]:
    """Close, at the very end, the servers that a test started and did not leave."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Return the path of promtool, for tests that call `check_metrics` or `run_program("promtool", ...)`."""
    return _require_server("promtool")


@pytest.fixture(scope="session")
def prometheus_factory(left_over_servers: contextlib.ExitStack) -> Callable[..., Prometheus]:
    """Return `Prometheus`, to be used as `with prometheus_factory([target]) as prometheus:`."""
    _require_server("prometheus")
    return _tracked(Prometheus, left_over_servers)


@pytest.fixture(scope="session")
def collector_factory(left_over_servers: contextlib.ExitStack) -> Callable[..., Collector]:
    """Return `Collector`, for tests that need several or choose when it starts."""
    _require_server("otelcol")
    return _tracked(Collector, left_over_servers)


@pytest.fixture
def collector(collector_factory: Callable[[], Collector]) -> Iterator[Collector]:
    """Return a running Collector that no other test has sent anything to."""
    with collector_factory() as server:
        yield server


@pytest.fixture
def victoria_metrics() -> Iterator[VictoriaMetrics]:
    """Return a running VictoriaMetrics that no other test has sent anything to."""
    _require_server("victoria-metrics")
    with VictoriaMetrics() as server:
        yield server
