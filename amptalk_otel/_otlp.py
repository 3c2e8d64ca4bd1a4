"""OTLP exporters, imported only when they are asked for: gRPC is heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace.export import SpanExporter

from amptalk_otel._exports import Exports
from amptalk_otel.config import Config

_Exporter = TypeVar("_Exporter")


class MissingExtraError(RuntimeError):
    """An optional dependency is not installed."""


def metric_exporter(config: Config) -> MetricExporter:
    """The exporter that `config` describes. Raises MissingExtraError with the line that installs it."""
    return _made("metrics", config, grpc=_metrics_over_grpc, http=_metrics_over_http)


def span_exporter(config: Config) -> SpanExporter:
    """The exporter of spans that `config` describes. Raises MissingExtraError with the line that installs it."""
    return _made("traces", config, grpc=_spans_over_grpc, http=_spans_over_http)


def _made(
    signal: str, config: Config, *, grpc: Callable[[_Settings], _Exporter], http: Callable[[_Settings], _Exporter]
) -> _Exporter:
    settings = _Settings(config, signal)
    what = "spans" if signal == "traces" else signal
    try:
        with Exports(what).under_way():
            return grpc(settings) if settings.of("protocol") == "grpc" else http(settings)
    except ImportError:
        raise MissingExtraError(
            f"{what} are not pushed: the otlp exporter is not installed; run: pip install 'amptalk_otel[otlp]'"
        ) from None


class Headers(dict[str, str]):
    """Those of the settings and no others: the exporters take those of the environment where there are none."""

    def __bool__(self) -> bool:
        return True


class _Settings:
    """Those of one signal, `metrics` or `traces`, which go before those of all."""

    def __init__(self, config: Config, signal: str) -> None:
        self._config = config
        self._signal = signal

    def of(self, name: str) -> Any:
        own = getattr(self._config, f"otlp_{self._signal}_{name}")
        return getattr(self._config, f"otlp_{name}") if own is None else own

    def for_http(self) -> dict[str, Any]:
        """The arguments of the exporters over HTTP."""
        from opentelemetry.exporter.otlp.proto.http import Compression

        from amptalk_otel._http_session import session_with

        headers = Headers(self.of("headers"))
        own = getattr(self._config, f"otlp_{self._signal}_endpoint")
        base = self._config.otlp_endpoint or "http://localhost:4318"
        return {
            "endpoint": own or f"{base.rstrip('/')}/v1/{self._signal}",
            "headers": headers,
            "session": session_with(headers),
            "timeout": self.of("timeout_s"),
            "compression": Compression(self.of("compression")),
            "certificate_file": self.of("certificate"),
            "client_key_file": self.of("client_key"),
            "client_certificate_file": self.of("client_certificate"),
        }

    def for_grpc(self) -> dict[str, Any]:
        """The arguments of the exporters over gRPC."""
        from grpc import Compression

        compressions = {"none": Compression.NoCompression, "gzip": Compression.Gzip, "deflate": Compression.Deflate}
        return {
            "endpoint": self.of("endpoint") or "http://localhost:4317",
            "insecure": self.of("insecure"),
            "credentials": self._credentials(),
            # gRPC takes no other names than these.
            "headers": Headers({name.lower(): value for name, value in self.of("headers").items()}),
            "timeout": self.of("timeout_s"),
            "compression": compressions[self.of("compression")],
        }

    def _credentials(self) -> Any:
        files = [self.of(name) for name in ("certificate", "client_key", "client_certificate")]
        if files[0] is None and files[2] is None:
            return None
        from grpc import ssl_channel_credentials

        return ssl_channel_credentials(*(Path(path).read_bytes() if path is not None else None for path in files))


def _spans_over_http(settings: _Settings) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(**settings.for_http())


def _spans_over_grpc(settings: _Settings) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(**settings.for_grpc())


def _metrics_over_http(settings: _Settings) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    from amptalk_otel._encoding import Encoder

    encoder = Encoder()

    class Exporter(OTLPMetricExporter):
        """Sends what our encoder makes, where this version of the exporter has the method that takes it."""

        def export(
            self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
        ) -> MetricExportResult:
            send = getattr(self, "_export_batch", None)
            if send is None or self._shutdown:
                return super().export(metrics_data, timeout_millis, **kwargs)
            result: MetricExportResult = send(encoder.encode(metrics_data))
            return result

    return Exporter(**settings.for_http())


def _metrics_over_grpc(settings: _Settings) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    from amptalk_otel._encoding import Encoder

    encoder = Encoder()

    class Exporter(OTLPMetricExporter):
        """Sends what our encoder makes."""

        def _translate_data(self, data: MetricsData) -> Any:
            return encoder.encode(data)

    return Exporter(**settings.for_grpc())
