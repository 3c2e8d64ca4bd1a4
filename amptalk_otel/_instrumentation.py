"""The functions that a program calls, and the handle that they return."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from amptalk_otel import _pipeline
from amptalk_otel._bridge import bridge_for
from amptalk_otel._forks import lock_of
from amptalk_otel._guard import complain, guarded, logger, swallow
from amptalk_otel._protocols import (
    ORCHESTRATOR_ATTRIBUTES,
    STATE_MANAGER_ATTRIBUTES,
    OrchestratorLike,
    StateManagerLike,
    missing_attributes,
)
from amptalk_otel._reading import AgentReading
from amptalk_otel._traces import message_tracer
from amptalk_otel._watch import Watch
from amptalk_otel.adapters import adapter_for
from amptalk_otel.config import Config

if TYPE_CHECKING:
    from typing_extensions import Self


_SHUTDOWN_S = 5.0


class Instrumentation:
    """What `instrument_orchestrator` and its kin return: the way to the numbers, and the way to end it.

    As a context manager it ends with `shutdown()`: by `async with` without blocking the event loop, by `with` for
    programs that have none. Dropping the handle does not end the instrumentation.
    """

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._pipeline: _pipeline.Pipeline | None = None
        self._lock = lock_of(self, threading.Lock)

    @classmethod
    def _of(cls, watch: Watch, pipeline: _pipeline.Pipeline | None) -> Instrumentation:
        """A handle that ends `watch`, and then lets go of `pipeline`."""
        instrumentation = cls()
        instrumentation._watch = watch
        instrumentation._pipeline = pipeline
        return instrumentation

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus can scrape, for example `http://localhost:8000/metrics`.

        None without a page of our own: with a given provider, without the `prometheus` exporter, when
        the port was taken, or after `shutdown`.
        """
        pipeline = self._pipeline
        return pipeline.metrics_url if pipeline is not None else None

    @property
    def active(self) -> bool:
        """Whether anything is watched. False from the start where the SDK is disabled or the target unusable."""
        return self._watch is not None

    def read(self) -> list[AgentReading]:
        """The agents' numbers at this moment, without any exporter; callable from any thread."""
        watch = self._watch
        return list(watch.agents()) if watch is not None else []

    def _trace(self, provider: TracerProvider | None, config: Config | None) -> None:
        """Make spans on `provider`, if there are none yet."""
        if provider is None or self._watch is None:
            return
        config = config if config is not None else Config.from_env()
        tracer = guarded("setting up traces", message_tracer, provider, config)
        if tracer is not None and not self._watch.trace(tracer):
            logger.warning("spans go where they went before: the target was instrumented with another tracer provider")

    def uninstrument(self) -> None:
        """Take every wrapper off and every series of ours off the page. Harmless the second time.

        A page and exporters of our own go on until `shutdown`, which also pushes the last values: call
        `shutdown` alone to end everything.
        """
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            guarded("uninstrumenting", watch.release)

    def shutdown(self, timeout_s: float = _SHUTDOWN_S) -> bool:
        """Push the last values, uninstrument, stop serving and end all threads.

        Returns True when all of that succeeded within `timeout_s` seconds, False when something could not be
        pushed or, with a collector that does not answer, took longer and was left behind. Blocks up to that long:
        coroutines use `async with`, or `await asyncio.to_thread(instrumentation.shutdown)`. Harmless the second time.
        """
        pipeline = self._let_go_of_pipeline()
        in_time = True
        if pipeline is not None:
            in_time = bool(guarded("shutting down", _pipeline.release, pipeline, timeout_s))
        self.uninstrument()
        return in_time

    def _let_go_of_pipeline(self) -> _pipeline.Pipeline | None:
        with self._lock:
            pipeline, self._pipeline = self._pipeline, None
        return pipeline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pipeline = self._let_go_of_pipeline()
        try:
            if pipeline is not None:
                await _pipeline.release_in_thread(pipeline, _SHUTDOWN_S)
        finally:  # on the loop that runs the agents, and also when we are cancelled
            self.uninstrument()


def instrument_orchestrator(
    orchestrator: OrchestratorLike,
    *,
    config: Config | None = None,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Instrumentation:
    """Watch an orchestrator, its agents, those it registers later, and their state managers.

    Without `meter_provider` the metrics go where `config` says (default: the environment): served for
    Prometheus at http://localhost:8000/metrics, pushed to a collector, or both. With one, instruments are
    added to it and nothing else is set up. Spans are made where `tracer_provider` is given, or where the
    pipeline is ours and `config` names an exporter for them (`OTEL_TRACES_EXPORTER`); see docs/tracing.md.

    Call it before or after `orchestrator.start()`, on the thread of the event loop that runs the agents
    (or before the loop runs). Calling it again for the same orchestrator returns the first handle, unless
    another `meter_provider` is given: whoever ends it ends it for all. A `tracer_provider` is taken then if there
    was none; a `config` of other settings is not, which costs one log record.

    It raises nothing: what can't be watched is told in one log record, and the program goes on. Then, and with
    `OTEL_SDK_DISABLED`, the handle is not `active`, and ending it does nothing.
    """
    return _instrument(
        orchestrator,
        _unusable_orchestrator,
        Watch.watch_orchestrator,
        config=config,
        meter_provider=meter_provider,
        tracer_provider=tracer_provider,
    )


def instrument_agent(
    agent: Any,
    *,
    config: Config | None = None,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Instrumentation:
    """Watch one agent that belongs to no orchestrator, of a kind that an adapter knows (`amptalk_otel.adapters`).

    For the arguments see `instrument_orchestrator`.
    """
    return _instrument(
        agent,
        _unusable_agent,
        Watch.agent_registered,
        config=config,
        meter_provider=meter_provider,
        tracer_provider=tracer_provider,
    )


def instrument_state_manager(
    manager: StateManagerLike,
    *,
    config: Config | None = None,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Instrumentation:
    """Watch one state manager that belongs to no agent. For the arguments see `instrument_orchestrator`."""
    return _instrument(
        manager,
        _unusable_state_manager,
        Watch.watch_state_manager,
        config=config,
        meter_provider=meter_provider,
        tracer_provider=tracer_provider,
    )


_GIVE_UP_S = 1.0  # for a pipeline that was begun and is not needed


def _unusable_orchestrator(target: Any) -> str | None:
    return _missing(target, ORCHESTRATOR_ATTRIBUTES)


def _unusable_state_manager(target: Any) -> str | None:
    return _missing(target, STATE_MANAGER_ATTRIBUTES)


def _unusable_agent(target: Any) -> str | None:
    return None if adapter_for(target) is not None else "it is of no kind that an adapter knows (see docs/adapters.md)"


def _missing(target: Any, names: tuple[str, ...]) -> str | None:
    missing = missing_attributes(target, names)
    return f"it has no {', '.join(missing)}" if missing else None


_lock = lock_of(sys.modules[__name__], threading.RLock)
_existing: dict[int, list[_Existing]] = {}  # by id of what is instrumented


class _Existing:
    """One instrumentation of one target by one provider."""

    def __init__(
        self,
        target: Any,
        provider: MeterProvider,
        pipeline: _pipeline.Pipeline | None,
        config: Config,
        instrumentation: Instrumentation,
    ) -> None:
        self._pipeline = pipeline
        self._config = config
        self.target = weakref.ref(target)
        self.provider = weakref.ref(provider)
        self.instrumentation = instrumentation

    def answers(self, target: Any, provider: MeterProvider | None) -> bool:
        """Whether a call with `provider` has its answer here; without one, any instrumentation of the target does.

        So a program that calls `instrument_orchestrator` and is started by a launcher that does the same
        keeps to the launcher's provider, and nothing is told twice. A forked child may begin anew: the
        parent's pipeline neither serves nor pushes what is counted in the child.
        """
        if self.target() is not target or (self._pipeline is not None and not self._pipeline.is_of_this_process):
            return False
        return provider is None or self.provider() is provider

    def join(self, config: Config | None, tracer_provider: TracerProvider | None) -> Instrumentation:
        """The answer to another call, whose settings are not taken."""
        if config is not None and config != self._config:
            others = [
                field.name
                for field in fields(config)
                if getattr(config, field.name) != getattr(self._config, field.name)
            ]
            complain(
                f"another config for {id(self)}",
                "%s is instrumented already and keeps its settings: another %s is not taken",
                type(self.target()).__qualname__,
                ", ".join(others),
            )
        self.instrumentation._trace(tracer_provider, config)  # noqa: SLF001 - our own module's
        return self.instrumentation


def _instrument(
    target: Any,
    unusable: Callable[[Any], str | None],
    start: Callable[[Watch, Any], None],
    *,
    config: Config | None,
    meter_provider: MeterProvider | None,
    tracer_provider: TracerProvider | None,
) -> Instrumentation:
    try:
        with _lock:
            existing = _find(target, meter_provider)
            if existing is not None:
                return existing.join(config, tracer_provider)
            return _begin(target, unusable, start, config, meter_provider, tracer_provider)
    except Exception:
        swallow("instrumenting")
        return Instrumentation()


def _remember(target: Any, existing: _Existing) -> None:
    if id(target) not in _existing:
        weakref.finalize(target, _existing.pop, id(target), None).atexit = False
    _existing.setdefault(id(target), []).append(existing)


def _find(target: Any, provider: MeterProvider | None) -> _Existing | None:
    known = _existing.get(id(target), [])
    known[:] = [entry for entry in known if entry.instrumentation.active]
    return next((entry for entry in known if entry.answers(target, provider)), None)


def _begin(
    target: Any,
    unusable: Callable[[Any], str | None],
    start: Callable[[Watch, Any], None],
    config: Config | None,
    meter_provider: MeterProvider | None,
    tracer_provider: TracerProvider | None,
) -> Instrumentation:
    config = config if config is not None else Config.from_env()
    if config.sdk_disabled:
        return Instrumentation()
    reason = unusable(target)
    if reason is not None:
        logger.warning("%s can't be instrumented: %s", type(target).__qualname__, reason)
        return Instrumentation()
    pipeline = None
    if meter_provider is None:
        pipeline = _pipeline.acquire(config)
        meter_provider = pipeline.meter_provider
    watch = None
    try:
        tracer = guarded("setting up traces", message_tracer, tracer_provider, config)
        if tracer is None and pipeline is not None:
            tracer = pipeline.tracer
        watch = Watch(bridge_for(meter_provider), config, tracer=tracer)
        start(watch, target)
    except Exception:
        if watch is not None:
            watch.release()
        if pipeline is not None:
            _pipeline.release(pipeline, _GIVE_UP_S)
        raise
    instrumentation = Instrumentation._of(watch, pipeline)  # noqa: SLF001 - our own module's
    _remember(target, _Existing(target, meter_provider, pipeline, config, instrumentation))
    return instrumentation
