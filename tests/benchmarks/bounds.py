"""What the benchmarks must show, and how far a later run may fall behind what was recorded.

Two limits for each ratio. The *required* one is a promise: the full form fails when it is broken. The *recorded* one
is what the full form measured on one quiet machine (`--record` writes it to recorded.json): both forms fail when a
ratio is worse than that by more than its margin.

The margin comes from the spread of the recording: `SPREADS` times the distance of its quartiles, but never under
`LEAST_MARGIN` (another machine, another Python; and whole runs on one machine were seen to differ by a third) nor over
`GREATEST_MARGIN` (else it would catch nothing). In the short form it is `SHORT_MARGIN`: with its few rounds, peers
were seen to differ by a factor of 1.8 from one hour to the next (prometheus_client ÷ ours at a scrape: 6.6 to 12.1,
while ours took the same time). It catches what got more than twice as slow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.harness import Summary
from tests.benchmarks.report import TIMES, Table, number, spread

SPREADS = 3.0
LEAST_MARGIN = 0.5
GREATEST_MARGIN = 0.6
SHORT_MARGIN = 1.2
RECORDED_FILE = Path(__file__).with_name("recorded.json")


@dataclass(frozen=True)
class Bound:
    """One promise, or (without `required`) one ratio that must not get worse.

    `recordable` is False for counts and for milliseconds above an idle loop: the promise itself is their bound, as
    there is no sensible share of a number around 0. The short form has few rounds, so it widens a promise by
    `short_slack` where it has nothing recorded to go by; with None it shows the number and does not judge it: what
    a few seconds on a shared machine say of milliseconds is mostly about the machine.
    """

    name: str
    what: str
    required: float | None
    at_most: bool = False
    unit: str = TIMES
    recordable: bool = True
    short_slack: float | None = 0.5

    def worse(self, value: float, limit: float) -> bool:
        return value > limit if self.at_most else value < limit

    def widened(self, limit: float, share: float) -> float:
        """`limit`, a share further away."""
        return limit * (1 + share) if self.at_most else limit / (1 + share)


@dataclass(frozen=True)
class Recorded:
    """A ratio that was measured, its spread (distance of the quartiles as a share), and the margin from it."""

    value: float
    spread: float
    margin: float

    @classmethod
    def of(cls, summary: Summary) -> Recorded:
        return cls(round(summary.median, 4), round(summary.spread, 4), round(margin_of(summary.spread), 3))


def margin_of(spread_share: float) -> float:
    """How much worse than recorded is still right, as a share."""
    return min(GREATEST_MARGIN, max(LEAST_MARGIN, SPREADS * spread_share))


BOUNDS: tuple[Bound, ...] = (
    Bound("messages.ours_to_floor", "a message, one type: ours ÷ plain integers by hand", 1.3, at_most=True),
    Bound("messages.sdk_to_ours", "a message, one type: SDK by hand ÷ ours", 15.0),
    Bound("messages.prometheus_client_to_ours", "a message, one type: prometheus_client by hand ÷ ours", 4.0),
    Bound("messages.types.ours_to_floor", "a message, eight types: ours ÷ plain integers by hand", 1.3, at_most=True),
    Bound("messages.types.sdk_to_ours", "a message, eight types: SDK by hand ÷ ours", 15.0),
    Bound("messages.types.prometheus_client_to_ours", "a message, eight types: prometheus_client by hand ÷ ours", 4.0),
    # The same promise as without a sampler in sight: who does not trace pays nothing for those who do.
    Bound("tracing.off.ours_to_floor", "a message, tracing off: ours ÷ plain integers by hand", 1.3, at_most=True),
    Bound("tracing.dropped.ours_to_sdk", "a message, its trace not sampled: ours ÷ SDK spans by hand", None,
          at_most=True),
    Bound("tracing.within.ours_to_sdk", "a message within an unsampled trace: ours ÷ SDK spans by hand", None,
          at_most=True),
    Bound("tracing.tenth.ours_to_sdk", "a message, 10 % sampled: ours ÷ SDK spans by hand", None, at_most=True),
    Bound("tracing.all.ours_to_sdk", "a message, 100 % sampled: ours ÷ SDK spans by hand", None, at_most=True),
    Bound("tracing.sent.off.ours_to_floor", "a message sent, tracing off: ours ÷ plain integers by hand", 1.3,
          at_most=True),
    Bound("tracing.sent.dropped.ours_to_sdk", "a message sent, its trace not sampled: ours ÷ SDK spans by hand", None,
          at_most=True),
    Bound("tracing.sent.within.ours_to_sdk", "a message sent within an unsampled trace: ours ÷ SDK spans by hand", None,
          at_most=True),
    Bound("tracing.sent.tenth.ours_to_sdk", "a message sent, 10 % sampled: ours ÷ SDK spans by hand", None,
          at_most=True),
    Bound("tracing.sent.all.ours_to_sdk", "a message sent, 100 % sampled: ours ÷ SDK spans by hand", None,
          at_most=True),
    Bound("scrape.stock_to_ours", "a scrape of 1,000 agents: stock reader ÷ ours", 12.0),
    Bound("scrape.prometheus_client_to_ours", "a scrape of 1,000 agents: prometheus_client ÷ ours", 8.0),
    # Not promised: zlib's work comes on top, a third of ours, and it is the same for all.
    Bound("scrape.gzip.stock_to_ours", "the same, compressed: stock reader ÷ ours", None),
    Bound("scrape.gzip.prometheus_client_to_ours", "the same, compressed: prometheus_client ÷ ours", None),
    Bound("scrape.linear", "a scrape per agent: of 10,000 ÷ of 1,000", 1.5, at_most=True),
    Bound("export.stock_to_ours", "an OTLP export of 1,000 agents: stock path ÷ ours", 2.0),
    Bound("loop_delay.quiet.p99", "loop delay above idle, p99", 1.0, at_most=True, unit="ms", recordable=False,
          short_slack=None),
    Bound("loop_delay.quiet.max", "loop delay above idle, max", 5.0, at_most=True, unit="ms", recordable=False,
          short_slack=None),
    Bound("loop_delay.loaded.p99", "loop delay above idle, under load, p99", 1.0, at_most=True, unit="ms",
          recordable=False, short_slack=None),
    Bound("loop_delay.loaded.max", "loop delay above idle, under load, max", 5.0, at_most=True, unit="ms",
          recordable=False, short_slack=None),
    Bound("memory.sdk_to_ours", "memory for an agent's series: SDK ÷ ours", 3.0),
    Bound("memory.prometheus_client_to_ours", "memory for an agent's series: prometheus_client ÷ ours", None),
    Bound("memory.all.sdk_to_ours", "the same with our wrappers: SDK ÷ ours", None),
    Bound("churn.wrong", "agents that come and go: values that were wrong, missing or left over", 0.0, at_most=True,
          unit="", recordable=False, short_slack=0.0),
    Bound("churn.overflow", "agents that come and go: overflow series", 0.0, at_most=True, unit="", recordable=False,
          short_slack=0.0),
    Bound("churn.memory", "agents that come and go: memory at the end ÷ after a quarter", 1.1, at_most=True,
          recordable=False),
    Bound("imports.heavy", "heavy modules that are imported before they are needed", 0.0, at_most=True, unit="",
          recordable=False, short_slack=0.0),
    Bound("imports.ours_to_sdk", "import: amptalk_otel ÷ opentelemetry.sdk.metrics", None, at_most=True),
)  # fmt: skip


def load(path: Path = RECORDED_FILE) -> dict[str, Recorded]:
    """What was recorded, by name; nothing where there is no file."""
    if not path.exists():
        return {}
    return {name: Recorded(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}


def record(ratios: Mapping[str, Summary], path: Path = RECORDED_FILE) -> dict[str, Recorded]:
    """Write the ratios that can be recorded; those that were not measured now stay as they are."""
    recordable = [bound.name for bound in BOUNDS if bound.recordable]
    known = load(path) | {name: Recorded.of(ratios[name]) for name in recordable if name in ratios}
    kept = {name: known[name] for name in recordable if name in known}
    text = json.dumps({name: asdict(entry) for name, entry in kept.items()}, indent=2)
    path.write_text(f"{text}\n", encoding="utf-8")
    return kept


def described(recorded: Recorded) -> str:
    """A record in words."""
    spread_and_margin = f"spread {recorded.spread:.1%}, so a margin of {recorded.margin:.0%}"
    return f"{number(recorded.value)} {TIMES}, {spread_and_margin}"


def violation(bound: Bound, value: float, recorded: Recorded | None, *, short: bool) -> str | None:
    """What is wrong with a measured value, in a sentence; None where nothing is."""
    if recorded is not None and bound.recordable:
        margin = max(recorded.margin, SHORT_MARGIN) if short else recorded.margin
        limit = bound.widened(recorded.value, margin)
        if bound.worse(value, limit):
            return _sentence(bound, value, limit, f"recorded {number(recorded.value)}, margin {margin:.0%}")
        if short:
            return None
    if bound.required is None:
        return None
    if short and bound.short_slack is None:
        return None
    limit = bound.widened(bound.required, bound.short_slack or 0.0) if short else bound.required
    return _sentence(bound, value, limit, "required") if bound.worse(value, limit) else None


def _sentence(bound: Bound, value: float, limit: float, origin: str) -> str:
    relation = "at most" if bound.at_most else "at least"
    return f"{bound.what}: {number(value)} {bound.unit}, {relation} {number(limit)} is allowed ({bound.name}, {origin})"


def violations(ratios: Mapping[str, Summary], recorded: Mapping[str, Recorded], *, short: bool) -> list[str]:
    """All that is wrong. What was not measured is not judged."""
    found = [
        violation(bound, ratios[bound.name].median, recorded.get(bound.name), short=short)
        for bound in BOUNDS
        if bound.name in ratios
    ]
    return [sentence for sentence in found if sentence is not None]


def table(ratios: Mapping[str, Summary]) -> Table:
    """Promised and measured, side by side."""
    rows = tuple(
        (bound.what, _promise(bound), f"{spread(ratios[bound.name])} {bound.unit}".strip())
        for bound in BOUNDS
        if bound.name in ratios
    )
    return Table(("what", "required", "measured"), rows)


def _promise(bound: Bound) -> str:
    if bound.required is None:
        return "no worse than before"
    if not bound.required:
        return "none"
    return f"at {'most' if bound.at_most else 'least'} {number(bound.required)} {bound.unit}"
