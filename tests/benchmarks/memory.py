"""How much memory an agent's numbers take: resident memory of fresh processes, with and without each peer."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.benchmarks.harness import differences, progress, ratio, summarize, turns
from tests.benchmarks.peers import NOTHING, OURS, PROMETHEUS_CLIENT, SDK, STOCK, pieces, watch
from tests.benchmarks.population import TYPES, Population
from tests.benchmarks.report import Result, Table, number, spread, times
from tests.benchmarks.workers import Child

PEERS = (NOTHING, OURS, PROMETHEUS_CLIENT, SDK, STOCK)
AGENTS = 2_000
_WARM_UP_AGENTS = 50
_READY = "ready, before any message"
_HELD = "held after a scrape"
_STEPS = (_READY, "held after a message", _HELD, "at the peak of a scrape")


def run(*, short: bool) -> Result:
    rounds = 1 if short else 3
    peers = (NOTHING, OURS, PROMETHEUS_CLIENT, SDK) if short else PEERS
    grown: dict[str, dict[str, list[float]]] = {peer: {step: [] for step in _STEPS} for peer in peers}
    for number_of_round, order in enumerate(turns(peers, rounds)):
        for peer in order:
            with Child("memory", peer=peer) as worker:
                for step, kilobytes in zip(_STEPS, worker.ask("grow"), strict=True):
                    grown[peer][step].append(kilobytes)
        progress(f"round {number_of_round + 1} of {rounds}")
    held = {
        peer: {step: differences(steps[step], grown[NOTHING][step]) for step in _STEPS}
        for peer, steps in grown.items()
        if peer != NOTHING
    }
    series = {peer: differences(steps[_HELD], steps[_READY]) for peer, steps in held.items()}
    ratios = {
        "memory.sdk_to_ours": ratio(series[SDK], series[OURS]),
        "memory.prometheus_client_to_ours": ratio(series[PROMETHEUS_CLIENT], series[OURS]),
        "memory.all.sdk_to_ours": ratio(held[SDK][_HELD], held[OURS][_HELD]),
    }
    rows = tuple(
        (
            _LABELS.get(peer, peer),
            *(spread(summarize(steps[step])) for step in _STEPS),
            spread(summarize(series[peer])),
            times(ratio(series[peer], series[OURS])),
        )
        for peer, steps in held.items()
    )
    with Child("memory", peer=OURS, types=len(TYPES)) as worker:
        of_all_types = dict(zip(_STEPS, worker.ask("grow"), strict=True))
    progress(f"{len(TYPES)} message types")
    of_one_type = {step: summarize(grown[OURS][step]).median for step in _STEPS}
    more = [(of_all_types[step] - of_one_type[step]) / (len(TYPES) - 1) for step in _STEPS[1:3]]
    types = Table(
        ("each further message type", *(f"{step}, kB an agent" for step in _STEPS[1:3])),
        ((OURS, *(number(kilobytes) for kilobytes in more)),),
    )
    table = Table(("", *(f"{step}, kB an agent" for step in _STEPS), "for its series, kB an agent", "÷ ours"), rows)
    notes = (
        f"{AGENTS:,} agents, one message each; {rounds} fresh process{'es' if rounds > 1 else ''} for each row.",
        "Resident memory that the process grew by, less what it grew by uninstrumented.",
        "All peers hold the same series: those of our page. What an agent takes for its series is what is held after a "
        "scrape less what was taken before its first message.",
        "What ours takes before that are wrappers, which count messages for whoever wants to know. Peers by hand have "
        "none: their code stands in the program, and is the same for all agents.",
    )
    return Result("memory", (table, types), ratios, notes)


_LABELS = {STOCK: "amptalk_otel's instruments on the stock reader"}


class Worker:
    """Agents whose instrumentation is weighed."""

    def __init__(self, peer: str, types: int = 1) -> None:
        self._peer = peer
        self._types = TYPES[:types]

    async def prepare(self) -> None:
        """Import, and do once, all that will be done: only what grows with agents shall be weighed."""
        await _go_through(self._peer, Population(_WARM_UP_AGENTS, types=self._types))

    async def grow(self) -> list[float]:
        """By how many kB an agent the process grew, at each of the `_STEPS`."""
        population = Population(AGENTS, types=self._types)
        await population.start()
        before = _resident()
        return [(resident - before) / 1e3 / AGENTS for resident in await _go_through(self._peer, population, keep=True)]


async def _go_through(peer: str, population: Population, *, keep: bool = False) -> list[int]:
    await population.start()
    watched = await watch(peer, population)
    weighed = [_resident()]
    await watched.touch()
    if len(population.types) > 1:
        await population.send(population.messages(len(population.agents) * len(population.types)))
    weighed.append(_resident())
    _forget_peak()
    if watched.url is not None:
        await asyncio.to_thread(_read, watched.url)
    weighed += [_resident(), _peak()]
    if not keep:
        await asyncio.to_thread(watched.close)
        await population.stop()
    return weighed


def _read(url: str) -> None:
    """Read a page and keep nothing of it: it is the server that is weighed."""
    for _piece in pieces(url):
        pass


_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
_STATUS = Path("/proc/self/status")


def _forget_peak() -> None:
    """Let the peak be that of what comes. A new process has that of the process that started it, on Linux."""
    with suppress(OSError):  # https://docs.kernel.org/filesystems/proc.html: clear_refs
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """The most bytes of memory that the process held since."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


def _resident() -> int:
    """Bytes of memory that the process holds now: without garbage, and without what the C library keeps in reserve."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return int(psutil.Process().memory_info().rss)
