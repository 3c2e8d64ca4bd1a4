"""The orchestrator: knows all agents, starts and stops them, and routes messages to them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from .agents import Agent
from .communication import CommunicationConfig, CommunicationManager
from .messages import Message

logger: logging.Logger = logging.getLogger(__name__)

EventHook = Callable[..., Awaitable[Any]]
EVENTS = (
    "agent_added",
    "agent_removed",
    "system_started",
    "system_stopped",
    "message_routed",
    "error",
)


class Orchestrator:
    """Holds the agents of one program, in groups where wanted.

    The signatures are the framework's, positional booleans (FBT) included.
    """

    def __init__(
        self,
        name: str = "orchestrator",
        communication_config: CommunicationConfig | None = None,
    ) -> None:
        self.name = name
        self.orchestrator_id: str = str(uuid.uuid4())
        self.agents: dict[str, Agent] = {}
        self.agent_groups: dict[str, set[str]] = {}
        self.is_running: bool = False
        self.tasks: list[asyncio.Task[None]] = []
        self.communication_config = communication_config
        self.communication_manager: CommunicationManager = CommunicationManager(communication_config)
        self.event_hooks: dict[str, list[EventHook]] = {event: [] for event in EVENTS}
        self.enable_performance_monitoring = False
        self._performance_monitor: Any = None

    # -- who is there -------------------------------------------------------------------------

    def register_agent(self, agent: Agent, groups: Iterable[str] | None = None) -> None:
        """Take an agent in. Spawns a task, so it needs a running event loop."""
        self.agents[agent.agent_id] = agent
        for group in groups or ():
            self.add_agent_to_group(agent.agent_id, group)
        self._spawn(self._trigger_event("agent_added", agent=agent))

    def add_agent(self, agent: Agent, groups: Iterable[str] | None = None) -> None:
        """Take an agent in and let it share the orchestrator's way of communicating."""
        if self.communication_config is not None and agent.communication_config is None:
            agent.communication_config = self.communication_config
            agent.communication_manager = self.communication_manager
        self.register_agent(agent, groups)

    def unregister_agent(self, agent_id: str) -> bool:
        """Let an agent go. It is not stopped, and its inbox stays as it is."""
        agent = self.agents.pop(agent_id, None)
        if agent is None:
            return False
        for members in self.agent_groups.values():
            members.discard(agent_id)
        for other in self.agents.values():
            other.disconnect(agent_id)
        self._spawn(self._trigger_event("agent_removed", agent=agent))
        return True

    def add_agent_to_group(self, agent_id: str, group: str) -> None:
        self.agent_groups.setdefault(group, set()).add(agent_id)

    def connect_agents(self, agent_id: str, other_id: str, bidirectional: bool = True) -> bool:  # noqa: FBT001, FBT002
        agent, other = self.agents.get(agent_id), self.agents.get(other_id)
        if agent is None or other is None:
            return False
        agent.connect(other)
        if bidirectional:
            other.connect(agent)
        return True

    # -- life ---------------------------------------------------------------------------------

    async def start(self, start_agents: bool = True) -> None:  # noqa: FBT001, FBT002
        if self.is_running:
            return
        self.is_running = True
        if start_agents:
            for agent in list(self.agents.values()):
                await agent.start()
        await self._trigger_event("system_started", orchestrator=self)

    async def stop(self, stop_agents: bool = True) -> None:  # noqa: FBT001, FBT002
        if not self.is_running:
            return
        self.is_running = False
        if stop_agents:
            for agent in list(self.agents.values()):
                await agent.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        await self._trigger_event("system_stopped", orchestrator=self)

    async def start_agent(self, agent_id: str) -> bool:
        agent = self.agents.get(agent_id)
        if agent is not None:
            await agent.start()
        return agent is not None

    async def stop_agent(self, agent_id: str) -> bool:
        agent = self.agents.get(agent_id)
        if agent is not None:
            await agent.stop()
        return agent is not None

    # -- messages -----------------------------------------------------------------------------

    async def send_message_to_agent(self, message: Message) -> bool:
        target = self.agents.get(message.target_agent_id or "")
        if target is None:
            return False
        success = await self.communication_manager.send_message(message, target)
        await self._trigger_event("message_routed", message=message, target_agent=target)
        return success

    async def send_message_to_group(self, message: Message, group_id: str) -> bool:
        """Send a copy to each member; False when the group is unknown or empty."""
        members = [
            self.agents[agent_id] for agent_id in sorted(self.agent_groups.get(group_id, ())) if agent_id in self.agents
        ]
        for agent in members:
            clone = await self._enqueue_clone(message, agent)
            # Positional here and by keyword elsewhere, as in the framework.
            await self._trigger_event("message_routed", clone, agent)
        return bool(members)

    async def broadcast_message(self, message: Message) -> bool:
        """Send a copy to every agent; False when there is none."""
        agents = list(self.agents.values())
        for agent in agents:
            clone = await self._enqueue_clone(message, agent)
            await self._trigger_event("message_routed", message=clone, target_agent=agent)
        return bool(agents)

    async def _enqueue_clone(self, message: Message, agent: Agent) -> Message:
        clone = Message.from_dict(message.to_dict())
        clone.target_agent_id = agent.agent_id
        await agent.enqueue_message(clone)
        return clone

    # -- events -------------------------------------------------------------------------------

    def register_event_hook(self, event: str, hook: EventHook) -> None:
        self.event_hooks.setdefault(event, []).append(hook)

    async def _trigger_event(self, event: str, *args: Any, **kwargs: Any) -> None:
        for hook in self.event_hooks.get(event, ()):  # the list itself, as in the framework
            try:
                await hook(*args, **kwargs)
            except Exception:  # noqa: PERF203 - each hook may fail
                logger.exception("a hook of %s failed", event)

    def _spawn(self, event: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(event)
        self.tasks.append(task)
        task.add_done_callback(self._forget_task)

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        if task in self.tasks:
            self.tasks.remove(task)
