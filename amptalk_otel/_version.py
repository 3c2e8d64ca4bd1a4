"""The version, which the build reads, and the name that OpenTelemetry knows the package by; nothing else."""

__version__ = "0.2.0.dev0"

SCOPE_NAME = "amptalk_otel"
"""https://opentelemetry.io/docs/specs/otel/common/instrumentation-scope/"""
