"""State managers: how long saving, loading and deleting take, and how much is held."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from amptalk_otel import _guard
from amptalk_otel._labels import OTHER, clean
from amptalk_otel._patch import Patches
from amptalk_otel._reading import StateReading, read_state
from amptalk_otel._recorder import StateOwner, StateRecorder

OPERATIONS = (("save_state", "write"), ("load_state", "read"), ("delete_state", "delete"))
"""Methods of a state manager and the `state.operation` that each is counted as."""


class StateManagerHook:
    """The wrappers on one state manager. Holds it weakly."""

    def __init__(self, manager: Any, recorder: StateRecorder) -> None:
        self.recorder = recorder
        self.users = 0
        self._manager = weakref.ref(manager)
        self._forget = weakref.finalize(manager, _hooks.pop, id(manager), None)
        self._forget.atexit = False
        self._patches = Patches()
        for attribute, operation in OPERATIONS:
            if hasattr(manager, attribute):
                self._patches.wrap(manager, attribute, self._covering(operation))

    def _covering(self, operation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        recorder, patches = self.recorder, self._patches

        def cover(call: Callable[..., Any]) -> Callable[..., Any]:
            async def call_timed(*args: Any, **kwargs: Any) -> Any:
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
                        _guard.swallow("timing a state operation")

            return call_timed

        return cover

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

    def release(self) -> None:
        """One user less; the last takes the wrappers off."""
        with _lock:
            self.users -= 1
            if self.users > 0:
                return
            self._forget()
        self._patches.undo()


_lock = threading.Lock()
_hooks: dict[int, StateManagerHook] = {}  # by id of the manager; one hook however many share it


def hook_state_manager(manager: Any, owner: StateOwner | None = None) -> StateManagerHook:
    """The hook on `manager`, new or shared; what it measures belongs to the first `owner` that asked.

    A manager that replaces another of the same storage at its owner goes on with that one's recorder.
    """
    with _lock:
        hook = _hooks.get(id(manager))
        if hook is None or not hook.is_for(manager):
            recorder = _recorder_for(manager, owner if owner is not None else StateOwner())
            hook = _hooks[id(manager)] = StateManagerHook(manager, recorder)
        hook.users += 1
        return hook


def _recorder_for(manager: Any, owner: StateOwner) -> StateRecorder:
    storage_type = getattr(manager, "storage_type", OTHER)
    storage = clean(getattr(storage_type, "value", storage_type))
    for recorder in owner.states:
        if recorder.storage == storage:
            return recorder
    recorder = StateRecorder(storage, owner)
    owner.states.append(recorder)
    return recorder
