"""Agents: an inbox, a loop that empties it, and somewhere to send the replies."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from .communication import CommunicationConfig, CommunicationManager, CommunicationMode
from .messages import Message, MessageType
from .state import StateManager, StorageType, create_state_manager
from .stats import AgentStats

logger: logging.Logger = logging.getLogger(__name__)

ErrorHandler = Callable[[Message, dict[str, Any]], Awaitable["list[Message] | None"]]
MessageHandler = Callable[[Message], Awaitable["list[Message] | None"]]

#: Gives the program's performance monitor, when it has one.
get_monitor: Callable[[], Any] | None = None

_ALWAYS_RETRIED = (ConnectionError, TimeoutError, OSError)
_NEVER_RETRIED = (ValueError, TypeError, KeyError, AttributeError)


class Agent(ABC):
    """Takes messages from its inbox one at a time and sends on what processing them returns."""

    def __init__(
        self,
        agent_id: str | None = None,
        name: str | None = None,
        communication_config: CommunicationConfig | None = None,
    ) -> None:
        self.agent_id: str = agent_id or str(uuid.uuid4())
        self.name: str = name or f"{type(self).__name__}-{self.agent_id[:8]}"
        self.input_queue: asyncio.Queue[Message] = asyncio.Queue()
        self.message_handlers: dict[MessageType, MessageHandler] = {}
        self.is_running: bool = False
        self.connected_agents: dict[str, Agent] = {}
        self.state: dict[str, Any] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.communication_config = communication_config
        self.communication_manager: CommunicationManager | None = (
            CommunicationManager(communication_config) if communication_config else None
        )
        self.stats: AgentStats = AgentStats()
        self.enable_performance_monitoring = False
        self._performance_monitor: Any = None
        self.max_retry_attempts = 3
        self.base_retry_delay: float = 1.0
        self.max_retry_delay: float = 30.0
        self.retry_jitter: float = 0.1
        self.error_handlers: dict[str, ErrorHandler] = {}
        self.state_manager: StateManager | None = None
        self.state_persistence_enabled = False
        self.state_persistence_path: str | None = None
        self.state_persistence_interval: float = 60.0

    @abstractmethod
    async def process_message(self, message: Message) -> list[Message] | None:
        """Do the agent's work and return the messages to send on."""

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        if self.is_running:
            return
        self.is_running = True
        self.stats.mark_started()
        if self.state_persistence_enabled:
            await self._initialize_state_manager()
        if self.enable_performance_monitoring and get_monitor is not None:
            monitor = get_monitor()
            monitor.add_agent(self)
            self._performance_monitor = monitor
        self.tasks.append(asyncio.create_task(self._message_loop()))
        if self.state_manager is not None:
            self.tasks.append(asyncio.create_task(self._save_state_periodically()))
            await self._load_state()

    async def stop(self) -> None:
        """End the loop at once. What is still in the inbox stays there."""
        if not self.is_running:
            return
        self.is_running = False
        self.stats.mark_stopped()
        if self.state_persistence_enabled:
            await self._save_state()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []

    # -- messages -----------------------------------------------------------------------------

    async def enqueue_message(self, message: Message) -> None:
        self.stats.record_message_received(message.message_type)
        await self.input_queue.put(message)

    async def send_message(self, message: Message) -> bool:
        """Send to a connected agent; False, and counted nowhere, when that is not possible."""
        if not message.target_agent_id:
            return False
        target = self.connected_agents.get(message.target_agent_id)
        if target is None:
            return False
        try:
            config, manager = self.communication_config, self.communication_manager
            if config and manager and config.mode is not CommunicationMode.LOCAL:
                return await manager.send_message(message, target)
            await target.enqueue_message(message)
        except Exception:
            logger.exception("%s could not send message %s", self.name, message.message_id)
            return False
        self.stats.record_message_sent()
        return True

    async def _message_loop(self) -> None:
        while self.is_running:
            message: Message | None = None
            try:
                message = await self.input_queue.get()
                message.metadata.mark_processing_start()
                if self.enable_performance_monitoring and self._performance_monitor:
                    # As in the framework this can't work: `_measure_processing_time` is a coroutine
                    # function, so what it returns is no context manager and every message fails
                    # with TypeError (AttributeError before Python 3.11).
                    async with self._measure_processing_time(message):  # type: ignore[attr-defined]
                        responses = await self._process_with_retry(message)
                else:
                    responses = await self._process_with_retry(message)
                message.metadata.mark_processing_complete()
                self.stats.record_message_processed(message.metadata.processing_time)
                for response in responses or []:
                    await self.send_message(response)
            except Exception as error:
                if message is not None:
                    message.metadata.set_error(str(error), {"type": type(error).__name__})
                self.stats.record_message_failed(type(error).__name__)
                logger.debug("%s failed on a message", self.name, exc_info=True)
            finally:
                # As in the framework: when an idle loop is cancelled nothing was taken, and this
                # raises ValueError in place of CancelledError. stop() takes either.
                self.input_queue.task_done()

    async def _measure_processing_time(self, _message: Message) -> None:
        """Not usable as a context manager; see the loop."""
        await asyncio.sleep(0)

    async def _process_with_retry(self, message: Message) -> list[Message] | None:
        first_error: Exception | None = None
        last_error: Exception | None = None
        for attempt in range(1 + self.max_retry_attempts):
            try:
                if first_error is None:
                    return await self.process_message(message)
                message.metadata.retry_count = attempt
                result = await self._retry(message, first_error, attempt)
                self.stats.record_retry_attempt(success=True)
                return result
            except Exception as error:  # noqa: PERF203 - each attempt may fail
                first_error = first_error or error
                last_error = error
                if not self._is_recoverable_error(error) or attempt == self.max_retry_attempts:
                    break
                self.stats.record_retry_attempt(success=False)
                await asyncio.sleep(self._retry_delay(attempt + 1))
        assert last_error is not None
        raise last_error

    async def _retry(self, message: Message, first_error: Exception, attempt: int) -> list[Message] | None:
        handler = self.error_handlers.get(type(first_error).__name__)
        if handler is None:
            return await self.process_message(message)
        return await handler(message, {"error": first_error, "attempt": attempt, "agent": self})

    def _is_recoverable_error(self, error: Exception) -> bool:
        """Whether another attempt may help."""
        return is_retried(error)

    def _retry_delay(self, attempt: int) -> float:
        delay = min(self.base_retry_delay * 2.0 ** (attempt - 1), self.max_retry_delay)
        return max(0.0, delay * (1 + random.uniform(-self.retry_jitter, self.retry_jitter)))

    # -- connections and reports --------------------------------------------------------------

    def connect(self, agent: Agent) -> None:
        self.connected_agents[agent.agent_id] = agent

    def disconnect(self, agent_id: str) -> None:
        self.connected_agents.pop(agent_id, None)

    async def get_status(self) -> dict[str, Any]:
        return {
            "agent_id": self.agent_id,
            "name": self.name,
            "is_running": self.is_running,
            "queue_size": self.input_queue.qsize(),
            "connected_agents": list(self.connected_agents),
            "stats": self.stats.to_dict(),
            "performance_monitoring": {
                "enabled": self.enable_performance_monitoring,
                "registered": self._performance_monitor is not None,
            },
        }

    def get_communication_metrics(self) -> dict[str, Any]:
        return self.communication_manager.get_metrics() if self.communication_manager else {}

    # -- state --------------------------------------------------------------------------------

    async def _initialize_state_manager(self) -> None:
        path = self.state_persistence_path
        storage = StorageType.FILE if path else StorageType.MEMORY
        self.state_manager = create_state_manager(storage, path)

    async def _save_state(self) -> None:
        if self.state_manager is not None:
            await self.state_manager.save_state(self.agent_id, self.state)

    async def _load_state(self) -> None:
        if self.state_manager is not None:
            self.state.update(await self.state_manager.load_state(self.agent_id) or {})

    async def _save_state_periodically(self) -> None:
        while self.is_running:
            await asyncio.sleep(self.state_persistence_interval)
            await self._save_state()


class SimpleAgent(Agent):
    """Hands each message to the handler registered for its type."""

    def register_message_handler(self, message_type: MessageType, handler: MessageHandler) -> None:
        self.message_handlers[message_type] = handler

    async def process_message(self, message: Message) -> list[Message] | None:
        handler = self.message_handlers.get(message.message_type)
        return await handler(message) if handler is not None else None


def is_retried(error: Exception) -> bool:
    """Tell whether another attempt may help."""
    return isinstance(error, _ALWAYS_RETRIED) or not isinstance(error, _NEVER_RETRIED)
