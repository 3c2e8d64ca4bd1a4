"""Our own way out for spans, for programs that have none; and what a message carries, by the settings."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from amptalk_otel import _otlp
from amptalk_otel._exports import SpansOut
from amptalk_otel._guard import logger
from amptalk_otel._tracing._carrier import Carrier
from amptalk_otel._tracing._relation import Relation
from amptalk_otel._tracing._tracer import MessageTracer
from amptalk_otel.config import Config

_SAMPLERS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda _share: ALWAYS_ON,
    "always_off": lambda _share: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda _share: ParentBased(ALWAYS_ON),
    "parentbased_always_off": lambda _share: ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": ParentBasedTraceIdRatio,
}
_PACKAGES = {"b3multi": "b3", "xray": "aws-xray", "ottrace": "ot-trace"}
_PROPAGATORS: dict[str, Callable[[], TextMapPropagator]] = {
    "tracecontext": TraceContextTextMapPropagator,
    "baggage": W3CBaggagePropagator,
}


def make_provider(config: Config, resource: Resource) -> tuple[SdkTracerProvider | None, list[SpansOut]]:
    """A TracerProvider, and how it pushes, for the exporters that a Config asks for.

    None where it asks for none, or none can be made.
    """
    ways_out = [way_out for name in config.traces_exporters if (way_out := _way_out(name, config)) is not None]
    if not ways_out:
        return None, []
    provider = SdkTracerProvider(sampler=sampler_of(config), resource=resource, shutdown_on_exit=False)
    for way_out in ways_out:
        provider.add_span_processor(way_out)
    return provider, ways_out


def sampler_of(config: Config) -> Sampler:
    """What decides which traces are recorded."""
    return _SAMPLERS[config.traces_sampler](config.traces_sampler_arg)


def message_tracer(provider: TracerProvider | None, config: Config) -> MessageTracer | None:
    """What makes the spans of messages on `provider`; None without one."""
    if provider is None:
        return None
    carrier = Carrier(_propagator(config.propagators), is_w3c=set(config.propagators) == _PROPAGATORS.keys())
    return MessageTracer(provider, carrier, Relation(config.trace_relation), config.exemplar_filter)


def _way_out(name: str, config: Config) -> SpansOut | None:
    try:
        if name == "otlp":
            return SpansOut(_otlp.span_exporter(config))
        return SpansOut(ConsoleSpanExporter()) if name == "console" else None
    except _otlp.MissingExtraError as error:
        logger.warning("%s", error)
    except Exception as error:
        # Not the text of the error: it may quote headers.
        kind = type(error).__qualname__
        logger.warning("the %s exporter of spans could not be made (%s); going on without", name, kind)
    return None


def _propagator(names: tuple[str, ...]) -> TextMapPropagator:
    found = (_propagator_of(name) for name in names if name != "none")
    return CompositePropagator([propagator for propagator in found if propagator is not None])


def _propagator_of(name: str) -> TextMapPropagator | None:
    """One of ours, or what another package registers under this name."""
    known = _PROPAGATORS.get(name)
    if known is not None:
        return known()
    for entry in entry_points(group="opentelemetry_propagator", name=name):
        try:
            propagator: TextMapPropagator = entry.load()()
        except Exception as error:
            logger.warning("messages do not carry %s: it could not be loaded (%s)", name, type(error).__qualname__)
            return None
        return propagator
    logger.warning(
        "messages do not carry %s: it is not installed; run: pip install opentelemetry-propagator-%s",
        name,
        _PACKAGES.get(name, name),
    )
    return None
