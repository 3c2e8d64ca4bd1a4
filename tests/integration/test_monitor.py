"""Metrics that a program defines itself, in a real Prometheus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amptalk_otel import PerformanceMonitor
from tests.integration.servers import Prometheus, check_metrics, fetch
from tests.page import Page, scrape_now
from tests.support import Scripted, handle, note

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

OWNERS = ({"agent_id": "a", "agent_name": "A"}, {"agent_id": "b", "agent_name": "B"})


def fail(_agent: Any) -> None:
    raise RuntimeError("no connection")


@pytest.fixture
def monitor() -> Iterator[PerformanceMonitor]:
    """Two agents with two and three messages, and metrics of each kind, of which some can't be read."""
    monitor = PerformanceMonitor(prometheus_port=0)
    agents = [Scripted(agent_id=name, name=name.upper()) for name in ("a", "b")]
    for agent in agents:
        monitor.add_agent(agent)
    monitor.observe(
        "program.seen", lambda agent: len(agent.seen), unit="{message}", description="Seen.", kind="counter"
    )
    monitor.observe(
        "program.cache.size", lambda: 4096, unit="By", description="Cached.", kind="up_down_counter", per="process"
    )
    monitor.observe("program.lag", lambda agent: 0.25 if agent.agent_id == "a" else -1.5, unit="s", description="Lag.")
    monitor.observe("program.broken", fail, description="Never there.")
    monitor.observe("program.nonsense", lambda: "much", description="Never there.", per="process")
    monitor.observe("program.huge", lambda: 10**400, description="Never there.", per="process")
    monitor.observe(
        "program.half", lambda agent: 7 if agent.agent_id == "b" else float("nan"), description="Of one only."
    )
    monitor.meter.create_counter("program.documents", "{document}", "Read.").add(3, {"language": "de"})
    with monitor.measure_execution_time("a", "own"):
        asyncio.run(handle(agents[0], note(), note()))
    asyncio.run(handle(agents[1], note(), note(), note()))
    yield monitor
    asyncio.run(monitor.stop_collecting())


def stored(prometheus: Prometheus, query: str) -> list[tuple[dict[str, str], float]]:
    """Labels without those of the scrape, and value, of each series."""
    hidden = ("job", "instance", "__name__")
    found = [
        ({key: one.labels[key] for key in one.labels if key not in hidden}, one.value)
        for one in prometheus.query(query)
    ]
    return sorted(found, key=str)


def metadata(prometheus: Prometheus) -> dict[str, tuple[str, str, str]]:
    """Type, unit and description by name. Prometheus reads OpenMetrics, where counters are named without `_total`."""
    data = json.loads(fetch(f"{prometheus.url}/api/v1/metadata"))["data"]
    return {
        name: (entry["type"], entry["unit"], entry["help"])
        for name, (entry, *_others) in data.items()
        if name.startswith("program_")
    }


def test_custom_metrics_arrive_with_name_unit_labels_and_values(
    monitor: PerformanceMonitor, prometheus_factory: Callable[..., Prometheus]
) -> None:
    assert monitor.metrics_url is not None
    with prometheus_factory([monitor.metrics_url]) as prometheus:
        prometheus.wait_for("up == 1")
        assert stored(prometheus, "program_seen_total") == [(OWNERS[0], 2), (OWNERS[1], 3)]
        assert stored(prometheus, "program_cache_size_bytes") == [({}, 4096)]
        assert stored(prometheus, "program_lag_seconds") == [(OWNERS[0], 0.25), (OWNERS[1], -1.5)]
        assert stored(prometheus, "program_half") == [(OWNERS[1], 7)]
        assert stored(prometheus, "program_documents_total") == [({"language": "de"}, 3)]
        assert stored(prometheus, '{__name__=~"program_(broken|nonsense|huge).*"}') == []
        names = {one.labels["__name__"] for one in prometheus.query('{__name__=~"program_.+"}')}
        assert names == {
            "program_seen_total", "program_cache_size_bytes", "program_lag_seconds", "program_half",
            "program_documents_total",
        }  # fmt: skip
        assert metadata(prometheus) == {
            "program_seen": ("counter", "", "Seen."),
            "program_cache_size_bytes": ("gauge", "bytes", "Cached."),
            "program_lag_seconds": ("gauge", "seconds", "Lag."),
            "program_half": ("gauge", "", "Of one only."),
            "program_documents": ("counter", "", "Read."),
        }


def test_a_failing_read_leaves_the_rest_of_the_page_intact(
    monitor: PerformanceMonitor, prometheus_factory: Callable[..., Prometheus]
) -> None:
    assert monitor.metrics_url is not None
    with prometheus_factory([monitor.metrics_url]) as prometheus:
        prometheus.wait_for("up == 1")
        kind = {"message_type": "command"}
        processed = [({**OWNERS[0], **kind}, 2), ({**OWNERS[1], **kind}, 3)]
        assert stored(prometheus, "amptalk_agent_messages_processed_total") == processed
        assert stored(prometheus, "amptalk_agent_message_process_duration_seconds_count") == processed
        assert stored(prometheus, "amptalk_agent_queue_size") == [(OWNERS[0], 0), (OWNERS[1], 0)]
        own = {**OWNERS[0], "operation_name": "own"}
        assert stored(prometheus, "amptalk_operation_duration_seconds_count") == [(own, 1)]
        assert len(stored(prometheus, "process_memory_usage_bytes")) == 1
        assert stored(prometheus, "scrape_samples_scraped")[0][1] >= 100


def test_promtool_finds_nothing_to_say(monitor: PerformanceMonitor, promtool: object) -> None:
    page: Page = scrape_now(monitor.metrics_url)
    assert page.names("program_") >= {"program_seen_total", "program_lag_seconds"}
    assert check_metrics(page.text) == (0, "")
