"""The performance monitor of the AMPTALK requirement document, with the same names, on OpenTelemetry.

A framework tree whose `utils/performance_monitor.py` holds `from amptalk_otel.performance_monitor import *` works as
it is; docs/migration.md tells the three steps.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import weakref
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import Meter

from amptalk_otel import _pipeline
from amptalk_otel._bridge import SCOPE_NAME, bridge_for
from amptalk_otel._custom import CustomMetrics
from amptalk_otel._guard import guarded
from amptalk_otel._labels import clean
from amptalk_otel._version import __version__
from amptalk_otel._watch import Watch
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
    It has no meaning for Prometheus: values are read when it scrapes, and cost nothing in between. The
    other settings of `Config` come from the environment.

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
        _check_interval(collection_interval_seconds)
        self.name = name
        self.enable_prometheus = enable_prometheus
        self.prometheus_port = prometheus_port
        self.collection_interval_seconds = collection_interval_seconds
        self.include_system_metrics = include_system_metrics
        self.include_agent_metrics = include_agent_metrics
        self.agent_processing_time: _CountedAlready = _CountedAlready()
        self._config = self._make_config()
        self._lock = threading.RLock()
        self._agents: dict[str, weakref.ref[Any]] = {}
        self._pipeline: _pipeline.Pipeline | None = None
        self._watch: Watch | None = None
        self._custom = CustomMetrics(f"{SCOPE_NAME}.{name}", self._live_agents)

    def _make_config(self) -> Config:
        config = Config.from_env(
            prometheus_port=self.prometheus_port, metric_export_interval_s=float(self.collection_interval_seconds)
        )
        others = tuple(name for name in config.metrics_exporters if name not in ("prometheus", "none"))
        exporters = ("prometheus", *others) if self.enable_prometheus else others
        return config.with_changes(metrics_exporters=exporters or ("none",))

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus can scrape; None while nothing is served."""
        return self._pipeline.metrics_url if self._pipeline is not None else None

    @property
    def is_collecting(self) -> bool:
        """Whether metrics are served and pushed."""
        return self._watch is not None

    @property
    def monitored_agents(self) -> dict[str, Any]:
        """The agents that were added and not removed, by id."""
        with self._lock:
            return {agent_id: agent for agent_id, ref in self._agents.items() if (agent := ref()) is not None}

    @property
    def meter(self) -> Meter:
        """An OpenTelemetry meter on the same page and exporters, for instruments of the program's own."""
        return self._begin().meter_provider.get_meter(f"{SCOPE_NAME}.{self.name}", __version__)

    # -- agents --------------------------------------------------------------------------------------

    def add_agent(self, agent: Any) -> None:
        """Watch an agent. Harmless for one that is watched already; another one of the same id takes its place."""
        adapter = adapter_for(agent)
        agent_id = clean(adapter.agent_id(agent)) if adapter is not None else clean(getattr(agent, "agent_id", None))
        with self._lock:
            former = self._agents.get(agent_id)
            if former is not None and former() is not agent:
                self.remove_agent(agent_id)
            self._agents[agent_id] = weakref.ref(agent)
            self._begin()
            if self._watch is not None:
                guarded("watching an agent", self._watch.agent_registered, agent)

    def remove_agent(self, agent_id: str) -> None:
        """Let an agent go; unknown ids are ignored. Its last values stay on the page for a while."""
        with self._lock:
            ref = self._agents.pop(clean(agent_id), None)
            agent = ref() if ref is not None else None
            if agent is not None and self._watch is not None:
                guarded("letting an agent go", self._watch.agent_unregistered, agent)

    def _live_agents(self) -> list[Any]:
        return list(self.monitored_agents.values())

    # -- own measurements ----------------------------------------------------------------------------

    def measure_execution_time(self, agent_id: str, operation: str) -> Measurement:
        """Measure a block: `with monitor.measure_execution_time(agent_id, "transcribe"):`, or `async with`.

        Goes to the histogram `amptalk.operation.duration`, in seconds, also when the block raises, and
        includes the time that it awaits. Blocks may be nested and run at the same time. `agent_id` need
        not be that of a watched agent.
        """
        return Measurement(self, agent_id, operation)

    def record_operation(self, agent_id: str, operation: str, seconds: float) -> None:
        """Count an operation that took `seconds`; nothing is kept while the monitor is not collecting."""
        watch = self._watch
        if watch is None:
            return
        agent_id, operation = clean(agent_id), clean(operation)
        name = guarded("looking for an agent", self._name_of, agent_id)
        guarded("measuring an operation", watch.operations.measured, agent_id, name, operation, seconds)

    def _name_of(self, agent_id: str) -> str | None:
        ref = self._agents.get(agent_id)
        agent = ref() if ref is not None else None
        adapter = adapter_for(agent) if agent is not None else None
        return clean(adapter.agent_name(agent)) if adapter is not None else None

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
        exporters' threads and must be quick; None means no value. If it raises or returns what is no
        finite number, that one value is missing, and one log record a minute says so. Raises ValueError
        for a name that is taken (by the catalogue, also in its Prometheus form, or by another `observe`)
        or is no metric name, and for an unknown `kind` or `per`.
        """
        with self._lock:
            self._custom.define(name, read, unit=unit, description=description, kind=kind, per=per)
            self._begin()
            if self._pipeline is not None:
                self._custom.attach(self._pipeline.meter_provider)

    # -- beginning and ending ------------------------------------------------------------------------

    async def start_collecting(self) -> None:
        """Serve and push from now on. Harmless the second time."""
        self._begin()

    async def stop_collecting(self) -> None:
        """Push the last values, take the wrappers off, stop serving. Harmless the second time.

        The agents are remembered: after `start_collecting` they are watched again, from zero.
        """
        with self._lock:
            pipeline, self._pipeline = self._pipeline, None
            watch, self._watch = self._watch, None
        if pipeline is not None:
            await asyncio.to_thread(guarded, "shutting down", _pipeline.release, pipeline, _SHUTDOWN_S)
        self._custom.detach()
        if watch is not None:
            guarded("uninstrumenting", watch.release)

    def _begin(self) -> _pipeline.Pipeline:
        with self._lock:
            if self._pipeline is None:
                self._pipeline = _pipeline.acquire(self._config)
                self._watch = Watch(
                    bridge_for(self._pipeline.meter_provider),
                    self._config,
                    machine=self.include_system_metrics,
                    agents=self.include_agent_metrics,
                )
                self._custom.attach(self._pipeline.meter_provider)
                for agent in self._live_agents():
                    guarded("watching an agent", self._watch.agent_registered, agent)
            return self._pipeline


class Measurement:
    """One measured block, for `with` and `async with`."""

    def __init__(self, monitor: PerformanceMonitor, agent_id: str, operation: str) -> None:
        self._monitor = monitor
        self._agent_id = agent_id
        self._operation = operation
        self._began_at = 0.0

    def __enter__(self) -> Self:
        self._began_at = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.record_operation(self._agent_id, self._operation, perf_counter() - self._began_at)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class _CountedAlready:
    """What the framework's own measuring records to. Each message is measured by its agent's hook, once."""

    def record(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing."""


def _check_interval(seconds: object) -> None:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not number or not 0 < seconds <= 31_536_000:  # type: ignore[operator]
        raise ValueError(f"collection_interval_seconds={seconds!r}: must be a number above 0 and at most a year")


_global: PerformanceMonitor | None = None
_global_lock = threading.Lock()


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
    """The process's monitor, collecting. One that exists keeps its settings; other ones cost a log record."""
    settings = {
        "name": name,
        "enable_prometheus": enable_prometheus,
        "prometheus_port": prometheus_port,
        "collection_interval_seconds": collection_interval_seconds,
        "include_system_metrics": include_system_metrics,
        "include_agent_metrics": include_agent_metrics,
    }
    monitor = get_monitor(create_if_none=True, **settings)
    assert monitor is not None
    differing = [setting for setting, value in settings.items() if getattr(monitor, setting) != value]
    if differing and monitor.is_collecting:
        _logger.info("the process's monitor goes on with its former settings of %s", ", ".join(differing))
    elif differing:
        monitor = _replace_global(settings)
    await monitor.start_collecting()
    return monitor


def _replace_global(settings: dict[str, Any]) -> PerformanceMonitor:
    """A monitor that does not collect gives way to one with other settings, and leaves it its agents."""
    global _global
    monitor = PerformanceMonitor(**settings)
    with _global_lock:
        former, _global = _global, monitor
    for agent in former.monitored_agents.values() if former is not None else ():
        monitor.add_agent(agent)
    return monitor
