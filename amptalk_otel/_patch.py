"""Attributes put on live objects, and taken off again: one list of (owner, attribute, wrapper) for both ways."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from amptalk_otel import _guard

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Wrapped:
    """A method replaced on one instance. The wrapper itself remembers what it covers."""

    def __init__(self, owner: Any, attribute: str, wrapper: Callable[..., Any]) -> None:
        self._owner = weakref.ref(owner)
        self._attribute = attribute
        self._wrapper = weakref.ref(wrapper)

    def undo(self) -> None:
        owner, wrapper = self._owner(), self._wrapper()
        if owner is None or wrapper is None or vars(owner).get(self._attribute) is not wrapper:
            return  # gone, or covered by somebody else's wrapper: ours stays below it and only calls through
        own_attribute = getattr(wrapper, "__amptalk_otel_covers__", None)
        if own_attribute is None:
            delattr(owner, self._attribute)
        else:
            setattr(owner, self._attribute, own_attribute)


class _Replaced:
    """A plain value replaced on one instance."""

    def __init__(self, owner: Any, attribute: str, value: Any) -> None:
        self._owner = weakref.ref(owner)
        self._attribute = attribute
        self._value = value
        self._own = attribute in vars(owner)
        self._former = vars(owner).get(attribute)

    def undo(self) -> None:
        owner = self._owner()
        if owner is None or vars(owner).get(self._attribute) is not self._value:
            return  # the program has set it since: its word counts
        if self._own:
            setattr(owner, self._attribute, self._former)
        else:
            delattr(owner, self._attribute)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument of a call, whatever the covered method's parameter is called; None without any."""
    return args[0] if args else next(iter(kwargs.values()), None)


class Patches:
    """What was put on one object and its parts. Holds none of them alive."""

    def __init__(self) -> None:
        self._patches: list[_Wrapped | _Replaced] = []
        self.active = True  # False once undone: a wrapper that somebody else has covered stays, and must not count

    def wrap(self, owner: Any, attribute: str, wrap: Wrap) -> bool:
        """Cover `owner.attribute` on the instance; False, and one log record, where that can't be done."""
        try:
            own_attribute = vars(owner).get(attribute)
            original = getattr(owner, attribute)
            wrapper = wrap(original)
            functools.update_wrapper(wrapper, original)
            wrapper.__amptalk_otel_covers__ = own_attribute  # type: ignore[attr-defined]
            patch = _Wrapped(owner, attribute, wrapper)
            setattr(owner, attribute, wrapper)
        except Exception as error:
            _report_unpatchable(owner, attribute, error)
            return False
        self._patches.append(patch)
        return True

    def replace(self, owner: Any, attribute: str, value: Any) -> None:
        """Set `owner.attribute` to `value` until `undo`."""
        try:
            patch = _Replaced(owner, attribute, value)
            setattr(owner, attribute, value)
        except Exception as error:
            _report_unpatchable(owner, attribute, error)
            return
        self._patches.append(patch)

    def undo(self) -> None:
        """Take everything off, last first. What the program has replaced since is left as it is."""
        self.active = False
        while self._patches:
            _guard.guarded("taking a wrapper off", self._patches.pop().undo)


def _report_unpatchable(owner: Any, attribute: str, error: Exception) -> None:
    kind = type(owner).__qualname__
    _guard.complain(
        f"unpatchable {kind}.{attribute}",
        "%s.%s can't be instrumented (%s): what it would tell is missing from the metrics",
        kind,
        attribute,
        type(error).__qualname__,
    )
