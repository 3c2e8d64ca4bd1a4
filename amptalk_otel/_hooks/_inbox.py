"""The inbox: every message that enters or leaves an agent's queue, whichever way it came.

`asyncio.Queue` and its kin put and take items through `_put` and `_get`, whose overriding is how
`PriorityQueue` and `LifoQueue` are made (https://docs.python.org/3/library/asyncio-queue.html). Covering
these two on the instance sees `put`, `put_nowait`, `get`, `get_nowait` and every caller of them.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from typing import Any

from amptalk_otel import _guard
from amptalk_otel._agent_recorder import AgentRecorder, current_task
from amptalk_otel._patch import Patches


class Inbox:
    """The hooked queue of one agent."""

    def __init__(self, recorder: AgentRecorder, agent: Any, queue: Any, loop: str | None = None) -> None:
        """`loop`: the method that takes messages from the queue, if it may run inside somebody else's task."""
        self._recorder = recorder
        self._agent = weakref.ref(agent)
        self._queue = _weak(queue)
        self._loop = loop
        self._loop_task: weakref.ref[asyncio.Task[Any]] | None = None
        self.patches = Patches()
        self.hooked = _is_queue(queue) and self._hook(queue)

    def _hook(self, queue: Any) -> bool:
        wrap = self.patches.wrap
        if not (wrap(queue, "_put", self._cover_put) and wrap(queue, "_get", self._cover_get)):
            self.patches.undo()
            return False
        for item in list(getattr(queue, "_queue", ())):
            self._recorder.waiting(item)
        return True

    def is_for(self, queue: Any) -> bool:
        return self._queue() is queue

    def size(self) -> int | None:
        """The queue's length; None where it is not hooked."""
        queue = self._queue()
        return queue.qsize() if self.hooked and queue is not None else None

    def _cover_put(self, put: Callable[..., Any]) -> Callable[..., Any]:
        arrived, patches = self._recorder.arrived, self.patches

        def _put(item: Any) -> None:
            put(item)
            try:
                if patches.active:
                    arrived(item)
            except Exception:
                _guard.swallow("counting a message that arrived")

        return _put

    def _cover_get(self, get: Callable[..., Any]) -> Callable[..., Any]:
        left, takes_for_loop, patches = self._recorder.left, self._takes_for_loop, self.patches

        def _get() -> Any:
            item = get()
            try:
                if patches.active:
                    task = current_task()
                    left(item, task, own_loop=takes_for_loop(task))
            except Exception:
                _guard.swallow("counting a message that left the inbox")
            return item

        return _get

    def _takes_for_loop(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether `task` is the agent's own loop, and not somebody who helps himself from its inbox."""
        if task is None:
            return False
        if self._loop_task is not None and self._loop_task() is task:
            return True
        agent = self._agent()
        if agent is None or not (
            task in getattr(agent, "tasks", ()) or self._runs_for(agent, task) or self._is_within_loop(agent)
        ):
            return False
        self._loop_task = weakref.ref(task)
        return True

    def _runs_for(self, agent: Any, task: asyncio.Task[Any]) -> bool:
        """Whether the task runs a method of the agent, or (in `wait_for`) of its queue."""
        frame = getattr(task.get_coro(), "cr_frame", None)
        runs_for = frame.f_locals.get("self") if frame is not None else None
        return runs_for is agent or (runs_for is not None and runs_for is self._queue())

    def _is_within_loop(self, agent: Any) -> bool:
        """Whether the agent's loop is among the callers. Asked once, for a task that turns out to be the loop's."""
        frame = sys._getframe() if self._loop is not None else None  # noqa: SLF001 - as `inspect` does, at a lower cost
        while frame is not None:
            if frame.f_code.co_name == self._loop and frame.f_locals.get("self") is agent:
                return True
            frame = frame.f_back
        return False


def _weak(queue: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(queue)
    except TypeError:  # None, or a kind that can't be referred to weakly
        return lambda: None


def _is_queue(queue: Any) -> bool:
    if all(callable(getattr(queue, name, None)) for name in ("_put", "_get", "qsize")):
        return True
    kind = type(queue).__qualname__
    _guard.complain(f"inbox {kind}", "an inbox of type %s can't be watched: it is no asyncio.Queue", kind)
    return False
