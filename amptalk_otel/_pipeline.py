"""Our own way out, for programs that have none: readers and exporters made from a `Config`.

Nothing global is touched: no global provider, no prometheus_client default registry, no signal handler.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import inspect
import os
import platform
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    Counter,
    ExemplarFilter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    TraceBasedExemplarFilter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.version import __version__ as sdk_version
from prometheus_client import CollectorRegistry

from amptalk_otel import _bridge, _otlp
from amptalk_otel._exports import SpansOut
from amptalk_otel._exposition import MetricsPage
from amptalk_otel._forks import after_fork
from amptalk_otel._guard import guarded, logger, swallow
from amptalk_otel._labels import valid
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._protection import OPEN, Protection, UnusableError
from amptalk_otel._readers import InstrumentsReader, ProducingReader, mark_collections
from amptalk_otel._server import MetricsServer
from amptalk_otel._traces import make_provider, message_tracer
from amptalk_otel._tracing._tracer import MessageTracer
from amptalk_otel.config import Config

_EXIT_TIMEOUT_S = 5.0
_NO_LIMIT = 2**31 - 1
_MAX_RESOURCE_LENGTH = 1024
_EXEMPLAR_FILTERS: dict[str, Callable[[], ExemplarFilter]] = {
    "always_on": AlwaysOnExemplarFilter,
    "always_off": AlwaysOffExemplarFilter,
    "trace_based": TraceBasedExemplarFilter,
}


class Pipeline:
    """A MeterProvider with the readers that a Config asks for, and the bridge that they produce our metrics from."""

    def __init__(self, config: Config) -> None:
        self.config: Config = config
        self.bridge: ProducerBridge = ProducerBridge()
        self._resource = _resource(config)
        self._server: MetricsServer | None = None
        readers = [reader for name in config.metrics_exporters for reader in self._readers(name)]
        self._pushing = [reader for reader in readers if isinstance(reader, ProducingReader)]
        self.meter_provider: MeterProvider = MeterProvider(
            metric_readers=readers,
            resource=self._resource,
            exemplar_filter=_EXEMPLAR_FILTERS[config.exemplar_filter](),
            shutdown_on_exit=False,  # the SDK's own handler would hold up the exit while a collector is down
        )
        if self._pushing:
            mark_collections(self.meter_provider)
        self.tracer_provider: TracerProvider | None
        self.tracer_provider, self._spans_out = make_provider(config, self._resource)
        self.tracer: MessageTracer | None = guarded("setting up traces", message_tracer, self.tracer_provider, config)
        _bridge.serve(self.meter_provider, self.bridge)  # whoever is given this provider is told once, not twice
        self._ended = False
        self._lock = threading.Lock()
        self._process_id = os.getpid()
        _all.add(self)
        atexit.register(self._at_exit)

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child: the page and the last values are the parent's."""
        return self._process_id == os.getpid()

    def serves(self, config: Config) -> bool:
        """Whether a call with `config` is answered by this pipeline; told where other settings are left out."""
        if self._ended or config.prometheus_port == 0 or not self.is_of_this_process:
            return False
        if config == self.config:
            return True
        mine, theirs = (_address(one) for one in (self.config, config))
        if theirs is None or mine != theirs or self.metrics_url is None:
            return False
        if _protecting(config) != (None, None) and _protecting(config) != _protecting(self.config):
            return False  # which ends with a warning that the port is taken: better than a page without protection
        ignored = sorted(set(config.metrics_exporters) - set(self.config.metrics_exporters))
        if ignored:
            logger.warning(
                "%s is served already with other settings: no %s exporter is added", mine, ", ".join(ignored)
            )
        return True

    @property
    def metrics_url(self) -> str | None:
        """Where the page is; None without the `prometheus` exporter, or where its port was taken."""
        return self._server.url if self._server is not None else None

    # -- ending --------------------------------------------------------------------------------------

    def flush(self, timeout_s: float) -> bool:
        """Push what there is; False where that did not succeed in time."""
        lost = self._lost()
        return _within(timeout_s, *self._flushes()) and self._lost() == lost

    def _lost(self) -> int:
        """Pushes of all exporters that did not succeed."""
        ways_out: list[ProducingReader | SpansOut] = [*self._pushing, *self._spans_out]
        return sum(way_out.lost for way_out in ways_out)

    def _flushes(self) -> Iterator[Callable[[float], object]]:
        if self._pushing:
            yield self.meter_provider.force_flush
        if self.tracer_provider is not None:
            flush = self.tracer_provider.force_flush
            yield lambda milliseconds: flush(int(milliseconds))

    def _shutdowns(self) -> Iterator[Callable[[float], object]]:
        """One for each exporter: a provider ends its own one after another, and one that hangs costs the others'."""
        for pushing in self._pushing:
            yield pushing.shutdown
        for spans_out in self._spans_out:
            yield spans_out.end

    def _end_providers(self) -> None:
        """Nothing is left to be pushed, and nothing waits here for what hangs: that was told to end before."""
        self.meter_provider.shutdown()
        if self.tracer_provider is not None:
            self.tracer_provider.shutdown()

    def shutdown(self, timeout_s: float) -> bool:
        """Push the last values, stop serving, end all threads; False where that failed or took longer than `timeout_s`.

        Returns in time even if a collector does not answer: what hangs is left to a daemon thread.
        """
        with self._lock:
            if self._ended:
                return True
            self._ended = True
        atexit.unregister(self._at_exit)
        until = time.monotonic() + timeout_s
        if not self.is_of_this_process:  # the exporters, and their connections, are the parent's
            return True
        lost = self._lost()
        succeeded = _within(timeout_s, *self._shutdowns()) and self._lost() == lost
        guarded("ending the providers", self._end_providers)
        if self._server is not None:
            succeeded = self._server.close(max(0.1, until - time.monotonic())) and succeeded
        return succeeded

    def leave_to_parent(self) -> None:
        """Called in a forked child: give back what it has of the parent's, such as the port, without ending it."""
        self._lock = threading.Lock()
        if self._server is not None:
            self._server.leave_to_parent()

    def _at_exit(self) -> None:
        if self.is_of_this_process:
            self.shutdown(_EXIT_TIMEOUT_S)

    # -- readers -------------------------------------------------------------------------------------

    def _readers(self, name: str) -> list[MetricReader]:
        try:
            if name == "prometheus":
                return self._prometheus()
            if name == "otlp":
                return self._periodic(_otlp.metric_exporter(self.config))
            if name == "console":
                return self._periodic(ConsoleMetricExporter())
        except _otlp.MissingExtraError as error:
            logger.warning("%s", error)
        except Exception as error:
            # Not the text of the error: it may quote headers.
            kind = type(error).__qualname__
            logger.warning("the %s exporter could not be made (%s); going on without it", name, kind)
        return []

    def _prometheus(self) -> list[MetricReader]:
        others = CollectorRegistry(auto_describe=False)
        scope_labels = self.config.prometheus_scope_labels
        reader = InstrumentsReader(
            registry=others,
            disable_target_info=True,
            scope_info_enabled=scope_labels,
            **_no_limits(InstrumentsReader),
        )
        page = MetricsPage(
            self.bridge.sources.stream,
            self.bridge.system,
            resource_attributes=self._resource.attributes,
            scope_labels=scope_labels,
            others=others,
        )
        host, port = self.config.prometheus_host, self.config.prometheus_port
        try:
            self._server = MetricsServer(page, host, port, protection=_protection(self.config))
        except UnusableError as error:  # a page without protection is not what was asked for
            logger.warning("metrics are not served: %s", error)
            return []
        except OSError as error:
            logger.warning(
                "metrics are not served: %s:%d can't be bound (%s); %s",
                host, port, error.strerror or type(error).__qualname__, _advice(error),
            )  # fmt: skip
            return []
        self.config = self.config.with_changes(prometheus_port=self._server.port)  # if it was 0, whoever asks for it
        return [reader]

    def _periodic(self, exporter: MetricExporter) -> list[MetricReader]:
        return [
            ProducingReader(
                exporter,
                CatalogueProducer(self.bridge),
                export_interval_millis=self.config.metric_export_interval_s * 1000.0,
                export_timeout_millis=self.config.metric_export_timeout_s * 1000.0,
                **_no_limits(PeriodicExportingMetricReader),
            )
        ]


def _advice(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
        return "set OTEL_EXPORTER_PROMETHEUS_HOST to an address of this machine"
    return "set OTEL_EXPORTER_PROMETHEUS_PORT to a free port, or to 0 for any"


def _protection(config: Config) -> Protection:
    if config.prometheus_web_config is None and config.prometheus_bearer_token_file is None:
        return OPEN
    from amptalk_otel._file_protection import FileProtection

    return FileProtection(config.prometheus_web_config, config.prometheus_bearer_token_file)


def _no_limits(reader: type[MetricReader]) -> dict[str, Any]:
    """No cap of 2,000 series per instrument, in the versions of the SDK that have one (1.45.2 and later).

    Series are bounded by the agents that are watched, and leave with them.
    """
    if "cardinality_limits" not in inspect.signature(reader.__init__).parameters:
        return {}
    kinds = (Counter, Histogram, ObservableCounter, ObservableGauge, ObservableUpDownCounter, UpDownCounter)
    return {"cardinality_limits": dict.fromkeys(kinds, _NO_LIMIT)}


def _resource(config: Config) -> Resource:
    """Who speaks: OpenTelemetry's service, SDK and process attributes. No command line: it may hold secrets.

    Not `Resource.create`, which reads the environment: that is done where the Config is made.
    """
    attributes: dict[str, Any] = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version,
        "service.name": f"unknown_service:{Path(sys.executable or 'python').name}",
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
        "process.executable.name": Path(sys.executable or "python").name,
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        **config.resource_attributes,
    }
    if config.service_name is not None:
        attributes["service.name"] = config.service_name
    return Resource({valid(key): _valid(value) for key, value in attributes.items()})


def _valid(value: Any) -> Any:
    """A text that the environment holds may be of any bytes, and one that can't be encoded would cost every export."""
    return valid(value[:_MAX_RESOURCE_LENGTH]) if isinstance(value, str) else value


class _Ending:
    """`act`, which takes a timeout in milliseconds, in a daemon thread: what hangs is left behind.

    The SDK gives up without a word at the time that it is told. It is told a later one, so that it is we who notice.
    """

    def __init__(self, act: Callable[[float], object], timeout_s: float, share_s: float) -> None:
        """`share_s`: how long it may take where it can't have a thread, and others wait for it."""
        self._act = act
        self._outcome: list[bool] = []
        self._thread = threading.Thread(
            target=self._run, args=(2.0 * timeout_s,), name="amptalk-otel-deadline", daemon=True
        )
        self._is_running = True
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending and starts no threads: the SDK has to keep the time
            self._is_running = False
            self._run(share_s)

    def _run(self, limit_s: float) -> None:
        try:
            self._outcome.append(self._act(limit_s * 1000.0) is not False)
        except BaseException as error:
            if not self._is_running and not isinstance(error, Exception):
                raise  # such as Ctrl-C; in a thread of ours it is a callback's, and nobody's
            swallow("ending an exporter")

    def succeeds(self, until: float) -> bool:
        """Wait until that time of the monotonic clock; False where it failed or is not over then."""
        if self._is_running:
            self._thread.join(max(0.0, until - time.monotonic()))
        return bool(self._outcome and self._outcome[0])


def _within(timeout_s: float, *acts: Callable[[float], object]) -> bool:
    """Run acts side by side, as a collector that hangs on metrics may take spans. False where one failed or hangs."""
    until = time.monotonic() + timeout_s
    endings = [
        _Ending(act, timeout_s, (until - time.monotonic()) / (len(acts) - number)) for number, act in enumerate(acts)
    ]
    outcomes = [ending.succeeds(until) for ending in endings]
    return all(outcomes)


def _address(config: Config) -> str | None:
    return f"{config.prometheus_host}:{config.prometheus_port}" if "prometheus" in config.metrics_exporters else None


def _protecting(config: Config) -> tuple[str | None, str | None]:
    return config.prometheus_web_config, config.prometheus_bearer_token_file


# -- sharing -------------------------------------------------------------------------------------------

_all: weakref.WeakSet[Pipeline] = weakref.WeakSet()
_shared: list[tuple[Pipeline, int]] = []
_shared_lock = threading.Lock()


def _leave_to_parent() -> None:
    """In a forked child: what is shared there is the parent's, and so is the port."""
    global _shared_lock
    _shared_lock = threading.Lock()
    for pipeline in list(_all):  # those as well that are just ending
        pipeline.leave_to_parent()
    _all.clear()
    _shared.clear()


after_fork(_leave_to_parent)


def acquire(config: Config) -> Pipeline:
    """A pipeline for `config`: the one that has its settings or serves its address already, or a new one.

    Whoever comes second to an address shares the page there, and the settings of the first. With port 0
    each caller gets a page of its own.
    """
    with _shared_lock:
        for index, (pipeline, users) in enumerate(_shared):
            if pipeline.serves(config):
                _shared[index] = (pipeline, users + 1)
                return pipeline
        pipeline = Pipeline(config)
        _shared.append((pipeline, 1))
        return pipeline


def release(pipeline: Pipeline, timeout_s: float) -> bool:
    """One user less; the last one ends the pipeline."""
    with _shared_lock:
        for index, (shared, users) in enumerate(_shared):
            if shared is pipeline and users > 1:
                _shared[index] = (shared, users - 1)
                break
        else:
            _shared[:] = [entry for entry in _shared if entry[0] is not pipeline]
            users = 0
    return pipeline.flush(timeout_s) if users > 1 else pipeline.shutdown(timeout_s)


async def release_in_thread(pipeline: Pipeline, timeout_s: float) -> None:
    """`release` for coroutines: the event loop goes on meanwhile. When cancelled, it goes on without us."""
    try:
        await asyncio.to_thread(guarded, "shutting down", release, pipeline, timeout_s)
    except RuntimeError:  # there are no more threads, or the loop gives none
        guarded("shutting down", release, pipeline, timeout_s)
