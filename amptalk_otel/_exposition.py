"""The metrics page: our families and the program's own, made in one pass for all who ask at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as StockFamily

from amptalk_otel._catalogue import Snapshot
from amptalk_otel._families import EOF, Families, Family, page_of
from amptalk_otel._guard import complain, guarded, swallow
from amptalk_otel._lines import Chunk, labels
from amptalk_otel._pace import Pace
from amptalk_otel._rendering import Renderer
from amptalk_otel._system import System
from amptalk_otel._turns import Turns
from amptalk_otel._version import SCOPE_NAME, __version__

SCOPE_LABELS: Mapping[str, str] = {
    "otel_scope_name": SCOPE_NAME,
    "otel_scope_version": __version__,
    "otel_scope_schema_url": "",
}
"""https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#instrumentation-scope"""

_CHUNK_BYTES = 1 << 17  # small enough to be copied in no time, large enough for few system calls
_LARGE_BYTES = 1 << 14


@dataclass(frozen=True)
class _Block:
    """A family with its samples as encoded lines."""

    family: Family
    chunks: list[Chunk]


class MetricsPage:
    """Renders what `snapshot` reads, and what `others` collects, as Prometheus text."""

    def __init__(
        self,
        snapshot: Callable[[Callable[[], None]], Snapshot],
        system: System,
        *,
        resource_attributes: Mapping[str, Any],
        scope_labels: bool = False,
        others: CollectorRegistry | None = None,
    ) -> None:
        """`snapshot` calls the function that it is given once per agent, to let the event loop go on.

        `others` holds families that are none of ours; they come after ours on the page.
        """
        self._snapshot = snapshot
        self._others = others
        families = Families(resource_attributes)
        info = f"{''.join(families.target.samples)}{labels(families.target_labels)[0]} 1.0\n"
        self._target = _Block(families.target, [_alike(info.encode("utf-8", "replace"))])
        self._renderer = Renderer(families.by_metric, system, SCOPE_LABELS if scope_labels else {})
        self._passes: Turns[tuple[list[_Block], list[StockFamily]]] = Turns(self._pass)

    def pages(self, openmetrics: bool, names: frozenset[str] = frozenset()) -> list[bytes]:  # noqa: FBT001
        """The page in pieces of about 128 KB; with `names`, only the samples of these names.

        Nothing on it is older than the call. One pass over the agents answers all who asked before it began, whatever
        format and names they want: any number of scrapes at once waits for the pass under way, and costs one more.
        """
        ours, others = self._passes.share()
        blocks = _Blocks(openmetrics=openmetrics, names=names)
        if ours or others:  # as the stock exporter does, which tells nothing before there is something
            blocks.add(self._target)
        for block in ours:
            blocks.add(block)
        for family in others:
            guarded(f"writing {family.name}", blocks.add_stock, family)
        return list(_in_chunks(blocks.pieces(), Pace().breathe))

    def _pass(self) -> tuple[list[_Block], list[StockFamily]]:
        pace = Pace()
        self._renderer.render(self._snapshot(pace.breathe), pace.breathe)
        ours = [_Block(column.family, column.take()) for column in self._renderer.columns]
        return [block for block in ours if block.chunks], self._collect_others()

    def _collect_others(self) -> list[StockFamily]:
        """Nothing where that fails: what is not ours does not cost us our page."""
        try:
            return [family for family in self._others.collect() if family.samples] if self._others else []
        except BaseException:  # a callback's cancellation or exit: in this thread it is nobody's
            swallow("reading the program's own instruments")
            return []


class _Blocks:
    """The families of one page, each once."""

    def __init__(self, *, openmetrics: bool, names: frozenset[str]) -> None:
        self._openmetrics = openmetrics
        self._format = Chunk._fields.index("openmetrics" if openmetrics else "classic")
        self._names = names
        self._blocks: dict[str, tuple[Family, list[bytes]]] = {}
        self._taken: set[str] = set()  # names of families and of samples

    def add(self, block: _Block) -> None:
        self._add(block.family, [chunk[self._format] for chunk in block.chunks])

    def _add(self, family: Family, lines: list[bytes]) -> None:
        wanted = self._wanted(family, lines)
        if wanted:
            self._blocks[family.name] = family, wanted
            self._taken.update((family.name, *family.samples))

    def add_stock(self, family: StockFamily) -> None:
        """A family of somebody else's. Where there is one of its name and type, that one has its samples as well."""
        names = tuple(dict.fromkeys(sample.name for sample in family.samples))
        header, samples = _divided(page_of(family, openmetrics=self._openmetrics))
        known, lines = self._blocks.get(family.name, (None, []))
        if known is not None and known.kind == family.type:
            lines.extend(self._wanted(known, [samples]))
        elif self._taken.isdisjoint((family.name, *names)):
            self._add(Family(family.name, family.type, names, header, header), [samples])
        else:
            complain(f"family {family.name}", "%s is on the metrics page with another type; left out", family.name)

    def _wanted(self, family: Family, lines: list[bytes]) -> list[bytes]:
        return _restricted(family, lines, self._names) if self._names else lines

    def pieces(self) -> Iterator[bytes]:
        for family, lines in self._blocks.values():
            yield family.openmetrics if self._openmetrics else family.classic
            yield from lines
        if self._openmetrics:
            yield EOF


def _alike(lines: bytes) -> Chunk:
    return Chunk(lines, lines)


def _divided(page: bytes) -> tuple[bytes, bytes]:
    """A family's header and its samples."""
    lines = _lines(page)
    header = [line for line in lines if line.startswith(b"# ")]
    return b"".join(header), b"".join(line for line in lines if not line.startswith(b"# "))


def _restricted(family: Family, chunks: list[bytes], names: frozenset[str]) -> list[bytes]:
    """The lines of samples of these names, as prometheus_client's `restricted_registry` leaves them."""
    wanted = names.intersection(family.samples)
    if len(wanted) == len(family.samples):
        return chunks
    starts = tuple(f"{name}{then}".encode() for name in wanted for then in "{ ")
    return [b"".join(line for line in _lines(chunk) if line.startswith(starts)) for chunk in chunks if starts]


def _lines(chunk: bytes) -> list[bytes]:
    """Not `splitlines`: a label may hold a carriage return, which the format does not escape."""
    return [line + b"\n" for line in chunk.split(b"\n") if line]


def _in_chunks(pieces: Iterable[bytes], breathe: Callable[[], None]) -> Iterator[bytes]:
    """The same bytes in fewer pieces. Large ones are not copied: in all that would take milliseconds."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        is_large = len(piece) >= _LARGE_BYTES
        if gathered and (is_large or size + len(piece) > _CHUNK_BYTES):
            yield b"".join(gathered)
            gathered, size = [], 0
        if is_large:
            yield piece
        else:
            gathered.append(piece)
            size += len(piece)
        breathe()
    if gathered:
        yield b"".join(gathered)
