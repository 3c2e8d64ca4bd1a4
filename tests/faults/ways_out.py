"""Exporters that fail, a port that is taken, clients of the page that misbehave."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from amptalk_otel import Config, _otlp
from tests.faults.catalogue import fault
from tests.faults.trial import Outcome, Stage, Strikes, Trial, ordinary, tried

PUSHED = Config(
    metrics_exporters=("prometheus", "otlp"),
    prometheus_port=0,
    traces_exporters=("otlp",),
    metric_export_interval_s=0.05,
    otlp_timeout_s=2.0,
    otlp_headers={"authorization": "s3cret-header"},
)


@contextmanager
def _exporters(act: Callable[[], Any]) -> Iterator[None]:
    """Both exporters do what `act` does."""

    class Metrics(MetricExporter):
        def export(self, *_args: Any, **_kwargs: Any) -> MetricExportResult:
            act()
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 10_000) -> bool:
            act()
            return True

        def shutdown(self, timeout_millis: float = 30_000, **_kwargs: Any) -> None:
            act()

    class Spans(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            act()
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            act()

    with (
        mock.patch.object(_otlp, "metric_exporter", side_effect=lambda _config: Metrics()),
        mock.patch.object(_otlp, "span_exporter", side_effect=lambda _config: Spans()),
        mock.patch.dict("os.environ", {"OTEL_BSP_SCHEDULE_DELAY": "50"}),
    ):
        yield


@fault("exporters raise", "exporters of metrics and of spans raise at each export and at their end")
def exporters_raise() -> Trial:
    @contextmanager
    def raising(strikes: Strikes) -> Iterator[None]:
        def fail() -> None:
            strikes.strike()
            raise RuntimeError("secret-payload")

        with _exporters(fail):
            yield

    return tried(ordinary(), raising, config=PUSHED)


@fault("exporters hang", "exporters of metrics and of spans never return")
def exporters_hang() -> Trial:
    @contextmanager
    def hanging(strikes: Strikes) -> Iterator[None]:
        released = threading.Event()

        def hang() -> None:
            strikes.strike()
            released.wait(30)

        with _exporters(hang):
            try:
                yield
            finally:
                released.set()

    return tried(ordinary(), hanging, config=PUSHED)


@fault("exporters eat memory", "each export keeps 4 MB and raises `MemoryError`")
def exporters_eat_memory() -> Trial:
    @contextmanager
    def eating(strikes: Strikes) -> Iterator[None]:
        eaten: list[bytearray] = []

        def eat() -> None:
            strikes.strike()
            eaten.append(bytearray(4_000_000))
            raise MemoryError

        with _exporters(eat):
            yield

    return tried(ordinary(), eating, config=PUSHED)


@fault("the port is busy", "somebody else listens at the port of the metrics page")
def port_busy() -> Trial:
    @contextmanager
    def taken(strikes: Strikes) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as other:
            strikes.strike()
            yield other.getsockname()[1]

    return tried(ordinary(), taken, config=lambda port: Config(prometheus_port=port))


@fault("scrapers misbehave", "clients of the page hang up in the middle, send garbage, or send nothing at all")
def scrapers_misbehave() -> Trial:
    run = ordinary()

    async def program(stage: Stage) -> Outcome:
        with _misbehaving(stage):
            return await run(stage)

    return tried(program)


def _misbehaving(stage: Stage) -> AbstractContextManager[None]:
    @contextmanager
    def clients() -> Iterator[None]:
        kept: list[socket.socket] = []
        done, chosen = threading.Event(), random.Random(3)
        said = (
            b"GET /metrics HTTP/1.1\r\n\r\n",
            b"\x00\xff" * 300,
            b"",
            b"POST / HTTP/9\r\nA: b\r\n\r\n",
            b"GET " + b"a" * 70_000,
        )

        def pester() -> None:
            while not done.wait(0.005):
                url = stage.handle.metrics_url if stage.handle is not None else None
                if url is None:
                    continue
                with contextlib.suppress(OSError):
                    client = socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), timeout=1)
                    client.sendall(chosen.choice(said))
                    stage.strikes.strike()
                    if chosen.random() < 0.8:
                        client.close()
                    else:
                        kept.append(client)

        thread = threading.Thread(target=pester, name="pest", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(5)
            for client in kept:
                client.close()

    return clients()
