r"""Watch the agents of your own program: one line, then http://localhost:8000/metrics.

Run it with `python examples/performance_monitoring_demo.py [seconds]` (default 10), and meanwhile

    curl -s http://localhost:8000/metrics | grep amptalk_agent_messages

Push to an OpenTelemetry Collector as well, without a change to the program:

    OTEL_METRICS_EXPORTER=prometheus,otlp OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 \
        python examples/performance_monitoring_demo.py
"""

import asyncio
import random
import sys

from amptalk_otel import Instrumentation, instrument_orchestrator

# In your program: from src.core.framework.agent import SimpleAgent, and so on. The package brings a small
# runtime of the same surface, so that this file runs as it is.
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent


class Transcriber(SimpleAgent):
    """Turns audio into text; now and then a segment can't be understood."""

    async def process_message(self, message: Message) -> list[Message] | None:
        await asyncio.sleep(random.expovariate(1 / 0.02))
        if random.random() < 0.05:
            raise ValueError("segment is not understandable")
        text = f"segment {message.payload['number']}"
        reply = message.create_reply(MessageType.TRANSCRIPTION_RESULT, {"text": text})
        reply.source_agent_id, reply.target_agent_id = self.agent_id, "summarizer"
        return [reply]


class Summarizer(SimpleAgent):
    """Calls a model over a line that sometimes breaks; the framework retries."""

    async def process_message(self, message: Message) -> list[Message] | None:
        await asyncio.sleep(len(message.payload["text"]) * random.expovariate(1 / 0.001))
        if random.random() < 0.05:
            raise ConnectionError("the model does not answer")
        return None


def show(instrumentation: Instrumentation) -> None:
    for agent in instrumentation.read():
        p95 = agent.process_histogram.quantile(0.95)
        print(
            f"{agent.agent_name:<12} queue {agent.queue_size:>3}  received {agent.received:>4}  "
            f"processed {agent.processed:>4}  failed {agent.failed:>3}  retries {agent.retries:>3}  "
            f"p95 {1000 * p95 if p95 is not None else 0:>6.1f} ms"
        )


async def main(seconds: float) -> None:
    orchestrator = Orchestrator(name="Example")
    transcriber = Transcriber(agent_id="transcriber", name="Transcriber")
    summarizer = Summarizer(agent_id="summarizer", name="Summarizer")
    summarizer.base_retry_delay = 0.05
    orchestrator.register_agent(transcriber)
    orchestrator.register_agent(summarizer)
    orchestrator.connect_agents("transcriber", "summarizer")

    async with instrument_orchestrator(orchestrator) as instrumentation:  # the one line
        print(f"metrics: {instrumentation.metrics_url or 'not served, see the warning above'}")
        await orchestrator.start()
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        number = 0
        while clock() < end:
            number += 1
            message = Message(
                message_type=MessageType.AUDIO_INPUT,
                source_agent_id="microphone",
                target_agent_id="transcriber",
                payload={"number": number},
            )
            await orchestrator.send_message_to_agent(message)
            await asyncio.sleep(0.02)
            if number % 100 == 0:
                show(instrumentation)
        await orchestrator.stop()
        show(instrumentation)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0))
