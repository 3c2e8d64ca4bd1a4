"""What agents send each other: messages, their kinds and their metadata."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any


class MessageType(Enum):
    """What a message is about."""

    AUDIO_INPUT = "audio_input"
    AUDIO_CHUNK = "audio_chunk"
    AUDIO_PROCESSED = "audio_processed"
    TRANSCRIPTION_REQUEST = "transcription_request"
    TRANSCRIPTION_RESULT = "transcription_result"
    DIARIZATION_REQUEST = "diarization_request"
    DIARIZATION_RESULT = "diarization_result"
    NLP_REQUEST = "nlp_request"
    NLP_RESULT = "nlp_result"
    ENTITY_REQUEST = "entity_request"
    ENTITY_RESULT = "entity_result"
    TOPIC_REQUEST = "topic_request"
    TOPIC_RESULT = "topic_result"
    SENTIMENT_REQUEST = "sentiment_request"
    SENTIMENT_RESULT = "sentiment_result"
    SUMMARY_REQUEST = "summary_request"
    SUMMARY_RESULT = "summary_result"
    ACTION_ITEMS_REQUEST = "action_items_request"
    ACTION_ITEMS_RESULT = "action_items_result"
    DOCUMENT_INPUT = "document_input"
    DOCUMENT_PROCESSED = "document_processed"
    NOTIFICATION = "notification"
    STATUS_REQUEST = "status_request"
    STATUS_UPDATE = "status_update"
    CONFIG_UPDATE = "config_update"
    COMMAND = "command"
    HEARTBEAT = "heartbeat"
    ERROR = "error"


class MessagePriority(Enum):
    """How urgent a message is. Inboxes are first in, first out all the same."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


@dataclass
class MessageMetadata:
    """Where a message has been and how its processing went. Times are seconds since the epoch."""

    created_at: float = field(default_factory=time.time)
    processing_started_at: float | None = None
    processing_completed_at: float | None = None
    conversation_id: str | None = None
    parent_message_id: str | None = None
    hop_count: int = 0
    ttl: int = 10
    retry_count: int = 0
    max_retries: int = 3
    processing_time: float | None = None
    error: str | None = None
    error_details: dict[str, Any] | None = None
    recovery_attempts: list[dict[str, Any]] = field(default_factory=list)
    checkpoint_data: dict[str, Any] = field(default_factory=dict)
    last_successful_stage: str | None = None

    def mark_processing_start(self) -> None:
        self.processing_started_at = time.time()

    def mark_processing_complete(self) -> None:
        self.processing_completed_at = time.time()
        if self.processing_started_at is not None:
            self.processing_time = self.processing_completed_at - self.processing_started_at

    def set_error(self, error: str, details: dict[str, Any] | None = None) -> None:
        self.error = error
        self.error_details = details

    def add_checkpoint(self, stage: str, data: Any) -> None:
        self.checkpoint_data[stage] = data
        self.last_successful_stage = stage

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are: as in the framework, clones made by it share lists and dictionaries."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MessageMetadata:
        """Build from a dictionary; as in the framework, an unknown key raises TypeError."""
        return cls(**data)


@dataclass
class Message:
    """One message. Compares by value and is therefore not hashable."""

    message_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    message_type: MessageType = MessageType.COMMAND
    source_agent_id: str | None = None
    target_agent_id: str | None = None
    priority: MessagePriority = MessagePriority.NORMAL
    payload: dict[str, Any] = field(default_factory=dict)
    metadata: MessageMetadata = field(default_factory=MessageMetadata)

    def to_dict(self) -> dict[str, Any]:
        return {
            "message_id": self.message_id,
            "message_type": self.message_type.value,
            "source_agent_id": self.source_agent_id,
            "target_agent_id": self.target_agent_id,
            "priority": self.priority.value,
            "payload": self.payload,
            "metadata": self.metadata.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Message:
        found = dict(data)
        found["message_type"] = MessageType(found["message_type"])
        found["priority"] = MessagePriority(found.get("priority", MessagePriority.NORMAL.value))
        found["metadata"] = MessageMetadata.from_dict(found.get("metadata", {}))
        return cls(**found)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Message:
        return cls.from_dict(json.loads(text))

    def create_reply(self, message_type: MessageType, payload: dict[str, Any]) -> Message:
        """Make a message back to the sender, in the same conversation."""
        return Message(
            message_type=message_type,
            source_agent_id=self.target_agent_id,
            target_agent_id=self.source_agent_id,
            priority=self.priority,
            payload=payload,
            metadata=MessageMetadata(
                conversation_id=self.metadata.conversation_id,
                parent_message_id=self.message_id,
                hop_count=self.metadata.hop_count,
                ttl=self.metadata.ttl,
            ),
        )

    def create_error_reply(self, error_message: str, error_details: dict[str, Any] | None = None) -> Message:
        """Make an `error` message back to the sender."""
        reply = self.create_reply(
            MessageType.ERROR,
            {"error": error_message, "original_message_type": self.message_type.value},
        )
        reply.priority = MessagePriority.HIGH
        reply.metadata.set_error(error_message, error_details)
        return reply
