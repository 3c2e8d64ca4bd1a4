"""What tracing costs: a message without spans, and with them, ours and by hand; and a message that an agent sends.

Spans end in a processor that drops them: what exporters cost is theirs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from amptalk_otel import Instrumentation, instrument_agent, instrument_orchestrator
from amptalk_otel.demo.runtime import Message, MessageType, SimpleAgent
from tests.benchmarks import spans_by_hand
from tests.benchmarks.by_hand import PlainIntegers
from tests.benchmarks.harness import Summary, differences, ratio, summarize
from tests.benchmarks.messages import BARE, CONFIG, FLOOR, OURS, Peer, measure, processed_by_hand, processed_by_us
from tests.benchmarks.population import TYPES, Population, message
from tests.benchmarks.report import Result, Table, number, spread, times

BY_HAND = "SDK spans by hand"
WEIGHT = 5  # turns of rows without spans, where others have one: noise is large beside the little that they cost
_SURE = 6.0  # standard deviations that a share of sampled traces may be off


@dataclass(frozen=True)
class Sampling:
    """Which traces are sampled. `name` is that of its ratio, `what` that of its rows."""

    name: str
    what: str
    share: float
    within: bool = False  # a trace of the program's, instead of one for each message


SAMPLINGS = (
    Sampling("dropped", "unsampled", 0.0),
    Sampling("within", "in an unsampled trace", 0.0, within=True),
    Sampling("tenth", "10 % sampled", 0.1),
    Sampling("all", "100 % sampled", 1.0),
)


@dataclass(frozen=True)
class Row:
    """A way to watch a message, and, unless it makes no spans, which of them are sampled."""

    tool: str
    sampling: Sampling | None = None

    @property
    def name(self) -> str:
        if self.sampling is not None:
            return f"{self.tool}, {self.sampling.what}"
        return f"{OURS}, tracing off" if self.tool == OURS else self.tool

    @property
    def untraced(self) -> Row:
        """The same counters without spans."""
        return Row(FLOOR if self.tool == BY_HAND else self.tool)

    @property
    def beside(self) -> Row:
        """What it is held against."""
        return Row(FLOOR) if self.sampling is None else Row(BY_HAND, self.sampling)


ROWS = (
    *(Row(tool) for tool in (BARE, FLOOR, OURS)),
    *(Row(tool, sampling) for sampling in SAMPLINGS for tool in (BY_HAND, OURS)),
)


class Traffic(Population):
    """One agent that gets messages; with `sends`, from another agent, which is told to send them."""

    def __init__(
        self, kind: type[SimpleAgent], *, types: Sequence[MessageType], sends: bool, around: Tracer | None
    ) -> None:
        """`around`: makes a span in which all that `send` is given is put into the inbox, or sent."""
        super().__init__(2 if sends else 1, kind, types=types)
        self._sends = sends
        self._around = around
        self._receiver = self.agents[-1]
        if sends:
            self.orchestrator.connect_agents(self.agents[0].agent_id, self._receiver.agent_id)

    def ways(self) -> Sequence[Callable[[Message], Awaitable[object]]]:
        return [self.agents[0].send_message if self._sends else self._receiver.enqueue_message]

    def messages(self, number: int) -> list[Message]:
        return [message(self.types[index % len(self.types)], self._receiver.agent_id) for index in range(number)]

    async def send(self, messages: Sequence[Message]) -> None:
        with self._around.start_as_current_span("around") if self._around is not None else nullcontext():
            await super().send(messages)


class Dropping(SpanProcessor):
    """Drops all spans, and counts those that were sampled."""

    def __init__(self) -> None:
        self.spans = 0

    def on_end(self, span: ReadableSpan) -> None:
        self.spans += 1


class Block:
    """The rows of one table: messages that are put into an inbox, or that an agent sends to another."""

    def __init__(self, *, sends: bool) -> None:
        self.sends = sends
        self._dropping: dict[str, Dropping] = {}

    async def measure(self, *, rounds: int, messages: int) -> dict[str, Peer]:
        """All rows in turns. Raises RuntimeError where one did not make the spans that it had to.

        `messages` of a round, for each row with spans.
        """
        names = [row.name for row in ROWS]
        label = "sent" if self.sends else "put into the inbox"
        weights = {row.name: WEIGHT for row in ROWS if row.sampling is None}
        peers = await measure(
            names, 1, TYPES[:1], rounds=rounds, messages=messages, label=label, make=self.make, weights=weights
        )
        for row in ROWS:
            if row.sampling is not None:
                traces, spans = peers[row.name].population.handled, self._dropping[row.name].spans
                check_spans(row.name, spans / (2 if self.sends else 1), traces, row.sampling.share)
        return peers

    async def make(self, name: str, _agents: int, types: Sequence[MessageType]) -> Peer:
        """The peer of the row with this name, ready for messages."""
        row = next(row for row in ROWS if row.name == name)
        provider = self._provider(row)
        within = provider is not None and row.sampling is not None and row.sampling.within
        around = provider.get_tracer("program") if provider is not None and within else None
        traffic = Traffic(self._kind(row, provider), types=types, sends=self.sends, around=around)
        await traffic.start()
        if row.tool != OURS:
            return Peer(traffic, None if row.tool == BARE else partial(processed_by_hand, traffic.agents))
        instrumentation = (
            instrument_orchestrator(traffic.orchestrator, config=CONFIG, tracer_provider=provider)
            if self.sends
            else instrument_agent(traffic.agents[0], config=CONFIG, tracer_provider=provider)
        )
        return Peer(traffic, partial(self._counted_by_us, instrumentation), instrumentation.shutdown)

    def _provider(self, row: Row) -> TracerProvider | None:
        if row.sampling is None:
            return None
        sampler = ParentBased(TraceIdRatioBased(row.sampling.share))
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._dropping[row.name] = Dropping()
        provider.add_span_processor(self._dropping[row.name])
        return provider

    def _kind(self, row: Row, provider: TracerProvider | None) -> type[SimpleAgent]:
        if provider is not None and row.tool == BY_HAND:
            tracer = provider.get_tracer("by hand")
            return spans_by_hand.sending_agent(tracer) if self.sends else spans_by_hand.processing_agent(tracer)
        if row.tool == FLOOR:
            return spans_by_hand.SendingPlainIntegers if self.sends else PlainIntegers
        return SimpleAgent

    def _counted_by_us(self, instrumentation: Instrumentation) -> int:
        processed = processed_by_us(instrumentation)
        return min(processed, sum(one.sent for one in instrumentation.read())) if self.sends else processed


def check_spans(name: str, spans: float, traces: int, share: float) -> None:
    """As many as the sampler's share lets expect. Nothing is cheaper than spans that nobody makes."""
    due, deviation = traces * share, math.sqrt(traces * share * (1 - share))
    if abs(spans - due) > _SURE * deviation:
        raise RuntimeError(f"{name} made spans of {spans:,.1f} messages of {traces:,}, where {due:,.0f} were due")


def run(*, short: bool) -> Result:
    rounds, messages = (6, 1_500) if short else (12, 4_000)
    blocks = {
        sends: asyncio.run(Block(sends=sends).measure(rounds=rounds, messages=messages)) for sends in (False, True)
    }
    notes = (
        f"{messages:,} messages a round and row, {WEIGHT * messages:,} where no spans are made; {rounds} rounds.",
        "Sampler: `ParentBased(TraceIdRatioBased(share))`. Spans are dropped when they end. Each message begins a "
        "trace, but for the rows in an unsampled trace: there, all are put or sent within one span that is dropped.",
        f"{FLOOR}: as in the table of messages; of a message that is sent, sends are counted and timed as well: "
        f"{OURS} tells how long they wait.",
        f"{BY_HAND}: these same integers, and spans with `start_as_current_span`: `process`, in the context in which "
        "the message was put into the inbox; of a message that is sent, `send`, `propagate.inject` into the message, "
        "and `process` in what `propagate.extract` finds there. Names, kinds and attributes are ours, and attributes "
        "are put together only for a span that is recorded.",
        f"{OURS}: `instrument_agent`, and for sends `instrument_orchestrator`, with this `tracer_provider` and all "
        "metrics, which the integers by hand are a part of.",
        "The overhead is what a row's round costs above the uninstrumented round beside it, spans and counters "
        "together; what is for tracing is the cost above the same counters without spans.",
        "By hand means: SDK spans by hand with the same sampling; with tracing off, plain integers by hand.",
    )
    tables = (
        table(blocks[False], "A message that is put into an inbox: a `process` span"),
        table(blocks[True], "A message that an agent sends to another: a `send` span and a `process` span"),
    )
    return Result("tracing", tables, ratios_of(blocks[False]) | ratios_of(blocks[True], "sent."), notes)


def _overhead(peers: Mapping[str, Peer], row: Row, base: Row) -> list[float]:
    """µs of CPU time a message above another row, round by round."""
    return differences(peers[row.name].cpu_us, peers[base.name].cpu_us)


def _to_peer(peers: Mapping[str, Peer], row: Row) -> Summary:
    """The overhead above uninstrumented, of all that the row does, as a ratio to that of what it is held against."""
    return ratio(_overhead(peers, row, Row(BARE)), _overhead(peers, row.beside, Row(BARE)))


def ratios_of(peers: Mapping[str, Peer], prefix: str = "") -> dict[str, Summary]:
    """Ours to the floor where no spans are made, else ours to spans by hand with the same sampling."""
    found = {f"tracing.{prefix}off.ours_to_floor": _to_peer(peers, Row(OURS))}
    for sampling in SAMPLINGS:
        found[f"tracing.{prefix}{sampling.name}.ours_to_sdk"] = _to_peer(peers, Row(OURS, sampling))
    return found


def table(peers: Mapping[str, Peer], caption: str) -> Table:
    head = ("", "CPU, µs", "wall, µs", "overhead (CPU), µs", "of it for tracing, µs", "overhead ÷ by hand")
    return Table(head, tuple(_cells(peers, row) for row in ROWS), caption)


def _cells(peers: Mapping[str, Peer], row: Row) -> tuple[str, ...]:
    peer, bare = peers[row.name], Row(BARE)
    return (
        row.name,
        spread(summarize(peer.cpu_us)),
        number(summarize(peer.wall_us).median),
        spread(summarize(_overhead(peers, row, bare))) if row != bare else "",
        spread(summarize(_overhead(peers, row, row.untraced))) if row.sampling is not None else "",
        times(_to_peer(peers, row)) if row.tool == OURS else "",
    )
