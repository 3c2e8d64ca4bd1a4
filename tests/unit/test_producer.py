"""The catalogue as metric data: since when each series counts, and what is kept of it."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint

from amptalk_otel._catalogue import CATALOGUE, Snapshot
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._reading import AgentReading, OrchestratorReading, read_operations
from amptalk_otel._recorder import OperationRecorder
from amptalk_otel._sources import Source
from amptalk_otel._system import CpuWindow
from amptalk_otel._version import SCOPE_NAME, __version__
from amptalk_otel._watch import Watch
from amptalk_otel.demo.runtime import Orchestrator
from tests.support import CONFIG, Scripted, handle, in_loop, key, note
from tests.unit.test_sources import agent, of_type

RECEIVED = "amptalk.agent.messages.received"
WAIT = "amptalk.agent.message.wait.duration"


class Clock:
    """Nanoseconds, ten more at each look."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 10
        return self.now


class Town:
    """A producer whose agents are given by hand."""

    def __init__(self) -> None:
        self.agents: tuple[AgentReading, ...] = ()
        self.orchestrators: tuple[OrchestratorReading, ...] = ()
        self.bridge = ProducerBridge()
        self.bridge.add(lambda _breathe: Snapshot(agents=self.agents, orchestrators=self.orchestrators))
        self.producer = CatalogueProducer(self.bridge, clock=Clock())  # the clock shows 10

    def series(self) -> dict[Any, Any]:
        return {
            (metric.name, frozenset((point.attributes or {}).items())): point
            for scope in self.producer.produce()
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    def point(self, name: str = RECEIVED, **attributes: str) -> Any:
        of_agent = {"agent_id": "a", "agent_name": "A", "orchestrator_name": "town", "message_type": "command"}
        return self.series()[key(name, **(attributes or of_agent))]

    def times(self, name: str = RECEIVED, **attributes: str) -> tuple[int, int, Any]:
        point = self.point(name, **attributes)
        value = point.count if isinstance(point, HistogramDataPoint) else point.value
        return point.start_time_unix_nano, point.time_unix_nano, value


@pytest.mark.parametrize("name", [RECEIVED, WAIT])
class TestSinceWhen:
    def test_a_series_counts_since_the_pass_before_it_was_seen(self, name: str) -> None:
        town = Town()
        assert town.producer.produce() == []
        town.agents = (agent(of_type(received=3, processed=3)),)
        assert town.times(name) == (20, 30, 3)
        town.agents = (agent(of_type(received=5, processed=5)),)
        assert town.times(name) == (20, 40, 5)

    def test_what_is_there_from_the_beginning_counts_since_then(self, name: str) -> None:
        town = Town()
        town.agents = (agent(of_type(received=3, processed=3)),)
        assert town.times(name) == (10, 20, 3)

    def test_a_count_that_fell_began_anew(self, name: str) -> None:
        town = Town()
        for count, expected in ((5, (10, 20, 5)), (2, (20, 30, 2)), (2, (20, 40, 2)), (6, (20, 50, 6))):
            town.agents = (agent(of_type(received=count, processed=count)),)
            assert town.times(name) == expected

    def test_another_agent_of_the_same_name_begins_anew_though_it_counted_more(self, name: str) -> None:
        town = Town()
        for recorder_id, count, expected in ((1, 5, (10, 20, 5)), (2, 7, (20, 30, 7)), (2, 8, (20, 40, 8))):
            town.agents = (agent(of_type(received=count, processed=count), recorder_id=recorder_id),)
            assert town.times(name) == expected

    def test_an_agent_that_was_away_begins_anew(self, name: str) -> None:
        town = Town()
        here = (agent(of_type(received=3, processed=3)),)
        town.agents = here
        assert town.times(name) == (10, 20, 3)
        town.agents = ()
        assert town.series() == {}
        town.agents = here
        assert town.times(name) == (30, 40, 3)


def test_a_clock_that_is_set_back_ends_no_series_before_it_starts() -> None:
    town = Town()
    moments = iter((100, 40, 50, 120))
    town.producer = CatalogueProducer(town.bridge, clock=lambda: next(moments))
    town.agents = (agent(of_type(received=1)),)
    assert [town.times() for _ in range(3)] == [(100, 100, 1), (100, 100, 1), (100, 120, 1)]


@pytest.mark.parametrize("collected_in_between", [False, True])
def test_an_operation_that_two_measure_goes_on_until_both_have_left_and_then_begins_from_zero(
    collected_in_between: bool,
) -> None:
    bridge, key_ = ProducerBridge(), ("a", "A", "transcribe")
    sources: dict[OperationRecorder, Source] = {}

    def counted() -> list[int]:
        return [reading.duration.count for reading in bridge.sources.snapshot().operations if reading.key == key_]

    def join() -> OperationRecorder:
        recorder = OperationRecorder()
        recorder.measured(*key_, 0.5)
        sources[recorder] = lambda _breathe: Snapshot(operations=read_operations(recorder))
        bridge.report(recorder)
        bridge.add(sources[recorder])
        return recorder

    def leave(recorder: OperationRecorder) -> None:
        bridge.remove(sources[recorder], [recorder])

    first, second = join(), join()
    assert counted() == [2]
    leave(first)
    assert counted() == [2]
    third = join()
    assert counted() == [3]
    leave(second)
    leave(third)
    if collected_in_between:
        assert counted() == []
    join()
    assert counted() == [1]


def test_an_orchestrator_that_counts_less_began_anew() -> None:
    town = Town()
    for routed, expected in ((5, (10, 20, 5)), (2, (20, 30, 2))):
        town.orchestrators = (OrchestratorReading("town", 1, 0, {"command": routed}, {}),)
        found = town.times("amptalk.orchestrator.messages.routed", orchestrator_name="town", message_type="command")
        assert found == expected


def test_a_gauge_has_no_start_and_a_histogram_no_minimum_or_maximum() -> None:
    town = Town()
    town.agents = (agent(of_type(received=1, processed=1)),)
    found = town.series()
    of_agent = {"agent_id": "a", "agent_name": "A", "orchestrator_name": "town"}
    assert found[key("amptalk.agent.uptime", **of_agent)].start_time_unix_nano is None
    wait = found[key(WAIT, **of_agent, message_type="command")]
    assert (wait.count, wait.sum, wait.min, wait.max) == (1, 0.25, None, None)


def test_attributes_are_made_once_and_forgotten_with_their_series() -> None:
    town = Town()
    town.agents = (agent(of_type(received=1)), agent(of_type(received=1), agent_id="b", recorder_id=2))
    first, second = ({name: point.attributes for name, point in town.series().items()} for _ in range(2))
    assert first.keys() == second.keys()
    assert all(second[name] is attributes for name, attributes in first.items())
    town.agents = town.agents[1:]
    town.series()
    assert [owner.attributes["agent.id"] for owner in town.producer._known.values()] == ["b"]


def test_the_scope_is_ours_and_everything_is_cumulative() -> None:
    town = Town()
    town.agents = (agent(of_type(received=1, processed=1)),)
    (scope,) = town.producer.produce()
    assert (scope.scope.name, scope.scope.version) == (SCOPE_NAME, __version__)
    temporalities = {getattr(metric.data, "aggregation_temporality", None) for metric in scope.metrics}
    assert temporalities == {None, AggregationTemporality.CUMULATIVE}
    bounds = {metric.name: metric.data.data_points[0].explicit_bounds for metric in scope.metrics
              if isinstance(metric.data, Histogram)}  # fmt: skip
    assert bounds == {row.name: row.bounds for row in CATALOGUE if row.name in bounds}


@pytest.mark.usefixtures("lenient_guard")
def test_a_row_that_can_not_be_read_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise OSError("no /proc")

    bridge = ProducerBridge()
    bridge.add(lambda _breathe: Snapshot(machine=True))
    monkeypatch.setattr(CpuWindow, "read", lambda _window: 0.5)
    producer = CatalogueProducer(bridge)
    before = {metric.name for metric in producer.produce()[0].metrics}
    monkeypatch.setattr("psutil.virtual_memory", broken)
    after = {metric.name for metric in producer.produce()[0].metrics}
    assert before - after == {"system.memory.utilization", "system.memory.linux.available"}
    assert [message.split(" (")[0] for message in caplog.messages] == [
        "reading system.memory.utilization was skipped", "reading system.memory.linux.available was skipped",
    ]  # fmt: skip


@in_loop
async def test_recorders_are_told_of_nobody_and_every_producer_counts_for_itself() -> None:
    bridge = ProducerBridge()
    orchestrator, one = Orchestrator(name="town"), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(one)
    watch = Watch(bridge, CONFIG)
    watch.watch_orchestrator(orchestrator)
    assert [shared.hook.recorder.observers for shared in watch._agents.values()] == [()]
    await handle(one, note(), note())
    producers = [CatalogueProducer(bridge) for _ in range(2)]
    for _ in range(2):
        for producer in producers:
            (scope,) = producer.produce()
            (received,) = [metric for metric in scope.metrics if metric.name == RECEIVED]
            assert [point.value for point in received.data.data_points] == [2]  # type: ignore[union-attr]
    watch.release()
    assert [producer.produce() for producer in producers] == [[], []]
