"""The catalogue on a MeterProvider: complete, consistent, and gone without a trace."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from opentelemetry.metrics import Histogram as HistogramInstrument
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, HistogramDataPoint, InMemoryMetricReader, Sum

from amptalk_otel import Instrumentation, instrument_orchestrator
from amptalk_otel._bridge import bridge_for, serve
from amptalk_otel._catalogue import CATALOGUE, Kind, Metric, Snapshot
from amptalk_otel._producer import ProducerBridge
from amptalk_otel._sdk_series import move_series
from amptalk_otel._sources import Breathe
from amptalk_otel._system import CpuWindow
from amptalk_otel.demo.runtime import Orchestrator, StateManager
from tests.support import CONFIG, Scripted, handle, in_loop, key, metrics, note, provider_and_reader, series

BOTH = {"agent_id": "a", "agent_name": "A", "orchestrator_name": "town"}


async def busy(orchestrator: Orchestrator) -> Scripted:
    """Let every agent metric have something to tell."""
    agent = orchestrator.agents["a"]
    assert isinstance(agent, Scripted)
    target = note(target_agent_id="a")
    agent.connect(agent)
    agent.script = [[target, note(target_agent_id="nobody")], ConnectionError(), None, ValueError()]
    await orchestrator.send_message_to_agent(note(target_agent_id="a"))
    await orchestrator.send_message_to_agent(note(target_agent_id="nobody"))
    await handle(agent, note(), note())
    agent.input_queue.put_nowait(note())
    agent.input_queue.get_nowait()
    agent.input_queue.task_done()
    assert agent.state_manager is not None
    await agent.state_manager.save_state("a", {"x": 1})
    return agent


def town() -> Orchestrator:
    orchestrator, agent = Orchestrator(name="town"), Scripted(agent_id="a", name="A")
    agent.state_manager = StateManager()
    orchestrator.agents["a"] = agent
    return orchestrator


def instrument(orchestrator: Orchestrator, provider: MeterProvider) -> Instrumentation:
    return instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider)


def measure_operation(handle: Instrumentation) -> None:
    assert handle._watch is not None
    handle._watch.operations.measured("a", "A", "transcribe", 0.25)


def kind_of(data: Any) -> Kind:
    if isinstance(data, Histogram):
        return Kind.HISTOGRAM
    if isinstance(data, Sum):
        return Kind.COUNTER if data.is_monotonic else Kind.UP_DOWN_COUNTER
    assert isinstance(data, Gauge)
    return Kind.GAUGE


@pytest.fixture
def cpu_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the first tenth of a second."""
    monkeypatch.setattr(CpuWindow, "read", lambda _window: 0.5)


@pytest.mark.usefixtures("cpu_known")
@in_loop
async def test_every_row_of_the_catalogue_arrives_with_its_unit_kind_and_description() -> None:
    provider, reader = provider_and_reader()
    orchestrator = town()
    with instrument(orchestrator, provider) as handle_:
        await busy(orchestrator)
        measure_operation(handle_)
        found = metrics(reader)
        assert {name: (kind_of(metric.data), metric.unit, metric.description) for name, metric in found.items()} == {
            row.name: (row.kind, row.unit, row.description) for row in CATALOGUE
        }
        for row in CATALOGUE:
            for point in found[row.name].data.data_points:
                extra = set(point.attributes or {}) - {"agent.id", "agent.name", "orchestrator.name"}
                assert extra <= set(row.attributes), row.name
                if row.bounds is not None:
                    assert point.explicit_bounds == row.bounds  # type: ignore[union-attr]
    provider.shutdown()


@in_loop
async def test_the_numbers_of_every_agent_metric_are_right() -> None:
    provider, reader = provider_and_reader()
    orchestrator = town()
    with instrument(orchestrator, provider):
        await busy(orchestrator)
        found = series(reader)
    numbers = {name: value for name, value in found.items() if not re.search(r"uptime|duration|time$", name[0])}
    counts = {name: value for name, value in numbers.items() if not name[0].startswith(("system.", "process."))}
    assert sum(value for name, value in found.items() if name[0] == "amptalk.agent.time") > 0.0
    command = {**BOTH, "message_type": "command"}
    assert counts == {
        key("amptalk.agent.running", **BOTH): 0,
        key("amptalk.agent.queue.size", **BOTH): 0,
        key("amptalk.agent.queue.peak", **BOTH): 3,
        key("amptalk.agent.queue.oldest_age", **BOTH): 0.0,
        key("amptalk.agent.messages.in_flight", **BOTH): 0,
        key("amptalk.agent.messages.unaccounted", **BOTH): 0,
        key("amptalk.agent.messages.received", **command): 5,
        key("amptalk.agent.messages.processed", **command): 3,
        key("amptalk.agent.messages.failed", **command, error_type="ValueError"): 1,
        key("amptalk.agent.messages.dropped", **command, reason="taken"): 1,
        key("amptalk.agent.messages.sent", **command): 1,
        key("amptalk.agent.messages.undeliverable", **command, reason="unknown_target"): 1,
        key("amptalk.agent.retries", **command, error_type="ConnectionError"): 1,
        key("amptalk.agent.message.size", **command): (1, 2),
        key("amptalk.orchestrator.agents", orchestrator_name="town", agent_state="running"): 0,
        key("amptalk.orchestrator.agents", orchestrator_name="town", agent_state="stopped"): 1,
        key("amptalk.orchestrator.messages.routed", orchestrator_name="town", message_type="command"): 1,
        key("amptalk.orchestrator.messages.undeliverable", orchestrator_name="town", message_type="command",
            reason="unknown_target"): 1,
        key("amptalk.state.size", **BOTH, state_storage="memory"): 8,
        key("amptalk.state.items", **BOTH, state_storage="memory"): 1,
    }  # fmt: skip
    assert found[key("amptalk.agent.message.wait.duration", **command)][0] == 5
    assert found[key("amptalk.agent.message.process.duration", **command)][0] == 4
    operation = {"state_storage": "memory", "state_operation": "write"}
    assert found[key("amptalk.state.operation.duration", **BOTH, **operation)][0] == 1
    provider.shutdown()


@in_loop
async def test_the_sdks_histograms_hold_what_the_recorders_hold() -> None:
    provider, reader = provider_and_reader()
    orchestrator = town()
    with instrument(orchestrator, provider) as handle_:
        await busy(orchestrator)
        (reading,) = handle_.read()
        found = metrics(reader)
        for name, distribution in (
            ("amptalk.agent.message.wait.duration", reading.wait_histogram),
            ("amptalk.agent.message.process.duration", reading.process_histogram),
            ("amptalk.agent.message.size", reading.size_histogram),
        ):
            (point,) = found[name].data.data_points
            assert tuple(point.bucket_counts) == distribution.counts  # type: ignore[union-attr]
            assert point.sum == pytest.approx(distribution.sum)  # type: ignore[union-attr]
    provider.shutdown()


@pytest.mark.usefixtures("cpu_known")
@in_loop
async def test_after_uninstrument_nothing_is_told_and_the_next_begins_from_zero() -> None:
    provider, reader = provider_and_reader()
    orchestrator = town()
    for _ in range(2):
        handle_ = instrument(orchestrator, provider)
        agent = await busy(orchestrator)
        measure_operation(handle_)
        found = series(reader)
        command = {**BOTH, "message_type": "command"}
        assert found[key("amptalk.agent.messages.received", **command)] == 5
        assert found[key("amptalk.agent.message.process.duration", **command)][0] == 4
        assert found[key("amptalk.agent.message.wait.duration", **command)][0] == 5
        assert (
            found[key("amptalk.state.operation.duration", **BOTH, state_storage="memory", state_operation="write")][0]
            == 1
        )
        assert found[key("amptalk.operation.duration", agent_id="a", agent_name="A", operation_name="transcribe")] == (
            1, 0.25,
        )  # fmt: skip
        handle_.uninstrument()
        assert metrics(reader) == {}
        await handle(agent, note())
        assert metrics(reader) == {}
    provider.shutdown()


@in_loop
async def test_all_instruments_of_one_collection_tell_one_moment() -> None:
    provider, reader = provider_and_reader()
    bridge, taken = bridge_for(provider), 0
    orchestrator = town()
    with instrument(orchestrator, provider):

        def source(_breathe: Breathe) -> Snapshot:
            nonlocal taken
            taken += 1
            return Snapshot()

        bridge.add(source)
        for collection in range(1, 4):
            reader.collect()
            assert taken == collection
        bridge.remove(source)
        reader.collect()
        assert taken == 3
    provider.shutdown()


@in_loop
async def test_each_of_two_readers_has_a_snapshot_of_its_own() -> None:
    first, second = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([first, second], shutdown_on_exit=False)
    orchestrator = town()
    agent = orchestrator.agents["a"]
    name = key("amptalk.agent.queue.size", **BOTH)
    with instrument(orchestrator, provider):
        for length in range(1, 4):
            agent.input_queue.put_nowait(note())
            assert series(first)[name] == length
            assert series(second)[name] == length
            agent.input_queue.put_nowait(note())
            agent.input_queue.get_nowait()
    provider.shutdown()


@in_loop
async def test_a_snapshot_does_not_outlive_its_collection_even_if_that_broke_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider, _reader = provider_and_reader()
    bridge = bridge_for(provider)
    orchestrator = town()
    rows = {row.name: row for row in CATALOGUE}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with instrument(orchestrator, provider):
        assert _value(bridge, rows["amptalk.agent.queue.size"]) == 0
        orchestrator.agents["a"].input_queue.put_nowait(note())
        assert _value(bridge, rows["amptalk.agent.messages.in_flight"]) == 0
        now += 10.5  # the collection ended without asking for the rest
        assert _value(bridge, rows["amptalk.agent.messages.received"]) == 1
    provider.shutdown()


def _value(bridge: Any, row: Metric) -> Any:
    (observation,) = bridge.observe(row)
    return observation.value


@in_loop
async def test_two_orchestrators_on_one_provider_do_not_disturb_each_other() -> None:
    provider, reader = provider_and_reader()
    orchestrators, handles = [], []
    for number in range(2):
        orchestrator = Orchestrator(name=f"town {number}")
        orchestrator.register_agent(Scripted(agent_id=f"agent {number}", name="A"))
        orchestrators.append(orchestrator)
        handles.append(instrument(orchestrator, provider))
        await handle(orchestrator.agents[f"agent {number}"], *(note() for _ in range(number + 1)))
    name = "amptalk.agent.messages.processed"
    attributes = {"agent_name": "A", "message_type": "command"}
    keys = [key(name, **attributes, agent_id=f"agent {n}", orchestrator_name=f"town {n}") for n in range(2)]
    found = series(reader)
    assert [found[of] for of in keys] == [1, 2]
    handles[0].uninstrument()
    found = series(reader)
    assert keys[0] not in found
    assert found[keys[1]] == 2
    assert [value[0] for of, value in found.items() if of[0].endswith("process.duration")] == [2]
    handles[1].uninstrument()
    assert metrics(reader) == {}
    provider.shutdown()


@pytest.mark.usefixtures("lenient_guard")
@in_loop
async def test_a_row_that_can_not_be_read_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise OSError("no /proc")

    provider, reader = provider_and_reader()
    orchestrator = town()
    with instrument(orchestrator, provider):
        before = set(metrics(reader))
        monkeypatch.setattr("psutil.virtual_memory", broken)
        assert before - set(metrics(reader)) == {"system.memory.utilization", "system.memory.linux.available"}
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "reading system.memory.utilization was skipped", "reading system.memory.linux.available was skipped",
    ]  # fmt: skip
    provider.shutdown()


@in_loop
async def test_a_provider_that_does_nothing_is_no_trouble() -> None:
    orchestrator = town()
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=NoOpMeterProvider()) as handle_:
        await busy(orchestrator)
        assert handle_.read()[0].received == 5


class TestForgettingSeries:
    def test_only_the_series_that_leave_are_forgotten(self) -> None:
        provider, reader = provider_and_reader()
        histogram = provider.get_meter("amptalk_otel").create_histogram("h")
        for who in ("stays", "leaves"):
            histogram.record(1.0, {"who": who})
        assert move_series(histogram, lambda attributes: {} if attributes["who"] == "leaves" else None) == 1
        assert set(series(reader)) == {key("h", who="stays")}
        histogram.record(2.0, {"who": "leaves"})
        assert series(reader)[key("h", who="leaves")] == (1, 2.0)
        provider.shutdown()

    def test_a_series_of_the_sdk_goes_on_in_another_one(self) -> None:
        provider, reader = provider_and_reader()
        histogram = provider.get_meter("amptalk_otel").create_histogram(
            "h", explicit_bucket_boundaries_advisory=[1.0, 2.0]
        )

        def move(who: str) -> int:
            return move_series(histogram, lambda attributes: {"who": "left"} if attributes["who"] == who else None)

        histogram.record(0.5, {"who": "a"})
        assert move("a") == 1  # not collected yet, and none is there
        histogram.record(1.5, {"who": "b"})
        assert series(reader) == {key("h", who="left"): (1, 0.5), key("h", who="b"): (1, 1.5)}
        histogram.record(3.0, {"who": "b"})
        assert move("b") == 1  # partly collected
        for _ in range(2):
            assert series(reader) == {key("h", who="left"): (3, 5.0)}
        (point,) = metrics(reader)["h"].data.data_points
        assert isinstance(point, HistogramDataPoint)
        assert (tuple(point.bucket_counts), point.min, point.max) == ((1, 1, 1), 0.5, 3.0)
        histogram.record(1.0, {"who": "b"})  # a new one begins from zero
        assert series(reader) == {key("h", who="left"): (3, 5.0), key("h", who="b"): (1, 1.0)}
        provider.shutdown()

    @pytest.mark.parametrize("instrument", [None, object(), NoOpMeterProvider().get_meter("m").create_histogram("h")])
    def test_what_is_no_instrument_of_the_sdk_is_left_alone(self, instrument: HistogramInstrument | None) -> None:
        assert move_series(instrument, lambda _attributes: {}) == 0


def test_a_provider_has_one_bridge() -> None:
    provider, _reader = provider_and_reader()
    other, _other_reader = provider_and_reader()
    assert bridge_for(provider) is bridge_for(provider)
    assert bridge_for(provider) is not bridge_for(other)
    provider.shutdown()
    other.shutdown()


def test_a_provider_may_be_given_another_kind_of_bridge() -> None:
    provider, reader = provider_and_reader()
    mine = ProducerBridge()
    serve(provider, mine)
    assert bridge_for(provider) is mine
    with instrument(town(), provider):
        assert metrics(reader) == {}
    provider.shutdown()
