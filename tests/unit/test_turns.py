"""Runs that are shared: how many there are, how old their results, and what a failure costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from amptalk_otel._turns import Turns
from tests.waiters import wait_until_waiting

TIMEOUT_S = 20.0


class Gate:
    """Work that waits for permission each time; its result is its number."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.runs = 0
        self.inside = 0
        self.most_inside = 0
        self.failing: set[int] = set()

    def work(self) -> int:
        self.runs += 1
        number = self.runs
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.begun.release()
        assert self.go_on.acquire(timeout=TIMEOUT_S)
        self.inside -= 1
        if number in self.failing:
            raise RuntimeError(f"run {number}")
        return number


@contextmanager
def callers(turns: Turns[int]) -> Iterator[Callable[[int], list[Future[int]]]]:
    """Starts callers, and returns when they all wait for a result."""
    with ThreadPoolExecutor(16) as pool:

        def start(number: int) -> list[Future[int]]:
            here = threading.Semaphore(0)

            def share() -> int:
                here.release()
                return turns.share()

            tasks = [pool.submit(share) for _ in range(number)]
            for _ in tasks:
                assert here.acquire(timeout=TIMEOUT_S)
            return tasks

        yield start


def test_who_comes_alone_has_a_run_of_its_own() -> None:
    runs = iter(range(10))
    turns = Turns(lambda: next(runs))
    assert [turns.share() for _ in range(3)] == [0, 1, 2]


def test_all_who_come_while_a_run_is_under_way_share_the_next_one() -> None:
    gate = Gate()
    turns = Turns(gate.work)
    with callers(turns) as start:
        first = start(1)
        assert gate.begun.acquire(timeout=TIMEOUT_S)
        later = start(8)
        wait_until_waiting(turns, 8)
        gate.go_on.release(2)
        assert [task.result(TIMEOUT_S) for task in first] == [1]
        assert [task.result(TIMEOUT_S) for task in later] == [2] * 8
    assert (gate.runs, gate.most_inside) == (2, 1)


def test_a_failure_reaches_all_who_share_the_run_and_nobody_else() -> None:
    gate = Gate()
    gate.failing = {2}
    turns = Turns(gate.work)
    with callers(turns) as start:
        first = start(1)
        assert gate.begun.acquire(timeout=TIMEOUT_S)
        unlucky = start(4)
        wait_until_waiting(turns, 4)
        gate.go_on.release(2)
        assert [str(task.exception(TIMEOUT_S)) for task in unlucky] == ["run 2"] * 4
        assert [task.result(TIMEOUT_S) for task in first] == [1]
        gate.go_on.release()
        assert turns.share() == 3


def test_nobody_waits_for_ever_for_a_run_that_hangs() -> None:
    gate = Gate()
    turns = Turns(gate.work, patience_s=0.05)
    with callers(turns) as start:
        (stuck,) = start(1)
        assert gate.begun.acquire(timeout=TIMEOUT_S)
        with pytest.raises(TimeoutError, match="takes longer than"):
            turns.share()
        gate.go_on.release(2)
        assert stuck.result(TIMEOUT_S) == 1
        assert turns.share() == 2
