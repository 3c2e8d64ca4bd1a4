"""What the tests of traces need: a real provider, what it exported, and ways to ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import Span, SpanContext, StatusCode

from amptalk_otel._hooks._agent import AgentHook
from amptalk_otel._traces import message_tracer
from amptalk_otel._tracing._tracer import MessageTracer
from amptalk_otel.demo.runtime import Agent
from tests.support import CONFIG, hooked

EVERYTHING = ParentBased(ALWAYS_ON)
KEY = "amptalk_otel.context"


class Spans:
    """A provider with a sampler of its own, the tracer that our hooks use on it, and all that ended."""

    def __init__(self, sampler: Sampler = EVERYTHING, **settings: Any) -> None:
        """`settings`: those of `Config` that differ from the defaults."""
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        tracer = message_tracer(self.provider, CONFIG.with_changes(**settings))
        assert tracer is not None
        self.tracer: MessageTracer = tracer
        self._program = self.provider.get_tracer("program")

    @contextmanager
    def root(self, name: str) -> Iterator[Span]:
        """A span of the program's own, that begins a trace."""
        with self._program.start_as_current_span(name, Context()) as span:
            yield span

    @contextmanager
    def inside(self, name: str) -> Iterator[Span]:
        """A span of the program's own, in what is current."""
        with self._program.start_as_current_span(name) as span:
            yield span

    def all(self) -> list[ReadableSpan]:
        """Every span that ended, in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def names(self) -> list[str]:
        return [span.name for span in self.all()]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.named(name)
        return found

    def clear(self) -> None:
        self._exporter.clear()

    def family(self) -> list[tuple[str, str | None]]:
        """Each span's name and its parent's; `"?"` for a parent that has not ended here, None for a root."""
        names = {context_of(span).span_id: span.name for span in self.all()}
        return [
            (span.name, names.get(span.parent.span_id, "?") if span.parent is not None else None) for span in self.all()
        ]


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def trace_of(span: ReadableSpan) -> int:
    return context_of(span).trace_id


def parent_of(span: ReadableSpan) -> int | None:
    """The parent's span id."""
    return span.parent.span_id if span.parent is not None else None


def id_of(span: ReadableSpan) -> int:
    return context_of(span).span_id


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def events_of(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


def status_of(span: ReadableSpan) -> tuple[StatusCode, str | None]:
    return span.status.status_code, span.status.description


def text_of(span: ReadableSpan) -> str:
    """Everything that an exporter gets of a span, to search in."""
    parts = [span.name, attributes_of(span), events_of(span), span.status.description, span.links]
    return f"{span.to_json()} {parts!r}"


@contextmanager
def traced(spans: Spans, *agents: Agent, clock: Callable[[], float] | None = None) -> Iterator[list[AgentHook]]:
    """The hooks on some agents, whose spans go to `spans`."""
    with ExitStack() as stack:
        hooks = [stack.enter_context(hooked(agent, clock)) for agent in agents]
        for hook in hooks:
            hook.trace(spans.tracer)
        yield hooks


def connect(*agents: Agent) -> None:
    """Let each send to each."""
    for agent in agents:
        for other in agents:
            agent.connect(other)


@contextmanager
def use(context: Context) -> Iterator[None]:
    """Let `context` be the current one."""
    token = attach(context)
    try:
        yield
    finally:
        detach(token)
