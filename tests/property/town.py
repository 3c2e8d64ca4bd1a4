"""A town of agents for the model of `test_balance`: the real ones, and a log of what happens to each, kept beside."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from amptalk_otel._reading import AgentReading
from amptalk_otel.demo.runtime import Agent, Message

CountKey = tuple[str, str, str]
"""(message.type, what is counted, error.type or reason); of states (storage operation, "state", error.type)"""


class Abort(BaseException):
    """What ends an agent's loop: no `Exception`."""


class Driven(Agent):
    """Does with a message what it is told to, and tells of each that reaches its inbox."""

    def __init__(self, agent_id: str, arrivals: list[tuple[str, Message]], **options: Any) -> None:
        super().__init__(agent_id=agent_id, name=agent_id, **options)
        self.verdict: asyncio.Future[Any] | None = None
        self._arrivals = arrivals
        self.base_retry_delay = 0.0

    async def enqueue_message(self, message: Message) -> None:
        await super().enqueue_message(message)
        self._arrivals.append((self.agent_id, message))

    async def process_message(self, message: Message) -> Any:
        self.verdict = asyncio.get_running_loop().create_future()
        outcome = await self.verdict
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


# -- inboxes -------------------------------------------------------------------------------------------
#
# One that takes another's place is told of the end of messages that were taken from the former: it does not count them.


class FirstComes(asyncio.Queue[Message]):
    """In the usual order."""

    def task_done(self) -> None:
        """Nobody waits for that."""


class LastComes(asyncio.LifoQueue[Message]):
    """The other way round."""

    def task_done(self) -> None:
        """Nobody waits for that."""


class MostUrgentComes(asyncio.PriorityQueue[Any]):
    """By the messages' priority, which are in no order themselves."""

    _numbers = 0

    def _put(self, item: Message) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (-item.priority.value, self._numbers, item))  # type: ignore[attr-defined]

    def _get(self) -> Message:
        message: Message = heapq.heappop(self._queue)[-1]  # type: ignore[attr-defined]
        return message

    def task_done(self) -> None:
        """Nobody waits for that."""


KINDS_OF_INBOX: dict[str, type[asyncio.Queue[Message]]] = {
    "first": FirstComes, "last": LastComes, "urgent": MostUrgentComes,
}  # fmt: skip


@dataclass
class Lying:
    """A message in an inbox: the object, and whether we saw it arrive."""

    message: Message
    seen_arriving: bool

    @property
    def kind(self) -> str:
        return self.message.message_type.value


class Box:
    """An inbox, and what must lie in it."""

    def __init__(self, order: str = "first", room: int = 0, queue: asyncio.Queue[Message] | None = None) -> None:
        self.order = order
        self.room = room  # 0: for any number
        self.queue = queue if queue is not None else KINDS_OF_INBOX[order](room)
        self.items: list[Lying] = []

    def has_room(self, number: int = 1) -> bool:
        return not self.room or len(self.items) + number <= self.room

    def pop(self) -> Lying:
        if self.order == "last":
            return self.items.pop()
        if self.order == "urgent":
            first = max(self.items, key=lambda lying: lying.message.priority.value)  # the first of several
            self.items = [lying for lying in self.items if lying is not first]
            return first
        return self.items.pop(0)

    def forget_arrivals(self) -> None:
        for lying in self.items:
            lying.seen_arriving = False


# -- what must be counted ------------------------------------------------------------------------------


@dataclass
class Work:
    """The message that an agent is at."""

    message: Message
    counted: bool  # it was taken from an inbox while that was watched
    attempts: int = 1
    undisturbed: bool = True  # nobody came or went meanwhile who watches

    @property
    def kind(self) -> str:
        return self.message.message_type.value


@dataclass
class Log:
    """What happened to one agent."""

    box: Box  # its inbox
    registered: bool = True
    known: bool = False  # it has been watched since the instrumentation began
    hooked: Box | None = None  # the inbox that is watched: not yet another one that took its place; None: nothing is
    running: bool = False  # as the agent says
    alive: bool = False  # whether its loop is
    waits_at: Box | None = None  # where its loop looks for the next message
    work: Work | None = None
    numbers: Counter[CountKey] = field(default_factory=Counter)

    @property
    def watched(self) -> bool:
        return self.hooked is not None

    def count(self, kind: str, what: str, detail: str = "", number: int = 1) -> None:
        self.numbers[kind, what, detail] += number

    # -- the inbox -------------------------------------------------------------------------------------

    def arrives(self, box: Box, message: Message) -> None:
        box.items.append(Lying(message, box is self.hooked))
        if box is self.hooked:
            self.count(box.items[-1].kind, "received")

    def leaves(self, box: Box) -> Lying:
        lying = box.pop()
        if box is self.hooked and lying.seen_arriving:
            self.count(lying.kind, "waits")
        return lying

    def goes_on(self) -> None:
        """What the loop does by itself: it takes the next message when it is done with the last."""
        if not self.alive or self.work is not None:
            return
        self.waits_at = self.waits_at if self.waits_at is not None else self.box
        if self.waits_at.items:
            counted = self.waits_at is self.hooked
            self.work = Work(self.leaves(self.waits_at).message, counted)
            self.waits_at = None

    # -- work ------------------------------------------------------------------------------------------

    def ends(self, what: str, detail: str = "") -> None:
        work, self.work = self.work, None
        if work is not None and work.counted:
            self.count(work.kind, what, detail)
            if what != "dropped":
                self.count(work.kind, "works")

    def dies(self) -> None:
        """The loop ends, however it does; what it was at is dropped if nothing was said about it."""
        self.ends("dropped", "cancelled")
        self.alive, self.waits_at = False, None

    # -- who watches -----------------------------------------------------------------------------------

    def hook_inbox(self) -> None:
        """The present inbox is watched, in place of whichever was."""
        if self.hooked is self.box:
            return
        if self.hooked is not None:
            self.drop_all("taken")
        self.hooked = self.box
        self.box.forget_arrivals()
        for lying in self.box.items:
            self.count(lying.kind, "received")

    def drop_all(self, reason: str) -> None:
        assert self.hooked is not None
        for lying in self.hooked.items:
            self.count(lying.kind, "dropped", reason)

    def comes_into_view(self) -> None:
        if self.hooked is None:
            self.known = True
            self.hook_inbox()
            self._disturb()

    def goes_out_of_view(self) -> None:
        if self.hooked is not None:
            self.drop_all("unregistered")
            self.hooked = None
            self._disturb()

    def is_forgotten(self) -> None:
        """The instrumentation is taken off, and with it all that was counted."""
        self.known, self.hooked = False, None
        self.numbers.clear()
        self._disturb()
        if self.work is not None:
            self.work.counted = False

    def _disturb(self) -> None:
        if self.work is not None:
            self.work.undisturbed = False

    # -- what must be told -----------------------------------------------------------------------------

    def expected(self) -> dict[CountKey, int]:
        found = Counter(self.numbers)
        if self.work is not None and self.work.counted:
            found[self.work.kind, "in flight", ""] += 1
        for lying in self.hooked.items if self.hooked is not None else ():
            found[lying.kind, "queued", ""] += 1
        return dict(+found)


def told(reading: AgentReading) -> dict[CountKey, int]:
    """What a reading tells, in the log's terms."""
    found: Counter[CountKey] = Counter()
    for kind in reading.types:
        plain = {
            "received": kind.received, "processed": kind.processed, "sent": kind.sent, "waits": kind.wait.count,
            "works": kind.process.count, "in flight": kind.in_flight, "queued": kind.queued,
        }  # fmt: skip
        found.update({(kind.message_type, what, ""): number for what, number in plain.items()})
        for what in ("failed", "dropped", "retries", "undeliverable"):
            found.update({(kind.message_type, what, detail): n for detail, n in getattr(kind, what).items()})
    for state in reading.states:
        for (operation, error), duration in state.durations.items():
            found[operation, "state", error or ""] += duration.count
    return {key: number for key, number in found.items() if number}


def law(found: Iterable[tuple[str, dict[str, Any], Any]], agent_id: str) -> tuple[int, int]:
    """By the public metrics: received - processed - failed - dropped - in flight - queued; and what they call it."""
    signs = {"received": 1, "processed": -1, "failed": -1, "dropped": -1, "in_flight": -1}
    left, unaccounted = 0, 0
    for name, attributes, value in found:
        if attributes.get("agent.id") != agent_id:
            continue
        what = name.removeprefix("amptalk.agent.messages.")
        if what != name and what in signs:
            left += signs[what] * value
        elif what == "unaccounted":
            unaccounted += value
        elif name == "amptalk.agent.queue.size":
            left -= value
    return left, unaccounted
