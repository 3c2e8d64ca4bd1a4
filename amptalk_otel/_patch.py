"""Attributes put on live objects, and taken off again: one list of (owner, attribute, wrapper) for both ways."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

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
        if owner is None or wrapper is None or getattr(owner, self._attribute, None) is not wrapper:
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
        self._own = not hasattr(type(owner), attribute) or attribute in vars(owner)
        self._former = getattr(owner, attribute)

    def undo(self) -> None:
        owner = self._owner()
        if owner is None or getattr(owner, self._attribute, None) is not self._value:
            return  # the program has set it since: its word counts
        if self._own:
            setattr(owner, self._attribute, self._former)
        else:
            delattr(owner, self._attribute)


def _is_of_class(owner: Any, attribute: str, method: Any) -> bool:
    """Whether `method` is what the class of `owner` defines, and not an attribute of the instance.

    Told without `vars(owner)` where that is possible: it makes the instance's dictionary, which up to Python 3.12
    slows down every later call of a method of the instance.
    """
    function = getattr(method, "__func__", None)
    return function is not None and method.__self__ is owner and function is getattr(type(owner), attribute, None)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument of a call, whatever the covered method's parameter is called; None without any."""
    return args[0] if args else next(iter(kwargs.values()), None)


def covering_one_argument(wrap: Wrap) -> Wrap:
    """Let `wrap` make wrappers of one argument, which cost half as much to call as those of any arguments.

    A method that takes something else gets a wrapper of any arguments all the same.
    """

    def wrap_fitting(original: Callable[..., Any]) -> Callable[..., Any]:
        name = _only_parameter(original)
        if name is None:
            return _covering_any_arguments(wrap, original)
        wrapper = wrap(original)
        code = cast("FunctionType", wrapper).__code__
        if code.co_varnames[0] != name:  # it may be called by the name of its parameter
            wrapper.__code__ = code.replace(co_varnames=(name, *code.co_varnames[1:]))
        return wrapper

    return wrap_fitting


def _only_parameter(method: Callable[..., Any]) -> str | None:
    """The name of the one parameter of a bound method that has just one, without a default."""
    function = getattr(method, "__func__", None)
    if not isinstance(function, FunctionType) or function.__defaults__:
        return None
    code = function.__code__
    takes_more = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    if code.co_argcount != 2 or code.co_posonlyargcount or code.co_kwonlyargcount or takes_more:
        return None
    return code.co_varnames[1]


def _covering_any_arguments(wrap: Wrap, original: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(original):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await wrap(lambda _first: original(*args, **kwargs))(first_argument(args, kwargs))

        return call_async

    def call(*args: Any, **kwargs: Any) -> Any:
        return wrap(lambda _first: original(*args, **kwargs))(first_argument(args, kwargs))

    return call


class Patches:
    """What was put on one object and its parts. Holds none of them alive."""

    def __init__(self) -> None:
        self._patches: list[_Wrapped | _Replaced] = []
        self.active = True  # False once undone: a wrapper that somebody else has covered stays, and must not count

    def wrap(self, owner: Any, attribute: str, wrap: Wrap) -> bool:
        """Cover `owner.attribute` on the instance; False, and one log record, where that can't be done."""
        try:
            original = getattr(owner, attribute)
            own_attribute = None if _is_of_class(owner, attribute, original) else vars(owner).get(attribute)
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
