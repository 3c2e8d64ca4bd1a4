"""Exemplars: which trace a measurement comes from, on OTLP, by the program's own SDK, and on the page."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, Exemplar, MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData, ResourceMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from amptalk_otel import instrument_agent
from amptalk_otel._buckets import NO_EXEMPLARS, BucketCounts, Distribution
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._deltas import Deltas
from amptalk_otel._encoding import Encoder
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._reading import AgentReading
from amptalk_otel._sources import Source
from tests.support import CONFIG, Scripted, handle, in_loop, note
from tests.tracing import Spans, context_of, id_of, trace_of, traced
from tests.unit.test_deltas import PREFERENCES
from tests.unit.test_sources import agent, of_type

WAIT, WORK = "amptalk.agent.message.wait.duration", "amptalk.agent.message.process.duration"


# -- buckets -------------------------------------------------------------------------------------------


def test_each_bucket_keeps_its_last_exemplar() -> None:
    buckets = BucketCounts((1.0, 2.0))
    assert buckets.copy_exemplars() == ()
    for value, time_ns in ((3.0, 10), (1.0, 11), (0.5, 12), (1.5, 13), (99.0, 14)):
        buckets.record(value)
        buckets.exemplify(value, time_ns, time_ns * 100, time_ns * 1000)
    found = buckets.copy_exemplars()
    assert found == ((0.5, 12, 1200, 12000), (1.5, 13, 1300, 13000), (99.0, 14, 1400, 14000))
    buckets.exemplify(1.25, 15, 1, 2)
    assert found[1] == (1.5, 13, 1300, 13000)
    assert buckets.copy_exemplars()[1] == (1.25, 15, 1, 2)
    assert buckets.copy() == Distribution((1.0, 2.0), (2, 1, 2), 105.0)


def test_what_has_no_exemplars_shares_the_same_nothing() -> None:
    one, other = BucketCounts((1.0,)), BucketCounts((1.0,))
    one.exemplify(0.5, 1, 2, 3)
    assert other.exemplars is NO_EXEMPLARS
    assert NO_EXEMPLARS == {}


def test_exemplars_are_no_part_of_what_is_equal_and_differences_have_none() -> None:
    plain = Distribution((1.0,), (1, 0), 0.5)
    exemplified = replace(plain, exemplars=((0.5, 1, 2, 3),))
    assert plain == exemplified
    assert (exemplified - plain).exemplars == ()


# -- readings ------------------------------------------------------------------------------------------


async def read_traced(spans: Spans, *script: Any) -> AgentReading:
    bob = Scripted(*script, name="Bob", agent_id="b")
    with traced(spans, bob) as (hook,):
        await handle(bob, note())
        return hook.read()


@in_loop
async def test_a_reading_has_the_ids_of_the_process_span() -> None:
    spans = Spans()
    reading = await read_traced(spans)
    span = spans.one("process Bob")
    (kind,) = reading.types
    for distribution in (kind.wait, kind.process):
        ((value, time_ns, trace_id, span_id),) = distribution.exemplars
        assert (trace_id, span_id) == (trace_of(span), id_of(span))
        assert value == distribution.sum
        assert span.start_time is not None
        assert time_ns >= span.start_time
    assert kind.size.exemplars == ()


@in_loop
async def test_a_failed_message_is_an_example_and_a_cancelled_one_only_of_its_wait() -> None:
    (failed,) = (await read_traced(Spans(), ValueError())).types
    assert [len(distribution.exemplars) for distribution in (failed.wait, failed.process)] == [1, 1]

    async def cancel(_message: Any) -> None:
        raise asyncio.CancelledError

    spans, bob = Spans(), Scripted(name="Bob")
    with traced(spans, bob) as (hook,):
        await bob.enqueue_message(note())
        bob.script = [cancel]
        await bob.start()
        await asyncio.gather(*bob.tasks, return_exceptions=True)
        (kind,) = hook.read().types
    assert (len(kind.wait.exemplars), kind.process.exemplars, kind.process.count) == (1, (), 0)


@pytest.mark.parametrize(
    ("exemplar_filter", "sampler", "expected"),
    [
        ("trace_based", None, 1), ("trace_based", ALWAYS_OFF, 0),
        ("always_on", None, 1), ("always_on", ALWAYS_OFF, 1),
        ("always_off", None, 0), ("always_off", ALWAYS_OFF, 0),
    ],
)  # fmt: skip
def test_the_filter_decides(exemplar_filter: str, sampler: Any, expected: int) -> None:
    options = {"sampler": sampler} if sampler is not None else {}

    @in_loop
    async def run() -> None:
        spans = Spans(**options, exemplar_filter=exemplar_filter)
        (kind,) = (await read_traced(spans)).types
        assert [len(distribution.exemplars) for distribution in (kind.wait, kind.process)] == [expected] * 2
        for _value, _time_ns, trace_id, span_id in (*kind.wait.exemplars, *kind.process.exemplars):
            assert trace_id > 0
            assert span_id > 0
        assert len({exemplar[2] for exemplar in (*kind.wait.exemplars, *kind.process.exemplars)}) == expected

    run()


# -- over OTLP -----------------------------------------------------------------------------------------


class Town:
    """A producer of one agent, whose exemplars are given by hand."""

    def __init__(self) -> None:
        self.moments = iter(range(100, 10_000, 100))
        self.reading = agent(of_type(received=1, processed=1))
        self.bridge = ProducerBridge()
        self.bridge.add(self.source())
        self.producer = CatalogueProducer(self.bridge, clock=lambda: next(self.moments))

    def source(self) -> Source:
        return lambda _breathe: Snapshot(agents=(self.reading,))

    def exemplify(self, *times_ns: int) -> None:
        (kind,) = self.reading.types
        exemplars = tuple((0.5, time_ns, 0xABC, 0xDEF) for time_ns in times_ns)
        self.reading = replace(self.reading, types=(replace(kind, process=replace(kind.process, exemplars=exemplars)),))

    def exemplars(self) -> list[Exemplar]:
        (scope,) = self.producer.produce()
        return [
            exemplar
            for metric in scope.metrics
            for point in metric.data.data_points
            for exemplar in getattr(point, "exemplars", ())
        ]


def test_an_exemplar_is_told_once_to_each_reader() -> None:
    town = Town()  # made at 100
    town.exemplify(150)
    assert town.exemplars() == [Exemplar({}, 0.5, 150, 0xDEF, 0xABC)]  # at 200
    assert town.exemplars() == []
    town.exemplify(150, 350)
    assert [exemplar.time_unix_nano for exemplar in town.exemplars()] == [350]
    assert town.exemplars() == []
    town.exemplify(650)  # which the pass at 600 sees already
    assert [[exemplar.time_unix_nano for exemplar in town.exemplars()] for _ in range(3)] == [[], [650], []]


def requests(data: MetricsData) -> tuple[ExportMetricsServiceRequest, ExportMetricsServiceRequest]:
    both = Encoder().encode(data), encode_metrics(data)
    ours, theirs = (ExportMetricsServiceRequest.FromString(one.SerializeToString()) for one in both)
    return ours, theirs


@pytest.mark.parametrize("preference", ["cumulative", "delta"])
def test_a_request_with_exemplars_is_the_one_that_the_stock_encoder_makes(preference: str) -> None:
    town = Town()
    town.exemplify(150, 160)
    (scope,) = town.producer.produce()
    if preference == "delta":
        scope = replace(scope, metrics=Deltas(PREFERENCES["delta"]).convert(scope.metrics))
    ours, theirs = requests(MetricsData([ResourceMetrics(Resource({"service.name": "bot"}), [scope], "")]))
    assert ours == theirs
    found = [
        exemplar
        for metric in ours.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.histogram.data_points
        for exemplar in point.exemplars
    ]
    assert [(exemplar.time_unix_nano, exemplar.as_double) for exemplar in found] == [(150, 0.5), (160, 0.5)]
    assert {exemplar.trace_id for exemplar in found} == {(0xABC).to_bytes(16, "big")}
    assert {exemplar.span_id for exemplar in found} == {(0xDEF).to_bytes(8, "big")}


# -- by the program's own SDK --------------------------------------------------------------------------


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name in (WAIT, WORK)
    }


@in_loop
async def test_the_programs_own_sdk_gets_the_ids_of_the_process_span() -> None:
    spans, reader, agent = Spans(), InMemoryMetricReader(), Scripted(name="Bob")
    provider = MeterProvider([reader], exemplar_filter=TraceBasedExemplarFilter(), shutdown_on_exit=False)
    options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": spans.provider}
    with instrument_agent(agent, **options):
        with spans.root("startup"):
            await agent.start()
        await handle(agent, note())
        found = points(reader)
    of = context_of(spans.one("process Bob"))
    for name in (WAIT, WORK):
        (point,) = found[name]
        ((exemplar),) = point.exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (of.trace_id, of.span_id)
        assert exemplar.value == point.sum
    provider.shutdown()


@pytest.mark.parametrize("filter_kind", [TraceBasedExemplarFilter, AlwaysOnExemplarFilter])
def test_without_traces_no_exemplar_is_of_the_span_that_the_agent_was_started_in(filter_kind: Any) -> None:
    @in_loop
    async def run() -> None:
        spans, reader, agent = Spans(), InMemoryMetricReader(), Scripted(name="Bob")
        provider = MeterProvider([reader], exemplar_filter=filter_kind(), shutdown_on_exit=False)
        with instrument_agent(agent, config=CONFIG, meter_provider=provider):
            with spans.root("startup"):
                await agent.start()
                await handle(agent, note())
            found = points(reader)
        exemplars = [exemplar for name in (WAIT, WORK) for point in found[name] for exemplar in point.exemplars]
        assert [exemplar.trace_id for exemplar in exemplars if exemplar.trace_id] == []
        assert bool(exemplars) is (filter_kind is AlwaysOnExemplarFilter)
        provider.shutdown()

    run()
