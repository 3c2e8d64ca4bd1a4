"""Exports of ours while OpenTelemetry's exporters make them: what those log, how long they wait, and whose they are.

The exporters log each attempt, with texts that may quote headers, addresses or what a collector answered. Of what they
log for us one record a minute is left, ours, with the kind of failure and no text. What they log for anybody else, and
so the program's own use of OpenTelemetry, stays as it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.version import __version__ as sdk_version

from amptalk_otel._forks import after_fork, lock_of
from amptalk_otel._guard import complain, guarded

_LOGGERS = (
    "grpc._channel",
    "grpc._common",
    "grpc._plugin_wrapping",
    "opentelemetry.exporter.http.transport",
    "opentelemetry.exporter.otlp.common._exporter_metrics",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.common._internal",
    "opentelemetry.exporter.otlp.proto.common._internal.metrics_encoder",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http._common",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.util.re",  # quotes header variables that it can't read
    "urllib3.connectionpool",
    "urllib3.util.retry",
)
_OF_THE_READER = "opentelemetry.sdk.metrics._internal.export"
_HURRIED_WAIT_S = 0.2
_EVENTS = ("_shutdown_event", "_shutdown_in_progress", "_shutdown_is_occuring")
_RELEASE_MS = 30_000.0
# Earlier versions tell what they made of each fork, also what is gone by then: each child would print a TypeError.
_FORKS_NEED_THE_ENDED = tuple(int(part) for part in sdk_version.split(".")[:2]) < (1, 45)
_ended: list[object] = []


class Exports:
    """Those of one exporter. `what` it exports: `metrics` or `spans`."""

    def __init__(self, what: str) -> None:
        self.lost: int = 0  # pushes that did not succeed, all attempts of one together
        self._what = what
        self._process_id = os.getpid()
        self._waits: list[_Waits] = []

    @property
    def are_of_this_process(self) -> bool:
        """False in a forked child, which shares the parent's connections and must leave them alone."""
        return self._process_id == os.getpid()

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """What is logged in this thread meanwhile is of these exports."""
        former = getattr(_here, "exports", None)
        _listen(1)
        _here.exports = self
        try:
            yield
        finally:
            _here.exports = former
            _listen(-1)

    def heard(self, record: logging.LogRecord) -> None:
        """OpenTelemetry logged something."""
        if record.levelno < logging.WARNING or record.name == "opentelemetry.util.re":
            return
        if record.name != _OF_THE_READER:
            self.failed(_kind_of(record))
        elif record.exc_info:  # a collection took too long, so that nothing was pushed
            self.failed(_kind_of(record))
            self.note(succeeded=False)
        # Else it is asked for a push before it belongs to a provider, at short intervals: there is nothing to push yet.

    def note(self, *, succeeded: bool) -> None:
        """A push has ended."""
        self.lost += not succeeded

    def failed(self, kind: str) -> None:
        """Tell that an export did not succeed, at this attempt at least."""
        complain(
            f"exports of {self._what}",
            "%s are not pushed%s; the next push is tried as usual, and the program is not affected",
            self._what,
            f" ({kind})" if kind else "",
        )

    def take(self, exporter: object) -> None:
        """Let the pauses between attempts of `exporter` end when it is time, where it has them as OpenTelemetry's."""
        for owner in (exporter, getattr(exporter, "_client", None)):
            for name in _EVENTS:
                if isinstance(getattr(owner, name, None), threading.Event):
                    waits = _Waits()
                    setattr(owner, name, waits)
                    self._waits.append(waits)

    def hurry(self) -> None:
        """It is the end: whoever waits for another attempt makes it now, and pauses are short from now on."""
        for waits in self._waits:
            waits.hurry()


class _Waits(threading.Event):
    """What an exporter waits at between attempts: until its shutdown, for so long at most, or until it is hurried."""

    def __init__(self) -> None:
        super().__init__()
        self._over = threading.Event()
        self._is_hurried = False

    def hurry(self) -> None:
        self._is_hurried = True
        self._over.set()

    def set(self) -> None:
        super().set()
        self._over.set()

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_hurried:
            return super().wait(_HURRIED_WAIT_S if timeout is None else min(timeout, _HURRIED_WAIT_S))
        self._over.wait(timeout)
        return self.is_set()


class SpansOut(BatchSpanProcessor):
    """Batches spans for an exporter of ours."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exports = Exports("spans")
        self._exports.take(exporter)
        super().__init__(_Spans(exporter, self._exports))
        if _FORKS_NEED_THE_ENDED:
            _ended.append(getattr(self, "_batch_processor", None))

    @property
    def lost(self) -> int:
        """Pushes that did not succeed."""
        return self._exports.lost

    def end(self, timeout_millis: float = _RELEASE_MS) -> None:
        """Export what there is and end, in about that time. `shutdown` has no limit but half a minute."""
        self._exports.hurry()
        processor: Any = self  # the SDK has no types for these
        batches = getattr(processor, "_batch_processor", None)
        if batches is None:  # in a version of the SDK that is laid out in another way
            processor.shutdown()
        else:
            batches.shutdown(timeout_millis=int(timeout_millis))


class _Spans(SpanExporter):
    """Exports through another exporter, in the process that it belongs to."""

    def __init__(self, exporter: SpanExporter, exports: Exports) -> None:
        self._exporter = exporter
        self._exports = exports

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if not self._exports.are_of_this_process:
            return SpanExportResult.FAILURE
        with self._exports.under_way():
            try:
                result = self._exporter.export(spans)
            except Exception as error:
                self._exports.failed(type(error).__qualname__)
                result = SpanExportResult.FAILURE
        self._exports.note(succeeded=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        with self._exports.under_way():
            guarded("ending the exporter of spans", self._exporter.shutdown)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        with self._exports.under_way():
            return bool(guarded("flushing spans", self._exporter.force_flush, timeout_millis))


class MetricsOut(MetricExporter):
    """Exports through another exporter, and notes whether that succeeded: the SDK's reader does not ask."""

    def __init__(self, exporter: MetricExporter, exports: Exports) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)  # noqa: SLF001 - as readers do
        self._exporter = exporter
        self._exports = exports

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        try:
            result = self._exporter.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        except Exception as error:
            self._exports.failed(type(error).__qualname__)
            result = MetricExportResult.FAILURE
        self._exports.note(succeeded=result is MetricExportResult.SUCCESS)
        return result

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


_here = threading.local()
_lock = lock_of(sys.modules[__name__], threading.RLock)
_under_way = 0  # in all threads: the loggers have our filter meanwhile


def _listen(more: int) -> None:
    """So many exports more, or less, are under way."""
    global _under_way
    with _lock:
        former, _under_way = _under_way, max(0, _under_way + more)
        if bool(former) != bool(_under_way):
            for name in _LOGGERS:
                _change_filters(logging.getLogger(name))


def _change_filters(logger: logging.Logger) -> None:
    """Another list each time: a thread that goes through the former one would miss the filter after ours, or ask twice.

    Ours is the first. OpenTelemetry's own drops what was logged just now already: it must not drop our record for the
    program's, nor the program's for ours.
    """
    others = [other for other in logger.filters if other is not _keep_what_is_not_ours]
    logger.filters = [_keep_what_is_not_ours, *others] if _under_way else others


after_fork(lambda: _listen(-_under_way))  # the threads that exported are the parent's


def _keep_what_is_not_ours(record: logging.LogRecord) -> bool:
    exports: Exports | None = getattr(_here, "exports", None)
    if exports is None:
        return True
    exports.heard(record)
    return False


def _kind_of(record: logging.LogRecord) -> str:
    """What went wrong, of what is known to hold no text: a class of exceptions, a member of an enum, an HTTP status."""
    failure = record.exc_info[1] if record.exc_info else None
    arguments = record.args if isinstance(record.args, tuple) else ()
    for argument in (failure, *arguments):
        if isinstance(argument, BaseException):
            return type(argument).__qualname__
        if isinstance(argument, Enum):
            return argument.name
        if isinstance(argument, int) and 100 <= argument < 600:
            return f"HTTP status {argument}"
    return ""
