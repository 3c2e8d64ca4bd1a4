"""The same numbers, collected by hand: what a careful person would write, with four kinds of tools.

All count received, processed, failed and in flight, and keep histograms of wait and process time, by message type,
with the bounds that the package uses. Plain integers keep the highest length of the inbox as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from amptalk_otel.demo.runtime import Message, SimpleAgent

BOUNDS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip


class _Numbers:
    """What plain integers know about one message type."""

    __slots__ = (
        "failed", "in_flight", "process_counts", "process_sum", "processed", "received", "wait_counts", "wait_sum",
    )  # fmt: skip

    def __init__(self) -> None:
        self.received = self.processed = self.failed = self.in_flight = 0
        self.wait_counts = [0] * (len(BOUNDS_S) + 1)
        self.process_counts = [0] * (len(BOUNDS_S) + 1)
        self.wait_sum = self.process_sum = 0.0


class PlainIntegers(SimpleAgent):
    """The floor: a subclass that overrides two methods and calls the framework's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.numbers: dict[str, _Numbers] = {}
        self.arrivals: dict[int, float] = {}
        self.queue_peak = 0

    async def enqueue_message(self, message: Message) -> None:
        kind = message.message_type._value_
        numbers = self.numbers.get(kind)
        if numbers is None:
            numbers = self.numbers[kind] = _Numbers()
        numbers.received += 1
        self.arrivals[id(message)] = perf_counter()
        await super().enqueue_message(message)
        length = self.input_queue.qsize()
        if length > self.queue_peak:
            self.queue_peak = length

    async def _process_with_retry(self, message: Message) -> list[Message] | None:
        started = perf_counter()
        numbers = self.numbers[message.message_type._value_]
        wait = started - self.arrivals.pop(id(message))
        numbers.wait_counts[bisect_left(BOUNDS_S, wait)] += 1
        numbers.wait_sum += wait
        numbers.in_flight += 1
        try:
            replies = await super()._process_with_retry(message)
        except BaseException:
            numbers.failed += 1
            raise
        else:
            numbers.processed += 1
            return replies
        finally:
            numbers.in_flight -= 1
            took = perf_counter() - started
            numbers.process_counts[bisect_left(BOUNDS_S, took)] += 1
            numbers.process_sum += took


class InTheProgramsCode(SimpleAgent):
    """The same lines written into the program itself, without one call more. Not the floor: no outsider can do it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.numbers: dict[str, _Numbers] = {}
        self.arrivals: dict[int, float] = {}
        self.queue_peak = 0

    async def enqueue_message(self, message: Message) -> None:
        kind = message.message_type._value_
        numbers = self.numbers.get(kind)
        if numbers is None:
            numbers = self.numbers[kind] = _Numbers()
        numbers.received += 1
        self.arrivals[id(message)] = perf_counter()
        self.stats.record_message_received(message.message_type)
        await self.input_queue.put(message)
        length = self.input_queue.qsize()
        if length > self.queue_peak:
            self.queue_peak = length

    async def process_message(self, message: Message) -> list[Message] | None:
        started = perf_counter()
        numbers = self.numbers[message.message_type._value_]
        wait = started - self.arrivals.pop(id(message))
        numbers.wait_counts[bisect_left(BOUNDS_S, wait)] += 1
        numbers.wait_sum += wait
        numbers.in_flight += 1
        try:
            handler = self.message_handlers.get(message.message_type)
            replies = await handler(message) if handler is not None else None
        except BaseException:
            numbers.failed += 1
            raise
        else:
            numbers.processed += 1
            return replies
        finally:
            numbers.in_flight -= 1
            took = perf_counter() - started
            numbers.process_counts[bisect_left(BOUNDS_S, took)] += 1
            numbers.process_sum += took


def prometheus_client_agent() -> type[SimpleAgent]:
    """An agent class with prometheus_client's instruments, in a registry of their own."""
    registry, labels = CollectorRegistry(), ("agent", "type")
    received = Counter("received", "d", labels, registry=registry)
    processed = Counter("processed", "d", labels, registry=registry)
    failed = Counter("failed", "d", labels, registry=registry)
    in_flight = Gauge("in_flight", "d", labels, registry=registry)
    wait = Histogram("wait", "d", labels, registry=registry, buckets=BOUNDS_S)
    process = Histogram("process", "d", labels, registry=registry, buckets=BOUNDS_S)

    class PrometheusClient(SimpleAgent):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.arrivals: dict[int, float] = {}

        async def enqueue_message(self, message: Message) -> None:
            received.labels(self.agent_id, message.message_type._value_).inc()
            self.arrivals[id(message)] = perf_counter()
            await super().enqueue_message(message)

        async def _process_with_retry(self, message: Message) -> list[Message] | None:
            started = perf_counter()
            agent, kind = self.agent_id, message.message_type._value_
            wait.labels(agent, kind).observe(started - self.arrivals.pop(id(message)))
            in_flight.labels(agent, kind).inc()
            try:
                replies = await super()._process_with_retry(message)
            except BaseException:
                failed.labels(agent, kind).inc()
                raise
            else:
                processed.labels(agent, kind).inc()
                return replies
            finally:
                in_flight.labels(agent, kind).dec()
                process.labels(agent, kind).observe(perf_counter() - started)

    return PrometheusClient


def sdk_agent(reader: MetricReader) -> type[SimpleAgent]:
    """An agent class with the OpenTelemetry SDK's instruments, in a provider of their own."""
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("by hand")
    received = meter.create_counter("received")
    processed = meter.create_counter("processed")
    failed = meter.create_counter("failed")
    in_flight = meter.create_up_down_counter("in_flight")
    wait = meter.create_histogram("wait", explicit_bucket_boundaries_advisory=BOUNDS_S)
    process = meter.create_histogram("process", explicit_bucket_boundaries_advisory=BOUNDS_S)

    class Sdk(SimpleAgent):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.arrivals: dict[int, float] = {}

        async def enqueue_message(self, message: Message) -> None:
            received.add(1, {"agent.id": self.agent_id, "message.type": message.message_type._value_})
            self.arrivals[id(message)] = perf_counter()
            await super().enqueue_message(message)

        async def _process_with_retry(self, message: Message) -> list[Message] | None:
            started = perf_counter()
            attributes: Mapping[str, str] = {
                "agent.id": self.agent_id,
                "message.type": message.message_type._value_,
            }
            wait.record(started - self.arrivals.pop(id(message)), attributes)
            in_flight.add(1, attributes)
            try:
                replies = await super()._process_with_retry(message)
            except BaseException:
                failed.add(1, attributes)
                raise
            else:
                processed.add(1, attributes)
                return replies
            finally:
                in_flight.add(-1, attributes)
                process.record(perf_counter() - started, attributes)

    return Sdk


def stock_reader(registry: CollectorRegistry) -> PrometheusMetricReader:
    """The stock reader as it comes, but for its cap of 2,000 series: all peers shall do the same work."""
    return PrometheusMetricReader(registry=registry, **no_cap(PrometheusMetricReader))


def no_cap(reader: type[MetricReader]) -> dict[str, Any]:
    """Options that lift the cap of 2,000 series per instrument, where this version of the SDK has one."""
    import inspect

    from opentelemetry.sdk import metrics

    if "cardinality_limits" not in inspect.signature(reader.__init__).parameters:
        return {}
    kinds = ("Counter", "Histogram", "ObservableCounter", "ObservableGauge", "ObservableUpDownCounter", "UpDownCounter")
    limits: dict[Any, int] = {getattr(metrics, kind): 2**31 - 1 for kind in kinds}
    gauge = getattr(metrics, "_Gauge", None)
    return {"cardinality_limits": limits | ({gauge: 2**31 - 1} if gauge is not None else {})}
