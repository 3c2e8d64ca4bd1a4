"""The table of metrics, against the public interface written out by hand."""

from __future__ import annotations

import re
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from amptalk_otel._bridge import _create
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Distribution
from amptalk_otel._catalogue import BY_NAME, CATALOGUE, Kind, Metric, Owner, Snapshot, samples
from amptalk_otel._system import System
from amptalk_otel._timesheet import TimeReading

# name, kind, unit, attributes beyond the owner's
INTERFACE = """
system.cpu.utilization                      | gauge         | 1         |
system.memory.utilization                   | gauge         | 1         |
system.memory.linux.available               | updowncounter | By        |
process.cpu.utilization                     | gauge         | 1         |
process.memory.usage                        | updowncounter | By        |
process.memory.virtual                      | updowncounter | By        |
process.uptime                              | gauge         | s         |
amptalk.agent.running                       | updowncounter | {agent}   |
amptalk.agent.uptime                        | gauge         | s         |
amptalk.agent.time                          | counter       | s         | state
amptalk.agent.queue.size                    | updowncounter | {message} |
amptalk.agent.queue.peak                    | gauge         | {message} |
amptalk.agent.queue.oldest_age              | gauge         | s         |
amptalk.agent.messages.in_flight            | updowncounter | {message} |
amptalk.agent.messages.unaccounted          | updowncounter | {message} |
amptalk.agent.messages.received             | counter       | {message} | message.type
amptalk.agent.messages.processed            | counter       | {message} | message.type
amptalk.agent.messages.sent                 | counter       | {message} | message.type
amptalk.agent.messages.failed               | counter       | {message} | message.type error.type
amptalk.agent.messages.dropped              | counter       | {message} | message.type reason
amptalk.agent.messages.undeliverable        | counter       | {message} | message.type reason
amptalk.agent.retries                       | counter       | {retry}   | message.type error.type
amptalk.agent.message.wait.duration         | histogram     | s         | message.type
amptalk.agent.message.process.duration      | histogram     | s         | message.type
amptalk.agent.message.size                  | histogram     | By        | message.type
amptalk.orchestrator.agents                 | updowncounter | {agent}   | agent.state
amptalk.orchestrator.messages.routed        | counter       | {message} | message.type
amptalk.orchestrator.messages.undeliverable | counter       | {message} | message.type reason
amptalk.state.size                          | updowncounter | By        | state.storage
amptalk.state.items                         | updowncounter | {item}    | state.storage
amptalk.state.operation.duration            | histogram     | s         | state.storage state.operation error.type
amptalk.operation.duration                  | histogram     | s         | operation.name
"""

# name and type on the page
PROMETHEUS = """
system_cpu_utilization                                       gauge
system_memory_utilization                                    gauge
system_memory_linux_available_bytes                          gauge
process_cpu_utilization                                      gauge
process_memory_usage_bytes                                   gauge
process_memory_virtual_bytes                                 gauge
process_uptime_seconds                                       gauge
amptalk_agent_running                                        gauge
amptalk_agent_uptime_seconds                                 gauge
amptalk_agent_time_seconds_total                             counter
amptalk_agent_queue_size                                     gauge
amptalk_agent_queue_peak                                     gauge
amptalk_agent_queue_oldest_age_seconds                       gauge
amptalk_agent_messages_in_flight                             gauge
amptalk_agent_messages_unaccounted                           gauge
amptalk_agent_messages_received_total                        counter
amptalk_agent_messages_processed_total                       counter
amptalk_agent_messages_sent_total                            counter
amptalk_agent_messages_failed_total                          counter
amptalk_agent_messages_dropped_total                         counter
amptalk_agent_messages_undeliverable_total                   counter
amptalk_agent_retries_total                                  counter
amptalk_agent_message_wait_duration_seconds                  histogram
amptalk_agent_message_process_duration_seconds               histogram
amptalk_agent_message_size_bytes                             histogram
amptalk_orchestrator_agents                                  gauge
amptalk_orchestrator_messages_routed_total                   counter
amptalk_orchestrator_messages_undeliverable_total            counter
amptalk_state_size_bytes                                     gauge
amptalk_state_items                                          gauge
amptalk_state_operation_duration_seconds                     histogram
amptalk_operation_duration_seconds                           histogram
"""

each_metric = pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)


# -- names, units, kinds, attributes -------------------------------------------------------------------


def test_the_catalogue_is_the_public_interface_in_this_order() -> None:
    table = [[metric.name, metric.kind.value, metric.unit, " ".join(metric.attributes)] for metric in CATALOGUE]
    assert table == [[cell.strip() for cell in line.split("|")] for line in INTERFACE.strip().splitlines()]


def test_rows_are_found_by_name() -> None:
    assert dict(BY_NAME) == {metric.name: metric for metric in CATALOGUE}
    assert len(BY_NAME) == len(CATALOGUE)


def test_the_names_on_the_prometheus_page() -> None:
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False, disable_target_info=True)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    for metric in CATALOGUE:
        instrument = _create(meter, metric, lambda _options: [Observation(1)])
        if metric.kind is Kind.HISTOGRAM:
            instrument.record(1)
    page = generate_latest(registry).decode()
    provider.shutdown()
    found = [line.split()[2:] for line in page.splitlines() if line.startswith("# TYPE ")]
    assert sorted(found) == sorted(line.split() for line in PROMETHEUS.strip().splitlines())


@each_metric
def test_names_follow_the_naming_rules(metric: Metric) -> None:
    assert re.fullmatch(r"(system|process|amptalk)(\.[a-z]+(_[a-z]+)*)+", metric.name)
    words = re.split(r"[._]", metric.name)
    units = {
        "seconds",
        "second",
        "ms",
        "milliseconds",
        "bytes",
        "byte",
        "ratio",
        "percent",
        "total",
        "count",
        "s",
        "by",
    }
    assert units.isdisjoint(words)
    assert metric.unit in {"1", "s", "By", "{message}", "{agent}", "{retry}", "{item}"}


@each_metric
def test_attributes_follow_the_naming_rules(metric: Metric) -> None:
    for attribute in metric.attributes:
        assert re.fullmatch(r"[a-z]+(\.[a-z]+)*", attribute)
    assert len(set(metric.attributes)) == len(metric.attributes)


@each_metric
def test_descriptions_are_sentences_of_one_line(metric: Metric) -> None:
    assert re.fullmatch(r"[A-Z0-9][^\n]*\.", metric.description)
    assert metric.name not in metric.description
    assert metric.description not in {other.description for other in CATALOGUE if other is not metric}


# -- buckets -------------------------------------------------------------------------------------------


@each_metric
def test_histograms_and_only_they_have_bounds_by_their_unit(metric: Metric) -> None:
    expected = {"s": DURATION_BOUNDS_S, "By": SIZE_BOUNDS_BYTES}[metric.unit] if metric.kind is Kind.HISTOGRAM else None
    assert metric.bounds is expected


def test_durations_reach_from_half_a_millisecond_to_ten_minutes() -> None:
    assert (DURATION_BOUNDS_S[0], DURATION_BOUNDS_S[-1]) == (0.0005, 600.0)


@pytest.mark.parametrize("bounds", [DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES])
def test_bounds_ascend_and_no_bucket_is_wider_than_four_times_its_beginning(bounds: tuple[float, ...]) -> None:
    assert all(lower < upper <= 4.0 * lower for lower, upper in pairwise(bounds))
    assert all(isinstance(bound, float) for bound in bounds)


# -- what is read from what ----------------------------------------------------------------------------


def some(number: int, bounds: tuple[float, ...] = DURATION_BOUNDS_S) -> Distribution:
    """A distribution of `number` values in its first bucket."""
    return Distribution(bounds, (number, *(0 for _ in bounds)), float(number))


NOTHING = some(0)


def message_type(name: str, **counts: Any) -> SimpleNamespace:
    unseen: dict[str, Any] = {
        "received": 0, "processed": 0, "sent": 0, "failed": {}, "dropped": {}, "undeliverable": {}, "retries": {},
        "wait": NOTHING, "process": NOTHING, "size": NOTHING,
    }  # fmt: skip
    return SimpleNamespace(message_type=name, **{**unseen, **counts})


STATE = SimpleNamespace(
    storage="memory",
    size_bytes=70,
    items=0,
    durations={("read", None): some(1), ("read", "OSError"): some(2), ("write", None): some(3)},
)
LONELY_STATE = SimpleNamespace(storage="file", size_bytes=None, items=None, durations={})
AGENT = SimpleNamespace(
    agent_id="a1",
    agent_name="Worker",
    orchestrator_name="meeting",
    running=True,
    uptime_s=12.5,
    time=TimeReading(7_000_000_000, 5_000_000_000, 500_000_000, 250_000_000),
    queue_size=3,
    queue_peak=8,
    oldest_age_s=0.25,
    in_flight=1,
    unaccounted=2,
    types=(
        message_type(
            "text_input",
            received=9, processed=4, sent=2,
            failed={"ValueError": 1, "OSError": 2}, dropped={"cancelled": 1}, undeliverable={"expired": 5},
            retries={"OSError": 6}, wait=some(8), process=some(7), size=some(1, SIZE_BOUNDS_BYTES),
        ),
        message_type("status_request", sent=11),
    ),
    states=(STATE,),
)  # fmt: skip
IDLE_AGENT = SimpleNamespace(
    agent_id="a2", agent_name="Idle", orchestrator_name=None, running=False, uptime_s=0.0, queue_size=0,
    time=TimeReading(), queue_peak=0, oldest_age_s=None, in_flight=0, unaccounted=0, types=(), states=(),
)  # fmt: skip
ORCHESTRATOR = SimpleNamespace(
    name="meeting", running=2, stopped=1, routed={"text_input": 4}, undeliverable={("text_input", "unknown_target"): 1}
)
OPERATIONS = (
    SimpleNamespace(key=("a1", "Worker", "summarise"), duration=some(2)),
    SimpleNamespace(key=("a3", None, "load"), duration=some(1)),
)

WORKER = {"agent.id": "a1", "agent.name": "Worker", "orchestrator.name": "meeting"}
IDLE = {"agent.id": "a2", "agent.name": "Idle"}
TEXT = {**WORKER, "message.type": "text_input"}
STATUS = {**WORKER, "message.type": "status_request"}
MEETING = {"orchestrator.name": "meeting"}
IN_MEMORY = {**WORKER, "state.storage": "memory"}

EXPECTED: dict[str, list[tuple[dict[str, str], Any]]] = {
    "amptalk.agent.running": [(WORKER, 1), (IDLE, 0)],
    "amptalk.agent.uptime": [(WORKER, 12.5), (IDLE, 0.0)],
    "amptalk.agent.time": [
        ({**WORKER, "state": "idle"}, 7.0),
        ({**WORKER, "state": "busy"}, 5.0),
        ({**WORKER, "state": "retry_backoff"}, 0.5),
        ({**WORKER, "state": "blocked_sending"}, 0.25),
        ({**IDLE, "state": "idle"}, 0.0),
        ({**IDLE, "state": "busy"}, 0.0),
        ({**IDLE, "state": "retry_backoff"}, 0.0),
        ({**IDLE, "state": "blocked_sending"}, 0.0),
    ],
    "amptalk.agent.queue.size": [(WORKER, 3), (IDLE, 0)],
    "amptalk.agent.queue.peak": [(WORKER, 8), (IDLE, 0)],
    "amptalk.agent.queue.oldest_age": [(WORKER, 0.25), (IDLE, 0.0)],
    "amptalk.agent.messages.in_flight": [(WORKER, 1), (IDLE, 0)],
    "amptalk.agent.messages.unaccounted": [(WORKER, 2), (IDLE, 0)],
    "amptalk.agent.messages.received": [(TEXT, 9)],
    "amptalk.agent.messages.processed": [(TEXT, 4)],
    "amptalk.agent.messages.sent": [(TEXT, 2), (STATUS, 11)],
    "amptalk.agent.messages.failed": [
        ({**TEXT, "error.type": "ValueError"}, 1),
        ({**TEXT, "error.type": "OSError"}, 2),
    ],
    "amptalk.agent.messages.dropped": [({**TEXT, "reason": "cancelled"}, 1)],
    "amptalk.agent.messages.undeliverable": [({**TEXT, "reason": "expired"}, 5)],
    "amptalk.agent.retries": [({**TEXT, "error.type": "OSError"}, 6)],
    "amptalk.agent.message.wait.duration": [(TEXT, some(8))],
    "amptalk.agent.message.process.duration": [(TEXT, some(7))],
    "amptalk.agent.message.size": [(TEXT, some(1, SIZE_BOUNDS_BYTES))],
    "amptalk.orchestrator.agents": [
        ({**MEETING, "agent.state": "running"}, 2),
        ({**MEETING, "agent.state": "stopped"}, 1),
    ],
    "amptalk.orchestrator.messages.routed": [({**MEETING, "message.type": "text_input"}, 4)],
    "amptalk.orchestrator.messages.undeliverable": [
        ({**MEETING, "message.type": "text_input", "reason": "unknown_target"}, 1)
    ],
    "amptalk.state.size": [(IN_MEMORY, 70)],
    "amptalk.state.items": [(IN_MEMORY, 0)],
    "amptalk.state.operation.duration": [
        ({**IN_MEMORY, "state.operation": "read"}, some(1)),
        ({**IN_MEMORY, "state.operation": "read", "error.type": "OSError"}, some(2)),
        ({**IN_MEMORY, "state.operation": "write"}, some(3)),
    ],
    "amptalk.operation.duration": [
        ({"agent.id": "a1", "agent.name": "Worker", "operation.name": "summarise"}, some(2)),
        ({"agent.id": "a3", "operation.name": "load"}, some(1)),
    ],
}

SNAPSHOT = Snapshot(
    agents=cast("Any", (AGENT, IDLE_AGENT)),
    orchestrators=cast("Any", (ORCHESTRATOR,)),
    states=cast("Any", (LONELY_STATE,)),
    operations=cast("Any", OPERATIONS),
)


def read(metric: Metric, snapshot: Snapshot) -> list[tuple[dict[str, str], Any]]:
    return [(dict(attributes), value) for attributes, value in samples(metric, snapshot, System())]


def test_every_metric_of_agents_and_their_kin_has_its_expectation_here() -> None:
    assert list(EXPECTED) == [metric.name for metric in CATALOGUE if metric.owner is not Owner.PROCESS]


@pytest.mark.parametrize("name", EXPECTED)
def test_points_have_the_attributes_and_values_of_what_is_read(name: str) -> None:
    assert read(BY_NAME[name], SNAPSHOT) == EXPECTED[name]


@each_metric
def test_points_have_no_attribute_that_the_table_does_not_name(metric: Metric) -> None:
    owners = {
        Owner.PROCESS: set[str](),
        Owner.AGENT: {"agent.id", "agent.name", "orchestrator.name"},
        Owner.ORCHESTRATOR: {"orchestrator.name"},
        Owner.STATE: {"agent.id", "agent.name", "orchestrator.name"},
        Owner.OPERATION: {"agent.id", "agent.name"},
    }[metric.owner]
    for attributes, _ in EXPECTED.get(metric.name, []):
        assert set(attributes) <= owners | set(metric.attributes)
    assert owners.isdisjoint(metric.attributes)


@each_metric
def test_an_empty_snapshot_has_no_points(metric: Metric) -> None:
    assert read(metric, Snapshot()) == []


@pytest.mark.parametrize("metric", [row for row in CATALOGUE if row.owner is Owner.PROCESS], ids=lambda row: row.name)
def test_machine_and_process_have_one_point_at_most_without_attributes(metric: Metric) -> None:
    points = read(metric, Snapshot(machine=True))
    if metric.name.endswith("cpu.utilization"):
        assert points == []  # nothing yet in the first tenth of a second
    else:
        ((attributes, value),) = points
        assert attributes == {}
        assert value > 0


def test_snapshots_add_up() -> None:
    other = Snapshot(machine=True, agents=cast("Any", (IDLE_AGENT,)))
    both = SNAPSHOT + other
    assert both.machine
    assert read(BY_NAME["amptalk.agent.queue.size"], both) == [(WORKER, 3), (IDLE, 0), (IDLE, 0)]
    assert read(BY_NAME["amptalk.orchestrator.agents"], both) == EXPECTED["amptalk.orchestrator.agents"]
