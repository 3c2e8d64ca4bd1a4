"""What a scrape costs, by number of agents: CPU and wall time, and the size of the page.

Each peer is a process of its own; the page is read by this one, as Prometheus would. CPU time is that of the peer's
process, so reading costs nothing there.
"""

from __future__ import annotations

import gc
import gzip
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.benchmarks.harness import Summary, progress, ratio, summarize, turns
from tests.benchmarks.peers import OURS, PROMETHEUS_CLIENT, STOCK, Watched, get, watch
from tests.benchmarks.plot import log_log
from tests.benchmarks.population import TYPES, Population
from tests.benchmarks.report import Result, Table, number, spread, times
from tests.benchmarks.workers import Child, cpu_s

PEERS = (OURS, STOCK, PROMETHEUS_CLIENT)
ROUNDS = {10: 25, 100: 15, 1_000: 5, 10_000: 3}
SHORT_ROUNDS = {100: 3, 1_000: 3}
PICTURE = "scrape-by-agents.svg"


@dataclass(frozen=True)
class Case:
    """How a page is read: compressed or not, after everything changed or nothing did."""

    agents: int
    encoding: str = "identity"
    changed: bool = True

    def __str__(self) -> str:
        compressed = ", gzip" if self.encoding == "gzip" else ""
        return f"{self.agents:,}{compressed}{'' if self.changed else ', nothing changed'}"


@dataclass
class Costs:
    """What one peer's rounds took, and how big its page was."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    page_bytes: int = 0
    lines: int = 0  # samples of the page


def run(*, short: bool) -> Result:
    costs: dict[Case, dict[str, Costs]] = {}
    for agents, rounds in (SHORT_ROUNDS if short else ROUNDS).items():
        costs |= _measure(_cases(agents, short=short), agents, rounds)
    ratios = {
        f"scrape.{prefix}{name}_to_ours": ratio(peers[peer].cpu_ms, peers[OURS].cpu_ms)
        for prefix, case in (("", Case(1_000)), ("gzip.", Case(1_000, "gzip")))
        for name, peer in (("stock", STOCK), ("prometheus_client", PROMETHEUS_CLIENT))
        if (peers := costs[case])
    }
    if Case(10_000) in costs:
        ratios["scrape.linear"] = _linear(costs)
    pictures = {} if short else {PICTURE: _picture(costs)}
    return Result("scrape", (_times(costs), _sizes(costs)), ratios, _notes(short=short), pictures)


def _measure(cases: Sequence[Case], agents: int, rounds: int) -> dict[Case, dict[str, Costs]]:
    costs = {case: {peer: Costs() for peer in PEERS} for case in cases}
    with ExitStack() as stack:
        workers = {peer: stack.enter_context(Child("scrape", peer=peer, agents=agents)) for peer in PEERS}
        urls = {peer: worker.ask("url") for peer, worker in workers.items()}
        for peer in PEERS:
            workers[peer].ask("touch")
            get(urls[peer], encoding="identity")
            progress(f"{agents:,} agents: {peer} is ready")
        for number_of_round, order in enumerate(turns(PEERS, rounds)):
            for case in cases:
                for peer in order:
                    _scrape(workers[peer], urls[peer], case, costs[case][peer])
            progress(f"{agents:,} agents: round {number_of_round + 1} of {rounds}")
    for case, found in costs.items():
        must_be_alike(str(case), {peer: one.lines for peer, one in found.items()})
    return costs


def must_be_alike(case: str, lines: Mapping[str, int]) -> None:
    """A page that shows less costs less. Raises RuntimeError; a few samples of the process itself may differ."""
    if max(lines.values()) > min(lines.values()) * 1.01:
        raise RuntimeError(f"the pages of {case} agents differ: {lines}")


def _cases(agents: int, *, short: bool) -> list[Case]:
    """Compressing 150 MB would take longer than all else; that nothing changes is seen at one number of agents."""
    cases = [Case(agents)]
    if agents <= 1_000:
        cases.append(Case(agents, "gzip"))
    if agents == 1_000 and not short:
        cases += [Case(agents, changed=False), Case(agents, "gzip", changed=False)]
    return cases


def _scrape(worker: Child, url: str, case: Case, costs: Costs) -> None:
    worker.ask("touch" if case.changed else "collect_garbage")
    before = worker.ask("cpu_s")
    asking = worker.ask("cpu_s") - before  # what a question costs
    before = worker.ask("cpu_s")
    started = time.perf_counter()
    body = get(url, encoding=case.encoding)
    costs.wall_ms.append((time.perf_counter() - started) * 1e3)
    costs.cpu_ms.append(max(0.0, worker.ask("cpu_s") - before - asking) * 1e3)
    costs.page_bytes = len(body)
    if not costs.lines:
        text = gzip.decompress(body) if case.encoding == "gzip" else body
        costs.lines = sum(1 for line in text.splitlines() if line and not line.startswith(b"#"))


def _linear(costs: dict[Case, dict[str, Costs]]) -> Summary:
    """CPU time per agent: of 10,000 agents as a multiple of that of 1,000."""
    base = summarize(costs[Case(1_000)][OURS].cpu_ms).median / 1_000
    return summarize([value / 10_000 / base for value in costs[Case(10_000)][OURS].cpu_ms])


# -- tables --------------------------------------------------------------------------------------------


def _times(costs: dict[Case, dict[str, Costs]]) -> Table:
    head = ["agents"]
    for peer in PEERS:
        head += [f"{peer}: CPU, ms", "wall, ms"]
    head += ["stock ÷ ours (CPU)", "prometheus_client ÷ ours (CPU)"]
    rows = []
    for case, peers in costs.items():
        row = [str(case)]
        for peer in PEERS:
            row += [spread(summarize(peers[peer].cpu_ms)), number(summarize(peers[peer].wall_ms).median)]
        for peer in PEERS[1:]:
            row.append(times(ratio(peers[peer].cpu_ms, peers[OURS].cpu_ms)))
        rows.append(tuple(row))
    return Table(tuple(head), tuple(rows), "One scrape")


def _sizes(costs: dict[Case, dict[str, Costs]]) -> Table:
    rows = tuple(
        (
            str(case),
            *(f"{number(peers[peer].page_bytes / 1e3)}" for peer in PEERS),
            *(f"{peers[peer].lines:,}" for peer in PEERS),
        )
        for case, peers in costs.items()
        if case.changed
    )
    head = ("agents", *(f"{peer}: kB" for peer in PEERS), *(f"{peer}: samples" for peer in PEERS))
    return Table(head, rows, "The page")


def _notes(*, short: bool) -> tuple[str, ...]:
    rounds = ", ".join(f"{agents:,}: {rounds}" for agents, rounds in (SHORT_ROUNDS if short else ROUNDS).items())
    return (
        f"Rounds by number of agents: {rounds}.",
        "Every agent handles a message between two scrapes, so that every series changes, but where it says otherwise.",
        "The stock reader's cap of 2,000 series per instrument is lifted: with it, most agents would be missing.",
    )


def _picture(costs: dict[Case, dict[str, Costs]]) -> str:
    lines = {
        peer: [
            (agents, summarize(peers[peer].cpu_ms).median)
            for agents in ROUNDS
            if (peers := costs.get(Case(agents))) is not None
        ]
        for peer in PEERS
    }
    return log_log("CPU time of one scrape, by number of agents", "agents", "CPU time, ms", lines)


# -- the process of one peer ---------------------------------------------------------------------------


class Worker:
    """Agents that are watched, and a page."""

    def __init__(self, peer: str, agents: int) -> None:
        self._peer, self._agents = peer, agents
        self._watched: Watched | None = None

    async def prepare(self) -> None:
        population = Population(self._agents, types=TYPES[:1])
        await population.start()
        self._watched = await watch(self._peer, population)

    def url(self) -> str | None:
        assert self._watched is not None
        return self._watched.url

    async def touch(self) -> None:
        assert self._watched is not None
        await self._watched.touch()
        gc.collect()

    def collect_garbage(self) -> None:
        gc.collect()

    def cpu_s(self) -> float:
        return cpu_s()
