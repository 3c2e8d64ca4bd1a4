"""Constant churn for as long as you say: a line each few seconds, and in the end a verdict on what grows.

Agents come and go, messages are handled, fail and are retried, somebody scrapes all the time, everything is pushed to
a Collector (or, without one, to a receiver of our own) that is killed and started again.

After a warm-up of a quarter of the time, half a minute at least, each series of samples is cut into a first, a second
and a last third. It grows if the median rises from third to third and, from the first to the last, by more than its
allowance (below): steps, spikes and garbage that comes and goes are no growth, while what each agent or message leaves
behind is. Memory is without what is free in the C library; in less than a minute it is not judged. Messages that are
unaccounted for at any moment, or missing in the sums of the last page, are an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import re
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import psutil

from amptalk_otel import Config, Instrumentation, instrument_orchestrator
from amptalk_otel.demo.runtime import Message, Orchestrator, SimpleAgent
from tests.faults.collectors import OK, answering, read_request
from tests.faults.trial import Strikes
from tests.integration.servers import Collector, find_server
from tests.workload import TYPES

LIVING = 30
WARM_UP_S = 30.0


@dataclass(frozen=True)
class Sample:
    """At one moment, what must not grow."""

    rss_mb: float
    file_descriptors: int
    threads: int
    series: int
    objects: int
    unaccounted: int


ALLOWANCES = {  # from the first third to the last
    "rss_mb": 0.05,  # a share, as the three others
    "file_descriptors": 3.0,
    "threads": 2.0,
    "series": 0.15,
    "objects": 0.05,  # what the garbage collector knows of
}
SHARES = ("rss_mb", "series", "objects")
MEMORY = ("rss_mb", "objects")
MEMORY_NEEDS_S = 60.0
"""A program takes so long to have what it will have; in less, memory is printed and not judged."""


class Churn:
    """The program: thirty agents at a time, each of which lives for a second or two."""

    def __init__(self) -> None:
        self.orchestrator = Orchestrator(name="soak")
        self.agents = self.messages = self.delivered = 0
        self._living: list[SimpleAgent] = []

    async def run(self, until: Callable[[], bool]) -> None:
        await self.orchestrator.start()
        while not until():
            await self._replace_one()
            for _ in range(40):
                await self._send()
            await asyncio.sleep(0.04)
        for agent in self._living:
            await asyncio.wait_for(agent.input_queue.join(), 30)
        await self.orchestrator.stop()

    async def _replace_one(self) -> None:
        if len(self._living) >= LIVING:
            oldest = self._living.pop(0)
            if self.agents % 2:
                await asyncio.wait_for(oldest.input_queue.join(), 30)  # else it leaves messages behind
            self.orchestrator.unregister_agent(oldest.agent_id)
            await oldest.stop()
        self.agents += 1
        agent = SimpleAgent(name=f"agent-{self.agents % (2 * LIVING)}")
        agent.base_retry_delay = 0.001
        for kind in TYPES:
            agent.register_message_handler(kind, self._handle)
        self.orchestrator.register_agent(agent)
        self._living.append(agent)
        await agent.start()

    async def _send(self) -> None:
        self.messages += 1
        agent = self._living[self.messages % len(self._living)]
        kind = TYPES[self.messages % len(TYPES)]
        target = agent.agent_id if self.messages % 101 else "nobody"
        message = Message(message_type=kind, target_agent_id=target, payload={"index": self.messages})
        self.delivered += await self.orchestrator.send_message_to_agent(message)

    async def _handle(self, message: Message) -> list[Message] | None:
        index = message.payload["index"]
        if index % 13 == 0:
            raise ValueError("bad")
        if index % 17 == 0 and message.metadata.retry_count < 2:
            raise ConnectionError("no line")
        if index % 7 == 0:
            await asyncio.sleep(0.001)
        return None


def unaccounted(handle: Instrumentation) -> int:
    """Messages of all agents that are in no part of the balance."""
    total = 0
    for reading in handle.read():
        ended = reading.processed + reading.failed + reading.dropped
        total += abs(reading.received - ended - reading.in_flight - reading.queue_size)
    return total


def sample(handle: Instrumentation, page: str) -> Sample:
    gc.collect()
    give_back_what_is_free()
    process = psutil.Process()
    return Sample(
        rss_mb=round(process.memory_info().rss / 1e6, 1),
        file_descriptors=process.num_fds(),
        threads=threading.active_count(),
        series=sum(1 for line in page.splitlines() if not line.startswith("#")),
        objects=len(gc.get_objects()),
        unaccounted=unaccounted(handle),
    )


def give_back_what_is_free() -> None:
    """Let the C library return what was freed: it keeps 15 to 25 MB, now more and now less, which is no growth."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def scrape(handle: Instrumentation) -> str:
    with urllib.request.urlopen(str(handle.metrics_url), timeout=10) as response:
        page: str = response.read().decode()
        return page


def missing(churn: Churn, page: str) -> int:
    """By how many messages the page differs from what was delivered, agents that left long ago included."""
    values = re.findall(r"^amptalk_agent_messages_received_total\{.*\} (\S+)$", page, re.MULTILINE)
    return sum(int(float(value)) for value in values) - churn.delivered


def growth(name: str, values: list[float]) -> str | None:
    """A sentence where a series grows, as the module says; None where it does not."""
    third = len(values) // 3
    if third < 1:
        return None
    first, second, last = (
        statistics.median(part) for part in (values[:third], values[third : 2 * third], values[-third:])
    )
    if name == "unaccounted":
        return f"{name}: {max(values):g} at one moment" if max(values) else None
    allowance = ALLOWANCES[name] * (first if name in SHARES else 1.0)
    grows = first < second < last and last - first > allowance
    return f"{name} grows: {first:g}, {second:g}, {last:g} (allowed: {allowance:g})" if grows else None


@contextmanager
def collector(restart_every_s: float) -> Iterator[tuple[str, Callable[[], int]]]:
    """An endpoint and the number of restarts so far."""
    over, restarts = threading.Event(), [0]
    if find_server("otelcol") is None:
        with _receiver() as port:
            yield f"http://127.0.0.1:{port}", lambda: 0
        return
    with Collector() as server:

        def restart() -> None:
            while not over.wait(restart_every_s):
                server.kill()
                over.wait(restart_every_s / 5)
                server.start()
                restarts[0] += 1

        thread = threading.Thread(target=restart, name="restarts", daemon=True)
        thread.start()
        try:
            yield server.http_endpoint, lambda: restarts[0]
        finally:
            over.set()
            thread.join(60)


@contextmanager
def _receiver() -> Iterator[int]:
    def take(client: Any) -> None:
        while True:
            read_request(client)
            client.sendall(OK)

    with answering(take, Strikes()) as port:
        yield port


def _config(endpoint: str, seconds: float) -> Config:
    """Everything is pushed often, agents that left are soon forgotten, and there are more than have a place."""
    return Config(
        metrics_exporters=("prometheus", "otlp"),
        traces_exporters=("otlp",),
        traces_sampler="parentbased_traceidratio",
        traces_sampler_arg=0.05,
        prometheus_port=0,
        otlp_endpoint=endpoint,
        otlp_timeout_s=2.0,
        metric_export_interval_s=1.0,
        departed_agents_linger_s=min(3.0, seconds / 20),
        max_agents=2 * LIVING,
    )


@contextmanager
def _at_work(config: Config) -> Iterator[tuple[Instrumentation, Churn]]:
    """The instrumented program, in a thread of its own; left once it has ended."""
    over, ready = threading.Event(), threading.Event()
    made: list[tuple[Instrumentation, Churn]] = []

    async def main() -> None:
        churn = Churn()
        made.append((instrument_orchestrator(churn.orchestrator, config=config), churn))
        ready.set()
        await churn.run(over.is_set)

    program = threading.Thread(target=lambda: asyncio.run(main()), name="program", daemon=True)
    program.start()
    if not ready.wait(30):
        raise RuntimeError("the program does not start")
    try:
        yield made[0]
    finally:
        over.set()
        program.join(60)


def soak(minutes: float, every_s: float) -> list[str]:
    """Run for so long; returns what is wrong."""
    ends_at = time.monotonic() + 60.0 * minutes
    with collector(restart_every_s=20.0) as (endpoint, restarts):
        with _at_work(_config(endpoint, 60.0 * minutes)) as (handle, churn):
            samples = _sampled(handle, churn, ends_at, every_s, restarts)
        left, lost = unaccounted(handle), missing(churn, scrape(handle))
        began = time.monotonic()
        is_pushed = handle.shutdown(5.0)
        took_s = time.monotonic() - began
        print(
            f"ended: {churn.delivered} messages delivered, the page differs by {lost}, unaccounted {left},"
            f" collector restarts {restarts()}, shutdown took {took_s:.1f} s, last values pushed: {is_pushed}",
            flush=True,
        )
    found = [f"unaccounted at the end: {left}"] if left else []
    found += [f"the page differs by {lost} messages at the end"] if lost else []
    for field in fields(Sample):
        if field.name in MEMORY and minutes * 60 < MEMORY_NEEDS_S:
            continue
        sentence = growth(field.name, [float(getattr(one, field.name)) for one in samples])
        found += [sentence] if sentence is not None else []
    return found


def _sampled(
    handle: Instrumentation, churn: Churn, ends_at: float, every_s: float, restarts: Callable[[], int]
) -> list[Sample]:
    """Samples after the warm-up; a line for each, those before included."""
    began = time.monotonic()
    warm_at = began + max(min(WARM_UP_S, (ends_at - began) / 2), (ends_at - began) / 4)
    print("    s   RSS MB  fds  threads  series  objects  unaccounted   agents  messages  restarts", flush=True)
    samples, next_at = [], began
    while (now := time.monotonic()) < ends_at:
        page = scrape(handle)
        if now >= next_at:
            next_at += every_s
            one = sample(handle, page)
            if now >= warm_at:
                samples.append(one)
            print(
                f"{now - began:5.0f} {one.rss_mb:8.1f} {one.file_descriptors:4} {one.threads:8} {one.series:7}"
                f" {one.objects:8} {one.unaccounted:12} {churn.agents:8} {churn.messages:9} {restarts():9}"
                f"{'' if now >= warm_at else '  (warm-up)'}",
                flush=True,
            )
        time.sleep(0.2)
    return samples


EXAMPLES = """examples:
  tox -e soak -- 0.2             a glance, in twelve seconds
  tox -e soak -- 10              ten minutes, which is what docs/reliability.md shows
  tox -e soak -- 60 --every 60   an hour, with a line each minute
"""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tox -e soak --",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("minutes", nargs="?", type=float, default=3.0, help="how long (default: 3)")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="between two lines (default: 20, or less)")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error("minutes must be more than 0")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("amptalk_otel.demo").setLevel(logging.ERROR)
    os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "500")
    found = soak(options.minutes, options.every or min(20.0, options.minutes * 60 / 24))
    for sentence in found:
        print(sentence, file=sys.stderr)
    print("not flat" if found else "all flat")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
