"""A program of five agents whose every span is known beforehand, and the way to write spans down as text.

In its messages there is a secret, in payloads and in the messages of exceptions: spans must not tell it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from amptalk_otel.demo.runtime import (
    CommunicationConfig,
    CommunicationMode,
    Message,
    MessageMetadata,
    MessagePriority,
    MessageType,
    Orchestrator,
    SimpleAgent,
)
from tests.integration.servers import Attributes, Collector, Span

SECRET = "s3cret-of-the-payload"
BACKOFF_S = 0.1
QUIET_S = 0.3
TIMEOUT_S = 20.0

Handler = Callable[[Message], Awaitable["list[Message] | None"]]


# ------------------------------------------------------------------------------------------------------ the program


def letter(message_id: str, kind: MessageType, *, to: str | None = None, by: str | None = None) -> Message:
    """A message with a name instead of an id, and the secret in it."""
    return Message(
        message_id=message_id,
        message_type=kind,
        source_agent_id=by,
        target_agent_id=to,
        payload={"text": SECRET},
    )


class Newsroom:
    """What comes in is transcribed (at the second try), judged (which fails), summarised and filed."""

    def __init__(self, mode: CommunicationMode = CommunicationMode.LOCAL) -> None:
        self.orchestrator = Orchestrator(name="newsroom", communication_config=CommunicationConfig(mode))
        self.stumbled = asyncio.Event()  # the writer's first try is over
        self.summarised = asyncio.Event()  # the last reply is there
        self.holding = asyncio.Event()  # the archive works on a message that it never gets done with
        self._add("Listener", {MessageType.AUDIO_INPUT: self._listen})
        self._add("Writer", {MessageType.TRANSCRIPTION_REQUEST: self._write, MessageType.SUMMARY_RESULT: self._rest})
        self._add("Critic", {MessageType.SENTIMENT_REQUEST: self._judge})
        self._add("Summary", {MessageType.SUMMARY_REQUEST: self._summarise})
        self._add("Archive", {MessageType.COMMAND: self._file})
        for one, other in (("listener", "writer"), ("writer", "critic"), ("writer", "summary")):
            self.orchestrator.connect_agents(one, other)
        for member in ("archive", "critic"):
            self.orchestrator.add_agent_to_group(member, "keepers")

    def _add(self, name: str, handlers: Mapping[MessageType, Handler]) -> None:
        agent = SimpleAgent(agent_id=name.lower(), name=name)
        agent.base_retry_delay, agent.retry_jitter = BACKOFF_S, 0.0
        for kind, handler in handlers.items():
            agent.register_message_handler(kind, handler)
        self.orchestrator.add_agent(agent)

    async def _listen(self, message: Message) -> None:
        request = letter("transcribe", MessageType.TRANSCRIPTION_REQUEST, to="writer", by="listener")
        request.metadata.conversation_id = message.metadata.conversation_id
        assert await self.orchestrator.agents["listener"].send_message(request) is True

    async def _write(self, message: Message) -> list[Message]:
        if not self.stumbled.is_set():
            self.stumbled.set()
            raise ConnectionError(f"no line for {message.payload['text']}")
        return [
            reply(message, "transcript", MessageType.TRANSCRIPTION_RESULT),
            reply(message, "judge", MessageType.SENTIMENT_REQUEST, to="critic"),
            reply(message, "summarise", MessageType.SUMMARY_REQUEST, to="summary"),
            reply(message, "astray", MessageType.NOTIFICATION, to="nobody"),
        ]

    async def _judge(self, message: Message) -> None:
        raise ValueError(f"no opinion on {message.payload['text']}")

    async def _summarise(self, message: Message) -> list[Message]:
        return [reply(message, "summed-up", MessageType.SUMMARY_RESULT)]

    async def _rest(self, _message: Message) -> None:
        self.summarised.set()

    async def _file(self, message: Message) -> None:
        if message.message_id == "hold":
            self.holding.set()
            await asyncio.Event().wait()

    async def run(self) -> None:
        """Everything once, in an order that is always the same; ends with the orchestrator stopped."""
        orchestrator = self.orchestrator
        await orchestrator.start()
        audio = letter("audio", MessageType.AUDIO_INPUT, to="listener")
        audio.priority, audio.metadata = MessagePriority.HIGH, MessageMetadata(conversation_id="talk")
        assert await orchestrator.send_message_to_agent(audio) is True
        await asyncio.wait_for(self.stumbled.wait(), TIMEOUT_S)
        roll_call = letter("roll-call", MessageType.STATUS_REQUEST)
        roll_call.priority = MessagePriority.LOW
        assert await orchestrator.broadcast_message(roll_call) is True  # the writer's waits until its retry is over
        assert await orchestrator.send_message_to_group(letter("file", MessageType.COMMAND), "keepers") is True
        await asyncio.wait_for(self.summarised.wait(), TIMEOUT_S)
        for agent in orchestrator.agents.values():
            await asyncio.wait_for(agent.input_queue.join(), TIMEOUT_S)
        assert await orchestrator.send_message_to_agent(letter("hold", MessageType.COMMAND, to="archive")) is True
        await asyncio.wait_for(self.holding.wait(), TIMEOUT_S)
        await orchestrator.stop()


def reply(message: Message, message_id: str, kind: MessageType, to: str | None = None) -> Message:
    """A reply with a name instead of an id; to whoever asked, unless told otherwise."""
    answer = message.create_reply(kind, {"text": SECRET})
    answer.message_id = message_id
    answer.target_agent_id = to or answer.target_agent_id
    return answer


# ---------------------------------------------------------------------------------------------------- spans as text


def label_of(span: Span) -> str:
    """The span's name and its message's id: no two spans of these programs share both."""
    message_id = span.attributes.get("messaging.message.id")
    return span.name if message_id is None else f"{span.name}: {message_id}"


def by_label(spans: Iterable[Span]) -> dict[str, Span]:
    """The spans by their labels; no label may be there twice."""
    spans = list(spans)
    found = {label_of(span): span for span in spans}
    assert len(found) == len(spans), sorted(label_of(span) for span in spans)
    return found


def tree_of(spans: Iterable[Span], *, services: bool = False) -> str:
    """All spans as an indented tree, siblings in the order of the alphabet; with `services`, who sent each.

    A line is: label, kind, `!` and the status where that is an error, `<-` and the label of each linked span. A root
    has a trace of its own; a child is in its parent's.
    """
    spans = list(spans)
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    children: dict[tuple[str, str] | None, list[Span]] = {}
    for span in spans:
        parent = None if span.parent_span_id is None else (span.trace_id, span.parent_span_id)
        assert parent is None or parent in by_id, f"the parent of {label_of(span)} is in no span's trace"
        children.setdefault(parent, []).append(span)
    roots = [span.trace_id for span in children.get(None, [])]
    assert len(set(roots)) == len(roots), "two roots share a trace"

    def lines(parent: tuple[str, str] | None, depth: int) -> Iterable[str]:
        for span in sorted(children.get(parent, []), key=lambda span: (label_of(span), span.start_ns)):
            yield "  " * depth + _line(span, by_id, services=services)
            yield from lines((span.trace_id, span.span_id), depth + 1)

    return "\n".join(lines(None, 0))


def _line(span: Span, by_id: Mapping[tuple[str, str], Span], *, services: bool) -> str:
    parts = [label_of(span), f"({span.kind})"]
    if services:
        parts.append(f"@{span.resource['service.name']}")
    if (span.status, span.status_message) != ("unset", ""):
        parts.append(f"! {span.status} {span.status_message}")
    for link in span.links:
        assert link.attributes == {}
        parts.append(f"<- {label_of(by_id[link.trace_id, link.span_id])}")
    return " ".join(parts)


def text_of(indented: str) -> str:
    """An expectation as it stands in a test, without its margin."""
    lines = [line for line in indented.splitlines() if line.strip()]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[margin:] for line in lines)


def rows_of(table: str) -> dict[str, dict[str, str]]:
    """A table as it stands in a test: the first column is the key, empty cells are left out."""
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in text_of(table).splitlines())
    return {row[0]: {name: cell for name, cell in zip(header[1:], row[1:], strict=True) if cell} for row in rows}


def events_of(span: Span, shown: Callable[[str, Any], str]) -> list[str]:
    """A line for each event: its name and its attributes, the values as `shown` writes them."""
    return [f"{event.name} {_written(event.attributes, shown)}".strip() for event in span.events]


def _written(attributes: Attributes, shown: Callable[[str, Any], str]) -> str:
    return " ".join(f"{name}={shown(name, value)}" for name, value in sorted(attributes.items()))


def written_spans(collector: Collector, at_least: int) -> list[Span]:
    """What was written when all that sent has ended: so many spans, or what there is of them after 10 s."""
    with contextlib.suppress(TimeoutError):
        collector.wait_for_spans(lambda spans: len(spans) >= at_least, 10.0)
    time.sleep(QUIET_S)  # more than a flush of the Collector's
    return collector.exported_spans()


# ------------------------------------------------------------------------------------------- work of known lengths

LENGTHS_S = (0.0, 0.003, 0.0, 0.03, 0.003, 0.0)


class Sleepers:
    """Two agents, whose messages say how long they take. What is sent together waits for what was sent before."""

    def __init__(self) -> None:
        self.orchestrator = Orchestrator(name="dormitory")
        for agent_id in ("deep", "light"):
            agent = SimpleAgent(agent_id=agent_id, name=agent_id.title())
            for kind in (MessageType.COMMAND, MessageType.NOTIFICATION):
                agent.register_message_handler(kind, self._sleep)
            self.orchestrator.register_agent(agent)

    async def _sleep(self, message: Message) -> None:
        await asyncio.sleep(message.payload["seconds"])

    async def run(self) -> int:
        """Every length for every agent, then wait until all is done; tells how many messages that was."""
        sent = 0
        for agent_id in self.orchestrator.agents:
            for index, seconds in enumerate(LENGTHS_S):
                kind = (MessageType.COMMAND, MessageType.NOTIFICATION)[index % 2]
                message = Message(message_type=kind, target_agent_id=agent_id, payload={"seconds": seconds})
                assert await self.orchestrator.send_message_to_agent(message) is True
                sent += 1
        for agent in self.orchestrator.agents.values():
            await asyncio.wait_for(agent.input_queue.join(), TIMEOUT_S)
        return sent
