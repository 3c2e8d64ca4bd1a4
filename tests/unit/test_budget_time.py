"""Where the time of many agents goes, who share series, come and go: no sum changes, and no counter falls."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from amptalk_otel import _watch
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._labels import OTHER, RETIRED
from amptalk_otel._ledger import Ledger
from amptalk_otel.demo.runtime import Message
from tests.support import Scripted, note, settle
from tests.unit.test_budget import Numbers, Ways, ways
from tests.virtual_time import run_in_virtual_time

__all__ = ["ways"]  # a fixture

TIME, PEAK = "amptalk.agent.time", "amptalk.agent.queue.peak"
STATES = ("idle", "busy", "retry_backoff", "blocked_sending")
Clock = Callable[[], float]
Times = defaultdict[str, float]


def times(found: Numbers) -> dict[tuple[str, str], float]:
    """Seconds by `agent.id` and `state`. A second series of the same would be lost, so there is none."""
    values: dict[tuple[str, str], float] = {}
    for (name, attributes), value in found.items():
        if name == TIME:
            of = dict(attributes)
            assert (of["agent.id"], of["state"]) not in values
            values[of["agent.id"], of["state"]] = value
    return values


def by_state(found: Numbers) -> dict[str, float]:
    """The sum over all agents."""
    sums = dict.fromkeys(STATES, 0.0)
    for (_agent_id, state), seconds in times(found).items():
        sums[state] += seconds
    return sums


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return clock_of_recorders(monkeypatch)


def clock_of_recorders(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`clock.time` is what new recorders read; the test puts that of its loop there."""
    told = SimpleNamespace(time=lambda: 0.0)

    class Told(AgentRecorder):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, clock=told.time)

    monkeypatch.setattr(_watch, "AgentRecorder", Told)
    return told


class Diarist(Scripted):
    """Writes down for how long it was in which state while it was watched and ran."""

    def __init__(self, truth: Times, clock: Clock, **options: Any) -> None:
        super().__init__(**options)
        self.base_retry_delay, self.retry_jitter = 0.5, 0.0
        self.truth = truth
        self.clock = clock
        self.is_at = "idle"
        self.chance = random.Random(self.agent_id)
        self.since = clock()
        self.is_watched = False
        slow: Any = SimpleNamespace(agent_id="slow", name="slow", enqueue_message=self._accept)
        self.connected_agents["slow"] = slow

    async def _accept(self, _message: Message) -> None:
        self.turn("blocked_sending")
        await asyncio.sleep(self.random_s())
        self.turn("busy")

    def random_s(self) -> float:
        return self.chance.random()

    def turn(self, state: str | None = None) -> None:
        """It is in `state` from now on; None: as before."""
        now = self.clock()
        if self.is_watched and self.is_running:
            self.truth[self.is_at] += now - self.since
        self.since, self.is_at = now, state or self.is_at

    async def process_message(self, message: Message) -> None:
        self.turn("busy")
        try:
            await asyncio.sleep(self.random_s())
            if message.payload["sends"]:
                await self.send_message(note(target_agent_id="slow"))
            message.payload["fails"] -= 1
            if message.payload["fails"] >= 0:
                raise ConnectionError
        finally:
            self.turn("retry_backoff" if message.payload["fails"] >= 0 else "idle")

    async def start(self) -> None:
        if not self.is_running:
            self.turn("idle")
        await super().start()

    async def stop(self) -> None:
        self.turn()
        await super().stop()


class Churn:
    """Agents that come, start, work, stop and go at random, in any state."""

    def __init__(self, town: Ways, seed: int, clock: Clock) -> None:
        self.town = town
        self.clock = clock
        self.random = random.Random(seed)
        self.watched: dict[str, Diarist] = {}
        self.everyone: dict[str, Diarist] = {}
        self.came = 0
        self.truth: Times = Times(float)
        self.ids = itertools.count()

    async def step(self) -> None:
        one = self.random.choice([*self.watched.values(), None])
        what = self.random.choice(("come", "return", "work", "work", "work", "start", "stop", "go", "wait"))
        if what in {"come", "return"} and len(self.watched) < 9:
            self._come(next(self.ids) if what == "come" else self.random.randrange(12))
        elif what == "wait":
            await asyncio.sleep(self.random.choice((0.1, 1.0, 7.0)))
        elif one is not None and what == "work":
            await one.enqueue_message(note(payload={"sends": self.random.random() < 0.4, "fails": self._failures()}))
        elif one is not None and what == "start":
            await one.start()
        elif one is not None and what == "stop":
            await one.stop()
        elif one is not None and what == "go":
            one.turn()
            one.is_watched = False
            self.town.orchestrator.unregister_agent(self.watched.pop(one.agent_id).agent_id)
        await settle()

    def _failures(self) -> int:
        return self.random.choice((0, 0, 1, 2))

    def _come(self, number: int) -> None:
        """The same agent again, if there was one of this number. Nobody knows what it does where nobody watches."""
        one = self.everyone.get(f"id-{number}")
        if one is None:
            name = ("worker", "boss", "clerk")[number % 3]
            one = Diarist(self.truth, self.clock, agent_id=f"id-{number}", name=name)
        if one.is_watched or (one.is_running and one.is_at != "idle"):
            return
        self.town.orchestrator.register_agent(one)
        one.turn()
        one.is_watched = True
        self.watched[one.agent_id] = self.everyone[one.agent_id] = one
        self.came += 1

    def true_times(self) -> dict[str, float]:
        for one in self.watched.values():
            one.turn()
        return {state: self.truth[state] for state in STATES}

    async def end(self) -> None:
        for one in self.everyone.values():
            await one.stop()


@pytest.mark.parametrize(("grouping", "seed"), [("id", 1), ("name", 2), ("class", 3)])
def test_times_add_up_and_none_falls_however_agents_come_and_go(
    ways: Callable[..., Ways], clock: SimpleNamespace, grouping: str, seed: int
) -> None:
    async def run(now: Clock) -> None:
        clock.time = now
        churn = Churn(ways(max_agents=3, agent_grouping=grouping), seed, now)
        former: list[dict[tuple[str, str], float]] = [{}, {}]
        try:
            for _ in range(150):
                await churn.step()
                true = churn.true_times()
                for index, found in enumerate(churn.town.all()):
                    assert by_state(found) == pytest.approx(true, abs=1e-6)
                    told = times(found)
                    assert [key for key, seconds in told.items() if seconds < former[index].get(key, 0.0)] == []
                    assert former[index].keys() & {(OTHER, "idle"), (RETIRED, "idle")} <= told.keys()
                    former[index] = told
        finally:
            await churn.end()
        assert churn.came > 10
        assert min(true.values()) > 1.0
        for agent_id in churn.watched:
            churn.town.orchestrator.unregister_agent(agent_id)
        await asyncio.sleep(10.0)
        for found in churn.town.all():
            assert by_state(found) == pytest.approx(true, abs=1e-6)
            assert {agent_id for agent_id, _state in times(found)} <= {OTHER, RETIRED}

    run_in_virtual_time(run)


def test_the_time_of_agents_that_left_stands_still(ways: Callable[..., Ways], clock: SimpleNamespace) -> None:
    async def run(now: Clock) -> None:
        clock.time = now
        town, truth = ways(), Times(float)
        one = Diarist(truth, now, agent_id="a", name="A")
        town.orchestrator.register_agent(one)
        await asyncio.sleep(5.0)
        await one.start()
        await one.enqueue_message(note(payload={"sends": False, "fails": 0}))
        one.random_s = lambda: 4.0  # type: ignore[method-assign]
        await asyncio.sleep(3.0)
        town.orchestrator.unregister_agent("a")  # in the middle of its work
        for agent_id, after_s in (("a", 0.5), (RETIRED, 10.0), (RETIRED, 10.0)):
            await asyncio.sleep(after_s)
            for found in town.all():
                assert times(found) == {(agent_id, state): 3.0 if state == "busy" else 0.0 for state in STATES}
        await one.stop()

    run_in_virtual_time(run)


def test_sums_are_the_same_in_any_order() -> None:
    """Tenths of seconds are no binary fractions: their floating-point sums differ in the last digit."""
    sums = set()
    for order in itertools.permutations((0.1, 0.2, 0.3, 0.7)):
        ledger = Ledger()
        for end_s in order:
            recorder = AgentRecorder("a", "A", clock=lambda: 100.0)
            recorder.times.run(0.0, (0.0, 0.0, 0.0))
            recorder.times.stop(end_s, (0.1, 0.0, 0.0))
            ledger.report(recorder)
            ledger.retire([recorder])
        (kept,) = ledger.settled().kept
        sums.add(kept.read().time)
    (told,) = sums
    assert (told.busy_s, told.running_s) == (0.4, 1.3)


@pytest.mark.parametrize("grouping", ["name", "class"])
def test_the_peak_of_a_group_is_that_of_one_inbox(
    ways: Callable[..., Ways], clock: SimpleNamespace, grouping: str
) -> None:
    async def run(now: Clock) -> None:
        clock.time = now
        town = ways(agent_grouping=grouping)
        agents = [Scripted(agent_id=f"id-{number}", name="Scripted") for number in range(3)]
        for one, length in zip(agents, (2, 5, 3), strict=True):
            town.orchestrator.register_agent(one)
            for _ in range(length):
                await one.enqueue_message(note())
        peaks = partial(peaks_of, town)
        assert peaks() == [{"Scripted": 5}] * 2
        for one in agents:
            await one.start()
        await settle(30)
        assert peaks() == [{"Scripted": 5}] * 2
        town.orchestrator.unregister_agent("id-1")
        await asyncio.sleep(1.0)
        assert peaks() == [{"Scripted": 3}] * 2  # those who left have none
        await asyncio.sleep(66.0)
        assert peaks() == [{"Scripted": 0}] * 2
        for one in agents:
            await one.stop()

    run_in_virtual_time(run)


def peaks_of(town: Ways) -> list[dict[str, float]]:
    return [
        {dict(attributes)["agent.id"]: value for (name, attributes), value in found.items() if name == PEAK}
        for found in town.all()
    ]
