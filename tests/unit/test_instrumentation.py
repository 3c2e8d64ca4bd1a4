"""The public functions and their handle."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import urllib.request
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import metrics as global_metrics
from opentelemetry.sdk.metrics import MeterProvider

from amptalk_otel import (
    Config,
    Instrumentation,
    _pipeline,
    instrument_agent,
    instrument_orchestrator,
    instrument_state_manager,
)
from amptalk_otel.demo.runtime import Message, Orchestrator, StateManager
from tests.support import (
    CONFIG,
    Scripted,
    counts,
    handle,
    hold,
    identity,
    in_loop,
    key,
    metrics,
    note,
    provider_and_reader,
    series,
    settle,
)

Instrument = Callable[..., Instrumentation]


def targets() -> list[tuple[Instrument, Any]]:
    return [
        (instrument_orchestrator, Orchestrator(name="town")),
        (instrument_agent, Scripted(agent_id="a", name="A")),
        (instrument_state_manager, StateManager()),
    ]


each_target = pytest.mark.parametrize("kind", range(3), ids=["orchestrator", "agent", "state manager"])


@each_target
def test_instrumenting_twice_returns_the_same_handle_and_leaves_no_trace_afterwards(kind: int) -> None:
    instrument, target = targets()[kind]
    provider, reader = provider_and_reader()
    before = identity(target)
    first = instrument(target, config=CONFIG, meter_provider=provider)
    assert first.active
    assert identity(target) != before
    assert instrument(target, config=CONFIG, meter_provider=provider) is first
    assert first.metrics_url is None
    first.uninstrument()
    first.uninstrument()
    assert not first.active
    assert identity(target) == before
    assert metrics(reader) == {}
    again = instrument(target, config=CONFIG, meter_provider=provider)
    assert again is not first
    assert again.active
    assert again.shutdown() is True
    assert again.shutdown() is True
    assert identity(target) == before
    provider.shutdown()


@in_loop
async def test_instrumenting_twice_counts_once() -> None:
    provider, reader = provider_and_reader()
    agent = Scripted(agent_id="a", name="A")
    handles = [instrument_agent(agent, config=CONFIG, meter_provider=provider) for _ in range(3)]
    await handle(agent, note(), note())
    found = series(reader)
    assert found[key("amptalk.agent.messages.processed", agent_id="a", agent_name="A", message_type="command")] == 2
    assert [value[0] for name, value in found.items() if name[0].endswith("process.duration")] == [2]
    handles[0].shutdown()
    provider.shutdown()


@in_loop
async def test_nothing_is_left_on_a_whole_program_with_messages_under_way() -> None:
    provider, _reader = provider_and_reader()
    orchestrator, manager = Orchestrator(), StateManager()
    agents = [Scripted(hold, agent_id=name) for name in "abc"]
    for agent in agents:
        agent.state_manager = manager
        orchestrator.register_agent(agent)
    await orchestrator.start()
    await settle()
    owners = [orchestrator, manager, *agents, *(agent.input_queue for agent in agents)]
    before, hooks = [identity(owner) for owner in owners], list(orchestrator.event_hooks["message_routed"])
    instrumentation = instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider)
    await orchestrator.broadcast_message(note())
    await orchestrator.broadcast_message(note())
    await settle()
    assert [counts(reading) for reading in instrumentation.read()] == [
        {"received": 2, "in_flight": 1, "queued": 1, "waits": 1}
    ] * 3
    instrumentation.uninstrument()
    after = [identity(owner) for owner in owners]
    for changing in ("_unfinished_tasks",):
        for held in (*before, *after):
            held.pop(changing, None)
    assert after == before
    assert orchestrator.event_hooks["message_routed"] == hooks
    await orchestrator.stop()
    provider.shutdown()


@in_loop
async def test_uninstrumenting_from_within_a_handler_breaks_nothing() -> None:
    provider, reader = provider_and_reader()

    async def leave(_message: Message) -> list[Message]:
        instrumentation.shutdown()
        return [note(target_agent_id="a")]

    agent = Scripted(leave, agent_id="a")
    agent.connect(agent)
    instrumentation = instrument_agent(agent, config=CONFIG, meter_provider=provider)
    await handle(agent, note(), note())
    assert agent.stats.messages_processed == 3
    assert agent.stats.messages_failed == 0
    assert metrics(reader) == {}
    assert set(vars(agent)) == set(vars(Scripted()))
    provider.shutdown()


@in_loop
async def test_two_providers_at_once_each_get_exact_numbers() -> None:
    pairs = [provider_and_reader() for _ in range(2)]
    orchestrator, agent = Orchestrator(), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    first = instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=pairs[0][0])
    await handle(agent, note())
    second = instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=pairs[1][0])
    assert second is not first
    await handle(agent, note(), note())
    name = key("amptalk.agent.messages.processed", agent_id="a", agent_name="A", orchestrator_name="orchestrator",
               message_type="command")  # fmt: skip
    assert [series(reader)[name] for _provider, reader in pairs] == [3, 3]
    first.uninstrument()
    await handle(agent, note())
    assert metrics(pairs[0][1]) == {}
    assert series(pairs[1][1])[name] == 4
    second.uninstrument()
    for provider, _reader in pairs:
        provider.shutdown()


@each_target
def test_a_disabled_sdk_touches_nothing(kind: int) -> None:
    instrument, target = targets()[kind]
    before = identity(target)
    instrumentation = instrument(target, config=CONFIG.with_changes(sdk_disabled=True))
    assert not instrumentation.active
    assert instrumentation.read() == []
    assert identity(target) == before
    assert instrumentation.shutdown() is True


@pytest.mark.parametrize("instrument", [instrument_orchestrator, instrument_agent, instrument_state_manager])
@pytest.mark.parametrize("target", [None, 5, object(), "text", []])
def test_what_is_nothing_of_the_kind_costs_one_warning(
    instrument: Instrument, target: Any, caplog: pytest.LogCaptureFixture
) -> None:
    provider, _reader = provider_and_reader()
    with instrument(target, config=CONFIG, meter_provider=provider) as instrumentation:
        assert not instrumentation.active
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "can't be instrumented" in caplog.text
    provider.shutdown()


@pytest.mark.usefixtures("lenient_guard")
def test_what_goes_wrong_inside_is_told_once_and_the_program_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("a payload")

    monkeypatch.setattr("amptalk_otel._watch.OrchestratorHook", fail)
    orchestrator = Orchestrator()
    before = identity(orchestrator)
    instrumentation = instrument_orchestrator(orchestrator, config=CONFIG)
    assert not instrumentation.active
    assert identity(orchestrator) == before
    assert len(caplog.records) == 1
    assert "RuntimeError" in caplog.text
    assert "a payload" not in caplog.text


@in_loop
async def test_without_a_provider_a_page_is_served_until_shutdown_and_nothing_global_changes() -> None:
    former, threads = global_metrics.get_meter_provider(), set(threading.enumerate())
    orchestrator, agent = Orchestrator(name="town"), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    config = Config(prometheus_port=0)
    with instrument_orchestrator(orchestrator, config=config) as instrumentation:
        assert instrument_orchestrator(orchestrator, config=config) is instrumentation
        await handle(agent, note())
        url = instrumentation.metrics_url
        assert url is not None
        page = await asyncio.to_thread(_fetch, url)
        sample = 'amptalk_agent_messages_processed_total{agent_id="a",agent_name="A",message_type="command",'
        assert [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith(sample)] == ["1.0"]
        instrumentation.uninstrument()
        assert "amptalk_agent_" not in await asyncio.to_thread(_fetch, url)
    assert instrumentation.metrics_url is None
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(_fetch, url)
    assert global_metrics.get_meter_provider() is former
    assert {thread.name for thread in set(threading.enumerate()) - threads if "amptalk" in thread.name} == set()


@in_loop
async def test_async_with_ends_without_blocking_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, seen, release = threading.Event(), [], _pipeline.release
    loops_thread, ended_in = threading.current_thread(), []

    def wait_for_the_loop(pipeline: _pipeline.Pipeline, timeout_s: float) -> bool:
        seen.append((threading.current_thread() is loops_thread, goes_on.wait(20)))
        return release(pipeline, timeout_s)

    def uninstrument(handle: Instrumentation) -> None:
        ended_in.append(threading.current_thread())
        original(handle)

    original = Instrumentation.uninstrument
    monkeypatch.setattr(_pipeline, "release", wait_for_the_loop)
    monkeypatch.setattr(Instrumentation, "uninstrument", uninstrument)
    orchestrator = Orchestrator()
    before = identity(orchestrator)
    asyncio.get_running_loop().call_later(0.01, goes_on.set)  # a loop that is blocked never comes to it
    async with instrument_orchestrator(orchestrator, config=Config(prometheus_port=0)) as instrumentation:
        assert identity(orchestrator) != before
    assert (seen, ended_in) == ([(False, True)], [loops_thread])
    assert (instrumentation.active, instrumentation.metrics_url) == (False, None)
    assert identity(orchestrator) == before
    async with instrumentation:
        """Harmless the second time."""


@in_loop
async def test_async_with_takes_everything_off_also_when_its_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, ended, release = asyncio.Event(), threading.Event(), threading.Event(), _pipeline.release
    loop = asyncio.get_running_loop()

    def slow(pipeline: _pipeline.Pipeline, timeout_s: float) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(20)
        release(pipeline, timeout_s)
        ended.set()

    async def run() -> None:
        async with instrument_orchestrator(orchestrator, config=Config(prometheus_port=0)):
            """Ends at once."""

    monkeypatch.setattr(_pipeline, "release", slow)
    orchestrator = Orchestrator()
    before = identity(orchestrator)
    running = asyncio.create_task(run())
    await asyncio.wait_for(begun.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert identity(orchestrator) == before
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 20)


@in_loop
async def test_async_with_ends_on_the_loop_where_there_are_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio, "to_thread", refuse)
    async with instrument_orchestrator(Orchestrator(), config=Config(prometheus_port=0)) as instrumentation:
        pipeline = instrumentation._pipeline
    assert pipeline is not None
    assert pipeline._ended


@pytest.mark.parametrize("has_provider", [True, False])
def test_settings_of_a_second_call_are_not_taken_and_that_is_told(
    caplog: pytest.LogCaptureFixture, *, has_provider: bool
) -> None:
    provider = MeterProvider(shutdown_on_exit=False) if has_provider else None
    orchestrator, config = Orchestrator(), Config(prometheus_port=0)
    other = config.with_changes(max_agents=7, otlp_headers={"authorization": "s3cret"})
    with instrument_orchestrator(orchestrator, config=config, meter_provider=provider) as first:
        for same in (None, config, config.with_changes()):
            assert instrument_orchestrator(orchestrator, config=same) is first
        assert caplog.messages == []
        for _ in range(2):
            assert instrument_orchestrator(orchestrator, config=other) is first
    assert caplog.messages == [
        "Orchestrator is instrumented already and keeps its settings: another otlp_headers, max_agents is not taken"
    ]
    if provider is not None:
        provider.shutdown()


def test_either_handle_ends_both() -> None:
    orchestrator = Orchestrator()
    first, second = (instrument_orchestrator(orchestrator, config=Config(prometheus_port=0)) for _ in range(2))
    second.shutdown()
    assert (first.active, first.metrics_url) == (False, None)


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


@in_loop
async def test_dropping_the_handle_does_not_end_the_instrumentation() -> None:
    provider, reader = provider_and_reader()
    agent = Scripted(agent_id="a", name="A")
    instrument_agent(agent, config=CONFIG, meter_provider=provider)
    gc.collect()
    await handle(agent, note())
    name = key("amptalk.agent.messages.processed", agent_id="a", agent_name="A", message_type="command")
    assert series(reader)[name] == 1
    instrument_agent(agent, config=CONFIG, meter_provider=provider).shutdown()
    provider.shutdown()


def test_a_handle_keeps_neither_its_target_nor_a_given_provider_alive() -> None:
    reader = provider_and_reader()[1]
    provider = MeterProvider([reader.__class__()], shutdown_on_exit=False)
    target = Orchestrator()
    instrumentation = instrument_orchestrator(target, config=CONFIG, meter_provider=provider)
    gone: list[weakref.ref[Any]] = [weakref.ref(target), weakref.ref(provider)]
    provider.shutdown()
    del target, provider
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert instrumentation.read() == []
    assert instrumentation.shutdown() is True


def test_an_error_in_the_block_passes_and_everything_is_taken_off() -> None:
    provider, _reader = provider_and_reader()
    orchestrator, failure = Orchestrator(), LookupError("mine")
    before = identity(orchestrator)
    with (
        pytest.raises(LookupError, match="mine") as raised,
        instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider),
    ):
        raise failure
    assert raised.value is failure
    assert identity(orchestrator) == before
    provider.shutdown()


@in_loop
async def test_handles_may_be_ended_from_several_threads_at_once() -> None:
    for _ in range(20):
        provider, _reader = provider_and_reader()
        agent = Scripted()
        before = identity(agent)
        instrumentation = instrument_agent(agent, config=CONFIG, meter_provider=provider)
        ends = [asyncio.to_thread(end) for end in (instrumentation.shutdown, instrumentation.uninstrument) * 2]
        reads = [asyncio.to_thread(instrumentation.read) for _ in range(4)]
        await asyncio.gather(*ends, *reads)
        assert identity(agent) == before
        provider.shutdown()
