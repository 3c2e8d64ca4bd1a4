"""What a bridge reads: every source once, and no series twice."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, BucketCounts, Distribution
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._labels import OTHER
from amptalk_otel._reading import (
    AgentReading,
    OperationReading,
    OrchestratorReading,
    StateReading,
    TypeReading,
    read_operations,
    read_orchestrator,
    read_state,
)
from amptalk_otel._recorder import OperationRecorder, OrchestratorRecorder, StateOwner
from amptalk_otel._sources import Breathe, Source, Sources, distinct
from amptalk_otel._timesheet import TimeReading
from tests.support import assert_balanced


def distribution(*values: float, bounds: tuple[float, ...] = DURATION_BOUNDS_S) -> Distribution:
    buckets = BucketCounts(bounds)
    for value in values:
        buckets.record(value)
    return buckets.copy()


def of_type(message_type: str = "command", *, received: int = 0, processed: int = 0, failed: int = 0) -> TypeReading:
    taken = processed + failed
    return TypeReading(
        message_type, received, taken, processed, 0, {"ValueError": failed} if failed else {}, {}, {}, {},
        distribution(*[0.25] * taken), distribution(*[0.5] * taken), Distribution.empty(SIZE_BOUNDS_BYTES),
    )  # fmt: skip


def agent(
    *types: TypeReading,
    agent_id: str = "a",
    recorder_id: int = 1,
    running: bool = True,
    uptime_s: float = 1.0,
    oldest_age_s: float | None = None,
    states: tuple[StateReading, ...] = (),
) -> AgentReading:
    queued = sum(reading.queued for reading in types)
    return AgentReading(
        agent_id, "A", "town", running, uptime_s, queued, oldest_age_s, types, states, recorder_id=recorder_id
    )


def state(storage: str = "memory", *, size: int | None = 1, items: int | None = 1, writes: int = 0) -> StateReading:
    return StateReading(storage, size, items, {("write", None): distribution(*[1.0] * writes)} if writes else {})


def source_of(snapshot: Snapshot) -> Source:
    return lambda _breathe: snapshot


def together(*snapshots: Snapshot) -> Snapshot:
    sources = Sources()
    for snapshot in snapshots:
        sources.add(source_of(snapshot))
    return sources.snapshot()


class TestComingAndGoing:
    def test_no_source_is_an_empty_snapshot(self) -> None:
        sources = Sources()
        assert (bool(sources), sources.snapshot()) == (False, Snapshot())

    def test_a_source_is_read_until_it_is_removed(self) -> None:
        sources, one, other = Sources(), lambda _breathe: Snapshot(machine=True), lambda _breathe: Snapshot()
        sources.add(one)
        sources.add(other)
        assert (bool(sources), sources.snapshot().machine) == (True, True)
        sources.remove(one)
        assert (bool(sources), sources.snapshot().machine) == (True, False)
        sources.remove(one)
        sources.remove(other)
        assert not sources

    def test_every_source_is_given_the_means_to_breathe(self) -> None:
        breaths: list[str] = []

        def source(breathe: Breathe) -> Snapshot:
            breathe()
            return Snapshot()

        sources = Sources()
        sources.add(source)
        sources.snapshot(lambda: breaths.append("in"))
        assert breaths == ["in"]

    @pytest.mark.usefixtures("lenient_guard")
    def test_a_source_that_fails_leaves_the_others(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken(_breathe: Breathe) -> Snapshot:
            raise OSError("gone")

        sources = Sources()
        sources.add(broken)
        sources.add(lambda _breathe: Snapshot(agents=(agent(of_type(received=1)),)))
        assert [reading.received for reading in sources.snapshot().agents] == [1]
        assert [message.split(" (")[0] for message in caplog.messages] == ["reading what is watched was skipped"]


class TestOnce:
    def test_what_is_distinct_stays_as_it_is(self) -> None:
        snapshot = Snapshot(
            machine=True,
            agents=(agent(agent_id="a"), agent(agent_id="b", recorder_id=2, states=(state("memory"), state("disk")))),
            orchestrators=(OrchestratorReading("x", 1, 0, {}, {}), OrchestratorReading("y", 1, 0, {}, {})),
            states=(state("memory"), state("disk")),
            operations=tuple(OperationReading(("a", "A", name), distribution(1.0)) for name in ("x", "y")),
        )
        assert distinct(snapshot) == snapshot

    def test_one_agent_that_two_watch_is_told_once(self) -> None:
        reading = agent(of_type(received=3))
        assert together(Snapshot(agents=(reading,)), Snapshot(agents=(reading,))).agents == (reading,)

    def test_two_agents_of_one_name_are_added_up(self) -> None:
        one = agent(
            of_type(received=5, processed=2, failed=1), of_type("heartbeat", received=1, processed=1),
            uptime_s=3.0, oldest_age_s=None, recorder_id=1,
        )  # fmt: skip
        other = agent(
            of_type(received=4, processed=1, failed=3), of_type("nlp_request", received=1),
            uptime_s=2.0, oldest_age_s=7.0, recorder_id=2,
        )  # fmt: skip
        (sum_,) = together(Snapshot(agents=(one,)), Snapshot(agents=(other,))).agents
        assert_balanced(sum_)
        assert (int(sum_.running), sum_.uptime_s, sum_.oldest_age_s, sum_.queue_size) == (2, 3.0, 7.0, 3)
        assert [reading.message_type for reading in sum_.types] == ["command", "heartbeat", "nlp_request"]
        command = sum_.types[0]
        assert (command.received, command.processed, command.failed) == (9, 3, {"ValueError": 4})
        assert (command.wait.count, command.wait.sum, command.process.sum) == (7, 1.75, 3.5)
        assert (one.received, other.received) == (6, 5)  # nothing that was read is changed

    def test_a_sum_is_not_taken_for_what_was_read_before_where_only_one_of_its_parts_changed(self) -> None:
        one = agent(replace(of_type(received=5), stamp=("command", 5)), recorder_id=1)
        other = agent(replace(of_type(received=4), stamp=("command", 4)), recorder_id=2)
        (sum_,) = together(Snapshot(agents=(one, other))).agents
        assert [reading.stamp for reading in sum_.types] == [()]

    def test_their_times_are_added_up_and_the_highest_peak_is_told(self) -> None:
        one = replace(agent(recorder_id=1), queue_peak=4, time=TimeReading(10, 20, 30, 40))
        other = replace(agent(recorder_id=2), queue_peak=7, time=TimeReading(5, 2, 0, 10))
        (sum_,) = together(Snapshot(agents=(one,)), Snapshot(agents=(other,))).agents
        assert (sum_.queue_peak, sum_.time) == (7, TimeReading(15, 22, 30, 50))

    def test_a_sum_of_agents_is_another_one_when_one_of_them_goes(self) -> None:
        one, other = agent(recorder_id=1), agent(recorder_id=2)
        ids = {reading.recorder_id for agents in ((one,), (other,), (one, other)) for reading in together(
            Snapshot(agents=agents)).agents}  # fmt: skip
        assert len(ids) == 3

    def test_the_age_of_two_empty_inboxes_is_none(self) -> None:
        (sum_,) = together(Snapshot(agents=(agent(recorder_id=1), agent(recorder_id=2)))).agents
        assert sum_.oldest_age_s is None

    def test_state_managers_of_one_storage_are_added_up_with_and_without_an_agent(self) -> None:
        one, other, gone = state(size=3, items=2, writes=1), state(size=4, writes=2), state(size=None, items=None)
        expected = StateReading("memory", 7, 3, {("write", None): distribution(1.0, 1.0, 1.0)})
        snapshot = together(Snapshot(agents=(agent(states=(one, other)),), states=(one, gone, other)))
        assert next(iter(snapshot.agents)).states == snapshot.states == (expected,)
        (sum_,) = together(
            Snapshot(agents=(agent(states=(one,)), agent(states=(other, state("disk")), recorder_id=2)))
        ).agents
        assert sum_.states == (expected, state("disk"))

    def test_orchestrators_of_one_name_are_added_up(self) -> None:
        one = OrchestratorReading("town", 1, 2, {"command": 3}, {("command", "error"): 1})
        other = OrchestratorReading("town", 4, 0, {"heartbeat": 5, "command": 1}, {})
        assert together(Snapshot(orchestrators=(one,)), Snapshot(orchestrators=(other,))).orchestrators == (
            OrchestratorReading("town", 5, 2, {"command": 4, "heartbeat": 5}, {("command", "error"): 1}),
        )

    def test_operations_of_one_key_are_added_up(self) -> None:
        readings = [OperationReading(("a", None, "x"), distribution(value)) for value in (1.0, 2.0)]
        assert together(*(Snapshot(operations=(reading,)) for reading in readings)).operations == (
            OperationReading(("a", None, "x"), distribution(1.0, 2.0)),
        )


class TestKeeping:
    def test_what_somebody_counted_stays_until_nobody_counts_in_that_series(self) -> None:
        sources, owners = Sources(), [self.of_all_kinds() for _ in range(3)]
        read = [partial(self.read, *three) for three in owners]
        for three, source in zip(owners, read, strict=True):
            for owner in three:
                sources.ledger.report(owner)
            sources.add(source)
        owners[0][0].measured("a", "A", "own", 1.0)
        for number in range(2):
            assert sources.remove(read[number], owners[number]) == list(owners[number])
            for _ in range(2):
                found = sources.snapshot()
                assert [(reading.name, reading.routed) for reading in found.orchestrators] == [("town", {OTHER: 3})]
                assert [reading.durations["write", None].count for reading in found.states] == [3]
                assert [(reading.key, reading.duration.count) for reading in found.operations] == [
                    (("a", "A", "shared"), 3)
                ]
        sources.remove(read[2], owners[2])
        assert sources.snapshot() == Snapshot()
        sources.add(read[2])
        assert [reading.routed for reading in sources.snapshot().orchestrators] == [{OTHER: 1}]

    def test_what_two_report_is_not_kept_when_one_of_them_leaves(self) -> None:
        sources, owners = Sources(), self.of_all_kinds()
        sources.add(partial(self.read, *owners))
        for _ in range(2):
            for owner in owners:
                sources.ledger.report(owner)
        assert sources.remove(source_of(Snapshot()), owners) == []
        assert [reading.routed for reading in sources.snapshot().orchestrators] == [{OTHER: 1}]

    @staticmethod
    def of_all_kinds() -> tuple[OperationRecorder, OrchestratorRecorder, StateOwner]:
        operations, orchestrator, owner = OperationRecorder(), OrchestratorRecorder("town"), StateOwner()
        operations.measured("a", "A", "shared", 1.0)
        orchestrator.routed_one(None)
        owner.state_recorder("memory").operated("write", 1.0, None)
        return operations, orchestrator, owner

    @staticmethod
    def read(
        operations: OperationRecorder, orchestrator: OrchestratorRecorder, owner: StateOwner, _breathe: Breathe
    ) -> Snapshot:
        return Snapshot(
            operations=read_operations(operations),
            orchestrators=(read_orchestrator(orchestrator, running=0, stopped=0),),
            states=tuple(map(read_state, owner.states)),
        )
