"""Readings of the same attributes, added up: several agents, state managers or operations may be one series.

Each consumer of metrics would keep one of two points and drop the other. Counters, up-down counters and histograms
are added, as OpenTelemetry's SDK does with observations of one attribute set; a gauge has the highest value. Peaks of
inboxes were at different moments: their sum would be a length that there never was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import fields, replace
from functools import reduce
from operator import attrgetter
from typing import Any, TypeVar

from amptalk_otel._buckets import Distribution
from amptalk_otel._reading import AgentReading, StateReading
from amptalk_otel._timesheet import TimeReading

ReadingT = TypeVar("ReadingT")


def joined(
    readings: tuple[ReadingT, ...],
    key: Callable[[ReadingT], Hashable],
    add: Callable[[ReadingT, ReadingT], ReadingT] | None = None,
) -> tuple[ReadingT, ...]:
    """The readings with those of the same key added up; the same object where there are none."""
    if len(readings) < 2 or len(set(map(key, readings))) == len(readings):
        return readings
    found: dict[Hashable, ReadingT] = {}
    for reading in readings:
        name = key(reading)
        found[name] = (add or _sum)(found[name], reading) if name in found else reading
    return tuple(found.values())


def one_agent(readings: Iterable[AgentReading]) -> AgentReading | None:
    """Several agents as one; None where there are none."""
    every = iter(readings)
    first = next(every, None)
    return None if first is None else reduce(add_agents, every, joined_states(first))


def add_agents(one: AgentReading, other: AgentReading) -> AgentReading:
    """Two agents as one. `recorder_id` is another one as soon as either goes; `AgentsToRead` may know better."""
    ages = [age for age in (one.oldest_age_s, other.oldest_age_s) if age is not None]
    together: AgentReading = _sum(one, other)
    return replace(
        together,
        uptime_s=max(one.uptime_s, other.uptime_s),
        oldest_age_s=max(ages, default=None),
        queue_peak=max(one.queue_peak, other.queue_peak),
        types=joined(one.types + other.types, _TYPE),
        states=joined(one.states + other.states, _STORAGE),
        recorder_id=hash((one.recorder_id, other.recorder_id)),
    )


def joined_states(agent: AgentReading) -> AgentReading:
    """`agent` with state managers of the same storage added up."""
    states = joined(agent.states, _STORAGE)
    return agent if states is agent.states else replace(agent, states=states)


_TYPE = attrgetter("message_type")
_STORAGE: Callable[[StateReading], str] = attrgetter("storage")


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
    return one + other if isinstance(one, (int, float, Distribution, TimeReading)) else one
