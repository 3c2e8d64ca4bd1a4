"""Zero code: OpenTelemetry's launcher finds `AmptalkInstrumentor` by its entry point."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry import metrics, trace

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
except ImportError:
    raise ImportError(
        "AmptalkInstrumentor needs opentelemetry-instrumentation; run: pip install 'amptalk_otel[auto]'"
    ) from None

from amptalk_otel._discovery import Discovery
from amptalk_otel._instrumentation import Instrumentation, instrument_orchestrator
from amptalk_otel.config import Config


class AmptalkInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments every orchestrator that the program creates, with given or global providers.

    Run a program unedited with `OTEL_METRICS_EXPORTER=prometheus opentelemetry-instrument python app.py`, or call
    `AmptalkInstrumentor().instrument(meter_provider=...)` before it creates its orchestrators. Modules are
    recognised by the end of their name (`….core.framework.orchestrator`, `….core.orchestrator`, and what
    `AMPTALK_OTEL_MODULES` adds), those included that are imported already.
    """

    _discovery: Discovery | None = None
    _instrumentations: list[Instrumentation]

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: the framework is vendored, not installed."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        config = kwargs.get("config") or Config.from_env()
        meter_provider = kwargs.get("meter_provider") or metrics.get_meter_provider()
        tracer_provider = kwargs.get("tracer_provider") or trace.get_tracer_provider()
        self._instrumentations = []

        def found(orchestrator: Any) -> None:
            instrumentation = instrument_orchestrator(
                orchestrator, config=config, meter_provider=meter_provider, tracer_provider=tracer_provider
            )
            self._instrumentations.append(instrumentation)

        self._discovery = Discovery(found, config.modules)

    def _uninstrument(self, **_kwargs: Any) -> None:
        if self._discovery is not None:
            self._discovery.stop()
            self._discovery = None
        for instrumentation in self._instrumentations:
            instrumentation.uninstrument()
        self._instrumentations = []
