"""Copies of what is covered have no wrappers: those would work on the original.

`copy`, `deepcopy` and `pickle` ask an object for its state by the method `__getstate__`, also where it is the
instance's own (https://docs.python.org/3/library/pickle.html#object.__getstate__). So it is covered as well.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from amptalk_otel._patch import COVERED, Patches, is_of_class

_OURS = "amptalk_otel._"
"""How the names of the modules begin that wrappers are written in."""


def keep_out_of_copies(patches: Patches, owner: Any) -> None:
    """Let copies of `owner` be as if it were not covered, until `patches` are undone.

    But for what was replaced by a value: `enable_performance_monitoring` stays False. An object that has a
    `__getstate__` of its own in place of its class's is left alone.
    """
    found = getattr(owner, "__getstate__", None)
    if found is None:  # up to Python 3.10; with slots, Python makes their state in a way of its own
        is_known = not any(getattr(kind, "__slots__", ()) for kind in type(owner).__mro__)
    else:
        is_known = is_of_class(owner, "__getstate__", found)
    if is_known:
        patches.add(owner, "__getstate__", MethodType(_state_of, owner))


def _state_of(owner: Any) -> Any:
    """One function for all: with many agents, a closure for each would add up."""
    of_class = getattr(type(owner), "__getstate__", None)
    return _without_ours(vars(owner) if of_class is None else of_class(owner))


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
    if isinstance(value, MethodType) and value.__func__ is _state_of:
        return _NOTHING
    if not isinstance(value, FunctionType) or not str(value.__globals__.get("__name__")).startswith(_OURS):
        return value
    return getattr(value, COVERED, _NOTHING)
