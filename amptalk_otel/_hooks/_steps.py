"""Going on with a coroutine whose first step was made by hand, to see whether it has to wait at all."""

from __future__ import annotations

from collections.abc import Generator
from types import CoroutineType, coroutine
from typing import Any


@coroutine
def rest_of(steps: CoroutineType[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """What `steps` returns, after its first step has yielded `awaited`.

    To the event loop and to the coroutine it is as if the one had awaited the other: `yield from` as PEP 380 spells
    it out (https://peps.python.org/pep-0380/#formal-semantics), but for the first step. Exceptions are thrown outside
    of `except`, so that what the coroutine raises has no context that it would not have. After a step that was sent
    nothing, which is what event loops send, all of the rest is one `yield from` and costs nothing more.
    """
    while True:
        thrown: BaseException | None = None
        value = None
        try:
            value = yield awaited
        except BaseException as error:
            thrown = error
        try:
            if isinstance(thrown, GeneratorExit):
                steps.close()
                raise thrown
            if thrown is None and value is None:
                return (yield from steps)  # type: ignore[misc]  # mypy does not know that a coroutine may
            awaited = steps.send(value) if thrown is None else steps.throw(thrown)
        except StopIteration as end:
            return end.value
        finally:
            thrown = None  # or it would hold the frames that it holds
