"""Which series agents are in, and what is kept of those that left: sums over all agents stay exact.

There is a budget of named agents. Those beyond it are `_OTHER`, all in one series. What agents counted that left
goes to `_RETIRED`; or stays in their series, where others are in it.

An agent is either reported or kept, and changes from one to the other in one step: whoever asks for both at once
(`settled`) finds it once, however long the reading takes then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import Identity
from amptalk_otel._forks import lock_of
from amptalk_otel._labels import OTHER, RETIRED
from amptalk_otel._names import names_of
from amptalk_otel._reading import AgentReading, read_state, read_types
from amptalk_otel._recorder import OrchestratorRecorder, Reported


class Life(int):
    """The number of a series, from its beginning to its end."""

    has_retired = False
    """Whether it has ended, and what it counted went to `_RETIRED`."""


class Settled(NamedTuple):
    """Who is in which series at one moment."""

    reported: frozenset[int]
    """Ids of those that are reported."""
    kept: Sequence[KeptReader]
    """What those counted that left, up to this moment."""
    lives: Mapping[Identity, Life]
    """That of each series, another one when it begins from zero."""


class Ledger:
    """Of one bridge. May be written from any thread; nothing takes longer where there are more agents."""

    def __init__(self) -> None:
        self._lock = lock_of(self, threading.Lock)
        self._askers: dict[int, tuple[Reported, int]] = {}  # by id of the owner: and how many report it
        self._others: dict[int, Reported] = {}  # those of them that are no agents
        self._members: dict[Identity, int] = {}  # agents that are reported, by series
        self._named = 0  # series of agents that have a name
        self._kept: dict[Identity, Kept] = {}
        self._lives: dict[Identity, Life] = {}
        self._begun = 0  # series, so far

    def series_for(self, identity: Identity, most: int) -> Identity:
        """The series for another agent: its own while there are less than `most`, or if there is one already.

        Not one of ours, whatever the agent calls itself.
        """
        with self._lock:
            is_named = identity[0] not in (OTHER, RETIRED)
            if is_named and (identity in self._members or self._named < most):
                return identity
            return OTHER, OTHER, identity[2]

    def is_shared(self, identity: Identity) -> bool:
        """Whether a series goes on when one of its agents leaves."""
        with self._lock:
            return identity[0] == OTHER or self._members.get(identity, 0) > 1

    def report(self, owner: Reported) -> bool:
        """`owner` is reported; returns whether it was not before."""
        with self._lock:
            _owner, askers = self._askers.get(id(owner), (owner, 0))
            self._askers[id(owner)] = owner, askers + 1
            if askers == 0 and isinstance(owner, AgentRecorder):
                self._count(owner.identity, 1)
            elif askers == 0:
                self._others[id(owner)] = owner
            return askers == 0

    def withdraw(self, owner: Reported) -> bool:
        """Take one `report` back; returns whether that was the last. A series that others are in does not fall."""
        with self._lock:
            is_last = self._withdraw(owner)
            if is_last and isinstance(owner, AgentRecorder) and self._goes_on(owner.identity):
                self._keep_in(owner.identity, owner)
            return is_last

    def retire_one(self, recorder: AgentRecorder) -> Identity | None:
        """Take one `report` back, and go on telling what was counted.

        Returns the series in which that is; None as long as others report the agent.
        """
        with self._lock:
            identity = recorder.identity
            life = self._lives.get(identity)
            if not self._withdraw(recorder):
                return None
            if self._goes_on(identity):
                self._keep_in(identity, recorder)
                return identity
            if life is not None:
                life.has_retired = True
            retired = RETIRED, RETIRED, identity[2]
            self._keep_in(retired, recorder)
            former = self._kept.pop(identity, None)
            if former is not None:
                self._keep_in(retired, former.recorder)
            return retired

    def retire(self, recorders: Iterable[AgentRecorder]) -> list[Identity]:
        """`retire_one` after the other; returns the series that ended."""
        told = [(recorder.identity, self.retire_one(recorder)) for recorder in recorders]
        return [identity for identity, into in told if into not in (None, identity)]

    def forget(self, gone: Iterable[Reported]) -> list[Identity]:
        """Keep nothing of series of which no agent is, now that these are not reported any more.

        `_OTHER` and `_RETIRED` of an orchestrator stay for as long as anything of it is reported; without one, for as
        long as anything is. Returns the series that ended.
        """
        with self._lock:
            left = _orchestrators(gone) - _orchestrators(self._others.values()) - {None}
            left -= {identity[2] for identity in self._members}
            ended = [identity for identity in self._kept if self._ends(identity, left)]
            for identity in ended:
                del self._kept[identity]
                self._lives.pop(identity, None)
            if not self._askers:
                self._lives.clear()
            return ended

    def settled(self) -> Settled:
        """Who is where now."""
        with self._lock:
            kept = [kept.reader() for kept in self._kept.values()]
            return Settled(frozenset(self._askers), kept, self._lives.copy())

    def kept_series(self) -> list[Identity]:
        """The series in which something is kept."""
        with self._lock:
            return list(self._kept)

    def owners(self) -> Iterator[Reported]:
        """Whoever is reported."""
        with self._lock:
            return iter([owner for owner, _askers in self._askers.values()])

    def others(self) -> list[Reported]:
        """Whoever is reported and is no agent."""
        with self._lock:
            return list(self._others.values())

    # -- under the lock ------------------------------------------------------------------------------

    def _ends(self, identity: Identity, left: set[str | None]) -> bool:
        if identity[0] in (OTHER, RETIRED):
            return identity[2] in left or not self._askers
        return identity not in self._members

    def _withdraw(self, owner: Reported) -> bool:
        _owner, askers = self._askers.pop(id(owner), (owner, 0))
        if askers > 1:
            self._askers[id(owner)] = owner, askers - 1
        if askers == 1 and isinstance(owner, AgentRecorder):
            self._count(owner.identity, -1)
        elif askers == 1:
            del self._others[id(owner)]
        return askers == 1

    def _count(self, identity: Identity, change: int) -> None:
        before = self._members.pop(identity, 0)
        if before + change:
            self._members[identity] = before + change
            self._begin(identity)
        elif identity[0] != OTHER:
            self._lives.pop(identity, None)
        if identity[0] != OTHER:
            self._named += bool(before + change) - bool(before)

    def _goes_on(self, identity: Identity) -> bool:
        """Whether a series is there without the agent that left it."""
        return identity in self._members or identity[0] == OTHER

    def _keep_in(self, identity: Identity, recorder: AgentRecorder) -> None:
        kept = self._kept.get(identity)
        if kept is None:
            kept = self._kept[identity] = Kept(identity)
            self._begin(identity)
        kept.absorb(recorder)

    def _begin(self, identity: Identity) -> None:
        if identity not in self._lives:
            self._begun += 1
            self._lives[identity] = Life(self._begun)


class Kept:
    """What agents counted that left, all in one series. Not copied for those who read it before it changes."""

    def __init__(self, identity: Identity) -> None:
        self.recorder = _new_recorder(identity)
        self._is_read = False

    def absorb(self, recorder: AgentRecorder) -> None:
        """Add what a recorder counted that nobody writes any more."""
        if self._is_read:
            former, self.recorder = self.recorder, _new_recorder(self.recorder.identity)
            self.recorder.absorb(former)
            self._is_read = False
        self.recorder.absorb(recorder)

    def reader(self) -> KeptReader:
        """For one who reads it as it is now, later, from any thread."""
        self._is_read = True
        return KeptReader(self.recorder)


class KeptReader:
    """What agents counted that left, as one that is stopped and has no inbox."""

    def __init__(self, recorder: AgentRecorder) -> None:
        self._recorder = recorder

    @property
    def identity(self) -> Identity:
        return self._recorder.identity

    @property
    def recorder_id(self) -> int:
        return id(self._recorder)

    def read(self, life: int | None = None) -> AgentReading:
        """All of it. Its time does not go on."""
        types, queue_size, moment = read_types(self._recorder, lambda: None)
        agent_id, agent_name, orchestrator_name = self.identity
        return AgentReading(
            agent_id, agent_name, orchestrator_name, running=False, uptime_s=0.0, queue_size=queue_size,
            oldest_age_s=None, types=types, states=tuple(map(read_state, self._recorder.states)),
            recorder_id=self.recorder_id if life is None else life, in_flight=moment.in_hand,
            unaccounted=moment.unaccounted, time=self._recorder.times.read_as_it_is(moment.now, moment.spent),
        )  # fmt: skip


def _new_recorder(identity: Identity) -> AgentRecorder:
    return AgentRecorder(identity[0], identity[1], orchestrator_name=identity[2], names=names_of(identity))


def _orchestrators(owners: Iterable[Reported]) -> set[str | None]:
    """The names of those that these are, or are agents of."""
    return {
        owner.name if isinstance(owner, OrchestratorRecorder) else owner.orchestrator_name
        for owner in owners
        if isinstance(owner, (OrchestratorRecorder, AgentRecorder))
    }
