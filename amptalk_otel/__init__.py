"""OpenTelemetry metrics for AMPTALK multi-agent programs: what are my agents doing, and why is it slow?

from amptalk_otel import instrument_orchestrator

instrumentation = instrument_orchestrator(orchestrator)  # http://localhost:8000/metrics
"""

from amptalk_otel._buckets import Distribution
from amptalk_otel._instrumentation import (
    Instrumentation,
    instrument_agent,
    instrument_orchestrator,
    instrument_state_manager,
)
from amptalk_otel._reading import AgentReading, StateReading, TypeReading
from amptalk_otel._version import __version__
from amptalk_otel.config import Config

__all__ = [
    "AgentReading",
    "Config",
    "Distribution",
    "Instrumentation",
    "StateReading",
    "TypeReading",
    "__version__",
    "instrument_agent",
    "instrument_orchestrator",
    "instrument_state_manager",
]
