"""What is known of objects that can't be asked for it, for as long as they are there."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Known(OrderedDict[int, tuple[Callable[[], Any], T]]):
    """By the id of an object, which is not held. One that can't be referred to weakly is; so there are limits.

    An object may go in any thread, and takes its entry with it: what is done here are single steps of the interpreter.
    """

    def __init__(self, most: int) -> None:
        """`most`: how many are kept. The oldest give way."""
        super().__init__()
        self._most = most
        self.held: set[int] = set()
        """The ids of those that are held."""

    def keep(self, of: Any, what: T) -> None:
        """Remember `what` of an object, in place of what was known of it."""
        key = id(of)
        if len(self) >= self._most:
            self.held.discard(self.popitem(last=False)[0])
        try:
            self[key] = weakref.ref(of, lambda _gone: self.pop(key, None)), what
        except TypeError:
            self.held.add(key)
            self[key] = (lambda: of), what

    def take(self, of: Any) -> T | None:
        """What is known of an object, which is forgotten; None if that is nothing."""
        key = id(of)
        known, what = self.pop(key, (None, None))
        self.held.discard(key)
        return what if known is not None and known() is of else None

    def let_go(self) -> None:
        """Forget the objects that are held."""
        while self.held:
            self.pop(self.held.pop(), None)
