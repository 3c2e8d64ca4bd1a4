"""The orchestrator: agents that come and go, and the messages that it routes itself."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from amptalk_otel._calls import argument_of, calling_around, covering_coroutine, covering_one_argument
from amptalk_otel._copies import keep_out_of_copies
from amptalk_otel._guard import guarded, swallow
from amptalk_otel._labels import clean, message_type_of
from amptalk_otel._patch import Patches
from amptalk_otel._reading import OrchestratorReading, read_orchestrator
from amptalk_otel._recorder import OrchestratorRecorder
from amptalk_otel._tracing._sending import Sending, in_span
from amptalk_otel._tracing._tracer import MessageTracer, first_tracer
from amptalk_otel.adapters import AgentAdapter, adapter_for, name_in, undelivered_reason


class Roster(Protocol):
    """Is told which agents there are to watch."""

    @property
    def tracer(self) -> MessageTracer | None:
        """What makes spans, if anything does."""

    def agent_registered(self, agent: Any) -> None: ...
    def agent_unregistered(self, agent: Any) -> None: ...


class OrchestratorHook:
    """The wrappers on one orchestrator. Holds it weakly.

    Routed messages are told by the framework's own event `message_routed`, which it also sends for a
    message that `send_message_to_agent` failed to deliver; there the return value decides instead.
    """

    def __init__(self, orchestrator: Any) -> None:
        self._tracer: MessageTracer | None = None
        self._traces = False  # whether there are wrappers for that
        self.recorder = OrchestratorRecorder(clean(getattr(orchestrator, "name", type(orchestrator).__qualname__)))
        self._orchestrator = weakref.ref(orchestrator)
        self._kinds: dict[int, tuple[type, AgentAdapter | None]] = {}  # of the agents at the last reading, by id
        self._rosters: tuple[Roster, ...] = ()
        self._sending: dict[int, int] = {}  # by id of a message inside send_message_to_agent: in how many calls
        self._patches = Patches()
        try:
            self._cover(orchestrator)
        except BaseException:  # half of the wrappers would stay for ever
            self.release()
            raise

    def join(self, roster: Roster) -> None:
        """Tell `roster` of all agents, those there now and those to come."""
        self._rosters = (*self._rosters, roster)
        self.choose_tracer()
        for agent in list(self._agents().values()):
            guarded("watching an agent", roster.agent_registered, agent)

    def leave(self, roster: Roster) -> bool:
        """Returns whether nobody is told any more."""
        self._rosters = tuple(other for other in self._rosters if other is not roster)
        self.choose_tracer()
        return not self._rosters

    def is_for(self, orchestrator: Any) -> bool:
        return self._orchestrator() is orchestrator

    def _cover(self, orchestrator: Any) -> None:
        registering = calling_around("watching a new agent", self._is_registering, self._registered_one)
        creating = calling_around("watching a new agent", lambda _first: None, self._registered_any)
        unregistering = calling_around("letting an agent go", self._is_unregistering, self._unregistered_one)
        for attribute, cover in (
            ("register_agent", registering),
            ("add_agent", registering),
            ("create_agent", creating),
            ("unregister_agent", unregistering),
            ("send_message_to_agent", covering_coroutine(covering_one_argument(self._cover_send))),
        ):
            if hasattr(orchestrator, attribute):
                self._patches.wrap(orchestrator, attribute, cover)
        if getattr(orchestrator, "enable_performance_monitoring", False):
            # Its own monitor takes the metrics port and the global provider, and blocks the loop.
            self._patches.replace(orchestrator, "enable_performance_monitoring", False)
        guarded("keeping wrappers out of copies", keep_out_of_copies, self._patches, orchestrator)
        guarded("listening to messages that are routed", self._listen, orchestrator)

    def _listen(self, orchestrator: Any) -> None:
        register = getattr(orchestrator, "register_event_hook", None)
        if register is not None and not inspect.iscoroutinefunction(register):
            register("message_routed", self._message_routed)

    def choose_tracer(self) -> None:
        """The first that any of the rosters brings makes the spans. Their wrappers are on top of those that count."""
        self._tracer, orchestrator = first_tracer(self._rosters), self._orchestrator()
        if self._tracer is None or orchestrator is None or self._traces:
            return
        self._traces = True
        for attribute, destination in (
            ("send_message_to_agent", self._name_of_target),
            ("send_message_to_group", _name_of_group),
            ("broadcast_message", _everybody),
        ):
            if hasattr(orchestrator, attribute):
                cover = covering_coroutine(partial(self._cover_traced_send, destination))
                self._patches.wrap(orchestrator, attribute, cover)

    # -- wrappers ------------------------------------------------------------------------------------

    def _is_registering(self, agent: Any) -> tuple[Any, Any]:
        """Whoever is registered next, and whose place it takes."""
        return agent, self._agents().get(getattr(agent, "agent_id", None))

    def _registered_one(self, seen: tuple[Any, Any] | None) -> None:
        if seen is not None:
            self._registered(*seen)

    def _registered_any(self, _seen: None) -> None:
        for agent in list(self._agents().values()):
            self._registered(agent)

    def _is_unregistering(self, agent_id: Any) -> tuple[Any, Any]:
        return agent_id, self._agents().get(agent_id)

    def _unregistered_one(self, seen: tuple[Any, Any] | None) -> None:
        if seen is not None:
            self._unregistered(*seen)

    def _cover_send(self, send: Callable[..., Any]) -> Callable[..., Any]:
        sending, recorder = self._sending, self.recorder

        async def send_watched(message: Any) -> Any:
            key = id(message)
            sending[key] = sending.get(key, 0) + 1
            try:
                delivered = await send(message)
            except Exception:
                guarded("counting a failed send", recorder.undeliverable_one, message, "error")
                raise
            finally:
                if sending[key] == 1:
                    del sending[key]
                else:
                    sending[key] -= 1
            try:
                if delivered is False:
                    self._count_undelivered(message)
                else:
                    recorder.routed_one(message)
            except Exception:
                swallow("counting a routed message")
            return delivered

        return send_watched

    def _cover_traced_send(
        self, destination: Callable[[Any, Any], str | None], send: Callable[..., Any]
    ) -> Callable[..., Any]:
        first, second = argument_of(send), argument_of(send, 1)

        async def send_traced(*args: Any, **kwargs: Any) -> Any:
            tracer = self._tracer
            if tracer is None or not self._patches.active:
                return await send(*args, **kwargs)
            message = first(args, kwargs)
            return await in_span(
                lambda: send(*args, **kwargs),
                lambda: _begun(tracer, destination(message, second(args, kwargs)), message),
                lambda: self._reason(message),
            )

        return send_traced

    def _name_of_target(self, message: Any, _second: Any) -> str | None:
        target = getattr(message, "target_agent_id", None)
        return name_in(self._agents(), target)

    async def _message_routed(self, *args: Any, **kwargs: Any) -> None:
        message = kwargs["message"] if "message" in kwargs else next(iter(args), None)
        if self._patches.active and id(message) not in self._sending:
            guarded("counting a routed message", self.recorder.routed_one, message)

    # -- what they tell ------------------------------------------------------------------------------

    def _agents(self) -> Mapping[Any, Any]:
        return getattr(self._orchestrator(), "agents", {})

    def _registered(self, agent: Any, former: Any = None) -> None:
        agents, agent_id = self._agents(), getattr(agent, "agent_id", None)
        if former is not None and former is not agent:
            self._unregistered(agent_id, former)
        # An agent of another kind may call its id by another name.
        if agents.get(agent_id) is agent or (agent_id is None and any(one is agent for one in agents.values())):
            for roster in self._rosters:
                roster.agent_registered(agent)

    def _unregistered(self, agent_id: Any, agent: Any) -> None:
        if agent is not None and self._agents().get(agent_id) is not agent:
            for roster in self._rosters:
                roster.agent_unregistered(agent)

    def _count_undelivered(self, message: Any) -> None:
        self.recorder.undeliverable_one(message, self._reason(message))

    def _reason(self, message: Any) -> str:
        return guarded("looking at a failed send", undelivered_reason, message, self._agents()) or "error"

    # -- as the router of outboxes ------------------------------------------------------------------

    def knows(self, agent_id: Any) -> bool:
        """Whether there is an agent of this id."""
        return agent_id in self._agents()

    def routed(self, message: Any) -> None:
        """A message from an outbox goes to an agent's inbox."""
        self.recorder.routed_one(message)

    # -- reading and leaving -------------------------------------------------------------------------

    def read(self) -> OrchestratorReading | None:
        """The orchestrator at this moment; None once it is gone. Callable from any thread."""
        orchestrator = self._orchestrator()
        if orchestrator is None:
            return None
        agents = list(orchestrator.agents.copy().values())
        running = self._running(agents)
        return read_orchestrator(self.recorder, running=running, stopped=len(agents) - running)

    def _running(self, agents: list[Any]) -> int:
        """To see of which kind an agent is takes longer than all that is asked of it here, and is done once."""
        former, kinds, running = self._kinds, {}, 0
        for agent in agents:
            kind, adapter = former.get(id(agent), (None, None))
            try:
                if adapter is None or kind is not type(agent):
                    adapter = adapter_for(agent)
                kinds[id(agent)] = type(agent), adapter
                running += adapter is not None and adapter.is_running(agent)
            except Exception:  # one that can't be asked is no reason to tell nothing of the others
                swallow("asking an agent whether it runs")
        self._kinds = kinds
        return running

    def release(self) -> None:
        """Take every wrapper and the event hook off."""
        self._patches.undo()
        event_hooks = getattr(self._orchestrator(), "event_hooks", {})
        hooks = event_hooks.get("message_routed", [])
        if self._message_routed in hooks:
            # Another list: the framework may be going through this one, and would leave out whoever moves up.
            event_hooks["message_routed"] = [hook for hook in hooks if hook != self._message_routed]


def _begun(tracer: MessageTracer, destination: str | None, message: Any) -> Sending:
    description = tracer.description_of_send(destination, message_type_of(message), None)
    return Sending(tracer, description, message, tracer.context_of(message, is_being_sent=True))


def _name_of_group(_message: Any, group: Any) -> str:
    return group if isinstance(group, str) else "group"


def _everybody(_message: Any, _second: Any) -> str:
    """A broadcast has no receiver of its own."""
    return "*"
