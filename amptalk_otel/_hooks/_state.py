"""State managers: how long saving, loading and deleting take, and how much is held."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amptalk_otel._calls import covering_coroutine
from amptalk_otel._copies import keep_out_of_copies
from amptalk_otel._forks import lock_of
from amptalk_otel._guard import guarded, swallow
from amptalk_otel._labels import OTHER, clean
from amptalk_otel._patch import Patches
from amptalk_otel._reading import StateReading, read_state
from amptalk_otel._recorder import StateOwner, StateRecorder
from amptalk_otel._tracing._attributes import of_agent
from amptalk_otel._tracing._tracer import Inside, MessageTracer

OPERATIONS = (("save_state", "write"), ("load_state", "read"), ("delete_state", "delete"))
"""Methods of a state manager and the `state.operation` that each is counted as."""


@dataclass(eq=False, slots=True)
class User:
    """Whoever has a state manager, or watches it for itself."""

    owner: StateOwner
    tracer: MessageTracer | None = None
    agent: tuple[str, str] | None = None
    """Its id and its name, if it is an agent."""


class StateManagerHook:
    """The wrappers on one state manager. Holds it weakly.

    What it measures belongs to the first of its users; when that leaves, from then on to the next.
    """

    def __init__(self, manager: Any) -> None:
        self.users: list[User] = []
        self.recorder: StateRecorder
        self._manager = weakref.ref(manager)
        self._forget = weakref.finalize(manager, _hooks.pop, id(manager), None)
        self._forget.atexit = False
        self._patches = Patches()
        for attribute, operation in OPERATIONS:
            if hasattr(manager, attribute):
                self._patches.wrap(manager, attribute, covering_coroutine(self._covering(attribute, operation)))
        guarded("keeping wrappers out of copies", keep_out_of_copies, self._patches, manager)

    def _covering(self, method: str, operation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        patches = self._patches

        def cover(call: Callable[..., Any]) -> Callable[..., Any]:
            async def call_timed(*args: Any, **kwargs: Any) -> Any:
                span: Inside | None = guarded("starting a span", self._begin, method, operation)
                began_at, failure = self.recorder.clock(), None
                try:
                    return await call(*args, **kwargs)
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    try:
                        if patches.active:
                            self.recorder.operated(operation, self.recorder.clock() - began_at, failure)
                    except Exception:
                        swallow("timing a state operation")
                    if span is not None:
                        guarded("ending a span", span.end, failure)

            return call_timed

        return cover

    def _begin(self, method: str, operation: str) -> Inside | None:
        user = next((user for user in self.users if user.tracer is not None), None)
        if user is None or user.tracer is None or not self._patches.active:
            return None
        attributes = {"state.storage": self.recorder.storage, "state.operation": operation}
        agent = self.users[0].agent
        if agent is not None:
            attributes.update(of_agent(*agent))
        return user.tracer.start_inside(method, attributes)

    def is_for(self, manager: Any) -> bool:
        return self._manager() is manager

    def read(self) -> StateReading:
        """What the manager holds now. No I/O: for file storage this is its memory copy."""
        manager = self._manager()
        optimizer = getattr(manager, "memory_optimizer", None)
        size_bytes = getattr(optimizer, "current_size_bytes", None)
        # The framework's optimizer forgets what it would evict, which stays in memory all the same.
        held = getattr(manager, "memory_data", None)
        items = len(held) if held is not None else getattr(optimizer, "item_count", None)
        return read_state(self.recorder, size_bytes, items)

    def read_for(self, user: User) -> StateReading:
        """The part of it that is told of this user."""
        if self.recorder.owner is user.owner:
            return self.read()
        return read_state(user.owner.state_recorder(self.recorder.storage))

    def join(self, user: User) -> None:
        """One user more."""
        self.users.append(user)
        if len(self.users) == 1:
            self._measure_for(user)

    def release(self, user: User) -> None:
        """One user less; the last takes the wrappers off."""
        with _lock:
            self.users.remove(user)
            if self.users:
                self._measure_for(self.users[0])
                return
            self._forget()
        self._patches.undo()

    def _measure_for(self, user: User) -> None:
        """A manager that replaces another of the same storage at its owner goes on with that one's recorder."""
        storage_type = getattr(self._manager(), "storage_type", OTHER)
        self.recorder = user.owner.state_recorder(clean(getattr(storage_type, "value", storage_type)))


_lock = lock_of(sys.modules[__name__], threading.Lock)
_hooks: dict[int, StateManagerHook] = {}  # by id of the manager; one hook however many share it


def hook_state_manager(manager: Any, user: User) -> StateManagerHook:
    """The hook on `manager`, new or shared, with one user more."""
    with _lock:
        hook = _hooks.get(id(manager))
        if hook is None or not hook.is_for(manager):
            hook = _hooks[id(manager)] = StateManagerHook(manager)
        hook.join(user)
        return hook
