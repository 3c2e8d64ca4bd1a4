"""A program whose every message has a known fate, and its own log of them: the ground truth for exact tests.

Six agents and five message types. The payload of each message says what its handler does, so the log is made
by the program itself and not by what is tested.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent

TYPES = (
    MessageType.AUDIO_INPUT,
    MessageType.TRANSCRIPTION_RESULT,
    MessageType.NLP_REQUEST,
    MessageType.SENTIMENT_REQUEST,
    MessageType.SUMMARY_REQUEST,
)
WORKERS = ("worker-0", "worker-1", "worker-2", "worker-3", "worker-4")
SINK = "sink"
NOBODY = "nobody"

Key = tuple[str, ...]


@dataclass
class Log:
    """What the program did, by its own account. Keys are (agent.id, message.type, and one more where there is one)."""

    received: Counter[Key] = field(default_factory=Counter)
    processed: Counter[Key] = field(default_factory=Counter)
    failed: Counter[Key] = field(default_factory=Counter)
    retries: Counter[Key] = field(default_factory=Counter)
    sent: Counter[Key] = field(default_factory=Counter)
    undeliverable: Counter[Key] = field(default_factory=Counter)
    routed: Counter[Key] = field(default_factory=Counter)
    misrouted: Counter[Key] = field(default_factory=Counter)
    events: list[Any] = field(default_factory=list)

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


def plan_of(index: int) -> str:
    """The fate of the message with this index: a few of each kind among many that just succeed."""
    if index % 400 == 13:
        return "doomed"
    if index % 250 == 7:
        return "flaky"
    for divisor, plan in ((17, "fail"), (11, "reply"), (29, "lost")):
        if index % divisor == 0:
            return plan
    return "ok"


class Program:
    """The orchestrator, its agents, and the log."""

    def __init__(self, *, base_retry_delay: float = 0.001) -> None:
        self.log = Log()
        self.orchestrator = Orchestrator(name="truth")
        self.agents: dict[str, SimpleAgent] = {}
        self._attempts: Counter[int] = Counter()
        for agent_id in (*WORKERS, SINK):
            self.agents[agent_id] = self._make_agent(agent_id, base_retry_delay)
        for worker in WORKERS:
            self.orchestrator.connect_agents(worker, SINK)

    def _make_agent(self, agent_id: str, base_retry_delay: float) -> SimpleAgent:
        agent = SimpleAgent(agent_id=agent_id, name=agent_id.upper())
        agent.base_retry_delay = base_retry_delay
        agent.retry_jitter = 0.0
        for kind in TYPES:
            agent.register_message_handler(kind, self._handler(agent_id))
        self.orchestrator.register_agent(agent)
        return agent

    def _handler(self, agent_id: str) -> Callable[[Message], Any]:
        async def handle(message: Message) -> list[Message] | None:
            return await self._handle(agent_id, message)

        return handle

    async def _handle(self, agent_id: str, message: Message) -> list[Message] | None:
        kind, plan, index = message.message_type.value, message.payload["plan"], message.payload["index"]
        self.log.events.append((agent_id, kind, plan, index))
        if index % 5 == 0:
            await asyncio.sleep(0)
        if plan == "fail":
            self.log.failed[agent_id, kind, "ValueError"] += 1
            raise ValueError(f"message {index} is bad")
        if plan in ("flaky", "doomed"):
            self._try_in_vain(agent_id, kind, plan, index)
        self.log.processed[agent_id, kind] += 1
        return [self._reply(agent_id, message)] if plan in ("reply", "lost") else None

    def _try_in_vain(self, agent_id: str, kind: str, plan: str, index: int) -> None:
        """Fail with an error that is retried: twice for a flaky message, four times for a doomed one."""
        attempt = self._attempts[index] = self._attempts[index] + 1
        if attempt > 1:
            self.log.retries[agent_id, kind, "ConnectionError"] += 1
        if plan == "doomed" and attempt == 4:
            self.log.failed[agent_id, kind, "ConnectionError"] += 1
        if plan == "doomed" or attempt < 3:
            raise ConnectionError(f"message {index} has no line")

    def _reply(self, agent_id: str, message: Message) -> Message:
        lost = message.payload["plan"] == "lost"
        reply = message.create_reply(MessageType.SUMMARY_REQUEST, {"plan": "ok", "index": -1})
        reply.source_agent_id, reply.target_agent_id = agent_id, NOBODY if lost else SINK
        kind = reply.message_type.value
        if lost:
            self.log.undeliverable[agent_id, kind, "unknown_target"] += 1
        else:
            self.log.sent[agent_id, kind] += 1
            self.log.received[SINK, kind] += 1
        return reply

    async def send(self, index: int) -> bool:
        """Send the message with this index through the orchestrator; one in 97 to an agent that there is not."""
        kind, target = TYPES[index % len(TYPES)], WORKERS[index % 7 % len(WORKERS)]
        if index % 97 == 96:
            target = NOBODY
            self.log.misrouted["truth", kind.value, "unknown_target"] += 1
        else:
            self.log.received[target, kind.value] += 1
            self.log.routed["truth", kind.value] += 1
        payload = {"plan": plan_of(index), "index": index}
        message = Message(message_type=kind, source_agent_id="driver", target_agent_id=target, payload=payload)
        delivered = await self.orchestrator.send_message_to_agent(message)
        self.log.events.append(("sent", index, delivered))
        return delivered

    async def broadcast(self) -> bool:
        """One message to every agent."""
        kind = MessageType.AUDIO_INPUT
        for agent_id in self.agents:
            self.log.received[agent_id, kind.value] += 1
            self.log.routed["truth", kind.value] += 1
        message = Message(message_type=kind, source_agent_id="driver", payload={"plan": "ok", "index": -2})
        return await self.orchestrator.broadcast_message(message)

    async def run(self, messages: int, *, pause_every: int = 500, pause_s: float = 0.0) -> None:
        """Send `messages` messages, a broadcast in the middle, and wait until all are finished."""
        for index in range(messages):
            if index == messages // 2:
                await self.broadcast()
            await self.send(index)
            if index % pause_every == 0:
                await asyncio.sleep(pause_s)
        await self.finish()

    async def finish(self, timeout_s: float = 60.0) -> None:
        """Wait until every message has met its fate."""
        until = asyncio.get_running_loop().time() + timeout_s
        while self.log.finished < sum(self.log.received.values()):
            assert asyncio.get_running_loop().time() < until, "the program did not finish its messages"
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
