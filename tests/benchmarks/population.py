"""Agents to be watched: as many as wanted, all alike, with a handler that only counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent

BATCH = 100
TYPES: tuple[MessageType, ...] = tuple(MessageType)[:8]
_TIMEOUT_S = 120.0


def message(kind: MessageType, target: str) -> Message:
    return Message(message_type=kind, source_agent_id="driver", target_agent_id=target, payload={})


class Population:
    """Agents of one orchestrator, and how many messages they have handled together."""

    def __init__(self, agents: int, kind: type[SimpleAgent] = SimpleAgent, *, types: Sequence[MessageType]) -> None:
        """Needs a running event loop: the orchestrator spawns tasks."""
        self.types = types
        self.handled = 0
        self.orchestrator = Orchestrator(name="bench")
        self.agents = [self._make(kind, index) for index in range(agents)]

    def _make(self, kind: type[SimpleAgent], index: int) -> SimpleAgent:
        agent = kind(agent_id=f"agent-{index:05}", name=f"Agent {index:05}")
        agent.enable_performance_monitoring = False
        for message_type in self.types:
            agent.register_message_handler(message_type, self._handle)
        self.orchestrator.register_agent(agent)
        return agent

    async def _handle(self, _message: Message) -> None:
        self.handled += 1

    async def start(self) -> None:
        await self.orchestrator.start()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        await self.orchestrator.stop()

    def messages(self, number: int) -> list[Message]:
        """Messages for `send`: types take turns, each agent gets each type."""
        size = len(self.agents)
        return [
            message(self.types[(index // size + index) % len(self.types)], self.agents[index % size].agent_id)
            for index in range(number)
        ]

    def ways(self) -> Sequence[Callable[[Message], Awaitable[object]]]:
        """What messages are handed to, in turn."""
        return [agent.enqueue_message for agent in self.agents]

    async def send(self, messages: Sequence[Message]) -> None:
        """Put the messages into the inboxes, agent after agent, in batches; return when all are handled."""
        expected = self.handled + len(messages)
        ways = self.ways()
        size = len(ways)
        for start in range(0, len(messages), BATCH):
            for index in range(start, min(start + BATCH, len(messages))):
                await ways[index % size](messages[index])
            await asyncio.sleep(0)
        until = asyncio.get_running_loop().time() + _TIMEOUT_S
        while self.handled < expected:
            await asyncio.sleep(0)
            if asyncio.get_running_loop().time() > until:
                raise TimeoutError(f"{expected - self.handled} messages were not handled")

    async def touch(self) -> None:
        """Every agent handles one message, so that everything on a page changes."""
        await self.send(self.messages(len(self.agents)))
