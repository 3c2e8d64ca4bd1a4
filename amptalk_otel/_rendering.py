"""A snapshot as lines of the page, without the work that an earlier pass has done already.

Kept from one pass to the next are the label strings of each series, and the lines of message types that have not
changed: under 2 KB for each type of each agent. The text of histograms is not kept. It takes 5 us to write, and would
take 4 KB to keep, three times for each type: as much as the whole page, all the time between two scrapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import is_
from typing import Any

from amptalk_otel._agents_to_read import AgentsToRead
from amptalk_otel._catalogue import (
    CATALOGUE,
    Attributes,
    ByState,
    ByType,
    ByTypeAnd,
    One,
    Owner,
    Snapshot,
    attributes_of,
    owners,
)
from amptalk_otel._families import Family
from amptalk_otel._guard import swallow
from amptalk_otel._lines import Column, Labels, Shape, Write
from amptalk_otel._reading import AgentReading
from amptalk_otel._system import System

_PER_SLICE = 16  # agents, or samples, whose histograms make a piece of about 100 KB
_ORCHESTRATOR = "orchestrator.name"
_AGENT = ("agent.id", "agent.name")

_Rows = list[tuple[Any, list[str], Write]]
"""What reads each column's values, where its samples go, and how they are written."""

_Groups = list[tuple[Shape, _Rows]]
"""Columns by the labels that they have."""

_States = list[tuple[Attributes, Any]]
"""Readings of state managers, with the attributes of the agents that have them."""

_Known = dict[tuple[Shape, tuple[str, ...]], Labels]


class _Agent:
    """What is kept of one agent."""

    __slots__ = ("labels", "lines", "shapes", "stamps")

    def __init__(self) -> None:
        self.labels: defaultdict[Shape, dict[tuple[str, ...], Labels]] = defaultdict(dict)
        self.stamps: tuple[Any, ...] = ()  # of the types that were written
        self.shapes: list[Shape] = []
        self.lines: list[str] = []  # of these types in these shapes: all but histograms, by column

    def is_up_to_date(self, stamps: tuple[Any, ...], shapes: list[Shape]) -> bool:
        """Whether nothing has changed."""
        mine = self.stamps
        return len(mine) == len(stamps) and all(map(is_, mine, stamps)) and self.shapes == shapes


class Renderer:
    """Fills columns, one for each family, with one snapshot after another. For one thread at a time."""

    def __init__(self, families: Mapping[str, Family], system: System, scope: Attributes) -> None:
        """`scope` are attributes that every series has on top."""
        self._system = system
        self._scope = scope
        self._shapes: dict[frozenset[str], Shape] = {}
        self._agents: dict[tuple[Any, ...], _Agent] = {}
        self._known: _Known = {}
        self.columns = [Column(metric, families[metric.name]) for metric in CATALOGUE if metric.name in families]
        mine = [column for column in self.columns if column.metric.owner is Owner.AGENT]
        self._by_agent = [column for column in mine if isinstance(column.metric.read, One)]
        self._by_state = [column for column in mine if isinstance(column.metric.read, ByState)]
        typed = [column for column in mine if isinstance(column.metric.read, ByType)]
        self._by_type = [column for column in typed if not column.is_histogram]
        self._histograms = [column for column in typed if column.is_histogram]
        self._by_more = [column for column in mine if isinstance(column.metric.read, ByTypeAnd)]

    def render(self, snapshot: Snapshot, breathe: Callable[[], None]) -> None:
        """Fill the columns, and forget what was kept of those that are not in `snapshot`."""
        for column in self.columns:
            column.take()  # of a pass that failed
        states = self._render_agents(snapshot.agents, breathe)
        rest = replace(snapshot, agents=())
        former, self._known = self._known, {}
        for owner in Owner:
            if owner is not Owner.AGENT:
                sources = list(owners(owner, rest, self._system))
                if owner is Owner.STATE:
                    sources = states + sources
                for column in self.columns:
                    if column.metric.owner is owner:
                        self._render_column(column, sources, former, breathe)

    # -- agents: nearly all of the page --------------------------------------------------------------

    def _render_agents(self, agents: Collection[AgentReading], breathe: Callable[[], None]) -> _States:
        """Those with an orchestrator come first: then we know which families have its label, for the others.

        Goes through the agents once. Returns what is left to render of them: their state managers.
        """
        former, self._agents = self._agents, {}
        states: _States = []
        for labelled in (True, False):
            by_agent, by_state, by_type, by_more, histograms = (
                self._groups(columns, labelled=labelled)
                for columns in (self._by_agent, self._by_state, self._by_type, self._by_more, self._histograms)
            )
            shapes = [shape for shape, _rows in (*by_type, *by_more)]
            counts = [parts for _shape, rows in (*by_type, *by_more) for _read, parts, _write in rows]
            for index, agent in enumerate(_those(agents, labelled=labelled)):
                states.extend([(attributes_of(agent), state) for state in agent.states])
                key = (agent.agent_id, agent.agent_name, agent.orchestrator_name, agent.recorder_id)
                known = self._agents[key] = former.get(key) or _Agent()
                self._write_own(known, agent, by_agent)
                self._write_states(known, agent, by_state)
                stamps = tuple([reading.stamp or reading for reading in agent.types])
                if known.is_up_to_date(stamps, shapes):
                    _write_again(known, counts)
                else:
                    begins = [len(parts) for parts in counts]
                    self._write_typed(known, agent, by_type)
                    self._write_more(known, agent, by_more)
                    known.stamps, known.shapes = stamps, shapes
                    known.lines = [
                        "".join(parts[begin:]) if len(parts) > begin else ""
                        for parts, begin in zip(counts, begins, strict=True)
                    ]
                self._write_typed(known, agent, histograms)
                if index % _PER_SLICE == _PER_SLICE - 1:
                    self._flush(breathe)
                breathe()
            self._flush(breathe)
        return states

    def _groups(self, columns: Iterable[Column], *, labelled: bool) -> _Groups:
        """Where some agents have an orchestrator, the others have an empty label."""
        groups: dict[Shape, _Rows] = {}
        for column in columns:
            orchestrator = (_ORCHESTRATOR,) if labelled or not column.is_empty else ()
            shape = self._shape((*_AGENT, *orchestrator, *column.metric.attributes))
            groups.setdefault(shape, []).append((column.metric.read, column.parts, column.write))
        return list(groups.items())

    def _write_own(self, known: _Agent, agent: AgentReading, groups: _Groups) -> None:
        for shape, rows in groups:
            labels = known.labels[shape].get(()) or self._label(known, agent, shape, {})
            for read, parts, write in rows:
                value = read.value_of(agent)
                if value is not None:
                    parts.append(write(labels, value))

    def _write_states(self, known: _Agent, agent: AgentReading, groups: _Groups) -> None:
        for shape, rows in groups:
            series = known.labels[shape]
            for read, parts, write in rows:
                for state, seconds in read.values_of(agent).items():
                    labels = series.get((state,))
                    if labels is None:
                        labels = self._label(known, agent, shape, {read.attribute: state})
                        labels = series[state,] = (labels[0], "", "")  # these have no buckets
                    parts.append(write(labels, seconds))

    def _write_typed(self, known: _Agent, agent: AgentReading, groups: _Groups) -> None:
        for shape, rows in groups:
            series = known.labels[shape]
            for reading in agent.types:
                key = (reading.message_type,)
                labels = series.get(key) or self._label(known, agent, shape, {"message.type": reading.message_type})
                for read, parts, write in rows:
                    value = read.value_of(reading)
                    if value:
                        parts.append(write(labels, value))

    def _write_more(self, known: _Agent, agent: AgentReading, groups: _Groups) -> None:
        for shape, rows in groups:
            series = known.labels[shape]
            for read, parts, write in rows:
                for reading in agent.types:
                    for value, number in read.values_of(reading).items():
                        key = (reading.message_type, value)
                        labels = series.get(key)
                        if labels is None:
                            attributes = {"message.type": reading.message_type, read.attribute: value}
                            labels = self._label(known, agent, shape, attributes)
                            labels = series[key] = (labels[0], "", "")  # these have no buckets
                        parts.append(write(labels, number))

    def _label(self, known: _Agent, agent: AgentReading, shape: Shape, attributes: Attributes) -> Labels:
        """The labels of a series that appears for the first time."""
        labels = shape.labels({**attributes_of(agent), **attributes, **self._scope})
        known.labels[shape][tuple(attributes.values())] = labels
        return labels

    def _flush(self, breathe: Callable[[], None]) -> None:
        for column in (*self._by_agent, *self._by_state, *self._by_type, *self._by_more, *self._histograms):
            column.flush(breathe)

    # -- all others ----------------------------------------------------------------------------------

    def _render_column(
        self, column: Column, sources: Sequence[tuple[Attributes, Any]], former: _Known, breathe: Callable[[], None]
    ) -> None:
        """What can't be read is left out, and told once a minute: psutil may be refused a number."""
        points = []
        try:
            for owner, source in sources:
                for attributes, value in column.metric.read(source):
                    points.append(({**owner, **attributes, **self._scope}, value))
                breathe()
        except Exception:
            swallow(f"reading {column.metric.name}")
            return
        shape = self._shape({attribute for attributes, _value in points for attribute in attributes})
        for index, (attributes, value) in enumerate(points):
            key = (shape, shape.values(attributes))
            labels = self._known.get(key) or former.get(key) or shape.labels(attributes)
            self._known[key] = labels
            column.parts.append(column.write(labels, value))
            if index % _PER_SLICE == _PER_SLICE - 1:
                column.flush(breathe)
        column.flush(breathe)

    def _shape(self, attributes: Iterable[str]) -> Shape:
        names = frozenset((*attributes, *self._scope))
        shape = self._shapes.get(names)
        if shape is None:
            shape = self._shapes[names] = Shape(names)
        return shape


def _those(agents: Collection[AgentReading], *, labelled: bool) -> Iterable[AgentReading]:
    """The agents with an orchestrator, or those without."""
    if isinstance(agents, AgentsToRead):
        return agents.those(lambda identity: (identity[2] is not None) is labelled)
    return [agent for agent in agents if (agent.orchestrator_name is not None) is labelled]


def _write_again(known: _Agent, counts: Iterable[list[str]]) -> None:
    for parts, text in zip(counts, known.lines, strict=True):
        if text:
            parts.append(text)
