"""A program of generation "core" whose every message has a known fate, and its own log of them.

A gateway sends everything through its outbox; workers process, fail, forward to a sink and write to nobody. The log
is made by the program itself and not by what is tested.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.core_runtime import CoreAgent, CoreMessage, CoreOrchestrator

TYPES = ("audio", "transcript", "translation", "sentiment", "summary")
GATEWAY, SINK, NOBODY = "gateway", "sink", "nobody"
EARLY = ("worker-0", "worker-1")
LATE = ("created-later", "registered-later")
ORCHESTRATOR = CoreOrchestrator.__qualname__  # it has no name

Key = tuple[str, ...]


@dataclass
class Log:
    """What the program did. Keys are (agent.id or orchestrator.name, message.type, and one more where there is one)."""

    received: Counter[Key] = field(default_factory=Counter)
    processed: Counter[Key] = field(default_factory=Counter)
    failed: Counter[Key] = field(default_factory=Counter)
    sent: Counter[Key] = field(default_factory=Counter)
    undeliverable: Counter[Key] = field(default_factory=Counter)
    routed: Counter[Key] = field(default_factory=Counter)
    handled: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(list))  # by (agent, source): in order

    @property
    def finished(self) -> int:
        return sum(self.processed.values()) + sum(self.failed.values())

    @property
    def processing(self) -> Counter[Key]:
        """How often processing ended, by (agent, type)."""
        total = Counter(self.processed)
        for (agent, kind, _error), number in self.failed.items():
            total[agent, kind] += number
        return total

    def sends(self, source: str, target: str, kind: str) -> None:
        if target == NOBODY:
            self.undeliverable[source, kind, "unknown_target"] += 1
            return
        self.sent[source, kind] += 1
        self.routed[ORCHESTRATOR, kind] += 1
        self.received[target, kind] += 1


class Worker(CoreAgent):
    """Does what the payload says."""

    def __init__(self, agent_id: str, agent_type: str, *, log: Log) -> None:
        super().__init__(agent_id, agent_type)
        self.log = log

    async def _process_message(self, message: CoreMessage) -> None:
        kind, index = message.message_type, message.payload["index"]
        self.log.handled[self.agent_id, message.source_agent].append(index)
        if index % 5 == 0:
            await asyncio.sleep(0)
        if self.agent_id != SINK:
            await self._meet_fate(kind, index)
        self.log.processed[self.agent_id, kind] += 1

    async def _meet_fate(self, kind: str, index: int) -> None:
        for divisor, error in ((17, ValueError("bad")), (41, LookupError("missing"))):
            if index % divisor == 0:
                self.log.failed[self.agent_id, kind, type(error).__qualname__] += 1
                raise error
        if index % 11 == 0 or index % 29 == 0:
            target = SINK if index % 11 == 0 else NOBODY
            self.log.sends(self.agent_id, target, "summary")
            await self.send_message(target, "summary", {"index": index})


class Program:
    """The orchestrator, its agents, and the log."""

    def __init__(self) -> None:
        self.log = Log()
        self.orchestrator = CoreOrchestrator()
        self.agents: dict[str, CoreAgent] = {}

    async def start(self) -> None:
        """Agents of three kinds: there before the start, created later, and registered later."""
        for agent_id in (GATEWAY, *EARLY, SINK):
            await self.orchestrator.register_agent(Worker(agent_id, "worker", log=self.log))
        await self.orchestrator.start()

    async def add_late_agents(self) -> None:
        await self.orchestrator.create_agent(Worker, LATE[0], "worker", log=self.log)
        await self.orchestrator.register_agent(Worker(LATE[1], "worker", log=self.log))

    async def run(self, messages: int) -> None:
        """Send `messages` messages, the second half to the late agents too; wait until all are finished."""
        for index in range(messages):
            if index == messages // 2:
                await self.add_late_agents()
            workers = EARLY if index < messages // 2 else EARLY + LATE
            await self._send(index, workers[index % 7 % len(workers)])
            if index % 50 == 0:
                await asyncio.sleep(0)
        await self.finish()

    async def _send(self, index: int, target: str) -> None:
        kind = TYPES[index % len(TYPES)]
        payload = {"index": index}
        if index % 13 == 0:  # past the router, straight into the inbox
            self.log.received[target, kind] += 1
            await self.orchestrator.agents[target].inbox.put(CoreMessage("driver", target, kind, payload))
            return
        target = NOBODY if index % 97 == 96 else target
        self.log.sends(GATEWAY, target, kind)
        await self.orchestrator.agents[GATEWAY].send_message(target, kind, payload)

    async def finish(self) -> None:
        """Wait until every message has met its fate and every outbox is empty."""
        while self.log.finished < sum(self.log.received.values()) or self._unsent():
            await asyncio.sleep(0.001)

    def _unsent(self) -> int:
        return sum(agent.outbox.qsize() for agent in self.orchestrator.agents.values())

    def outcome(self) -> dict[str, Any]:
        """Everything that the program can tell of its run.

        The order is that of each sender; what the sink gets depends on when the workers came to it.
        """
        handled = {key: sorted(one) if key[0] == SINK else one for key, one in self.log.handled.items()}
        return {
            "handled": handled,
            "errors": {agent.agent_id: agent.error_count for agent in self.orchestrator.agents.values()},
            "status": {agent.agent_id: agent.status.value for agent in self.orchestrator.agents.values()},
        }
