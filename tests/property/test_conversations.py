"""A thousand conversations at once on one loop: no span is of another conversation's trace."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from amptalk_otel.demo.runtime import Agent, Message, MessageMetadata, MessageType
from tests.tracing import Spans, attributes_of, connect, id_of, parent_of, trace_of, traced

CONVERSATIONS = 1_000
CONVERSATION, MESSAGE = "messaging.message.conversation_id", "messaging.message.id"


class Relay(Agent):
    """Does something with a message, in steps between which others run, and passes some on."""

    def __init__(self, name: str, chance: random.Random, spans: Spans, log: Counter[str]) -> None:
        super().__init__(agent_id=name, name=name)
        self.chance = chance
        self.spans = spans
        self.log = log
        self.children: set[asyncio.Task[None]] = set()
        self.base_retry_delay = 0.0

    async def process_message(self, message: Message) -> list[Message]:
        await self.pause()
        self.tell("in handler", message)
        child = asyncio.create_task(self.work_beside(message))
        self.children.add(child)
        child.add_done_callback(self.children.discard)
        await self.pause()
        if message.payload.pop("fails", False):
            self.log["failed attempts"] += 1
            raise ConnectionError
        onward = [self.onward(message) for _ in range(self.chance.randint(0, 2)) if message.payload["hops"]]
        if onward and self.chance.random() < 0.5:
            await self.send_message(onward.pop())
        await self.pause()
        self.tell("in handler", message)
        return onward

    async def work_beside(self, message: Message) -> None:
        await self.pause()
        self.tell("beside handler", message)

    def tell(self, name: str, message: Message) -> None:
        self.log[name] += 1
        with self.spans.inside(name) as span:
            span.set_attributes({CONVERSATION: str(message.metadata.conversation_id), MESSAGE: message.message_id})

    def onward(self, message: Message) -> Message:
        self.log["sent"] += 1
        reply = message.create_reply(
            MessageType.TRANSCRIPTION_RESULT, {"hops": message.payload["hops"] - 1, "fails": self.chance.random() < 0.1}
        )
        reply.target_agent_id = self.chance.choice(sorted(self.connected_agents))
        return reply

    async def pause(self) -> None:
        for _ in range(self.chance.randint(0, 3)):
            await asyncio.sleep(0)


async def converse(index: int, agents: list[Relay], spans: Spans) -> None:
    """One conversation's first message: from outside, or sent by an agent."""
    conversation = f"conversation-{index}"
    first, second = agents[index % len(agents)], agents[(index + 1) % len(agents)]
    message = Message(
        message_type=MessageType.COMMAND,
        source_agent_id=second.agent_id,
        target_agent_id=first.agent_id,
        payload={"hops": 3, "fails": index % 17 == 0},
        metadata=MessageMetadata(conversation_id=conversation),
    )
    with spans.root("conversation") as span:
        span.set_attribute(CONVERSATION, conversation)
        await first.pause()
        if index % 2:
            await first.enqueue_message(message)
        else:
            first.log["sent"] += 1
            await second.send_message(message)
        await first.pause()


async def run(started: str, spans: Spans, log: Counter[str]) -> None:
    chance = random.Random(5)
    agents = [Relay(name, chance, spans, log) for name in "ABCDE"]
    connect(*agents)
    with traced(spans, *agents), ExitStack() as while_running:
        with ExitStack() as while_starting:
            if started != "outside any span":
                (while_starting if started == "in a span that ends" else while_running).enter_context(
                    spans.root("startup")
                )
            for agent in agents:
                await agent.start()
        await asyncio.gather(*(converse(index, agents, spans) for index in range(CONVERSATIONS)))
        while any(agent.input_queue._unfinished_tasks or agent.children for agent in agents):  # type: ignore[attr-defined]
            for agent in agents:
                await agent.input_queue.join()
                await asyncio.gather(*agent.children)
        for agent in agents:
            await agent.stop()


async def run_eagerly(started: str, spans: Spans, log: Counter[str]) -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    await run(started, spans, log)


def on_asyncio(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


no_uvloop = pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed here")
no_eager_tasks = pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 has eager tasks")


@pytest.mark.parametrize(
    ("on_loop", "main", "started"),
    [
        pytest.param(on_asyncio, run, "outside any span", id="asyncio"),
        pytest.param(on_asyncio, run, "in a span that ends", id="started-in-a-span-that-ends"),
        pytest.param(on_asyncio, run, "in a span that goes on", id="started-in-a-span-that-goes-on"),
        pytest.param(on_uvloop, run, "in a span that ends", id="uvloop", marks=no_uvloop),
        pytest.param(on_asyncio, run_eagerly, "in a span that ends", id="eager", marks=no_eager_tasks),
    ],
)
def test_every_span_is_of_its_own_conversation(
    on_loop: Callable[[Coroutine[Any, Any, None]], None],
    main: Callable[[str, Spans, Counter[str]], Coroutine[Any, Any, None]],
    started: str,
) -> None:
    spans, log = Spans(), Counter[str]()
    on_loop(main(started, spans, log))
    found = [span for span in spans.all() if span.name != "startup"]
    roots = {attributes_of(span)[CONVERSATION]: span for span in found if span.name == "conversation"}
    assert len({trace_of(root) for root in roots.values()}) == CONVERSATIONS
    assert [span.name for span in found if trace_of(span) != trace_of(roots[attributes_of(span)[CONVERSATION]])] == []
    received = log["sent"] + CONVERSATIONS // 2
    assert log["sent"] > 2 * CONVERSATIONS
    assert log["failed attempts"] > CONVERSATIONS / 10
    assert Counter(span.name.split()[0] for span in found) == {
        "conversation": CONVERSATIONS,
        "send": log["sent"],
        "process": received,
        "in": 2 * received + log["failed attempts"],
        "beside": received + log["failed attempts"],
    }
    assert log["in handler"] == 2 * received + log["failed attempts"]
    assert_parents(found, roots)


def assert_parents(found: list[ReadableSpan], roots: dict[str, ReadableSpan]) -> None:
    """Each is a child of what it was done in: within the trace as well as of it."""
    process, send = (
        {attributes_of(span)[MESSAGE]: id_of(span) for span in found if span.name.split()[0] == operation}
        for operation in ("process", "send")
    )
    for span in found:
        attributes, kind = attributes_of(span), span.name.split()[0]
        if kind in ("in", "beside"):
            assert parent_of(span) == process[attributes[MESSAGE]]
        elif kind == "process":
            root = roots[attributes[CONVERSATION]]
            assert parent_of(span) == send.get(attributes[MESSAGE], id_of(root))
        elif kind == "send" and parent_of(span) != id_of(roots[attributes[CONVERSATION]]):
            assert parent_of(span) in process.values()
