"""Differences between exports: exact, never negative, and only for who prefers them."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import Counter, ObservableCounter, ObservableGauge, ObservableUpDownCounter
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)

from amptalk_otel._deltas import Deltas

CUMULATIVE, DELTA = AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA
PREFERENCES: dict[str, dict[type, AggregationTemporality]] = {  # of OpenTelemetry's OTLP exporters
    "cumulative": {Counter: CUMULATIVE, HistogramInstrument: CUMULATIVE, ObservableCounter: CUMULATIVE,
                   ObservableUpDownCounter: CUMULATIVE, ObservableGauge: CUMULATIVE},
    "delta": {Counter: DELTA, HistogramInstrument: DELTA, ObservableCounter: DELTA,
              ObservableUpDownCounter: CUMULATIVE, ObservableGauge: CUMULATIVE},
    "lowmemory": {Counter: DELTA, HistogramInstrument: DELTA, ObservableCounter: CUMULATIVE,
                  ObservableUpDownCounter: CUMULATIVE, ObservableGauge: CUMULATIVE},
}  # fmt: skip


def number(value: float, *, start: int = 0, time: int, **attributes: str) -> NumberDataPoint:
    return NumberDataPoint(attributes, start, time, value)


def histogram(counts: tuple[int, ...], sum_: float, *, start: int = 0, time: int) -> Metric:
    unknown: Any = None
    point = HistogramDataPoint({"who": "a"}, start, time, sum(counts), sum_, counts, (1.0, 2.0), unknown, unknown)
    return Metric("h", "", "s", Histogram([point], CUMULATIVE))


def counter(*points: NumberDataPoint, monotonic: bool = True) -> Metric:
    return Metric("c" if monotonic else "u", "", "1", Sum(points, CUMULATIVE, monotonic))


def told(metrics: list[Metric]) -> dict[str, list[tuple[Any, ...]]]:
    """(start, time, value) of each point; of a histogram (start, time, counts, sum)."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for metric in metrics:
        for point in metric.data.data_points:
            what = (point.value,) if isinstance(point, NumberDataPoint) else (point.bucket_counts, point.sum)  # type: ignore[union-attr]
            found.setdefault(metric.name, []).append((point.start_time_unix_nano, point.time_unix_nano, *what))
    return found


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ("cumulative", {"c": CUMULATIVE, "u": CUMULATIVE, "h": CUMULATIVE}),
        ("delta", {"c": DELTA, "u": CUMULATIVE, "h": DELTA}),
        ("lowmemory", {"c": CUMULATIVE, "u": CUMULATIVE, "h": DELTA}),
    ],
)
def test_each_kind_is_told_as_the_exporter_prefers_it(
    preference: str, expected: dict[str, AggregationTemporality]
) -> None:
    deltas = Deltas(PREFERENCES[preference])
    gauge = Metric("g", "", "1", Gauge([number(7.0, time=1)]))
    metrics = [
        counter(number(1, time=1)),
        counter(number(2, time=1), monotonic=False),
        histogram((1, 0, 0), 0.5, time=1),
    ]
    *converted, same = deltas.convert([*metrics, gauge])
    assert {metric.name: metric.data.aggregation_temporality for metric in converted} == expected  # type: ignore[union-attr]
    assert same is gauge


def test_a_counter_tells_what_came_since_the_last_export() -> None:
    deltas = Deltas(PREFERENCES["delta"])
    values = [(10, 3), (20, 3), (30, 10)]
    found = [told(deltas.convert([counter(number(value, time=time))])) for time, value in values]
    assert found == [{"c": [(0, 10, 3)]}, {"c": [(10, 20, 0)]}, {"c": [(20, 30, 7)]}]


def test_a_histogram_tells_what_came_since_the_last_export_and_nothing_if_nothing_came() -> None:
    deltas = Deltas(PREFERENCES["delta"])
    held = [(10, (1, 0, 2), 0.5), (20, (1, 0, 2), 0.5), (30, (1, 4, 3), 8.25)]
    found = [told(deltas.convert([histogram(counts, sum_, time=time)])) for time, counts, sum_ in held]
    assert found == [{"h": [(0, 10, (1, 0, 2), 0.5)]}, {}, {"h": [(20, 30, (0, 4, 1), 7.75)]}]
    assert sum(point[2][2] for each in found for point in each.get("h", [])) == 3


def test_a_series_that_began_anew_is_told_whole() -> None:
    deltas = Deltas(PREFERENCES["delta"])
    deltas.convert([counter(number(9, time=10)), histogram((9, 0, 0), 1.0, time=10)])
    found = told(deltas.convert([counter(number(2, start=10, time=20)), histogram((1, 0, 0), 0.5, start=10, time=20)]))
    assert found == {"c": [(10, 20, 2)], "h": [(10, 20, (1, 0, 0), 0.5)]}


def test_series_are_told_apart_and_forgotten_when_they_go() -> None:
    deltas = Deltas(PREFERENCES["delta"])
    deltas.convert([counter(number(1, time=10, who="a"), number(5, time=10, who="b"))])
    assert told(deltas.convert([counter(number(9, time=20, who="b"))])) == {"c": [(10, 20, 4)]}
    assert len(deltas._last) == 1
    found = told(deltas.convert([counter(number(3, start=20, time=30, who="a"), number(9, time=30, who="b"))]))
    assert found == {"c": [(20, 30, 3), (20, 30, 0)]}
