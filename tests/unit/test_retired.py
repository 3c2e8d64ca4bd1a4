"""What agents counted that left: in sums it is told once, in rates it has been told before, and agents it is none."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.resources import Resource

from amptalk_otel import instrument_orchestrator
from amptalk_otel._bridge import serve
from amptalk_otel._catalogue import BY_NAME, Kind
from amptalk_otel._deltas import Deltas
from amptalk_otel._labels import MAX_DISTINCT, OTHER, RETIRED
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._readers import ProducingReader, mark_collections
from amptalk_otel.demo.runtime import MessageType, Orchestrator, StateManager
from tests.support import Scripted, handle, in_loop, note
from tests.unit.test_budget import AT_ONCE, PROCESSED, RECEIVED, STATE, WORK, Numbers, Ways, agent, by_agent, ways
from tests.unit.test_budget_time import clock_of_recorders
from tests.unit.test_deltas import PREFERENCES
from tests.unit.test_readers import Exporter
from tests.unit.test_shared_series import kinds
from tests.virtual_time import run_in_virtual_time

__all__ = ["ways"]  # a fixture

WAIT, OPERATION = "amptalk.agent.message.wait.duration", "amptalk.operation.duration"
DELTA = AggregationTemporality.DELTA


class Differences:
    """What one adds up who gets differences from our producer."""

    def __init__(self, town: Ways) -> None:
        watch = town.by_us._watch
        assert watch is not None
        self._producer = CatalogueProducer(watch._bridge)  # type: ignore[arg-type]
        self._deltas = Deltas({ObservableCounter: DELTA, Histogram: DELTA})
        self.sums: Counter[str] = Counter()
        self.seconds = 0.0

    def collect(self) -> None:
        for scope in self._producer.produce():
            for metric in self._deltas.convert(scope.metrics, self._producer.retired):
                if BY_NAME[metric.name].kind in (Kind.COUNTER, Kind.HISTOGRAM):
                    self._add(metric.name, metric.data.data_points)

    def _add(self, name: str, points: Any) -> None:
        for point in points:
            value = getattr(point, "count", None)
            value = point.value if value is None else value
            assert value >= 0, (name, point.attributes)
            self.sums[name] += value
            if name == WORK:
                assert sum(point.bucket_counts) == point.count
                self.seconds += point.sum


class Increases:
    """What `increase` makes of the counters of one way, which knows that a new series begins at 0."""

    def __init__(self) -> None:
        self._former: dict[Any, float] = {}
        self.sums: Counter[str] = Counter()
        self.with_retired: Counter[str] = Counter()

    def add(self, found: Numbers) -> None:
        numbers = {key: value[0] if isinstance(value, tuple) else value for key, value in found.items()}
        for key, value in numbers.items():
            before = self._former.get(key, 0)
            rise = value - before if value >= before else value
            self.with_retired[key[0]] += rise
            if dict(key[1]).get("agent.id") != RETIRED:
                self.sums[key[0]] += rise
        self._former = numbers


class Crowd:
    """Agents that come, work and go at random. Looks are closer to each other than departed agents stay."""

    def __init__(self, town: Ways) -> None:
        self.town = town
        self.random = random.Random(1)
        self.truth: Counter[str] = Counter()
        self.differences = Differences(town)
        self.increases = [Increases(), Increases()]

    async def look(self) -> None:
        await asyncio.sleep(20.0)
        self.differences.collect()
        for one, found in zip(self.increases, self.town.all(), strict=True):
            one.add(found)

    async def one_comes(self, one: Scripted) -> None:
        self.town.orchestrator.register_agent(one)
        for _ in range(self.random.randrange(4)):
            outcomes = [self.random.choice((None, ValueError())) for _ in range(self.random.randrange(5))]
            one.script.extend(outcomes)
            await handle(one, *[note(self.random.choice(list(MessageType)[:3])) for _ in outcomes])
            self.truth += Counter({RECEIVED: len(outcomes), WORK: len(outcomes), PROCESSED: outcomes.count(None)})
            if self.random.random() < 0.5:
                await self.look()

    def one_goes(self) -> None:
        agents = list(self.town.orchestrator.agents)
        if agents:
            self.town.orchestrator.unregister_agent(self.random.choice(agents))

    def check(self, name: str) -> None:
        assert self.differences.sums[name] == self.truth[name]
        for one in self.increases:
            assert one.sums[name] == self.truth[name]
            assert one.with_retired[name] > self.truth[name]


@pytest.mark.parametrize("grouping", ["id", "name", "class"])
def test_increases_but_for_those_of_retired_and_all_differences_add_up_to_the_truth(
    ways: Callable[..., Ways], monkeypatch: pytest.MonkeyPatch, grouping: str
) -> None:
    clock = clock_of_recorders(monkeypatch)

    async def run(now: Callable[[], float]) -> None:
        clock.time = now
        town = ways(max_agents=3, departed_agents_linger_s=60.0, agent_grouping=grouping)
        crowd = Crowd(town)
        for number in range(30):
            await crowd.one_comes(agent(number, crowd.random.choice(("worker", "boss", None))))
            if crowd.random.random() < 0.8:
                crowd.one_goes()
        while town.orchestrator.agents:
            crowd.one_goes()
        for _ in range(5):
            await crowd.look()
        for name in (RECEIVED, PROCESSED, WORK):
            crowd.check(name)
        assert all(by_agent(found, RECEIVED).keys() <= {OTHER, RETIRED} for found in town.all())

    run_in_virtual_time(run)


def test_differences_of_time_states_and_operations_add_up_as_well(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways()
        differences, watch = Differences(town), town.by_us._watch
        assert watch is not None
        for number in range(3):
            one = agent(number)
            one.state_manager = StateManager()
            town.orchestrator.register_agent(one)
            await one.state_manager.save_state("x", {"n": number})
            await handle(one, note(), note())
            watch.operations.measured(one.agent_id, one.name, "transcribe", 1.0)
            differences.collect()
            await handle(one, note())
            watch.operations.measured(one.agent_id, one.name, "transcribe", 1.0)
            town.orchestrator.unregister_agent(one.agent_id)
            differences.collect()
        assert (differences.sums[OPERATION], differences.sums[WORK], differences.sums[WAIT]) == (6, 9, 9)
        (found,) = town.all()[1:]
        for name in (STATE, "amptalk.agent.time"):
            assert differences.sums[name] == pytest.approx(sum(by_agent(found, name).values()))
        assert differences.seconds == pytest.approx(sum(value[1] for key, value in found.items() if key[0] == WORK))

    run()


def test_what_is_told_apart_no_more_has_been_told_as_well(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways()
        differences = Differences(town)
        for number in range(3):
            one = agent(number)
            town.orchestrator.register_agent(one)
            one.script = [ValueError()] * 40
            await handle(one, *kinds(*(f"kind {number}.{index}" for index in range(40))))
            differences.collect()
            town.orchestrator.unregister_agent(one.agent_id)
            differences.collect()
            assert differences.sums[RECEIVED] == differences.sums["amptalk.agent.messages.failed"] == 40 * (number + 1)
        for found in town.all():
            assert len([key for key in found if key[0] == RECEIVED]) == MAX_DISTINCT + 1

    run()


def test_a_reader_of_ours_tells_it_so() -> None:
    @in_loop
    async def run() -> None:
        exporter, bridge = Exporter(preferred_temporality=PREFERENCES["delta"]), ProducerBridge()
        reader = ProducingReader(exporter, CatalogueProducer(bridge), export_interval_millis=math.inf)
        provider = MeterProvider([reader], Resource({"service.name": "bot"}), shutdown_on_exit=False)
        mark_collections(provider)
        serve(provider, bridge)
        orchestrator, told = Orchestrator(name="town"), []
        with instrument_orchestrator(orchestrator, config=AT_ONCE, meter_provider=provider):
            for number in range(3):
                orchestrator.register_agent(agent(number))
                await handle(orchestrator.agents[f"id-{number}"], note(), note())
                reader.collect()
                told.append(sum(exporter.values(RECEIVED)))
                orchestrator.unregister_agent(f"id-{number}")
                reader.collect()
                told.append(sum(exporter.values(RECEIVED)))
        provider.shutdown()
        assert told == [2, 0] * 3

    run()


def test_an_agent_that_is_taken_off_takes_nothing_from_those_that_retire(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town, other = ways(), Scripted(agent_id="other", name="A")
        differences, watch = Differences(town), town.by_us._watch
        assert watch is not None
        for one, number in ((agent(0), 3), (other, 5)):
            town.orchestrator.register_agent(one)
            await handle(one, *(note() for _ in range(number)))
        differences.collect()
        await handle(town.orchestrator.agents["id-0"], note())
        with_other = watch._agents[id(other)].hook.recorder
        watch._bridge.remove(watch.snapshot, [with_other])  # as the end of an instrumentation does
        watch._bridge.add(watch.snapshot)
        town.orchestrator.unregister_agent("id-0")
        differences.collect()
        assert differences.sums[RECEIVED] == 9

    run()


def test_retired_is_no_agent_that_could_run(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways()
        for number in range(2):
            town.orchestrator.register_agent(agent(number))
            await handle(town.orchestrator.agents[f"id-{number}"], note())
        town.orchestrator.unregister_agent("id-0")
        for found in town.all():
            told = {name for name, attributes in found if ("agent.id", RETIRED) in attributes}
            assert told == {
                name for name, row in BY_NAME.items()
                if ("agent.id", "id-1") in {pair for key, pairs in found if key == name for pair in pairs}
                and (row.kind in (Kind.COUNTER, Kind.HISTOGRAM) or name.startswith("amptalk.agent.messages."))
            }  # fmt: skip
            assert by_agent(found, "amptalk.agent.running") == {"id-1": 0}
            assert by_agent(found, "amptalk.agent.messages.in_flight") == {"id-1": 0, RETIRED: 0}

    run()
