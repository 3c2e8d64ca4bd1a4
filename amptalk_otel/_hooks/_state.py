"""State managers: how long saving, loading and deleting take, and how much is held."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from amptalk_otel._forks import after_fork
from amptalk_otel._guard import guarded, swallow
from amptalk_otel._labels import OTHER, clean
from amptalk_otel._patch import Patches
from amptalk_otel._reading import StateReading, read_state
from amptalk_otel._recorder import StateOwner, StateRecorder
from amptalk_otel._tracing._attributes import of_agent
from amptalk_otel._tracing._tracer import Inside, MessageTracer

OPERATIONS = (("save_state", "write"), ("load_state", "read"), ("delete_state", "delete"))
"""Methods of a state manager and the `state.operation` that each is counted as."""


class StateManagerHook:
    """The wrappers on one state manager. Holds it weakly."""

    def __init__(self, manager: Any, recorder: StateRecorder, agent: tuple[str, str] | None = None) -> None:
        """`agent`: id and name of the one that has the manager."""
        self.recorder = recorder
        self._agent = agent
        self.tracers: list[MessageTracer | None] = []  # one of each user; the first there is makes the spans
        self._manager = weakref.ref(manager)
        self._forget = weakref.finalize(manager, _hooks.pop, id(manager), None)
        self._forget.atexit = False
        self._patches = Patches()
        for attribute, operation in OPERATIONS:
            if hasattr(manager, attribute):
                self._patches.wrap(manager, attribute, self._covering(attribute, operation))

    def _covering(self, method: str, operation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        recorder, patches = self.recorder, self._patches

        def cover(call: Callable[..., Any]) -> Callable[..., Any]:
            async def call_timed(*args: Any, **kwargs: Any) -> Any:
                span: Inside | None = guarded("starting a span", self._begin, method, operation)
                began_at, failure = recorder.clock(), None
                try:
                    return await call(*args, **kwargs)
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    try:
                        if patches.active:
                            recorder.operated(operation, recorder.clock() - began_at, failure)
                    except Exception:
                        swallow("timing a state operation")
                    if span is not None:
                        guarded("ending a span", span.end, failure)

            return call_timed

        return cover

    def _begin(self, method: str, operation: str) -> Inside | None:
        tracer = next(filter(None, self.tracers), None)
        if tracer is None or not self._patches.active:
            return None
        attributes = {"state.storage": self.recorder.storage, "state.operation": operation}
        if self._agent is not None:
            attributes.update(of_agent(*self._agent))
        return tracer.start_inside(method, attributes)

    def is_for(self, manager: Any) -> bool:
        return self._manager() is manager

    def read(self) -> StateReading:
        """What the manager holds now. No I/O: for file storage this is its memory copy."""
        manager = self._manager()
        optimizer = getattr(manager, "memory_optimizer", None)
        size_bytes = getattr(optimizer, "current_size_bytes", None)
        items = getattr(optimizer, "item_count", None)
        if items is None and manager is not None:
            items = len(getattr(manager, "memory_data", ()))
        return read_state(self.recorder, size_bytes, items)

    def change_tracer(self, former: MessageTracer | None, tracer: MessageTracer | None) -> None:
        """A user brings another tracer than it did."""
        with _lock:
            self.tracers[self.tracers.index(former)] = tracer

    def release(self, tracer: MessageTracer | None = None) -> None:
        """One user less, who brought `tracer`; the last takes the wrappers off."""
        with _lock:
            self.tracers.remove(tracer)
            if self.tracers:
                return
            self._forget()
        self._patches.undo()


_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


after_fork(_renew_lock)

_hooks: dict[int, StateManagerHook] = {}  # by id of the manager; one hook however many share it


def hook_state_manager(
    manager: Any,
    owner: StateOwner | None = None,
    tracer: MessageTracer | None = None,
    agent: tuple[str, str] | None = None,
) -> StateManagerHook:
    """The hook on `manager`, new or shared; what it measures belongs to the first `owner` that asked.

    A manager that replaces another of the same storage at its owner goes on with that one's recorder.
    """
    with _lock:
        hook = _hooks.get(id(manager))
        if hook is None or not hook.is_for(manager):
            recorder = _recorder_for(manager, owner if owner is not None else StateOwner())
            hook = _hooks[id(manager)] = StateManagerHook(manager, recorder, agent)
        hook.tracers.append(tracer)
        return hook


def _recorder_for(manager: Any, owner: StateOwner) -> StateRecorder:
    storage_type = getattr(manager, "storage_type", OTHER)
    return owner.state_recorder(clean(getattr(storage_type, "value", storage_type)))
