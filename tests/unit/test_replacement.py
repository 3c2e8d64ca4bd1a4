"""The three-minute migration: a framework tree whose `performance_monitor.py` is one import line."""

from __future__ import annotations

import asyncio
import importlib
import sys
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from amptalk_otel import PerformanceMonitor, get_monitor, performance_monitor
from tests.page import free_port, no_global_monitor, scrape
from tests.support import Clock, identity, in_loop

MESSAGES = 1000
REPLACEMENT = "from amptalk_otel.performance_monitor import *\n"

#: Stands for the framework's own: it is never reached by a message.
ORIGINAL = """\
class PerformanceMonitor:
    def __init__(self):
        self.agents = {}
        self.recorded = []
        self.agent_processing_time = self

    def add_agent(self, agent):
        self.agents[agent.agent_id] = agent

    def record(self, seconds, attributes):
        self.recorded.append(seconds)

    async def stop_collecting(self):
        pass

_monitor = PerformanceMonitor()

def get_monitor(create_if_none=True):
    return _monitor

async def setup_performance_monitoring(**settings):
    return _monitor
"""

MESSAGE = "from amptalk_otel.demo.runtime.messages import *\n"

AGENT = """\
import time

from amptalk_otel.demo.runtime import agents

class Agent(agents.Agent):
    async def start(self):
        if not self.is_running and self.enable_performance_monitoring:
            from src.core.utils.performance_monitor import get_monitor
            monitor = get_monitor(create_if_none=True)
            monitor.add_agent(self)
            self._performance_monitor = monitor
        await super().start()

    async def _measure_processing_time(self, message):
        # A coroutine function where a context manager is needed: `async with` fails before it runs.
        monitor, began_at = self._performance_monitor, time.time()
        monitor.agent_processing_time.record(time.time() - began_at, {"agent_id": self.agent_id})

class SimpleAgent(Agent, agents.SimpleAgent):
    pass
"""

ORCHESTRATOR = """\
from amptalk_otel.demo.runtime import orchestrator

class Orchestrator(orchestrator.Orchestrator):
    def __init__(self, name, port):
        super().__init__(name)
        self.enable_performance_monitoring = True
        self._port = port

    async def start(self, start_agents=True):
        if self.enable_performance_monitoring:
            from src.core.utils.performance_monitor import setup_performance_monitoring
            self._performance_monitor = await setup_performance_monitoring(
                enable_prometheus=True, prometheus_port=self._port
            )
            for agent in self.agents.values():
                agent.enable_performance_monitoring = True
        await super().start(start_agents)

    async def stop(self, stop_agents=True):
        await super().stop(stop_agents)
        if self._performance_monitor:
            await self._performance_monitor.stop_collecting()
"""


class Framework(NamedTuple):
    """The tree's modules."""

    agent: ModuleType
    orchestrator: ModuleType
    message: ModuleType
    performance_monitor: ModuleType


def forget_tree() -> None:
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]


@pytest.fixture
def framework(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Framework]:
    """The framework's tree, with the `performance_monitor.py` that the test's parameter says."""
    files = {
        "framework/agent.py": AGENT,
        "framework/orchestrator.py": ORCHESTRATOR,
        "framework/message.py": MESSAGE,
        "utils/performance_monitor.py": getattr(request, "param", REPLACEMENT),
    }
    for package in ("", "core", "core/framework", "core/utils"):
        (tmp_path / "src" / package).mkdir(exist_ok=True)
        (tmp_path / "src" / package / "__init__.py").touch()
    for name, text in files.items():
        (tmp_path / "src/core" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    forget_tree()
    with no_global_monitor():
        yield Framework(
            agent=importlib.import_module("src.core.framework.agent"),
            orchestrator=importlib.import_module("src.core.framework.orchestrator"),
            message=importlib.import_module("src.core.framework.message"),
            performance_monitor=importlib.import_module("src.core.utils.performance_monitor"),
        )
    forget_tree()


@pytest.fixture
def port() -> Iterator[int]:
    with free_port() as port:
        yield port


class Program:
    """Three agents and what they handled."""

    def __init__(self, framework: Framework, port: int) -> None:
        self.framework = framework
        self.orchestrator = framework.orchestrator.Orchestrator("program", port)
        self.handled: Counter[tuple[str, str]] = Counter()
        self.types = (framework.message.MessageType.AUDIO_INPUT, framework.message.MessageType.NLP_REQUEST)
        self.agents = [self._agent(f"agent-{number}") for number in range(3)]

    def _agent(self, agent_id: str) -> Any:
        agent = self.framework.agent.SimpleAgent(agent_id=agent_id, name=agent_id.upper())

        async def handle(message: Any) -> None:
            self.handled[agent_id, message.message_type.value] += 1
            if message.payload["index"] % 7 == 0:
                await asyncio.sleep(0)

        for kind in self.types:
            agent.register_message_handler(kind, handle)
        self.orchestrator.register_agent(agent)
        return agent

    async def send(self, messages: int) -> Counter[tuple[str, str]]:
        """Returns how many were sent, by agent and type."""
        sent: Counter[tuple[str, str]] = Counter()
        for index in range(messages):
            agent, kind = self.agents[index % 3], self.types[index % 2]
            message = self.framework.message.Message(
                message_type=kind, source_agent_id="driver", target_agent_id=agent.agent_id, payload={"index": index}
            )
            assert await self.orchestrator.send_message_to_agent(message)
            sent[agent.agent_id, kind.value] += 1
        for agent in self.agents:
            await asyncio.wait_for(agent.input_queue.join(), 30)
        return sent

    def stats(self) -> tuple[int, int]:
        """(processed, failed), as the framework itself counts."""
        stats = [agent.stats for agent in self.agents]
        return sum(one.messages_processed for one in stats), sum(one.messages_failed for one in stats)


def test_the_tree_has_our_functions_and_nothing_else(framework: Framework) -> None:
    public = {name for name in vars(framework.performance_monitor) if not name.startswith("_")}
    assert public == set(performance_monitor.__all__)
    assert framework.performance_monitor.get_monitor is get_monitor


@pytest.mark.filterwarnings("ignore:coroutine 'Agent._measure_processing_time' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("framework", [ORIGINAL], indirect=True, ids=["original"])
@in_loop
async def test_without_the_replacement_every_message_fails(framework: Framework, port: int) -> None:
    program = Program(framework, port)
    await program.orchestrator.start()
    await program.send(MESSAGES)
    assert program.stats() == (0, MESSAGES)
    expected = "TypeError" if sys.version_info >= (3, 11) else "AttributeError"
    assert sum((Counter(agent.stats.errors) for agent in program.agents), Counter()) == {expected: MESSAGES}
    assert program.handled == {}
    assert framework.performance_monitor._monitor.recorded == []
    assert set(framework.performance_monitor._monitor.agents) == {"agent-0", "agent-1", "agent-2"}
    await program.orchestrator.stop()


@in_loop
async def test_with_it_all_messages_succeed_and_each_is_counted_once(framework: Framework, port: int) -> None:
    program = Program(framework, port)
    before = [set(vars(agent)) for agent in program.agents]
    await program.orchestrator.start()
    monitor = get_monitor(create_if_none=False)
    assert isinstance(monitor, PerformanceMonitor)
    assert monitor.metrics_url == f"http://localhost:{port}/metrics"
    assert [agent._performance_monitor for agent in program.agents] == [monitor] * 3
    assert list(monitor.monitored_agents.values()) == program.agents

    sent = await program.send(MESSAGES)
    assert sum(sent.values()) == MESSAGES
    assert program.handled == sent
    assert program.stats() == (MESSAGES, 0)
    page = await scrape(monitor.metrics_url)
    for name in (
        "amptalk_agent_messages_received_total",
        "amptalk_agent_messages_processed_total",
        "amptalk_agent_message_wait_duration_seconds_count",
        "amptalk_agent_message_process_duration_seconds_count",
    ):
        told = {
            (labels["agent_id"], labels["message_type"]): page.value(name, **labels) for labels in page.labels(name)
        }
        assert told == sent, name
    for number in range(3):
        owner = {"agent_id": f"agent-{number}", "agent_name": f"AGENT-{number}"}
        assert page.value("amptalk_agent_running", **owner) == 1
        assert page.value("amptalk_agent_queue_size", **owner) == 0
        assert page.value("amptalk_agent_messages_in_flight", **owner) == 0
    for name in ("amptalk_agent_messages_failed", "amptalk_agent_messages_dropped", "amptalk_agent_retries"):
        assert page.names(name) == set()

    await program.orchestrator.stop()
    assert get_monitor().metrics_url is None
    assert [set(vars(agent)) for agent in program.agents] == before
    with pytest.raises(urllib.error.URLError):
        await scrape(f"http://localhost:{port}/metrics")


@in_loop
async def test_the_agents_are_put_back_as_they_were(framework: Framework, port: int) -> None:
    program = Program(framework, port)
    await program.orchestrator.start()
    (agent, *_others) = program.agents
    assert agent.enable_performance_monitoring is False  # the broken path is not taken
    message = framework.message.Message(message_type=program.types[0], payload={})
    async with agent._measure_processing_time(message) as entered:
        assert entered is None
    await program.orchestrator.stop()
    assert agent.enable_performance_monitoring is True
    assert "_measure_processing_time" not in vars(agent)
    assert agent._performance_monitor is None
    get_monitor().agent_processing_time.record(0.1, {})  # which the framework's own measuring asks for


@pytest.mark.parametrize("leave", ["stop_collecting", "remove_agent", "stop_orchestrator"])
@in_loop
async def test_agents_that_go_on_without_the_monitor_handle_their_messages(
    framework: Framework, port: int, leave: str
) -> None:
    program = Program(framework, port)
    await program.orchestrator.start()
    await program.send(10)
    monitor = get_monitor()
    if leave == "remove_agent":
        for agent in program.agents:
            monitor.remove_agent(agent.agent_id)
    elif leave == "stop_collecting":
        await monitor.stop_collecting()
    else:
        await program.orchestrator.stop(stop_agents=False)
    await program.send(20)
    assert program.stats() == (30, 0)
    for agent in program.agents:
        await agent.stop()
    await monitor.stop_collecting()


@in_loop
async def test_a_program_that_starts_again_counts_again(framework: Framework, port: int) -> None:
    program = Program(framework, port)
    for number in (1, 2):
        await program.orchestrator.start()
        sent = await program.send(30)
        monitor = get_monitor()
        page = await scrape(monitor.metrics_url)
        name = "amptalk_agent_messages_processed_total"
        told = {
            (labels["agent_id"], labels["message_type"]): page.value(name, **labels) for labels in page.labels(name)
        }
        assert told == sent
        assert program.stats() == (30 * number, 0)
        await program.orchestrator.stop()


@in_loop
async def test_a_program_that_registers_a_late_agent_and_measures_operations(
    framework: Framework, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(performance_monitor, "perf_counter", clock)
    program = Program(framework, port)
    await program.orchestrator.start()
    late = program._agent("late")
    late.enable_performance_monitoring = True
    attributes = identity(late)
    await late.start()
    monitor = framework.performance_monitor.get_monitor()
    assert set(monitor.monitored_agents) == {"agent-0", "agent-1", "agent-2", "late"}
    program.agents[0] = late
    with monitor.measure_execution_time("late", "batch"):
        await program.send(9)
        clock.advance(3.0)
    page = await scrape(monitor.metrics_url)
    found = [
        page.value("amptalk_agent_messages_processed_total", agent_id="late", message_type=kind.value)
        for kind in program.types
    ]
    assert found == [2, 1]
    labels = {"agent_id": "late", "agent_name": "LATE", "operation_name": "batch"}
    assert page.value("amptalk_operation_duration_seconds_count", **labels) == 1
    assert page.value("amptalk_operation_duration_seconds_sum", **labels) == 3.0
    await program.orchestrator.stop()
    assert set(vars(late)) == set(attributes)


@in_loop
async def test_with_the_sdk_disabled_the_program_still_works(
    framework: Framework, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    program = Program(framework, port)
    await program.orchestrator.start()
    await program.send(30)
    assert program.stats() == (30, 0)
    assert get_monitor().metrics_url is None
    await program.orchestrator.stop()
