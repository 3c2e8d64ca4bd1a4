"""What is read and called: psutil, attributes, queues, clocks, threads, logs, tracing."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import psutil
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult

from amptalk_otel import Config
from tests.faults.catalogue import fault
from tests.faults.trial import SERVED, Outcome, Stage, Strikes, Trial, ordinary, tried

_LONGEST_S = 5.0  # several times as long as the program takes
_PSUTIL = (
    (psutil, ("cpu_times", "virtual_memory")),
    (psutil.Process, ("cpu_times", "memory_info", "create_time", "num_threads")),
)


@contextmanager
def _psutil(act: Callable[[], None], strikes: Strikes) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, names in _PSUTIL:
            for name in names:
                original = getattr(owner, name)

                def call(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
                    if strikes.on:
                        strikes.strike()
                        act()
                    return _original(*args, **kwargs)

                stack.enter_context(mock.patch.object(owner, name, call))
        yield


@fault("psutil raises", "each call raises `AccessDenied`, `OSError` or `ValueError`")
def psutil_raises() -> Trial:
    chosen = random.Random(1)

    def fail() -> None:
        raise chosen.choice((psutil.AccessDenied(1), OSError(5, "input/output error"), ValueError("no number")))

    return tried(ordinary(), lambda strikes: _psutil(fail, strikes))


@fault("psutil hangs", "each call, the first included, blocks for as long as the program runs")
def psutil_hangs() -> Trial:
    @contextmanager
    def hanging(strikes: Strikes) -> Iterator[None]:
        released = threading.Event()

        def hang() -> None:
            until = time.monotonic() + _LONGEST_S
            while strikes.on and time.monotonic() < until and not released.wait(0.05):
                pass

        with _psutil(hang, strikes):
            try:
                yield
            finally:
                released.set()

    return tried(ordinary(), hanging)


@fault("the clock jumps", "`time.time()` and `time.time_ns()` are an hour ahead or behind, another way at each call")
def clock_jumps() -> Trial:
    @contextmanager
    def jumping(strikes: Strikes) -> Iterator[None]:
        now, now_ns, chosen = time.time, time.time_ns, random.Random(2)

        def jump() -> float:
            strikes.strike()
            return chosen.choice((-3600.0, 0.0, 3600.0))

        with (
            mock.patch.object(time, "time", side_effect=lambda: now() + jump()),
            mock.patch.object(time, "time_ns", side_effect=lambda: now_ns() + int(jump() * 1e9)),
        ):
            yield

    config = SERVED.with_changes(
        metrics_exporters=("prometheus", "otlp"),
        traces_exporters=("otlp",),
        otlp_endpoint="http://127.0.0.1:9",
        metric_export_interval_s=0.05,
    )
    return tried(ordinary(), jumping, config=config)


@fault("no thread can be started", "`Thread.start` raises `RuntimeError` while the program is instrumented and later")
def no_threads() -> Trial:
    @contextmanager
    def refusing(strikes: Strikes) -> Iterator[None]:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if strikes.on and thread.name != "scraper":
                strikes.strike()
                raise RuntimeError("can't start new thread")
            start(thread)

        with mock.patch.object(threading.Thread, "start", refuse):
            yield

    config = SERVED.with_changes(metrics_exporters=("prometheus", "otlp"), traces_exporters=("otlp", "console"))
    return tried(ordinary(), refusing, config=config)


# -- traces --------------------------------------------------------------------------------------------


class _Failing:
    """Raises whatever is asked of it."""

    def __init__(self, strikes: Strikes) -> None:
        object.__setattr__(self, "_strikes", strikes)

    def __getattr__(self, name: str) -> Any:
        def fail(*_args: Any, **_kwargs: Any) -> Any:
            self._strikes.strike()
            raise RuntimeError("no tracing today")

        return fail


class _FailingSampler(Sampler):
    def __init__(self, strikes: Strikes) -> None:
        self._strikes = strikes

    def should_sample(self, *_args: Any, **_kwargs: Any) -> SamplingResult:
        self._strikes.strike()
        raise RuntimeError("no decision today")

    def get_description(self) -> str:
        return "failing"


def _traced(make: Callable[[Strikes], Any]) -> Callable[[Stage], Any]:
    """The program with a tracer provider that `make` makes."""
    run = ordinary()

    async def program(stage: Stage) -> Outcome:
        watch = stage.watch
        own: Any = stage
        own.watch = lambda orchestrator: watch(orchestrator, tracer_provider=make(stage.strikes))
        return await run(stage)

    return program


def _provider(sampler: Sampler = ALWAYS_ON) -> TracerProvider:
    return TracerProvider(sampler=sampler, resource=Resource({}), shutdown_on_exit=False)


def _without_tracing(strikes: Strikes) -> Any:
    """A provider whose tracer raises."""
    provider: Any = _provider()
    provider.get_tracer = lambda *_args, **_kwargs: _Failing(strikes)
    return provider


@fault("the tracer raises", "each method of the tracer raises, `start_span` first")
def tracer_raises() -> Trial:
    return tried(_traced(_without_tracing))


@fault(
    "the log raises",
    "each logging handler of the program raises, while psutil and the tracer fail and there is much to log",
)
def log_raises() -> Trial:
    @contextmanager
    def raising(strikes: Strikes) -> Iterator[None]:
        class Handler(logging.Handler):
            def handle(self, record: logging.LogRecord) -> bool:
                strikes.strike()
                raise OSError(28, "no space left on device")

        def fail() -> None:
            raise OSError(5, "input/output error")

        handler, logger = Handler(), logging.getLogger("amptalk_otel")
        logger.addHandler(handler)
        try:
            with _psutil(fail, Strikes()):
                yield
        finally:
            logger.removeHandler(handler)

    return tried(_traced(_without_tracing), raising)


@fault("spans raise", "each method of each span raises: attributes, events, status, end")
def spans_raise() -> Trial:
    def make(strikes: Strikes) -> Any:
        class Span:
            def get_span_context(self) -> Any:
                return real.get_span_context()

            def is_recording(self) -> bool:
                return True

            def __getattr__(self, name: str) -> Any:
                return getattr(_Failing(strikes), name)

        provider: Any = _provider()
        real = provider.get_tracer("test").start_span("any")

        class Tracer:
            def start_span(self, *_args: Any, **_kwargs: Any) -> Any:
                return Span()

        provider.get_tracer = lambda *_args, **_kwargs: Tracer()
        return provider

    return tried(_traced(make))


@fault("the sampler raises", "`should_sample` raises for each span")
def sampler_raises() -> Trial:
    return tried(_traced(lambda strikes: _provider(_FailingSampler(strikes))))


@fault("the propagator raises", "`inject` and `extract` raise for each message")
def propagator_raises() -> Trial:
    from amptalk_otel import _traces

    @contextmanager
    def failing(strikes: Strikes) -> Iterator[None]:
        with mock.patch.object(_traces, "_propagator", return_value=_Failing(strikes)):
            yield

    config: Config = SERVED.with_changes(propagators=("tracecontext",))
    return tried(_traced(lambda _strikes: _provider()), failing, config=config)
