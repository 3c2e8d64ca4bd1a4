"""Each code block of the requirement document runs with only its import line changed, and does what the text says."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import amptalk_otel
from amptalk_otel import PerformanceMonitor, _pipeline, get_monitor, performance_monitor
from amptalk_otel._server import MetricsServer
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent, agents
from amptalk_otel.demo.runtime.agents import Agent
from tests.page import no_global_monitor, scrape
from tests.requirement_document import BLOCKS, IMPORTED_FROM
from tests.support import Clock, in_loop, note


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    with no_global_monitor():
        yield


@pytest.fixture(autouse=True)
def port_8000(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's port may be taken on this machine: whoever asks for 8000 binds a free one instead."""

    def serve(registry: Any, host: str, port: int, **options: Any) -> MetricsServer:
        assert port == 8000
        return MetricsServer(registry, host, 0, **options)

    monkeypatch.setattr(_pipeline, "MetricsServer", serve)


class DocumentedOrchestrator(Orchestrator):
    """Takes the keyword that the document shows, and lets its agents register themselves when they start."""

    def __init__(self, name: str, enable_performance_monitoring: bool = False) -> None:
        super().__init__(name)
        self.enable_performance_monitoring = enable_performance_monitoring

    def register_agent(self, agent: Agent, groups: Iterable[str] | None = None) -> None:
        agent.enable_performance_monitoring = self.enable_performance_monitoring
        super().register_agent(agent, groups)


@pytest.fixture
def orchestrator_class(monkeypatch: pytest.MonkeyPatch) -> type[DocumentedOrchestrator]:
    monkeypatch.setattr(agents, "get_monitor", get_monitor)
    return DocumentedOrchestrator


def block(section: str) -> str:
    """The section's one block as it is run: with another first line, and nothing else."""
    (code,) = [one.code for one in BLOCKS if one.section == section]
    changed = code.replace(IMPORTED_FROM, "amptalk_otel")
    differing = [pair for pair in zip(code.splitlines(), changed.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(differing) == 1
    assert differing[0][0].startswith(f"from {IMPORTED_FROM} import ")
    return changed


async def run(section: str, **scope: Any) -> dict[str, Any]:
    """Run a block, top-level await and all; returns its names."""
    code = compile(block(section), section, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, scope)
    if inspect.isawaitable(result):
        await result
    return scope


def test_these_are_all_blocks_of_the_document() -> None:
    assert [one.section for one in BLOCKS] == list(RUNNERS)
    assert len(RUNNERS) == 3


@pytest.mark.parametrize("section", [one.section for one in BLOCKS])
def test_a_block_runs_and_does_what_the_document_says(
    section: str, orchestrator_class: type[DocumentedOrchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    RUNNERS[section](orchestrator_class, monkeypatch)


@in_loop
async def basic_setup(orchestrator_class: type[DocumentedOrchestrator], _monkeypatch: pytest.MonkeyPatch) -> None:
    scope = await run("Basic Setup", Orchestrator=orchestrator_class)
    monitor, orchestrator = scope["monitor"], scope["orchestrator"]
    assert isinstance(monitor, PerformanceMonitor)
    assert get_monitor() is monitor
    assert (monitor.prometheus_port, monitor.collection_interval_seconds, monitor.is_collecting) == (8000, 1.0, True)
    before = await scrape(monitor.metrics_url)
    assert before.value("process_memory_usage_bytes") is not None
    assert before.names("amptalk_agent_") == set()

    agent = SimpleAgent(agent_id="worker", name="Worker")
    orchestrator.register_agent(agent)
    await orchestrator.start()
    assert monitor.monitored_agents == {"worker": agent}
    assert agent._performance_monitor is monitor
    for _ in range(20):
        await orchestrator.send_message_to_agent(
            Message(message_type=MessageType.NLP_REQUEST, source_agent_id="you", target_agent_id="worker")
        )
    await agent.input_queue.join()
    page = await scrape(monitor.metrics_url)
    owner = {"agent_id": "worker", "agent_name": "Worker"}
    assert page.value("amptalk_agent_running", **owner) == 1
    assert page.value("amptalk_agent_messages_processed_total", **owner, message_type="nlp_request") == 20
    assert page.value("amptalk_agent_message_process_duration_seconds_count", **owner) == 20
    assert page.names("amptalk_agent_messages_failed") == set()
    assert (agent.stats.messages_processed, agent.stats.messages_failed) == (20, 0)
    await orchestrator.stop()
    await monitor.stop_collecting()  # the document's fifth best practice
    assert monitor.metrics_url is None


@in_loop
async def manual_registration(_class: type[DocumentedOrchestrator], monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[tuple[str, dict[str, Any]]] = []

    class Told(PerformanceMonitor):
        """Tells what it watches after each step of the block."""

        def add_agent(self, agent: Any) -> None:
            super().add_agent(agent)
            watched.append(("added", self.monitored_agents))
            agent.input_queue.put_nowait(note())

        def remove_agent(self, agent_id: str) -> None:
            super().remove_agent(agent_id)
            watched.append(("removed", self.monitored_agents))

    monkeypatch.setattr(performance_monitor, "PerformanceMonitor", Told)
    my_agent = SimpleAgent(agent_id="mine", name="Mine")
    untouched = set(vars(my_agent))
    scope = await run("Manual Agent Registration", my_agent=my_agent)
    assert watched == [("added", {"mine": my_agent}), ("removed", {})]
    assert set(vars(my_agent)) == untouched
    page = await scrape(scope["monitor"].metrics_url)  # the agent's last values stay for a while
    owner = {"agent_id": "mine", "agent_name": "Mine"}
    assert page.value("amptalk_agent_messages_received_total", **owner, message_type="command") == 1
    assert page.value("amptalk_agent_messages_dropped_total", **owner, reason="unregistered") == 1
    await scope["monitor"].stop_collecting()


@in_loop
async def measuring(_class: type[DocumentedOrchestrator], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(performance_monitor, "perf_counter", clock)
    monitor = await amptalk_otel.setup_performance_monitoring()

    async def perform_complex_operation() -> str:
        clock.advance(2.5)
        return "done"

    scope = await run(
        "Measuring Custom Operations", agent_id="worker", perform_complex_operation=perform_complex_operation
    )
    assert scope["monitor"] is monitor
    assert scope["result"] == "done"
    page = await scrape(monitor.metrics_url)
    labels = {"agent_id": "worker", "operation_name": "custom_operation"}
    assert page.value("amptalk_operation_duration_seconds_count", **labels) == 1
    assert page.value("amptalk_operation_duration_seconds_sum", **labels) == 2.5
    await monitor.stop_collecting()


RUNNERS: dict[str, Callable[[type[DocumentedOrchestrator], pytest.MonkeyPatch], None]] = {
    "Basic Setup": basic_setup,
    "Manual Agent Registration": manual_registration,
    "Measuring Custom Operations": measuring,
}
