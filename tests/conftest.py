"""For every test: our own failures are raised, and nothing of ours is left behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from amptalk_otel import _guard, _names, _pipeline, _watch
from amptalk_otel._hooks import _state
from tests.support import examples

settings.register_profile(
    "amptalk",
    max_examples=examples(100),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),  # a change is judged by what it changed; new examples are found elsewhere
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("amptalk")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or no program that a test starts would know Ctrl-C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take longest: what is left at the end is then shared evenly by all CPUs."""
    items.sort(key=_limit_s, reverse=True)


def _limit_s(item: pytest.Item) -> float:
    limit = item.get_closest_marker("timeout")
    return float(limit.args[0]) if limit and limit.args else 0.0


@pytest.fixture(scope="session", autouse=True)
def strict_guard() -> Iterator[None]:
    """Raise what the guard would swallow."""
    former = _guard.set_strict(strict=True)
    yield
    _guard.set_strict(strict=former)


@pytest.fixture
def lenient_guard() -> Iterator[None]:
    """Swallow our failures, as in a program."""
    former = _guard.set_strict(strict=False)
    yield
    _guard.set_strict(strict=former)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread or a hook of ours."""
    _guard.forget_complaints()
    before = set(_our_threads())
    yield
    threads = [thread for thread in _our_threads() if thread not in before]
    for thread in threads:
        thread.join(5)
    hooks = _live_hooks()
    if hooks:
        gc.collect()  # a hook goes with what it is on
        hooks = _live_hooks()
    for registry in (_watch._agents, _watch._orchestrators, _state._hooks):
        registry.clear()
    _names._names.clear()  # of series that a test left to the garbage collector, and the next one calls the same
    assert [thread.name for thread in threads if thread.is_alive()] == []
    assert hooks == []
    pipelines = [pipeline for pipeline, _users in _pipeline._shared]
    _pipeline._shared.clear()
    for pipeline in pipelines:
        pipeline.shutdown(5.0)
    assert pipelines == []


def _our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("amptalk-otel-")]


def _live_hooks() -> list[object]:
    return [*_watch._agents.values(), *_watch._orchestrators.values(), *_state._hooks.values()]
