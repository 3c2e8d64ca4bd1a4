"""The program's results with and without instrumentation are identical: values, exceptions, order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from amptalk_otel import instrument_orchestrator
from tests.workload import Program


def run_program(*, instrumented: bool) -> tuple[list[Any], dict[str, Any]]:
    """Everything that the program saw happen, in order, and its own statistics at the end."""

    async def run() -> tuple[list[Any], dict[str, Any]]:
        program = Program(base_retry_delay=0.0)
        provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        instrumentation = None
        if instrumented:
            instrumentation = instrument_orchestrator(program.orchestrator, meter_provider=provider)
        await program.orchestrator.start()
        await program.run(2_000)
        statuses = {agent_id: await agent.get_status() for agent_id, agent in program.agents.items()}
        await program.orchestrator.stop()
        if instrumentation is not None:
            instrumentation.shutdown()
        provider.shutdown()
        return program.log.events, {agent_id: _without_times(status) for agent_id, status in statuses.items()}

    return asyncio.run(run())


def _without_times(status: dict[str, Any]) -> dict[str, Any]:
    times = ("average_processing_time", "started_at", "stopped_at")
    stats = {key: value for key, value in status["stats"].items() if key not in times}
    return {**status, "stats": stats}


def test_the_same_messages_are_handled_in_the_same_order_with_the_same_results() -> None:
    events, statuses = run_program(instrumented=False)
    events_watched, statuses_watched = run_program(instrumented=True)
    assert len(events) > 4_000
    assert events_watched == events
    assert statuses_watched == statuses


@pytest.mark.parametrize("instrumented", [False, True])
def test_what_a_send_returns_tells_whether_it_was_delivered(instrumented: bool) -> None:
    events, _statuses = run_program(instrumented=instrumented)
    undelivered = [event[1] for event in events if event[0] == "sent" and event[2] is False]
    assert undelivered == [index for index in range(2_000) if index % 97 == 96]
