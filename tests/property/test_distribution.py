"""Histograms for any values: what is recorded is there, sums are sums, quantiles lie where they belong."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptalk_otel._buckets import BucketCounts, Distribution

BOUNDS = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=12, unique=True).map(lambda bounds: tuple(sorted(bounds)))
VALUES = st.lists(st.floats(0, 2e6), max_size=60)


def distribution(bounds: tuple[float, ...], values: list[float]) -> Distribution:
    buckets = BucketCounts(bounds)
    for value in values:
        buckets.record(value)
    return buckets.copy()


@given(BOUNDS, VALUES)
def test_each_value_lies_in_the_one_bucket_whose_bounds_enclose_it(
    bounds: tuple[float, ...], values: list[float]
) -> None:
    lower, upper = (-1.0, *bounds), (*bounds, float("inf"))
    found = distribution(bounds, values)
    assert found.counts == tuple(
        sum(below < value <= above for value in values) for below, above in zip(lower, upper, strict=True)
    )
    assert found.count == len(values)
    assert found.sum == pytest.approx(sum(values))


@given(BOUNDS, VALUES, VALUES)
def test_what_came_since_added_to_what_was_is_what_is(
    bounds: tuple[float, ...], before: list[float], since: list[float]
) -> None:
    earlier, later = distribution(bounds, before), distribution(bounds, before + since)
    difference = later - earlier
    assert difference.counts == distribution(bounds, since).counts
    assert (earlier + difference).counts == later.counts
    assert Distribution.empty(bounds) + earlier == earlier


@given(BOUNDS, VALUES.filter(bool), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_of_that_rank(
    bounds: tuple[float, ...], values: list[float], q: float
) -> None:
    found = distribution(bounds, values).quantile(q)
    assert found is not None
    rank = next(index for index in range(len(values)) if index + 1 >= q * len(values))
    bucket = bisect_left(bounds, sorted(values)[rank])
    if bucket == len(bounds):
        assert found == bounds[-1]
    else:
        assert (bounds[bucket - 1] if bucket else 0.0) <= found <= bounds[bucket]


@given(BOUNDS, VALUES.filter(bool), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise(bounds: tuple[float, ...], values: list[float], one: float, other: float) -> None:
    low, high = (distribution(bounds, values).quantile(q) for q in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high + 1e-9 * abs(high)
