"""One running program, both bridges: every series of the one is a series of the other, with the same value.

Collected on the loop's own thread, between two steps of the program, so nothing moves in between. What depends on
the time of the look has a fixed time: clocks of agents stand still meanwhile, and psutil is told what to say. Only
`process.uptime` is compared with a tolerance.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric

from amptalk_otel._bridge import bridge_for
from amptalk_otel._catalogue import CATALOGUE
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._system import CpuWindow
from amptalk_otel._watch import Watch
from amptalk_otel.config import Config
from amptalk_otel.demo.runtime import MessageType, Orchestrator, StateManager
from tests.support import Scripted, handle, hold, in_loop, note, provider_and_reader
from tests.workload import WORKERS, Program

CONFIG = Config(metrics_exporters=("none",), message_size_sample_every=3)


class Both:
    """A program that both bridges watch."""

    def __init__(self, *orchestrators: Orchestrator) -> None:
        self.provider, self.reader = provider_and_reader()
        bridge = ProducerBridge()
        self.producer = CatalogueProducer(bridge)
        self.watches: list[Watch] = []
        for orchestrator in orchestrators:
            for each in (bridge_for(self.provider), bridge):
                watch = Watch(each, CONFIG)
                watch.watch_orchestrator(orchestrator)
                self.watches.append(watch)

    def measure(self, agent_id: str, operation: str, seconds: float) -> None:
        for watch in self.watches:
            watch.operations.measured(agent_id, "A", operation, seconds)

    def watch_state_manager(self, manager: StateManager) -> None:
        for watch in self.watches[:2]:
            watch.watch_state_manager(manager)

    def collect(self) -> tuple[dict[str, Metric], dict[str, Metric]]:
        with standing_still(self.watches):
            return collected(self.reader), produced(self.producer)

    def check(self) -> dict[str, Metric]:
        stock, ours = self.collect()
        assert_same(stock, ours)
        return ours

    def release(self) -> None:
        for watch in self.watches:
            watch.release()
        assert self.collect() == ({}, {})
        self.provider.shutdown()


@contextmanager
def standing_still(watches: list[Watch]) -> Iterator[None]:
    """The clocks of all agents stop."""
    hooks = [shared.hook for watch in watches for shared in watch._agents.values()]
    hooks += [hook for watch in watches for hook, _left_at in watch._departed.values()]
    recorders = {id(hook.recorder): hook.recorder for hook in hooks}.values()
    clocks = [(recorder, recorder.clock) for recorder in recorders]
    for recorder, clock in clocks:
        recorder.clock = itertools.repeat(clock()).__next__
    try:
        yield
    finally:
        for recorder, clock in clocks:
            recorder.clock = clock


def collected(reader: InMemoryMetricReader) -> dict[str, Metric]:
    data = reader.get_metrics_data()
    found = {
        metric.name: metric
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    return {name: metric for name, metric in found.items() if metric.data.data_points}


def produced(producer: CatalogueProducer) -> dict[str, Metric]:
    return {metric.name: metric for scope in producer.produce() for metric in scope.metrics}


def points(metric: Metric) -> dict[frozenset[tuple[str, Any]], Any]:
    found = {frozenset((point.attributes or {}).items()): point for point in metric.data.data_points}
    assert len(found) == len(metric.data.data_points), f"{metric.name} has a series twice"
    return found


def assert_same(stock: dict[str, Metric], ours: dict[str, Metric]) -> None:
    assert set(ours) == set(stock)
    for name, metric in stock.items():
        assert_same_metric(metric, ours[name])


def assert_same_metric(stock: Metric, ours: Metric) -> None:
    name = stock.name
    assert (ours.unit, ours.description, type(ours.data)) == (stock.unit, stock.description, type(stock.data))
    for trait in ("is_monotonic", "aggregation_temporality"):
        assert getattr(ours.data, trait, None) == getattr(stock.data, trait, None), (name, trait)
    expected, found = points(stock), points(ours)
    assert set(found) == set(expected), name
    for attributes, point in expected.items():
        other = found[attributes]
        if hasattr(point, "bucket_counts"):
            assert (other.count, other.bucket_counts, other.explicit_bounds) == (
                point.count, tuple(point.bucket_counts), tuple(point.explicit_bounds),
            ), (name, attributes)  # fmt: skip
            assert other.sum == pytest.approx(point.sum, rel=1e-9), (name, attributes)
        elif name == "process.uptime":
            assert other.value == pytest.approx(point.value, abs=60.0)
        else:
            assert other.value == point.value, (name, attributes)


@pytest.fixture(autouse=True)
def a_machine_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=1000, available=400)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _process: SimpleNamespace(rss=11, vms=22))
    monkeypatch.setattr(CpuWindow, "read", lambda _window: 0.5)


def values(ours: dict[str, Metric], name: str) -> list[Any]:
    found: Any = ours[name].data.data_points
    return [point.value for point in found]


def total(ours: dict[str, Metric], name: str) -> Any:
    return sum(values(ours, name))


async def use(manager: StateManager, both: Both, step: int) -> None:
    await manager.save_state("a", {"step": step})
    await manager.load_state("a")
    both.measure("a", f"step {step % 3}", 0.001 * step)


@in_loop
async def test_both_tell_the_same_under_load_and_after_it() -> None:
    program = Program()
    alone = StateManager()
    for worker in WORKERS[:2]:
        program.agents[worker].state_manager = StateManager()
    both = Both(program.orchestrator)
    both.watch_state_manager(alone)
    await program.orchestrator.start()
    running = asyncio.ensure_future(program.run(600, pause_every=10))
    looks = 0
    while not running.done():
        manager = program.agents[WORKERS[looks % 2]].state_manager
        assert manager is not None
        await use(manager, both, looks)
        await use(alone, both, looks)
        ours = both.check()
        looks += 1
        await asyncio.sleep(0.002)
    await running
    ours = both.check()
    await program.orchestrator.stop()
    both.check()
    assert looks > 5
    assert total(ours, "amptalk.agent.messages.received") == sum(program.log.received.values())
    assert total(ours, "amptalk.agent.retries") == sum(program.log.retries.values()) > 0
    assert set(ours) == {row.name for row in CATALOGUE} - {"amptalk.agent.messages.dropped"}
    both.release()


@in_loop
async def test_both_tell_the_same_of_agents_that_come_and_go() -> None:
    orchestrator = Orchestrator(name="town")
    both = Both(orchestrator)
    for turn in range(6):
        agent = Scripted(agent_id=f"agent {turn % 4}", name="A")
        agent.script = [None, ValueError(), hold]
        orchestrator.register_agent(agent)
        await agent.start()
        for kind in (MessageType.COMMAND, MessageType.HEARTBEAT, MessageType.COMMAND, MessageType.COMMAND):
            await agent.enqueue_message(note(kind))
        await asyncio.sleep(0.01)
        ours = both.check()
        assert total(ours, "amptalk.agent.messages.in_flight") >= 1
        assert max(values(ours, "amptalk.agent.queue.oldest_age")) > 0.0
        await agent.stop()
        both.check()
        if turn % 2:
            orchestrator.unregister_agent(agent.agent_id)
        both.check()
    assert total(both.check(), "amptalk.agent.messages.dropped") > 0
    both.release()


@in_loop
async def test_both_add_up_what_would_be_the_same_series() -> None:
    towns = [Orchestrator(name="town") for _ in range(2)]
    agents = [Scripted(agent_id="a", name="A") for _ in towns]
    managers = [StateManager() for _ in towns]
    for town, agent, manager in zip(towns, agents, managers, strict=True):
        agent.state_manager = manager
        town.register_agent(agent)
    both = Both(*towns)
    for number, (town, agent, manager) in enumerate(zip(towns, agents, managers, strict=True)):
        agent.script = [ValueError()]
        await town.send_message_to_agent(note(target_agent_id="a"))
        await handle(agent, *(note() for _ in range(number + 2)))
        await manager.save_state("a", {"x": number})
        agent.input_queue.put_nowait(note())
        both.measure("a", "transcribe", 0.5)
    ours = both.check()
    assert total(ours, "amptalk.agent.messages.received") == 9
    assert total(ours, "amptalk.agent.queue.size") == 2
    assert total(ours, "amptalk.orchestrator.messages.routed") == 2
    assert total(ours, "amptalk.state.items") == 2
    assert [point.count for point in ours["amptalk.operation.duration"].data.data_points] == [4]  # type: ignore[union-attr]
    assert len(ours["amptalk.agent.running"].data.data_points) == 1
    both.release()


def without_first(metric: Metric) -> Metric:
    data: Any = metric.data
    return replace(metric, data=replace(data, data_points=data.data_points[1:]))


class TestTheComparison:
    """It fails where the two differ."""

    def test_a_point_that_is_missing_on_either_side_is_noticed(self) -> None:
        orchestrator = Orchestrator(name="town")
        both = Both(orchestrator)
        stock, ours = both.collect()
        assert_same(stock, ours)
        less = {name: metric for name, metric in stock.items() if name != "amptalk.orchestrator.agents"}
        for one, other in ((stock, less), (less, stock)):
            with pytest.raises(AssertionError):
                assert_same(one, other)
        name = "amptalk.orchestrator.agents"
        fewer = {**stock, name: without_first(stock[name])}, {**ours, name: without_first(ours[name])}
        for one, other in ((stock, fewer[1]), (fewer[0], ours)):
            with pytest.raises(AssertionError):
                assert_same(one, other)
        both.release()
