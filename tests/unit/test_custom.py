"""Metrics that a program defines itself: how they look on the page, and what they can't spoil."""

from __future__ import annotations

import asyncio
import enum
import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.exporter.prometheus._mapping import map_unit

from amptalk_otel import Config, PerformanceMonitor, instrument_orchestrator
from amptalk_otel._catalogue import CATALOGUE
from amptalk_otel._custom import _number, names_on_page
from amptalk_otel.demo.runtime import Orchestrator
from tests.page import Page, free_port, no_global_monitor, scrape, scrape_now
from tests.support import Scripted, handle, in_loop, note


class Gauge(enum.IntEnum):
    """Numbers with names."""

    LOW = 3


class Fraction(float):
    """A kind of float, as numpy has."""


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    with no_global_monitor():
        yield


@pytest.fixture
def port() -> Iterator[int]:
    with free_port() as port:
        yield port


@pytest.fixture
def monitor() -> Iterator[PerformanceMonitor]:
    """Collects."""
    monitor = PerformanceMonitor(prometheus_port=0)
    asyncio.run(monitor.start_collecting())
    yield monitor
    asyncio.run(monitor.stop_collecting())


def page_of(monitor: PerformanceMonitor) -> Page:
    return scrape_now(monitor.metrics_url)


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Everything that was logged, whoever logged it."""
    return [record.getMessage() for record in caplog.records]


# -- on the page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "unit", "name", "told_as"),
    [
        ("gauge", "", "program_backlog", "gauge"),
        ("gauge", "{document}", "program_backlog", "gauge"),
        ("gauge", "1", "program_backlog", "gauge"),
        ("gauge", "s", "program_backlog_seconds", "gauge"),
        ("gauge", "ms", "program_backlog_milliseconds", "gauge"),
        ("gauge", "%", "program_backlog_percent", "gauge"),
        ("up_down_counter", "By", "program_backlog_bytes", "gauge"),
        ("counter", "", "program_backlog_total", "counter"),
        ("counter", "s", "program_backlog_seconds_total", "counter"),
        ("counter", "{document}/s", "program_backlog_per_second_total", "counter"),
    ],
)
def test_a_metric_has_its_kind_and_unit(
    kind: str, unit: str, name: str, told_as: str, monitor: PerformanceMonitor
) -> None:
    monitor.observe("program.backlog", lambda: 5, unit=unit, description="What waits.", kind=kind, per="process")
    page = page_of(monitor)
    assert page.value(name) == 5
    assert page.labels(name) == [{}]
    assert page.types[name] == told_as
    assert f"# HELP {name} What waits.\n" in page.text


def test_a_metric_per_agent_has_the_agents_attributes(monitor: PerformanceMonitor) -> None:
    agents = [Scripted(agent_id=name, name=name.upper()) for name in ("a", "b")]
    for agent in agents:
        monitor.add_agent(agent)
        agent.state["documents"] = ord(agent.agent_id)
    monitor.observe("program.documents", lambda agent: agent.state["documents"], unit="{document}")
    page = page_of(monitor)
    assert {tuple(labels.items()) for labels in page.labels("program_documents")} == {
        (("agent_id", "a"), ("agent_name", "A")),
        (("agent_id", "b"), ("agent_name", "B")),
    }
    assert [page.value("program_documents", agent_id=name) for name in ("a", "b")] == [97, 98]
    monitor.remove_agent("a")
    agents[1].state["documents"] = 5
    page = page_of(monitor)
    assert [page.value("program_documents", agent_id=name) for name in ("a", "b")] == [None, 5]


def test_read_is_called_when_somebody_asks_and_not_before(monitor: PerformanceMonitor) -> None:
    calls: list[str] = []

    def read() -> int:
        calls.append(threading.current_thread().name)
        return len(calls)

    monitor.observe("program.calls", read, per="process")
    assert calls == []
    assert page_of(monitor).value("program_calls") == 1
    assert page_of(monitor).value("program_calls") == 2
    assert threading.current_thread().name not in calls


def test_a_description_of_any_text_leaves_the_page_intact(monitor: PerformanceMonitor) -> None:
    monitor.observe("program.odd", lambda: 1, description='line\nline "quoted" \\ ünïcode \ud800', per="process")
    page = page_of(monitor)
    assert page.value("program_odd") == 1
    assert '# HELP program_odd line line "quoted" \\\\ ünïcode ?\n' in page.text


def test_the_meter_is_for_everything_else(monitor: PerformanceMonitor) -> None:
    documents = monitor.meter.create_counter("program.documents", "{document}", "Documents read.")
    sizes = monitor.meter.create_histogram("program.size", "By")
    documents.add(3, {"language": "de"})
    documents.add(4, {"language": "de"})
    sizes.record(100)
    page = page_of(monitor)
    assert page.value("program_documents_total", language="de") == 7
    assert page.value("program_size_bytes_sum") == 100


@in_loop
async def test_the_meter_begins_to_collect_and_is_another_after_a_stop() -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    monitor.meter.create_counter("program.documents").add(1)
    assert monitor.is_collecting
    assert (await scrape(monitor.metrics_url)).value("program_documents_total") == 1
    await monitor.stop_collecting()
    monitor.meter.create_counter("program.documents").add(5)
    assert (await scrape(monitor.metrics_url)).value("program_documents_total") == 5
    await monitor.stop_collecting()


# -- over time -----------------------------------------------------------------------------------------


@in_loop
async def test_a_definition_holds_from_before_the_start_and_over_stops(port: int) -> None:
    monitor = PerformanceMonitor(prometheus_port=port)
    monitor.observe("program.early", lambda: 1, per="process")
    assert not monitor.is_collecting
    for _ in range(3):
        await monitor.start_collecting()
        page = await scrape(monitor.metrics_url)
        assert page.value("program_early") == 1
        await monitor.stop_collecting()
    monitor.observe("program.late", lambda: 2, per="process")
    await monitor.start_collecting()
    page = await scrape(monitor.metrics_url)
    assert (page.value("program_early"), page.value("program_late")) == (1, 2)
    await monitor.stop_collecting()


@in_loop
async def test_on_a_page_that_goes_on_definitions_go_and_come_with_the_monitor(port: int) -> None:
    orchestrator = Orchestrator()
    instrumentation = instrument_orchestrator(orchestrator, config=Config(prometheus_port=port))
    monitor = PerformanceMonitor(prometheus_port=port)
    monitor.observe("program.answer", lambda: 42, per="process")
    for _ in range(3):
        await monitor.start_collecting()
        assert (await scrape(instrumentation.metrics_url)).value("program_answer") == 42
        await monitor.stop_collecting()
        assert (await scrape(instrumentation.metrics_url)).names("program") == set()
    other = PerformanceMonitor(prometheus_port=port)  # of the same name: another read under the same definition
    other.observe("program.answer", lambda: 43, per="process")
    await other.start_collecting()
    assert (await scrape(instrumentation.metrics_url)).value("program_answer") == 43
    await other.stop_collecting()
    again = PerformanceMonitor(prometheus_port=port)  # and another definition, now that nobody has the former
    again.observe("program.answer", lambda: 44, per="process", unit="s")
    await again.start_collecting()
    page = await scrape(instrumentation.metrics_url)
    assert (page.value("program_answer_seconds"), page.value("program_answer")) == (44, None)
    await again.stop_collecting()
    await asyncio.to_thread(instrumentation.shutdown)


@pytest.mark.parametrize("kind", ["gauge", "counter", "up_down_counter"])
@pytest.mark.parametrize("names", [("same", "same"), ("one", "two")])
@in_loop
async def test_monitors_of_one_page_may_share_a_definition(names: tuple[str, str], kind: str, port: int) -> None:
    monitors = [PerformanceMonitor(name=name, prometheus_port=port) for name in names]
    alone, shared, other = (Scripted(agent_id=name) for name in ("alone", "shared", "other"))
    for monitor, agents in zip(monitors, ((alone, shared), (shared, other)), strict=True):
        monitor.observe("program.seen", lambda agent: len(agent.seen), kind=kind)
        for agent in agents:
            monitor.add_agent(agent)
    for number, agent in enumerate((alone, shared, other), 1):
        await handle(agent, *(note() for _ in range(number)))

    async def seen() -> list[float | None]:
        page, name = (
            await scrape(monitors[1].metrics_url),
            "program_seen_total" if kind == "counter" else "program_seen",
        )
        return [page.value(name, agent_id=agent_id) for agent_id in ("alone", "shared", "other")]

    assert await seen() == [1, 2, 3]
    await monitors[0].stop_collecting()
    assert await seen() == [None, 2, 3]
    await monitors[1].stop_collecting()


@in_loop
async def test_monitors_of_one_page_that_define_a_name_otherwise_do_not_spoil_it(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (PerformanceMonitor(name=name, prometheus_port=port) for name in ("one", "two"))
    first.observe("program.load", lambda: 1, per="process")
    second.observe("program.load", lambda: 2, per="process", kind="counter")
    await first.start_collecting()
    await second.start_collecting()
    page = await scrape(first.metrics_url)
    assert page.value("program_load") == 1
    assert page.names("program_") == {"program_load"}
    assert records(caplog) == ["metric program.load is left out: another monitor on the same page defines it otherwise"]
    third = PerformanceMonitor(prometheus_port=port)
    await third.start_collecting()
    with pytest.raises(ValueError, match="is taken by another definition"):
        third.observe("program.load", lambda: 3, per="process", unit="s")
    for monitor in (first, second, third):
        await monitor.stop_collecting()


def test_defining_while_the_page_is_read_ends(monitor: PerformanceMonitor) -> None:
    """The SDK holds a lock while it reads, and takes the same one to make an instrument."""
    monitor.add_agent(agent := Scripted())
    defining = threading.Thread(
        target=monitor.observe, args=("program.third", lambda _agent: 3), name="defines", daemon=True
    )

    def read_meanwhile() -> int:
        if not defining.ident:
            defining.start()
            wait_until_locked(monitor._lock)
        return 1

    monitor.observe("program.first", read_meanwhile, per="process")
    monitor.observe("program.second", lambda _agent: 2)
    page: list[Page] = []
    reading = threading.Thread(target=lambda: page.append(page_of(monitor)), name="reads", daemon=True)
    reading.start()
    reading.join(20)
    defining.join(20)
    assert not reading.is_alive()
    assert not defining.is_alive()
    assert (page[0].value("program_first"), page[0].value("program_second")) == (1, 2)
    assert page_of(monitor).value("program_third", agent_id=agent.agent_id) == 3


def wait_until_locked(lock: Any) -> None:
    """Until another thread has `lock`, or for five seconds."""
    pause = threading.Event()
    for _ in range(500):
        if not lock.acquire(blocking=False):
            return
        lock.release()
        pause.wait(0.01)
    raise AssertionError("nobody took the lock")


# -- values --------------------------------------------------------------------------------------------


def fail() -> None:
    raise RuntimeError("secret")


class Rude(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def fail_rudely() -> None:
    raise Rude


@pytest.mark.parametrize(
    ("read", "kind", "told"),
    [
        (fail, "gauge", "metric program.bad: read raised RuntimeError"),
        (fail_rudely, "gauge", "metric program.bad: read raised Rude"),
        (lambda _too_many: 1, "gauge", "metric program.bad: read raised TypeError"),
        (lambda: "text", "gauge", "metric program.bad: read returned no finite number (str)"),
        (lambda: "5", "gauge", "metric program.bad: read returned no finite number (str)"),
        (lambda: float("nan"), "gauge", "metric program.bad: read returned no finite number (float)"),
        (lambda: float("inf"), "gauge", "metric program.bad: read returned no finite number (float)"),
        (lambda: float("-inf"), "gauge", "metric program.bad: read returned no finite number (float)"),
        (lambda: 10**400, "gauge", "metric program.bad: read returned no finite number (int)"),
        (lambda: -(10**400), "gauge", "metric program.bad: read returned no finite number (int)"),
        (lambda: 1j, "gauge", "metric program.bad: read returned no finite number (complex)"),
        (lambda: Decimal(1), "gauge", "metric program.bad: read returned no finite number (Decimal)"),
        (lambda: [1], "gauge", "metric program.bad: read returned no finite number (list)"),
        (lambda: object(), "gauge", "metric program.bad: read returned no finite number (object)"),  # noqa: PLW0108
        (lambda: -1, "counter", "metric program.bad: read returned no number from 0 on (int)"),
    ],
)
def test_nonsense_costs_one_log_record_and_its_own_value(
    read: Callable[..., Any], kind: str, told: str, monitor: PerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.observe("program.good", lambda: 1, per="process")
    reference = page_of(monitor).names("")
    monitor.observe("program.bad", read, per="process", kind=kind)
    monitor.observe("program.later", lambda: 2, per="process")
    for _ in range(3):
        page = page_of(monitor)
        assert page.names("program_") == {"program_good", "program_later"}
        assert (page.value("program_good"), page.value("program_later")) == (1, 2)
        assert page.names("") >= reference - {"system_cpu_utilization", "process_cpu_utilization"}
    assert records(caplog) == [told]


def test_nonsense_of_one_agent_costs_the_others_nothing(
    monitor: PerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, Any] = {"a": 1, "b": "nonsense", "c": None, "d": 10**400, "e": 5}
    agents = [Scripted(agent_id=name) for name in (*values, "f")]
    for agent in agents:
        monitor.add_agent(agent)
    monitor.observe("program.value", lambda agent: values[agent.agent_id])
    page = page_of(monitor)
    assert {labels["agent_id"] for labels in page.labels("program_value")} == {"a", "e"}
    assert (page.value("program_value", agent_id="a"), page.value("program_value", agent_id="e")) == (1, 5)
    assert len(records(caplog)) == 1
    values.update(b=2, c=3, d=4, f=6)
    page = page_of(monitor)
    assert [page.value("program_value", agent_id=name) for name in "abcdef"] == [1, 2, 3, 4, 5, 6]


class Nameless(Scripted):
    """Can't tell its name once it was told not to."""

    secret = False

    def __getattribute__(self, attribute: str) -> Any:
        if attribute == "name" and object.__getattribute__(self, "secret"):
            raise RuntimeError("no")
        return super().__getattribute__(attribute)


def test_an_agent_that_cannot_tell_its_name_any_more_is_told_by_the_former(
    monitor: PerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    agents = [Scripted(agent_id="a"), Nameless(agent_id="b")]
    for agent in agents:
        monitor.add_agent(agent)
    monitor.observe("program.value", lambda _agent: 1)
    Nameless.secret = True
    try:
        page = page_of(monitor)
    finally:
        Nameless.secret = False
    assert [labels["agent_id"] for labels in page.labels("program_value")] == ["a", "b"]
    assert records(caplog) == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, 0),
        (-7, -7),
        (0.5, 0.5),
        (1e308, 1e308),
        (True, 1),
        (False, 0),
        (2**63 - 1, 2.0**63),
        (2**70, 2.0**70),
        (-(2**63), -(2.0**63)),
        (Gauge.LOW, 3),
        (Fraction(0.25), 0.25),
    ],
)
def test_numbers_of_all_kinds_arrive(
    value: Any, told: float, monitor: PerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.observe("program.value", lambda: value, per="process")
    assert page_of(monitor).value("program_value") == told
    assert records(caplog) == []


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**70])
def test_integers_that_otlp_cannot_carry_become_floats(value: int) -> None:
    """One of them would make the push of all metrics fail."""
    assert isinstance(_number(value), float)
    assert _number(value) == float(value)
    assert isinstance(_number(2**63 - 1), int)


def test_none_is_no_value_and_no_complaint(monitor: PerformanceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    values: list[Any] = [None]
    monitor.observe("program.value", lambda: values[0], per="process")
    assert page_of(monitor).names("program_") == set()
    values[0] = 3
    assert page_of(monitor).value("program_value") == 3
    values[0] = None
    assert page_of(monitor).names("program_") == set()
    assert records(caplog) == []


# -- definitions that are refused ----------------------------------------------------------------------


def refused(match: str, *arguments: Any, **settings: Any) -> None:
    """Before and while it collects; a refused definition leaves no trace."""
    for collects in (False, True):
        monitor = PerformanceMonitor(prometheus_port=0)
        if collects:
            asyncio.run(monitor.start_collecting())
        with pytest.raises(ValueError, match=re.escape(match)) as caught:
            monitor.observe(*arguments, **settings)
        assert "\n" not in str(caught.value)
        assert monitor._custom._definitions == {}
        asyncio.run(monitor.stop_collecting())


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("amptalk.agent.queue.size", ""),
        ("amptalk_agent_queue_size", ""),
        ("AMPTALK.AGENT.QUEUE.SIZE", ""),
        ("amptalk/agent-queue.size", ""),
        ("amptalk.agent.queue.size", "{message}"),
        ("amptalk.agent.queue.size", "s"),
        ("amptalk.agent.messages.received", ""),
        ("amptalk_agent_messages_received_total", ""),
        ("amptalk.agent.uptime", "s"),
        ("amptalk_agent_uptime_seconds", ""),
        ("amptalk.agent.uptime.seconds", "s"),
        ("process.memory.usage", "By"),
        ("process_memory_usage_bytes", ""),
        ("system.cpu.utilization", "1"),
        ("system_cpu_utilization_ratio", ""),
        ("amptalk_agent_message_wait_duration_seconds_count", ""),
        ("amptalk.agent.message.wait.duration.seconds", "bucket"),
        ("amptalk_agent_message_size_bytes_sum", ""),
        ("amptalk_agent_message_size_bytes_bucket", ""),
        ("target_info", ""),
        ("target.info", ""),
        ("target", "info"),
    ],
)
def test_names_of_the_catalogue_are_refused_in_each_of_their_forms(name: str, unit: str) -> None:
    refused(f"the metric name {name!r} is taken by the catalogue", name, lambda: 1, per="process", unit=unit)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_every_name_of_the_catalogue_is_refused(metric: Any) -> None:
    monitor = PerformanceMonitor(prometheus_port=0)
    for name in (metric.name, metric.name.replace(".", "_"), metric.name.upper()):
        for unit in ("", metric.unit, "ms"):
            with pytest.raises(ValueError, match="is taken by the catalogue"):
                monitor.observe(name, lambda: 1, per="process", unit=unit)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("program.load", "", "gauge"), ("program.load", "", "gauge")),
        (("program.load", "", "gauge"), ("Program.Load", "", "gauge")),
        (("program.load", "", "gauge"), ("program_load", "", "gauge")),
        (("program.load", "", "gauge"), ("program.load", "s", "gauge")),
        (("program.load", "s", "gauge"), ("program.load.seconds", "", "gauge")),
        (("program.load", "ms", "gauge"), ("program.load.milliseconds", "", "gauge")),
        (("program.load", "watts", "gauge"), ("program.load.watts", "", "gauge")),
        (("program.load", "By/s", "gauge"), ("program.load.bytes.per.second", "", "gauge")),
        (("program.load", "", "counter"), ("program.load.total", "", "gauge")),
        (("program.load", "", "counter"), ("program.load", "", "up_down_counter")),
        (("program.load", "1", "gauge"), ("program.load.ratio", "", "gauge")),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_names_that_would_meet_on_the_page_are_refused(
    first: tuple[str, str, str], second: tuple[str, str, str], turned: bool, monitor: PerformanceMonitor
) -> None:
    (name, unit, kind), (other, other_unit, other_kind) = (second, first) if turned else (first, second)
    monitor.observe(name, lambda: 1, unit=unit, kind=kind, per="process")
    with pytest.raises(ValueError, match=f"^the metric name '{other}' is taken by another definition$"):
        monitor.observe(other, lambda: 2, unit=other_unit, kind=other_kind, per="process")
    assert [page_of(monitor).value(found) for found in page_of(monitor).names("program_load")] == [1]


def test_names_that_differ_by_more_are_not_refused(monitor: PerformanceMonitor) -> None:
    defined = (("program.load", ""), ("program.load.size", "By"), ("program.load.time", "s"), ("program.loads", "1"))
    for number, (name, unit) in enumerate((*defined, ("program.load.seconds.left", ""), ("targets", ""))):
        monitor.observe(name, lambda number=number: number, unit=unit, per="process")
    assert page_of(monitor).names("program") | page_of(monitor).names("targets") == {
        "program_load", "program_load_size_bytes", "program_load_time_seconds", "program_loads",
        "program_load_seconds_left", "targets",
    }  # fmt: skip


@pytest.mark.parametrize(
    "unit", ["", "1", "s", "ms", "By", "MiBy", "%", "Hz", "W", "By/s", "{x}", "{x}/s", "m/s", "odd u"]
)
def test_our_names_are_the_exporters(unit: str) -> None:
    word = map_unit(unit)
    assert (f"program_load_{word}" if word else "program_load") in names_on_page("program.load", unit)


@pytest.mark.parametrize("name", ["", "1st", "_x", "a b", "ä", "a" * 256, "a\n", "a:b", "a%", None, 5])
def test_what_is_no_metric_name_is_refused(name: Any) -> None:
    refused(f"{name!r} is no metric name: a letter", name, lambda: 1, per="process")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "histogram"}, "kind='histogram': must be one of gauge, counter, up_down_counter"),
        ({"kind": None}, "kind=None: must be one of"),
        ({"per": "orchestrator"}, "per='orchestrator': must be one of agent, process"),
        ({"per": ""}, "per='': must be one of"),
        ({"unit": "°C"}, "unit='°C': must be an ASCII text of at most 63 characters"),
        ({"unit": "s" * 64}, "must be an ASCII text of at most 63 characters"),
        ({"unit": None}, "unit=None: must be an ASCII text"),
        ({"description": None}, "description=None: must be a text"),
        ({"read": 5}, "read must be a plain function"),
        ({"read": asyncio.sleep}, "read must be a plain function"),
    ],
)
def test_what_can_not_be_used_is_refused(settings: dict[str, Any], told: str) -> None:
    arguments: dict[str, Any] = {"read": lambda: 1, **settings}
    refused(told, "program.value", **arguments)


def test_the_longest_name_and_unit_are_taken(monitor: PerformanceMonitor) -> None:
    monitor.observe("a" * 255, lambda: 1, per="process", unit="b" * 63)
    assert page_of(monitor).value("a" * 255 + "_" + "b" * 63) == 1
