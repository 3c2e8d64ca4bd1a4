"""A Collector that is killed and started again, again and again: what it has in the end is what the program knows."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from amptalk_otel import Config, Instrumentation
from tests.integration.servers import Collector
from tests.integration.test_ground_truth import _is_final, _values, expected_counts, nonzero, watch
from tests.workload import Program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

MESSAGES = 100_000
KILLS = 10


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_killed_ten_times_has_exact_sums_in_the_end(protocol: str, collector: Collector) -> None:
    messages = MESSAGES if protocol == "http/protobuf" else MESSAGES // 2
    config = Config(
        metrics_exporters=("otlp",),
        otlp_protocol=protocol,
        otlp_endpoint=collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint,
        metric_export_interval_s=0.25,
    )
    over = threading.Event()
    kills: list[int] = []

    def kill_at_each_tenth(program: Program) -> None:
        while len(kills) < KILLS and not over.wait(0.01):
            if program.log.finished >= (len(kills) + 0.5) * messages / KILLS:
                kills.append(program.log.finished)
                collector.kill()
                over.wait(0.1)
                collector.start()

    async def during(program: Program, _instrumentation: Instrumentation) -> None:
        killing = asyncio.create_task(asyncio.to_thread(kill_at_each_tenth, program))
        await program.run(messages, pause_every=100, pause_s=0.004)
        await killing

    def after(*_: Any) -> None:
        over.set()

    program = asyncio.run(watch(config, during, after))
    assert len(kills) == KILLS
    assert collector.starts == KILLS + 1
    points = list(collector.wait_for_metrics(lambda found: _is_final(found.values(), program.log)).values())
    for name, expected in expected_counts(program.log).items():
        assert nonzero(_values(points, name)) == dict(expected), name
    assert sum(program.log.received.values()) + sum(program.log.misrouted.values()) >= messages
