"""The page is the stock exporter's line for line, and comes back as it was, whatever names and values there are."""

from __future__ import annotations

import urllib.request
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel import Config
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, BucketCounts, Distribution
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._exposition import MetricsPage
from amptalk_otel._labels import clean
from amptalk_otel._lines import any_number, number
from amptalk_otel._pipeline import Pipeline
from amptalk_otel._reading import AgentReading, OperationReading, OrchestratorReading, StateReading, TypeReading
from amptalk_otel._system import System
from tests.stock import stock_page
from tests.support import examples

TIMEOUT_S = 20.0
openmetrics: Any = openmetrics_parser  # untyped
SYSTEM = System()
FORMATS = [False, True]

# -- states --------------------------------------------------------------------------------------------

# Names as programs give them: any text at all; `clean` is what the recorders make of it.
ANY_NAME = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from('\\"\n{}=, #|%é\u2028\r\t\0😀\ud800'), max_size=10),
).map(clean)
COUNT = st.one_of(st.integers(0, 20), st.integers(999_990, 1_000_010), st.integers(0, 2**60))
SECONDS = st.one_of(st.sampled_from([0.0, 1e-9, 999999.9999999999, 1e6, 1e17]), st.floats(1e-9, 1e17))


def distributions(bounds: tuple[float, ...]) -> st.SearchStrategy[Distribution]:
    counts = st.lists(COUNT, min_size=len(bounds) + 1, max_size=len(bounds) + 1).map(tuple)
    return st.one_of(st.just(Distribution.empty(bounds)), st.builds(Distribution, st.just(bounds), counts, SECONDS))


DURATIONS = distributions(DURATION_BOUNDS_S)
BY_NAME = st.dictionaries(ANY_NAME, COUNT, max_size=2)
TYPE = st.builds(
    TypeReading,
    message_type=ANY_NAME, received=COUNT, taken=COUNT, processed=COUNT, sent=COUNT,
    failed=BY_NAME, dropped=BY_NAME, undeliverable=BY_NAME, retries=BY_NAME,
    wait=DURATIONS, process=DURATIONS, size=distributions(SIZE_BOUNDS_BYTES),
)  # fmt: skip
TYPES = st.lists(TYPE, max_size=3, unique_by=lambda reading: reading.message_type).map(tuple)
OPERATIONS = ["read", "write"]
STATE = st.builds(
    StateReading,
    storage=ANY_NAME, size_bytes=st.none() | COUNT, items=st.none() | COUNT,
    durations=st.dictionaries(st.tuples(st.sampled_from(OPERATIONS), st.none() | ANY_NAME), DURATIONS, max_size=2),
)  # fmt: skip
STATES = st.lists(STATE, max_size=2, unique_by=lambda reading: reading.storage).map(tuple)
AGENT = st.builds(
    AgentReading,
    agent_id=ANY_NAME, agent_name=ANY_NAME, orchestrator_name=st.none() | ANY_NAME, running=st.booleans(),
    uptime_s=SECONDS, queue_size=COUNT, oldest_age_s=st.none() | SECONDS, types=TYPES, states=STATES,
)  # fmt: skip
AGENTS = st.lists(
    AGENT, max_size=4, unique_by=lambda reading: (reading.agent_id, reading.agent_name, reading.orchestrator_name)
).map(tuple)
SNAPSHOT = st.builds(
    Snapshot,
    machine=st.just(value=False),  # its numbers are others at each reading
    agents=AGENTS,
    orchestrators=st.lists(
        st.builds(
            OrchestratorReading,
            name=ANY_NAME, running=COUNT, stopped=COUNT, routed=BY_NAME,
            undeliverable=st.dictionaries(st.tuples(ANY_NAME, ANY_NAME), COUNT, max_size=2),
        ),
        max_size=2, unique_by=lambda reading: reading.name,
    ).map(tuple),
    states=STATES,
    operations=st.lists(
        st.builds(OperationReading, key=st.tuples(ANY_NAME, st.none() | ANY_NAME, ANY_NAME), duration=DURATIONS),
        max_size=2, unique_by=lambda reading: reading.key,
    ).map(tuple),
)  # fmt: skip


def page_of(snapshot: Snapshot, *, openmetrics: bool, scope_labels: bool = False) -> str:
    page = MetricsPage(lambda _breathe: snapshot, SYSTEM, resource_attributes={}, scope_labels=scope_labels)
    return b"".join(page.pages(openmetrics)).decode()


def parsed(text: str, *, openmetrics: bool) -> dict[str, Family]:
    """By prometheus_client, strictly for OpenMetrics."""
    parse = openmetrics_parser.text_string_to_metric_families if openmetrics else text_string_to_metric_families
    families = list(parse(text))
    by_name = {family.name: family for family in families}
    assert len(by_name) == len(families)
    return by_name


# -- the same as the stock exporter's ------------------------------------------------------------------


@pytest.mark.parametrize("scope_labels", [False, True])
@pytest.mark.parametrize("openmetrics", FORMATS)
@given(snapshot=SNAPSHOT)
@settings(max_examples=examples(50))
def test_the_page_is_that_of_the_stock_exporter(openmetrics: bool, scope_labels: bool, snapshot: Snapshot) -> None:
    ours = page_of(snapshot, openmetrics=openmetrics, scope_labels=scope_labels)
    stock = stock_page(snapshot, SYSTEM, openmetrics=openmetrics, scope_labels=scope_labels, resource_attributes={})
    assert sorted(ours.split("\n")) == sorted(stock.split("\n"))
    headers = [line.split(" ")[2] for line in ours.split("\n") if line.startswith("# TYPE ")]
    assert len(set(headers)) == len(headers)


@given(snapshots=st.lists(SNAPSHOT, min_size=2, max_size=4), data=st.data())
@settings(max_examples=examples(50))
def test_what_is_kept_between_passes_is_never_seen(snapshots: list[Snapshot], data: st.DataObject) -> None:
    """Agents come, go, stay as they are, or swap their message types, in any order."""
    recorders: dict[Any, int] = {}
    sequence = []
    for _ in range(4):
        snapshot = data.draw(st.sampled_from(snapshots))
        agents = data.draw(st.permutations(tuple(snapshot.agents)))
        types = [one.types for other in snapshots for one in other.agents]
        if agents and types:
            agents = [replace(agents[0], types=data.draw(st.sampled_from(types))), *agents[1:]]
        keyed = [
            replace(one, recorder_id=recorders.setdefault((one.agent_id, one.agent_name), len(recorders)))
            for one in agents
        ]
        sequence.append(replace(snapshot, agents=tuple(keyed)))
    coming = iter(sequence)
    page = MetricsPage(lambda _breathe: next(coming), SYSTEM, resource_attributes={})
    for snapshot in sequence:
        ours = b"".join(page.pages(False)).decode()
        assert ours == page_of(snapshot, openmetrics=False)


@given(value=st.one_of(COUNT, SECONDS, st.floats(), st.integers(-(2**60), 2**60), st.booleans()))
@settings(max_examples=examples(300))
def test_numbers_are_written_as_prometheus_client_does(value: float) -> None:
    assert number(value) == any_number(value)


# -- there and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("openmetrics", FORMATS)
@given(types=st.dictionaries(ANY_NAME, st.integers(1, 2**53), min_size=1, max_size=5), name=ANY_NAME)
@settings(max_examples=examples(50))
def test_counters_come_back_with_any_label(openmetrics: bool, types: dict[str, int], name: str) -> None:
    nothing = Distribution.empty(DURATION_BOUNDS_S)
    readings = tuple(
        TypeReading(kind, received, 0, 0, 0, {}, {}, {}, {}, nothing, nothing, Distribution.empty(SIZE_BOUNDS_BYTES))
        for kind, received in types.items()
    )
    agent = AgentReading("a", name, None, True, 0.0, 0, None, readings)
    families = parsed(page_of(Snapshot(agents=(agent,)), openmetrics=openmetrics), openmetrics=openmetrics)
    samples = families["amptalk_agent_messages_received"].samples
    assert {sample.labels["message_type"]: sample.value for sample in samples} == types
    assert {sample.labels["agent_name"] for sample in samples} == {name}
    assert {sample.name for sample in samples} == {"amptalk_agent_messages_received_total"}


@pytest.mark.parametrize("openmetrics", FORMATS)
@given(value=st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=examples(50))
def test_gauges_come_back_with_any_finite_value(openmetrics: bool, value: float) -> None:
    agent = AgentReading("a", "A", None, True, value, 0, None, ())
    families = parsed(page_of(Snapshot(agents=(agent,)), openmetrics=openmetrics), openmetrics=openmetrics)
    (sample,) = families["amptalk_agent_uptime_seconds"].samples
    assert sample.value == float(value)


@pytest.mark.parametrize("openmetrics", FORMATS)
@given(durations=st.lists(st.one_of(st.floats(0.0, 1200.0), st.sampled_from(DURATION_BOUNDS_S)), min_size=1))
@settings(max_examples=examples(50))
def test_histograms_come_back_with_cumulative_buckets_that_include_their_bound(
    openmetrics: bool, durations: list[float]
) -> None:
    buckets = BucketCounts(DURATION_BOUNDS_S)
    for duration in durations:
        buckets.record(duration)
    snapshot = Snapshot(operations=(OperationReading(("a", None, "transcribe"), buckets.copy()),))
    families = parsed(page_of(snapshot, openmetrics=openmetrics), openmetrics=openmetrics)
    samples = families["amptalk_operation_duration_seconds"].samples
    found = {float(sample.labels["le"]): sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert found == {
        bound: sum(1 for duration in durations if duration <= bound) for bound in (*DURATION_BOUNDS_S, float("inf"))
    }
    totals = {sample.name.rpartition("_")[2]: sample.value for sample in samples}
    assert totals["count"] == len(durations)
    assert totals["sum"] == pytest.approx(sum(durations))


# -- over HTTP, with instruments of the program's own --------------------------------------------------


@pytest.mark.parametrize("openmetrics", FORMATS)
@given(attributes=st.dictionaries(ANY_NAME, ANY_NAME, max_size=4), name=ANY_NAME)
@settings(max_examples=examples(25))
def test_any_resource_attribute_leaves_the_page_readable(
    openmetrics: bool, attributes: dict[str, str], name: str
) -> None:
    pipeline = Pipeline(Config(prometheus_port=0, resource_attributes=attributes, service_name=name))
    try:
        pipeline.meter_provider.get_meter("test").create_counter("things").add(1)
        assert pipeline.metrics_url is not None
        accept = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain"
        request = urllib.request.Request(pipeline.metrics_url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            families = parsed(response.read().decode(), openmetrics=openmetrics)
        (info,) = families["target" if "target" in families else "target_info"].samples
        assert info.labels["service_name"] == name
        assert families["things"].samples[0].value == 1.0
    finally:
        pipeline.shutdown(TIMEOUT_S)
