from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import AgentsToRead
from amptalk_otel._buckets import BucketCounts
from amptalk_otel._exact_sum import ExactSum, exact_sum
from amptalk_otel._ledger import Ledger
from amptalk_otel._per_agent import PerAgent
from tests.support import note

SECONDS = st.floats(min_value=0.0, max_value=1e9, allow_subnormal=False)


@given(st.lists(st.floats(min_value=-1e300, max_value=1e300), max_size=20), st.randoms(use_true_random=False))
def test_a_sum_is_exact_in_any_order_and_in_any_parts(numbers: list[float], random: object) -> None:
    random.shuffle(numbers)  # type: ignore[attr-defined]
    cut = len(numbers) // 3
    parts = [sum(some, ExactSum(())) for some in (numbers[:cut], numbers[cut:])]
    assert exact_sum(*parts) == float(sum(map(Fraction, numbers)))


@given(st.lists(SECONDS, min_size=2, max_size=8), st.data())
def test_what_is_added_up_never_falls_whoever_leaves(numbers: list[float], data: st.DataObject) -> None:
    """As a series of several agents is: what those counted that left, and then the others one after another."""
    kept, told = 0.0, 0.0
    while numbers:
        together = kept
        for number in numbers:
            together = exact_sum(together, number)
        assert together >= told
        told = together
        kept = exact_sum(kept, numbers.pop(data.draw(st.integers(0, len(numbers) - 1))))
    assert kept == told


def test_it_is_a_number_like_others() -> None:
    number = exact_sum(0.1, 0.2)
    assert (repr(number), f"{number:.2f}", number == 0.1 + 0.2, hash(number)) == (
        "0.30000000000000004", "0.30", True, hash(0.1 + 0.2),
    )  # fmt: skip
    assert number - 0.1 == (0.1 + 0.2) - 0.1
    for twin in (pickle.loads(pickle.dumps(number)), copy.deepcopy(number)):
        assert (twin, twin + 0.3) == (number, number + 0.3)


def test_whole_numbers_stay_whole_and_what_is_not_finite_does_no_harm() -> None:
    whole = exact_sum(2**60, 1)
    assert (whole, type(whole)) == (2**60 + 1, int)
    assert exact_sum(math.inf, exact_sum(0.1, 0.2)) == math.inf
    assert math.isnan(exact_sum(exact_sum(0.1, 0.2), math.nan))


def test_the_sum_of_a_histogram_goes_on_exactly_after_another_was_absorbed() -> None:
    """0.1 + 0.2 + 0.3 is 0.6000000000000001 from the left, and 0.6 from the right."""
    one, other = BucketCounts((1.0,)), BucketCounts((1.0,))
    one.record(0.1)
    other.record(0.2)
    one.absorb(other)
    one.record(0.3)
    assert one.copy().sum == 0.6


@pytest.mark.parametrize("leaves", range(3))
def test_a_histogram_of_a_group_does_not_fall_when_an_agent_leaves(leaves: int) -> None:
    ledger = Ledger()
    recorders = [AgentRecorder("team", "Team", clock=lambda: 100.0) for _ in range(3)]
    for recorder, seconds in zip(recorders, (0.1, 0.2, 0.3), strict=True):
        recorder.record_of(note()).wait.record(seconds)
        ledger.report(recorder)

    def told() -> float:
        settled = ledger.settled()
        readers = [_Reader(recorder) for recorder in recorders]
        agents = AgentsToRead(readers, lambda: None).settled(settled.reported, settled.kept, settled.lives)
        (agent,) = agents
        return agent.wait_histogram.sum

    assert told() == 0.6
    ledger.withdraw(recorders[leaves])
    assert told() == 0.6


class _Reader:
    def __init__(self, recorder: AgentRecorder) -> None:
        from amptalk_otel._ledger import KeptReader

        self._reader = KeptReader(recorder)
        self.identity, self.recorder_id, self.read = recorder.identity, id(recorder), self._reader.read


def test_a_counter_of_the_program_s_own_does_not_fall_when_an_agent_leaves() -> None:
    class Agent:
        seconds = 0.0

    agents = [Agent() for _ in range(3)]
    for agent, seconds in zip(agents, (0.1, 0.2, 0.3), strict=True):
        agent.seconds = seconds
    metric, series = PerAgent("counter"), ("team", "Team")

    def read(agent: Agent) -> float:
        return agent.seconds

    assert metric.tell((agent, series, read) for agent in agents) == {series: 0.6}
    metric.leave(agents.pop(), series, read)
    assert metric.tell((agent, series, read) for agent in agents) == {series: 0.6}
