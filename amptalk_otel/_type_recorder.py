"""What is counted of one message type at one agent; what follows from it, see `_agent_recorder`."""

from __future__ import annotations

from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, BucketCounts
from amptalk_otel._labels import NO_COUNTS, count_in
from amptalk_otel._names import Names

CANCELLED = "cancelled"
UNREGISTERED = "unregistered"
TAKEN = "taken"

NEVER = 2**62
"""More messages than will ever come."""


class TypeRecorder:
    """The counts of one message type at one agent."""

    __slots__ = (
        "dropped",
        "failed",
        "lost",
        "message_type",
        "names",
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

    def __init__(self, message_type: str, *, next_size_at: int = NEVER, names: Names | None = None) -> None:
        self.message_type = message_type
        self.names: Names = names if names is not None else Names()
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

    def has_place(self, name: str, value: str) -> bool:
        """Whether `value` is told apart in the counts of this name. Of the reasons of drops there are three."""
        return name == "dropped" or self.names.has_place((name, self.message_type), value)

    def absorb(self, other: TypeRecorder) -> None:
        """Add what another one counted."""
        self.received += other.received
        self.unwaited += other.unwaited
        self.lost += other.lost
        self.sent += other.sent
        for name in ("failed", "dropped", "undeliverable", "retries"):
            for value, number in getattr(other, name).items():
                count_in(self, name, value, number)
        for name in ("wait", "process", "size"):
            getattr(self, name).absorb(getattr(other, name))


def left_of(record: TypeRecorder) -> int:
    """Messages of this type that left the inbox, whoever took them."""
    return sum(record.wait.counts) + record.unwaited


def queued_of(record: TypeRecorder) -> int:
    """Messages of this type in the inbox."""
    return record.received - left_of(record)


def in_flight_of(record: TypeRecorder) -> int:
    """Messages of this type that the agent took and has not finished."""
    dropped = record.dropped
    taken = left_of(record) - dropped.get(TAKEN, 0) - dropped.get(UNREGISTERED, 0)
    return taken - sum(record.process.counts) - record.lost - dropped.get(CANCELLED, 0)
