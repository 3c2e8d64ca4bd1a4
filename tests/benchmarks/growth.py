"""What a message costs as agents grow: from 10 to 10,000 agents, messages going to all of them in turn."""

from __future__ import annotations

import asyncio
import gc

from tests.benchmarks.harness import progress, summarize
from tests.benchmarks.messages import BARE, FLOOR, OURS, PROMETHEUS_CLIENT, SDK, measure, overheads
from tests.benchmarks.plot import log_log
from tests.benchmarks.population import TYPES
from tests.benchmarks.report import Result, Table, spread

PEERS = (BARE, FLOOR, OURS, PROMETHEUS_CLIENT, SDK)
SIZES = (10, 100, 1_000, 10_000)
PICTURE = "message-by-agents.svg"


def run(*, short: bool) -> Result:
    sizes, rounds = (SIZES[:-1], 3) if short else (SIZES, 7)
    above: dict[int, dict[str, list[float]]] = {}
    for agents in sizes:
        peers = asyncio.run(measure(PEERS, agents, TYPES[:1], rounds=rounds, label=f"{agents:,} agents"))
        above[agents] = overheads(peers)
        del peers
        gc.collect()
    progress("drawing")
    names = (OURS, SDK, PROMETHEUS_CLIENT, FLOOR)
    rows = tuple(
        (f"{agents:,}", *(spread(summarize(found[name])) for name in names)) for agents, found in above.items()
    )
    table = Table(("agents", *(f"{name}, µs" for name in names)), rows, "Overhead of a message (CPU)")
    lines = {name: [(agents, summarize(above[agents][name]).median) for agents in sizes] for name in names}
    picture = log_log("Overhead of one message, by number of agents", "agents", "CPU above uninstrumented, µs", lines)
    notes = (f"{rounds} rounds. With more agents, less of what a message needs is still in the processor's cache.",)
    return Result("growth", (table,), {}, notes, {} if short else {PICTURE: picture})
