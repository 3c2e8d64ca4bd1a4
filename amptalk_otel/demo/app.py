"""The demonstration from start to end: build the meeting, watch it, show it, end it cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TextIO

import psutil

from amptalk_otel import Config, instrument_orchestrator

from .board import RateWindow, Reading, Row, add_up, make_rows
from .meeting import Meeting, Pace, build_meeting, feed, load_segments
from .screen import Screen, choose_screen
from .spans import Spans
from .table import Usage, render, render_totals

SERVICE_NAME = "amptalk-demo"
_STAGED = "Some failures are staged, so that there is something to see."
_FINISH_WORK_S = 1.0
_SHUTDOWN_S = 5.0


class Instrumentation(Protocol):
    """The part of the instrumentation that the demonstration needs."""

    @property
    def metrics_url(self) -> str | None: ...
    def read(self) -> Sequence[Reading]: ...
    def shutdown(self, timeout_s: float = ...) -> bool: ...


async def run_demo(*, seconds: float | None, config: Config, rate: float, out: TextIO, traces: bool = False) -> int:
    """Run the meeting for `seconds` (None: until SIGINT or SIGTERM) and show it on `out`.

    Feeds `rate` transcript segments per second. With `traces` its spans are pushed to a collector. Returns the
    exit code: 0, also when whoever read `out` has gone. Raises ValueError when the rate is not above 0,
    MissingExtraError when `traces` are wanted and there is no exporter for them, and OSError when `out` can't be
    written to.
    """
    pace = Pace(rate)
    if config.service_name is None:
        config = config.with_changes(service_name=SERVICE_NAME)
    spans = Spans(config) if traces and not config.sdk_disabled else None
    with tempfile.TemporaryDirectory(prefix="amptalk-demo-") as folder:
        meeting = build_meeting(state_folder=folder)
        with _reasons_for_no_page() as reasons:
            instrumentation = instrument_orchestrator(
                meeting.orchestrator, config=config, tracer_provider=spans.provider if spans is not None else None
            )
        try:
            screen = choose_screen(out, os.environ)
            about_spans = await asyncio.to_thread(spans.introduction) if spans is not None else []
            screen.introduce(introduction(instrumentation.metrics_url, config, reasons), *about_spans, _STAGED)
            await _hold_meeting(meeting, View(meeting, instrumentation, screen), pace, seconds)
            totals = [render_totals(add_up(instrumentation.read()))]
            if spans is not None:
                totals.append(await asyncio.to_thread(spans.end))
            screen.conclude(*totals)
        except OSError as error:
            _discard(out)
            if not isinstance(error, BrokenPipeError):
                raise
        finally:
            await asyncio.to_thread(instrumentation.shutdown, _SHUTDOWN_S)
    return 0


def _discard(out: TextIO) -> None:
    # Otherwise the interpreter fails on what is still buffered when it exits:
    # https://docs.python.org/3/library/signal.html#note-on-sigpipe
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


@contextlib.contextmanager
def _reasons_for_no_page() -> Iterator[list[str]]:
    """Within the block they are kept out of the log: the introduction tells them."""
    reasons: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        _, found, reason = record.getMessage().partition("metrics are not served: ")
        if found:
            reasons.append(reason)
        return not found

    logger = logging.getLogger("amptalk_otel")
    logger.addFilter(keep)
    try:
        yield reasons
    finally:
        logger.removeFilter(keep)


def introduction(metrics_url: str | None, config: Config, reasons: Sequence[str]) -> str:
    """One line: what to open, or why there is nothing to open and what to do about it."""
    if config.sdk_disabled:
        return "OTEL_SDK_DISABLED is set: nothing is measured. Unset it to see numbers here."
    if metrics_url is not None:
        what = f"Open {metrics_url} to see the metrics."
    elif "prometheus" not in config.metrics_exporters:
        what = "No metrics page, as OTEL_METRICS_EXPORTER has no `prometheus`."
    else:
        what = f"No metrics page: {'; '.join(reasons) or 'the log tells why'}."
    return f"{what} Ctrl-C ends the demo."


async def _hold_meeting(meeting: Meeting, view: View, pace: Pace, seconds: float | None) -> None:
    stop = asyncio.Event()
    with ended_by_signals(stop):
        await meeting.orchestrator.start()
        feeding = asyncio.create_task(feed(meeting, load_segments(), pace))
        try:
            await _show_until(stop, feeding, view, seconds)
            feeding.cancel()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(meeting.finish_work(), _FINISH_WORK_S)
            await meeting.orchestrator.stop()
            view.show()
        finally:
            feeding.cancel()
            await meeting.orchestrator.stop()
            view.screen.close()


async def _show_until(stop: asyncio.Event, feeding: asyncio.Task[None], view: View, seconds: float | None) -> None:
    clock = asyncio.get_running_loop().time
    ends_at = float("inf") if seconds is None else clock() + seconds
    stopped = asyncio.create_task(stop.wait())
    wait_s = view.screen.first_after_s
    try:
        while True:
            await asyncio.wait(
                {stopped, feeding},
                timeout=max(0.0, min(wait_s, ends_at - clock())),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if feeding.done():
                feeding.result()
            if stopped.done() or clock() >= ends_at:
                return
            view.show()
            wait_s = view.screen.period_s
    finally:
        stopped.cancel()


class View:
    """Reads the instrumentation and draws what it says."""

    def __init__(self, meeting: Meeting, instrumentation: Instrumentation, screen: Screen) -> None:
        self.screen = screen
        self._meeting = meeting
        self._instrumentation = instrumentation
        self._rates = RateWindow()
        self._process = psutil.Process()
        self._started_s = time.monotonic()
        self._look()  # rates and cpu count from here

    def show(self) -> None:
        rows, usage = self._look()
        screen, summary = self.screen, self._meeting.summary_sentence
        screen.show(render(rows, usage, summary, width=screen.width(), color=screen.color))

    def _look(self) -> tuple[list[Row], Usage]:
        return make_rows(self._instrumentation.read(), self._rates), self._usage()

    def _usage(self) -> Usage:
        # Not psutil's cpu_percent(): it measures since anybody's last call, and others call it too.
        cpu_ns_per_s = self._rates.update("process cpu", time.process_time_ns())
        return Usage(
            cpu_share=cpu_ns_per_s / 1e9,
            memory_bytes=self._process.memory_info().rss,
            uptime_s=time.monotonic() - self._started_s,
        )


@contextlib.contextmanager
def ended_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM set `stop`; does nothing outside the main thread."""
    loop = asyncio.get_running_loop()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
