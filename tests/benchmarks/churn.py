"""Agents that come and go: many in one process, few at a time, every scrape compared with those alive."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections import deque
from typing import Any

import psutil

from amptalk_otel import Config, instrument_orchestrator
from amptalk_otel._labels import RETIRED
from amptalk_otel.demo.runtime import Message, Orchestrator, SimpleAgent
from tests.benchmarks.harness import exactly, progress
from tests.benchmarks.peers import get
from tests.benchmarks.population import TYPES, message
from tests.benchmarks.report import Result, Table, number
from tests.benchmarks.workers import Child

ALIVE = 100
CONFIG = Config(metrics_exporters=("prometheus",), prometheus_port=0, departed_agents_linger_s=0.001)
_LINGERED_S = 0.01  # after this, nothing may be left of those that went
_QUARTERS = 4
_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_COUNTS = {  # what each agent must show: as many as the messages that it was given
    "amptalk_agent_messages_received_total",
    "amptalk_agent_messages_processed_total",
    "amptalk_agent_message_wait_duration_seconds_count",
    "amptalk_agent_message_process_duration_seconds_count",
}


def run(*, short: bool) -> Result:
    total, scrape_every = (5_000, 250) if short else (100_000, 500)
    with Child("churn", scrape_every=scrape_every) as worker:
        worker.ask("begin")
        reports = []
        for quarter in range(_QUARTERS):
            reports.append(worker.ask("replace", number=total // _QUARTERS, timeout_s=600.0))
            progress(f"{(quarter + 1) * total // _QUARTERS:,} agents of {total:,}")
    first, last = reports[0], reports[-1]
    rows = tuple(
        (
            f"{(index + 1) * 100 // _QUARTERS} %",
            f"{report['created']:,}",
            str(report["scrapes"]),
            str(report["wrong"]),
            str(report["overflow"]),
            number(report["resident"] / 1e6, 4),
            number(report["us_per_agent"]),
        )
        for index, report in enumerate(reports)
    )
    head = ("", "agents created", "scrapes", "wrong values", "overflow series", "memory, MB", "wall µs an agent")
    ratios = {
        "churn.wrong": exactly(last["wrong"]),
        "churn.overflow": exactly(last["overflow"]),
        "churn.memory": exactly(last["resident"] / first["resident"]),
    }
    wrong = tuple(f"Wrong: {line}" for line in last["examples"])
    notes = (
        f"{ALIVE} agents alive at a time; a scrape after every {scrape_every} that were replaced. An agent gets one to "
        f"three messages, and its four message counts must be that. Those of all that are gone are `{RETIRED}`'s.",
        f"Memory before the first agent was replaced: {number(first['resident_at_start'] / 1e6, 4)} MB.",
        *wrong,
    )
    return Result("churn", (Table(head, rows),), ratios, notes)


# -- the process that is measured ----------------------------------------------------------------------


class Worker:
    """A few agents that are replaced all the time."""

    def __init__(self, scrape_every: int) -> None:
        self._scrape_every = scrape_every
        self._orchestrator = Orchestrator(name="bench")
        self._alive: deque[SimpleAgent] = deque()
        self._given: dict[str, int] = {}  # messages, by the id of an agent that is alive
        self._created = self._scrapes = self._wrong = self._overflow = 0
        self._given_to_those_gone = 0
        self._examples: list[str] = []
        self._resident_at_start = 0

    async def prepare(self) -> None:
        await self._orchestrator.start()
        self._instrumentation = instrument_orchestrator(self._orchestrator, config=CONFIG)

    async def begin(self) -> None:
        """Fill the program, and scrape it once."""
        for _ in range(ALIVE):
            await self._come()
        await self._compare()
        self._resident_at_start = _resident()

    async def replace(self, number: int) -> dict[str, Any]:
        """Let `number` agents go, and as many come. What is returned counts from the beginning."""
        started = time.perf_counter()
        for index in range(number):
            await self._go()
            await self._come()
            if (index + 1) % self._scrape_every == 0:
                await self._compare()
        seconds = time.perf_counter() - started
        return {
            "created": self._created,
            "scrapes": self._scrapes,
            "wrong": self._wrong,
            "overflow": self._overflow,
            "examples": self._examples,
            "resident": _resident(),
            "resident_at_start": self._resident_at_start,
            "us_per_agent": seconds / number * 1e6,
        }

    async def _come(self) -> None:
        agent_id = f"agent-{self._created}"
        agent = SimpleAgent(agent_id=agent_id, name=f"Agent {self._created % 1000}")
        agent.register_message_handler(TYPES[0], _handle)
        self._orchestrator.register_agent(agent)
        await agent.start()
        messages = self._given[agent_id] = 1 + self._created % 3
        for _ in range(messages):
            await agent.enqueue_message(message(TYPES[0], agent_id))
        await asyncio.wait_for(agent.input_queue.join(), 10)
        self._alive.append(agent)
        self._created += 1

    async def _go(self) -> None:
        agent = self._alive.popleft()
        await agent.stop()
        self._orchestrator.unregister_agent(agent.agent_id)
        self._given_to_those_gone += self._given.pop(agent.agent_id)

    async def _compare(self) -> None:
        await asyncio.sleep(_LINGERED_S)
        page = (await asyncio.to_thread(get, self._instrumentation.metrics_url, encoding="identity")).decode()
        self._scrapes += 1
        self._overflow += page.count("otel_metric_overflow")
        gone = {RETIRED: self._given_to_those_gone} if self._given_to_those_gone else {}
        complaints = differences_of(page, {**self._given, **gone})
        self._wrong += len(complaints)
        self._examples = (self._examples + complaints)[:3]


async def _handle(_message: Message) -> None:
    """Nothing: only the count matters."""


def differences_of(page: str, given: dict[str, int]) -> list[str]:
    """Where the page and the messages that each agent alive was given differ, in sentences."""
    shown: dict[tuple[str, str], float] = {}
    complaints = []
    for name, text, value in _SAMPLE.findall(page):
        agent_id = dict(_LABEL.findall(text)).get("agent_id")
        if agent_id is None:
            continue
        if agent_id not in given:
            complaints.append(f"{name} of {agent_id}, which is gone")
        elif name in _COUNTS:
            shown[name, agent_id] = shown.get((name, agent_id), 0.0) + float(value)
    for agent_id, messages in given.items():
        for name in sorted(_COUNTS):
            if shown.get((name, agent_id)) != messages:
                complaints.append(f"{name} of {agent_id} is {shown.get((name, agent_id))}, not {messages}")
    return complaints


def _resident() -> int:
    """Bytes of memory that the process has now, garbage excluded."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)
