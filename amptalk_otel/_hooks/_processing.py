"""Processing: the time from taking a message to its end, with all attempts and the back-off between them."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable
from types import FrameType
from typing import Any

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._buckets import DURATION_BOUNDS_S
from amptalk_otel._calls import covering_coroutine, covering_one_argument
from amptalk_otel._guard import guarded, swallow
from amptalk_otel._hooks._recoveries import cover_handlers, uncover_handlers
from amptalk_otel._hooks._tasks import callers
from amptalk_otel._labels import error_type_of
from amptalk_otel._patch import Patches
from amptalk_otel._tracing._agent import AgentTracing, Attempts, Work
from amptalk_otel._type_recorder import TypeRecorder
from amptalk_otel._under_way import IN_WORK, NOTHING, Flight, Retrying

_TRACED = "process_traced"
_WRAPPERS = ("process_watched", _TRACED)


class Processing:
    """The wrappers on the methods of one agent that work on a message.

    `process` is covered for good. Attempts are of interest once one has failed: where `process` calls the method
    `judge` with the exception of each failed attempt, `attempt` is covered only while a message is being
    retried, and costs nothing before. Otherwise it is covered for good as well.
    """

    __slots__ = (
        "_agent",
        "_attempt",
        "_attempt_patches",
        "_attempts",
        "_error_handlers",
        "_in_work",
        "_patches",
        "_recorder",
        "is_covered",
        "tracing",
    )

    def __init__(
        self,
        recorder: AgentRecorder,
        agent: Any,
        *,
        process: str | None,
        attempt: str | None,
        judge: str | None,
        error_handlers: str | None = None,
    ) -> None:
        """The names of methods, and of the dictionary of error handlers."""
        self._recorder = recorder
        self.tracing: AgentTracing | None = None
        """What makes the spans; None while there are none."""
        self._attempts: dict[int, Attempts] = {}  # at messages that are retried, by id; for traces
        self._agent = weakref.ref(agent)
        self._attempt = attempt
        self._error_handlers = error_handlers
        self._patches = Patches()
        self._attempt_patches: Patches | None = None  # while attempts are covered
        # Where attempts are always covered: by id of the message.
        self._in_work: dict[int, tuple[TypeRecorder, Work | None]] | None = None
        self.is_covered = False
        """Whether the end of processing is seen."""
        if process is None:
            return
        try:
            self._cover(agent, process, judge)
        finally:
            if not self.is_covered:
                self.release()

    def _cover(self, agent: Any, process: str, judge: str | None) -> None:
        if self._attempt is not None:
            if judge is not None and _is_called_by(getattr(agent, process), judge):
                self._patches.wrap(agent, judge, covering_one_argument(self._cover_judge))
            else:
                self._in_work = {}
                self._watch_attempts()
        cover = covering_coroutine(covering_one_argument(self._cover_processing), futures=True)
        self.is_covered = self._patches.wrap(agent, process, cover)

    def release(self) -> None:
        """Take every wrapper off."""
        self._let_attempts_be()
        self._patches.undo()

    def in_handler(self) -> bool:
        """Whether the caller works on one of the agent's messages."""
        return self._wrapper_among_callers() is not None

    def message_in_handler(self) -> int | None:
        """The id of the message in work that the caller works on; None where that is none."""
        frame = self._wrapper_among_callers()
        return None if frame is None or frame.f_locals.get("record") is None else id(_message_in(frame))

    # -- processing ----------------------------------------------------------------------------------

    def _cover_processing(self, process: Callable[..., Any]) -> Callable[..., Any]:
        processing, recorder, clock = self, self._recorder, self._recorder.clock
        unstarted, in_work = recorder.unstarted, self._in_work

        async def process_watched(message: Any) -> Any:
            if processing.tracing is not None:
                return await processing.process_traced(processing.tracing, process, message)
            # What `recorder.started` and `recorder.processed` do, written out for a message that goes the usual way.
            if recorder.next_message is message and not unstarted:
                record, taken_at = recorder.next_record, recorder.next_taken_at
                recorder.next_message = IN_WORK
            else:
                flight: Flight | None = guarded("looking at a message", recorder.started, message)
                if flight is None:
                    return await process(message)
                record, taken_at = flight.record, flight.taken_at
            if in_work is not None:
                in_work[id(message)] = record, None
            try:
                result = await process(message)
            except BaseException as error:
                guarded("counting a failed message", processing.failed, record, taken_at, message, error)
                raise
            try:
                if recorder.next_message is not IN_WORK or recorder.retrying or in_work is not None:
                    processing.processed(record, taken_at, message)
                    return result
                seconds = clock() - taken_at
                work = record.process
                work.counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
                work.sum += seconds
                if recorder.observers:
                    recorder.tell_work(record, seconds)
                recorder.next_message = NOTHING  # last: an agent that left may retire from now on, in another thread
            except Exception:
                swallow("counting a processed message")
            return result

        return process_watched

    async def process_traced(self, tracing: AgentTracing, process: Callable[..., Any], message: Any) -> Any:
        """`process_watched` in a span: all that it does, and the context around it."""
        recorder = self._recorder
        if recorder.next_message is message and not recorder.unstarted:
            record, taken_at = recorder.next_record, recorder.next_taken_at
            sent_in, waited_s = recorder.next_sent_in, recorder.next_waited_s
            recorder.next_message = IN_WORK
        else:
            flight: Flight | None = guarded("looking at a message", recorder.started, message)
            if flight is None:
                return await process(message)
            record, taken_at, sent_in, waited_s = flight.record, flight.taken_at, flight.sent_in, flight.waited_s
        work: Work | None = guarded("starting a span", tracing.begin, message, record, sent_in, taken_at, waited_s)
        context = work.context if work is not None else None
        if waited_s is not None and recorder.observers:
            recorder.tell_wait(record, waited_s, context)
        if self._in_work is not None:
            self._in_work[id(message)] = record, work
        try:
            result = await process(message)
        except BaseException as error:
            seconds = guarded("counting a failed message", self.failed, record, taken_at, message, error, context)
            if work is not None:
                guarded("ending a span", tracing.end, work, seconds or 0.0, None, error)
            raise
        seconds = guarded("counting a processed message", self._count_processed, record, taken_at, message, context)
        if work is not None:
            guarded("ending a span", tracing.end, work, seconds or 0.0, result)
        return result

    def _count_processed(self, record: TypeRecorder, taken_at: float, message: Any, context: Any) -> float:
        recorder = self._recorder
        if recorder.next_message is not IN_WORK or recorder.retrying or self._in_work is not None:
            return self.processed(record, taken_at, message, context)
        try:
            return recorder.observe_work(record, taken_at, context)
        finally:
            recorder.next_message = NOTHING

    def processed(self, record: TypeRecorder, taken_at: float, message: Any, context: Any = None) -> float:
        """Count a message that was not alone, was retried, or is traced. Returns the seconds it took."""
        seconds = self._recorder.processed(record, taken_at, message, context)
        self._forget(message)
        return seconds

    def failed(
        self, record: TypeRecorder, taken_at: float, message: Any, error: BaseException, context: Any = None
    ) -> float:
        """Count a message that failed or was cancelled, after as many seconds."""
        seconds = self._recorder.failed(record, taken_at, message, error, context)
        self._forget(message)
        return seconds

    def _forget(self, message: Any) -> None:
        self._attempts.pop(id(message), None)
        if self._in_work is not None:
            self._in_work.pop(id(message), None)
        elif not self._recorder.retrying:
            self._let_attempts_be()

    def _wrapper_among_callers(self) -> FrameType | None:
        """The call of `process_watched` that the caller works for."""
        for frame in callers():
            if frame.f_code.co_name in _WRAPPERS and frame.f_locals.get("recorder") is self._recorder:
                return frame
        return None

    # -- attempts ------------------------------------------------------------------------------------

    def _cover_judge(self, judge: Callable[..., Any]) -> Callable[..., Any]:
        def judge_watched(error: Any) -> Any:
            guarded("looking at a failed attempt", self._attempt_failed, error)
            return judge(error)

        return judge_watched

    def _attempt_failed(self, error: Any) -> None:
        frame = self._wrapper_among_callers()
        record = frame.f_locals.get("record") if frame is not None else None
        if frame is not None and record is not None and isinstance(error, Exception):
            self._count_failed(record, frame.f_locals.get("work"), _message_in(frame), error)
            self._watch_attempts()

    def _count_failed(self, record: TypeRecorder, work: Work | None, message: Any, error: Exception) -> None:
        self._recorder.attempt_failed(record, message, error)
        if self.tracing is not None and work is not None:
            guarded("telling a failed attempt", self._tell_failed, self.tracing, work, message, error)

    def _tell_failed(self, tracing: AgentTracing, work: Work, message: Any, error: Exception) -> None:
        attempts = self._attempts.get(id(message)) or tracing.attempts_at(work)
        if attempts is not None:
            self._attempts[id(message)] = attempts
            attempts.failed(error_type_of(error))

    def _watch_attempts(self) -> None:
        agent = self._agent()
        if self._attempt_patches is None and self._patches.active and agent is not None and self._attempt is not None:
            self._attempt_patches = Patches()
            cover = covering_coroutine(covering_one_argument(self._cover_attempt), futures=True)
            self._attempt_patches.wrap(agent, self._attempt, cover)
            if self._error_handlers is not None:
                cover_handlers(getattr(agent, self._error_handlers, None), cover)

    def _cover_attempt(self, attempt: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self._recorder

        async def attempt_watched(message: Any) -> Any:
            retrying = guarded("looking at an attempt", self._retried, message) if recorder.retrying else None
            try:
                return await attempt(message)
            except Exception as error:
                if self._in_work is not None:
                    guarded("counting a failed attempt", self._note_failed, message, error)
                raise
            finally:
                if retrying is not None:
                    retrying.attempting = False

        return attempt_watched

    def _retried(self, message: Any) -> Retrying | None:
        retrying, attempts = self._recorder.retry(message), self._attempts.get(id(message))
        if retrying is not None and attempts is not None:
            guarded("telling a retry", attempts.retried)
        return retrying

    def _note_failed(self, message: Any, error: Exception) -> None:
        record, work = self._in_work.get(id(message), (None, None)) if self._in_work is not None else (None, None)
        if record is not None:  # else it is the program's own call
            self._count_failed(record, work, message, error)

    def _let_attempts_be(self) -> None:
        if self._attempt_patches is not None:
            self._attempt_patches.undo()
            self._attempt_patches = None
            if self._error_handlers is not None:
                uncover_handlers(getattr(self._agent(), self._error_handlers, None))


def _message_in(frame: FrameType) -> Any:
    """What a wrapper works on. The one parameter of `process_watched` has the name that the covered method's has."""
    code = frame.f_code
    return frame.f_locals["message" if code.co_name == _TRACED else code.co_varnames[0]]


def _is_called_by(process: Callable[..., Any], name: str) -> bool:
    """Whether the code of `process` calls the method `name`: a subclass may have its own way to retry."""
    code = getattr(getattr(process, "__func__", None), "__code__", None)
    return code is not None and name in code.co_names
