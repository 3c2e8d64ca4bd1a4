"""The budget of series: agents beyond it, agents that left, groups, and who is watched at all. No sum ever changes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider

from amptalk_otel import Config, Instrumentation, PerformanceMonitor, instrument_orchestrator
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._bridge import serve
from amptalk_otel._hooks._agent import AgentHook
from amptalk_otel._labels import OTHER, RETIRED
from amptalk_otel._ledger import Ledger
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._type_recorder import in_flight_of
from amptalk_otel._watch import Watch
from amptalk_otel.demo.runtime import MessageType, Orchestrator, StateManager
from tests.support import CONFIG, Scripted, handle, hold, hooked, in_loop, note, provider_and_reader, series, settle

AT_ONCE = CONFIG.with_changes(departed_agents_linger_s=1e-9)
RECEIVED, PROCESSED = "amptalk.agent.messages.received", "amptalk.agent.messages.processed"
WORK, STATE = "amptalk.agent.message.process.duration", "amptalk.state.operation.duration"
Numbers = Mapping[tuple[str, frozenset[tuple[str, Any]]], Any]


def by_agent(found: Numbers, metric: str) -> dict[str, float]:
    """The numbers of a metric by `agent.id`; of a histogram the counts."""
    numbers: Counter[str] = Counter()
    for (name, attributes), value in found.items():
        if name == metric:
            numbers[dict(attributes)["agent.id"]] += value[0] if isinstance(value, tuple) else value
    return dict(numbers)


class Ways:
    """One orchestrator, told through instruments of the SDK and through our own producer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.orchestrator = Orchestrator(name="town")
        self.provider, self.reader = provider_and_reader()
        self.by_sdk = instrument_orchestrator(self.orchestrator, config=config, meter_provider=self.provider)
        bridge, self._other_provider = ProducerBridge(), MeterProvider(shutdown_on_exit=False)
        serve(self._other_provider, bridge)
        self.by_us = instrument_orchestrator(self.orchestrator, config=config, meter_provider=self._other_provider)
        self._producer = CatalogueProducer(bridge)

    def all(self) -> list[Numbers]:
        """The numbers of each way."""
        produced = {
            (metric.name, frozenset((point.attributes or {}).items())): (
                (point.count, point.sum) if hasattr(point, "bucket_counts") else point.value  # type: ignore[union-attr]
            )
            for scope in self._producer.produce()
            for metric in scope.metrics
            for point in metric.data.data_points
        }
        return [series(self.reader), produced]

    def beginnings(self, name: str) -> dict[str, int]:
        """Since when the series of a metric count, by agent, as our producer says."""
        metrics = [metric for scope in self._producer.produce() for metric in scope.metrics if metric.name == name]
        return {
            str((point.attributes or {})["agent.id"]): point.start_time_unix_nano
            for metric in metrics
            for point in metric.data.data_points
        }

    def end(self) -> None:
        self.by_us.shutdown()
        self.by_sdk.shutdown()
        for provider in (self.provider, self._other_provider):
            provider.shutdown()


@pytest.fixture
def ways() -> Iterator[Callable[..., Ways]]:
    made: list[Ways] = []

    def make(**settings: Any) -> Ways:
        made.append(Ways(AT_ONCE.with_changes(**settings)))
        return made[-1]

    yield make
    for one in made:
        one.end()


def agent(number: int, name: str | None = None) -> Scripted:
    return Scripted(agent_id=f"id-{number}", name=name or f"agent {number}")


def test_agents_beyond_the_budget_are_one_series(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways(max_agents=2)
        agents = [agent(number) for number in range(5)]
        for number, one in enumerate(agents):
            town.orchestrator.register_agent(one)
            await handle(one, *[note() for _ in range(number + 1)])
        await agents[0].start()
        await agents[4].start()
        for found in town.all():
            expected = {"id-0": 1, "id-1": 2, OTHER: 12}
            assert by_agent(found, RECEIVED) == by_agent(found, PROCESSED) == by_agent(found, WORK) == expected
            assert by_agent(found, "amptalk.agent.running") == {"id-0": 1, "id-1": 0, OTHER: 1}
        assert [(one.agent_id, one.received) for one in town.by_us.read()] == [("id-0", 1), ("id-1", 2), (OTHER, 12)]
        for one in agents:
            await one.stop()

    run()


def test_a_place_that_gets_free_is_given_to_the_next(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways(max_agents=1)
        agents = [agent(number) for number in range(3)]
        for one in agents[:2]:
            town.orchestrator.register_agent(one)
            await handle(one, note())
        town.orchestrator.unregister_agent("id-0")
        town.all()
        town.orchestrator.register_agent(agents[2])
        await handle(agents[2], note())
        for found in town.all():
            assert by_agent(found, RECEIVED) == {"id-2": 1, OTHER: 1, RETIRED: 1}
        town.orchestrator.unregister_agent("id-1")
        for found in town.all():  # what falls in no series falls in none
            assert by_agent(found, RECEIVED) == {"id-2": 1, OTHER: 1, RETIRED: 1}

    run()


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        ("id", {"id-0": 1, "id-1": 1, "id-2": 1}),
        ("name", {"worker": 2, "boss": 1}),
        ("class", {"Scripted": 3}),
    ],
)
def test_agents_may_be_grouped(ways: Callable[..., Ways], grouping: str, expected: dict[str, int]) -> None:
    @in_loop
    async def run() -> None:
        town = ways(agent_grouping=grouping)
        for number, name in enumerate(("worker", "boss", "worker")):
            town.orchestrator.register_agent(agent(number, name))
            await handle(town.orchestrator.agents[f"id-{number}"], note())
        for found in town.all():
            assert by_agent(found, RECEIVED) == expected
        town.orchestrator.unregister_agent("id-0")
        for _ in range(2):  # its group goes on as long as there is another one
            for found in town.all():
                kept = {**expected, RETIRED: 1} if grouping == "id" else expected
                assert by_agent(found, RECEIVED) == {name: number for name, number in kept.items() if name != "id-0"}
        town.orchestrator.unregister_agent("id-2")
        town.orchestrator.unregister_agent("id-1")
        for found in town.all():
            assert by_agent(found, RECEIVED) == by_agent(found, WORK) == {RETIRED: 3}

    run()


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        ({"agents_include": ("id-1", "*-2")}, {"id-1", "id-2"}),
        ({"agents_exclude": ("agent [01]",)}, {"id-2"}),
        ({"agents_include": ("id-*",), "agents_exclude": ("id-2",)}, {"id-0", "id-1"}),
        ({"agents_include": ("ID-*", "id", "agent ?")}, {"id-0", "id-1", "id-2"}),
        ({"agents_include": ("AGENT *", "gent 1")}, set()),
        ({"agents_include": ("id-1", "agent 2"), "agents_exclude": ("agent 1", "nobody")}, {"id-2"}),
    ],
)
def test_only_some_agents_are_watched(
    ways: Callable[..., Ways], settings: dict[str, tuple[str, ...]], watched: set[str]
) -> None:
    @in_loop
    async def run() -> None:
        town = ways(**settings)
        agents = [agent(number) for number in range(3)]
        for one in agents:
            town.orchestrator.register_agent(one)
            await handle(one, note())
        for found in town.all():
            assert by_agent(found, RECEIVED).keys() == watched
        assert {one.agent_id for one in agents if "_put" in vars(one.input_queue)} == watched

    run()


def test_an_agent_retires_when_it_is_done(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town, done = ways(), asyncio.Event()

        async def work(_message: Any) -> None:
            await done.wait()

        one = Scripted(work, agent_id="a", name="A")
        town.orchestrator.register_agent(one)
        await one.start()
        await one.enqueue_message(note())
        await settle()
        town.orchestrator.unregister_agent("a")
        for found in town.all():
            assert by_agent(found, "amptalk.agent.messages.in_flight") == {"a": 1}
        done.set()
        await settle()
        for found in town.all():
            assert by_agent(found, PROCESSED) == by_agent(found, WORK) == {RETIRED: 1}
            assert by_agent(found, "amptalk.agent.messages.in_flight") == {RETIRED: 0}
        await one.stop()

    run()


def test_a_message_that_was_taken_and_never_begun_is_accounted_for(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town, one = ways(), Scripted(agent_id="a", name="A")
        town.orchestrator.register_agent(one)
        await one.enqueue_message(note())
        (shared,) = _watch(town.by_us)._agents.values()
        recorder = shared.hook.recorder
        recorder.left(one.input_queue._queue[0], lambda: None, own_loop=True)  # type: ignore[attr-defined]
        town.orchestrator.unregister_agent("a")
        for found in town.all():
            assert by_agent(found, "amptalk.agent.messages.failed") == {RETIRED: 1}
            assert by_agent(found, "amptalk.agent.messages.in_flight") == {RETIRED: 0}

    run()


def _watch(handle_: Instrumentation) -> Watch:
    watch = handle_._watch
    assert watch is not None
    return watch


def test_states_and_operations_of_agents_that_left_are_told_on(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways()
        for number in range(3):
            one = agent(number)
            one.state_manager = StateManager()
            town.orchestrator.register_agent(one)
            await one.state_manager.save_state("x", {"n": number})
            for told in (town.by_us, town.by_sdk):
                _watch(told).operations.measured(f"id-{number}", one.name, "transcribe", 1.0)
        before = [by_agent(found, STATE) for found in town.all()]
        for number in range(2):
            town.orchestrator.unregister_agent(f"id-{number}")
        town.all()
        for found, former in zip(town.all(), before, strict=True):
            assert by_agent(found, "amptalk.operation.duration") == {"id-2": 1, RETIRED: 2}
            states = by_agent(found, STATE)
            assert states.keys() == {"id-2", RETIRED}
            assert sum(states.values()) == sum(former.values())

    run()


def test_an_agent_that_two_watch_on_one_page_retires_once() -> None:
    @in_loop
    async def run() -> None:
        config = AT_ONCE.with_changes(metrics_exporters=("prometheus",), prometheus_port=0)
        orchestrator, one = Orchestrator(name="town"), agent(0)
        orchestrator.register_agent(one)
        with instrument_orchestrator(orchestrator, config=config) as first:
            assert first.metrics_url is not None
            monitor = PerformanceMonitor(prometheus_port=int(first.metrics_url.rsplit(":", 1)[1].split("/")[0]))
            monitor._config = monitor._config.with_changes(departed_agents_linger_s=1e-9)
            monitor.add_agent(one)
            assert first._pipeline is not None
            assert first._pipeline is monitor._pipeline
            producer = CatalogueProducer(first._pipeline.bridge)

            def received() -> dict[str, float]:
                points = [
                    point for scope in producer.produce() for metric in scope.metrics if metric.name == RECEIVED
                    for point in metric.data.data_points
                ]  # fmt: skip
                return {str((point.attributes or {})["agent.id"]): point.value for point in points}  # type: ignore[union-attr]

            await handle(one, note())
            orchestrator.unregister_agent("id-0")
            assert received() == {"id-0": 1}  # the monitor watches it still
            monitor.remove_agent("id-0")
            for _ in range(2):
                assert received() == {RETIRED: 1}
            await monitor.stop_collecting()

    run()


def test_nothing_is_left_once_nobody_is_watched() -> None:
    @in_loop
    async def run() -> None:
        provider, reader = provider_and_reader()
        orchestrator = Orchestrator(name="town")
        told = instrument_orchestrator(orchestrator, config=AT_ONCE, meter_provider=provider)
        for number in range(2):
            orchestrator.register_agent(agent(number))
            await handle(orchestrator.agents[f"id-{number}"], note())
        orchestrator.unregister_agent("id-0")
        assert by_agent(series(reader), RECEIVED) == by_agent(series(reader), WORK) == {"id-1": 1, RETIRED: 1}
        told.uninstrument()
        assert series(reader) == {}
        again = instrument_orchestrator(orchestrator, config=AT_ONCE, meter_provider=provider)
        assert by_agent(series(reader), RECEIVED) == by_agent(series(reader), WORK) == {}
        again.shutdown()
        provider.shutdown()

    run()


# -- everything at once --------------------------------------------------------------------------------


class Churn:
    """Agents that come, work and go at random, and what is true of them."""

    def __init__(self, town: Ways, seed: int) -> None:
        self.town = town
        self.random = random.Random(seed)
        self.alive: list[Scripted] = []
        self.made = 0
        self.truth: Counter[str] = Counter()

    async def step(self) -> None:
        what = self.random.choice(("come", "work", "work", "work", "go", "return"))
        if what == "come" and len(self.alive) < 12:
            self._register(agent(self.made, self.random.choice(("worker", "boss", None))))
            self.made += 1
        elif what == "return" and self.made and len(self.alive) < 12:
            number = self.random.randrange(self.made)
            if all(one.agent_id != f"id-{number}" for one in self.alive):
                self._register(agent(number))
        elif what == "work" and self.alive:
            await self._work(self.random.choice(self.alive))
        elif what == "go" and self.alive:
            gone = self.alive.pop(self.random.randrange(len(self.alive)))
            self.town.orchestrator.unregister_agent(gone.agent_id)

    def _register(self, one: Scripted) -> None:
        self.town.orchestrator.register_agent(one)
        self.alive.append(one)

    async def _work(self, one: Scripted) -> None:
        outcomes = [self.random.choice((None, ValueError())) for _ in range(self.random.randrange(4))]
        one.script.extend(outcomes)
        await handle(one, *[note(self.random.choice(list(MessageType)[:3])) for _ in outcomes])
        self.truth[RECEIVED] += len(outcomes)
        self.truth[WORK] += len(outcomes)
        self.truth[PROCESSED] += outcomes.count(None)


@pytest.mark.parametrize("grouping", ["id", "name", "class"])
@pytest.mark.parametrize("seed", range(2))
def test_sums_are_exact_and_no_counter_falls_however_agents_come_and_go(
    ways: Callable[..., Ways], grouping: str, seed: int
) -> None:
    @in_loop
    async def run() -> None:
        churn = Churn(ways(max_agents=3, agent_grouping=grouping), seed)
        former: list[Numbers] = [{}, {}]
        for _ in range(150):
            await churn.step()
            now = churn.town.all()
            for found, before in zip(now, former, strict=True):
                for name in (RECEIVED, PROCESSED, WORK):
                    numbers = by_agent(found, name)
                    assert sum(numbers.values()) == churn.truth[name]
                    assert len(numbers) <= 3 + 2
                    for agent_id in (OTHER, RETIRED):
                        assert numbers.get(agent_id, 0) >= by_agent(before, name).get(agent_id, 0)
            former = now
        assert churn.made > 15

    run()


# -- read while agents leave ---------------------------------------------------------------------------


class Interrupted:
    """Agents that leave in the middle of a reading, as they do when the reader lets the event loop go on."""

    def __init__(self, town: Ways, agents: list[Scripted]) -> None:
        self._town = town
        self._bridge = ProducerBridge()
        self._provider = MeterProvider(shutdown_on_exit=False)
        serve(self._provider, self._bridge)
        self.told = instrument_orchestrator(town.orchestrator, config=town.config, meter_provider=self._provider)
        self._leaving = list(agents)

    def received(self, *, after: int) -> dict[str, int]:
        """By agent; one agent leaves at the breath with this number, and at each one after it."""
        breaths = 0

        def breathe() -> None:
            nonlocal breaths
            breaths += 1
            if breaths > after and self._leaving:
                self._town.orchestrator.unregister_agent(self._leaving.pop().agent_id)

        found: Counter[str] = Counter()
        for reading in self._bridge.sources.stream(breathe).agents:
            found[reading.agent_id] += reading.received
        return dict(found)


@pytest.mark.parametrize("grouping", ["id", "class"])
@pytest.mark.parametrize("after", range(14))
def test_an_agent_that_leaves_while_agents_are_read_is_told_once(
    ways: Callable[..., Ways], grouping: str, after: int
) -> None:
    @in_loop
    async def run() -> None:
        town = ways(max_agents=2, agent_grouping=grouping)
        agents = [agent(number) for number in range(5)]
        for one in agents:
            town.orchestrator.register_agent(one)
        reader = Interrupted(town, agents)
        for one in agents:
            await handle(one, note())
        former = Counter(reader.received(after=after))
        assert former.total() == 5
        for _ in range(2):
            now = Counter(reader.received(after=99))
            assert now.total() == 5
            assert all(now[name] >= former[name] for name in (OTHER, RETIRED))
            former = now
        reader.told.shutdown()

    run()


def test_what_is_kept_does_not_change_while_it_is_read() -> None:
    ledger, owners = Ledger(), [AgentRecorder(OTHER, OTHER) for _ in range(3)]
    for owner in owners:
        ledger.report(owner)
        owner.arrived(note())
    ledger.retire(owners[:1])
    (kept,) = ledger.settled().kept
    ledger.retire(owners[1:])
    assert kept.read().received == 1
    assert [reader.read().received for reader in ledger.settled().kept] == [3]


def test_a_series_that_goes_on_keeps_its_beginning(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways(max_agents=1)
        begun: list[dict[str, int]] = []
        for number in range(6):
            one = agent(number)
            town.orchestrator.register_agent(one)
            await handle(one, note())
            if number >= 2:
                town.orchestrator.unregister_agent(f"id-{number - 1}")
            begun.append(town.beginnings(RECEIVED))
        assert begun[-1].keys() == {"id-0", OTHER}
        assert len({found["id-0"] for found in begun}) == 1
        assert len({found[OTHER] for found in begun[1:]}) == 1
        town.orchestrator.unregister_agent("id-0")
        town.all()
        again = agent(0)
        town.orchestrator.register_agent(again)
        await handle(again, note())
        assert town.beginnings(RECEIVED)["id-0"] > begun[-1]["id-0"]  # it counts from zero

    run()


def test_a_series_does_not_fall_when_one_of_those_who_tell_of_it_ends() -> None:
    @in_loop
    async def run() -> None:
        bridge, provider, config = ProducerBridge(), MeterProvider(shutdown_on_exit=False), AT_ONCE
        serve(provider, bridge)
        told, towns = [], [Orchestrator(name="town") for _ in range(4)]
        for number, (orchestrator, grouping) in enumerate(zip(towns, ("id", "id", "class", "class"), strict=True)):
            one = agent(number)
            settings = config.with_changes(max_agents=0 if grouping == "id" else 9, agent_grouping=grouping)
            told.append(instrument_orchestrator(orchestrator, config=settings, meter_provider=provider))
            orchestrator.register_agent(one)
            await handle(one, note())

        def received() -> dict[str, int]:
            return {reading.agent_id: reading.received for reading in bridge.sources.snapshot().agents}

        assert received() == {OTHER: 2, "Scripted": 2}
        told[0].shutdown()
        assert received() == {OTHER: 2, "Scripted": 2}
        told[2].shutdown()
        assert received() == {OTHER: 2, "Scripted": 2}
        told[3].shutdown()
        assert received() == {OTHER: 2}
        told[1].shutdown()
        assert received() == {}
        assert bridge.sources.ledger.settled() == (frozenset(), [], {})

    run()


# -- cost ----------------------------------------------------------------------------------------------


def test_nobody_lingers_in_a_series_that_others_are_in(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        for settings, most in (({"max_agents": 3}, 3), ({"agent_grouping": "class"}, 1)):
            town = ways(departed_agents_linger_s=600.0, **settings)
            agents = [agent(number) for number in range(40)]
            for one in agents:
                town.orchestrator.register_agent(one)
                await handle(one, note())
            for one in agents:
                town.orchestrator.unregister_agent(one.agent_id)
            for told in (town.by_us, town.by_sdk):
                assert len(_watch(told)._hooks()) == most
            for found in town.all():
                assert sum(by_agent(found, RECEIVED).values()) == sum(by_agent(found, WORK).values()) == 40

    run()


def test_letting_an_agent_go_does_not_look_at_the_others(
    ways: Callable[..., Ways], monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def run() -> None:
        town, agents, looks = ways(), [Scripted(hold, agent_id=f"id-{number}") for number in range(100)], 0
        for one in agents:
            town.orchestrator.register_agent(one)
            await one.start()
            await one.enqueue_message(note())
        await settle()

        def is_quiet(_hook: AgentHook) -> bool:
            nonlocal looks
            looks += 1
            return False

        monkeypatch.setattr(AgentHook, "is_quiet", property(is_quiet))
        for one in agents:
            town.orchestrator.unregister_agent(one.agent_id)
        assert 100 <= looks <= 2 * 3 * 100  # by two watches
        monkeypatch.undo()
        for one in agents:
            await one.stop()
        for found in town.all():
            assert by_agent(found, "amptalk.agent.messages.dropped") == {RETIRED: 100}

    run()


def test_agents_that_leave_do_not_use_up_the_series_of_an_sdk(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways(max_agents=300)
        for number in range(2250):  # it has 2,000 for each instrument, or no limit
            one = agent(number)
            town.orchestrator.register_agent(one)
            one.input_queue.put_nowait(note())
            one.input_queue.get_nowait()
            if number % 250 == 249:
                found = series(town.reader)
                assert by_agent(found, RECEIVED).keys() >= {f"id-{number}"}
                assert not any("otel.metric.overflow" in dict(attributes) for _name, attributes in found)
                for place in range(number - 249, number + 1):
                    town.orchestrator.unregister_agent(f"id-{place}")
        assert by_agent(series(town.reader), "amptalk.agent.message.wait.duration") == {RETIRED: 2250}

    run()


@pytest.mark.parametrize("agent_id", ["", OTHER, RETIRED])
def test_agents_that_call_themselves_as_we_do_use_up_no_series(ways: Callable[..., Ways], agent_id: str) -> None:
    @in_loop
    async def run() -> None:
        town = ways(max_agents=2)
        for number in range(5):
            one = agent(number)
            one.agent_id = agent_id
            town.orchestrator.agents[str(number)] = one
            for told in (town.by_us, town.by_sdk):
                _watch(told).agent_registered(one)
            await handle(one, note())
        for found in town.all():
            assert by_agent(found, RECEIVED) == {OTHER: 5}
            assert len([name for name, _attributes in found if name == RECEIVED]) == 1

    run()


@pytest.mark.parametrize("outcome", [None, ValueError(), ConnectionError()])
def test_an_agent_is_not_done_before_its_message_is_counted(outcome: Exception | None) -> None:
    @in_loop
    async def run() -> None:
        one = Scripted(outcome)
        uncounted: list[bool] = []
        recorders: list[AgentRecorder] = []

        def look() -> float:
            for recorder in recorders:
                if any(map(in_flight_of, recorder.records)):
                    uncounted.append(recorder.is_busy)
            return time.perf_counter()

        with hooked(one, look) as hook:
            recorders.append(hook.recorder)
            await handle(one, note())
            assert set(uncounted) == {True}
            assert not hook.recorder.is_busy

    run()
