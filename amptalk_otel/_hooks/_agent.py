"""One agent: inbox, outbox, processing, attempts, sends, start, and the state manager it makes itself."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from types import CoroutineType
from typing import Any

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._calls import covering_coroutine, covering_one_argument
from amptalk_otel._copies import keep_out_of_copies
from amptalk_otel._guard import guarded, swallow
from amptalk_otel._hooks._inbox import Inbox
from amptalk_otel._hooks._outbox import Outbox, Router
from amptalk_otel._hooks._processing import Processing
from amptalk_otel._hooks._state import StateManagerHook, User, hook_state_manager
from amptalk_otel._hooks._steps import rest_of
from amptalk_otel._labels import clean
from amptalk_otel._patch import Patches
from amptalk_otel._reading import AgentReading, StateReading, oldest_age_s, read_state, read_types
from amptalk_otel._tracing._agent import AgentTracing
from amptalk_otel._tracing._current import agent_runs, agent_starts
from amptalk_otel._tracing._sending import in_span
from amptalk_otel._tracing._tracer import MessageTracer
from amptalk_otel.adapters import AgentAdapter, method_of


class AgentHook:
    """The wrappers on one agent, and the way to read it. Holds the agent weakly."""

    __slots__ = (
        "_adapter",
        "_inbox",
        "_outbox",
        "_patches",
        "_processing",
        "_state",
        "_state_is_covered",
        "_tracer",
        "_tracing",
        "_user",
        "agent_id",
        "agent_name",
        "agent_ref",
        "recorder",
    )

    def __init__(
        self,
        agent: Any,
        recorder: AgentRecorder,
        adapter: AgentAdapter,
        router: Router | None = None,
    ) -> None:
        self.recorder = recorder
        self.agent_id, self.agent_name = identify(adapter, agent)
        self._tracer: MessageTracer | None = None
        self._tracing: AgentTracing | None = None
        self.agent_ref = weakref.ref(agent)
        self._adapter = adapter
        self._patches = Patches()
        self._user = User(recorder, agent=(self.agent_id, self.agent_name))
        self._state: StateManagerHook | None = None
        self._state_is_covered = False
        queue, outbox = adapter.inbox(agent), adapter.outbox(agent)  # first, while nothing is covered: they may fail
        self._processing = self._cover_processing(agent)
        self._outbox = Outbox(recorder, outbox, adapter.target, router) if outbox is not None else None
        try:
            self._cover(agent)
            self._inbox = self._hook_inbox(agent, queue)
        except BaseException:  # half of the wrappers would stay for ever
            self._uncover()
            raise
        guarded("adopting a state manager", self._adopt_state_manager)
        recorder.started_at = guarded("looking since when an agent runs", self._started_at, agent)
        now = recorder.clock()
        begin = recorder.times.watch if recorder.started_at is None else recorder.times.run
        begin(now, recorder.spent_until(now))

    def _cover_processing(self, agent: Any) -> Processing:
        process, attempt = (method_of(self._adapter, agent, role) for role in ("process", "attempt"))
        if process is None:
            process, attempt = attempt, None  # no retries: what would be an attempt is all there is
        return Processing(
            self.recorder,
            agent,
            process=process,
            attempt=attempt,
            judge=self._adapter.judge,
            error_handlers=self._adapter.error_handlers,
        )

    def _cover(self, agent: Any) -> None:
        send, start, stop = (method_of(self._adapter, agent, role) for role in ("send", "start", "stop"))
        for attribute, cover in (
            (send, covering_one_argument(self._cover_send)),
            (start, self._cover_start),
            (stop, self._cover_stop),
        ):
            if attribute is not None and hasattr(agent, attribute):
                self._patches.wrap(agent, attribute, covering_coroutine(cover))
        self._switch_off_own_monitoring(agent)
        guarded("keeping wrappers out of copies", keep_out_of_copies, self._patches, agent)

    def _switch_off_own_monitoring(self, agent: Any) -> None:
        """Keep the agent from its own monitoring path, which fails every message, until we leave.

        The flag alone is not enough: the program may set it again while we watch. And it stays where the agent is with
        a monitor already: by it `stop` knows that there is one to leave.
        """
        is_with_monitor = getattr(agent, "_performance_monitor", None) is not None
        if getattr(agent, "enable_performance_monitoring", False) and not is_with_monitor:
            self._patches.replace(agent, "enable_performance_monitoring", False)
        if hasattr(agent, "_measure_processing_time"):
            self._patches.replace(agent, "_measure_processing_time", _measure_nothing)

    # -- wrappers ------------------------------------------------------------------------------------

    def _cover_send(self, send: Callable[..., Any]) -> Callable[..., Any]:
        hook, recorder, patches = self, self.recorder, self._patches

        async def send_watched(message: Any) -> Any:
            try:
                tracing = hook._tracing
                steps = send(message) if tracing is None else hook._send_traced(tracing, send, message)
                if type(steps) is CoroutineType:
                    try:
                        awaited = steps.send(None)
                    except StopIteration as end:  # it did not have to wait, as nearly always
                        delivered = end.value
                    else:
                        delivered = await hook._wait_for_room(steps, awaited)
                else:
                    delivered = await steps
            except Exception:
                if patches.active:
                    guarded("counting a failed send", recorder.undeliverable, message, "error")
                raise
            try:
                if patches.active and delivered is False:
                    self._count_undelivered(message)
                elif patches.active:
                    recorder.record_of(message).sent += 1
            except Exception:
                swallow("counting a send")
            return delivered

        return send_watched

    async def _wait_for_room(self, steps: CoroutineType[Any, Any, Any], awaited: Any) -> Any:
        """The rest of a send that has to wait: the agent is blocked, unless it works on something else meanwhile."""
        message_id = guarded("looking for who sends", self._processing.message_in_handler)
        guarded("beginning to wait for a send", self.recorder.send_waits, message_id)
        try:
            return await rest_of(steps, awaited)
        finally:
            guarded("going on after a send", self.recorder.send_goes_on, message_id)

    async def _send_traced(self, tracing: AgentTracing, send: Callable[..., Any], message: Any) -> Any:
        return await in_span(
            lambda: send(message),
            lambda: tracing.begin_send(*self._description(message)),
            lambda: self._reason(message),
        )

    def _description(self, message: Any) -> tuple[str | None, Any, str]:
        """What a span needs of a message that the agent sends: where it goes, the message, and its type."""
        destination = self._adapter.destination(self.agent_ref(), message)
        return destination, message, self.recorder.record_of(message).message_type

    def _count_undelivered(self, message: Any) -> None:
        self.recorder.undeliverable(message, self._reason(message))

    def _reason(self, message: Any) -> str:
        reason = guarded("looking at a failed send", self._adapter.undelivered_reason, self.agent_ref(), message)
        return clean(reason or "error")

    def _cover_start(self, start: Callable[..., Any]) -> Callable[..., Any]:
        async def start_watched(*args: Any, **kwargs: Any) -> Any:
            guarded("looking at a starting agent", self._before_start)
            try:
                return await start(*args, **kwargs)
            finally:
                guarded("adopting a state manager", self._adopt_state_manager)

        return start_watched

    def _cover_stop(self, stop: Callable[..., Any]) -> Callable[..., Any]:
        async def stop_watched(*args: Any, **kwargs: Any) -> Any:
            was_running = guarded("looking at a stopping agent", self._before_stop)
            try:
                return await stop(*args, **kwargs)
            finally:
                if was_running:
                    guarded("looking at a stopped agent", self._after_stop)

        return stop_watched

    def _before_stop(self) -> bool:
        """Returns whether the agent runs. Its run lasts until `stop` returns: meanwhile it saves its state."""
        agent = self.agent_ref()
        was_running = agent is not None and self._patches.active and self._adapter.is_running(agent)
        if was_running:
            self.recorder.times.is_ending = True
        return was_running

    def _after_stop(self) -> None:
        agent, recorder = self.agent_ref(), self.recorder
        recorder.times.is_ending = False
        if agent is not None and self._patches.active and not self._adapter.is_running(agent):
            now = recorder.clock()
            recorder.times.stop(now, recorder.spent_until(now))

    def _await_state_manager(self, agent: Any) -> None:
        """The agent loads its state while it starts, right after it made the manager."""
        is_wanted = getattr(agent, "state_persistence_enabled", True) and hasattr(agent, "_initialize_state_manager")
        if is_wanted and not self._state_is_covered:
            cover = covering_coroutine(self._cover_state_manager)
            self._state_is_covered = self._patches.wrap(agent, "_initialize_state_manager", cover)

    def _cover_state_manager(self, initialize: Callable[..., Any]) -> Callable[..., Any]:
        async def initialize_watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return await initialize(*args, **kwargs)
            finally:
                guarded("adopting a state manager", self._adopt_state_manager)

        return initialize_watched

    def _before_start(self) -> None:
        agent = self.agent_ref()
        if agent is None or not self._patches.active or self._adapter.is_running(agent):
            return
        if self._tracing is not None:
            guarded("looking at what an agent is started in", agent_starts)
        self.recorder.started_at = now = self.recorder.clock()
        self.recorder.times.run(now, self.recorder.spent_until(now))
        self._await_state_manager(agent)
        queue = self._adapter.inbox(agent)
        if not self._inbox.is_for(queue):
            self._inbox.release()
            self.recorder.inbox_replaced()
            self._inbox = self._hook_inbox(agent, queue)

    def _hook_inbox(self, agent: Any, queue: Any) -> Inbox:
        inbox = Inbox(
            self.recorder,
            agent,
            queue,
            self._adapter.loop,
            self._processing.in_handler,
            is_counted=self._processing.is_covered,
        )
        inbox.sent_in = self._tracing.sent_in if self._tracing is not None else None
        return inbox

    def _adopt_state_manager(self) -> None:
        agent = self.agent_ref()
        manager = self._adapter.state_manager(agent) if agent is not None else None
        if manager is None or not self._patches.active or (self._state is not None and self._state.is_for(manager)):
            return
        self._let_state_manager_be()
        self._state = hook_state_manager(manager, self._user)

    def _let_state_manager_be(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            state.release(self._user)

    def _started_at(self, agent: Any) -> float | None:
        """When an agent that runs already was started, on our clock."""
        if not self._adapter.is_running(agent):
            return None
        started_at = self._adapter.started_at(agent)
        clock = self.recorder.clock
        return clock() - (time.time() - started_at) if started_at is not None else clock()

    # -- traces --------------------------------------------------------------------------------------

    def trace(self, tracer: MessageTracer | None) -> None:
        """Make spans of the agent's messages by `tracer` from now on; None: no more."""
        if tracer is self._tracer:
            return
        self._tracer = self._user.tracer = tracer
        former, agent, clock = self._tracing, (self.agent_id, self.agent_name), self.recorder.clock
        replies = former.replies if former is not None else None  # handlers that are under way will return more
        self._tracing = tracing = AgentTracing(tracer, agent, clock, replies) if tracer is not None else None
        if former is None:
            guarded("looking at what an agent was started in", self._look_at_tasks)
        self._processing.tracing = tracing
        self._inbox.sent_in = tracing.sent_in if tracing is not None else None
        if self._outbox is not None:
            self._outbox.sent_on = self._sent_on if tracing is not None else None
        self.recorder.trace(tracing.sized if tracing is not None else None)

    def _look_at_tasks(self) -> None:
        """An agent that runs already may have been started in a span."""
        agent_runs(getattr(self.agent_ref(), "tasks", None) or ())

    def _sent_on(self, message: Any) -> None:
        if self._tracing is not None:
            self._tracing.sent_on(*self._description(message))

    # -- reading and leaving -------------------------------------------------------------------------

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """What tells the agent's series from others'."""
        return self.recorder.identity

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of an agent that left is under way any more, or never will be."""
        recorder = self.recorder
        if self.agent_ref() is None:
            return True
        return not recorder.is_in_work if recorder.departed_at is not None else not recorder.is_busy

    @property
    def recorder_id(self) -> int:
        """The same for all who watch the agent."""
        return id(self.recorder)

    def read(self, life: int | None = None) -> AgentReading:
        """The agent at this moment; callable from any thread."""
        agent = self.agent_ref()
        departed = agent is None or self.recorder.departed_at is not None
        types, queue_size, moment = read_types(self.recorder, self._queue_size)
        running = not departed and self._is_running(agent)
        uptime_s = self._uptime_s(moment.now) if running else 0.0
        return AgentReading(
            agent_id=self.recorder.agent_id,
            agent_name=self.recorder.agent_name,
            orchestrator_name=self.recorder.orchestrator_name,
            running=running,
            uptime_s=uptime_s,
            queue_size=queue_size,
            oldest_age_s=None if departed else oldest_age_s(self.recorder),
            types=types,
            states=self._read_states(departed=departed),
            recorder_id=id(self.recorder) if life is None else life,
            queue_peak=max(queue_size, moment.peak),
            time=self.recorder.times.read(
                moment.now, moment.spent, is_running=running, started_at=self.recorder.started_at
            ),
            in_flight=moment.in_hand,
            unaccounted=moment.unaccounted,
        )

    def _queue_size(self) -> int | None:
        # Asked at each look: the agent may be let go while it is read.
        return 0 if self.recorder.departed_at is not None else self._inbox.size()

    # What is asked of the agent itself may fail. What was counted is told all the same: a counter that is missing at
    # one scrape is taken to have begun anew.

    def _is_running(self, agent: Any) -> bool:
        return bool(guarded("asking an agent whether it runs", self._adapter.is_running, agent))

    def _read_states(self, *, departed: bool) -> tuple[StateReading, ...]:
        if not self.recorder.states:
            return ()
        current = None if departed else self._state
        found = []
        for recorder in self.recorder.states.copy():
            is_current = current is not None and current.recorder is recorder
            reading = guarded("reading a state manager", current.read) if current is not None and is_current else None
            found.append(reading or read_state(recorder))
        return tuple(found)

    def _uptime_s(self, now: float) -> float:
        if self.recorder.started_at is None:  # started unseen
            self.recorder.started_at = guarded("looking since when an agent runs", self._started_at, self.agent_ref())
        started_at = self.recorder.started_at
        return max(0.0, now - started_at) if started_at is not None else 0.0

    def let_go(self) -> None:
        """The agent was unregistered: take the wrappers off and account for what it leaves behind."""
        self.release()
        self.recorder.let_go()

    def release(self) -> None:
        """Take every wrapper off."""
        self._inbox.release()
        self._uncover()
        self._let_state_manager_be()

    def _uncover(self) -> None:
        if self._outbox is not None:
            self._outbox.patches.undo()
        self._processing.release()
        self._patches.undo()


def identify(adapter: AgentAdapter, agent: Any) -> tuple[str, str]:
    """The agent's id and its name."""
    return clean(adapter.agent_id(agent)), clean(adapter.agent_name(agent))


def _measure_nothing(*_args: Any, **_kwargs: Any) -> AbstractAsyncContextManager[None]:
    return nullcontext()
