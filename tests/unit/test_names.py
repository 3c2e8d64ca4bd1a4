"""Which values are told apart: decided once for all who count in the same series."""

from __future__ import annotations

import gc

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._labels import MAX_DISTINCT, OTHER
from amptalk_otel._names import Names, names_of
from tests.support import note


def test_the_first_fifty_values_of_each_attribute_have_places_and_keep_them() -> None:
    names = Names()
    for _ in range(2):
        told = [names.has_place("a", number) for number in range(MAX_DISTINCT + 3)]
        assert told == [True] * MAX_DISTINCT + [False] * 3
    assert names.has_place("b", MAX_DISTINCT + 1)


def test_an_operation_without_an_error_never_has_one() -> None:
    names = Names()
    errors = [names.state_operation("memory", "write", f"Error{number}")[1] for number in range(MAX_DISTINCT + 1)]
    assert errors == [*(f"Error{number}" for number in range(MAX_DISTINCT)), OTHER]
    assert names.state_operation("memory", "write", None) == ("write", None)
    assert names.state_operation("disk", "write", "OSError") == ("write", "OSError")


def test_a_series_has_its_names_for_as_long_as_anybody_counts_in_it() -> None:
    series = ("a", "A", "a town of its own")
    first = names_of(series)
    assert names_of(series) is first
    assert names_of(("b", "A", "a town of its own")) is not first
    first.has_place("x", "y")
    del first
    gc.collect()
    assert names_of(series)._others == {}


def test_recorders_of_one_series_tell_the_same_types_and_errors_apart() -> None:
    names = Names()
    recorders = [AgentRecorder(name, name, names=names) for name in ("a", "b")]
    kinds = [f"kind {number}" for number in range(MAX_DISTINCT + 1)]
    for kind in kinds:
        recorders[0].arrived(note(kind))  # type: ignore[arg-type]
    for kind in reversed(kinds):
        recorders[1].arrived(note(kind))  # type: ignore[arg-type]
    first, second = ({record.message_type: record.received for record in one.records} for one in recorders)
    assert first == second == {**dict.fromkeys(kinds[:-1], 1), OTHER: 1}
    assert AgentRecorder("a", "a").names is not names
