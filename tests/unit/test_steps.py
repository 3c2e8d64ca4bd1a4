"""A coroutine whose first step was made by hand: to both sides it is as if it had been awaited."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from types import coroutine
from typing import Any

import pytest

from amptalk_otel._hooks._steps import rest_of
from tests.support import in_loop


@coroutine
def ask(question: object) -> Any:
    return (yield question)


async def by_hand(steps: Any) -> Any:
    try:
        awaited = steps.send(None)
    except StopIteration as end:
        return end.value
    return await rest_of(steps, awaited)


async def plainly(steps: Any) -> Any:
    return await steps


Body = Callable[[list[Any]], Coroutine[Any, Any, Any]]
Answer = Callable[[Any], Any]


def send(value: object) -> Answer:
    return lambda task: task.send(value)


def throw(error: BaseException) -> Answer:
    return lambda task: task.throw(error)


def close(task: Any) -> None:
    task.close()


async def listens(log: list[Any]) -> Any:
    for question in range(3):
        try:
            log.append(await ask(question))
        except KeyError as error:
            log.append(error)
    return "done"


async def forgets(log: list[Any]) -> None:
    try:
        await ask(1)
    except BaseException:
        log.append("caught")
    raise ValueError("of its own")


async def refuses(log: list[Any]) -> None:
    try:
        await ask(1)
    finally:
        log.append("cleaned up")


async def goes_on(log: list[Any]) -> None:
    try:
        await ask(1)
    except GeneratorExit:
        await ask(2)


async def returns_at_once(log: list[Any]) -> str:
    return "at once"


KEY = KeyError("thrown")
CONVERSATIONS: list[tuple[Body, list[Answer]]] = [
    (returns_at_once, []),
    (listens, [send(None), send(None), send(None)]),
    (listens, [send("a"), send("b"), send("c")]),
    (listens, [send(None), send("b"), throw(KEY)]),
    (listens, [throw(KEY), throw(KEY), send(None)]),
    (listens, [send("a"), throw(asyncio.CancelledError())]),
    (listens, [throw(KeyboardInterrupt())]),
    (forgets, [throw(KEY)]),
    (forgets, [send(None)]),
    (forgets, [close]),
    (refuses, [close]),
    (refuses, [throw(GeneratorExit())]),
    (refuses, [throw(asyncio.CancelledError())]),
    (goes_on, [close]),
    (goes_on, [send(None)]),
]


def conversation(way: Callable[[Any], Any], body: Body, answers: list[Answer]) -> list[Any]:
    """All that is seen from both sides."""
    log: list[Any] = []
    task = way(body(log))
    for answer in [send(None), *answers]:
        try:
            log.append(("yields", answer(task)))
        except StopIteration as end:
            log.append(("returns", end.value))
        except BaseException as error:
            log.append(("raises", type(error), str(error), repr(error.__context__), repr(error.__cause__)))
    task.close()
    return log


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_either_side_sees_what_it_would_see(case: tuple[Body, list[Answer]]) -> None:
    body, answers = case
    assert conversation(by_hand, body, answers) == conversation(plainly, body, answers)


@in_loop
async def test_a_task_may_be_cancelled_at_any_of_its_steps() -> None:
    for steps in range(4):
        seen: list[str] = []

        async def work(seen: list[str]) -> None:
            try:
                for _ in range(5):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        task = asyncio.create_task(by_hand(work(seen)))
        for _ in range(steps + 1):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled"]


@in_loop
async def test_an_exception_tells_where_it_comes_from() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError

    with pytest.raises(ValueError) as raised:  # noqa: PT011
        await by_hand(fails())
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "fails"
