"""The lines of the page: labels, numbers and histograms as prometheus_client writes them, for less time.

They are the same in the classic format and in OpenMetrics; only headers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

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
        if type(value) is int and 0 <= value < _PLAIN:  # most of them
            return f"{sample}{labels[0]} {value}.0\n"
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


class Column:
    """One family in the making: the samples of the pass under way."""

    def __init__(self, metric: Metric, family: Family) -> None:
        self.metric = metric
        self.family = family
        self.is_histogram: bool = metric.kind is Kind.HISTOGRAM
        self.write: Write = writer(metric, family)
        self.parts: list[str] = []
        self.chunks: list[bytes] = []

    def take(self) -> list[bytes]:
        """What was written, and begin anew."""
        chunks, self.parts, self.chunks = self.chunks, [], []
        return chunks

    @property
    def is_empty(self) -> bool:
        return not (self.parts or self.chunks)

    def flush(self, breathe: Callable[[], None]) -> None:
        """Join and encode what there is, in small pieces: nothing else runs meanwhile."""
        parts, step = self.parts, _SLICE_OF_HISTOGRAMS if self.is_histogram else _SLICE
        for start in range(0, len(parts), step):
            self.chunks.append("".join(parts[start : start + step]).encode("utf-8", "replace"))
            breathe()
        parts.clear()
