"""Wrappers that fit what they cover: its parameters, however they are given, and whether it is a coroutine function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType, CoroutineType, FunctionType
from typing import Any, cast

from amptalk_otel._guard import complain, guarded

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Find = Callable[[tuple[Any, ...], dict[str, Any]], Any]


# -- arguments ---------------------------------------------------------------------------------------


def argument_of(method: Callable[..., Any], position: int = 0) -> Find:
    """Finds one argument in calls of `method`, given by position or by name; None where it is left out."""
    name = _parameter(method, position)

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > position:
            return args[position]
        if name is None and position == 0:  # the method does not say; whatever it is called
            return next(iter(kwargs.values()), None)
        return kwargs.get(name) if name is not None else None

    return find


def _parameter(method: Callable[..., Any], position: int) -> str | None:
    """The name of a parameter that may be given by name; None where there is none, or it is not known."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return None
    if position >= len(parameters) or parameters[position].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return None
    return parameters[position].name


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
        if code.co_varnames[0] == name:
            return wrapper
        if name in (*code.co_varnames, *code.co_freevars):  # the wrapper means something else by that
            return _covering_any_arguments(wrap, original)
        cast("FunctionType", wrapper).__code__ = _renamed(code, name)  # it may be called by the name of its parameter
        return wrapper

    return wrap_fitting


@functools.lru_cache(maxsize=64)
def _renamed(code: CodeType, name: str) -> CodeType:
    """`code` with another name for its first argument; the same object for all agents of a class."""
    return code.replace(co_varnames=(name, *code.co_varnames[1:]))


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
    first = argument_of(original)
    if inspect.iscoroutinefunction(original):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await wrap(lambda _first: original(*args, **kwargs))(first(args, kwargs))

        return call_async

    def call(*args: Any, **kwargs: Any) -> Any:
        return wrap(lambda _first: original(*args, **kwargs))(first(args, kwargs))

    return call


# -- coroutines --------------------------------------------------------------------------------------


def covering_coroutine(wrap: Wrap, *, futures: bool = False) -> Wrap:
    """Let `wrap`, whose wrappers are coroutine functions, cover methods that are plain functions too.

    Such a method is called at once, as its caller may rely on. If it returns a coroutine, that is covered. Anything
    else is returned as it is, and costs one log record; but with `futures`, for methods that are awaited for sure, all
    that can be awaited is covered.
    """

    def wrap_fitting(original: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(original):
            return wrap(original)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if type(result) is CoroutineType or (futures and inspect.isawaitable(result)):
                return wrap(_returning(result, original))(*args, **kwargs)
            _report_no_coroutine(original)
            return result

        return call

    return wrap_fitting


def _returning(result: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `original`, which has been called and returned `result`; with its signature."""
    stand_in = lambda *_args, **_kwargs: result  # noqa: E731 - a function of nothing but its value
    stand_in.__wrapped__ = original  # type: ignore[attr-defined]
    return stand_in


def _report_no_coroutine(method: Callable[..., Any]) -> None:
    name = getattr(method, "__qualname__", "a method")
    complain(
        f"no coroutine from {name}",
        "%s returned no coroutine: what it would tell is missing from the metrics",
        name,
    )


def calling_around(where: str, before: Callable[[Any], Any], after: Callable[[Any], None]) -> Wrap:
    """Call `before` with the first argument of the method, and `after` with what that returned, once it is done.

    That is when its coroutine has ended, if it returns one. `where` names both in the log, should they fail.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        first = argument_of(original)

        async def rest_of(steps: CoroutineType[Any, Any, Any], seen: Any) -> Any:
            result = await steps
            guarded(where, after, seen)
            return result

        def call(*args: Any, **kwargs: Any) -> Any:
            seen = guarded(where, before, first(args, kwargs))
            result = original(*args, **kwargs)
            if type(result) is CoroutineType:
                return rest_of(result, seen)
            guarded(where, after, seen)
            return result

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            seen = guarded(where, before, first(args, kwargs))
            result = await original(*args, **kwargs)
            guarded(where, after, seen)
            return result

        return call_async if inspect.iscoroutinefunction(original) else call

    return wrap
