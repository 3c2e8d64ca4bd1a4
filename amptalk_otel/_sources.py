"""What a bridge reports: everything that is watched, read at one moment, and each series once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Protocol

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import AgentsToRead, Identity
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._forks import lock_of
from amptalk_otel._guard import guarded
from amptalk_otel._ledger import Ledger
from amptalk_otel._merging import add_agents, joined, joined_states
from amptalk_otel._reading import read_operations, read_orchestrator, read_state
from amptalk_otel._recorder import OperationKey, OperationRecorder, OrchestratorRecorder, Reported, StateOwner

Breathe = Callable[[], None]
"""Called again and again by whoever reads for long, so that the interpreter can be handed to the event loop."""

Source = Callable[[Breathe], Snapshot]
"""Reads what one watch watches."""


class Bridge(Protocol):
    """What a watch tells of its coming and going."""

    def add(self, source: Source) -> None: ...
    def remove(self, source: Source, owners: Iterable[Reported] = ()) -> None: ...
    def report(self, owner: Reported) -> None: ...
    def retire(self, agents: Iterable[AgentRecorder]) -> list[Identity]: ...
    def move(self, operations: Mapping[OperationKey, OperationKey]) -> None: ...
    def series_for(self, identity: Identity, most: int) -> Identity: ...
    def is_shared(self, identity: Identity) -> bool: ...
    def has_others(self, source: Source) -> bool: ...


def _never() -> None:
    """Read in one go."""


class Sources:
    """The sources of one bridge. May be changed from any thread while others read."""

    def __init__(self) -> None:
        self.ledger: Ledger = Ledger()
        # Who is read, and what is kept of those who left, but for agents: nothing is in both, or in neither.
        self._told: tuple[tuple[Source, ...], Snapshot] = (), Snapshot()
        self._lock = lock_of(self, threading.Lock)

    def __bool__(self) -> bool:
        return bool(self._told[0])

    def add(self, source: Source) -> None:
        """Report what `source` reads, from the next snapshot on."""
        with self._lock:
            sources, kept = self._told
            self._told = (*sources, source), kept

    def has_others(self, source: Source) -> bool:
        """Whether anything is reported besides `source`."""
        return any(other != source for other in self._told[0])

    def remove(self, source: Source, owners: Iterable[Reported] = ()) -> list[Reported]:
        """Stop reporting `source`, and take back a `report` of each of its `owners`.

        What one of them counted that leaves is reported on as long as another one counts in the same series, which
        must not fall because one of the two goes. Returns those that nobody reports any more.
        """
        with self._lock:
            gone = [owner for owner in owners if self.ledger.withdraw(owner)]
            sources, kept = self._told
            kept = distinct(sum(map(_counted_by, gone), kept))
            sources = tuple(other for other in sources if other != source)
            self._told = sources, _in_series_of(self.ledger.others(), kept)
        return gone

    def move(self, operations: Mapping[OperationKey, OperationKey]) -> None:
        """What is kept of operations that nobody measures any more goes where the rest of them went."""
        with self._lock:
            sources, kept = self._told
            still = {reading.key for reading in _in_series_of(self.ledger.others(), kept).operations}
            moved = tuple(
                replace(reading, key=operations.get(reading.key, reading.key)) if reading.key not in still else reading
                for reading in kept.operations
            )
            self._told = sources, distinct(replace(kept, operations=moved))

    def snapshot(self, breathe: Breathe = _never) -> Snapshot:
        """Everything at this moment, without two readings that would be the same series.

        A source that can't be read leaves the others.
        """
        together = self.stream(breathe)
        return replace(together, agents=tuple(together.agents))

    def stream(self, breathe: Breathe = _never) -> Snapshot:
        """The same, with agents that are read when they are gone through, once."""
        parts = self._parts(breathe)
        rest = sum((replace(part, agents=()) for part in parts), Snapshot())
        to_read = [part.agents for part in parts if isinstance(part.agents, AgentsToRead)]
        were_read = [agent for part in parts if not isinstance(part.agents, AgentsToRead) for agent in part.agents]
        settled = self.ledger.settled()  # after the parts: an agent that retired meanwhile is in what is kept
        agents = AgentsToRead.together(to_read, breathe).settled(settled.reported, settled.kept, settled.lives)
        if were_read:
            return distinct(replace(rest, agents=(*agents, *were_read)))
        return replace(distinct(rest), agents=agents)

    def _parts(self, breathe: Breathe) -> list[Snapshot]:
        """What each source reads, and what is kept of those who left."""
        sources, kept = self._told
        parts = [guarded("reading what is watched", source, breathe) or Snapshot() for source in sources]
        return [*parts, kept]


def _counted_by(owner: Reported) -> Snapshot:
    """What an owner counted; nothing of an agent, whose counts the ledger keeps."""
    if isinstance(owner, OperationRecorder):
        return Snapshot(operations=read_operations(owner))
    if isinstance(owner, OrchestratorRecorder):
        return Snapshot(orchestrators=(read_orchestrator(owner, running=0, stopped=0),))
    if isinstance(owner, StateOwner) and not isinstance(owner, AgentRecorder):
        return Snapshot(states=tuple(map(read_state, owner.states)))
    return Snapshot()


def _in_series_of(owners: Iterable[Reported], kept: Snapshot) -> Snapshot:
    """What is kept of the series that these owners count in."""
    names: set[str] = set()
    storages: set[str] = set()
    keys: set[OperationKey] = set()
    for owner in owners:
        if isinstance(owner, OperationRecorder):
            keys.update(owner.durations.copy())
        elif isinstance(owner, OrchestratorRecorder):
            names.add(owner.name)
        elif isinstance(owner, StateOwner):
            storages.update(state.storage for state in owner.states)
    return Snapshot(
        orchestrators=tuple(reading for reading in kept.orchestrators if reading.name in names),
        states=tuple(reading for reading in kept.states if reading.storage in storages),
        operations=tuple(reading for reading in kept.operations if reading.key in keys),
    )


def distinct(snapshot: Snapshot) -> Snapshot:
    """`snapshot` with readings of the same attributes added up. Mostly there are none, and it costs a set of keys."""
    agents = {agent.recorder_id: joined_states(agent) for agent in reversed(tuple(snapshot.agents))}
    return Snapshot(
        snapshot.machine,
        joined(tuple(reversed(agents.values())), attrgetter("agent_id", "agent_name", "orchestrator_name"), add_agents),
        joined(snapshot.orchestrators, attrgetter("name")),
        joined(snapshot.states, attrgetter("storage")),
        joined(snapshot.operations, attrgetter("key")),
    )
