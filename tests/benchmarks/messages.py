"""What a message costs: uninstrumented, ours, and four ways by hand."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from amptalk_otel import Config, Instrumentation, instrument_agent, instrument_orchestrator
from amptalk_otel.demo.runtime import MessageType, SimpleAgent
from tests.benchmarks import by_hand
from tests.benchmarks.harness import (
    Summary,
    Usage,
    differences,
    measured,
    progress,
    ratio,
    summarize,
    turns,
)
from tests.benchmarks.population import TYPES, Population
from tests.benchmarks.report import Result, Table, number, spread, times

BARE, FLOOR, INLINE, OURS = "uninstrumented", "plain integers by hand", "in the program's own code", "amptalk_otel"
PROMETHEUS_CLIENT, SDK = "prometheus_client by hand", "OpenTelemetry SDK by hand"
PEERS = (BARE, INLINE, FLOOR, OURS, PROMETHEUS_CLIENT, SDK)
CONFIG = Config(metrics_exporters=("prometheus",), prometheus_port=0, max_agents=100_000)

MESSAGES = 10_000  # a round
SLICE = 2_000  # peers take turns after so many


@dataclass
class Peer:
    """The agents of one peer, and what its rounds took, in µs a message."""

    population: Population
    processed: Callable[[], int] | None = None  # by the peer's own count, to be compared with the agents'
    close: Callable[[], object] = lambda: None
    cpu_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)


Make = Callable[[str, int, Sequence[MessageType]], Awaitable[Peer]]


def run(*, short: bool) -> Result:
    rounds = 6 if short else 15
    one = asyncio.run(measure(PEERS, 1, TYPES[:1], rounds=rounds, label="one type"))
    many = asyncio.run(measure(PEERS, 1, TYPES, rounds=rounds, label=f"{len(TYPES)} types"))
    ratios = {
        f"{prefix}{name}": value
        for prefix, peers in (("messages.", one), ("messages.types.", many))
        for name, value in ratios_of(peers).items()
    }
    notes = (
        f"{MESSAGES:,} messages a round and peer, {rounds} rounds; peers take turns after every {SLICE:,} messages.",
        "The overhead is what a peer's round costs above the uninstrumented round beside it.",
    )
    return Result(
        "messages", (table(one, "One message type"), table(many, f"{len(TYPES)} message types")), ratios, notes
    )


async def measure(
    names: Sequence[str],
    agents: int,
    types: Sequence[MessageType],
    *,
    rounds: int,
    messages: int = MESSAGES,
    label: str = "",
    make: Make | None = None,
    weights: Mapping[str, int] | None = None,
) -> dict[str, Peer]:
    """Send messages through the agents of every peer, in turns.

    `make` makes a peer, if it is none of `PEERS`; `weights` tells which have how many turns where others have one.
    """
    weight = {name: (weights or {}).get(name, 1) for name in names}
    weighted = [name for name in names for _ in range(weight[name])]
    peers = {name: await (make or _make)(name, agents, types) for name in names}
    try:
        slice_size = min(max(SLICE, agents), messages)  # every agent gets some of each slice
        batches = {name: peer.population.messages(slice_size) for name, peer in peers.items()}
        for name, peer in peers.items():  # warm up: every agent sees every type once
            await peer.population.send(peer.population.messages(max(slice_size, agents * len(types))))
            progress(f"{label}: {name} is ready")
        gc.collect()
        gc.freeze()  # what all peers keep; from now on the collector looks only at what a slice makes
        for number_of_round in range(rounds):
            spent = {name: Usage() for name in names}
            for order in turns(weighted, messages // slice_size):
                for name in order:
                    gc.collect()  # nobody pays for what the peer before has left
                    with measured() as usage:
                        await peers[name].population.send(batches[name])
                    spent[name].add(usage)
            for name, total in spent.items():
                peers[name].cpu_us.append(total.cpu_s / (messages * weight[name]) * 1e6)
                peers[name].wall_us.append(total.wall_s / (messages * weight[name]) * 1e6)
            progress(f"{label}: round {number_of_round + 1} of {rounds}")
        _check(peers)
    finally:
        gc.unfreeze()
        for peer in peers.values():
            await asyncio.to_thread(peer.close)
            await peer.population.stop()
    return peers


async def _make(name: str, agents: int, types: Sequence[MessageType]) -> Peer:
    population = Population(agents, agent_class(name, agents), types=types)
    await population.start()
    if name == FLOOR:
        return Peer(population, lambda: processed_by_hand(population.agents))
    if name != OURS:
        return Peer(population)
    instrumentation = (
        instrument_agent(population.agents[0], config=CONFIG)
        if agents == 1
        else instrument_orchestrator(population.orchestrator, config=CONFIG)
    )
    return Peer(population, lambda: processed_by_us(instrumentation), instrumentation.shutdown)


def processed_by_us(instrumentation: Instrumentation) -> int:
    """How many messages have all that is compared here: a count, a wait and a processing time."""
    readings = instrumentation.read()
    return sum(min(one.processed, one.wait_histogram.count, one.process_histogram.count) for one in readings)


def processed_by_hand(agents: Sequence[SimpleAgent]) -> int:
    """The same, by the plain integers."""
    floors = [agent for agent in agents if isinstance(agent, by_hand.PlainIntegers)]
    return sum(numbers.processed for floor in floors for numbers in floor.numbers.values())


def _check(peers: dict[str, Peer]) -> None:
    """Nothing is cheaper than an instrumentation that is not there: a peer that did not count is no peer."""
    for name, peer in peers.items():
        if peer.processed is not None and peer.processed() != peer.population.handled:
            raise RuntimeError(f"{name} counted {peer.processed()} messages of {peer.population.handled}")


def agent_class(name: str, agents: int) -> type[SimpleAgent]:
    if name == PROMETHEUS_CLIENT:
        return by_hand.prometheus_client_agent()
    if name == SDK:
        few = agents * len(TYPES) <= 2_000
        return by_hand.sdk_agent(InMemoryMetricReader() if few else by_hand.stock_reader(CollectorRegistry()))
    return {FLOOR: by_hand.PlainIntegers, INLINE: by_hand.InTheProgramsCode}.get(name, SimpleAgent)


def overheads(peers: dict[str, Peer]) -> dict[str, list[float]]:
    """µs of CPU time a message above uninstrumented, round by round."""
    return {name: differences(peer.cpu_us, peers[BARE].cpu_us) for name, peer in peers.items() if name != BARE}


def ratios_of(peers: dict[str, Peer]) -> dict[str, Summary]:
    above = overheads(peers)
    return {
        "ours_to_floor": ratio(above[OURS], above[FLOOR]),
        "sdk_to_ours": ratio(above[SDK], above[OURS]),
        "prometheus_client_to_ours": ratio(above[PROMETHEUS_CLIENT], above[OURS]),
    }


def table(peers: dict[str, Peer], caption: str) -> Table:
    above = overheads(peers)
    rows = tuple(
        (
            name,
            spread(summarize(peer.cpu_us)),
            number(summarize(peer.wall_us).median),
            spread(summarize(above[name])) if name in above else "",
            times(ratio(above[name], above[OURS])) if name in above else "",
        )
        for name, peer in peers.items()
    )
    return Table(("", "CPU, µs", "wall, µs", "overhead (CPU), µs", "overhead ÷ ours"), rows, caption)
