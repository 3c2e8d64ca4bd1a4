"""The highest length of an inbox in the last minute: exact to a slot of five seconds, whoever reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._peaks import NO_PEAKS, SLOTS, highest, moved_on
from tests.support import Clock, Scripted, handle, hold, hooked, in_loop, note, settle


async def reach(agent: Scripted, length: int) -> None:
    """Let the inbox have so many messages, and none after that."""
    for _ in range(length):
        agent.input_queue.put_nowait(note())
    await agent.input_queue.join()
    await settle()


@in_loop
async def test_the_peak_stays_for_a_minute_and_goes_within_five_seconds_after() -> None:
    agent, clock = Scripted(), Clock()  # begins at a multiple of five seconds
    with hooked(agent, clock) as hook:
        await agent.start()
        clock.advance(1.0)
        await reach(agent, 7)
        assert (hook.read().queue_size, hook.read().queue_peak) == (0, 7)
        clock.advance(60.0)
        assert hook.read().queue_peak == 7
        clock.advance(3.9)
        assert hook.read().queue_peak == 7
        clock.advance(0.2)
        assert hook.read().queue_peak == 0
        await agent.stop()


@pytest.mark.parametrize("read_on_the_way", [False, True])
@in_loop
async def test_lower_peaks_come_to_light_as_higher_ones_go_whoever_reads(read_on_the_way: bool) -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        await agent.start()
        for length in (9, 5, 3):
            await reach(agent, length)
            for _ in range(20):
                clock.advance(1.0)
                if read_on_the_way:
                    hook.read()
        seen = []
        for _ in range(12):
            seen.append(hook.read().queue_peak)
            clock.advance(5.0)
        assert seen == [9, 5, 5, 5, 5, 3, 3, 3, 3, 0, 0, 0]
        await agent.stop()


@in_loop
async def test_what_waits_now_is_a_peak_before_any_of_it_leaves() -> None:
    agent, clock = Scripted(hold), Clock()
    with hooked(agent, clock) as hook:
        await agent.start()
        for _ in range(6):
            await agent.enqueue_message(note())
        await settle()
        assert (hook.read().queue_size, hook.read().queue_peak) == (5, 6)
        clock.advance(600.0)
        assert hook.read().queue_peak == 5  # since ten minutes
        await agent.stop()


@in_loop
async def test_a_long_inbox_that_is_worked_off_slowly_is_as_long_as_it_was_a_minute_ago() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        for _ in range(100):
            agent.input_queue.put_nowait(note())
        agent.tasks = [asyncio.current_task()]  # type: ignore[list-item]
        for _ in range(50):
            clock.advance(5.0)
            await agent._process_with_retry(agent.input_queue.get_nowait())
        assert (hook.read().queue_size, hook.read().queue_peak) == (50, 100 - 50 + 13)
        agent.tasks = []


@in_loop
async def test_whoever_takes_it_and_from_whatever_inbox() -> None:
    agent, clock = Scripted(), Clock()
    agent.input_queue = asyncio.LifoQueue()
    with hooked(agent, clock) as hook:
        for _ in range(4):
            agent.input_queue.put_nowait(note())
        agent.input_queue.get_nowait()
        agent.input_queue.get_nowait()
        assert (hook.read().queue_size, hook.read().queue_peak) == (2, 4)
        agent.input_queue = asyncio.Queue()
        clock.advance(30.0)
        await agent.start()  # with the new one
        assert (hook.read().queue_size, hook.read().queue_peak) == (0, 4)
        clock.advance(33.0)
        assert hook.read().queue_peak == 4
        clock.advance(5.0)
        assert hook.read().queue_peak == 2  # these were there until the inbox was replaced
        await agent.stop()


@in_loop
async def test_an_agent_let_go_keeps_its_peak_for_the_minute() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        for _ in range(4):
            agent.input_queue.put_nowait(note())
        hook.let_go()
        assert (hook.read().queue_size, hook.read().queue_peak) == (0, 4)
        clock.advance(70.0)
        assert hook.read().queue_peak == 0


@in_loop
async def test_what_is_removed_behind_our_back_is_no_length_of_the_inbox_any_more() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        for _ in range(9):
            agent.input_queue.put_nowait(note())
        agent.input_queue._queue.clear()  # type: ignore[attr-defined]
        agent.input_queue._unfinished_tasks = 0  # type: ignore[attr-defined]
        clock.advance(600.0)
        await handle(agent, note())
        assert hook.read().queue_peak == 1


def test_what_is_kept_does_not_grow() -> None:
    clock = Clock()
    recorder = AgentRecorder("id", "name", clock=clock)
    for second in range(1_000):
        recorder.was_as_long_as(second, clock())
        clock.advance(1.0)
    assert len(recorder.peaks) == len(NO_PEAKS) == SLOTS + 1
    assert recorder.changes % 2 == 0


def test_against_the_definition() -> None:
    """All lengths at all times, and their maximum by hand."""
    clock = Clock()
    recorder = AgentRecorder("id", "name", clock=clock)
    told: list[tuple[float, int]] = []
    for step in range(600):
        length = (step * 7919) % 101
        recorder.was_as_long_as(length, clock())
        told.append((clock(), length))
        begins = (clock() // 5.0) * 5.0 - 60.0
        assert recorder.peak_until(clock()) == max(value for moment, value in told if moment >= begins)
        clock.advance((step * 31 % 17) / 2.0 + (100.0 if step % 97 == 0 else 0.0))


@pytest.mark.parametrize(("passed", "expected"), [(0, 9), (1, 9), (12, 9), (13, 0), (10**9, 0)])
def test_a_slot_counts_for_twelve_more(passed: int, expected: int) -> None:
    peaks: Any = moved_on(NO_PEAKS, 0, 500.0)
    assert highest(peaks, 9, 500.0 + 5.0 * passed) == expected
    later = moved_on(peaks, 9, 500.0 + 5.0 * passed) if passed else peaks
    assert highest(later, 0 if passed else 9, 500.0 + 5.0 * passed) == expected
