"""Attributes put on live objects, and taken off again: one list of (owner, attribute, wrapper) for both ways."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import BuiltinMethodType, CodeType, FunctionType, MethodType
from typing import Any, cast

from amptalk_otel import _guard
from amptalk_otel._calls import Wrap

COVERED = "__amptalk_otel_covers__"
"""The attribute of a wrapper that has what the instance itself had in its place."""


def is_of_class(owner: Any, attribute: str, method: Any) -> bool:
    """Whether `method` is what the class of `owner` defines, and not an attribute of the instance.

    Told without `vars(owner)` where that is possible: it makes the instance's dictionary, which up to Python 3.12
    slows down every later call of a method of the instance.
    """
    if isinstance(method, BuiltinMethodType):
        return method.__self__ is owner and method.__name__ == attribute
    function = getattr(method, "__func__", None)
    return function is not None and method.__self__ is owner and function is getattr(type(owner), attribute, None)


class Patches:
    """What was put on objects, and in which order. Holds none of them alive."""

    __slots__ = ("_undo", "active")

    def __init__(self) -> None:
        self._undo: list[tuple[Any, ...]] = []  # functions with their arguments
        self.active = True  # False once undone: a wrapper that somebody else has covered stays, and must not count

    def wrap(self, owner: Any, attribute: str, wrap: Wrap) -> bool:
        """Cover `owner.attribute` on the instance; False, and one log record, where that can't be done."""
        try:
            original = getattr(owner, attribute)
            own_attribute = None if is_of_class(owner, attribute, original) else vars(owner).get(attribute)
            wrapper = wrap(original)
            _resemble(wrapper, original, attribute)
            if own_attribute is not None:  # the wrapper remembers it; here it might keep the owner alive
                setattr(wrapper, COVERED, own_attribute)
            undo = _unwrap, weakref.ref(owner), attribute, id(wrapper), cast("FunctionType", wrapper).__code__
            setattr(owner, attribute, wrapper)
        except Exception as error:
            _report_unpatchable(owner, attribute, error)
            return False
        self._undo.append(undo)
        return True

    def add(self, owner: Any, attribute: str, method: MethodType) -> None:
        """Give `owner` a method that it has not itself, until `undo`."""
        try:
            undo = _unwrap, weakref.ref(owner), attribute, id(method), method.__code__
            setattr(owner, attribute, method)
        except Exception as error:
            _report_unpatchable(owner, attribute, error)
            return
        self._undo.append(undo)

    def replace(self, owner: Any, attribute: str, value: Any) -> None:
        """Set `owner.attribute` to `value` until `undo`."""
        try:
            undo = _put_back, weakref.ref(owner), attribute, value, _own_value(owner, attribute)
            setattr(owner, attribute, value)
        except Exception as error:
            _report_unpatchable(owner, attribute, error)
            return
        self._undo.append(undo)

    def undo(self) -> None:
        """Take everything off, last first. What the program has replaced since is left as it is."""
        self.active = False
        while self._undo:
            _guard.guarded("taking a wrapper off", *self._undo.pop())


def _unwrap(owner_ref: weakref.ref[Any], attribute: str, address: int, code: CodeType) -> None:
    """Take a wrapper off that is known by its address and code, without having been held."""
    owner = owner_ref()
    found = getattr(owner, attribute, None)
    if owner is None or id(found) != address or getattr(found, "__code__", None) is not code:
        return  # gone, or covered by somebody else's wrapper: ours stays below it and only calls through
    own_attribute = getattr(found, COVERED, None)
    if own_attribute is None:
        delattr(owner, attribute)
    else:
        setattr(owner, attribute, own_attribute)


def _put_back(owner_ref: weakref.ref[Any], attribute: str, value: Any, former: Any) -> None:
    owner = owner_ref()
    if owner is None or getattr(owner, attribute, None) is not value:
        return  # the program has set it since: its word counts
    if former is _OF_CLASS:
        delattr(owner, attribute)
    else:
        setattr(owner, attribute, former)


_OF_CLASS = object()


def _own_value(owner: Any, attribute: str) -> Any:
    """What the instance has under this name; _OF_CLASS where it is what its class has."""
    value = getattr(owner, attribute)
    if is_of_class(owner, attribute, value):
        return _OF_CLASS
    return value if not hasattr(type(owner), attribute) or attribute in vars(owner) else _OF_CLASS


def _resemble(wrapper: Callable[..., Any], original: Callable[..., Any], attribute: str) -> None:
    """Let the wrapper look like what it covers; for methods that others may look at, signature and all."""
    if attribute.startswith("_") and attribute != "__init__":
        # `update_wrapper` takes a dictionary for each of these, which add up to much with many agents.
        wrapper.__name__, wrapper.__doc__ = attribute, original.__doc__
        wrapper.__qualname__ = getattr(original, "__qualname__", attribute)
    else:
        functools.update_wrapper(wrapper, original)


def _report_unpatchable(owner: Any, attribute: str, error: Exception) -> None:
    kind = type(owner).__qualname__
    _guard.complain(
        f"unpatchable {kind}.{attribute}",
        "%s.%s can't be instrumented (%s): what it would tell is missing from the metrics",
        kind,
        attribute,
        type(error).__qualname__,
    )
