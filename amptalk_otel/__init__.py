"""OpenTelemetry metrics and traces for AMPTALK multi-agent programs: what are my agents doing, and why is it slow?

`instrument_orchestrator(orchestrator)` watches an orchestrator and its agents, and serves their metrics at
http://localhost:8000/metrics. `AmptalkInstrumentor` is here too; it needs the extra `auto`.
"""

from amptalk_otel._buckets import Distribution
from amptalk_otel._instrumentation import (
    Instrumentation,
    instrument_agent,
    instrument_orchestrator,
    instrument_state_manager,
)
from amptalk_otel._reading import AgentReading, StateReading, TypeReading
from amptalk_otel._timesheet import TimeReading
from amptalk_otel._version import __version__
from amptalk_otel.adapters import AgentAdapter, register_adapter, unregister_adapter
from amptalk_otel.config import Config
from amptalk_otel.performance_monitor import PerformanceMonitor, get_monitor, setup_performance_monitoring

__all__ = [
    "AgentAdapter",
    "AgentReading",
    "Config",
    "Distribution",
    "Instrumentation",
    "PerformanceMonitor",
    "StateReading",
    "TimeReading",
    "TypeReading",
    "__version__",
    "get_monitor",
    "instrument_agent",
    "instrument_orchestrator",
    "instrument_state_manager",
    "register_adapter",
    "setup_performance_monitoring",
    "unregister_adapter",
]


def __getattr__(name: str) -> object:
    # Imported when it is asked for: it needs the extra `auto`.
    if name == "AmptalkInstrumentor":
        from amptalk_otel.instrumentor import AmptalkInstrumentor

        return AmptalkInstrumentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
