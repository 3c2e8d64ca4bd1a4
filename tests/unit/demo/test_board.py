"""Rows, totals and rates follow from readings."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from amptalk_otel import Distribution
from amptalk_otel.demo.board import RateWindow, Totals, add_up, make_rows

BOUNDS = (0.001, 0.01, 0.1)


def histogram(*counts: int) -> Distribution:
    return Distribution(BOUNDS, counts, 0.0)


@dataclass(frozen=True)
class FakeReading:
    agent_id: str = "a"
    agent_name: str = "Agent"
    running: bool = True
    queue_size: int = 0
    in_flight: int = 0
    received: int = 0
    processed: int = 0
    failed: int = 0
    dropped: int = 0
    sent: int = 0
    retries: int = 0
    undeliverable: int = 0
    wait_histogram: Distribution = field(default_factory=lambda: histogram(0, 0, 0, 0))
    process_histogram: Distribution = field(default_factory=lambda: histogram(0, 0, 0, 0))


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


class TestRateWindow:
    def test_zero_until_two_totals_are_known(self) -> None:
        clock = Clock()
        rates = RateWindow(clock=clock)
        assert rates.update("a", 500) == 0.0
        assert rates.update("a", 500) == 0.0

    def test_growth_per_second(self) -> None:
        clock = Clock()
        rates = RateWindow(window_s=5, clock=clock)
        rates.update("a", 100)
        clock.now_s += 2
        assert rates.update("a", 150) == 25.0

    def test_looks_back_one_window(self) -> None:
        clock = Clock()
        rates = RateWindow(window_s=5, clock=clock)
        total = 0
        for _ in range(20):  # fast for ten seconds
            rates.update("a", total)
            clock.now_s += 0.5
            total += 50
        found = []
        for _ in range(12):  # then nothing for six
            found.append(rates.update("a", total))
            clock.now_s += 0.5
        assert found[0] == 100.0
        assert found[5] == pytest.approx(50.0)
        assert found[-1] == 0.0
        assert found == sorted(found, reverse=True)

    def test_keys_are_apart(self) -> None:
        clock = Clock()
        rates = RateWindow(clock=clock)
        rates.update("a", 0)
        rates.update("b", 0)
        clock.now_s += 1
        assert (rates.update("a", 3), rates.update("b", 5)) == (3.0, 5.0)

    def test_rare_updates_use_the_last_one(self) -> None:
        clock = Clock()
        rates = RateWindow(window_s=5, clock=clock)
        rates.update("a", 0)
        clock.now_s += 100
        rates.update("a", 1000)
        clock.now_s += 100
        assert rates.update("a", 3000) == 20.0


class TestRows:
    def test_takes_over_and_computes(self) -> None:
        clock = Clock()
        rates = RateWindow(clock=clock)
        make_rows([FakeReading()], rates)
        clock.now_s += 2
        reading = FakeReading(
            agent_name="Language",
            running=False,
            queue_size=3,
            in_flight=1,
            received=50,
            processed=40,
            failed=4,
            dropped=2,
            retries=7,
            wait_histogram=histogram(10, 0, 0, 0),
            process_histogram=histogram(0, 0, 100, 0),
        )
        (row,) = make_rows([reading], rates)
        assert (row.name, row.running, row.queue, row.in_flight) == ("Language", False, 3, 1)
        assert (row.received, row.failed, row.dropped, row.retries) == (50, 4, 2, 7)
        assert row.processed_per_s == 20.0
        quantiles = [row.wait_p50_s, row.wait_p95_s, row.process_p50_s, row.process_p95_s]
        assert quantiles == pytest.approx([0.0005, 0.00095, 0.055, 0.0955])

    def test_no_quantiles_without_values(self) -> None:
        (row,) = make_rows([FakeReading()], RateWindow())
        assert row.wait_p50_s is row.process_p95_s is None


class TestTotals:
    def test_sums(self) -> None:
        first = FakeReading("a", "A", True, 1, 2, 15, 3, 4, 5, 6, 7, 8)
        second = FakeReading("b", "B", True, 10, 20, 150, 30, 40, 50, 60, 70, 80)
        totals = add_up([first, second])
        assert totals == Totals(
            received=165,
            processed=33,
            failed=44,
            dropped=55,
            in_flight=22,
            queued=11,
            sent=66,
            retries=77,
            undeliverable=88,
        )
        assert totals.accounted_for == 165

    def test_takes_an_iterator(self) -> None:
        assert add_up(iter([FakeReading(received=2, processed=2)])).accounted_for == 2
