"""A program's own metrics of agents: in the series that its agents are in; no counter falls, and its sum is exact."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from amptalk_otel import PerformanceMonitor
from amptalk_otel._labels import OTHER, RETIRED
from amptalk_otel._per_agent import PerAgent, Series
from tests.page import no_global_monitor, scrape
from tests.support import Scripted, in_loop

A, B, SHARED = ("a", "A"), ("b", "B"), ("group", "group")
ALL_OTHERS, GONE = (OTHER, OTHER), (RETIRED, RETIRED)


class Thing:
    """Stands for an agent."""

    def __init__(self, series: Series, value: float | None = 0) -> None:
        self.series = series
        self.value = value

    def told(self) -> tuple[Any, Series, Callable[[Any], Any]]:
        return self, self.series, lambda thing: thing.value


def tell(metric: PerAgent, *things: Thing) -> dict[Series, Any]:
    return metric.tell([thing.told() for thing in things])


class TestSeries:
    @pytest.mark.parametrize(("kind", "together"), [("gauge", 5), ("counter", 7), ("up_down_counter", 7)])
    def test_agents_of_one_series_are_one_value(self, kind: str, together: int) -> None:
        things = Thing(SHARED, 2), Thing(SHARED, 5), Thing(A, 1)
        assert tell(PerAgent(kind), *things) == {SHARED: together, A: 1}

    @pytest.mark.parametrize("kind", ["gauge", "up_down_counter"])
    def test_what_is_no_counter_ends_with_its_agent(self, kind: str) -> None:
        metric, one, other = PerAgent(kind), Thing(A, 2), Thing(SHARED, 5)
        tell(metric, one, other)
        metric.leave(*one.told())
        assert tell(metric, other) == {SHARED: 5}
        assert tell(metric) == {}

    @pytest.mark.parametrize("kind", ["gauge", "counter", "up_down_counter"])
    def test_what_cannot_be_read_is_missing(self, kind: str) -> None:
        metric, one = PerAgent(kind), Thing(A, 2)
        assert tell(metric, one) == {A: 2}
        one.value = None
        assert tell(metric, one) == {}

    def test_a_part_of_a_counter_that_cannot_be_read_is_as_it_was(self) -> None:
        metric, one, other = PerAgent("counter"), Thing(SHARED, 2), Thing(SHARED, 5)
        tell(metric, one, other)
        one.value = None
        assert tell(metric, one, other) == {SHARED: 7}


class TestCountersOfThoseThatLeft:
    def test_it_is_read_once_more(self) -> None:
        metric, one = PerAgent("counter"), Thing(A, 2)
        assert tell(metric, one) == {A: 2}
        one.value = 3
        metric.leave(*one.told())
        assert tell(metric) == {GONE: 3}

    def test_also_where_nobody_read_it_before(self) -> None:
        metric, one = PerAgent("counter"), Thing(A, 2)
        metric.leave(*one.told())
        assert tell(metric) == {GONE: 2}

    def test_one_that_is_gone_without_a_word_counts_with_what_was_read_last(self) -> None:
        metric, one = PerAgent("counter"), Thing(A, 2)
        tell(metric, one)
        del one
        gc.collect()
        assert tell(metric) == {GONE: 2}

    def test_a_series_that_others_are_in_goes_on(self) -> None:
        metric, one, other = PerAgent("counter"), Thing(SHARED, 2), Thing(SHARED, 5)
        metric.tell([one.told(), other.told()])
        metric.leave(*one.told())
        assert tell(metric, other) == {SHARED: 7}
        metric.leave(*other.told())
        assert tell(metric) == {GONE: 7}

    def test_all_others_go_on_without_anybody(self) -> None:
        metric, one = PerAgent("counter"), Thing(ALL_OTHERS, 2)
        metric.leave(*one.told())
        assert tell(metric) == {ALL_OTHERS: 2}

    def test_one_that_comes_back_is_not_counted_twice(self) -> None:
        metric, one = PerAgent("counter"), Thing(A, 2)
        metric.leave(*one.told())
        one.value = 5
        assert tell(metric, one) == {A: 3, GONE: 2}
        metric.leave(*one.told())
        one.series = B
        assert tell(metric, one) == {B: 0, GONE: 5}

    def test_a_late_reader_does_not_bring_back_one_that_left(self) -> None:
        metric, one = PerAgent("counter"), Thing(ALL_OTHERS, 2)

        def read_and_leave(thing: Thing) -> float | None:
            metric.leave(*thing.told())
            return thing.value

        assert metric.tell([(one, one.series, read_and_leave)]) == {ALL_OTHERS: 2}
        assert tell(metric) == {ALL_OTHERS: 2}

    def test_a_counter_that_a_program_lets_fall_does_not_fall(self) -> None:
        metric, one = PerAgent("counter"), Thing(A, 5)
        tell(metric, one)
        one.value = 3
        assert tell(metric, one) == {A: 5}

    def test_nothing_is_left_when_all_are_forgotten(self) -> None:
        metric, one, other = PerAgent("counter"), Thing(A, 2), Thing(SHARED, 5)
        tell(metric, one, other)
        metric.leave(*one.told())
        metric.forget([other])
        assert tell(metric) == {}
        assert not metric._bases
        assert tell(metric, one) == {A: 2}

    def test_nothing_is_kept_of_agents_that_are_no_more(self) -> None:
        metric = PerAgent("counter")
        for _ in range(100):
            metric.leave(*Thing(A, 1).told())
        assert tell(metric) == {GONE: 100}
        assert not metric._bases
        assert not metric._members


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_exact_however_agents_come_and_go(seed: int) -> None:
    chance, metric, former = random.Random(seed), PerAgent("counter"), Counter[Series]()
    here: list[Thing] = []
    away: list[Thing] = []
    truth = 0
    for _ in range(400):
        what = chance.choice(("come", "return", "work", "work", "go"))
        if what == "come":
            here.append(Thing(chance.choice((A, B, SHARED, ALL_OTHERS))))
        elif what == "return" and away:
            here.append(away.pop(chance.randrange(len(away))))
        elif what == "work" and here:
            chance.choice(here).value += 1  # type: ignore[operator]
            truth += 1
        elif what == "go" and here:
            away.append(here.pop(chance.randrange(len(here))))
            metric.leave(*away[-1].told())
        now = Counter(tell(metric, *here))
        assert now.total() == truth
        assert all(now[series] >= former[series] for series in (ALL_OTHERS, GONE))
        former = now


# -- on the page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"MAX_AGENTS": "1"}, {"id-0": 1, OTHER: 5}),
        ({"AGENT_GROUPING": "name"}, {"worker": 4, "boss": 2}),
        ({"AGENT_GROUPING": "class"}, {"Scripted": 6}),
        ({"AGENTS_EXCLUDE": "boss"}, {"id-0": 1, "id-2": 3}),
    ],
)
@pytest.mark.parametrize("agent_metrics", [True, False])
def test_an_agent_has_no_id_in_a_metric_that_it_has_nowhere_else(
    settings: dict[str, str], ids: dict[str, int], agent_metrics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"AMPTALK_OTEL_{name}", value)
    monkeypatch.setenv("AMPTALK_OTEL_DEPARTED_AGENTS_LINGER", "0.001")

    @in_loop
    async def run() -> None:
        monitor = PerformanceMonitor(prometheus_port=0, include_agent_metrics=agent_metrics)
        monitor.observe("program.seen", lambda agent: agent.state["seen"], kind="counter")
        agents = [Scripted(agent_id=f"id-{number}", name=("worker", "boss")[number % 2]) for number in range(3)]
        for number, agent in enumerate(agents):
            agent.state["seen"] = number + 1
            monitor.add_agent(agent)
            monitor.record_operation(agent.agent_id, "think", 1.0)

        async def seen(name: str) -> dict[str, float]:
            page = await scrape(monitor.metrics_url)
            return {labels["agent_id"]: page.value(name, **labels) or 0 for labels in page.labels(name)}

        assert await seen("program_seen_total") == ids
        operations = await seen("amptalk_operation_duration_seconds_count")
        assert operations.keys() >= ids.keys()
        assert operations.keys() - ids.keys() <= ({"id-1"} if "AGENTS_EXCLUDE" in settings else set())
        for agent in agents:
            monitor.remove_agent(agent.agent_id)
        left = {OTHER: 5.0, RETIRED: 1.0} if "MAX_AGENTS" in settings else {RETIRED: float(sum(ids.values()))}
        assert await seen("program_seen_total") == left
        await seen("amptalk_operation_duration_seconds_count")
        operations = await seen("amptalk_operation_duration_seconds_count")
        assert sum(operations.values()) == 3
        assert operations.keys() <= {*left, "id-1"}
        await monitor.stop_collecting()

    with no_global_monitor():
        run()
