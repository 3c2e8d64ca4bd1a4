"""Measuring: rounds that take turns, CPU and wall time, medians with their spread."""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SEED = 20  # the order of the peers is shuffled, and the same in every run


@dataclass(frozen=True)
class Summary:
    """The median of some rounds, and between which values half of the rounds lie."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a share of the median; 0 where the median is 0."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0

    def scaled(self, factor: float) -> Summary:
        return Summary(self.median * factor, self.low * factor, self.high * factor, self.rounds)


def summarize(values: Sequence[float]) -> Summary:
    """Median and quartiles. Raises ValueError for no values."""
    if not values:
        raise ValueError("there is no median of nothing")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high, len(values))


def exactly(value: float) -> Summary:
    """A value that was counted, not measured."""
    return Summary(float(value), float(value), float(value), 1)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Summary:
    """The ratio of two peers, round by round: what disturbs a whole round disturbs both alike.

    Rounds whose denominator is not positive (an overhead lost in noise) say nothing and are left out. Raises
    ValueError where none is left.
    """
    pairs = zip(numerators, denominators, strict=True)
    return summarize([above / below for above, below in pairs if below > 0])


def differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """What each round costs above the same round of `base`."""
    return [value - other for value, other in zip(values, base, strict=True)]


def quantile(ordered: Sequence[float], q: float) -> float:
    """The smallest of the sorted values that a share `q` of them does not exceed."""
    if not ordered:
        raise ValueError("there is no quantile of nothing")
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


# -- time ----------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """What a piece of work took. CPU time is that of all threads of this process, in user and kernel mode."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    def add(self, other: Usage) -> None:
        self.cpu_s += other.cpu_s
        self.wall_s += other.wall_s


@contextmanager
def measured() -> Iterator[Usage]:
    """Measure a block. Its `Usage` is filled in when the block ends."""
    usage = Usage()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield usage
    finally:
        usage.cpu_s = time.process_time() - cpu
        usage.wall_s = time.perf_counter() - wall


def kept_by_the_host_s(stat: Path = Path("/proc/stat")) -> float:
    """Seconds for which a virtual machine had work to do and was not run, of all CPUs together; 0.0 where nobody tells.

    It is `steal` of proc(5). A program can't be blamed for what happens meanwhile.
    """
    try:
        fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError, AttributeError):
        return 0.0


# -- rounds --------------------------------------------------------------------------------------------


def turns(peers: Sequence[str], number: int) -> Iterator[tuple[str, ...]]:
    """The peers, `number` times, each time in another order."""
    order = random.Random(_SEED)
    for _ in range(number):
        yield tuple(order.sample(peers, len(peers)))


def progress(text: str) -> None:
    """Say on stderr what is being done."""
    print(f"  {text}", file=sys.stderr, flush=True)
