"""Zero code: OpenTelemetry's launcher finds `AmptalkInstrumentor` by its entry point."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, TracerProvider

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
except ImportError:
    raise ImportError(
        "AmptalkInstrumentor needs opentelemetry-instrumentation; run: pip install 'amptalk_otel[auto]'"
    ) from None

from amptalk_otel._zero_code import ZeroCode
from amptalk_otel.config import Config


class AmptalkInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments every orchestrator that the program creates, with given or global providers.

    Run a program unedited with `OTEL_METRICS_EXPORTER=prometheus opentelemetry-instrument python app.py`, or call
    `AmptalkInstrumentor().instrument(meter_provider=...)` before it creates its orchestrators. Modules are
    recognised by the end of their name (`….core.framework.orchestrator`, `….core.orchestrator`, and what
    `AMPTALK_OTEL_MODULES` adds), those included that are imported already.
    """

    _zero_code: ZeroCode | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: the framework is vendored, not installed."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        config = kwargs.get("config") or Config.from_env()
        if config.sdk_disabled:
            return
        given = kwargs.get("tracer_provider")
        self._zero_code = ZeroCode(
            config,
            meter_provider=kwargs.get("meter_provider") or metrics.get_meter_provider(),
            find_tracer_provider=lambda: given or _global_tracer_provider(),
        )

    def _uninstrument(self, **_kwargs: Any) -> None:
        zero_code, self._zero_code = self._zero_code, None
        if zero_code is not None:
            zero_code.stop()


def _global_tracer_provider() -> TracerProvider | None:
    """The program's, if it has one whose spans go anywhere.

    The launcher sets one up with `OTEL_TRACES_EXPORTER=none` as well, which would make spans for nobody.
    """
    provider = trace.get_tracer_provider()
    goes_nowhere = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return None if goes_nowhere or isinstance(provider, (NoOpTracerProvider, ProxyTracerProvider)) else provider
