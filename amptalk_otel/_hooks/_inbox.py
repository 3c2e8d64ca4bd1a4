"""The inbox: every message that enters or leaves an agent's queue, whichever way it came.

`asyncio.Queue` and its kin put and take items through `_put` and `_get`, whose overriding is how
`PriorityQueue` and `LifoQueue` are made (https://docs.python.org/3/library/asyncio-queue.html). Covering
these two on the instance sees `put`, `put_nowait`, `get`, `get_nowait` and every caller of them.
"""

from __future__ import annotations

import asyncio
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from types import CoroutineType, FrameType
from typing import Any

from amptalk_otel import _guard
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._buckets import DURATION_BOUNDS_S
from amptalk_otel._calls import Wrap
from amptalk_otel._copies import keep_out_of_copies
from amptalk_otel._hooks._tasks import callers, current_task
from amptalk_otel._patch import Patches
from amptalk_otel._tracing._current import agent_starts
from amptalk_otel._type_recorder import TypeRecorder
from amptalk_otel._under_way import NOTHING, TaskReference, nobody
from amptalk_otel._waiting import UNKNOWN_ARRIVAL, ByMessage, InOrder


class Inbox:
    """The hooked queue of one agent."""

    __slots__ = (
        "_agent",
        "_in_handler",
        "_loop",
        "_loop_task",
        "_queue",
        "_recorder",
        "hooked",
        "loop_coroutine",
        "patches",
        "sent_in",
    )

    def __init__(
        self,
        recorder: AgentRecorder,
        agent: Any,
        queue: Any,
        loop: str | None = None,
        in_handler: Callable[[], bool] = lambda: False,
        *,
        is_counted: bool = True,
    ) -> None:
        """`loop`: the method that takes messages from the queue, if it may run inside somebody else's task.

        `in_handler` tells whether the caller works on one of the agent's messages. `is_counted`: whether the end of
        processing is seen; if not, messages would seem to be in work for ever, and none is counted.
        """
        self.sent_in: Callable[[Any], Any] | None = None
        """For traces: tells the context that a message comes from, and never raises."""
        self._recorder = recorder
        self._agent = weakref.ref(agent)
        self._queue = _weak(queue)
        self._loop = loop
        self._in_handler = in_handler
        self._loop_task: TaskReference = nobody
        # A coroutine runs while its task is the current one: a tenth of the cost of asking asyncio for that.
        self.loop_coroutine: Callable[[], CoroutineType[Any, Any, Any] | None] = nobody
        self.patches = Patches()
        self.hooked = is_counted and _is_queue(queue) and self._hook(queue)

    def _hook(self, queue: Any) -> bool:
        wrap = self.patches.wrap
        last_first = isinstance(queue, asyncio.LifoQueue)
        self._recorder.waiting = waiting = InOrder() if _is_in_order(queue) else ByMessage(last_first=last_first)
        covers = self._covering(waiting, queue) if isinstance(waiting, InOrder) else (self._cover_put, self._cover_get)
        if not (wrap(queue, "_put", covers[0]) and wrap(queue, "_get", covers[1])):
            self.patches.undo()
            return False
        _guard.guarded("keeping wrappers out of copies", keep_out_of_copies, self.patches, queue)
        _guard.guarded("looking at the messages that wait", self._look_at_waiting, queue)
        return True

    def _look_at_waiting(self, queue: Any) -> None:
        for item in list(getattr(queue, "_queue", ())):
            self._recorder.is_there(item)

    def release(self) -> None:
        """Take the wrappers off. One that somebody else has covered stays, and counts no more."""
        self.patches.undo()
        self._recorder.forget_types()
        self.loop_coroutine = nobody

    def is_for(self, queue: Any) -> bool:
        return self._queue() is queue

    def size(self) -> int | None:
        """The queue's length; None where it is not hooked, or does not tell."""
        queue = self._queue()
        if not self.hooked or queue is None:
            return None
        try:
            length: int = queue.qsize()
        except Exception:
            _guard.swallow("reading the length of an inbox")
            return None
        return length

    # -- any queue -----------------------------------------------------------------------------------

    def _cover_put(self, put: Callable[..., Any]) -> Callable[..., Any]:
        arrived, patches = self._recorder.arrived, self.patches

        def _put(item: Any) -> None:
            put(item)
            try:
                if patches.active:
                    sent_in = self.sent_in
                    arrived(item, sent_in(item) if sent_in is not None else None)
            except Exception:
                _guard.swallow("counting a message that arrived")

        return _put

    def _cover_get(self, get: Callable[..., Any]) -> Callable[..., Any]:
        left, patches = self._left, self.patches

        def _get() -> Any:
            item = get()
            try:
                if patches.active:
                    left(item)
            except Exception:
                _guard.swallow("counting a message that left the inbox")
            return item

        return _get

    def _left(self, item: Any) -> None:
        """Count a message that left, whoever took it."""
        task = current_task()
        own_loop = self._takes_for_loop(task) and not (self._recorder.is_in_work and self._in_handler())
        self._recorder.left(item, self._loop_task if own_loop else nobody, own_loop=own_loop)

    # -- first in, first out -------------------------------------------------------------------------
    #
    # The same, written out for the queue that nearly every agent has: no call where nothing is out of the ordinary, and
    # what `asyncio.Queue` itself does in place of a call of it.

    def _covering(self, waiting: InOrder, queue: Any) -> tuple[Wrap, Wrap]:  # noqa: C901 - two that share what they hold
        inbox, recorder, arrivals = self, self._recorder, waiting.arrivals
        known, clock = recorder.by_type, recorder.clock

        def cover_put(_covered: Callable[..., Any]) -> Callable[..., Any]:
            def _put(item: Any) -> None:
                queue._queue.append(item)  # noqa: SLF001 - asyncio's own way
                try:
                    try:
                        record = known[item.message_type._value_]
                    except Exception:  # whatever a message raises, it came
                        unknown = inbox.get_to_know(item)
                        if unknown is None:
                            return
                        record = unknown
                    # Before `received`: a reader that sees the message counted must find when it came.
                    sent_in = inbox.sent_in
                    arrivals.append((record, clock(), sent_in(item) if sent_in is not None else None))
                    record.received = received = record.received + 1
                    if received >= record.next_size_at:
                        recorder.measure_size(record, item)
                except Exception:
                    _guard.swallow("counting a message that arrived")

            return _put

        def cover_get(_covered: Callable[..., Any]) -> Callable[..., Any]:
            def _get() -> Any:
                store = queue._queue  # noqa: SLF001 - as above
                item = store.popleft()
                try:
                    loop, length = inbox.loop_coroutine(), len(arrivals)
                    if (
                        loop is None
                        or not loop.cr_running  # then somebody else takes the message
                        or isinstance(item, tuple)  # then the message is inside
                        or recorder.next_message is not NOTHING
                        or length != len(store) + 1  # the store may be changed directly
                    ):
                        inbox.left_in_order(item)
                        return item
                    record, arrived_at, context = arrivals.popleft()
                    recorder.next_message, recorder.next_record = item, record
                    recorder.next_taken_at = now = clock()
                    if now >= recorder.peak_ends_at:
                        recorder.begin_peak(now)
                    if length > recorder.peak:  # noqa: PLR1730 - twice as fast as a call of max
                        recorder.peak = length
                    is_traced = recorder.tells_waits_late
                    if is_traced:
                        recorder.next_sent_in, recorder.next_waited_s = context, None
                    if arrived_at:
                        seconds = now - arrived_at
                        wait = record.wait
                        wait.counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
                        wait.sum += seconds
                        if is_traced:
                            recorder.next_waited_s = seconds
                        elif recorder.observers:
                            recorder.tell_wait(record, seconds)
                    else:
                        record.unwaited += 1
                except Exception:
                    _guard.swallow("counting a message that left the inbox")
                return item

            return _get

        return cover_put, cover_get

    def get_to_know(self, item: Any) -> TypeRecorder | None:
        """The counts of a type that is seen for the first time, or can't be looked up; None once we are off."""
        return self._recorder.record_of(item) if self.patches.active else None

    def left_in_order(self, item: Any) -> None:
        """Count a message that left out of the ordinary: the first, one that is lost, one that somebody else took."""
        waiting, queue = self._recorder.waiting, self._queue()
        if not self.patches.active or not isinstance(waiting, InOrder) or queue is None:
            return
        vanished = len(waiting) - len(queue._queue) - 1  # noqa: SLF001 - the store may be changed directly
        if vanished > 0:
            self._recorder.vanished(vanished)
        elif vanished < 0:
            self._slipped_in(item, waiting)
        self._left(item)

    def _slipped_in(self, item: Any, waiting: InOrder) -> None:
        """There are messages in the queue that were not seen to come. This is one, if the next known is no such."""
        record = self._recorder.record_of(item)
        if not waiting.arrivals or waiting.arrivals[0][0] is not record:
            waiting.arrivals.appendleft((record, UNKNOWN_ARRIVAL, None))
            record.received += 1

    # -- who takes -----------------------------------------------------------------------------------

    def _takes_for_loop(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether `task` is the agent's own loop, and not somebody who helps himself from its inbox."""
        if task is None:
            return False
        if self._loop_task() is task:
            return True
        agent = self._agent()
        if agent is None or not (
            task in getattr(agent, "tasks", ()) or self._runs_for(agent, task) or self._is_within_loop(agent)
        ):
            return False
        if self.sent_in is not None:
            _guard.guarded("looking at what an agent was started in", agent_starts)
        self._loop_task = weakref.ref(task)
        coroutine = task.get_coro()
        self.loop_coroutine = weakref.ref(coroutine) if isinstance(coroutine, CoroutineType) else nobody
        return True

    def _runs_for(self, agent: Any, task: asyncio.Task[Any]) -> bool:
        """Whether the task runs a method of the agent, or (in `wait_for`) of its queue."""
        frame = getattr(task.get_coro(), "cr_frame", None)
        runs_for = _owner_of(frame) if frame is not None else None
        return runs_for is agent or (runs_for is not None and runs_for is self._queue())

    def _is_within_loop(self, agent: Any) -> bool:
        """Whether the agent's loop is among the callers. Asked once, for a task that turns out to be the loop's."""
        if self._loop is None:
            return False
        return any(frame.f_code.co_name == self._loop and _owner_of(frame) is agent for frame in callers())


def _owner_of(frame: FrameType) -> Any:
    """Whose method runs there; None for a function that is nobody's, though its first argument may be an agent."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    name = code.co_varnames[0]
    owner = frame.f_locals.get(name)
    is_method = name == "self" or getattr(getattr(type(owner), code.co_name, None), "__code__", None) is code
    return owner if is_method else None


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


def _is_in_order(queue: Any) -> bool:
    """Whether the queue gives away what came first first, exactly as `asyncio.Queue` itself does."""
    return all(_comes_from_queue(queue, name, does) for name, does in (("_put", "append"), ("_get", "popleft")))


def _comes_from_queue(queue: Any, name: str, does: str) -> bool:
    """Whether the method is asyncio's own, and does nothing but call the method `does` of a deque."""
    function = getattr(getattr(queue, name), "__func__", None)
    if function is not getattr(asyncio.Queue, name) or not isinstance(getattr(queue, "_queue", None), deque):
        return False
    called: tuple[str, ...] = function.__code__.co_names
    return called == ("_queue", does)
