"""The performance monitor of the framework's monitoring document, with the same names, on OpenTelemetry.

A framework tree whose `utils/performance_monitor.py` holds `from amptalk_otel.performance_monitor import *` works as
it is; docs/migration.md tells the three steps.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from opentelemetry.metrics import Meter, MeterProvider, NoOpMeterProvider

from amptalk_otel import _pipeline
from amptalk_otel._bridge import bridge_for
from amptalk_otel._custom import CustomMetrics, Definition
from amptalk_otel._forks import lock_of
from amptalk_otel._guard import complain, guarded
from amptalk_otel._labels import clean
from amptalk_otel._setting_types import check, interval
from amptalk_otel._tracing._attributes import of_agent
from amptalk_otel._tracing._tracer import Inside
from amptalk_otel._version import SCOPE_NAME, __version__
from amptalk_otel._watch import Watch, is_tracing, traced_as
from amptalk_otel.adapters import adapter_for
from amptalk_otel.config import Config

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PerformanceMonitor", "get_monitor", "setup_performance_monitoring"]

_logger = logging.getLogger("amptalk_otel")
_SHUTDOWN_S = 5.0


class PerformanceMonitor:
    """Watches the agents that are added to it, and serves or pushes their metrics.

    `collection_interval_seconds` is the time between two pushes to a collector (`OTEL_METRICS_EXPORTER=otlp`).
    It has no meaning for Prometheus: values are read when it scrapes, and cost nothing in between.
    `prometheus_port` and `collection_interval_seconds`, their defaults included, go before
    `OTEL_EXPORTER_PROMETHEUS_PORT` and `OTEL_METRIC_EXPORT_INTERVAL`, and `enable_prometheus` before what
    `OTEL_METRICS_EXPORTER` says of the page. The other settings of `Config` come from the environment.

    The page is there, and exporters run, from the first `add_agent` or `start_collecting` until
    `stop_collecting`. Monitors with the same port share one page, and an agent that several watch is
    counted once. Raises ValueError for an interval that is not above 0 (and at most a year) or a port
    that is none.
    """

    def __init__(
        self,
        name: str = "amptalk_monitor",
        enable_prometheus: bool = True,  # noqa: FBT001, FBT002 - the requirement document's signature
        prometheus_port: int = 8000,
        collection_interval_seconds: float = 5.0,
        include_system_metrics: bool = True,  # noqa: FBT001, FBT002
        include_agent_metrics: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        self.agent_processing_time: _CountedAlready = _CountedAlready()
        self._lock = lock_of(self, threading.RLock)  # never taken while metrics are read: see `_live_agents`
        self._agents: dict[str, weakref.ref[Any]] = {}
        self._pipeline: _pipeline.Pipeline | None = None
        self._provider: MeterProvider | None = None
        self._watch: Watch | None = None
        self._custom = CustomMetrics(self._told_agents)
        self._configure(
            name=name,
            enable_prometheus=enable_prometheus,
            prometheus_port=prometheus_port,
            collection_interval_seconds=collection_interval_seconds,
            include_system_metrics=include_system_metrics,
            include_agent_metrics=include_agent_metrics,
        )

    def _configure(
        self,
        *,
        name: str,
        enable_prometheus: bool,
        prometheus_port: int,
        collection_interval_seconds: float,
        include_system_metrics: bool,
        include_agent_metrics: bool,
    ) -> None:
        self._config = _config_of(enable_prometheus, prometheus_port, collection_interval_seconds)
        self._custom.scope = f"{SCOPE_NAME}.{clean(name)}"
        self.name = name
        self.enable_prometheus = enable_prometheus
        self.prometheus_port = prometheus_port
        self.collection_interval_seconds = collection_interval_seconds
        self.include_system_metrics = include_system_metrics
        self.include_agent_metrics = include_agent_metrics

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus can scrape; None while nothing is served."""
        return self._pipeline.metrics_url if self._pipeline is not None else None

    @property
    def is_collecting(self) -> bool:
        """Whether metrics are served and pushed. Never so with `OTEL_SDK_DISABLED`."""
        return self._pipeline is not None

    @property
    def monitored_agents(self) -> dict[str, Any]:
        """The agents that were added and not removed, by id."""
        return {agent_id: agent for agent_id, ref in self._agents.copy().items() if (agent := ref()) is not None}

    @property
    def meter(self) -> Meter:
        """An OpenTelemetry meter on the same page and exporters, for instruments of the program's own.

        Begins to collect. After `stop_collecting` its instruments tell nothing any more: ask again.
        """
        return self._begin().get_meter(self._custom.scope, __version__)

    def _adopt(self, settings: dict[str, Any]) -> None:
        """Take other settings, by the names of the constructor's arguments, unless they are in use already."""
        with self._lock:
            differing = [setting for setting, value in settings.items() if getattr(self, setting) != value]
            if differing and self._provider is not None:
                _logger.info("the process's monitor goes on with its former settings of %s", ", ".join(differing))
            elif differing:
                self._configure(**settings)

    # -- agents --------------------------------------------------------------------------------------

    def add_agent(self, agent: Any) -> None:
        """Watch an agent. Harmless for one that is watched already; another one of the same id takes its place.

        Agents are held weakly. One of a kind that no adapter knows costs a log record.
        """
        guarded("watching an agent", self._add_agent, agent)

    def _add_agent(self, agent: Any) -> None:
        adapter = adapter_for(agent)
        if adapter is None:
            kind = type(agent).__qualname__
            complain(f"agent {kind}", "%s can't be watched: it is of no kind that an adapter knows", kind)
            return
        agent_id = clean(adapter.agent_id(agent))
        with self._lock:
            former = self._agents.get(agent_id)
            if former is not None and former() is not agent:
                self.remove_agent(agent_id)
            self._agents[agent_id] = self._ref(agent_id, agent)
            self._begin()
            if self._watch is not None:
                self._watch.agent_registered(agent)

    def _ref(self, agent_id: str, agent: Any) -> weakref.ref[Any]:
        """A reference that is forgotten with the agent."""
        agents = self._agents

        def forget(ref: weakref.ref[Any]) -> None:
            if agents.get(agent_id) is ref:
                del agents[agent_id]

        return weakref.ref(agent, forget)

    def remove_agent(self, agent_id: str) -> None:
        """Let an agent go; unknown ids are ignored. Its last values stay on the page for a while."""
        guarded("letting an agent go", self._remove_agent, agent_id)

    def _remove_agent(self, agent_id: str) -> None:
        with self._lock:
            ref = self._agents.pop(clean(agent_id), None)
            agent = ref() if ref is not None else None
            if agent is not None and self._watch is not None:
                series = self._watch.series_of(agent)
                if series is not None and self._provider is not None:
                    guarded("letting an agent go", self._custom.let_go, agent, series, self._provider)
                guarded("letting an agent go", self._leave, agent)
                self._watch.agent_unregistered(agent)

    def _leave(self, agent: Any) -> None:
        """An agent that goes on without us has no monitor: with one it measures in its own way, and fails messages."""
        if getattr(agent, "_performance_monitor", None) is self:
            agent._performance_monitor = None  # noqa: SLF001 - the framework's

    def _live_agents(self) -> list[Any]:
        # Takes no lock: exporters' threads come here with one of the SDK's, which `observe` waits for.
        return list(self.monitored_agents.values())

    def _told_agents(self) -> list[tuple[Any, tuple[str, str]]]:
        """The agents that are watched, with `agent.id` and `agent.name` of the series that they are in."""
        watch = self._watch
        told = [(agent, watch.series_of(agent)) for agent in self._live_agents()] if watch is not None else []
        return [(agent, series) for agent, series in told if series is not None]

    # -- own measurements ----------------------------------------------------------------------------

    def measure_execution_time(self, agent_id: str, operation: str) -> Measurement:
        """Measure a block: `with monitor.measure_execution_time(agent_id, "transcribe"):`, or `async with`.

        Goes to the histogram `amptalk.operation.duration`, in seconds, also when the block raises, and
        includes the time that it awaits. Blocks may be nested and run at the same time. `agent_id` need
        not be that of a watched agent. Where there are traces, it is a span that is named `operation`.
        """
        return Measurement(self, agent_id, operation)

    def record_operation(self, agent_id: str, operation: str, seconds: float) -> None:
        """Count an operation that took `seconds`; nothing is kept while the monitor is not collecting."""
        guarded("measuring an operation", self._record_operation, agent_id, operation, seconds)

    def _record_operation(self, agent_id: str, operation: str, seconds: float) -> None:
        watch = self._watch
        if watch is not None:
            agent_id = clean(agent_id)
            told_as, name = self._series_of(watch, agent_id) or (agent_id, None)
            watch.operations.measured(told_as, name, clean(operation), seconds)

    def _series_of(self, watch: Watch, agent_id: str) -> tuple[str, str] | None:
        ref = self._agents.get(agent_id)
        agent = ref() if ref is not None else None
        return watch.series_of(agent) if agent is not None else None

    def _begin_span(self, agent_id: str, operation: str) -> Inside | None:
        watch = self._watch
        if watch is None or (watch.tracer is None and not is_tracing()):
            return None
        agent_id = clean(agent_id)
        ref = self._agents.get(agent_id)
        agent = ref() if ref is not None else None
        traced_by, name = traced_as(agent_id, agent)
        tracer = watch.tracer or traced_by
        if tracer is None:
            return None
        operation, name = clean(operation), _name_of(agent) or name or agent_id
        return tracer.start_inside(operation, {"operation.name": operation, **of_agent(agent_id, name)})

    def observe(
        self,
        name: str,
        read: Callable[..., Any],
        *,
        unit: str = "",
        description: str = "",
        kind: str = "gauge",
        per: str = "agent",
    ) -> None:
        """Define a metric that `read` tells when somebody asks.

        `per="agent"`: `read(agent)` is called for every watched agent, and the value has its attributes;
        `per="process"`: `read()` is called once. `kind` is `gauge`, `counter` (never falls) or
        `up_down_counter`; `unit` a UCUM code such as `s`, `By` or `{document}`. `read` is called from
        exporters' threads and must be quick; None means no value, True is 1. If it raises or returns what
        is no finite number (for a counter: none from 0 on), that one value is missing, and one log record
        a minute says so. Raises ValueError for a name that is taken (by the catalogue, also in its
        Prometheus form, or by another `observe`) or is no metric name, and for an unusable `read`, `unit`,
        `description`, `kind` or `per`.

        Definitions are kept when collecting stops, and reported again when it starts.
        """
        with self._lock:
            self._custom.define(Definition(name, read, unit, description, kind, per), self._provider)

    # -- beginning and ending ------------------------------------------------------------------------

    async def start_collecting(self) -> None:
        """Serve and push from now on. Harmless the second time."""
        guarded("beginning to collect", self._begin)

    async def stop_collecting(self) -> None:
        """Push the last values, take the wrappers off, stop serving. Harmless the second time.

        Waits for exporters, at most 5 s, without blocking the event loop.
        The agents and metrics are remembered: after `start_collecting` they are watched again, from zero.
        """
        with self._lock:
            pipeline, self._pipeline = self._pipeline, None
            provider, self._provider = self._provider, None
            watch, self._watch = self._watch, None
        try:
            if pipeline is not None:
                await _pipeline.release_in_thread(pipeline, _SHUTDOWN_S)
        finally:  # also when we are cancelled
            if provider is not None:
                guarded("withdrawing metrics", self._custom.detach, provider)
            if watch is not None:
                for agent in self._live_agents():
                    guarded("letting an agent go", self._leave, agent)
                guarded("uninstrumenting", watch.release)

    def _begin(self) -> MeterProvider:
        with self._lock:
            if self._provider is None:
                provider = self._provider = self._open()
                self._watch = Watch(
                    bridge_for(provider),
                    self._config,
                    machine=self.include_system_metrics,
                    agents=self.include_agent_metrics,
                    tracer=self._pipeline.tracer if self._pipeline is not None else None,
                )
                self._custom.attach(provider)
                for agent in self._live_agents():
                    guarded("watching an agent", self._watch.agent_registered, agent)
            return self._provider

    def _open(self) -> MeterProvider:
        if self._config.sdk_disabled:  # agents are watched all the same: their own monitoring would fail their messages
            return NoOpMeterProvider()
        self._pipeline = _pipeline.acquire(self._config)
        return self._pipeline.meter_provider


class Measurement:
    """One measured block, for `with` and `async with`."""

    def __init__(self, monitor: PerformanceMonitor, agent_id: str, operation: str) -> None:
        self._monitor = monitor
        self._agent_id = agent_id
        self._operation = operation
        self._began_at = 0.0
        self._span: Inside | None = None

    def __enter__(self) -> Self:
        begin = self._monitor._begin_span  # noqa: SLF001 - our own module's
        self._span = guarded("starting a span", begin, self._agent_id, self._operation)
        self._began_at = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.record_operation(self._agent_id, self._operation, perf_counter() - self._began_at)
        if self._span is not None:
            guarded("ending a span", self._span.end, error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def _name_of(agent: Any) -> str | None:
    adapter = adapter_for(agent) if agent is not None else None
    return clean(adapter.agent_name(agent)) if adapter is not None else None


class _CountedAlready:
    """What the framework's own measuring records to. Each message is measured by its agent's hook, once."""

    def record(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing."""


def _config_of(enable_prometheus: bool, port: int, interval_s: float) -> Config:  # noqa: FBT001
    _check_interval(interval_s)
    config = Config.from_env(prometheus_port=port, metric_export_interval_s=float(interval_s))
    others = tuple(name for name in config.metrics_exporters if name not in ("prometheus", "none"))
    exporters = ("prometheus", *others) if enable_prometheus else others
    return config.with_changes(metrics_exporters=exporters or ("none",))


def _check_interval(seconds: object) -> None:
    try:
        check(interval, seconds)
    except ValueError as error:
        raise ValueError(f"collection_interval_seconds={seconds!r}: {error}") from None


_global: PerformanceMonitor | None = None
_global_lock = lock_of(sys.modules[__name__], threading.Lock, "_global_lock")


@overload
def get_monitor(create_if_none: Literal[True] = True, **settings: Any) -> PerformanceMonitor: ...  # noqa: FBT002
@overload
def get_monitor(create_if_none: bool, **settings: Any) -> PerformanceMonitor | None: ...  # noqa: FBT001
def get_monitor(
    create_if_none: bool = True,  # noqa: FBT001, FBT002 - the requirement document's signature
    **settings: Any,
) -> PerformanceMonitor | None:
    """The process's monitor; made with `settings`, those of `PerformanceMonitor`, if there is none yet.

    None where there is none and `create_if_none` is False.
    """
    global _global
    with _global_lock:
        if _global is None and create_if_none:
            _global = PerformanceMonitor(**settings)
        return _global


async def setup_performance_monitoring(
    enable_prometheus: bool = True,  # noqa: FBT001, FBT002 - the requirement document's signature
    prometheus_port: int = 8000,
    collection_interval_seconds: float = 5.0,
    include_system_metrics: bool = True,  # noqa: FBT001, FBT002
    include_agent_metrics: bool = True,  # noqa: FBT001, FBT002
    name: str = "amptalk_monitor",
) -> PerformanceMonitor:
    """The process's monitor, collecting. One that does not collect yet gets these settings.

    One that collects keeps its own; other ones cost a log record. The arguments, their defaults included, go before
    the environment, and bad ones raise ValueError, as those of `PerformanceMonitor` do.
    """
    settings: dict[str, Any] = {
        "name": name,
        "enable_prometheus": enable_prometheus,
        "prometheus_port": prometheus_port,
        "collection_interval_seconds": collection_interval_seconds,
        "include_system_metrics": include_system_metrics,
        "include_agent_metrics": include_agent_metrics,
    }
    _config_of(enable_prometheus, prometheus_port, collection_interval_seconds)
    monitor = get_monitor(create_if_none=True, **settings)
    monitor._adopt(settings)  # noqa: SLF001 - our own module's
    await monitor.start_collecting()
    return monitor
