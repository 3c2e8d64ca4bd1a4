"""The requirement document's monitor: its signature, its page, who shares it, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
import urllib.error
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import amptalk_otel
from amptalk_otel import (
    Config,
    PerformanceMonitor,
    _guard,
    _pipeline,
    get_monitor,
    instrument_agent,
    instrument_orchestrator,
    performance_monitor,
    setup_performance_monitoring,
)
from amptalk_otel.demo.runtime import Orchestrator
from tests.page import Page, free_port, no_global_monitor, scrape, scrape_now
from tests.support import Clock, Scripted, handle, identity, in_loop, note, settle

COUNT = "amptalk_operation_duration_seconds_count"
SUM = "amptalk_operation_duration_seconds_sum"
PROCESSED = "amptalk_agent_messages_processed_total"
WORKED = "amptalk_agent_message_process_duration_seconds_count"
MACHINE = {
    "system_memory_utilization",
    "system_memory_linux_available_bytes",
    "process_memory_usage_bytes",
    "process_memory_virtual_bytes",
    "process_uptime_seconds",
}


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    with no_global_monitor():
        yield


@pytest.fixture
def port() -> Iterator[int]:
    with free_port() as port:
        yield port


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(performance_monitor, "perf_counter", clock)
    return clock


def machine_names(page: Page) -> set[str]:
    return (page.names("system_") | page.names("process_")) - {"system_cpu_utilization", "process_cpu_utilization"}


def processed(page: Page, agent: Scripted) -> tuple[float | None, float | None]:
    """An agent's counter and its number of observations; both must be of one series."""
    return page.value(PROCESSED, agent_id=agent.agent_id), page.value(WORKED, agent_id=agent.agent_id)


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "amptalk_otel"]


# -- the interface -------------------------------------------------------------------------------------

CONSTRUCTOR = {
    "name": "amptalk_monitor",
    "enable_prometheus": True,
    "prometheus_port": 8000,
    "collection_interval_seconds": 5.0,
    "include_system_metrics": True,
    "include_agent_metrics": True,
}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_the_constructor_takes_the_documents_parameters_in_its_order() -> None:
    assert list(defaults(PerformanceMonitor).items()) == list(CONSTRUCTOR.items())
    monitor = PerformanceMonitor()
    assert {name: getattr(monitor, name) for name in CONSTRUCTOR} == CONSTRUCTOR
    given = PerformanceMonitor("mine", False, 9000, 0.5, False, False)
    assert [getattr(given, name) for name in CONSTRUCTOR] == ["mine", False, 9000, 0.5, False, False]


def test_the_functions_take_the_same_keywords() -> None:
    assert defaults(setup_performance_monitoring) == CONSTRUCTOR
    assert next(iter(defaults(get_monitor).items())) == ("create_if_none", True)
    assert inspect.iscoroutinefunction(setup_performance_monitoring)


@pytest.mark.parametrize("name", ["PerformanceMonitor", "get_monitor", "setup_performance_monitoring"])
def test_both_import_lines_give_the_same_thing(name: str) -> None:
    assert getattr(amptalk_otel, name) is getattr(performance_monitor, name)
    assert name in performance_monitor.__all__


@pytest.mark.parametrize("interval", [0, -1, 0.009, float("nan"), float("inf"), True, "1", None, 31_536_001, 10**400])
def test_an_interval_that_is_none_is_refused_in_one_sentence(interval: Any) -> None:
    with pytest.raises(ValueError, match="must be a number") as caught:
        PerformanceMonitor(collection_interval_seconds=interval)
    assert str(caught.value) == (
        f"collection_interval_seconds={interval!r}: must be a number from 10 milliseconds to a year"
    )


@pytest.mark.parametrize("interval", [0.01, 1, 31_536_000])
def test_an_interval_is_the_time_between_two_pushes(interval: float) -> None:
    assert PerformanceMonitor(collection_interval_seconds=interval)._config.metric_export_interval_s == interval


@pytest.mark.parametrize("number", [-1, 65536, "8000", 8000.0, True, None])
def test_a_port_that_is_none_is_refused_in_one_sentence(number: Any) -> None:
    with pytest.raises(ValueError, match="must be a port") as caught:
        PerformanceMonitor(prometheus_port=number)
    assert str(caught.value) == f"prometheus_port={number!r}: must be a port number from 0 to 65535"


@in_loop
async def test_setup_refuses_bad_settings_also_while_a_monitor_collects() -> None:
    monitor = await setup_performance_monitoring(prometheus_port=0)
    with pytest.raises(ValueError, match="collection_interval_seconds=0"):
        await setup_performance_monitoring(prometheus_port=0, collection_interval_seconds=0)
    assert monitor.is_collecting


@pytest.mark.parametrize(
    ("enabled", "variable", "exporters"),
    [
        (True, "", ("prometheus",)),
        (True, "none", ("prometheus",)),
        (True, "console", ("prometheus", "console")),
        (False, "", ("none",)),
        (False, "prometheus,console", ("console",)),
    ],
)
def test_enable_prometheus_goes_before_the_environment_and_other_exporters_are_its_own(
    enabled: bool, variable: str, exporters: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", variable)
    assert PerformanceMonitor(enable_prometheus=enabled)._config.metrics_exporters == exporters


@in_loop
async def test_without_prometheus_nothing_is_served() -> None:
    monitor = PerformanceMonitor(enable_prometheus=False)
    await monitor.start_collecting()
    assert monitor.is_collecting
    assert monitor.metrics_url is None
    await monitor.stop_collecting()


# -- what is included ----------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [True, False])
@pytest.mark.parametrize("agents", [True, False])
@in_loop
async def test_the_switches_leave_out_what_they_name_and_no_message(machine: bool, agents: bool) -> None:
    monitor = PerformanceMonitor(prometheus_port=0, include_system_metrics=machine, include_agent_metrics=agents)
    agent = Scripted(agent_id="a")
    monitor.add_agent(agent)
    with monitor.measure_execution_time("a", "own"):
        pass
    await handle(agent, note(), note())
    page = await scrape(monitor.metrics_url)
    assert machine_names(page) == (MACHINE if machine else set())
    assert bool(page.names("amptalk_agent_")) is agents
    assert processed(page, agent) == ((2, 2) if agents else (None, None))
    assert page.value(COUNT, operation_name="own") == 1
    assert len(agent.seen) == 2
    await monitor.stop_collecting()


@pytest.mark.parametrize("first_to_go", [0, 1])
@in_loop
async def test_a_monitor_that_leaves_agents_out_takes_none_from_another_on_its_page(
    first_to_go: int, port: int
) -> None:
    monitors = [PerformanceMonitor(prometheus_port=port, include_agent_metrics=shown) for shown in (True, False)]
    agent = Scripted(agent_id="a")
    for monitor in monitors:
        monitor.add_agent(agent)
    await handle(agent, note())
    assert processed(await scrape(monitors[0].metrics_url), agent) == (1, 1)
    await monitors[first_to_go].stop_collecting()
    await handle(agent, note())
    left = monitors[1 - first_to_go]
    assert processed(await scrape(left.metrics_url), agent) == ((None, None), (2, 2))[first_to_go]
    await left.stop_collecting()


@in_loop
async def test_agents_that_come_and_go_unshown_take_nothing_from_a_page_that_shows_them(port: int) -> None:
    shown, hidden = (PerformanceMonitor(prometheus_port=port, include_agent_metrics=show) for show in (True, False))
    agent, namesake = Scripted(agent_id="a", name="First"), Scripted(agent_id="a", name="Second")
    shown.add_agent(agent)
    hidden.add_agent(agent)
    hidden.add_agent(namesake)
    hidden.remove_agent("a")
    await handle(agent, note())
    assert processed(await scrape(shown.metrics_url), agent) == (1, 1)
    await hidden.stop_collecting()
    await shown.stop_collecting()


@in_loop
async def test_dropped_agents_are_forgotten_also_where_they_are_not_shown() -> None:
    monitor = PerformanceMonitor(prometheus_port=0, include_agent_metrics=False)
    monitor.add_agent(Scripted())
    gc.collect()
    await scrape(monitor.metrics_url)
    assert monitor._watch is not None
    assert monitor._watch._agents == {}
    await monitor.stop_collecting()


# -- agents --------------------------------------------------------------------------------------------


@in_loop
async def test_an_agent_added_twice_counts_once_and_a_removed_one_not_at_all() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    agent = Scripted(agent_id="a", name="A")
    untouched = identity(agent)
    monitor.add_agent(agent)
    monitor.add_agent(agent)
    assert monitor.monitored_agents == {"a": agent}
    await handle(agent, note())
    page = await scrape(monitor.metrics_url)
    assert processed(page, agent) == (1, 1)
    assert page.labels("amptalk_agent_running") == [{"agent_id": "a", "agent_name": "A"}]
    monitor.remove_agent("a")
    monitor.remove_agent("a")
    monitor.remove_agent("nobody")
    assert monitor.monitored_agents == {}
    assert set(vars(agent)) == set(untouched)
    await handle(agent, note())
    assert processed(await scrape(monitor.metrics_url), agent) == (1, 1)
    monitor.add_agent(agent)
    await handle(agent, note())
    assert processed(await scrape(monitor.metrics_url), agent) == (2, 2)
    await monitor.stop_collecting()


@in_loop
async def test_another_agent_of_the_same_id_takes_the_place_of_the_first() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    first, second = Scripted(agent_id="a", name="First"), Scripted(agent_id="a", name="Second")
    untouched = set(vars(first))
    monitor.add_agent(first)
    await handle(first, note())
    monitor.add_agent(second)
    await handle(first, note())
    await handle(second, note(), note())
    assert monitor.monitored_agents == {"a": second}
    assert set(vars(first)) == untouched
    page = await scrape(monitor.metrics_url)
    assert page.value(PROCESSED, agent_name="First") == 1
    assert page.value(PROCESSED, agent_name="Second") == 2
    await monitor.stop_collecting()


class Slotted:
    """Looks like an agent and can't be referred to weakly."""

    __slots__ = ("agent_id", "input_queue", "name", "process_message")

    def __init__(self) -> None:
        self.agent_id = self.name = "slotted"
        self.input_queue = self.process_message = None


@pytest.mark.parametrize("stranger", [None, 5, "agent", object(), Slotted()])
@pytest.mark.usefixtures("lenient_guard")
def test_what_is_no_agent_costs_one_log_record(stranger: Any, caplog: pytest.LogCaptureFixture) -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    monitor.add_agent(stranger)
    monitor.add_agent(stranger)
    (record,) = records(caplog)
    assert "watch" in record
    assert monitor.monitored_agents == {}
    asyncio.run(monitor.stop_collecting())


@in_loop
async def test_agents_are_not_kept_alive() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    agent = Scripted(agent_id="a")
    monitor.add_agent(agent)
    monitor.observe("program.seen", lambda agent: len(agent.seen))
    await handle(agent, note())
    assert (await scrape(monitor.metrics_url)).value("program_seen", agent_id="a") == 1
    gone = weakref.ref(agent)
    del agent
    await settle()
    gc.collect()
    assert gone() is None
    assert monitor.monitored_agents == {}
    assert monitor._agents == {}
    page = await scrape(monitor.metrics_url)
    assert page.value(PROCESSED, agent_id="a") == 1  # for a while
    assert page.names("program_") == set()
    await monitor.stop_collecting()


# -- beginning and ending ------------------------------------------------------------------------------


@in_loop
async def test_nothing_is_served_before_the_start_or_after_the_stop_and_it_starts_again() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    assert (monitor.is_collecting, monitor.metrics_url) == (False, None)
    await monitor.stop_collecting()
    await monitor.start_collecting()
    url = monitor.metrics_url
    await monitor.start_collecting()
    assert (monitor.is_collecting, monitor.metrics_url) == (True, url)
    agent = Scripted(agent_id="a")
    monitor.add_agent(agent)
    await handle(agent, note(), note())
    assert processed(await scrape(url), agent) == (2, 2)
    await monitor.stop_collecting()
    await monitor.stop_collecting()
    assert (monitor.is_collecting, monitor.metrics_url) == (False, None)
    with pytest.raises(urllib.error.URLError):
        await scrape(url)
    await handle(agent, note())
    assert monitor.monitored_agents == {"a": agent}
    await monitor.start_collecting()
    assert processed(await scrape(monitor.metrics_url), agent) == (None, None)
    await handle(agent, note())
    assert processed(await scrape(monitor.metrics_url), agent) == (1, 1)
    await monitor.stop_collecting()


@in_loop
async def test_the_same_port_is_free_again_after_the_stop(port: int) -> None:
    monitor = PerformanceMonitor(prometheus_port=port)
    urls = []
    for _ in range(3):
        await monitor.start_collecting()
        urls.append(monitor.metrics_url)
        await scrape(monitor.metrics_url)
        await monitor.stop_collecting()
    assert urls == [f"http://localhost:{port}/metrics"] * 3


@in_loop
async def test_the_wrappers_come_off_and_leave_everything_as_it_was() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    agent = Scripted(agent_id="a")
    agent.enable_performance_monitoring = True
    before, queue_before = identity(agent), identity(agent.input_queue)
    monitor.add_agent(agent)
    assert set(vars(agent)) > set(before)
    assert agent.enable_performance_monitoring is False
    await monitor.stop_collecting()
    assert identity(agent) == before
    assert identity(agent.input_queue) == queue_before


@in_loop
async def test_messages_in_flight_and_in_the_inbox_survive_the_stop() -> None:
    gate = asyncio.Event()

    async def wait(_message: Any) -> None:
        await gate.wait()

    monitor = PerformanceMonitor(prometheus_port=0)
    agent = Scripted(wait, agent_id="a")
    untouched = set(vars(agent))
    monitor.add_agent(agent)
    await agent.start()
    for _ in range(3):
        await agent.enqueue_message(note())
    await settle()
    page = await scrape(monitor.metrics_url)
    assert page.value("amptalk_agent_messages_in_flight", agent_id="a") == 1
    assert page.value("amptalk_agent_queue_size", agent_id="a") == 2
    await monitor.stop_collecting()
    assert set(vars(agent)) == untouched
    gate.set()
    await asyncio.wait_for(agent.input_queue.join(), 20)
    assert (agent.stats.messages_processed, agent.stats.messages_failed) == (3, 0)
    await agent.stop()


@in_loop
async def test_stopping_waits_for_exporters_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, seen, release = threading.Event(), [], _pipeline.release

    def wait_for_the_loop(pipeline: _pipeline.Pipeline, timeout_s: float) -> bool:
        seen.append((threading.current_thread() is threading.main_thread(), answered.wait(20)))
        return release(pipeline, timeout_s)

    monkeypatch.setattr(_pipeline, "release", wait_for_the_loop)
    monitor = PerformanceMonitor(prometheus_port=0)
    await monitor.start_collecting()
    stopping = asyncio.create_task(monitor.stop_collecting())
    await settle()
    assert not stopping.done()
    answered.set()  # a loop that is blocked never comes here, and the wait above ends in False
    await stopping
    assert seen == [(False, True)]


@in_loop
async def test_a_stop_that_is_cancelled_still_takes_the_wrappers_off(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, ended, release = threading.Event(), threading.Event(), _pipeline.release

    def slow(pipeline: _pipeline.Pipeline, timeout_s: float) -> None:
        answered.wait(20)
        release(pipeline, timeout_s)
        ended.set()

    monkeypatch.setattr(_pipeline, "release", slow)
    monitor = PerformanceMonitor(prometheus_port=0)
    agent = Scripted()
    untouched = set(vars(agent))
    monitor.add_agent(agent)
    stopping = asyncio.create_task(monitor.stop_collecting())
    await settle()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert set(vars(agent)) == untouched
    answered.set()
    assert await asyncio.to_thread(ended.wait, 20)


@in_loop
async def test_what_is_defined_and_added_while_it_stops_is_there_when_it_has_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, release = threading.Event(), _pipeline.release

    def slow(pipeline: _pipeline.Pipeline, timeout_s: float) -> bool:
        answered.wait(20)
        return release(pipeline, timeout_s)

    monitor = PerformanceMonitor(prometheus_port=0)
    monitor.observe("program.answer", lambda: 42, per="process")
    agent = Scripted(agent_id="a")
    monitor.add_agent(agent)
    with monkeypatch.context() as patched:
        patched.setattr(_pipeline, "release", slow)
        stopping = asyncio.create_task(monitor.stop_collecting())
        await settle()
        await monitor.start_collecting()
        answered.set()
        await stopping
    await handle(agent, note())
    page = await scrape(monitor.metrics_url)
    assert processed(page, agent) == (1, 1)
    assert page.value("program_answer") == 42
    await monitor.stop_collecting()


@in_loop
async def test_a_port_that_somebody_else_has_costs_a_log_record_and_no_message(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_reader: Any, writer: Any) -> None:
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", port):
        monitor = PerformanceMonitor(prometheus_port=port)
        agent = Scripted()
        monitor.add_agent(agent)
        await handle(agent, note())
        assert monitor.metrics_url is None
        assert len(agent.seen) == 1
        assert [f"localhost:{port} can't be bound" in record for record in records(caplog)] == [True]
        await monitor.stop_collecting()


@in_loop
async def test_with_the_sdk_disabled_nothing_is_served_and_no_message_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monitor = await setup_performance_monitoring()  # port 8000: would be bound otherwise
    agent = Scripted(agent_id="a")
    agent.enable_performance_monitoring, agent._performance_monitor = True, monitor
    untouched = identity(agent)
    monitor.add_agent(agent)
    monitor.observe("program.answer", lambda: 42, per="process")
    monitor.meter.create_counter("program.counter").add(1)
    with monitor.measure_execution_time("a", "own"):
        await handle(agent, note(), note())
    assert (monitor.is_collecting, monitor.metrics_url) == (False, None)
    assert (agent.stats.messages_processed, agent.stats.messages_failed) == (2, 0)
    await monitor.stop_collecting()
    assert set(vars(agent)) == set(untouched)


# -- several of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first_to_go", [0, 1])
@in_loop
async def test_monitors_of_one_port_share_a_page_with_each_agent_once(first_to_go: int, port: int) -> None:
    monitors = [PerformanceMonitor(name=name, prometheus_port=port) for name in ("one", "two")]
    alone, shared, other = (Scripted(agent_id=name) for name in ("alone", "shared", "other"))
    for monitor, agents in zip(monitors, ((alone, shared), (shared, other)), strict=True):
        for agent in agents:
            monitor.add_agent(agent)
    assert monitors[0].metrics_url == monitors[1].metrics_url
    for agent in (alone, shared, other):
        await handle(agent, note(), note())
    page = await scrape(monitors[0].metrics_url)
    assert [processed(page, agent) for agent in (alone, shared, other)] == [(2, 2)] * 3
    assert len(page.labels("process_uptime_seconds")) == 1

    leaving, staying = monitors[first_to_go], monitors[1 - first_to_go]
    await leaving.stop_collecting()
    await handle(shared, note())
    page = await scrape(staying.metrics_url)
    assert processed(page, shared) == (3, 3)
    kept, gone = (other, alone) if first_to_go == 0 else (alone, other)
    assert processed(page, kept) == (2, 2)
    assert processed(page, gone) == (None, None)
    url = staying.metrics_url
    await staying.stop_collecting()
    assert set(vars(shared)) == set(vars(Scripted()))
    with pytest.raises(urllib.error.URLError):
        await scrape(url)


@in_loop
async def test_monitors_of_other_ports_have_pages_of_their_own() -> None:
    monitors = [PerformanceMonitor(prometheus_port=0) for _ in range(2)]
    agents = [Scripted(agent_id="a"), Scripted(agent_id="b")]
    shared = Scripted(agent_id="shared")
    for monitor, agent in zip(monitors, agents, strict=True):
        monitor.add_agent(agent)
        monitor.add_agent(shared)
    for agent in (*agents, shared):
        await handle(agent, note())
    assert monitors[0].metrics_url != monitors[1].metrics_url
    pages = [await scrape(monitor.metrics_url) for monitor in monitors]
    assert [[processed(page, agent) for agent in agents] for page in pages] == [
        [(1, 1), (None, None)],
        [(None, None), (1, 1)],
    ]
    assert [processed(page, shared) for page in pages] == [(1, 1), (1, 1)]
    await monitors[0].stop_collecting()
    await handle(shared, note())
    assert processed(await scrape(monitors[1].metrics_url), shared) == (2, 2)
    await monitors[1].stop_collecting()


@pytest.mark.parametrize("first_to_go", [0, 1])
@in_loop
async def test_operations_that_two_monitors_measure_are_one_series_until_both_are_gone(
    first_to_go: int, port: int
) -> None:
    monitors = [PerformanceMonitor(prometheus_port=port) for _ in range(2)]
    for monitor in monitors:
        await monitor.start_collecting()
        with monitor.measure_execution_time("a", "same"):
            pass
    with monitors[first_to_go].measure_execution_time("a", "own"):
        pass
    staying = monitors[1 - first_to_go]
    page = await scrape(staying.metrics_url)
    assert (page.value(COUNT, operation_name="same"), page.value(COUNT, operation_name="own")) == (2, 1)
    await monitors[first_to_go].stop_collecting()
    with staying.measure_execution_time("a", "same"):
        pass
    page = await scrape(staying.metrics_url)
    assert (page.value(COUNT, operation_name="same"), page.value(COUNT, operation_name="own")) == (3, None)
    await staying.stop_collecting()


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("monitor_leaves_first", [True, False])
@in_loop
async def test_a_monitor_beside_an_instrumented_orchestrator_counts_nothing_twice(
    monitor_first: bool, monitor_leaves_first: bool, port: int
) -> None:
    orchestrator, monitor = Orchestrator(name="town"), PerformanceMonitor(prometheus_port=port)
    agents = [Scripted(agent_id=name) for name in ("a", "b")]
    for agent in agents:
        orchestrator.register_agent(agent)
        if monitor_first:
            monitor.add_agent(agent)
    instrumentation = instrument_orchestrator(orchestrator, config=Config(prometheus_port=port))
    for agent in agents:
        monitor.add_agent(agent)
    assert instrumentation.metrics_url == monitor.metrics_url
    for agent in agents:
        await handle(agent, note(), note(), note())
    page = await scrape(monitor.metrics_url)
    assert [processed(page, agent) for agent in agents] == [(3, 3)] * 2
    assert [page.value("amptalk_agent_messages_received_total", agent_id=one.agent_id) for one in agents] == [3, 3]
    assert [page.value("amptalk_agent_queue_size", agent_id=one.agent_id) for one in agents] == [0, 0]
    assert machine_names(page) == MACHINE
    assert page.value("amptalk_orchestrator_agents", agent_state="stopped") == 2

    if monitor_leaves_first:
        await monitor.stop_collecting()
    else:
        await asyncio.to_thread(instrumentation.shutdown)
    for agent in agents:
        await handle(agent, note())
    page = await scrape(instrumentation.metrics_url if monitor_leaves_first else monitor.metrics_url)
    assert [processed(page, agent) for agent in agents] == [(4, 4)] * 2
    await monitor.stop_collecting()
    await asyncio.to_thread(instrumentation.shutdown)
    assert [set(vars(agent)) for agent in agents] == [set(vars(Scripted()))] * 2


@in_loop
async def test_an_agent_that_one_of_two_lets_go_is_told_once_by_the_other(port: int) -> None:
    agent, monitor = Scripted(agent_id="a"), PerformanceMonitor(prometheus_port=port)
    monitor.add_agent(agent)
    instrumentation = instrument_agent(agent, config=Config(prometheus_port=port))
    await handle(agent, note())
    monitor.remove_agent("a")
    await handle(agent, note())
    assert processed(await scrape(monitor.metrics_url), agent) == (2, 2)
    monitor.add_agent(agent)
    await handle(agent, note())
    assert processed(await scrape(monitor.metrics_url), agent) == (3, 3)
    await asyncio.to_thread(instrumentation.shutdown)
    await monitor.stop_collecting()


# -- the process's monitor -----------------------------------------------------------------------------


def test_there_is_no_monitor_unless_one_is_made() -> None:
    assert get_monitor(create_if_none=False) is None
    assert get_monitor(False) is None
    monitor = get_monitor()
    assert isinstance(monitor, PerformanceMonitor)
    assert get_monitor(create_if_none=False) is monitor
    assert get_monitor(create_if_none=True, prometheus_port=1234) is monitor
    assert (monitor.prometheus_port, monitor.is_collecting) == (8000, False)


def test_the_monitor_is_made_with_the_settings_given() -> None:
    monitor = get_monitor(create_if_none=True, name="mine", prometheus_port=1234, include_system_metrics=False)
    assert (monitor.name, monitor.prometheus_port, monitor.include_system_metrics) == ("mine", 1234, False)


def test_monitors_of_ones_own_are_not_the_processs() -> None:
    PerformanceMonitor()
    assert get_monitor(create_if_none=False) is None


def test_all_threads_get_the_same_monitor() -> None:
    barrier, found = threading.Barrier(16), []

    def ask() -> None:
        barrier.wait(20)
        found.append(get_monitor())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 16
    assert len(set(found)) == 1


@in_loop
async def test_setup_makes_the_monitor_and_begins() -> None:
    monitor = await setup_performance_monitoring(prometheus_port=0, collection_interval_seconds=2, name="mine")
    assert get_monitor(create_if_none=False) is monitor
    assert (monitor.is_collecting, monitor.name, monitor.collection_interval_seconds) == (True, "mine", 2)
    assert machine_names(await scrape(monitor.metrics_url)) == MACHINE


@in_loop
async def test_setup_with_other_settings_while_collecting_keeps_the_former_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "amptalk_otel")
    monitor = await setup_performance_monitoring(prometheus_port=0)
    url = monitor.metrics_url
    assert await setup_performance_monitoring(prometheus_port=0) is monitor
    assert records(caplog) == []
    again = await setup_performance_monitoring(prometheus_port=1234, include_system_metrics=False)
    assert again is monitor
    assert (monitor.prometheus_port, monitor.include_system_metrics, monitor.metrics_url) == (0, True, url)
    assert records(caplog) == [
        "the process's monitor goes on with its former settings of prometheus_port, include_system_metrics"
    ]
    assert machine_names(await scrape(url)) == MACHINE


@pytest.mark.parametrize("began_before", [True, False])
@in_loop
async def test_setup_with_other_settings_while_not_collecting_takes_them_and_loses_nothing(
    began_before: bool, port: int
) -> None:
    monitor = get_monitor(prometheus_port=0)
    agent = Scripted(agent_id="a")
    if began_before:
        monitor.add_agent(agent)
        await monitor.stop_collecting()
    monitor.observe("program.answer", lambda: 42, per="process")
    again = await setup_performance_monitoring(prometheus_port=port, include_system_metrics=False, name="late")
    assert again is monitor  # whoever holds it, an agent for one, goes on with it
    assert get_monitor() is monitor
    assert (monitor.metrics_url, monitor.name) == (f"http://localhost:{port}/metrics", "late")
    monitor.add_agent(agent)
    await handle(agent, note())
    page = await scrape(monitor.metrics_url)
    assert processed(page, agent) == (1, 1)
    assert page.value("program_answer") == 42
    assert machine_names(page) == set()


# -- measure_execution_time ----------------------------------------------------------------------------


@contextmanager
def collecting(**settings: Any) -> Iterator[PerformanceMonitor]:
    monitor = PerformanceMonitor(prometheus_port=0, **settings)
    asyncio.run(monitor.start_collecting())
    try:
        yield monitor
    finally:
        asyncio.run(monitor.stop_collecting())


def measured(monitor: PerformanceMonitor, **labels: str) -> tuple[float | None, float | None]:
    page = scrape_now(monitor.metrics_url)
    return page.value(COUNT, **labels), page.value(SUM, **labels)


def test_a_block_is_measured(clock: Clock) -> None:
    with collecting() as monitor:
        for seconds in (0.25, 1.5):
            with monitor.measure_execution_time("a", "work"):
                clock.advance(seconds)
        assert measured(monitor, agent_id="a", operation_name="work") == (2, 1.75)
        page = scrape_now(monitor.metrics_url)
        assert page.value("amptalk_operation_duration_seconds_bucket", le="0.25") == 1
        assert page.value("amptalk_operation_duration_seconds_bucket", le="0.1") == 0
        assert page.labels(COUNT) == [{"agent_id": "a", "operation_name": "work"}]


@in_loop
async def test_a_block_with_awaits_is_measured_with_either_kind_of_with(clock: Clock) -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    agent = Scripted(agent_id="a", name="A")
    monitor.add_agent(agent)

    async def work() -> None:
        await asyncio.sleep(0)
        clock.advance(1.0)
        await asyncio.sleep(0)

    with monitor.measure_execution_time("a", "plain"):
        await work()
    async with monitor.measure_execution_time("a", "async"):
        await work()
        await work()
    page = await scrape(monitor.metrics_url)
    for operation, seconds in (("plain", 1.0), ("async", 2.0)):
        labels = {"agent_id": "a", "agent_name": "A", "operation_name": operation}
        assert (page.value(COUNT, **labels), page.value(SUM, **labels)) == (1, seconds)
    await monitor.stop_collecting()


def test_nested_blocks_are_measured_each_for_itself(clock: Clock) -> None:
    with collecting() as monitor:
        with monitor.measure_execution_time("a", "outer"):
            clock.advance(1.0)
            with monitor.measure_execution_time("a", "inner"):
                clock.advance(2.0)
                with monitor.measure_execution_time("a", "outer"):
                    clock.advance(4.0)
        assert measured(monitor, operation_name="outer") == (2, 11.0)
        assert measured(monitor, operation_name="inner") == (1, 6.0)


@in_loop
async def test_fifty_blocks_at_once_are_all_measured(clock: Clock) -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    await monitor.start_collecting()
    gates = [asyncio.Event() for _ in range(50)]

    async def one(index: int) -> None:
        async with monitor.measure_execution_time(f"agent-{index % 5}", "work"):
            await gates[index].wait()

    async def open_gates() -> None:
        for gate in gates:
            clock.advance(1.0)
            gate.set()
            await settle(3)

    await asyncio.gather(*(one(index) for index in range(50)), open_gates())
    page = await scrape(monitor.metrics_url)
    for number in range(5):
        labels = {"agent_id": f"agent-{number}", "operation_name": "work"}
        assert page.value(COUNT, **labels) == 10
        assert page.value(SUM, **labels) == sum(index + 1 for index in range(number, 50, 5))
    await monitor.stop_collecting()


@pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit()])
@in_loop
async def test_an_exception_passes_unchanged_and_its_block_is_measured(error: BaseException, clock: Clock) -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    await monitor.start_collecting()

    def plain() -> None:
        with monitor.measure_execution_time("a", "work"):
            clock.advance(0.5)
            raise error

    async def asynchronous() -> None:
        async with monitor.measure_execution_time("a", "work"):
            clock.advance(0.5)
            raise error

    for attempt in (plain, asynchronous):
        caught: BaseException | None = None
        try:
            result = attempt()
            if result is not None:
                await result
        except BaseException as passed:
            caught = passed
        assert caught is error
        assert caught.__cause__ is None
        assert caught.__context__ is None
    page = await scrape(monitor.metrics_url)
    assert (page.value(COUNT, operation_name="work"), page.value(SUM, operation_name="work")) == (2, 1.0)
    await monitor.stop_collecting()


def test_the_51st_operation_of_an_agent_is_other(clock: Clock) -> None:
    with collecting() as monitor:
        for number in range(60):
            with monitor.measure_execution_time("a", f"work-{number}"):
                clock.advance(1.0)
        with monitor.measure_execution_time("a", "work-0"), monitor.measure_execution_time("b", "work-59"):
            pass
        page = scrape_now(monitor.metrics_url)
        names = {labels["operation_name"] for labels in page.labels(COUNT) if labels["agent_id"] == "a"}
        assert names == {f"work-{number}" for number in range(50)} | {"_OTHER"}
        assert measured(monitor, agent_id="a", operation_name="_OTHER") == (10, 10.0)
        assert page.value(COUNT, agent_id="a", operation_name="work-0") == 2
        assert page.value(COUNT, agent_id="b", operation_name="work-59") == 1


def test_threads_measure_at_once_and_none_is_lost() -> None:
    with collecting() as monitor:

        def work() -> None:
            for _ in range(200):
                with monitor.measure_execution_time("a", "work"):
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert measured(monitor, operation_name="work")[0] == 1600


class Unspeakable:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.usefixtures("lenient_guard")
def test_ids_and_names_that_are_no_text_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as monitor:
        strange: Any
        for strange in (None, 7, ""):
            with monitor.measure_execution_time(strange, strange):
                pass
        assert records(caplog) == []
        bad = monitor.measure_execution_time("a", Unspeakable())  # type: ignore[arg-type]
        with pytest.raises(KeyError, match="the block's own"), bad:
            raise KeyError("the block's own")
        with monitor.measure_execution_time(Unspeakable(), "b"):  # type: ignore[arg-type]
            pass
        monitor.remove_agent(Unspeakable())  # type: ignore[arg-type]
        found = {
            (labels["agent_id"], labels["operation_name"]) for labels in scrape_now(monitor.metrics_url).labels(COUNT)
        }
        assert found == {("None", "None"), ("7", "7"), ("_OTHER", "_OTHER")}
        assert len(records(caplog)) == 2  # one for each place, whatever the number


def test_a_monitor_that_does_not_collect_measures_nothing_and_harms_nobody() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    with monitor.measure_execution_time("a", "before"):
        pass
    assert not monitor.is_collecting
    asyncio.run(monitor.start_collecting())
    assert scrape_now(monitor.metrics_url).names("amptalk_operation") == set()
    asyncio.run(monitor.stop_collecting())


def test_the_frameworks_own_measuring_records_to_nothing() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    monitor.agent_processing_time.record(1.5, {"agent_id": "a"})
    monitor.agent_processing_time.record(1.5, attributes={"agent_id": "a"})
    assert not monitor.is_collecting


def test_a_failing_beginning_harms_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_config: Config) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_pipeline, "acquire", fail)
    former = _guard.set_strict(strict=False)
    try:
        monitor, agent = PerformanceMonitor(), Scripted()
        asyncio.run(monitor.start_collecting())
        monitor.add_agent(agent)
        asyncio.run(handle(agent, note()))
        assert len(agent.seen) == 1
        assert not monitor.is_collecting
        assert len(records(caplog)) == 2
    finally:
        _guard.set_strict(strict=former)
