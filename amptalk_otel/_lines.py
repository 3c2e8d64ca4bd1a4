"""The lines of the page: labels, numbers and histograms as prometheus_client writes them, for less time.

They are the same in the classic format and in OpenMetrics, but for exemplars, which only OpenMetrics has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import utils

from amptalk_otel._buckets import Distribution
from amptalk_otel._catalogue import Attributes, Kind, Metric
from amptalk_otel._families import Family, label_name

Labels = tuple[str, str, str]
"""The labels of one series: all of them in braces, or nothing at all; those that sort before `le`, each with a comma
behind it; those that sort behind `le`, each with a comma before it."""

Write = Callable[[Labels, Any], str]

any_number: Callable[[float], str] = utils.floatToGoString  # untyped

_PLAIN = 1_000_000  # from here on Go, and so prometheus_client, writes numbers with an exponent
_COUNTS_KEPT = 10_000
_MIDDLES_KEPT = 200
_SLICE = 512
_SLICE_OF_HISTOGRAMS = 32  # samples that are joined and encoded in one piece, which are about 100 KB


class Shape:
    """The labels of a family. All its series have them all: those that a series lacks are empty."""

    def __init__(self, attributes: Iterable[str]) -> None:
        self._names = sorted((label_name(attribute), attribute) for attribute in attributes)

    def values(self, attributes: Attributes) -> tuple[str, ...]:
        return tuple([attributes.get(attribute, "") for _label, attribute in self._names])

    def labels(self, attributes: Attributes) -> Labels:
        return labels({label: attributes.get(attribute, "") for label, attribute in self._names})


def labels(values: Mapping[str, str]) -> Labels:
    """Sorted by name; backslashes, quotes and line feeds are escaped, and nothing else."""
    pairs = [(name, f'{name}="{_escaped(value)}"') for name, value in sorted(values.items())]
    return (
        f"{{{','.join(pair for _name, pair in pairs)}}}" if pairs else "",
        "".join(f"{pair}," for name, pair in pairs if name < "le"),
        "".join(f",{pair}" for name, pair in pairs if name > "le"),
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def number(value: float) -> str:
    """As prometheus_client writes it; the usual ones in a third of the time."""
    if 0 <= value < _PLAIN:
        if type(value) is int:
            return f"{value}.0"
        if type(value) is float:
            return repr(value)
    return any_number(value)


class _Counts(dict[int, str]):
    """Lines' ends by count. Most buckets of a histogram have the count of the one before, and many agents the same."""

    def __missing__(self, count: int) -> str:
        if len(self) >= _COUNTS_KEPT:
            self.clear()
        text = self[count] = f" {number(count)}\n"
        return text


_end_of = _Counts().__getitem__


def writer(metric: Metric, family: Family) -> Write:
    """What writes all lines of a series of `metric`."""
    if metric.kind is Kind.HISTOGRAM:
        return _histogram_writer(metric.bounds or (), *family.samples)
    (sample,) = family.samples

    def write(labels: Labels, value: float) -> str:
        if 0 <= value < _PLAIN:  # as `number` has it, for most of them
            if type(value) is int:
                return f"{sample}{labels[0]} {value}.0\n"
            if type(value) is float:
                return f"{sample}{labels[0]} {value!r}\n"
        return f"{sample}{labels[0]} {number(value)}\n"

    return write


def _histogram_writer(bounds: tuple[float, ...], bucket: str, count: str, total: str) -> Write:
    size = 3 * len(bounds) + 3
    middles: dict[str, list[str]] = {}  # `le` and what comes behind, by that

    def middles_of(after: str) -> list[str]:
        if len(middles) >= _MIDDLES_KEPT:  # only message types and orchestrators differ: few
            middles.clear()
        found = middles[after] = [f'le="{bound}"{after}}}' for bound in (*bounds, "+Inf")]
        return found

    def write(labels: Labels, value: Distribution) -> str:
        """One join of three pieces a line, all made before. `%` with a template of 22 lines takes twice as long."""
        everything, before, after = labels
        pieces = [f"{bucket}{{{before}"] * size
        pieces[1::3] = middles.get(after) or middles_of(after)
        pieces[2::3] = map(_end_of, accumulate(value.counts))
        pieces.append(f"{count}{everything}{pieces[-1]}{total}{everything} {number(value.sum)}\n")
        return "".join(pieces)

    return write


def with_exemplars(lines: str, distribution: Distribution) -> str:
    """The lines of a histogram with its exemplars, as OpenMetrics has them behind the buckets that they fell into.

    https://prometheus.io/docs/specs/om/open_metrics_spec/#exemplars; for the names of the labels see
    https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#exemplars.
    """
    written = lines.split("\n")
    for value, time_ns, trace_id, span_id in distribution.exemplars:
        of = f'{{trace_id="{trace_id:032x}",span_id="{span_id:016x}"}}'
        written[bisect_left(distribution.bounds, value)] += f" # {of} {value!r} {time_ns / 1e9!r}"
    return "\n".join(written)


class Chunk(NamedTuple):
    """Encoded lines in both formats: the same object where there are no exemplars."""

    classic: bytes
    openmetrics: bytes


class Column:
    """One family in the making: the samples of the pass under way."""

    def __init__(self, metric: Metric, family: Family) -> None:
        self.metric = metric
        self.family = family
        self.is_histogram: bool = metric.kind is Kind.HISTOGRAM
        self.parts: list[str] = []
        self.chunks: list[Chunk] = []
        self.write: Write = self._exemplified(writer(metric, family)) if self.is_histogram else writer(metric, family)
        self._exemplified_parts: dict[int, str] = {}  # those with exemplars, by index

    def _exemplified(self, write: Write) -> Write:
        def write_both(labels: Labels, value: Distribution) -> str:
            """The classic lines, which are the next part; those with exemplars are remembered for it."""
            lines = write(labels, value)
            if value.exemplars:
                self._exemplified_parts[len(self.parts)] = with_exemplars(lines, value)
            return lines

        return write_both

    def take(self) -> list[Chunk]:
        """What was written, and begin anew."""
        chunks, self.parts, self.chunks = self.chunks, [], []
        return chunks

    @property
    def is_empty(self) -> bool:
        return not (self.parts or self.chunks)

    def flush(self, breathe: Callable[[], None]) -> None:
        """Join and encode what there is, in small pieces: nothing else runs meanwhile."""
        parts, step = self.parts, _SLICE_OF_HISTOGRAMS if self.is_histogram else _SLICE
        exemplified = self._exemplified_parts
        for start in range(0, len(parts), step):
            classic = openmetrics = _encoded(parts[start : start + step])
            breathe()
            if exemplified:
                indices = range(start, min(start + step, len(parts)))
                openmetrics = _encoded([exemplified.get(index) or parts[index] for index in indices])
                breathe()
            self.chunks.append(Chunk(classic, openmetrics))
        parts.clear()
        exemplified.clear()


def _encoded(parts: list[str]) -> bytes:
    return "".join(parts).encode("utf-8", "replace")
