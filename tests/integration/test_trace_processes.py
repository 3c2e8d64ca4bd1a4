"""Two programs, joined by a TCP connection that carries messages as lines of JSON: one trace across both."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amptalk_otel import Config, instrument_orchestrator
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent
from tests.integration.servers import Collector
from tests.integration.wire import Gateway, deliver_messages
from tests.trace_workload import TIMEOUT_S, by_label, letter, text_of, tree_of, written_spans

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("remote_worker.py")
QUESTION = {"text": "how long is this, in \u00e9\u00e8?", "more": [1, 2.5, None, {"deep": True}]}


@dataclass(frozen=True)
class Result:
    """What the other program told, and what came back from it."""

    asked: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    stderr: str
    exit_code: int


@asynccontextmanager
async def remote_worker(settings: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The other program; it ends when its connection does, or is ended here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AMPTALK_OTEL_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), json.dumps(settings), env={**kept, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.wait_for(process.wait(), TIMEOUT_S)


class Client:
    """Asks the other program one question, out of a handler, and takes the answer."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.answered = asyncio.Event()
        self.agent = SimpleAgent(agent_id="client", name="Client")
        self.agent.register_message_handler(MessageType.COMMAND, self._ask)
        self.agent.register_message_handler(MessageType.NLP_RESULT, self._take)
        self.orchestrator = Orchestrator(name="local")
        self.orchestrator.register_agent(self.agent)

    async def _ask(self, _message: Message) -> list[Message]:
        question = letter("question", MessageType.NLP_REQUEST, to="worker", by="client")
        question.payload = QUESTION
        return [question]

    async def _take(self, message: Message) -> None:
        self.answers.append(message.payload)
        self.answered.set()

    async def run(self, settings: dict[str, Any]) -> Result:
        """Start the other program, ask it, and see it end."""
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
        server = await asyncio.start_server(lambda *pair: connected.set_result(pair), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, remote_worker({**settings, "port": port}) as process:
            ending = asyncio.create_task(process.communicate())
            awaited: list[asyncio.Future[Any]] = [connected, ending]
            await asyncio.wait(awaited, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                await self._converse(*connected.result())
            stdout, stderr = await asyncio.wait_for(ending, TIMEOUT_S)
        asked = json.loads(stdout) if stdout else []
        return Result(asked, self.answers, stderr.decode(), process.returncode or 0)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker: Any = Gateway("worker", "Worker", writer)
        self.agent.connect(worker)
        reading = asyncio.create_task(deliver_messages(reader, self.agent.enqueue_message))
        await self.orchestrator.start()
        try:
            await self.orchestrator.send_message_to_agent(letter("start", MessageType.COMMAND, to="client"))
            await asyncio.wait_for(self.answered.wait(), TIMEOUT_S)
            await asyncio.wait_for(self.agent.input_queue.join(), TIMEOUT_S)
        finally:
            await self.orchestrator.stop()
            writer.close()
            await asyncio.wait_for(reading, TIMEOUT_S)


def converse(
    collector: Collector, *, sampler: str = "parentbased_always_on", relation: str = "parent", **settings: Any
) -> Result:
    config = Config(
        service_name="sender",
        metrics_exporters=("none",),
        traces_exporters=("otlp",),
        traces_sampler=sampler,
        trace_relation=relation,
        otlp_endpoint=collector.http_endpoint,
    )
    worker = {"endpoint": collector.http_endpoint, "relation": relation, "instrument": True, "span": "none"}

    async def run() -> Result:
        client = Client()
        instrumentation = instrument_orchestrator(client.orchestrator, config=config)
        try:
            return await client.run({"deliver": "agent", **worker, **settings})
        finally:
            assert await asyncio.to_thread(instrumentation.shutdown) is True

    result = asyncio.run(asyncio.wait_for(run(), 90))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.asked == [{"message_id": "question", "payload": QUESTION}]
    assert result.answers == [{"length": len(str(QUESTION["text"]))}]
    return result


ONE_TRACE = """
    send Client: start (producer) @sender
      process Client: start (consumer) @sender
        send Worker: question (producer) @sender
          process Worker: question (consumer) @receiver
            send Client: answer (producer) @receiver
              process Client: answer (consumer) @sender
    """
STARTUP = "startup (internal) @receiver"
LINKED = """
    process Client: answer (consumer) @sender <- send Client: answer
    process Client: start (consumer) @sender <- send Client: start
      send Worker: question (producer) @sender
    process Worker: question (consumer) @receiver <- send Worker: question
      send Client: answer (producer) @receiver
    send Client: start (producer) @sender
    """
UNANSWERED = """
    process Client: answer (consumer) @sender
    send Client: start (producer) @sender
      process Client: start (consumer) @sender
        send Worker: question (producer) @sender
    """
THROUGH_ORCHESTRATOR = """
    send Client: start (producer) @sender
      process Client: start (consumer) @sender
        send Worker: question (producer) @sender
          send Worker: question (producer) @receiver
            process Worker: question (consumer) @receiver
              send Client: answer (producer) @receiver
                process Client: answer (consumer) @sender
    """


def tree_in(collector: Collector, at_least: int) -> str:
    return tree_of(written_spans(collector, at_least), services=True)


@pytest.mark.parametrize("span", ["none", "ended", "recording"])
def test_one_trace_across_both_whatever_the_reader_was_started_in(span: str, collector: Collector) -> None:
    converse(collector, span=span)
    expected = text_of(ONE_TRACE) if span == "none" else f"{text_of(ONE_TRACE)}\n{STARTUP}"
    assert tree_in(collector, expected.count("\n") + 1) == expected


def test_two_traces_that_are_linked(collector: Collector) -> None:
    converse(collector, relation="link")
    assert tree_in(collector, 6) == text_of(LINKED)


def test_the_wait_begins_where_the_message_arrives(collector: Collector) -> None:
    converse(collector)
    spans = by_label(written_spans(collector, 6))
    work, sent = spans["process Worker: question"], spans["send Worker: question"]
    waited_s = work.attributes["amptalk.message.wait.duration"]
    assert isinstance(waited_s, float)
    assert 0.0 <= waited_s <= (work.start_ns - sent.start_ns) / 1e9


@pytest.mark.parametrize("span", ["none", "ended"])
def test_a_message_through_the_receivers_orchestrator_stays_in_its_trace(span: str, collector: Collector) -> None:
    converse(collector, deliver="orchestrator", span=span)
    expected = text_of(THROUGH_ORCHESTRATOR) if span == "none" else f"{text_of(THROUGH_ORCHESTRATOR)}\n{STARTUP}"
    assert tree_in(collector, expected.count("\n") + 1) == expected


def test_a_receiver_that_is_not_instrumented_does_its_work(collector: Collector) -> None:
    converse(collector, instrument=False)
    assert tree_in(collector, 4) == text_of(UNANSWERED)


@pytest.mark.parametrize("span", ["ended", "recording"])
def test_what_the_sender_does_not_sample_the_receiver_does_not_either(span: str, collector: Collector) -> None:
    converse(collector, sampler="always_off", span=span)
    assert tree_in(collector, 1) == STARTUP
