"""What is counted of one message type at one agent; what follows from it, see `_agent_recorder`."""

from __future__ import annotations

from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, BucketCounts
from amptalk_otel._labels import NO_COUNTS

NEVER = 2**62
"""More messages than will ever come."""


class TypeRecorder:
    """The counts of one message type at one agent."""

    __slots__ = (
        "dropped",
        "failed",
        "lost",
        "message_type",
        "next_size_at",
        "process",
        "received",
        "retries",
        "sent",
        "size",
        "undeliverable",
        "unwaited",
        "wait",
    )

    def __init__(self, message_type: str, *, next_size_at: int = NEVER) -> None:
        self.message_type = message_type
        self.next_size_at = next_size_at  # the value of `received` at which a payload is measured
        self.received = 0
        self.unwaited = 0  # left the inbox without a known wait
        self.lost = 0  # failed without a processing time: taken and never begun
        self.sent = 0
        self.failed: dict[str, int] = NO_COUNTS  # by error.type
        self.dropped: dict[str, int] = NO_COUNTS  # by reason
        self.undeliverable: dict[str, int] = NO_COUNTS  # by reason
        self.retries: dict[str, int] = NO_COUNTS  # by error.type
        self.wait = BucketCounts(DURATION_BOUNDS_S)
        self.process = BucketCounts(DURATION_BOUNDS_S)
        self.size = BucketCounts(SIZE_BOUNDS_BYTES)


def left_of(record: TypeRecorder) -> int:
    """Messages of this type that left the inbox, whoever took them."""
    return sum(record.wait.counts) + record.unwaited


def queued_of(record: TypeRecorder) -> int:
    """Messages of this type in the inbox."""
    return record.received - left_of(record)
