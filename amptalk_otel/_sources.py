"""What a bridge reports: everything that is watched, read at one moment, and each series once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Protocol

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import AgentsToRead, Identity
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._guard import guarded
from amptalk_otel._ledger import Ledger
from amptalk_otel._merging import add_agents, joined, joined_states
from amptalk_otel._reading import OperationReading
from amptalk_otel._recorder import OperationKey, Reported

Breathe = Callable[[], None]
"""Called again and again by whoever reads for long, so that the interpreter can be handed to the event loop."""

Source = Callable[[Breathe], Snapshot]
"""Reads what one watch watches."""


class Bridge(Protocol):
    """What a watch tells of its coming and going."""

    def add(self, source: Source) -> None: ...
    def remove(self, source: Source) -> None: ...
    def report(self, owner: Reported) -> None: ...
    def withdraw(self, owners: Iterable[Reported]) -> None: ...
    def retire(self, agents: Iterable[AgentRecorder]) -> list[Identity]: ...
    def move(self, operations: Mapping[OperationKey, OperationKey]) -> None: ...
    def series_for(self, identity: Identity, most: int) -> Identity: ...
    def is_shared(self, identity: Identity) -> bool: ...


def _never() -> None:
    """Read in one go."""


class Sources:
    """The sources of one bridge. May be changed from any thread while others read."""

    def __init__(self) -> None:
        self.ledger: Ledger = Ledger()
        self._sources: tuple[Source, ...] = ()
        self._kept: tuple[OperationReading, ...] = ()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._sources)

    def add(self, source: Source) -> None:
        """Report what `source` reads, from the next snapshot on."""
        with self._lock:
            self._sources = (*self._sources, source)

    def remove(self, source: Source) -> None:
        """Stop reporting `source`."""
        with self._lock:
            self._sources = tuple(other for other in self._sources if other != source)

    def keep(self, operations: Iterable[OperationReading], still_measured: Container[OperationKey]) -> None:
        """Go on reporting what was measured by one who left, as long as another one measures the same operation.

        The two are one series, and a histogram must not fall because one of them goes.
        """
        with self._lock:
            self._kept = tuple(reading for reading in (*self._kept, *operations) if reading.key in still_measured)

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
        parts = [guarded("reading what is watched", source, breathe) or Snapshot() for source in self._sources]
        return [*parts, Snapshot(operations=self._kept)]


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
