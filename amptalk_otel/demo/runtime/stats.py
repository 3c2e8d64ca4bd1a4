"""The counters an agent keeps about itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .messages import MessageType


@dataclass
class AgentStats:
    """Plain counts since the agent was made; times are seconds since the epoch."""

    messages_received: int = 0
    messages_processed: int = 0
    messages_sent: int = 0
    messages_failed: int = 0
    retries: int = 0
    successful_retries: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    received_by_type: dict[str, int] = field(default_factory=dict)
    total_processing_time: float = 0.0
    started_at: float | None = None
    stopped_at: float | None = None

    def mark_started(self) -> None:
        self.started_at = time.time()
        self.stopped_at = None

    def mark_stopped(self) -> None:
        self.stopped_at = time.time()

    def record_message_received(self, message_type: MessageType) -> None:
        self.messages_received += 1
        kind = message_type.value
        self.received_by_type[kind] = self.received_by_type.get(kind, 0) + 1

    def record_message_processed(self, processing_time: float | None = None) -> None:
        self.messages_processed += 1
        self.total_processing_time += processing_time or 0.0

    def record_message_sent(self) -> None:
        self.messages_sent += 1

    def record_message_failed(self, error_type: str) -> None:
        self.messages_failed += 1
        self.errors[error_type] = self.errors.get(error_type, 0) + 1

    def record_retry_attempt(self, *, success: bool = False) -> None:
        """Count a retry that is about to be made (False) or one that helped (True)."""
        if success:
            self.successful_retries += 1
        else:
            self.retries += 1

    def to_dict(self) -> dict[str, Any]:
        processed = self.messages_processed
        return {
            "messages_received": self.messages_received,
            "messages_processed": processed,
            "messages_sent": self.messages_sent,
            "messages_failed": self.messages_failed,
            "retries": self.retries,
            "successful_retries": self.successful_retries,
            "errors": dict(self.errors),
            "average_processing_time": self.total_processing_time / processed if processed else 0.0,
            "started_at": self.started_at,
            "stopped_at": self.stopped_at,
        }
