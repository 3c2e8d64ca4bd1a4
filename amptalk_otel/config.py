"""Settings: one frozen dataclass, one table of environment variables, read once and only when asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import takewhile
from typing import Any

from amptalk_otel import _setting_types as types
from amptalk_otel._guard import logger


@dataclass(frozen=True)
class Setting:
    """One row of the table: a field of `Config` and the environment variables that fill it, first one wins."""

    field: str
    variables: tuple[str, ...]
    parse: Callable[[str], Any]
    description: str
    secret: bool = False
    otherwise: str = "nothing"  # what goes where there is neither a usable value nor a default


_EVERYTHING: tuple[Setting, ...] = (
    Setting("sdk_disabled", ("OTEL_SDK_DISABLED",), types.boolean,
            "`true` switches everything off: nothing is measured, nothing is served."),
    Setting("service_name", ("OTEL_SERVICE_NAME",), types.text,
            "The resource attribute `service.name`."),
    Setting("resource_attributes", ("OTEL_RESOURCE_ATTRIBUTES",), types.pairs,
            "More resource attributes, as `key=value,key=value`, percent-encoded."),
    Setting("metrics_exporters", ("OTEL_METRICS_EXPORTER",), types.choices("prometheus", "otlp", "console", "none"),
            "Where metrics go, comma-separated: `prometheus`, `otlp`, `console` or `none`."),
    Setting("prometheus_host", ("OTEL_EXPORTER_PROMETHEUS_HOST",), types.text,
            "Address that the metrics page is served on. The default is reachable from this machine only."),
    Setting("prometheus_port", ("OTEL_EXPORTER_PROMETHEUS_PORT",), types.port,
            "Port of the metrics page, up to 65535; 0 takes any free one."),
    Setting("prometheus_scope_labels", ("AMPTALK_OTEL_PROMETHEUS_SCOPE_LABELS",), types.boolean,
            "`true` gives every series of the metrics page the labels `otel_scope_name` and `otel_scope_version`."),
    Setting("prometheus_web_config", ("AMPTALK_OTEL_PROMETHEUS_WEB_CONFIG",), types.text,
            "File with TLS and passwords of the metrics page, in the form of Prometheus' exporters."),
    Setting("prometheus_bearer_token_file", ("AMPTALK_OTEL_PROMETHEUS_BEARER_TOKEN_FILE",), types.text,
            "File with a token that the metrics page asks for, as `Authorization: Bearer TOKEN`. Its name "
            "is never shown.", secret=True),
    Setting("metric_export_interval_s", ("OTEL_METRIC_EXPORT_INTERVAL",), types.interval,
            "Time between two pushes of the `otlp` and `console` exporters, at least 10 ms; the variable is in "
            "milliseconds."),
    Setting("metric_export_timeout_s", ("OTEL_METRIC_EXPORT_TIMEOUT",), types.milliseconds,
            "Longest time that one collection for a push may take, at least 1 ms; the variable is in milliseconds."),
    Setting("otlp_protocol", ("OTEL_EXPORTER_OTLP_PROTOCOL",), types.choice("http/protobuf", "grpc"),
            "Transport of the `otlp` exporters: `http/protobuf` or `grpc`."),
    Setting("otlp_endpoint", ("OTEL_EXPORTER_OTLP_ENDPOINT",), types.url,
            "Collector to push to; without one `http://localhost:4318`, or port 4317 for `grpc`. For `http/protobuf` "
            "it begins with `http://` or `https://`, and `/v1/metrics` or `/v1/traces` is appended."),
    Setting("otlp_headers", ("OTEL_EXPORTER_OTLP_HEADERS",), types.headers,
            "Headers of each push, as `key=value,key=value`, percent-encoded; in ASCII. Never logged or shown.",
            secret=True),
    Setting("otlp_timeout_s", ("OTEL_EXPORTER_OTLP_TIMEOUT",), types.seconds,
            "Longest time that one push may take, retries included, at least a millisecond; in seconds, as "
            "OpenTelemetry's Python SDK has it."),
    Setting("otlp_compression", ("OTEL_EXPORTER_OTLP_COMPRESSION",), types.choice("none", "gzip", "deflate"),
            "Compression of each push: `none`, `gzip` or (over HTTP) `deflate`."),
    Setting("otlp_insecure", ("OTEL_EXPORTER_OTLP_INSECURE",), types.boolean,
            "gRPC without TLS for an endpoint that has no scheme."),
    Setting("otlp_certificate", ("OTEL_EXPORTER_OTLP_CERTIFICATE",), types.text,
            "File with the certificates that a collector's TLS certificate is checked against."),
    Setting("otlp_client_key", ("OTEL_EXPORTER_OTLP_CLIENT_KEY",), types.text,
            "File with the private key for mutual TLS."),
    Setting("otlp_client_certificate", ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",), types.text,
            "File with the certificate for mutual TLS."),
    Setting("traces_exporters", ("OTEL_TRACES_EXPORTER",), types.choices("otlp", "console", "none"),
            "Where spans go, comma-separated: `otlp`, `console` or `none`."),
    Setting("traces_sampler", ("OTEL_TRACES_SAMPLER",), types.choice(
                "always_on", "always_off", "traceidratio",
                "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
            "Which traces are recorded, by the names of OpenTelemetry's samplers."),
    Setting("traces_sampler_arg", ("OTEL_TRACES_SAMPLER_ARG",), types.ratio,
            "The share of traces that `traceidratio` and `parentbased_traceidratio` record, from 0 to 1."),
    Setting("propagators", ("OTEL_PROPAGATORS",),
            types.choices("tracecontext", "baggage", "b3", "b3multi", "jaeger", "xray", "ottrace", "none"),
            "How a message carries its context, comma-separated; all but `tracecontext` and `baggage` need a package "
            "of their own."),
    Setting("trace_relation", ("AMPTALK_OTEL_TRACE_RELATION",), types.choice("parent", "link", "both"),
            "How the processing of a message is related to its sending: `parent` (one trace for a conversation), "
            "`link` (one for each message), or `both`."),
    Setting("exemplar_filter", ("OTEL_METRICS_EXEMPLAR_FILTER",),
            types.choice("trace_based", "always_on", "always_off"),
            "Which measurements may carry exemplars: `trace_based`, `always_on` or `always_off`."),
    Setting("message_size_sample_every", ("AMPTALK_OTEL_MESSAGE_SIZE_SAMPLE_EVERY",), types.count,
            "The payload of one message in so many is measured, by agent and type, beginning with the first; 0: none."),
    Setting("departed_agents_linger_s", ("AMPTALK_OTEL_DEPARTED_AGENTS_LINGER",), types.linger,
            "How long the last values of an unregistered agent stay on the page, so that the next scrape sees them; "
            "the variable is in milliseconds."),
    Setting("max_agents", ("AMPTALK_OTEL_MAX_AGENTS",), types.count,
            'Agents with series of their own on one page; those beyond are together in `agent.id="_OTHER"`.'),
    Setting("agent_grouping", ("AMPTALK_OTEL_AGENT_GROUPING",), types.choice("id", "name", "class"),
            "Which agents are one series: those of one `id`, one `name`, or one `class`."),
    Setting("agents_include", ("AMPTALK_OTEL_AGENTS_INCLUDE",), types.patterns,
            "Only agents are watched whose id or name matches one of these shell patterns, comma-separated."),
    Setting("agents_exclude", ("AMPTALK_OTEL_AGENTS_EXCLUDE",), types.patterns,
            "Agents are not watched whose id or name matches one of these shell patterns, comma-separated."),
    Setting("modules", ("AMPTALK_OTEL_MODULES",), types.names,
            "Zero-code start: further modules whose class `Orchestrator` is instrumented, comma-separated, "
            "each the end of a dotted name."),
)  # fmt: skip


def _of_signal(signal: str, general: Setting) -> Setting:
    """The setting that goes before a general one of the OTLP exporters, for `metrics` or `traces` alone."""
    variable = general.variables[0].replace("_OTLP_", f"_OTLP_{signal.upper()}_")
    if general.field == "otlp_endpoint":
        description = f"Collector to push {signal} to, used as it is; goes before `otlp_endpoint`."
    else:
        description = f"As `{general.field}`, for {signal} alone; goes before it."
    field_name = general.field.replace("otlp_", f"otlp_{signal}_")
    otherwise = general.variables[0]
    return replace(general, field=field_name, variables=(variable,), description=description, otherwise=otherwise)


_OTLP = tuple(setting for setting in _EVERYTHING if setting.field.startswith("otlp_"))

SETTINGS: tuple[Setting, ...] = (
    *_EVERYTHING,
    *(_of_signal(signal, general) for signal in ("metrics", "traces") for general in _OTLP),
)
"""Every setting, in the order of the documentation."""

_SCHEME_NEEDED = "must begin with http:// or https:// where the protocol is http/protobuf"


def _without_scheme(values: Mapping[str, Any]) -> list[Setting]:
    """Endpoints such as `localhost:4318` that are to be pushed to over HTTP, and those that would go in their place."""
    found: set[str] = set()
    for signal in ("metrics", "traces"):
        exporters = values[f"{signal}_exporters"]
        protocol = values[f"otlp_{signal}_protocol"] or values["otlp_protocol"]
        if not isinstance(exporters, tuple) or "otlp" not in exporters or protocol != "http/protobuf":
            continue
        names = (f"otlp_{signal}_endpoint", "otlp_endpoint")
        given = [(name, values[name]) for name in names if isinstance(values[name], str)]
        found.update(name for name, _ in takewhile(lambda each: not types.has_scheme(each[1]), given))
    return [setting for setting in SETTINGS if setting.field in found]


@dataclass(frozen=True)
class Config:
    """All settings. A `Config` is complete: what is not given has its default, and no variable is read.

    `Config.from_env()` fills it from the environment: argument before environment before default.
    Raises ValueError, naming the field, for a value that can't be used.

    Fields that end in `_s` are seconds, above 0 and at most a year; `prometheus_port` is from 0 to 65535,
    `traces_sampler_arg` from 0 to 1, and other whole numbers are from 0 to 1,000,000,000. What is more than one is
    a tuple of str. docs/configuration.md tells what each field is for.
    """

    sdk_disabled: bool = False
    service_name: str | None = None
    resource_attributes: Mapping[str, str] = field(default_factory=dict)
    metrics_exporters: tuple[str, ...] = ("prometheus",)
    prometheus_host: str = "localhost"
    prometheus_port: int = 8000
    prometheus_scope_labels: bool = False
    prometheus_web_config: str | None = None
    prometheus_bearer_token_file: str | None = None
    metric_export_interval_s: float = 60.0
    metric_export_timeout_s: float = 30.0
    otlp_protocol: str = "http/protobuf"
    otlp_endpoint: str | None = None
    otlp_headers: Mapping[str, str] = field(default_factory=dict)
    otlp_timeout_s: float = 10.0
    otlp_compression: str = "none"
    otlp_insecure: bool | None = None
    otlp_certificate: str | None = None
    otlp_client_key: str | None = None
    otlp_client_certificate: str | None = None
    traces_exporters: tuple[str, ...] = ("none",)
    traces_sampler: str = "parentbased_always_on"
    traces_sampler_arg: float = 1.0
    propagators: tuple[str, ...] = ("tracecontext", "baggage")
    trace_relation: str = "parent"
    exemplar_filter: str = "trace_based"
    message_size_sample_every: int = 100
    departed_agents_linger_s: float = 300.0
    max_agents: int = 1000
    agent_grouping: str = "id"
    agents_include: tuple[str, ...] = ()
    agents_exclude: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    otlp_metrics_protocol: str | None = None
    otlp_metrics_endpoint: str | None = None
    otlp_metrics_headers: Mapping[str, str] | None = None
    otlp_metrics_timeout_s: float | None = None
    otlp_metrics_compression: str | None = None
    otlp_metrics_insecure: bool | None = None
    otlp_metrics_certificate: str | None = None
    otlp_metrics_client_key: str | None = None
    otlp_metrics_client_certificate: str | None = None
    otlp_traces_protocol: str | None = None
    otlp_traces_endpoint: str | None = None
    otlp_traces_headers: Mapping[str, str] | None = None
    otlp_traces_timeout_s: float | None = None
    otlp_traces_compression: str | None = None
    otlp_traces_insecure: bool | None = None
    otlp_traces_certificate: str | None = None
    otlp_traces_client_key: str | None = None
    otlp_traces_client_certificate: str | None = None

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = getattr(self, setting.field)
            if value is None and self.__dataclass_fields__[setting.field].default is None:
                continue
            try:
                types.check(setting.parse, value)
            except ValueError as error:
                raise ValueError(f"{setting.field}={_quoted(setting, value)}: {error}") from None
        for setting in _without_scheme(vars(self)):
            raise ValueError(f"{setting.field}={_quoted(setting, getattr(self, setting.field))}: {_SCHEME_NEEDED}")

    def __repr__(self) -> str:
        """All settings; of the secret ones, whether they are set."""
        return f"Config({', '.join(f'{row.field}={_quoted(row, getattr(self, row.field))}' for row in SETTINGS)})"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, strict: bool = False, **arguments: Any) -> Config:
        """Settings from `environ` (default: `os.environ`), with `arguments` going before it.

        A value that can't be used costs one warning, which names the variable, the value and what is
        used instead; with `strict` it raises ValueError. An empty value counts as not set, as
        OpenTelemetry's specification has it.
        """
        environ = os.environ if environ is None else environ
        values = {
            setting.field: value
            for setting in SETTINGS
            if setting.field not in arguments and (value := _from_environ(setting, environ, strict)) is not None
        }
        for setting in _without_scheme({**DEFAULTS, **values, **arguments}):
            if setting.field in values:
                _replaced(setting, setting.variables[0], values.pop(setting.field), ValueError(_SCHEME_NEEDED), strict)
        return cls(**{**values, **arguments})

    def with_changes(self, **changes: Any) -> Config:
        """A copy with some fields changed."""
        return replace(self, **changes)


DEFAULTS: Mapping[str, Any] = {row.name: getattr(Config(), row.name) for row in fields(Config)}
"""The default of each field."""


def _from_environ(setting: Setting, environ: Mapping[str, str], strict: bool) -> Any:  # noqa: FBT001
    for variable in setting.variables:
        text = environ.get(variable, "").strip()
        if not text:
            continue
        try:
            return setting.parse(text)
        except ValueError as error:
            return _replaced(setting, variable, text, error, strict)
    return None


def _replaced(setting: Setting, variable: str, text: str, error: ValueError, strict: bool) -> Any:  # noqa: FBT001
    """What is used where `text` can't be; told in a warning, or raised."""
    shown = _quoted(setting, text)
    if strict:
        raise ValueError(f"{variable}={shown}: {error}") from None
    used = error.usable if isinstance(error, types.PartlyUsableError) else DEFAULTS[setting.field]
    logger.warning("%s=%s: %s; using %s instead", variable, shown, error, _shown(setting, used))
    return used


def _quoted(setting: Setting, value: Any) -> str:
    """A value as it may be logged: without secrets, in one line."""
    if setting.secret and value not in (None, {}):
        return "(hidden)"
    if setting.parse is types.url and isinstance(value, str):
        value = types.without_credentials(value)
    return repr(value)


def _shown(setting: Setting, value: Any) -> str:
    if setting.secret or value in (None, {}, ()):
        return setting.otherwise
    return ",".join(value) if isinstance(value, tuple) else str(value)
