"""What one metric of a program's own tells of agents: in the series that they are in, and a counter never falls.

Several agents in one series (`_OTHER`, or a group) are added up; a gauge has the highest value. What an agent counted
that leaves stays in its series where others are in it, and goes to `_RETIRED` else.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from amptalk_otel._exact_sum import exact_sum
from amptalk_otel._forks import lock_of
from amptalk_otel._labels import OTHER, RETIRED

Series = tuple[str, str]
"""`agent.id` and `agent.name`."""

Number = int | float
Read = Callable[[Any], "Number | None"]


class _Member:
    """An agent that is told."""

    __slots__ = ("agent", "base", "series", "value")

    def __init__(self, agent: Any, series: Series, base: Number) -> None:
        self.agent = weakref.ref(agent)
        self.series = series
        self.base = base  # what is told of it elsewhere, since it left before
        self.value: Number | None = None  # as it was read last, without the base


class PerAgent:
    """The values of one metric. May be used from any thread; no lock is held while a program's `read` is called."""

    def __init__(self, kind: str) -> None:
        """`kind`: `gauge`, `counter` or `up_down_counter`."""
        self._is_gauge = kind == "gauge"
        self._is_counter = kind == "counter"
        self._lock = lock_of(self, threading.Lock)
        self._members: dict[int, _Member] = {}  # by id of the agent
        self._in_series: Counter[Series] = Counter()
        self._kept: dict[Series, Number] = {}
        self._bases: dict[int, tuple[weakref.ref[Any], Number]] = {}  # of agents that left, by their id

    def tell(self, agents: Iterable[tuple[Any, Series, Read]]) -> dict[Series, Number]:
        """The value of each series; `agents` are all there are, once each, with what reads them."""
        wanted = list(agents)
        with self._lock:
            found = [(self._join(agent, series), agent, read) for agent, series, read in wanted]
            self._part_from_all_but({id(agent) for agent, _series, _read in wanted})
        read_now = {id(member): read(agent) for member, agent, read in found}
        with self._lock:
            for member, agent, _read in found:
                if self._members.get(id(agent)) is member:  # else it left meanwhile
                    self._learn(member, read_now[id(member)])
            return self._sums({key for key, value in read_now.items() if value is not None})

    def leave(self, agent: Any, series: Series, read: Read) -> None:
        """The agent goes. What it counted is read once more."""
        if self._is_counter:
            value = read(agent)
            with self._lock:
                member = self._join(agent, series)
                self._learn(member, value)
                self._part(id(agent))

    def forget(self, agents: Iterable[Any]) -> None:
        """Tell no more of these than what they counted in series that others are in; and nothing, without others."""
        with self._lock:
            for agent in agents:
                member = self._members.get(id(agent))
                if member is not None and not self._goes_on(member.series, without=1):
                    member.value = None
                self._part(id(agent))
            if not self._members:
                self._kept.clear()
                self._bases.clear()

    # -- under the lock ------------------------------------------------------------------------------

    def _join(self, agent: Any, series: Series) -> _Member:
        member = self._members.get(id(agent))
        if member is not None and (member.agent() is not agent or member.series != series):
            self._part(id(agent))
            member = None
        if member is None:
            left, base = self._bases.get(id(agent), (None, 0))
            is_back = left is not None and left() is agent
            member = self._members[id(agent)] = _Member(agent, series, base if is_back else 0)
            self._in_series[series] += 1
        return member

    def _learn(self, member: _Member, value: Number | None) -> None:
        if value is not None:
            value -= member.base
            is_late = self._is_counter and member.value is not None and value < member.value
            member.value = member.value if is_late else value

    def _part_from_all_but(self, there: set[int]) -> None:
        for key in self._members.keys() - there:
            self._part(key)

    def _part(self, key: int) -> None:
        member = self._members.pop(key, None)
        if member is None:
            return
        self._in_series[member.series] -= 1
        if not self._in_series[member.series]:
            del self._in_series[member.series]
        if not self._is_counter:
            return
        into = member.series if self._goes_on(member.series) else (RETIRED, RETIRED)
        if member.value is not None:
            self._kept[into] = exact_sum(self._kept.get(into, 0), member.value)
            self._remember(key, member)
        if into != member.series and member.series in self._kept:
            self._kept[into] = exact_sum(self._kept.get(into, 0), self._kept.pop(member.series))

    def _remember(self, key: int, member: _Member) -> None:
        """Should it come back, it is told without what is told of it already."""
        agent = member.agent()
        if agent is not None and member.value is not None:
            ref = weakref.ref(agent, lambda gone: self._forget_base(key, gone))
            self._bases[key] = ref, member.base + member.value

    def _forget_base(self, key: int, gone: Any) -> None:
        if self._bases.get(key, (None, 0))[0] is gone:
            self._bases.pop(key, None)

    def _goes_on(self, series: Series, without: int = 0) -> bool:
        return series[0] == OTHER or self._in_series[series] > without

    def _sums(self, read_now: set[int]) -> dict[Series, Number]:
        """A counter that could not be read is as it was before, where it is only a part of its series."""
        found: dict[Series, Number] = dict(self._kept)
        for member in self._members.values():
            series, value = member.series, member.value
            is_part = self._is_counter and (series in self._kept or self._in_series[series] > 1)
            if value is None or not (is_part or id(member) in read_now):
                continue
            if series not in found:
                found[series] = value
            else:
                found[series] = max(found[series], value) if self._is_gauge else exact_sum(found[series], value)
        return found


def attributes_of(series: Series) -> Mapping[str, str]:
    return {"agent.id": series[0], "agent.name": series[1]}
