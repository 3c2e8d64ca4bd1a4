"""OTLP exporters, imported only when they are asked for: gRPC is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from amptalk_otel.config import Config


class MissingExtraError(RuntimeError):
    """An optional dependency is not installed."""


def metric_exporter(config: Config) -> MetricExporter:
    """The exporter that `config` describes. Raises MissingExtraError with the line that installs it."""
    try:
        return _over_grpc(config) if config.otlp_protocol == "grpc" else _over_http(config)
    except ImportError:
        raise MissingExtraError(
            "metrics are not pushed: the otlp exporter is not installed; run: pip install 'amptalk_otel[otlp]'"
        ) from None


def _over_http(config: Config) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression
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

    base = config.otlp_endpoint or "http://localhost:4318"
    return Exporter(
        endpoint=config.otlp_metrics_endpoint or base.rstrip("/") + "/v1/metrics",
        headers=dict(config.otlp_headers) or None,
        timeout=config.otlp_timeout_s,
        compression=Compression(config.otlp_compression),
        certificate_file=config.otlp_certificate,
        client_key_file=config.otlp_client_key,
        client_certificate_file=config.otlp_client_certificate,
    )


def _over_grpc(config: Config) -> MetricExporter:
    from grpc import Compression
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    from amptalk_otel._encoding import Encoder

    encoder = Encoder()

    class Exporter(OTLPMetricExporter):
        """Sends what our encoder makes."""

        def _translate_data(self, data: MetricsData) -> Any:
            return encoder.encode(data)

    compressions = {"none": Compression.NoCompression, "gzip": Compression.Gzip, "deflate": Compression.Deflate}
    return Exporter(
        endpoint=config.otlp_metrics_endpoint or config.otlp_endpoint or "http://localhost:4317",
        insecure=config.otlp_insecure,
        credentials=_credentials(config),
        headers={name.lower(): value for name, value in config.otlp_headers.items()},  # gRPC takes no other
        timeout=config.otlp_timeout_s,
        compression=compressions[config.otlp_compression],
    )


def _credentials(config: Config) -> Any:
    if config.otlp_certificate is None and config.otlp_client_certificate is None:
        return None
    from grpc import ssl_channel_credentials

    return ssl_channel_credentials(
        _content(config.otlp_certificate), _content(config.otlp_client_key), _content(config.otlp_client_certificate)
    )


def _content(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path is not None else None
