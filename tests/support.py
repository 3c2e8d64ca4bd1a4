"""What several test modules need: a clock, an agent that plays a script, and ways to look at numbers."""

from __future__ import annotations

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric

from amptalk_otel import AgentReading, Config, TypeReading
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._hooks._agent import AgentHook
from amptalk_otel.adapters import FrameworkAdapter
from amptalk_otel.demo.runtime import Agent, Message, MessageType

P = ParamSpec("P")
Key = tuple[str, frozenset[tuple[str, Any]]]
CONFIG = Config(metrics_exporters=("none",))


def examples(number: int) -> int:
    """How many examples of a property are tried: `number`, times AMPTALK_OTEL_TEST_TIMES (1 if it is not set)."""
    return number * int(os.environ.get("AMPTALK_OTEL_TEST_TIMES", "1"))


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine function as a test."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


class Clock:
    """Stands still until it is told to go on. Does not begin at 0, as no real one does."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Scripted(Agent):
    """Plays a list of outcomes: an exception is raised, a coroutine function is awaited, the rest is returned."""

    def __init__(self, *script: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.script = list(script)
        self.seen: list[Message] = []
        self.base_retry_delay = 0.0

    async def process_message(self, message: Message) -> Any:
        self.seen.append(message)
        outcome = self.script.pop(0) if self.script else None
        if isinstance(outcome, BaseException):
            raise outcome
        return await outcome(message) if asyncio.iscoroutinefunction(outcome) else outcome


def note(kind: MessageType = MessageType.COMMAND, **fields: Any) -> Message:
    return Message(message_type=kind, **fields)


async def hold(_message: Message) -> None:
    """An outcome: the agent never gets done with the message."""
    await asyncio.Event().wait()


async def settle(steps: int = 12) -> None:
    """Let every task go on until it waits."""
    for _ in range(steps):
        await asyncio.sleep(0)


async def handle(agent: Agent, *messages: Message) -> None:
    """Start the agent, let it work through the messages, and stop it."""
    await agent.start()
    for message in messages:
        await agent.enqueue_message(message)
    await asyncio.wait_for(agent.input_queue.join(), 20)
    await agent.stop()


@contextmanager
def hooked(agent: Agent, clock: Callable[[], float] | None = None) -> Iterator[AgentHook]:
    """The hook on one agent, without bridge and watch."""
    adapter = FrameworkAdapter()
    options: dict[str, Any] = {"clock": clock} if clock is not None else {}
    recorder = AgentRecorder(
        agent.agent_id, agent.name, type_of=adapter.message_type, payload_of=adapter.payload, **options
    )
    hook = AgentHook(agent, recorder, adapter)
    try:
        yield hook
    finally:
        hook.release()


def identity(owner: object) -> dict[str, int]:
    """What `owner` holds, by identity."""
    return {name: id(value) for name, value in vars(owner).items()}


# -- numbers -------------------------------------------------------------------------------------------


def assert_balanced(reading: AgentReading) -> None:
    parts = (reading.processed, reading.failed, reading.dropped, reading.in_flight, reading.queue_size)
    assert reading.received == sum(parts), f"{reading.received} received, {parts}"
    assert reading.unaccounted == 0
    assert reading.in_flight == sum(kind.in_flight for kind in reading.types)
    assert min(parts) >= 0, parts
    for kind in reading.types:
        ended = kind.processed + sum(kind.failed.values()) + sum(kind.dropped.values())
        assert kind.received == ended + kind.in_flight + kind.queued, kind
        assert kind.in_flight >= 0, kind
        assert kind.queued >= 0, kind


def counts(reading: AgentReading) -> dict[str, Any]:
    """All that an agent counted, zeros left out. Checks the balance on the way."""
    assert_balanced(reading)
    found: dict[str, Any] = {
        name: getattr(reading, name) for name in ("received", "processed", "sent", "in_flight")
    } | {"queued": reading.queue_size, "waits": reading.wait_histogram.count, "works": reading.process_histogram.count}
    for name in ("failed", "dropped", "retries", "undeliverable"):
        found[name] = dict(sum((Counter(getattr(kind, name)) for kind in reading.types), Counter[str]()))
    return {name: value for name, value in found.items() if value}


def of_type(reading: AgentReading, kind: MessageType) -> TypeReading:
    return next(found for found in reading.types if found.message_type == kind.value)


def provider_and_reader() -> tuple[MeterProvider, InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    return MeterProvider([reader], shutdown_on_exit=False), reader


def metrics(reader: InMemoryMetricReader) -> dict[str, Metric]:
    """Our metrics with at least one point, by name."""
    data = reader.get_metrics_data()
    return {
        metric.name: metric
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if scope.scope.name == "amptalk_otel" and metric.data.data_points
    }


def series(reader: InMemoryMetricReader) -> dict[Key, Any]:
    """The value of each series; of a histogram its (count, sum)."""
    return {
        (name, frozenset((point.attributes or {}).items())): (
            (point.count, point.sum) if hasattr(point, "bucket_counts") else point.value  # type: ignore[union-attr]
        )
        for name, metric in metrics(reader).items()
        for point in metric.data.data_points
    }


def key(name: str, **attributes: str) -> Key:
    """A series' name and attributes; `message_type` stands for `message.type`."""
    return name, frozenset((attribute.replace("_", "."), value) for attribute, value in attributes.items())


def agent_keys(found: dict[Key, Any], agent: Agent) -> dict[Key, Any]:
    """Those series that belong to `agent`."""
    return {name: value for name, value in found.items() if ("agent.id", agent.agent_id) in name[1]}
