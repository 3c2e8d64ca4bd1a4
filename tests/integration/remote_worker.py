"""A program of its own for `test_trace_processes.py`: one agent that gets its messages from a TCP connection.

    python remote_worker.py '{"port": 4000, "endpoint": "http://127.0.0.1:4318", ...}'

It connects, answers what it is asked until the other end closes, and prints what it was asked as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent
from tests.integration.wire import Gateway, deliver_messages

TIMEOUT_S = 20.0
SERVICE = "receiver"


@contextlib.contextmanager
def instrumented(orchestrator: Orchestrator, settings: dict[str, Any]) -> Iterator[None]:
    """Instrument the orchestrator meanwhile, if that is wanted."""
    if not settings["instrument"]:
        yield
        return
    from amptalk_otel import Config, instrument_orchestrator

    config = Config(
        service_name=SERVICE,
        metrics_exporters=("none",),
        traces_exporters=("otlp",),
        otlp_endpoint=settings["endpoint"],
        trace_relation=settings["relation"],
    )
    with instrument_orchestrator(orchestrator, config=config):
        yield


@contextlib.contextmanager
def application_span(settings: dict[str, Any], when: str) -> Iterator[None]:
    """A span of the application's own, by its own provider, if it is wanted at this point."""
    if settings["span"] != when:
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider(resource=Resource({"service.name": SERVICE}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{settings['endpoint']}/v1/traces")))
    try:
        with provider.get_tracer("application").start_as_current_span("startup"):
            yield
    finally:
        provider.shutdown()


class Worker:
    """The agent and its way back to who asks."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.agent = SimpleAgent(agent_id="worker", name="Worker")
        self.agent.register_message_handler(MessageType.NLP_REQUEST, self._answer)
        self.orchestrator = Orchestrator(name="remote")
        self.orchestrator.register_agent(self.agent)

    async def _answer(self, message: Message) -> list[Message]:
        self.asked.append({"message_id": message.message_id, "payload": message.payload})
        answer = message.create_reply(MessageType.NLP_RESULT, {"length": len(message.payload["text"])})
        answer.message_id = "answer"
        return [answer]

    async def run(self, settings: dict[str, Any]) -> None:
        """Work until the connection is closed."""
        connection = asyncio.open_connection("127.0.0.1", settings["port"])
        reader, writer = await asyncio.wait_for(connection, TIMEOUT_S)
        client: Any = Gateway("client", "Client", writer)
        self.agent.connect(client)
        deliver = {"agent": self.agent.enqueue_message, "orchestrator": self.orchestrator.send_message_to_agent}
        await self.orchestrator.start()
        with application_span(settings, "recording"):
            with application_span(settings, "ended"):
                reading = asyncio.create_task(deliver_messages(reader, deliver[settings["deliver"]]))
            await asyncio.wait_for(reading, TIMEOUT_S)
        await self.orchestrator.stop()
        writer.close()
        await writer.wait_closed()


async def main(settings: dict[str, Any]) -> None:
    worker = Worker()
    with instrumented(worker.orchestrator, settings):
        await worker.run(settings)
    print(json.dumps(worker.asked))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
