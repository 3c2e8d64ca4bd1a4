"""From a bucket to the trace of a message in it: on our page, in a real Prometheus, and over OTLP."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser

from amptalk_otel import Config, Instrumentation, instrument_orchestrator
from amptalk_otel._buckets import DURATION_BOUNDS_S
from tests.integration.servers import Collector, MetricPoint, Prometheus, Span, check_metrics, fetch, wait_until
from tests.trace_workload import Sleepers, written_spans

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

strict_parser: Any = openmetrics_parser  # untyped
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_NAMES = {
    "amptalk_agent_message_wait_duration_seconds_bucket": "wait",
    "amptalk_agent_message_process_duration_seconds_bucket": "process",
}
OTLP_NAMES = {"amptalk.agent.message.wait.duration": "wait", "amptalk.agent.message.process.duration": "process"}
BOUNDS_S = (*DURATION_BOUNDS_S, float("inf"))
SPAN_TIME_S = 2e-9  # a span's times are whole nanoseconds
CLOCKS_S = 0.01
EXPORTS = 4
ROUNDS = 30  # so many that some messages end while an export is made

Bucket = tuple[str, str, str, float]
"""wait or process, agent id, message type, upper bound."""


@dataclass(frozen=True)
class Found:
    """One exemplar, from wherever it was told."""

    bucket: Bucket
    trace_id: str
    span_id: str
    value: float
    time_s: float


# ----------------------------------------------------------------------------------------------------- what is told


def on_page(page: str) -> list[Found]:
    """The exemplars of an OpenMetrics page, by a parser that takes the standard at its word."""
    return [
        Found(
            (PROMETHEUS_NAMES[sample.name], *_agent_and_type(sample.labels), float(sample.labels["le"])),
            **_ids(sample.exemplar.labels),
            value=sample.exemplar.value,
            time_s=float(sample.exemplar.timestamp),
        )
        for family in strict_parser.text_string_to_metric_families(page)
        for sample in family.samples
        if sample.exemplar is not None
    ]


def in_prometheus(prometheus: Prometheus) -> list[Found]:
    """The exemplars that Prometheus has stored."""
    return [
        Found(
            (PROMETHEUS_NAMES[one.series_labels["__name__"]], *_agent_and_type(one.series_labels),
             float(one.series_labels["le"])),
            **_ids(one.labels),
            value=one.value,
            time_s=one.time_s,
        )
        for name in PROMETHEUS_NAMES
        for one in prometheus.query_exemplars(name)
    ]  # fmt: skip


def in_points(points: Iterable[MetricPoint]) -> Iterator[Found]:
    """The exemplars of data points that came over OTLP."""
    for point in points:
        for one in point.exemplars:
            assert one.attributes == {}
            agent_id, kind = str(point.attributes["agent.id"]), str(point.attributes["message.type"])
            bound = BOUNDS_S[bisect_left(DURATION_BOUNDS_S, one.value)]
            yield Found(
                (OTLP_NAMES[point.name], agent_id, kind, bound), one.trace_id, one.span_id, one.value, one.time_ns / 1e9
            )


def _agent_and_type(labels: object) -> tuple[str, str]:
    assert isinstance(labels, dict)
    return labels["agent_id"], labels["message_type"]


def _ids(labels: object) -> dict[str, str]:
    """The labels of an exemplar, which are these two and no others."""
    assert isinstance(labels, dict)
    assert sorted(labels) == ["span_id", "trace_id"]
    return dict(labels)


# ---------------------------------------------------------------------------------------------------- what is right


def bucket_of(what: str, span: Span, seconds: float) -> Bucket:
    agent_id, kind = str(span.attributes["gen_ai.agent.id"]), str(span.attributes["message.type"])
    return what, agent_id, kind, BOUNDS_S[bisect_left(DURATION_BOUNDS_S, seconds)]


def waited_s(span: Span) -> float:
    value = span.attributes["amptalk.message.wait.duration"]
    assert isinstance(value, float)
    return value


def lasted_s(span: Span) -> float:
    return (span.end_ns - span.start_ns) / 1e9


def processing(spans: Iterable[Span]) -> list[Span]:
    """The spans of messages being worked on, in the order in which that ended."""
    return sorted((span for span in spans if span.kind == "consumer"), key=lambda span: span.end_ns)


def last_of_buckets(spans: Iterable[Span]) -> dict[Bucket, str]:
    """The exemplars that a page has to have, by what the spans say: of each bucket the last one."""
    last = {}
    for span in processing(spans):
        last[bucket_of("wait", span, waited_s(span))] = span.span_id
        last[bucket_of("process", span, lasted_s(span))] = span.span_id
    return last


def check(found: Iterable[Found], spans: Iterable[Span]) -> None:
    """Each exemplar leads to a span that was written, and that belongs into the bucket."""
    by_id = {(span.trace_id, span.span_id): span for span in processing(spans)}
    for one in found:
        span = by_id[one.trace_id, one.span_id]
        what, agent_id, kind, bound = one.bucket
        assert (span.attributes["gen_ai.agent.id"], span.attributes["message.type"]) == (agent_id, kind)
        below = max((lower for lower in BOUNDS_S if lower < bound), default=0.0)
        assert below <= one.value <= bound
        if what == "wait":
            assert one.value == waited_s(span)
        else:
            assert abs(one.value - lasted_s(span)) <= SPAN_TIME_S
            assert below - SPAN_TIME_S <= lasted_s(span) <= bound + SPAN_TIME_S
        assert span.start_ns / 1e9 - CLOCKS_S <= one.time_s <= span.end_ns / 1e9 + CLOCKS_S


async def sleep_watched(config: Config, after: Callable[[Sleepers, Instrumentation], Awaitable[None]]) -> None:
    """The program, instrumented; `after` is awaited while it is running and idle."""
    program = Sleepers()
    instrumentation = instrument_orchestrator(program.orchestrator, config=config)
    try:
        await program.orchestrator.start()
        await after(program, instrumentation)
        await program.orchestrator.stop()
    finally:
        assert await asyncio.to_thread(instrumentation.shutdown) is True


# -------------------------------------------------------------------------------------------- our page, Prometheus


def test_prometheus_leads_from_buckets_to_spans(
    collector: Collector, prometheus_factory: Callable[..., Prometheus], promtool: object
) -> None:
    config = Config(prometheus_port=0, traces_exporters=("otlp",), otlp_endpoint=collector.http_endpoint)
    shown: list[Found] = []
    stored: list[Found] = []

    async def work(program: Sleepers, instrumentation: Instrumentation) -> None:
        url = str(instrumentation.metrics_url)
        with prometheus_factory([url], features=["exemplar-storage"]) as prometheus:
            await asyncio.to_thread(prometheus.wait_for, "sum(amptalk_agent_running) == 2")
            sent.append(await program.run())
            await asyncio.to_thread(look, url, prometheus)

    def look(url: str, prometheus: Prometheus) -> None:
        page, classic = fetch(url, accept=OPENMETRICS).decode(), fetch(url).decode()
        shown.extend(on_page(page))
        assert on_page(fetch(url, accept=OPENMETRICS).decode()) == shown  # they stay, whoever else has read them
        ids = {one.span_id for one in shown}
        assert all(span_id not in classic for span_id in ids)
        assert " # {" not in classic
        assert check_metrics(classic) == (0, "")
        stored.extend(
            wait_until(
                lambda: in_prometheus(prometheus),
                lambda found: ids <= {one.span_id for one in found},
                what="all exemplars of the page in Prometheus",
            )
        )

    sent: list[int] = []
    asyncio.run(asyncio.wait_for(sleep_watched(config, work), 90))
    spans = written_spans(collector, sent[0] * 2)
    assert [span.kind for span in spans].count("consumer") == sent[0]
    assert {one.bucket: one.span_id for one in shown} == last_of_buckets(spans)
    assert len({one.bucket for one in shown}) == len(shown)
    for what in ("wait", "process"):
        bounds = {one.bucket[3] for one in shown if one.bucket[0] == what}
        assert len(bounds) >= 3, f"all {what} times are in the buckets up to {bounds}"
    check(shown, spans)
    # Prometheus keeps what it saw at any scrape, and times to the millisecond.
    assert {(one.bucket, one.span_id, one.value) for one in shown} <= {
        (one.bucket, one.span_id, one.value) for one in stored
    }
    check(stored, spans)


@pytest.mark.parametrize(
    ("exemplar_filter", "sampler", "told"),
    [
        ("trace_based", "always_on", True),
        ("trace_based", "always_off", False),
        ("trace_based", "traceidratio", False),
        ("always_on", "always_off", True),
        ("always_on", "traceidratio", True),
        ("always_off", "always_on", False),
    ],
)
def test_the_page_tells_what_the_filter_lets_through(
    exemplar_filter: str, sampler: str, told: bool, collector: Collector
) -> None:
    environ = {
        "OTEL_METRICS_EXEMPLAR_FILTER": exemplar_filter,
        "OTEL_TRACES_SAMPLER": sampler,
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
    }
    pages: list[str] = []

    async def work(program: Sleepers, instrumentation: Instrumentation) -> None:
        await program.run()
        pages.append((await asyncio.to_thread(fetch, str(instrumentation.metrics_url), accept=OPENMETRICS)).decode())

    asyncio.run(asyncio.wait_for(sleep_watched(Config.from_env(environ, prometheus_port=0), work), 90))
    found = on_page(pages[0])
    assert {one.bucket[0] for one in found} == ({"wait", "process"} if told else set())
    assert all(int(one.trace_id, 16) and int(one.span_id, 16) for one in found)
    assert (" # {" in pages[0]) is told


# -------------------------------------------------------------------------------------------------------- over OTLP


def exported(
    collector: Collector, chosen: Mapping[str, str], *, spans_per_message: int, rounds: int = 1
) -> tuple[list[MetricPoint], list[Span]]:
    """What the Collector has of so many rounds of the program, and some exports more, with the settings `chosen`."""
    sent: list[int] = []
    environ = {
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_METRIC_EXPORT_INTERVAL": "10",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
        **chosen,
    }

    def is_enough() -> bool:
        times = Counter(point.key for point in collector.exported_points() if point.name in OTLP_NAMES and point.count)
        return bool(times) and min(times.values()) >= EXPORTS

    async def work(program: Sleepers, _instrumentation: Instrumentation) -> None:
        sent.extend([await program.run() for _ in range(rounds)])
        await asyncio.to_thread(wait_until, is_enough, bool, what=f"{EXPORTS} exports of each histogram")

    asyncio.run(asyncio.wait_for(sleep_watched(Config.from_env(environ), work), 90))
    spans = written_spans(collector, sum(sent) * spans_per_message)
    assert len(spans) == sum(sent) * spans_per_message
    points = [point for point in collector.exported_points() if point.name in OTLP_NAMES]
    assert {(point.attributes["agent.id"], point.name) for point in points} == {
        (agent, name) for agent in ("deep", "light") for name in OTLP_NAMES
    }
    return points, spans


@pytest.mark.parametrize("chosen", ["trace_based", "always_on", ""])
def test_otlp_tells_each_exemplar_once(chosen: str, collector: Collector) -> None:
    points, spans = exported(collector, {"OTEL_METRICS_EXEMPLAR_FILTER": chosen}, spans_per_message=2, rounds=ROUNDS)
    found = list(in_points(points))
    check(found, spans)
    assert len(found) >= 2 * ROUNDS
    times_told = Counter((one.bucket, one.span_id) for one in found)
    assert [one for one, times in times_told.items() if times > 1] == []
    # Between two exports each bucket tells its last; what was told last of all is the last of all.
    assert {one.bucket: one.span_id for one in found} == last_of_buckets(spans)


@pytest.mark.parametrize(
    ("exemplar_filter", "sampler", "spans_per_message"),
    [
        ("always_off", "always_on", 2),
        ("always_off", "always_off", 0),
        ("trace_based", "always_off", 0),
        ("trace_based", "traceidratio", 0),
    ],
)
def test_otlp_tells_no_exemplars_where_the_filter_lets_none_through(
    exemplar_filter: str, sampler: str, spans_per_message: int, collector: Collector
) -> None:
    environ = {"OTEL_METRICS_EXEMPLAR_FILTER": exemplar_filter, "OTEL_TRACES_SAMPLER": sampler}
    points, _spans = exported(collector, environ, spans_per_message=spans_per_message)
    assert list(in_points(points)) == []
    raw = "".join(path.read_text() for path in collector.folder.glob("metrics-*.jsonl"))
    assert raw.count('"histogram"') >= len(OTLP_NAMES)
    assert "exemplars" not in raw


def test_otlp_tells_unsampled_traces_where_the_filter_lets_all_through(collector: Collector) -> None:
    environ = {"OTEL_METRICS_EXEMPLAR_FILTER": "always_on", "OTEL_TRACES_SAMPLER": "always_off"}
    points, _spans = exported(collector, environ, spans_per_message=0)
    found = list(in_points(points))
    assert {one.bucket[0] for one in found} == {"wait", "process"}
    assert all(int(one.trace_id, 16) and int(one.span_id, 16) for one in found)


@pytest.mark.parametrize("exemplar_filter", ["trace_based", "always_on"])
def test_otlp_tells_no_exemplars_without_traces(exemplar_filter: str, collector: Collector) -> None:
    environ = {"OTEL_METRICS_EXEMPLAR_FILTER": exemplar_filter, "OTEL_TRACES_EXPORTER": "none"}
    points, _spans = exported(collector, environ, spans_per_message=0)
    assert list(in_points(points)) == []
