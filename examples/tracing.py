"""Follow messages from agent to agent: a TracerProvider of your own, and the traces as trees in the terminal.

Run it with `python examples/tracing.py`. It needs no collector: the spans stay in memory.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from amptalk_otel import Config, instrument_orchestrator

# In your program: from src.core.framework.agent import SimpleAgent, and so on.
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent


class Transcriber(SimpleAgent):
    """Sends what it understood to two others: what a handler returns is sent when it is over."""

    async def process_message(self, message: Message) -> list[Message] | None:
        if message.message_type is not MessageType.AUDIO_INPUT:
            return None
        await asyncio.sleep(0.01)
        kind = MessageType.TRANSCRIPTION_RESULT
        return [
            Message(message_type=kind, source_agent_id=self.agent_id, target_agent_id=target)
            for target in ("glossary", "summarizer")
        ]


class Glossary(SimpleAgent):
    """Asks over a line that breaks the first time; the framework tries again."""

    lines_to_break = 1

    async def process_message(self, message: Message) -> list[Message] | None:
        if message.message_type is MessageType.TRANSCRIPTION_RESULT and self.lines_to_break:
            self.lines_to_break -= 1
            raise ConnectionError("the line broke")
        return None


class Summarizer(SimpleAgent):
    """Can't make anything of a transcription."""

    async def process_message(self, message: Message) -> list[Message] | None:
        if message.message_type is MessageType.TRANSCRIPTION_RESULT:
            raise ValueError("nothing to sum up")
        return None


def tree(spans: Iterable[ReadableSpan]) -> Iterator[str]:
    """One line a span, below the one that it belongs to, in the order of their starts."""
    children: dict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        children[span.parent.span_id if span.parent is not None else None].append(span)

    def below(parent_id: int | None, depth: int) -> Iterator[str]:
        for span in children[parent_id]:
            events = [event.name for event in span.events]
            notes = [str((span.attributes or {}).get("error.type", "")), ", ".join(events)]
            yield f"{'  ' * depth + span.name:<28}{span.kind.name:<10}{'  '.join(filter(None, notes))}".rstrip()
            yield from below(span.context.span_id, depth + 1)

    yield from below(None, 0)


async def main() -> None:
    orchestrator = Orchestrator(name="Example")
    for kind in (Transcriber, Glossary, Summarizer):
        agent = kind(agent_id=kind.__name__.lower(), name=kind.__name__)
        agent.base_retry_delay = 0.01
        orchestrator.register_agent(agent)
    orchestrator.connect_agents("transcriber", "glossary")
    orchestrator.connect_agents("transcriber", "summarizer")

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))  # in your program: a BatchSpanProcessor and OTLP
    config = Config(metrics_exporters=("none",))
    async with instrument_orchestrator(orchestrator, config=config, tracer_provider=provider):  # the one line
        await orchestrator.start()
        await orchestrator.send_message_to_agent(
            Message(message_type=MessageType.AUDIO_INPUT, target_agent_id="transcriber")
        )
        await asyncio.sleep(0.2)
        await orchestrator.broadcast_message(Message(message_type=MessageType.NOTIFICATION))
        await asyncio.sleep(0.1)
        await orchestrator.stop()
    print("\n".join(tree(spans.get_finished_spans())))


if __name__ == "__main__":
    asyncio.run(main())
