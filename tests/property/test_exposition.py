"""What is measured comes back from the page as it was, whatever names and values there are."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import CallbackOptions, Observation
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel import Config
from amptalk_otel._bridge import _create
from amptalk_otel._buckets import DURATION_BOUNDS_S
from amptalk_otel._catalogue import BY_NAME
from amptalk_otel._labels import clean
from amptalk_otel._pipeline import Pipeline

TIMEOUT_S = 20.0
openmetrics: Any = openmetrics_parser  # untyped

# Names as programs give them: any text at all; `clean` is what the recorders make of it.
ANY_NAME = st.one_of(
    st.text(min_size=1, max_size=30),
    st.text(st.sampled_from('\\"\n{}=, #|é\u2028\r\t\0😀\ud800'), min_size=1, max_size=10),
)
FORMATS = ["text/plain", "application/openmetrics-text; version=1.0.0"]


def scrape(pipeline: Pipeline, accept: str) -> dict[str, Family]:
    """The page by a real request, parsed by prometheus_client, strictly for OpenMetrics."""
    assert pipeline.metrics_url is not None
    request = urllib.request.Request(pipeline.metrics_url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        page = response.read().decode()
    parse = openmetrics.text_string_to_metric_families if "openmetrics" in accept else text_string_to_metric_families
    families = list(parse(page))
    by_name = {family.name: family for family in families}
    assert len(by_name) == len(families)
    return by_name


@pytest.mark.parametrize("accept", FORMATS)
@given(values=st.dictionaries(ANY_NAME.map(clean), st.integers(0, 2**53), min_size=1, max_size=5))
@settings(max_examples=30)
def test_counters_come_back_with_any_label(accept: str, values: dict[str, int]) -> None:
    pipeline = Pipeline(Config(prometheus_port=0))
    try:

        def observe(_options: CallbackOptions) -> list[Observation]:
            return [Observation(value, {"agent.name": name, "message.type": "x"}) for name, value in values.items()]

        _create(pipeline.meter_provider.get_meter("test"), BY_NAME["amptalk.agent.messages.received"], observe)
        family = scrape(pipeline, accept)["amptalk_agent_messages_received"]
        found = {sample.labels["agent_name"]: sample.value for sample in family.samples}
        assert found == {name: float(value) for name, value in values.items()}
        assert {sample.labels["message_type"] for sample in family.samples} == {"x"}
        assert {sample.name for sample in family.samples} == {"amptalk_agent_messages_received_total"}
    finally:
        pipeline.shutdown(TIMEOUT_S)


@pytest.mark.parametrize("accept", FORMATS)
@given(value=st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=25)
def test_gauges_come_back_with_any_finite_value(accept: str, value: float) -> None:
    pipeline = Pipeline(Config(prometheus_port=0))
    try:
        meter = pipeline.meter_provider.get_meter("test")
        _create(meter, BY_NAME["amptalk.agent.uptime"], lambda _options: [Observation(value)])
        (sample,) = scrape(pipeline, accept)["amptalk_agent_uptime_seconds"].samples
        assert sample.value == float(value)
    finally:
        pipeline.shutdown(TIMEOUT_S)


@pytest.mark.parametrize("accept", FORMATS)
@given(durations=st.lists(st.one_of(st.floats(0.0, 1200.0), st.sampled_from(DURATION_BOUNDS_S)), min_size=1))
@settings(max_examples=25)
def test_histograms_come_back_with_cumulative_buckets_that_include_their_bound(
    accept: str, durations: list[float]
) -> None:
    pipeline = Pipeline(Config(prometheus_port=0))
    try:
        meter = pipeline.meter_provider.get_meter("test")
        histogram = _create(meter, BY_NAME["amptalk.agent.message.wait.duration"], lambda _options: [])
        for duration in durations:
            histogram.record(duration, {"agent.name": "a"})
        samples = scrape(pipeline, accept)["amptalk_agent_message_wait_duration_seconds"].samples
        buckets = {float(sample.labels["le"]): sample.value for sample in samples if sample.name.endswith("_bucket")}
        assert buckets == {
            bound: sum(1 for duration in durations if duration <= bound) for bound in (*DURATION_BOUNDS_S, float("inf"))
        }
        totals = {sample.name.rpartition("_")[2]: sample.value for sample in samples}
        assert totals["count"] == len(durations)
        assert totals["sum"] == pytest.approx(sum(durations))
    finally:
        pipeline.shutdown(TIMEOUT_S)


@pytest.mark.parametrize("accept", FORMATS)
@given(attributes=st.dictionaries(ANY_NAME.map(clean), ANY_NAME.map(clean), max_size=4), name=ANY_NAME.map(clean))
@settings(max_examples=25)
def test_any_resource_attribute_leaves_the_page_readable(accept: str, attributes: dict[str, str], name: str) -> None:
    pipeline = Pipeline(Config(prometheus_port=0, resource_attributes=attributes, service_name=name))
    try:
        pipeline.meter_provider.get_meter("test").create_counter("things").add(1)
        families = scrape(pipeline, accept)
        (info,) = families["target" if "target" in families else "target_info"].samples
        assert info.labels["service_name"] == name
        assert families["things"].samples[0].value == 1.0
    finally:
        pipeline.shutdown(TIMEOUT_S)
