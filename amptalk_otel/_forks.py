"""What a forked child has to make anew: a lock that another thread of the parent held would stay locked for ever."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

OwnerT = TypeVar("OwnerT")
LockT = TypeVar("LockT")

_acts: weakref.WeakKeyDictionary[Any, list[Callable[[Any], object]]] = weakref.WeakKeyDictionary()


def after_fork(act: Callable[[], None]) -> None:
    """Call `act` in each forked child, before anything else runs there. Nothing where the system knows no forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


def after_fork_of(owner: OwnerT, act: Callable[[OwnerT], object]) -> None:
    """Call `act(owner)` in each forked child, for as long as there is `owner`, which `act` must not hold."""
    _acts.setdefault(owner, []).append(act)


def lock_of(owner: object, make: Callable[[], LockT], name: str = "_lock") -> LockT:
    """What `make` returns, to be kept as `owner`'s attribute `name`: a forked child finds another one there.

    Another one instead of this one let go: it is a plain lock, and whoever forks while they hold it may release it.
    Use it as `with owner._lock:`, or keep it from `acquire` to `release`. The owner may be a module.
    """
    after_fork_of(owner, lambda owner: setattr(owner, name, make()))
    return make()


def _renew() -> None:
    for owner, acts in list(_acts.items()):
        for act in acts:
            act(owner)


after_fork(_renew)
