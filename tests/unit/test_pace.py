"""Pauses of long work: when they come, and where they do not."""

from __future__ import annotations

import asyncio

import pytest

from amptalk_otel import _pace
from amptalk_otel._pace import MOST_WORK_S, PAUSE_S, WORK_S, Pace


class Clock:
    """Stands still until it is told, and while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.kept_waiting_s = 0.0  # by a loop that needs the interpreter itself

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.kept_waiting_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_pace, "time", clock)
    return clock


def begun() -> Pace:
    """After its first pause."""
    pace = Pace()
    pace.breathe()
    return pace


def test_the_first_pause_comes_at_once_for_nobody_knows_what_went_before(clock: Clock) -> None:
    begun()
    assert clock.slept == [PAUSE_S]


def test_no_pause_before_it_is_time(clock: Clock) -> None:
    pace = begun()
    for _ in range(10):
        clock.now += WORK_S / 11
        pace.breathe()
    assert clock.slept == [PAUSE_S]


def test_one_pause_after_each_stretch_of_work(clock: Clock) -> None:
    pace = begun()
    for _ in range(3):
        clock.now += WORK_S
        pace.breathe()
        pace.breathe()
    assert clock.slept == [PAUSE_S] * (1 + 3)


def test_a_pause_does_not_count_as_work(clock: Clock) -> None:
    pace = begun()
    clock.now += WORK_S
    pace.breathe()
    clock.now += WORK_S * 0.9
    pace.breathe()
    assert clock.slept == [PAUSE_S] * (1 + 1)


@pytest.mark.parametrize(
    ("kept_waiting_s", "work_s"), [(0.0, WORK_S), (0.001, WORK_S), (0.003, 0.001), (0.004, 0.00125), (1.0, MOST_WORK_S)]
)
def test_where_a_busy_loop_keeps_us_waiting_the_next_stretch_is_a_quarter_of_that(
    clock: Clock, kept_waiting_s: float, work_s: float
) -> None:
    pace = Pace()
    clock.kept_waiting_s = kept_waiting_s
    for _ in range(2):
        clock.now += WORK_S
        pace.breathe()
    clock.now += work_s * 0.99
    pace.breathe()
    assert len(clock.slept) == 2
    clock.now += work_s * 0.06  # and the pause itself was waited for as well
    pace.breathe()
    assert len(clock.slept) == 3


def test_to_be_kept_waiting_once_changes_nothing(clock: Clock) -> None:
    pace = Pace()
    for kept_waiting_s in (0.0, 0.005, 0.0, 0.005, 0.0):
        clock.kept_waiting_s = kept_waiting_s
        clock.now += WORK_S
        pace.breathe()
    assert len(clock.slept) == 5


def test_a_thread_that_runs_a_loop_is_not_put_to_sleep(clock: Clock) -> None:
    pace = Pace()

    async def read_on_the_loop() -> None:
        clock.now += WORK_S
        pace.breathe()

    asyncio.run(read_on_the_loop())
    assert clock.slept == []
    clock.now += WORK_S
    pace.breathe()
    assert clock.slept == [PAUSE_S]


def test_a_pause_is_a_real_one() -> None:
    assert PAUSE_S > 0  # sleep(0) takes the interpreter back at once
