"""A stand-in for the older generation "core" of the framework: inboxes, outboxes, and a router between them."""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    INITIALIZING = "initializing"
    READY = "ready"
    BUSY = "busy"
    ERROR = "error"
    SHUTDOWN = "shutdown"


@dataclass
class CoreMessage:
    source_agent: str
    target_agent: str
    message_type: str
    payload: dict[str, Any]
    priority: int = 1
    message_id: str = field(default_factory=lambda: str(uuid.uuid4()))


class CoreAgent(ABC):
    """Runs `run()` until it is shut down; errors in `_process_message` are swallowed and counted."""

    def __init__(self, agent_id: str, agent_type: str) -> None:
        self.agent_id = agent_id
        self.agent_type = agent_type
        self.inbox: asyncio.Queue[CoreMessage] = asyncio.Queue()
        self.outbox: asyncio.Queue[CoreMessage] = asyncio.Queue()
        self.status = Status.INITIALIZING
        self.error_count = 0
        self.start_time = time.time()

    async def run(self) -> None:
        self.status = Status.READY
        while self.status is not Status.SHUTDOWN:
            await self.handle_message(await self.receive_message())

    async def receive_message(self) -> CoreMessage:
        return await self.inbox.get()

    async def handle_message(self, message: CoreMessage) -> None:
        self.status = Status.BUSY
        try:
            await self._process_message(message)
        except Exception:
            self.error_count += 1
        finally:
            self.status = Status.READY

    @abstractmethod
    async def _process_message(self, message: CoreMessage) -> None: ...

    async def send_message(
        self, target_agent: str, message_type: str, payload: dict[str, Any], priority: int = 1
    ) -> str:
        message = CoreMessage(self.agent_id, target_agent, message_type, payload, priority)
        await self.outbox.put(message)
        return message.message_id


class CoreOrchestrator:
    """Keeps a task for each agent, and one that routes their outboxes."""

    def __init__(self) -> None:
        self.agents: dict[str, CoreAgent] = {}
        self.agent_tasks: dict[str, asyncio.Task[None]] = {}
        self.running = False
        self._router: asyncio.Task[None] | None = None

    async def register_agent(self, agent: CoreAgent) -> None:
        self.agents[agent.agent_id] = agent
        if self.running:
            self.agent_tasks[agent.agent_id] = asyncio.create_task(agent.run())

    async def create_agent(self, kind: type[CoreAgent], agent_id: str, agent_type: str, **options: Any) -> CoreAgent:
        agent = kind(agent_id, agent_type, **options)
        await self.register_agent(agent)
        return agent

    async def start(self) -> None:
        self.running = True
        for agent_id, agent in self.agents.items():
            self.agent_tasks[agent_id] = asyncio.create_task(agent.run())
        self._router = asyncio.create_task(self._route())

    async def stop(self) -> None:
        self.running = False
        tasks = [*self.agent_tasks.values(), *([self._router] if self._router else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for agent in self.agents.values():
            agent.status = Status.SHUTDOWN

    async def _route(self) -> None:
        while self.running:
            for agent in list(self.agents.values()):
                while not agent.outbox.empty():
                    message = await agent.outbox.get()
                    target = self.agents.get(message.target_agent)
                    if target is not None:
                        await target.inbox.put(message)
            await asyncio.sleep(0.001)
