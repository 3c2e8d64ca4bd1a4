"""Agents that are read one after another, when somebody goes through them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from amptalk_otel._guard import guarded
from amptalk_otel._merging import joined_states, one_agent
from amptalk_otel._reading import AgentReading

Identity = tuple[str, str, "str | None"]
"""Id, name, and name of the orchestrator: what tells an agent's series from others'."""


class AgentReader(Protocol):
    """An agent that can be read."""

    @property
    def identity(self) -> Identity:
        """The series that it is in."""

    @property
    def recorder_id(self) -> int:
        """The same for two readers of one agent."""

    def read(self, life: int | None = None) -> AgentReading:
        """The agent at this moment; `life` is told in place of its `recorder_id`."""


class AgentsToRead:
    """Agents that are read one after another: none is held for longer. Those of one identity are one reading.

    A thousand readings at a time would make the garbage collector go through everything that the program has, again
    and again.
    """

    def __init__(self, readers: Iterable[AgentReader], breathe: Callable[[], None]) -> None:
        """`breathe` is called after each reader."""
        self._breathe = breathe
        self._series: dict[Identity, list[AgentReader]] = {}
        self._lives: Mapping[Identity, int] = {}
        for reader in {reader.recorder_id: reader for reader in readers}.values():  # whoever watches it, once
            self._series.setdefault(reader.identity, []).append(reader)
            breathe()

    def __len__(self) -> int:
        return len(self._series)

    def __iter__(self) -> Iterator[AgentReading]:
        for identity, readers in self._series.items():
            life = self._lives.get(identity)
            if len(readers) == 1:  # nearly always
                reading = self._alone(readers[0], life)
            else:
                reading = one_agent(self._each(readers))
                if reading is not None and life is not None:
                    reading = replace(reading, recorder_id=life)
            if reading is not None:
                yield reading

    def _alone(self, reader: AgentReader, life: int | None) -> AgentReading | None:
        reading = guarded("reading an agent", reader.read, life)
        self._breathe()
        return reading if reading is None or len(reading.states) < 2 else joined_states(reading)

    def _each(self, readers: Iterable[AgentReader]) -> Iterator[AgentReading]:
        for reader in readers:
            reading = guarded("reading an agent", reader.read)
            if reading is not None:
                yield reading
            self._breathe()

    def __contains__(self, reading: object) -> bool:
        return any(reading == other for other in self)

    @property
    def readers(self) -> Iterator[AgentReader]:
        """All of them."""
        return (reader for readers in self._series.values() for reader in readers)

    @classmethod
    def together(cls, parts: Sequence[AgentsToRead], breathe: Callable[[], None]) -> AgentsToRead:
        """Those of several watches."""
        return parts[0] if len(parts) == 1 else cls((reader for part in parts for reader in part.readers), breathe)

    def settled(
        self, reported: Container[int], kept: Iterable[AgentReader], lives: Mapping[Identity, int]
    ) -> AgentsToRead:
        """Those that are `reported`, by `recorder_id`, and what is `kept` of the others.

        `lives` tells of each series, in place of a `recorder_id`, since when its counters have not fallen.
        """
        found = AgentsToRead((), self._breathe)
        found._lives = lives
        for identity, readers in self._series.items():
            told = [reader for reader in readers if reader.recorder_id in reported]
            if told:
                found._series[identity] = told
            self._breathe()
        for reader in kept:
            found._series.setdefault(reader.identity, []).append(reader)
        return found

    def those(self, wanted: Callable[[Identity], bool]) -> AgentsToRead:
        """The agents whose identity is wanted."""
        chosen = AgentsToRead((), self._breathe)
        chosen._lives = self._lives
        chosen._series = {identity: readers for identity, readers in self._series.items() if wanted(identity)}
        return chosen
