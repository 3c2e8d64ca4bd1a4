"""Explicit-bucket histograms as plain lists: what the hot path writes and what readers compute from it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from amptalk_otel._exact_sum import exact_sum

DURATION_BOUNDS_S: tuple[float, ...] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Upper bounds of every duration histogram, in seconds: 0.5 ms to 10 min.

OpenTelemetry's default bounds (0, 5, 10, 25 …) are made for milliseconds; in seconds, the unit that
the specification asks for, they would put all fast messages into one bucket. An agent that waits for
a model or a person takes minutes, so the upper end reaches 10 min.
"""

SIZE_BOUNDS_BYTES: tuple[float, ...] = (
    64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
)  # fmt: skip
"""Upper bounds of message sizes, in bytes: 64 B to 16 MiB, each four times the one before."""


Exemplar = tuple[float, int, int, int]
"""A value that was observed, when (nanoseconds since the epoch), and the ids of trace and span in which it was."""

NO_EXEMPLARS: dict[int, Exemplar] = {}
"""In place of a dictionary that has none yet. Not to be written to."""


class BucketCounts:
    """A histogram that one thread writes and any thread may copy.

    A bound is the inclusive upper end of its bucket, as in OpenTelemetry's data model; the last bucket
    has no upper end. Cost of `record`: one bisection and two additions.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = NO_EXEMPLARS  # by index of the bucket

    def record(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def exemplify(self, value: float, time_ns: int, trace_id: int, span_id: int) -> None:
        """Remember where a value that was recorded comes from. The last of each bucket stays."""
        if self.exemplars is NO_EXEMPLARS:
            self.exemplars = {}
        self.exemplars[bisect_left(self.bounds, value)] = value, time_ns, trace_id, span_id

    def absorb(self, other: BucketCounts) -> None:
        """Add what another histogram of the same bounds holds."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum = exact_sum(self.sum, other.sum)

    def copy(self) -> Distribution:
        return Distribution(self.bounds, tuple(self.counts), self.sum)

    def copy_exemplars(self) -> tuple[Exemplar, ...]:
        """The last of each bucket that has one, by bucket."""
        found = self.exemplars
        return tuple([exemplar for _index, exemplar in sorted(found.copy().items())]) if found else ()


@dataclass(slots=True, unsafe_hash=True)
class Distribution:
    """What a histogram held when it was read. Not to be changed.

    `+` adds two, `-` tells what was observed since an earlier reading of the same one; both raise ValueError for
    other bounds.

    Nor frozen: to make one would take two to five times as long, and every scrape makes thousands.
    """

    bounds: tuple[float, ...]
    """Inclusive upper ends of the buckets, ascending: seconds or bytes."""
    counts: tuple[int, ...]
    """Values in each bucket, not cumulative. There is one more than bounds: the last is of what is larger."""
    sum: float
    """All values added up, in the unit of the bounds."""
    exemplars: tuple[Exemplar, ...] = field(default=(), compare=False)
    """At most one of each bucket, by bucket."""

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> Distribution:
        return cls(bounds, (0,) * (len(bounds) + 1), 0.0)

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def __add__(self, other: Distribution) -> Distribution:
        self._check_bounds(other)
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return Distribution(self.bounds, counts, exact_sum(self.sum, other.sum), self._latest(other))

    def _latest(self, other: Distribution) -> tuple[Exemplar, ...]:
        """The exemplars of both, the later one of each bucket."""
        if not self.exemplars or not other.exemplars:
            return self.exemplars or other.exemplars
        by_time = sorted((*self.exemplars, *other.exemplars), key=lambda exemplar: exemplar[1])
        found = {bisect_left(self.bounds, exemplar[0]): exemplar for exemplar in by_time}
        return tuple(exemplar for _index, exemplar in sorted(found.items()))

    def __sub__(self, earlier: Distribution) -> Distribution:
        """What was observed since `earlier`, a former reading of the same histogram."""
        self._check_bounds(earlier)
        counts = tuple(mine - theirs for mine, theirs in zip(self.counts, earlier.counts, strict=True))
        return Distribution(self.bounds, counts, self.sum - earlier.sum)

    def _check_bounds(self, other: Distribution) -> None:
        if self.bounds != other.bounds:
            raise ValueError("histograms with different bounds can't be added or subtracted")

    def quantile(self, q: float) -> float | None:
        """The q-quantile, in the unit of the bounds, interpolated in its bucket as PromQL's `histogram_quantile` does.

        None where nothing was observed; the highest bound where the quantile lies beyond it. Values below the lowest
        bound (0.5 ms for durations) can't be told apart: a quantile there is an interpolation between 0 and that
        bound, not a measurement. Raises ValueError for `q` outside of 0 to 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1, not {q}")
        rank = q * self.count
        below = 0
        for index, count in enumerate(self.counts[:-1]):
            if count and below + count >= rank:
                lower = self.bounds[index - 1] if index else 0.0
                return lower + (self.bounds[index] - lower) * (rank - below) / count
            below += count
        return self.bounds[-1] if self.count else None
