"""Wrappers that fit what they cover."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amptalk_otel._calls import argument_of, calling_around, covering_coroutine, covering_one_argument


class Post:
    """Methods of all kinds."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    async def send(self, message: Any) -> Any:
        self.done.append(message)
        return message

    def send_now(self, message: Any) -> Any:
        self.done.append(message)
        return message

    def send_soon(self, message: Any) -> Awaitable[Any]:
        return asyncio.ensure_future(self.send(message))

    def send_by(self, message: Any) -> Awaitable[Any]:
        return self.send(message)

    async def send_to(self, message: Any, group_id: str = "all", *, urgent: bool = False) -> Any:
        return message, group_id, urgent

    async def send_anything(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    async def send_record(self, record: Any) -> Any:
        return record


# -- arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "first", "second"),
    [
        ("send_to", (1, "g"), {}, 1, "g"),
        ("send_to", (1,), {"group_id": "g"}, 1, "g"),
        ("send_to", (), {"group_id": "g", "message": 1}, 1, "g"),
        ("send_to", (), {"urgent": True, "message": 1}, 1, None),
        ("send_to", (1,), {"urgent": True}, 1, None),
        ("send_anything", (1, 2), {}, 1, 2),
        ("send_anything", (), {"message": 1, "group": 2}, 1, None),
        ("send", (), {}, None, None),
    ],
)
def test_an_argument_is_found_however_it_is_given(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any], first: Any, second: Any
) -> None:
    of = getattr(Post(), method)
    assert (argument_of(of)(args, kwargs), argument_of(of, 1)(args, kwargs)) == (first, second)


def test_a_method_that_does_not_say_what_it_takes_has_its_first_argument_all_the_same() -> None:
    class Silent:
        __signature__ = "none"

        def __call__(self, *_args: Any, **_kwargs: Any) -> None: ...

    assert argument_of(Silent())((), {"message": 1}) == 1


def noting(seen: list[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def cover(send: Callable[..., Any]) -> Callable[..., Any]:
        record = "a name of the wrapper's own"

        async def noted(message: Any) -> Any:
            seen.append((message, record))
            return await send(message)

        return noted

    return cover


@pytest.mark.parametrize("name", ["message", "record", "send", "seen"])
def test_a_parameter_may_have_any_name_also_one_that_the_wrapper_uses(name: str) -> None:
    space: dict[str, Any] = {}
    exec(f"class Named:\n    async def work(self, {name}):\n        return {name}", space)
    seen: list[Any] = []
    wrapper = covering_one_argument(noting(seen))(space["Named"]().work)
    assert asyncio.run(wrapper(**{name: 1})) == 1
    assert asyncio.run(wrapper(2)) == 2
    assert seen == [(1, "a name of the wrapper's own"), (2, "a name of the wrapper's own")]


# -- coroutines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["send", "send_by"])
def test_a_coroutine_is_covered_whoever_makes_it(method: str) -> None:
    post, seen = Post(), []  # type: ignore[var-annotated]
    wrapper = covering_coroutine(covering_one_argument(noting(seen)))(getattr(post, method))
    assert asyncio.run(wrapper(message=1)) == 1
    assert [message for message, _record in seen] == post.done == [1]


def test_a_plain_function_is_called_at_once_and_its_value_returned(caplog: pytest.LogCaptureFixture) -> None:
    post, seen = Post(), []  # type: ignore[var-annotated]
    wrapper = covering_coroutine(covering_one_argument(noting(seen)))(post.send_now)
    assert (wrapper(1), wrapper(2)) == (1, 2)
    assert (post.done, seen) == ([1, 2], [])
    assert [record.getMessage() for record in caplog.records] == [
        "Post.send_now returned no coroutine: what it would tell is missing from the metrics"
    ]


def test_a_future_is_returned_as_it_is_and_works_without_being_awaited(caplog: pytest.LogCaptureFixture) -> None:
    post, seen = Post(), []  # type: ignore[var-annotated]

    async def run() -> None:
        wrapper = covering_coroutine(noting(seen))(post.send_soon)
        future = wrapper(1)
        assert isinstance(future, asyncio.Future)
        await asyncio.sleep(0.01)
        assert post.done == [1]

    asyncio.run(run())
    assert seen == []
    assert len(caplog.records) == 1


def test_a_future_that_is_awaited_for_sure_can_be_covered() -> None:
    post, seen = Post(), []  # type: ignore[var-annotated]

    async def run() -> Any:
        return await covering_coroutine(noting(seen), futures=True)(post.send_soon)(1)

    assert asyncio.run(run()) == 1
    assert [message for message, _record in seen] == post.done == [1]


# -- around --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["send", "send_now", "send_by"])
def test_what_is_called_around_a_method_sees_it_begin_and_done(method: str) -> None:
    post, seen = Post(), []

    def before(message: Any) -> tuple[Any, list[Any]]:
        return message, post.done.copy()

    def after(noted: tuple[Any, list[Any]]) -> None:
        seen.append((*noted, post.done.copy()))

    wrapper = calling_around("looking", before, after)(getattr(post, method))

    async def run() -> Any:
        result = wrapper(message=1)
        return result if method == "send_now" else await result

    assert asyncio.run(run()) == 1
    assert seen == [(1, [], [1])]


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("method", ["send", "send_now", "send_by"])
def test_what_fails_around_a_method_does_not_reach_its_caller(method: str) -> None:
    def fail(_seen: Any) -> None:
        raise RuntimeError

    wrapper = calling_around("looking", fail, fail)(getattr(Post(), method))

    async def run() -> Any:
        result = wrapper(1)
        return result if method == "send_now" else await result

    assert asyncio.run(run()) == 1


def test_a_decorated_method_is_covered_as_what_it_returns() -> None:
    def twice(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return decorated

    post, seen = Post(), []  # type: ignore[var-annotated]
    wrapper = covering_coroutine(covering_one_argument(noting(seen)))(twice(post.send))
    assert asyncio.run(wrapper(1)) == 1
    assert [message for message, _record in seen] == [1]
    gc.collect()  # no coroutine is left behind that nobody awaited
