"""One agent of the framework: inbox, processing, attempts, sends, start, and the state manager it makes itself."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from amptalk_otel._guard import guarded
from amptalk_otel._hooks._inbox import Inbox
from amptalk_otel._hooks._state import StateManagerHook, hook_state_manager
from amptalk_otel._patch import Patches
from amptalk_otel._reading import AgentReading, StateReading, oldest_age_s, read_state, read_types
from amptalk_otel._recorder import AgentRecorder


class AgentHook:
    """The wrappers on one agent, and the way to read it. Holds the agent weakly."""

    def __init__(self, agent: Any, recorder: AgentRecorder) -> None:
        self.recorder = recorder
        self.agent_ref = weakref.ref(agent)
        self._patches = Patches()
        self._state: StateManagerHook | None = None
        self._inbox = Inbox(recorder, agent, agent.input_queue)
        self._cover(agent)
        self._adopt_state_manager()
        recorder.started_at = _started_at(agent, recorder.clock)

    def _cover(self, agent: Any) -> None:
        wrap = self._patches.wrap
        if hasattr(agent, "_process_with_retry"):
            wrap(agent, "_process_with_retry", self._cover_processing)
            wrap(agent, "process_message", self._cover_attempt)
        else:
            wrap(agent, "process_message", self._cover_processing)
        for attribute, cover in (
            ("send_message", self._cover_send),
            ("start", self._cover_start),
            ("_initialize_state_manager", self._cover_state_manager),
        ):
            if hasattr(agent, attribute):
                wrap(agent, attribute, cover)
        self._switch_off_own_monitoring(agent)

    def _switch_off_own_monitoring(self, agent: Any) -> None:
        """Keep the agent from its own monitoring path, which fails every message, until we leave.

        The flag alone is not enough: the program may set it again while we watch.
        """
        if getattr(agent, "enable_performance_monitoring", False):
            self._patches.replace(agent, "enable_performance_monitoring", False)
        if hasattr(agent, "_measure_processing_time"):
            self._patches.wrap(agent, "_measure_processing_time", _measure_nothing)

    # -- wrappers ------------------------------------------------------------------------------------

    def _cover_processing(self, process: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        async def process_watched(message: Any, *args: Any, **kwargs: Any) -> Any:
            flight = guarded("looking at a message", recorder.started, message)
            if flight is None:
                return await process(message, *args, **kwargs)
            try:
                result = await process(message, *args, **kwargs)
            except BaseException as error:
                guarded("counting a failed message", recorder.failed, flight, message, error)
                raise
            guarded("counting a processed message", recorder.processed, flight, message)
            return result

        return process_watched

    def _cover_attempt(self, process: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        async def attempt_watched(message: Any, *args: Any, **kwargs: Any) -> Any:
            flight = guarded("looking at an attempt", recorder.attempt, message)
            if flight is None:
                return await process(message, *args, **kwargs)
            try:
                return await process(message, *args, **kwargs)
            except Exception as error:
                guarded("counting a failed attempt", recorder.attempt_failed, flight, message, error)
                raise
            finally:
                flight.attempting = False

        return attempt_watched

    def _cover_send(self, send: Callable[..., Any]) -> Callable[..., Any]:
        recorder, agent_ref = self.recorder, self.agent_ref

        async def send_watched(message: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                delivered = await send(message, *args, **kwargs)
            except Exception:
                guarded("counting a failed send", recorder.undeliverable, message, "error")
                raise
            if delivered is False:
                reason = undelivered_reason(message, getattr(agent_ref(), "connected_agents", ()))
                guarded("counting a failed send", recorder.undeliverable, message, reason)
            else:
                guarded("counting a send", recorder.sent, message)
            return delivered

        return send_watched

    def _cover_start(self, start: Callable[..., Any]) -> Callable[..., Any]:
        async def start_watched(*args: Any, **kwargs: Any) -> Any:
            guarded("looking at a starting agent", self._before_start)
            try:
                return await start(*args, **kwargs)
            finally:
                guarded("adopting a state manager", self._adopt_state_manager)

        return start_watched

    def _cover_state_manager(self, initialize: Callable[..., Any]) -> Callable[..., Any]:
        async def initialize_watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return await initialize(*args, **kwargs)
            finally:
                guarded("adopting a state manager", self._adopt_state_manager)

        return initialize_watched

    def _before_start(self) -> None:
        agent = self.agent_ref()
        if agent is None or agent.is_running:
            return
        self.recorder.started_at = self.recorder.clock()
        if not self._inbox.is_for(agent.input_queue):
            self._inbox.patches.undo()
            self._inbox = Inbox(self.recorder, agent, agent.input_queue)

    def _adopt_state_manager(self) -> None:
        manager = getattr(self.agent_ref(), "state_manager", None)
        if manager is None or (self._state is not None and self._state.is_for(manager)):
            return
        if self._state is not None:
            self._state.release()
        self._state = hook_state_manager(manager, self.recorder)

    # -- reading and leaving -------------------------------------------------------------------------

    def read(self) -> AgentReading:
        """The agent at this moment; callable from any thread."""
        agent = self.agent_ref()
        departed = agent is None or self.recorder.departed_at is not None
        types, queue_size = read_types(self.recorder, (lambda: 0) if departed else self._inbox.size)
        running = not departed and bool(getattr(agent, "is_running", False))
        return AgentReading(
            agent_id=self.recorder.agent_id,
            agent_name=self.recorder.agent_name,
            orchestrator_name=self.recorder.orchestrator_name,
            running=running,
            uptime_s=self._uptime_s() if running else 0.0,
            queue_size=queue_size,
            oldest_age_s=None if departed else oldest_age_s(self.recorder),
            types=types,
            states=self._read_states(departed=departed),
        )

    def _read_states(self, *, departed: bool) -> tuple[StateReading, ...]:
        current = None if departed else self._state
        return tuple(
            current.read() if current is not None and current.recorder is recorder else read_state(recorder)
            for recorder in self.recorder.states.copy()
        )

    def _uptime_s(self) -> float:
        started_at = self.recorder.started_at
        return max(0.0, self.recorder.clock() - started_at) if started_at is not None else 0.0

    def let_go(self) -> None:
        """The agent was unregistered: take the wrappers off and account for what it leaves behind."""
        self.release()
        self.recorder.let_go()

    def release(self) -> None:
        """Take every wrapper off."""
        self._inbox.patches.undo()
        self._patches.undo()
        if self._state is not None:
            self._state.release()


def undelivered_reason(message: Any, known: Any) -> str:
    """Why a send returned False, told from what can still be seen of it."""
    target = getattr(message, "target_agent_id", None)
    if not target or target not in known:
        return "unknown_target"
    metadata = getattr(message, "metadata", None)
    hops, limit = getattr(metadata, "hop_count", None), getattr(metadata, "ttl", None)
    return "expired" if hops is not None and limit is not None and hops > limit else "error"


def _measure_nothing(_broken: Callable[..., Any]) -> Callable[..., AbstractAsyncContextManager[None]]:
    def measure_nothing(*_args: Any, **_kwargs: Any) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    return measure_nothing


def _started_at(agent: Any, clock: Callable[[], float]) -> float | None:
    """When an agent that runs already was started, on our clock."""
    if not getattr(agent, "is_running", False):
        return None
    started = getattr(getattr(agent, "stats", None), "started_at", None)
    return clock() - (time.time() - started) if isinstance(started, (int, float)) else clock()
