"""How a message gets from one agent's hands into another agent's inbox."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Protocol

from .messages import Message

logger: logging.Logger = logging.getLogger(__name__)


class Receiver(Protocol):
    """Whoever takes a message."""

    async def enqueue_message(self, message: Message) -> None: ...


class CommunicationMode(Enum):
    """Ways to carry a message. The last three are declared only."""

    LOCAL = "local"
    MEMORY_CHANNEL = "memory_channel"
    SOCKET = "socket"
    HTTP = "http"
    WEBSOCKET = "websocket"


@dataclass
class CommunicationConfig:
    """How to carry messages."""

    mode: CommunicationMode = CommunicationMode.LOCAL


@dataclass
class MessageTracker:
    """What went through a communication manager."""

    total_messages_sent: int = 0
    total_messages_delivered: int = 0
    total_messages_failed: int = 0
    total_bytes_sent: int = 0


class CommunicationManager:
    """Carries messages in the way its configuration says."""

    def __init__(self, config: CommunicationConfig | None = None) -> None:
        self.config: CommunicationConfig = config or CommunicationConfig()
        self.tracker: MessageTracker = MessageTracker()

    async def send_message(self, message: Message, target_agent: Receiver) -> bool:
        """Deliver to the target; False when expired, unsupported or failed."""
        message.metadata.hop_count += 1
        if message.metadata.hop_count > message.metadata.ttl:
            # Nobody but the tracker learns of it, as in the framework.
            self.tracker.total_messages_failed += 1
            return False
        self.tracker.total_messages_sent += 1
        try:
            delivered = await self._deliver(message, target_agent)
        except Exception:
            logger.exception("could not deliver message %s", message.message_id)
            delivered = False
        if delivered:
            self.tracker.total_messages_delivered += 1
        else:
            self.tracker.total_messages_failed += 1
        return delivered

    async def _deliver(self, message: Message, target: Receiver) -> bool:
        if self.config.mode is CommunicationMode.LOCAL:
            await target.enqueue_message(message)
            return True
        if self.config.mode is CommunicationMode.MEMORY_CHANNEL:
            data = message.to_json().encode()
            self.tracker.total_bytes_sent += len(data)
            await target.enqueue_message(Message.from_json(data))
            return True
        return False

    def get_metrics(self) -> dict[str, Any]:
        return {"mode": self.config.mode.value, **asdict(self.tracker)}
