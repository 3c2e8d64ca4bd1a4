"""Series that several count in: none falls when one of them leaves, and they end with the last."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View

from amptalk_otel import instrument_agent, instrument_orchestrator, instrument_state_manager
from amptalk_otel._bridge import bridge_for, serve
from amptalk_otel._catalogue import Owner, Snapshot
from amptalk_otel._families import Families
from amptalk_otel._labels import MAX_DISTINCT, OTHER, RETIRED
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._rendering import Renderer
from amptalk_otel._watch import Watch
from amptalk_otel.demo.runtime import Message, Orchestrator, StateManager, StorageType
from tests.support import CONFIG, Scripted, handle, in_loop, note, provider_and_reader, series, settle
from tests.unit.test_budget import AT_ONCE, RECEIVED, STATE, WORK, Numbers, Ways, agent, by_agent, ways

__all__ = ["ways"]  # a fixture

ROUTED, OPERATION = "amptalk.orchestrator.messages.routed", "amptalk.operation.duration"


def kinds(*names: str) -> list[Message]:
    """A message of each type."""
    make_enum: Any = Enum
    return [note(kind) for kind in make_enum("Kind", {name: name for name in names})]


def count_of(value: Any) -> float:
    """A number, or how many a histogram has."""
    return float(value[0] if isinstance(value, tuple) else value)


def by_type(found: Numbers, metric: str) -> dict[str, float]:
    return {
        dict(attributes)["message.type"]: count_of(value)
        for (name, attributes), value in found.items()
        if name == metric
    }


def total(found: Numbers, metric: str) -> float:
    return sum(count_of(value) for (name, _attributes), value in found.items() if name == metric)


class Producing:
    """A provider that our producer reads."""

    def __init__(self) -> None:
        self.provider, self.bridge = MeterProvider(shutdown_on_exit=False), ProducerBridge()
        serve(self.provider, self.bridge)
        self._producer = CatalogueProducer(self.bridge)

    def read(self) -> Numbers:
        return {
            (metric.name, frozenset((point.attributes or {}).items())): (
                (point.count, point.sum) if hasattr(point, "bucket_counts") else point.value  # type: ignore[union-attr]
            )
            for scope in self._producer.produce()
            for metric in scope.metrics
            for point in metric.data.data_points
        }


class Instruments:
    """A provider with instruments of the SDK."""

    def __init__(self) -> None:
        self.provider, self._reader = provider_and_reader()

    def read(self) -> Numbers:
        return series(self._reader)


@pytest.mark.parametrize("settings", [{"agent_grouping": "class"}, {"max_agents": 0}])
def test_agents_of_one_series_tell_the_same_types_apart_and_none_falls(
    ways: Callable[..., Ways], settings: dict[str, Any]
) -> None:
    @in_loop
    async def run() -> None:
        town = ways(**settings)
        former: list[dict[str, float]] = [{}, {}, {}, {}]

        def look() -> None:
            now = [by_type(found, name) for found in town.all() for name in (RECEIVED, WORK)]
            for found, before in zip(now, former, strict=True):
                assert {kind for kind, value in before.items() if found.get(kind, 0) < value} == set()
                assert len(found) == MAX_DISTINCT + 1
                assert sum(found.values()) == 40 + 2 * 130
            former[:] = now

        for number in range(3):
            town.orchestrator.register_agent(agent(number))
            own = kinds("common", *(f"kind {number}.{index}" for index in range(39)))
            await handle(town.orchestrator.agents[f"id-{number}"], *own, *([own[0]] * 90 if number else []))
        look()
        for number in range(2):
            town.orchestrator.unregister_agent(f"id-{number}")
            look()

    run()


def test_what_is_kept_of_a_series_does_not_grow_with_ever_new_types() -> None:
    @in_loop
    async def run() -> None:
        page = Producing()
        renderer = Renderer(Families({}).by_metric, page.bridge.system, {})
        orchestrator = Orchestrator(name="town")
        told = instrument_orchestrator(
            orchestrator, config=AT_ONCE.with_changes(max_agents=0), meter_provider=page.provider
        )
        sizes = set()
        for number in range(6):
            orchestrator.register_agent(agent(number))
            await handle(
                orchestrator.agents[f"id-{number}"], *kinds(*(f"kind {number}.{index}" for index in range(60)))
            )
            page.read()
            renderer.render(page.bridge.sources.stream(), lambda: None)
            orchestrator.unregister_agent(f"id-{number}")
            page.read()
            renderer.render(page.bridge.sources.stream(), lambda: None)
            series_ = sum(len(one.series) for key, one in page._producer._known.items() if key[0] is Owner.AGENT)
            labels = sum(len(known) for one in renderer._agents.values() for known in one.labels.values())
            sizes.add((series_, labels))
        told.shutdown()
        page.provider.shutdown()
        assert len(sizes) == 1

    run()


@pytest.mark.parametrize("page", [Producing, Instruments])
@pytest.mark.parametrize("way", ["taken off", "dropped"])
def test_orchestrators_of_one_name_do_not_fall_when_one_goes(page: type[Producing | Instruments], way: str) -> None:
    @in_loop
    async def run() -> None:
        told, towns, handles = page(), [], []
        for number in range(3):
            town, one = Orchestrator(name="town"), Scripted(agent_id=f"id-{number}", name="A")
            handles.append(instrument_orchestrator(town, config=AT_ONCE, meter_provider=told.provider))
            town.register_agent(one)
            for message in kinds(*(f"kind {number}.{index}" for index in range(30))):
                message.target_agent_id = one.agent_id
                await town.send_message_to_agent(message)
                message.target_agent_id = "nobody"
                await town.send_message_to_agent(message)
            towns.append(town)
        former = by_type(told.read(), ROUTED)
        assert (len(former), sum(former.values())) == (MAX_DISTINCT + 1, 90)
        await settle()
        del town, one
        while len(towns) > 1:
            towns.pop(0)
            handle_ = handles.pop(0)
            if way == "taken off":
                handle_.uninstrument()
            del handle_
            gc.collect()
            found = told.read()
            assert by_type(found, ROUTED) == former
            assert total(found, "amptalk.orchestrator.messages.undeliverable") == 90
            assert total(found, "amptalk.orchestrator.agents") == len(towns)
        handles[0].uninstrument()
        assert by_type(told.read(), ROUTED) == {}
        again = instrument_orchestrator(towns[0], config=CONFIG, meter_provider=told.provider)
        assert by_type(told.read(), ROUTED) == {}
        again.uninstrument()
        told.provider.shutdown()

    run()


@pytest.mark.parametrize("page", [Producing, Instruments])
def test_state_managers_of_one_storage_do_not_fall_when_one_goes(page: type[Producing | Instruments]) -> None:
    @in_loop
    async def run() -> None:
        told, managers = page(), [StateManager() for _ in range(3)]
        handles = [instrument_state_manager(one, config=CONFIG, meter_provider=told.provider) for one in managers]
        for number, manager in enumerate(managers):
            for _ in range(number + 1):
                await manager.save_state("key", {})
        for handle_ in handles[:2]:
            assert total(told.read(), STATE) == 6
            handle_.uninstrument()
        assert total(told.read(), STATE) == 6
        handles[2].uninstrument()
        assert told.read() == {}
        with instrument_state_manager(managers[0], config=CONFIG, meter_provider=told.provider):
            await managers[0].save_state("key", {})
            assert total(told.read(), STATE) == 1
        told.provider.shutdown()

    run()


def test_an_operation_does_not_fall_when_one_of_two_stops_while_it_is_read() -> None:
    bridge = ProducerBridge()
    watches = [Watch(bridge, CONFIG) for _ in range(2)]
    for watch in watches:
        watch.operations.measured("a", None, "transcribe", 1.0)

    def counts() -> list[int]:
        return [reading.duration.count for reading in bridge.sources.snapshot().operations]

    def source(_breathe: Any) -> Snapshot:
        """Read last, as the one that came last."""
        stopping = threading.Thread(target=watches[0].release)
        stopping.start()
        stopping.join()
        return Snapshot()

    bridge.add(source)
    assert counts() == [2]
    assert counts() == [2]
    watches[1].release()
    assert counts() == []


@pytest.mark.parametrize("page", [Producing, Instruments])
def test_what_is_kept_of_an_operation_retires_with_its_agent(page: type[Producing | Instruments]) -> None:
    @in_loop
    async def run() -> None:
        told, one = page(), agent(0)
        watches = [Watch(bridge_for(told.provider), AT_ONCE) for _ in range(2)]
        for watch in watches:
            watch.agent_registered(one)
            watch.operations.measured(one.agent_id, one.name, "transcribe", 1.0)
        watches[0].release()
        assert by_agent(told.read(), OPERATION) == {one.agent_id: 2}
        watches[1].agent_unregistered(one)
        assert by_agent(told.read(), OPERATION) == {RETIRED: 2}
        watches[1].release()
        assert told.read() == {}
        told.provider.shutdown()

    run()


@pytest.mark.parametrize("page", [Producing, Instruments])
def test_what_is_kept_of_an_orchestrator_goes_with_the_last_of_its_name(page: type[Producing | Instruments]) -> None:
    @in_loop
    async def run() -> None:
        told = page()
        stays, goes = Orchestrator(name="stays"), [Orchestrator(name="session") for _ in range(2)]
        handles = []
        for town in (stays, *goes):
            handles.append(
                instrument_orchestrator(town, config=AT_ONCE.with_changes(max_agents=2), meter_provider=told.provider)
            )
            for name in ("first", "second", "third"):
                one = Scripted(agent_id=f"{name} {id(town)}", name=name)
                town.register_agent(one)
                await handle(one, note())
            town.unregister_agent(one.agent_id)
            town.unregister_agent(f"first {id(town)}")

        def of(town: str) -> float:
            mine = {key: value for key, value in told.read().items() if ("orchestrator.name", town) in key[1]}
            return total(mine, RECEIVED) + total(mine, WORK)

        assert (of("stays"), of("session")) == (6, 12)
        handles[1].uninstrument()
        assert of("stays") == 6
        assert by_agent(told.read(), RECEIVED)[RETIRED] >= 1
        handles[2].uninstrument()
        assert (of("stays"), of("session")) == (6, 0)
        assert not [key for key in told.read() if ("orchestrator.name", "session") in key[1]]
        handles[0].uninstrument()
        assert told.read() == {}
        told.provider.shutdown()

    run()


@in_loop
async def test_orchestrators_that_come_and_go_leave_nothing() -> None:
    page, stays = Producing(), Orchestrator(name="stays")
    instrumentation = instrument_orchestrator(stays, config=CONFIG, meter_provider=page.provider)
    sizes = set()
    for number in range(5):
        town = Orchestrator(name=f"session {number}")
        told = instrument_orchestrator(town, config=AT_ONCE, meter_provider=page.provider)
        for agent_number in range(2):
            town.register_agent(agent(agent_number))
            await handle(town.agents[f"id-{agent_number}"], note())
        town.unregister_agent("id-0")
        assert by_agent(page.read(), RECEIVED) == {"id-1": 1, RETIRED: 1}
        told.uninstrument()
        ledger = page.bridge.sources.ledger
        sizes.add(
            (len(ledger._kept), len(ledger._lives), sum(name.startswith("amptalk.") for name, _of in page.read()))
        )
    assert len(sizes) == 1
    instrumentation.uninstrument()
    page.provider.shutdown()


@pytest.mark.parametrize("attributes", [{"message.type"}, {"message.type", "orchestrator.name"}])
@in_loop
async def test_a_view_that_leaves_out_ids_keeps_its_series_when_somebody_else_is_taken_off(
    attributes: set[str],
) -> None:
    reader = InMemoryMetricReader()
    view = View(instrument_name="amptalk.agent.*", attribute_keys=attributes)
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    town, one = Orchestrator(name="town"), agent(0)
    told = instrument_orchestrator(town, config=CONFIG, meter_provider=provider)
    town.register_agent(one)
    other = instrument_agent(one, config=CONFIG, meter_provider=provider)
    await handle(one, note(), note())
    with instrument_state_manager(StateManager(), config=CONFIG, meter_provider=provider):
        assert total(series(reader), WORK) == 2
    assert total(series(reader), WORK) == 2
    told.uninstrument()
    await handle(one, note())
    assert total(series(reader), WORK) == 3
    other.uninstrument()
    provider.shutdown()


@pytest.mark.parametrize("page", [Producing, Instruments])
def test_state_managers_of_other_storages_go_by_themselves(page: type[Producing | Instruments], tmp_path: Path) -> None:
    @in_loop
    async def run() -> None:
        told = page()
        in_memory, on_disk = StateManager(), StateManager(StorageType.FILE, tmp_path)
        with instrument_state_manager(on_disk, config=CONFIG, meter_provider=told.provider):
            with instrument_state_manager(in_memory, config=CONFIG, meter_provider=told.provider):
                for manager in (in_memory, on_disk):
                    await manager.save_state("key", {})
                assert total(told.read(), STATE) == 2
            found = told.read()
            assert {dict(attributes)["state.storage"] for name, attributes in found if name == STATE} == {"file"}
        told.provider.shutdown()

    run()


class Broken(StateManager):
    """Fails with an error of the name that the key has."""

    async def save_state(self, agent_id: str, state: dict[str, Any]) -> bool:
        raise type(agent_id, (Exception,), {})


def test_a_histogram_of_retired_tells_as_many_errors_apart_as_our_producer(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways()
        for number in range(3):
            one = agent(number)
            one.state_manager = Broken()
            town.orchestrator.register_agent(one)
            for index in range(30):
                with pytest.raises(Exception, match=r"^$"):
                    await one.state_manager.save_state(f"Error{number}x{index}", {})
            town.orchestrator.unregister_agent(one.agent_id)
        by_sdk, by_us = (
            {attributes: value[0] for (name, attributes), value in found.items() if name == STATE}
            for found in town.all()
        )
        assert by_sdk == by_us
        assert (len(by_us), sum(by_us.values())) == (MAX_DISTINCT + 1, 90)

    run()


def test_a_histogram_of_retired_tells_as_many_types_apart_as_its_counters(ways: Callable[..., Ways]) -> None:
    @in_loop
    async def run() -> None:
        town = ways()
        for number in range(3):
            one = agent(number)
            one.state_manager = StateManager()
            town.orchestrator.register_agent(one)
            await handle(one, *kinds(*(f"kind {number}.{index}" for index in range(30))))
            town.orchestrator.unregister_agent(one.agent_id)
        for found in town.all():
            received, worked = by_type(found, RECEIVED), by_type(found, WORK)
            assert received == worked
            assert (len(worked), worked[OTHER]) == (MAX_DISTINCT + 1, 40)

    run()


@in_loop
async def test_what_was_dropped_without_a_word_is_not_watched_for_ever() -> None:
    page, towns = Producing(), [Orchestrator(name="town") for _ in range(4)]
    handles = [instrument_orchestrator(town, config=AT_ONCE, meter_provider=page.provider) for town in towns]
    towns[3].register_agent(agent(3))
    kept = towns.pop().agents["id-3"]
    for shelf in (StateManager(), StateManager()):
        handles.append(instrument_state_manager(shelf, config=AT_ONCE, meter_provider=page.provider))
    del shelf
    gc.collect()
    for _ in range(2):
        page.read()
        assert len(page.bridge.sources._told[0]) == 4  # whose agent is still there is watched on
    await handle(kept, note())
    assert by_agent(page.read(), RECEIVED) == {"id-3": 1}
    del kept
    towns.clear()
    await settle()
    gc.collect()
    for _ in range(2):
        assert by_agent(page.read(), RECEIVED) == {RETIRED: 1}  # as long as anything is told
        assert "system.memory.utilization" in {name for name, _attributes in page.read()}
        assert len(page.bridge.sources._told[0]) == 1
    for one in handles:
        one.uninstrument()
    assert page.read() == {}
    page.provider.shutdown()
