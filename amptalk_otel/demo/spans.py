"""Pushes the demonstration's spans to a collector, and counts what becomes of them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from amptalk_otel import Config, _otlp
from amptalk_otel._setting_types import without_credentials
from amptalk_otel._traces import sampler_of

_PROBE_S = 1.0
_END_S = 5.0
_END_WITHOUT_COLLECTOR_S = 1.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",  # the queue of spans that wait to be pushed
)
_EXAMPLE_LISTENS = re.compile(r"http://(localhost|127\.0\.0\.1):(4317|4318/v1/traces)")
_START = "Start one: otelcol --config examples/collector-traces.yaml (in the source)"
_LOOK = "What it writes down: tail -n 1 traces.jsonl | python -m json.tool"


class Spans:
    """Has a TracerProvider of its own: only so it can count what arrived."""

    def __init__(self, config: Config) -> None:
        """Raises MissingExtraError, with the line that installs it, where there is no exporter."""
        self._config = config
        self._exporter = _Counted(_otlp.span_exporter(config))
        self.provider: TracerProvider = TracerProvider(
            sampler=sampler_of(config),
            resource=Resource.create({**config.resource_attributes, "service.name": config.service_name or ""}),
            shutdown_on_exit=False,
        )
        self._processor = _Counting(self._exporter)
        self.provider.add_span_processor(self._processor)
        self._answered = False

    def introduction(self) -> list[str]:
        """Where spans go, whether a collector answers there, and how to look at them. Takes a second at most."""
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # told here and at the end, in a line each
        self._answered, there = self._answers(), address(self._config)
        if self._answered:
            lines = [f"Spans are pushed to {there}.", _LOOK]
        else:
            lines = [f"No collector at {there} yet; until then spans get lost.", _START, _LOOK]
        return lines if _EXAMPLE_LISTENS.fullmatch(there) else lines[:1]

    def _answers(self) -> bool:
        """Whether an export of no spans succeeds."""
        probe = _otlp.span_exporter(self._config.with_changes(otlp_timeout_s=_PROBE_S, otlp_traces_timeout_s=_PROBE_S))
        try:
            return probe.export([]) is SpanExportResult.SUCCESS
        finally:
            probe.shutdown()

    def end(self) -> str:
        """Push what is left, and tell in one line what became of all."""
        arrives = self._answered or self._exporter.pushed
        ending = threading.Thread(target=self.provider.shutdown, name="amptalk-demo-spans", daemon=True)
        ending.start()
        ending.join(_END_S if arrives else _END_WITHOUT_COLLECTOR_S)
        if ending.is_alive():
            self._exporter.shutdown()  # no more attempts
        made, pushed = self._processor.made, self._exporter.pushed
        return f"spans {made:,} = pushed {pushed:,} + not pushed {made - pushed:,}"


class _Counting(BatchSpanProcessor):
    """Counts the spans that are to be pushed."""

    made = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.made += 1
        super().on_end(span)


class _Counted(SpanExporter):
    """Counts the spans that a collector took."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.pushed = 0
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.pushed += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def address(config: Config) -> str:
    """Where spans are pushed to, without credentials."""
    own, both = config.otlp_traces_endpoint, config.otlp_endpoint
    if (config.otlp_traces_protocol or config.otlp_protocol) == "grpc":
        return without_credentials(own or both or "http://localhost:4317")
    return without_credentials(own or f"{(both or 'http://localhost:4318').rstrip('/')}/v1/traces")
