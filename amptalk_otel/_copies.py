"""Copies of what is covered have no wrappers: those would work on the original.

`copy`, `deepcopy` and `pickle` ask an object for its state by the method `__getstate__`, also where it is the
instance's own (https://docs.python.org/3/library/pickle.html#object.__getstate__). So it is covered as well.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from types import FunctionType
from typing import Any

from amptalk_otel._patch import COVERED, Patches

_OURS = "amptalk_otel._"
"""How the names of the modules begin that wrappers are written in."""


def keep_out_of_copies(patches: Patches, owner: Any) -> None:
    """Let copies of `owner` be as if it were not covered, until `patches` are undone.

    But for what was replaced by a value: `enable_performance_monitoring` stays False.
    """
    if hasattr(owner, "__getstate__"):
        patches.wrap(owner, "__getstate__", _covering)
    elif not copyreg._slotnames(type(owner)):  # type: ignore[attr-defined]  # noqa: SLF001 - as Python 3.10 itself does
        patches.add(owner, "__getstate__", _state_as_python_has_it(owner))


def _covering(get_state: Callable[[], Any]) -> Callable[[], Any]:
    def __getstate__() -> Any:  # noqa: N807 - it stands for one
        return _without_ours(get_state())

    return __getstate__


def _state_as_python_has_it(owner: Any) -> Callable[[], Any]:
    """Up to Python 3.10 objects have no such method: their state is their dictionary."""
    return _covering(lambda: vars(owner))


def _without_ours(state: Any) -> Any:
    if isinstance(state, tuple) and len(state) == 2:  # the dictionary, and the slots
        return _without_ours(state[0]), state[1]
    if not isinstance(state, dict):
        return state
    kept = {name: _below(value) for name, value in state.items()}
    return {name: value for name, value in kept.items() if value is not _NOTHING}


_NOTHING = object()


def _below(value: Any) -> Any:
    """What the instance would have in place of a wrapper of ours; anything else as it is."""
    if not isinstance(value, FunctionType) or not str(value.__globals__.get("__name__")).startswith(_OURS):
        return value
    return getattr(value, COVERED, _NOTHING)
