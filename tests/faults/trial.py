"""One program, run twice: as it is, and instrumented while something fails. What is compared, and what is noticed.

The program is seeded: without instrumentation two runs of it have the same outcome. What it does is written down by
itself (`tests.workload`), which is the ground truth of the balance.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from amptalk_otel import AgentReading, Config, Instrumentation, _guard, instrument_orchestrator
from tests.workload import Log, Program

MESSAGES = 240
SECRETS = ("s3cret-header", "s3cret-password", "secret-payload", "is bad", "has no line")
"""Nothing that is logged may hold one: a header, a password, a payload, the messages of the program's exceptions."""

BLOCKED_AT_MOST_S = 0.5
"""How late the event loop may be: what hangs for good must not hold it, while a busy machine may for a moment."""

_LIMIT_S = 40.0
_WATCHED_LOGGERS = ("amptalk_otel", "opentelemetry", "grpc", "urllib3", "asyncio")


@dataclass
class Outcome:
    """What a program did, by its own account: events and results in order, statuses, and what it printed."""

    events: list[Any] = field(default_factory=list)
    statuses: dict[str, Any] = field(default_factory=dict)
    stdout: str = ""
    ended: str = "returned"


@dataclass
class Strikes:
    """How often a fault struck."""

    count: int = 0
    on: bool = True

    def strike(self) -> None:
        self.count += 1


@dataclass
class Trial:
    """What one fault did."""

    tried: int
    plain: Outcome
    watched: Outcome
    lost: int
    leaked: list[str]
    blocked_s: float | None
    """None where the program runs no event loop."""

    @property
    def is_identical(self) -> bool:
        return self.plain == self.watched


class Stage:
    """What a program is given: a way to be instrumented, which does nothing in the plain run."""

    def __init__(self, config: Config | None, strikes: Strikes) -> None:
        self._config = config
        self.strikes = strikes
        self.handle: Instrumentation | None = None
        self.lost = 0
        self.log: Log | None = None

    @property
    def is_watched(self) -> bool:
        return self._config is not None

    def watch(self, orchestrator: Any, **options: Any) -> None:
        if self._config is not None:
            self.handle = instrument_orchestrator(orchestrator, config=self._config, **options)

    def balance(self, log: Log) -> None:
        """Hold what was counted against what the program knows. Called when all messages met their fate."""
        if self.handle is not None:
            self.lost += lost(log, self.handle.read())

    async def end(self) -> None:
        if self.handle is not None:
            await asyncio.to_thread(self.handle.shutdown, 1.0)


def lost(log: Log, readings: list[AgentReading]) -> int:
    """Messages by which what was counted differs from the ground truth, in either direction, and those unaccounted."""
    found: dict[str, Counter[tuple[str, ...]]] = {"received": Counter(), "processed": Counter(), "failed": Counter()}
    unaccounted = 0
    for reading in readings:
        for kind in reading.types:
            found["received"][reading.agent_id, kind.message_type] += kind.received
            found["processed"][reading.agent_id, kind.message_type] += kind.processed
            for error, number in kind.failed.items():
                found["failed"][reading.agent_id, kind.message_type, error] += number
        ended = reading.processed + reading.failed + reading.dropped
        unaccounted += abs(reading.received - ended - reading.in_flight - (reading.queue_size or 0))
    for name, counter in found.items():
        truth: Counter[tuple[str, ...]] = getattr(log, name)
        unaccounted += sum(abs(truth[key] - counter[key]) for key in truth.keys() | counter.keys())
    return unaccounted


# -- the program ---------------------------------------------------------------------------------------

MakeProgram = Callable[[], Program]
RunProgram = Callable[[Stage], Coroutine[Any, Any, Outcome]]


def quick_program() -> Program:
    return Program(base_retry_delay=0.0)


def ordinary(make: MakeProgram = quick_program, messages: int = MESSAGES, *, counts: bool = True) -> RunProgram:
    """The program of `tests.workload`, paced so that scrapes and pushes fall into it.

    `counts`: whether its messages can be counted; if not, there must be no counts.
    """

    async def run(stage: Stage) -> Outcome:
        program = make()
        stage.watch(program.orchestrator)
        await program.orchestrator.start()
        for index in range(messages):
            if index == messages // 2:
                await program.broadcast()
            await program.send(index)
            if index % 12 == 0:
                await pause()
        await program.finish()
        print("all", len(program.log.events), "events")
        statuses = {agent_id: await agent.get_status() for agent_id, agent in program.agents.items()}
        stage.strikes.on = False
        stage.balance(program.log if counts else Log())
        await program.orchestrator.stop()
        return Outcome(program.log.events, {agent: without_times(status) for agent, status in statuses.items()})

    return run


async def pause(seconds: float = 0.008) -> None:
    """Let the program become idle, by steps and not by the clock, and then time pass: the order stays its own."""
    for _ in range(80):
        await asyncio.sleep(0)
    await asyncio.sleep(seconds)


def without_times(status: dict[str, Any]) -> dict[str, Any]:
    times = ("average_processing_time", "started_at", "stopped_at")
    stats = {key: value for key, value in status["stats"].items() if key not in times}
    return {**status, "stats": stats}


# -- the two runs --------------------------------------------------------------------------------------

SERVED = Config(metrics_exporters=("prometheus",), prometheus_port=0)


def tried(
    program: RunProgram,
    fault: Callable[[Strikes], AbstractContextManager[Any]] = lambda _strikes: nullcontext(),
    *,
    config: Config | Callable[[Any], Config] = SERVED,
    run: Callable[[Any], Any] = asyncio.run,
    always: bool = False,
) -> Trial:
    """Run `program` plain and instrumented, the second time with the fault; `always`: the first time as well.

    `config` may be made of what the fault yields, such as a port.
    """
    with fault(Strikes()) if always else nullcontext():
        plain, programs_own, _stage, _blocked = _run_once(program, None, Strikes(), run)
    strikes = Strikes()
    with fault(strikes) as given:
        settings = config if isinstance(config, Config) else config(given)
        watched, leaked, stage, blocked_s = _run_once(program, settings, strikes, run)
    leaked = list((Counter(leaked) - Counter(programs_own)).elements())
    return Trial(strikes.count, plain, watched, stage.lost, leaked, blocked_s)


def _run_once(
    program: RunProgram, config: Config | None, strikes: Strikes, run: Callable[[Any], Any]
) -> tuple[Outcome, list[str], Stage, float]:
    _guard.forget_complaints()
    stage = Stage(config, strikes)
    lateness = Lateness()
    printed = io.StringIO()
    with noticing() as leaked, contextlib.redirect_stdout(printed):
        try:
            outcome = run(_watched_over(program, stage, lateness, leaked))
        except BaseException as error:  # the program's own end, whatever it is
            outcome = Outcome(ended=f"{type(error).__name__}: {error}")
        finally:
            strikes.on = False
            if stage.handle is not None:
                stage.handle.shutdown(1.0)
    outcome.stdout = printed.getvalue()
    return outcome, leaked, stage, lateness.most_s


async def _watched_over(program: RunProgram, stage: Stage, lateness: Lateness, leaked: list[str]) -> Outcome:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: leaked.append(f"loop: {context.get('message')}"))
    with scraping(stage), lateness.measured(loop):
        outcome = await asyncio.wait_for(program(stage), _LIMIT_S)
    await stage.end()
    return outcome


class Lateness:
    """How late the event loop calls what is due, at most."""

    def __init__(self) -> None:
        self.most_s = 0.0
        self._due = 0.0
        self._is_over = False

    @contextmanager
    def measured(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        self._due = loop.time()
        self._tick(loop)
        try:
            yield
        finally:
            self._is_over = True

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self.most_s = max(self.most_s, now - self._due)
        if not self._is_over:
            self._due = now + 0.002
            loop.call_at(self._due, self._tick, loop)


@contextmanager
def scraping(stage: Stage) -> Iterator[None]:
    """Somebody reads all the time, as Prometheus would: the page if there is one, and the handle."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(0.02):
            handle = stage.handle
            if handle is not None:
                handle.read()
                if handle.metrics_url is not None:
                    with contextlib.suppress(OSError):  # such as when the fault is that it does not answer
                        urllib.request.urlopen(handle.metrics_url, timeout=2).read()

    thread = threading.Thread(target=scrape, name="scraper", daemon=True)
    if stage.is_watched:
        thread.start()
    try:
        yield
    finally:
        done.set()


# -- what is noticed -----------------------------------------------------------------------------------


class _Records(logging.Handler):
    """Every record of the loggers that an instrumented program has more than it had."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.leaks: list[str] = []
        self._seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)  # with the traceback, if it has one
        leaks = [secret for secret in SECRETS if secret in text]
        if leaks:
            self.leaks.append(f"secret {leaks} in: {text}")
        message = record.getMessage()
        self._seen[message] += 1
        if self._seen[message] > 1:
            self.leaks.append(f"again within a minute: {message}")
        if record.exc_info:
            self.leaks.append(f"with a traceback: {message}")


@contextmanager
def noticing() -> Iterator[list[str]]:
    """Everything that gets out: uncaught exceptions, warnings, stderr, and log records beyond a bounded rate."""
    leaked: list[str] = []
    records = _Records()
    stderr = io.StringIO()
    former_hooks = sys.unraisablehook, threading.excepthook
    loggers = [logging.getLogger(name) for name in _WATCHED_LOGGERS]
    propagated = [logger.propagate for logger in loggers]
    sys.unraisablehook = lambda found: leaked.append(f"unraisable: {found.exc_value!r} in {found.object!r}")
    threading.excepthook = lambda found: leaked.append(f"thread {found.thread}: {found.exc_value!r}")
    for logger in loggers:
        logger.addHandler(records)
        logger.propagate = False
    try:
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(stderr):
            warnings.simplefilter("always")
            yield leaked
    finally:
        sys.unraisablehook, threading.excepthook = former_hooks
        for logger, propagates in zip(loggers, propagated, strict=True):
            logger.removeHandler(records)
            logger.propagate = propagates
        leaked += records.leaks
        leaked += [f"warning: {one.message}" for one in warned]
        leaked += [f"stderr: {line}" for line in stderr.getvalue().splitlines()]


def settle(read: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until something is so, for a bounded time; whoever needs it to be so asserts that."""
    until = time.monotonic() + timeout_s
    while not read() and time.monotonic() < until:
        time.sleep(0.01)
