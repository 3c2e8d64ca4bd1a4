"""What a bridge reports: everything that is watched, read at one moment, and each series once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from amptalk_otel._buckets import Distribution
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._guard import guarded
from amptalk_otel._reading import AgentReading, AgentsToRead, OperationReading, each_once
from amptalk_otel._recorder import OperationKey, Reported

Breathe = Callable[[], None]
"""Called again and again by whoever reads for long, so that the interpreter can be handed to the event loop."""

Source = Callable[[Breathe], Snapshot]
"""Reads what one watch watches."""

ReadingT = TypeVar("ReadingT")


class Bridge(Protocol):
    """What a watch tells of its coming and going."""

    def add(self, source: Source) -> None: ...
    def remove(self, source: Source) -> None: ...
    def report(self, owner: Reported) -> None: ...
    def withdraw(self, owners: Iterable[Reported]) -> None: ...
    def forget(self, operations: Iterable[OperationKey]) -> None: ...


def _never() -> None:
    """Read in one go."""


class Sources:
    """The sources of one bridge. May be changed from any thread while others read."""

    def __init__(self) -> None:
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
        """The same, with agents that are read when they are gone through, once.

        Where two of them would be the same series they are read and added up before.
        """
        parts = self._parts(breathe)
        rest = sum((replace(part, agents=()) for part in parts), Snapshot())
        to_read = [part.agents for part in parts if isinstance(part.agents, AgentsToRead)]
        were_read = [agent for part in parts if not isinstance(part.agents, AgentsToRead) for agent in part.agents]
        agents = AgentsToRead.together(to_read, breathe)
        if were_read or not agents.are_distinct():
            return distinct(replace(rest, agents=(*agents, *were_read)))
        return replace(distinct(rest), agents=agents)

    def _parts(self, breathe: Breathe) -> list[Snapshot]:
        """What each source reads, and what is kept of those who left."""
        parts = [guarded("reading what is watched", source, breathe) or Snapshot() for source in self._sources]
        return [*parts, Snapshot(operations=self._kept)]


def distinct(snapshot: Snapshot) -> Snapshot:
    """`snapshot` with readings of the same attributes added up.

    Two agents of one id and name, or one operation measured by two watches, are one series: each consumer of
    metrics would keep one of two points and drop the other. Counters, up-down counters and histograms are
    added, as OpenTelemetry's SDK does with observations of one attribute set; a gauge has the highest value.
    Where there is nothing to add up, and that is nearly always, it costs one set of keys.
    """
    agents = tuple(
        agent if len(agent.states) < 2 else replace(agent, states=_joined(agent.states, _STORAGE, _sum))
        for agent in each_once(snapshot.agents)
    )
    return Snapshot(
        snapshot.machine,
        _joined(agents, _AGENT, _sum_of_agents),
        _joined(snapshot.orchestrators, _NAME, _sum),
        _joined(snapshot.states, _STORAGE, _sum),
        _joined(snapshot.operations, _KEY, _sum),
    )


_AGENT = attrgetter("agent_id", "agent_name", "orchestrator_name")
_TYPE = attrgetter("message_type")
_NAME = attrgetter("name")
_STORAGE = attrgetter("storage")
_KEY = attrgetter("key")


def _joined(
    readings: tuple[ReadingT, ...], key: Callable[[ReadingT], Hashable], add: Callable[[ReadingT, ReadingT], ReadingT]
) -> tuple[ReadingT, ...]:
    if len(readings) < 2 or len(set(map(key, readings))) == len(readings):
        return readings
    found: dict[Hashable, ReadingT] = {}
    for reading in readings:
        name = key(reading)
        found[name] = add(found[name], reading) if name in found else reading
    return tuple(found.values())


def _sum_of_agents(one: AgentReading, other: AgentReading) -> AgentReading:
    ages = [age for age in (one.oldest_age_s, other.oldest_age_s) if age is not None]
    together: AgentReading = _sum(one, other)
    return replace(
        together,
        uptime_s=max(one.uptime_s, other.uptime_s),
        oldest_age_s=max(ages, default=None),
        types=_joined(one.types + other.types, _TYPE, _sum),
        states=_joined(one.states + other.states, _STORAGE, _sum),
        recorder_id=hash((one.recorder_id, other.recorder_id)),  # another one as soon as either goes
    )


def _sum(one: Any, other: Any) -> Any:
    """Two readings of the same attributes, number by number. What names them is equal and stays."""
    names = [field.name for field in fields(one)]
    values = {name: _added(getattr(one, name), getattr(other, name)) for name in names}
    if "stamp" in values:
        values["stamp"] = ()  # that of `one` does not change with `other`
    return replace(one, **values)


def _added(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict):
        return {**one, **{key: _added(one.get(key), value) for key, value in other.items()}}
    return one + other if isinstance(one, (int, float, Distribution)) else one
