"""Histograms as plain lists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, BucketCounts, Distribution


def distribution(*values: float, bounds: tuple[float, ...] = (1.0, 2.0, 4.0)) -> Distribution:
    buckets = BucketCounts(bounds)
    for value in values:
        buckets.record(value)
    return buckets.copy()


@pytest.mark.parametrize("bounds", [DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES])
def test_bounds_rise_strictly(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_durations_reach_from_half_a_millisecond_to_ten_minutes() -> None:
    assert (DURATION_BOUNDS_S[0], DURATION_BOUNDS_S[-1]) == (0.0005, 600.0)


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (-1.0, (1, 0, 0, 0)),
        (0.0, (1, 0, 0, 0)),
        (1.0, (1, 0, 0, 0)),
        (1.0000001, (0, 1, 0, 0)),
        (4.0, (0, 0, 1, 0)),
        (4.1, (0, 0, 0, 1)),
        (float("inf"), (0, 0, 0, 1)),
    ],
)
def test_a_bound_belongs_to_the_bucket_below_it(value: float, counts: tuple[int, ...]) -> None:
    assert distribution(value).counts == counts


def test_a_copy_does_not_change_any_more() -> None:
    buckets = BucketCounts((1.0,))
    buckets.record(0.5)
    copied = buckets.copy()
    buckets.record(0.5)
    assert (copied.counts, copied.sum, copied.count) == ((1, 0), 0.5, 1)
    assert buckets.copy().count == 2


def test_distributions_add_up_and_what_came_since_is_their_difference() -> None:
    first, second = distribution(0.5, 3.0), distribution(1.5, 9.0)
    both = first + second
    assert (both.counts, both.sum, both.count) == ((1, 1, 1, 1), 14.0, 4)
    assert both - first == second


def test_histograms_of_different_bounds_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="different bounds"):
        distribution(1.0) + distribution(1.0, bounds=(1.0, 2.0, 5.0))
    with pytest.raises(ValueError, match="different bounds"):
        distribution(1.0) - distribution(1.0, bounds=(1.0, 2.0, 5.0))


def test_quantiles_are_interpolated_within_their_bucket() -> None:
    values = distribution(*[0.5] * 4, *[1.5] * 4, *[3.0] * 2)
    assert [values.quantile(q) for q in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]


def test_a_quantile_beyond_the_last_bound_is_the_last_bound() -> None:
    assert distribution(9.0).quantile(0.5) == 4.0
    assert distribution(0.5, 9.0).quantile(0.99) == 4.0


def test_nothing_has_no_quantile() -> None:
    assert Distribution.empty((1.0, 2.0)).quantile(0.5) is None
    assert Distribution.empty((1.0, 2.0)).count == 0


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_lies_between_0_and_1(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        distribution(1.0).quantile(q)


def test_a_sum_has_the_latest_exemplar_of_each_bucket() -> None:
    def with_exemplars(*exemplars: tuple[float, int]) -> Distribution:
        buckets = BucketCounts((1.0, 2.0))
        for value, time_ns in exemplars:
            buckets.record(value)
            buckets.exemplify(value, time_ns, time_ns * 10, time_ns * 100)
        return replace(buckets.copy(), exemplars=buckets.copy_exemplars())

    one, other, none = (
        with_exemplars((0.5, 1), (1.5, 4)),
        with_exemplars((0.7, 3), (1.7, 2), (9.0, 5)),
        with_exemplars(),
    )
    assert (one + other).exemplars == ((0.7, 3, 30, 300), (1.5, 4, 40, 400), (9.0, 5, 50, 500))
    assert (other + one).exemplars == (one + other).exemplars
    assert (one + none).exemplars == (none + one).exemplars == one.exemplars
