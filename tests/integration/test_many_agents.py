"""100,000 agents over one process's life: series within the budget, sums exact at every scrape, nothing ever falls.

Agents come in phases, at times more of them at once than may have a name, so that they are in `_OTHER`, retire, and
get a name when one is free. Some leave in the middle of their work or with messages in their inbox, and some come back.
`AMPTALK_OTEL_TEST_AGENTS` sets another number of agents.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil
import pytest

from amptalk_otel import Config, instrument_orchestrator
from amptalk_otel._labels import OTHER, RETIRED
from amptalk_otel.demo.runtime import Agent, Message, MessageType, Orchestrator
from tests.integration.servers import Collector, MetricPoint, Prometheus, fetch

AGENTS = int(os.environ.get("AMPTALK_OTEL_TEST_AGENTS", "20000"))
MAX_AGENTS = 25
LINGER_S = 1.0
WAVE = 20
PHASES = (10, 120, 40, 200, 20, 80)  # agents that are there at once, one phase after the other, and again
TYPES = (MessageType.COMMAND, MessageType.NLP_REQUEST)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200 + AGENTS // 100)]

RECEIVED, PROCESSED, FAILED, DROPPED, RETRIES = (
    f"amptalk_agent_{name}_total"
    for name in ("messages_received", "messages_processed", "messages_failed", "messages_dropped", "retries")
)
WAIT, WORK = (f"amptalk_agent_message_{name}_duration_seconds_count" for name in ("wait", "process"))
IN_FLIGHT, QUEUED = "amptalk_agent_messages_in_flight", "amptalk_agent_queue_size"
COUNTERS = (RECEIVED, PROCESSED, FAILED, DROPPED, RETRIES, WAIT, WORK)
OTLP = {
    name: name.removesuffix("_total").removesuffix("_seconds_count").replace("_", ".").replace("in.flight", "in_flight")
    for name in COUNTERS
}
_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Kind = tuple[str, ...]
"""`message.type`, and `error.type` or `reason` where the metric has one."""

Truth = dict[str, Counter[Kind]]


class Worker(Agent):
    """Does with a message what its payload says."""

    async def process_message(self, message: Message) -> None:
        plan = message.payload.get("plan")
        if plan == "fail":
            raise ValueError(plan)
        if plan in ("hold", "cancelled"):
            await message.payload["until"].wait()
        if plan in ("flaky", "doomed") and (plan == "doomed" or message.metadata.retry_count == 0):
            raise ConnectionError(plan)


def plan_of(index: int) -> str:
    """The fate of the message with this index."""
    for divisor, plan in ((101, "doomed"), (37, "flaky"), (11, "fail")):
        if index % divisor == divisor - 1:
            return plan
    return "ok"


@dataclass
class Crowd:
    """Agents that come and go, and what happened to their messages, by their own account."""

    orchestrator: Orchestrator = field(default_factory=lambda: Orchestrator(name="crowd"))
    truth: Truth = field(default_factory=lambda: defaultdict(Counter))
    here: deque[Worker] = field(default_factory=deque)
    made: int = 0
    messages: int = 0
    nameless: deque[str] = field(default_factory=lambda: deque(maxlen=50))  # ids of agents that are or were in `_OTHER`

    async def go_on(self, agents: int, at_once: int) -> None:
        """So many more come in waves; those that are there for longest go, as long as there are too many."""
        until = self.made + agents
        while self.made < until:
            wave = [self._come() for _ in range(min(WAVE, until - self.made))]
            for worker in wave:
                await worker.start()
                for index in range(1 + self.made % 3):
                    self._give(worker, plan_of(self.messages), TYPES[index % 2])
            for worker in wave:
                await worker.input_queue.join()
            while len(self.here) > at_once:
                await self._go(self.here.popleft(), self.made + len(self.here))

    def _come(self, agent_id: str | None = None) -> Worker:
        worker = Worker(agent_id=agent_id or f"agent-{self.made}", name=f"Agent {self.made % 100}")
        worker.base_retry_delay = 0.0
        self.made += 1
        self.orchestrator.register_agent(worker)
        self.here.append(worker)
        return worker

    def _give(self, worker: Worker, plan: str, kind: MessageType, **payload: Any) -> None:
        worker.input_queue.put_nowait(Message(message_type=kind, payload={"plan": plan, **payload}))
        self.messages += 1
        name = kind.value
        self.truth[RECEIVED][(name,)] += 1
        if plan != "unregistered":
            self.truth[WAIT][(name,)] += 1
        if plan in ("taken", "unregistered", "cancelled"):
            self.truth[DROPPED][name, plan] += 1
            return
        self.truth[WORK][(name,)] += 1
        retries = {"flaky": 1, "doomed": 3}.get(plan, 0)
        if retries:
            self.truth[RETRIES][name, "ConnectionError"] += retries
        if plan in ("fail", "doomed"):
            self.truth[FAILED][name, "ValueError" if plan == "fail" else "ConnectionError"] += 1
        else:
            self.truth[PROCESSED][(name,)] += 1

    async def _go(self, worker: Worker, way: int) -> None:
        """Leave, in one of several ways."""
        done = asyncio.Event()
        if way % 13 == 0:  # cancelled in the middle of a message
            self._give_held(worker, "cancelled", done)
            await asyncio.sleep(0)
            await worker.stop()
        elif way % 17 == 0:  # let go in the middle of a message, which is finished later
            self._give_held(worker, "hold", done)
            await asyncio.sleep(0)
            self.orchestrator.unregister_agent(worker.agent_id)
            await asyncio.sleep(0)
            done.set()
            await worker.input_queue.join()
            await worker.stop()
            return
        await worker.stop()
        if way % 7 == 0:  # with messages in the inbox
            self._give(worker, "unregistered", TYPES[0])
            self._give(worker, "unregistered", TYPES[1])
        elif way % 19 == 0:
            self._give(worker, "taken", TYPES[1])
            worker.input_queue.get_nowait()
        self.orchestrator.unregister_agent(worker.agent_id)

    def _give_held(self, worker: Worker, plan: str, until: asyncio.Event) -> None:
        self._give(worker, plan, TYPES[0], until=until)

    async def empty(self) -> None:
        while self.here:
            await self._go(self.here.popleft(), self.made + len(self.here))

    async def meet_again(self, number: int) -> set[str]:
        """Some that were in `_OTHER` come back."""
        back = {self.nameless.pop() for _ in range(min(number, len(self.nameless)))}
        for agent_id in back:
            worker = self._come(agent_id)
            await worker.start()
            self._give(worker, "ok", TYPES[0])
            await worker.input_queue.join()
        return back


# -- what is seen --------------------------------------------------------------------------------------


@dataclass
class Page:
    """The samples of one scrape, by metric: labels and value."""

    samples: dict[str, list[tuple[dict[str, str], float]]]

    def sums(self, name: str) -> Counter[Kind]:
        return sums_of(self.samples.get(name, ()))

    def total(self, name: str) -> float:
        return sum(value for _labels, value in self.samples.get(name, ()))

    def agents(self, name: str) -> Counter[str]:
        """How many series each agent has."""
        return Counter(labels["agent_id"] for labels, _value in self.samples.get(name, ()))


def read_page(url: str) -> Page:
    samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for name, labels, value in _SAMPLE.findall(fetch(url).decode()):
        if "agent_id=" in labels:
            samples[name].append((dict(_LABEL.findall(labels)), float(value)))
    return Page(samples)


def kind_of(labels: Mapping[str, Any]) -> Kind:
    flat = {name.replace(".", "_"): str(value) for name, value in labels.items()}
    third = flat.get("error_type") or flat.get("reason")
    return (flat["message_type"], *([third] if third else []))


def sums_of(samples: Iterable[tuple[Mapping[str, Any], float]]) -> Counter[Kind]:
    found: Counter[Kind] = Counter()
    for labels, value in samples:
        found[kind_of(labels)] += int(value)
    return found


def out_of_balance(page: Page) -> float:
    parts = (PROCESSED, FAILED, DROPPED, IN_FLIGHT, QUEUED)
    return page.total(RECEIVED) - sum(page.total(name) for name in parts)


class Watcher:
    """Scrapes all the time while agents come and go."""

    def __init__(self, url: str, crowd: Crowd) -> None:
        self._url = url
        self._crowd = crowd
        self.scrapes = 0
        self.other = self.retired = 0
        self.most_series: Counter[str] = Counter()
        self._former: Counter[tuple[str, str, Kind]] = Counter()

    async def exactly(self) -> set[str]:
        """Nothing happens meanwhile: every sum is the truth. Returns the ids that are told."""
        page = await asyncio.to_thread(read_page, self._url)
        for name in COUNTERS:
            assert page.sums(name) == self._crowd.truth[name], name
        assert page.total(IN_FLIGHT) == page.total(QUEUED) == 0
        self._check(page)
        return set(page.agents(QUEUED))

    async def until(self, done: asyncio.Event) -> None:
        while not done.is_set():
            before = self._crowd.truth[RECEIVED].total()
            page = await asyncio.to_thread(read_page, self._url)
            assert before <= page.total(RECEIVED) <= self._crowd.truth[RECEIVED].total()
            self._check(page)
            await asyncio.sleep(0.1)

    def _check(self, page: Page) -> None:
        self.scrapes += 1
        assert out_of_balance(page) == 0
        now: Counter[tuple[str, str, Kind]] = Counter()
        for name in COUNTERS:
            agents = page.agents(name)
            assert len(agents.keys() - {OTHER, RETIRED}) <= MAX_AGENTS, name
            self.most_series[name] = max(self.most_series[name], agents.total())
            for labels, value in page.samples.get(name, ()):
                now[name, labels["agent_id"], kind_of(labels)] = int(value)
        fell = {key: (value, now[key]) for key, value in self._former.items() if key in now and now[key] < value}
        assert fell == {}
        self._former = now
        self.other += OTHER in page.agents(RECEIVED)
        self.retired += RETIRED in page.agents(RECEIVED)


# -- what Prometheus and the Collector have ------------------------------------------------------------


def stored(prometheus: Prometheus, selector: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
    """Every sample of the last hour: labels, and pairs of time and value."""
    data = json.loads(fetch(f"{prometheus.url}/api/v1/query", {"query": f"{selector}[1h]"}))["data"]
    return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in data["result"]]


def check_prometheus(prometheus: Prometheus, truth: Truth) -> int:
    """No series ever fell, nor did any sum, and the last sums are the truth. Returns the number of scrapes."""
    times: set[float] = set()
    for name in COUNTERS:
        prometheus.wait_for(f"sum({name})", lambda found, name=name: found[0].value == truth[name].total())  # type: ignore[misc]
        found = prometheus.query(f"sum by (message_type, error_type, reason) ({name})")
        assert sums_of((one.labels, one.value) for one in found) == truth[name], name
        sums: Counter[float] = Counter()
        agents: dict[float, set[str]] = defaultdict(set)
        for labels, values in stored(prometheus, name):
            assert all(one <= other for (_, one), (_, other) in pairwise(values)), labels
            for at, value in values:
                sums[at] += int(value)
                agents[at].add(labels["agent_id"])
        in_order = [sums[at] for at in sorted(sums)]
        assert in_order == sorted(in_order), name
        assert max(map(len, agents.values())) <= MAX_AGENTS + 2
        times |= sums.keys()
    names = (
        RECEIVED,
        PROCESSED,
        FAILED,
        DROPPED,
        RETRIES,
        *(f"{name.removesuffix('_count')}_{part}" for name in (WAIT, WORK) for part in ("count", "sum", "bucket")),
    )
    for name in names:
        assert prometheus.query(f"resets({name}[1h]) > 0") == []
    return len(times)


def check_collector(points: Iterable[MetricPoint], truth: Truth) -> int:
    """The same of what was pushed; and a series that says that it began anew did so. Returns the number of pushes."""
    by_series: dict[Any, list[MetricPoint]] = defaultdict(list)
    sums: dict[str, Counter[int]] = defaultdict(Counter)
    last: dict[tuple[str, int], list[tuple[Mapping[str, Any], float]]] = defaultdict(list)
    for point in points:
        if point.name in OTLP.values():
            number = point.count if point.count is not None else point.value
            by_series[point.key].append(point)
            sums[point.name][point.time_ns] += int(number or 0)
            last[point.name, point.time_ns].append((point.attributes, number or 0))
    for key, series in by_series.items():
        assert len({point.start_time_ns for point in series}) == 1, key
        numbers = [point.count if point.count is not None else point.value for point in series]
        assert numbers == sorted(numbers), key  # type: ignore[type-var]
    for name, otlp_name in OTLP.items():
        at = sorted(sums[otlp_name])
        assert [sums[otlp_name][one] for one in at] == sorted(sums[otlp_name].values()), name
        assert sums_of(last[otlp_name, at[-1]]) == truth[name], name
    return len({at for one in sums.values() for at in one})


def resident_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def phases(agents: int) -> Iterator[tuple[int, int]]:
    """How many come in each phase, and how many are there at once."""
    rounds = 2
    part = agents // (rounds * len(PHASES))
    for _ in range(rounds):
        for at_once in PHASES:
            yield part, at_once


def test_sums_are_exact_and_series_within_the_budget_however_many_agents_there_were(
    prometheus_factory: Callable[..., Prometheus], collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = Crowd()
    config = Config(
        metrics_exporters=("prometheus", "otlp"),
        prometheus_port=0,
        otlp_endpoint=collector.http_endpoint,
        otlp_protocol="http/protobuf",
        metric_export_interval_s=1.0,
        max_agents=MAX_AGENTS,
        departed_agents_linger_s=LINGER_S,
    )

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"  {text}", flush=True)

    async def live(url: str, prometheus: Prometheus) -> None:
        watcher, began, promoted = Watcher(url, crowd), time.monotonic(), 0
        for agents, at_once in phases(AGENTS):
            done = asyncio.Event()
            watching = asyncio.create_task(watcher.until(done))
            try:
                await crowd.go_on(agents, at_once)
            finally:
                done.set()
            await watching
            told = await watcher.exactly()
            crowd.nameless.extend(worker.agent_id for worker in crowd.here if worker.agent_id not in told)
            if at_once < MAX_AGENTS:  # all go: names are free again
                await crowd.empty()
                await asyncio.sleep(LINGER_S + 0.1)
                assert await watcher.exactly() <= {OTHER, RETIRED}
                back = await crowd.meet_again(5)
                assert await watcher.exactly() >= back
                promoted += len(back)
            say(
                f"{crowd.made:,} agents, {crowd.messages:,} messages, {time.monotonic() - began:.0f} s, "
                f"{watcher.scrapes} scrapes, at most {max(watcher.most_series.values())} series of a metric, "
                f"{resident_mb():.0f} MB"
            )
        await crowd.empty()
        await watcher.exactly()
        assert watcher.other >= len(PHASES)
        assert watcher.retired >= len(PHASES)
        assert promoted >= 5
        assert max(watcher.most_series.values()) <= (MAX_AGENTS + 2) * len(TYPES) * 3
        scrapes = await asyncio.to_thread(check_prometheus, prometheus, crowd.truth)
        assert scrapes >= 20
        say(f"Prometheus: {scrapes} scrapes, no reset")

    async def run() -> None:
        instrumentation = instrument_orchestrator(crowd.orchestrator, config=config)
        try:
            assert instrumentation.metrics_url is not None
            with prometheus_factory([instrumentation.metrics_url], scrape_interval_s=0.5) as prometheus:
                await asyncio.to_thread(prometheus.wait_for, "up == 1")
                await live(instrumentation.metrics_url, prometheus)
        finally:
            await asyncio.to_thread(instrumentation.shutdown)

    asyncio.run(run())
    final = crowd.truth[RECEIVED].total()
    collector.wait_for_metrics(
        lambda found: sum(int(one.value or 0) for one in found.values() if one.name == OTLP[RECEIVED]) >= final
    )
    pushes = check_collector(collector.exported_points(), crowd.truth)
    say(f"Collector: {pushes} pushes, no reset")
    assert pushes >= 5
