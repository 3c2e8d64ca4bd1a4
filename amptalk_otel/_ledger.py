"""Which series agents are in, and what is kept of those that left: sums over all agents stay exact.

There is a budget of named agents. Those beyond it are `_OTHER`, all in one series. What agents counted that left
goes to `_RETIRED`; or stays in their series, where others are in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import Identity
from amptalk_otel._labels import OTHER, RETIRED
from amptalk_otel._reading import AgentReading, read_state, read_types
from amptalk_otel._recorder import Reported


class Ledger:
    """Of one bridge. May be written from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._askers: dict[int, tuple[Reported, int]] = {}  # by id of the owner: and how many report it
        self._members: dict[Identity, int] = {}  # agents that are reported, by series
        self._named = 0  # series of agents that have a name
        self._kept: dict[Identity, Kept] = {}

    def series_for(self, identity: Identity, most: int) -> Identity:
        """The series for another agent: its own while there are less than `most`, or if there is one already."""
        with self._lock:
            if identity in self._members or self._named < most:
                return identity
            return OTHER, OTHER, identity[2]

    def report(self, owner: Reported) -> bool:
        """`owner` is reported; returns whether it was not before."""
        with self._lock:
            _owner, askers = self._askers.get(id(owner), (owner, 0))
            self._askers[id(owner)] = owner, askers + 1
            if askers == 0 and isinstance(owner, AgentRecorder):
                self._count(owner.identity, 1)
            return askers == 0

    def withdraw(self, owner: Reported) -> bool:
        """Take one `report` back; returns whether that was the last."""
        with self._lock:
            _owner, askers = self._askers.pop(id(owner), (owner, 0))
            if askers > 1:
                self._askers[id(owner)] = owner, askers - 1
            if askers == 1 and isinstance(owner, AgentRecorder):
                self._count(owner.identity, -1)
            return askers == 1

    def _count(self, identity: Identity, change: int) -> None:
        before = self._members.pop(identity, 0)
        if before + change:
            self._members[identity] = before + change
        if identity[0] != OTHER:
            self._named += bool(before + change) - bool(before)

    def keep(self, recorder: AgentRecorder) -> Identity:
        """Go on telling what an agent counted that is reported no more. Returns the series in which it is told."""
        with self._lock:
            identity = recorder.identity
            if identity in self._members or identity[0] == OTHER:
                self._kept_in(identity).absorb(recorder)
                return identity
            retired = RETIRED, RETIRED, identity[2]
            self._kept_in(retired).absorb(recorder)
            former = self._kept.pop(identity, None)
            if former is not None:
                self._kept_in(retired).absorb(former.recorder)
            return retired

    def forget(self) -> None:
        """Keep nothing if nothing is reported any more, and nothing of series of which no agent is."""
        with self._lock:
            named = {identity for identity in self._kept if identity[0] not in (OTHER, RETIRED)}
            gone = named - self._members.keys() if self._askers else self._kept.keys()
            for identity in list(gone):
                del self._kept[identity]

    def _kept_in(self, identity: Identity) -> Kept:
        kept = self._kept.get(identity)
        if kept is None:
            kept = self._kept[identity] = Kept(AgentRecorder(identity[0], identity[1], orchestrator_name=identity[2]))
        return kept

    def kept(self) -> list[Kept]:
        """What is kept, to be read."""
        with self._lock:
            return list(self._kept.values())

    def owners(self) -> Iterator[Reported]:
        """Whoever is reported."""
        with self._lock:
            return iter([owner for owner, _askers in self._askers.values()])


class Kept:
    """What agents counted that left, as one that is stopped and has no inbox. Its time does not go on."""

    def __init__(self, recorder: AgentRecorder) -> None:
        self.recorder = recorder
        self._lock = threading.Lock()

    def absorb(self, recorder: AgentRecorder) -> None:
        """Add what a recorder counted that nobody writes any more."""
        with self._lock:
            self.recorder.absorb(recorder)

    @property
    def identity(self) -> Identity:
        return self.recorder.identity

    @property
    def recorder_id(self) -> int:
        return id(self.recorder)

    def read(self) -> AgentReading:
        """All of it at this moment."""
        with self._lock:
            types, queue_size, moment = read_types(self.recorder, lambda: None)
            states = tuple(map(read_state, self.recorder.states))
        agent_id, agent_name, orchestrator_name = self.identity
        return AgentReading(
            agent_id, agent_name, orchestrator_name, running=False, uptime_s=0.0, queue_size=queue_size,
            oldest_age_s=None, types=types, states=states, recorder_id=self.recorder_id,
            time=self.recorder.times.read_as_it_is(moment.now, moment.spent),
        )  # fmt: skip
