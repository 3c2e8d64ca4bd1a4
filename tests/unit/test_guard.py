"""Our own failures: logged at a bounded rate, never raised into the program, never quoting it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from amptalk_otel import _guard


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def lenient() -> Iterator[None]:
    """As in a program: nothing is raised, and nothing was complained about yet."""
    former = _guard.set_strict(strict=False)
    _guard.forget_complaints()
    yield
    _guard.forget_complaints()
    _guard.set_strict(strict=former)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_guard, "time", clock)
    return clock


def fail(text: str) -> None:
    raise KeyError(text)


def test_a_guarded_call_returns_what_the_function_returns() -> None:
    assert _guard.guarded("adding", lambda a, b: a + b, 1, 2) == 3


def test_a_guarded_failure_gives_none_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert _guard.guarded("reading a thing", fail, "x") is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("amptalk_otel", logging.WARNING)
    line = fail.__code__.co_firstlineno + 1
    assert record.getMessage() == (
        f"reading a thing was skipped (KeyError at {__file__}:{line}); the program is not affected"
    )


def test_the_warning_does_not_quote_the_error(caplog: pytest.LogCaptureFixture) -> None:
    _guard.guarded("reading a thing", fail, "s3cret")
    (record,) = caplog.records
    assert "s3cret" not in record.getMessage()
    assert record.exc_info is None
    assert "s3cret" not in caplog.text


def test_a_failure_is_told_once_a_minute(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    for _ in range(5):
        _guard.guarded("reading a thing", fail, "x")
    assert len(caplog.records) == 1
    clock.now_s += 59.9
    _guard.guarded("reading a thing", fail, "x")
    assert len(caplog.records) == 1
    clock.now_s += 0.2
    _guard.guarded("reading a thing", fail, "x")
    assert len(caplog.records) == 2


def test_places_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    for where in ("one", "two", "one"):
        _guard.guarded(where, fail, "x")
    assert [message.partition(" ")[0] for message in caplog.messages] == ["one", "two"]


def test_complaints_can_be_heard_again(caplog: pytest.LogCaptureFixture) -> None:
    _guard.complain("key", "%s is odd", "it")
    _guard.complain("key", "%s is odd", "it")
    _guard.forget_complaints()
    _guard.complain("key", "%s is odd", "it")
    assert caplog.messages == ["it is odd", "it is odd"]


def test_the_memory_of_complaints_is_bounded() -> None:
    for number in range(5000):
        _guard.complain(f"key {number}", "odd")
    assert len(_guard._quiet_until) <= 1001


def test_many_threads_that_fail_at_once_cost_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    together = threading.Barrier(8, timeout=10)

    def work() -> None:
        together.wait()
        _guard.guarded("reading a thing", fail, "x")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(caplog.records) == 1


def test_strict_mode_raises_the_failure_itself(caplog: pytest.LogCaptureFixture) -> None:
    assert _guard.set_strict(strict=True) is False
    with pytest.raises(KeyError, match="x"):
        _guard.guarded("reading a thing", fail, "x")
    assert caplog.messages == []
    assert _guard.set_strict(strict=False) is True


def test_swallow_outside_an_except_block_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    _guard.swallow("nothing")
    assert caplog.messages == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_failure_passes(error: type[BaseException]) -> None:
    def interrupt() -> None:
        raise error

    with pytest.raises(error):
        _guard.guarded("reading a thing", interrupt)


def test_cancellation_passes() -> None:
    import asyncio

    def cancel() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        _guard.guarded("reading a thing", cancel)
