"""10,000 messages with known fates: what real Prometheus and a real Collector say equals the program's own log."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel import Config, Instrumentation, instrument_orchestrator
from tests.integration.servers import Collector, MetricPoint, Prometheus, check_metrics, fetch
from tests.workload import Key, Log, Program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

MESSAGES = 10_000
BALANCE = {
    "received_total": 1,
    "processed_total": -1,
    "failed_total": -1,
    "dropped_total": -1,
    "in_flight": -1,
}


def expected_counts(log: Log) -> dict[str, Counter[Key]]:
    """Each OpenTelemetry metric with what the log says of it."""
    wait = Counter(log.received)
    return {
        "amptalk.agent.messages.received": log.received,
        "amptalk.agent.messages.processed": log.processed,
        "amptalk.agent.messages.failed": log.failed,
        "amptalk.agent.messages.sent": log.sent,
        "amptalk.agent.messages.undeliverable": log.undeliverable,
        "amptalk.agent.messages.dropped": Counter(),
        "amptalk.agent.retries": log.retries,
        "amptalk.orchestrator.messages.routed": log.routed,
        "amptalk.orchestrator.messages.undeliverable": log.misrouted,
        "amptalk.agent.message.wait.duration": wait,
        "amptalk.agent.message.process.duration": log.processing,
    }


def prometheus_name(name: str) -> str:
    flat = name.replace(".", "_")
    return f"{flat}_seconds_count" if name.endswith(".duration") else f"{flat}_total"


def key_of(labels: dict[str, str]) -> Key:
    """(owner, message.type, third attribute) of a Prometheus sample or an OTLP point."""
    flat = {name.replace(".", "_"): value for name, value in labels.items()}
    owner = flat.get("agent_id") or flat["orchestrator_name"]
    third = flat.get("error_type") or flat.get("reason")
    return (owner, flat["message_type"], *([third] if third else []))


def nonzero(counts: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    return {key: value for key, value in counts if value}


async def scrape_until(done: asyncio.Event, url: str) -> list[str]:
    """Pages read one after the other while the program runs."""
    pages = []
    while not done.is_set():
        pages.append(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode()))
    return pages


def imbalances(page: str) -> dict[str, float]:
    """received - (processed + failed + dropped + in flight + queued) of each agent for which it is not 0."""
    balance: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = sample.name.removeprefix("amptalk_agent_messages_")
            sign = -1 if sample.name == "amptalk_agent_queue_size" else BALANCE.get(name, 0)
            if sign:
                balance[sample.labels["agent_id"]] += sign * sample.value
    assert balance, "the page has no agents"
    return {agent: value for agent, value in balance.items() if value}


def stored_imbalances(prometheus: Prometheus) -> tuple[int, dict[Any, float]]:
    """The same over every scrape that Prometheus has stored: (number of scrapes, those out of balance)."""
    balance: dict[tuple[float, str], float] = defaultdict(float)
    names = "amptalk_agent_(messages_(received_total|processed_total|failed_total|dropped_total|in_flight)|queue_size)"
    query = f'{{__name__=~"{names}"}}[10m]'
    data = json.loads(fetch(f"{prometheus.url}/api/v1/query", {"query": query}))["data"]
    for series in data["result"]:
        labels = series["metric"]
        sign = 1 if labels["__name__"].endswith("received_total") else -1
        for time_s, value in series["values"]:
            balance[time_s, labels["agent_id"]] += sign * float(value)
    scrapes = len({time_s for time_s, _agent in balance})
    return scrapes, {key: value for key, value in balance.items() if value}


async def watch(
    config: Config, during: Callable[[Program, Instrumentation], Any], after: Callable[[Program, Instrumentation], Any]
) -> Program:
    """Run the program instrumented: `during` is awaited for its whole run, `after` is called when it is quiet."""
    program = Program()
    instrumentation = instrument_orchestrator(program.orchestrator, config=config)
    try:
        await program.orchestrator.start()
        await during(program, instrumentation)
        await asyncio.to_thread(after, program, instrumentation)
        await program.orchestrator.stop()
    finally:
        await asyncio.to_thread(instrumentation.shutdown)
    return program


def test_prometheus_answers_what_the_program_knows(
    prometheus_factory: Callable[..., Prometheus], promtool: object
) -> None:
    pages: list[str] = []

    async def during(program: Program, instrumentation: Instrumentation) -> None:
        assert instrumentation.metrics_url is not None
        with prometheus_factory([instrumentation.metrics_url]) as prometheus:
            await asyncio.to_thread(prometheus.wait_for, "amptalk_agent_running == 1")
            done = asyncio.Event()
            scraping = asyncio.create_task(scrape_until(done, instrumentation.metrics_url))
            await program.run(MESSAGES, pause_every=100, pause_s=0.02)
            done.set()
            pages.extend(await scraping)
            await asyncio.to_thread(compare, program.log, prometheus)

    def compare(log: Log, prometheus: Prometheus) -> None:
        total = sum(log.received.values())
        prometheus.wait_for(
            "sum(amptalk_agent_messages_received_total)", lambda found: bool(found) and found[0].value == total
        )
        prometheus.wait_for("sum(amptalk_agent_messages_in_flight)", lambda found: found[0].value == 0)
        for name, expected in expected_counts(log).items():
            found = prometheus.query(prometheus_name(name))
            assert nonzero((key_of(dict(one.labels)), one.value) for one in found) == dict(expected), name
        assert [one.value for one in prometheus.query("sum(amptalk_agent_queue_size)")] == [0.0]
        scrapes, wrong = stored_imbalances(prometheus)
        assert scrapes >= 10
        assert wrong == {}

    def after(_program: Program, instrumentation: Instrumentation) -> None:
        page = fetch(str(instrumentation.metrics_url)).decode()
        assert check_metrics(page) == (0, "")

    program = asyncio.run(watch(Config(prometheus_port=0), during, after))
    assert sum(program.log.received.values()) + sum(program.log.misrouted.values()) >= MESSAGES
    assert len(pages) >= 20
    assert [imbalances(page) for page in pages] == [{}] * len(pages)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_is_told_what_the_program_knows(protocol: str, collector: Collector) -> None:
    config = Config(
        metrics_exporters=("otlp",),
        otlp_protocol=protocol,
        otlp_endpoint=collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint,
        metric_export_interval_s=0.2,
        service_name="ground-truth",
    )

    async def during(program: Program, instrumentation: Instrumentation) -> None:
        assert instrumentation.metrics_url is None
        await program.run(MESSAGES, pause_every=100, pause_s=0.01)

    program = asyncio.run(watch(config, during, lambda *_: None))
    points = list(collector.wait_for_metrics(lambda found: _is_final(found.values(), program.log)).values())
    for name, expected in expected_counts(program.log).items():
        assert nonzero(_values(points, name)) == dict(expected), name
    assert {point.resource["service.name"] for point in points} == {"ground-truth"}


def _values(points: Iterable[MetricPoint], name: str) -> Iterable[tuple[Key, float]]:
    for point in points:
        if point.name == name:
            number = point.count if point.count is not None else point.value
            yield key_of({key: str(value) for key, value in point.attributes.items()}), number or 0


def _is_final(points: Iterable[MetricPoint], log: Log) -> bool:
    return sum(value for _key, value in _values(points, "amptalk.agent.messages.processed")) == sum(
        log.processed.values()
    )
