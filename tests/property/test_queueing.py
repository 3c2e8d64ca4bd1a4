"""What queueing theory says of an agent, against what we say: in virtual time, with seeded arrivals and services."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, stdev

import pytest

from amptalk_otel import AgentReading
from amptalk_otel.demo.runtime import Message
from tests.support import Scripted, hooked, note
from tests.virtual_time import run_in_virtual_time

MESSAGES = 20_000
SAMPLE_EVERY_S = 1.37  # in no step with anything
SERVICE_S = 1.0  # on average, in all of them
LOAD = 0.5


@dataclass(frozen=True)
class Queue:
    """How messages come, how long they take, and how many wait by theory, on average."""

    name: str
    gap_s: Callable[[random.Random], float]
    burst: int
    service_s: Callable[[random.Random], float]
    waiting: float


def exponential(mean_s: float) -> Callable[[random.Random], float]:
    return lambda chance: chance.expovariate(1.0 / mean_s)


QUEUES = (
    Queue("M/M/1", exponential(SERVICE_S / LOAD), 1, exponential(SERVICE_S), LOAD**2 / (1 - LOAD)),
    Queue("M/D/1", exponential(SERVICE_S / LOAD), 1, lambda _chance: SERVICE_S, LOAD**2 / (2 * (1 - LOAD))),
    # Of bursts of X there are load (E[X^2] + E[X]) / (2 E[X] (1 - load)) messages there; of these the load is in work.
    Queue("bursts", exponential(10 * SERVICE_S / LOAD), 10, exponential(SERVICE_S), 5.5 * LOAD / (1 - LOAD) - LOAD),
)


@dataclass
class Truth:
    """What the program itself knows, and what was read on the way."""

    began_at: float = 0.0
    ended_at: float = 0.0
    worked_s: float = 0.0
    working_since: float | None = None
    busy_s: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    told: list[AgentReading] = field(default_factory=list)

    @property
    def passed_s(self) -> float:
        return self.ended_at - self.began_at


class Server(Scripted):
    """Takes as long for a message as it says, and keeps a record of it."""

    def __init__(self, truth: Truth, clock: Callable[[], float]) -> None:
        super().__init__()
        self.truth = truth
        self.clock = clock

    async def process_message(self, message: Message) -> None:
        self.truth.working_since = began_at = self.clock()
        await asyncio.sleep(message.payload["service_s"])
        self.truth.worked_s += self.clock() - began_at
        self.truth.working_since = None


def simulate(queue: Queue) -> tuple[Truth, AgentReading]:
    truth = Truth()
    chance = random.Random(queue.name)
    found: list[AgentReading] = []

    async def arrive(server: Server) -> None:
        for _ in range(MESSAGES // queue.burst):
            await asyncio.sleep(queue.gap_s(chance))
            for _ in range(queue.burst):
                service_s = queue.service_s(chance)
                await server.enqueue_message(note(payload={"service_s": service_s}))

    async def main(clock: Callable[[], float]) -> None:
        server = Server(truth, clock)
        with hooked(server, clock) as hook:
            truth.began_at = clock()
            await server.start()
            arriving = asyncio.ensure_future(arrive(server))
            while not (arriving.done() and server.input_queue.empty() and hook.read().in_flight == 0):
                truth.lengths.append(server.input_queue.qsize())
                truth.busy_s.append(truth.worked_s + clock() - (truth.working_since or clock()))
                truth.told.append(hook.read())
                await asyncio.sleep(SAMPLE_EVERY_S)
            truth.ended_at = clock()
            found.append(hook.read())
            await server.stop()

    run_in_virtual_time(main)
    return truth, found[0]


@pytest.fixture(scope="module", params=QUEUES, ids=lambda queue: queue.name)
def simulated(request: pytest.FixtureRequest) -> tuple[Queue, Truth, AgentReading]:
    return (request.param, *simulate(request.param))


Simulated = tuple[Queue, Truth, AgentReading]


def test_littles_law_holds_between_the_lengths_and_the_waits_that_we_tell(simulated: Simulated) -> None:
    _queue, truth, last = simulated
    waits = last.wait_histogram
    assert last.received == waits.count == MESSAGES
    rate = last.received / truth.passed_s
    told = sum(reading.queue_size for reading in truth.told) / len(truth.told)
    assert told == pytest.approx(rate * waits.sum / waits.count, rel=0.05)
    assert [reading.queue_size for reading in truth.told] == truth.lengths


def confidence(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and 3.5 times its standard error, of values that depend on those before: by the means of 20 batches."""
    size = len(values) // 20
    means = [fmean(values[start : start + size]) for start in range(0, 20 * size, size)]
    return fmean(means), 3.5 * stdev(means) / 20**0.5


def test_as_many_wait_as_theory_says(simulated: Simulated) -> None:
    queue, truth, _last = simulated
    waiting, error = confidence([reading.queue_size for reading in truth.told])
    assert error < 0.5 * queue.waiting  # else anything would do
    assert waiting == pytest.approx(queue.waiting, abs=error)


def test_utilisation_is_the_share_of_time_that_the_agent_worked(simulated: Simulated) -> None:
    """As a scraper sees it, a rate between two readings with messages under way at either end; and over all."""
    _queue, truth, last = simulated
    assert last.time.busy_s / last.time.running_s == pytest.approx(truth.worked_s / truth.passed_s, rel=0.02)
    every = len(truth.told) // 10
    for begin in range(0, 9 * every, every):
        one, other = truth.told[begin].time, truth.told[begin + every].time
        worked_s = truth.busy_s[begin + every] - truth.busy_s[begin]
        assert (other.busy_s - one.busy_s) / (other.running_s - one.running_s) == pytest.approx(
            worked_s / (every * SAMPLE_EVERY_S), rel=0.02
        )


def test_the_agent_is_as_busy_as_theory_says(simulated: Simulated) -> None:
    _queue, truth, _last = simulated
    rises = [later.time.busy_s - one.time.busy_s for one, later in pairwise(truth.told)]
    busy, error = confidence([rise / SAMPLE_EVERY_S for rise in rises])
    assert error < 0.2 * LOAD
    assert busy == pytest.approx(LOAD, abs=error)


def test_at_each_reading_the_agent_was_busy_for_as_long_as_it_says_itself(simulated: Simulated) -> None:
    _queue, truth, _last = simulated
    assert [reading.time.busy_s for reading in truth.told] == pytest.approx(truth.busy_s, abs=1e-6)


def test_the_parts_add_up_to_the_time_that_passed_and_never_fall_at_any_reading(simulated: Simulated) -> None:
    _queue, truth, _last = simulated
    former = truth.told[0].time
    for reading in truth.told:
        now = reading.time
        assert now.running_s == pytest.approx(reading.uptime_s, rel=1e-9, abs=1e-9)
        for state, seconds in now.by_state.items():
            assert seconds >= former.by_state[state]
        assert (now.retry_backoff_s, now.blocked_sending_s) == (0.0, 0.0)
        former = now


def test_the_peak_is_the_highest_length_of_the_last_minute_to_five_seconds(simulated: Simulated) -> None:
    _queue, truth, _last = simulated
    for index in range(100, len(truth.told), 101):
        reached = int(60.0 / SAMPLE_EVERY_S)
        seen = max(truth.lengths[index - reached : index + 1])
        assert truth.told[index].queue_peak >= seen


@pytest.mark.parametrize("queue", QUEUES[:1], ids=lambda queue: queue.name)
def test_a_simulation_is_the_same_each_time(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.MESSAGES", 300)
    one, other = (simulate(queue)[1].time for _ in range(2))
    assert one == other
