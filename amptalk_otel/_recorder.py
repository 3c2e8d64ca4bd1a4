"""What the hot path writes besides an agent's messages: states, own operations, routing. No OpenTelemetry."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from amptalk_otel._buckets import DURATION_BOUNDS_S, BucketCounts
from amptalk_otel._forks import lock_of
from amptalk_otel._labels import MAX_DISTINCT, OTHER, RETIRED, error_type_of, message_type_of
from amptalk_otel._names import Names, names_of


class Observer(Protocol):
    """Is told each duration and size as it is measured (the bridge to SDK histograms).

    `context` is that of the message's trace; None where there is none.
    """

    def waited(self, message_type: str, seconds: float, context: Any) -> None: ...
    def worked(self, message_type: str, seconds: float, context: Any) -> None: ...
    def sized(self, message_type: str, size_bytes: int) -> None: ...
    def operated(self, storage: str, operation: str, error_type: str | None, seconds: float) -> None: ...
    def measured(self, key: OperationKey, seconds: float) -> None: ...


OperationKey = tuple[str, "str | None", str]
"""(agent.id, agent.name where it is known, operation.name)"""


class Reported:
    """Whatever is measured and has observers."""

    __slots__ = ("__weakref__", "observers")

    def __init__(self) -> None:
        self.observers: tuple[Observer, ...] = ()


class StateOwner(Reported):
    """Whatever has state managers: an agent, or nobody in particular."""

    __slots__ = ("names", "states")

    def __init__(self, names: Names | None = None) -> None:
        """`names`: those of its series, if others may be in it."""
        super().__init__()
        self.names: Names = names if names is not None else Names()
        self.states: list[StateRecorder] = []

    def state_recorder(self, storage: str) -> StateRecorder:
        """The one of this storage; made when it is asked for first."""
        for recorder in self.states:
            if recorder.storage == storage:
                return recorder
        recorder = StateRecorder(storage, self)
        self.states.append(recorder)
        return recorder


class OrchestratorRecorder(Reported):
    """The counts of one orchestrator."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.names: Names = names_of(("orchestrator", name))
        self.routed: dict[str, int] = {}  # by message.type
        self.undeliverable: dict[tuple[str, str], int] = {}  # by (message.type, reason)

    def routed_one(self, message: Any) -> None:
        """A message reached an agent's inbox through the orchestrator (a broadcast counts once per clone)."""
        try:
            # As `message_type_of` does for a type whose value is its label, once there is such a label.
            self.routed[message.message_type._value_] += 1
        except (AttributeError, KeyError, TypeError):
            message_type = message_type_of(message)
            if message_type not in self.routed and not self.names.has_place("routed", message_type):
                message_type = OTHER
            self.routed[message_type] = self.routed.get(message_type, 0) + 1

    def undeliverable_one(self, message: Any, reason: str) -> None:
        """A message that the orchestrator was to send reached no inbox."""
        key = (message_type_of(message), reason)
        if key not in self.undeliverable and not self.names.has_place("undeliverable", key):
            key = (OTHER, reason)
        self.undeliverable[key] = self.undeliverable.get(key, 0) + 1


class StateRecorder:
    """The durations of one state manager's operations."""

    def __init__(self, storage: str, owner: StateOwner, *, clock: Callable[[], float] = perf_counter) -> None:
        self.storage = storage
        self.owner = owner
        self.durations: dict[tuple[str, str | None], BucketCounts] = {}  # by (state.operation, error.type)
        self.clock = clock

    def operated(self, operation: str, seconds: float, error: BaseException | None) -> None:
        key = self._key(operation, None if error is None else error_type_of(error))
        self.durations[key].record(seconds)
        for observer in self.owner.observers:
            observer.operated(self.storage, key[0], key[1], seconds)

    def absorb(self, other: StateRecorder) -> None:
        """Add what another one measured."""
        for (operation, error_type), buckets in other.durations.copy().items():
            self.durations[self._key(operation, error_type)].absorb(buckets)

    def _key(self, operation: str, error_type: str | None) -> tuple[str, str | None]:
        key = (operation, error_type)
        if key not in self.durations:
            key = self.owner.names.state_operation(self.storage, operation, error_type)
            self.durations.setdefault(key, BucketCounts(DURATION_BOUNDS_S))
        return key


MAX_OPERATIONS = 10_000
"""Operations of all agents together, before the rest is `_OTHER`: the ids are the program's, and may be anything."""


class OperationRecorder(Reported):
    """The durations of operations that a program measures itself. May be written from any thread."""

    def __init__(self, *, max_agents: int = MAX_OPERATIONS, clock: Callable[[], float] = perf_counter) -> None:
        """`max_agents` have series of their own."""
        super().__init__()
        self.durations: dict[OperationKey, BucketCounts] = {}
        self.clock = clock
        self._max_agents = max_agents
        self._of_agent: dict[str, list[OperationKey]] = {}
        self._lock = lock_of(self, threading.Lock)

    def measured(self, agent_id: str, agent_name: str | None, operation: str, seconds: float) -> None:
        """One operation took `seconds`. After 50 operations of an agent the rest is `_OTHER`."""
        with self._lock:
            key = self._add_key(agent_id, agent_name, operation)
            self.durations[key].record(seconds)
        for observer in self.observers:
            observer.measured(key, seconds)

    def _add_key(self, agent_id: str, agent_name: str | None, operation: str) -> OperationKey:
        key = self._key(agent_id, agent_name, operation)
        if key not in self.durations:
            self.durations[key] = BucketCounts(DURATION_BOUNDS_S)
            self._of_agent.setdefault(key[0], []).append(key)
        return key

    def _key(self, agent_id: str, agent_name: str | None, operation: str) -> OperationKey:
        key = (agent_id, agent_name, operation)
        if key in self.durations:
            return key
        if len(self.durations) >= MAX_OPERATIONS:
            return (OTHER, None, OTHER)
        if not self._has_place(agent_id):
            return self._key(OTHER, OTHER, operation)
        return key if len(self._of_agent.get(agent_id, ())) < MAX_DISTINCT else (agent_id, agent_name, OTHER)

    def _has_place(self, agent_id: str) -> bool:
        known = self._of_agent
        named = len(known) - (OTHER in known) - (RETIRED in known)
        return agent_id in known or agent_id in (OTHER, RETIRED) or named < self._max_agents

    def measures(self, agent_id: str) -> bool:
        """Whether anything was measured of the agent."""
        return agent_id in self._of_agent

    def retire(self, agent_id: str) -> dict[OperationKey, OperationKey]:
        """The agent is gone for good: what was measured of it is `_RETIRED`'s. Returns the former keys and theirs."""
        moved = {}
        with self._lock:
            for key in self._of_agent.pop(agent_id, []):
                buckets = self.durations.pop(key)
                moved[key] = self._add_key(RETIRED, None, key[2])
                self.durations[moved[key]].absorb(buckets)
        return moved
