"""How one kind of agent is watched: the names of its seams and the way to its state.

Two kinds are known: the framework's agents (`FrameworkAdapter`) and those of its older generation
(`CoreAdapter`). To teach the package another, subclass `AgentAdapter` and hand an instance to `register_adapter`;
docs/adapters.md walks through one.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from amptalk_otel._forks import lock_of
from amptalk_otel._guard import complain, guarded


class AgentAdapter:
    """One kind of agent. Subclass it, set or override what differs, and register an instance.

    An adapter names coroutine methods of the agent, which are covered on the instance and called through, and
    reads attributes. It must not change anything, and the reading methods (`is_running`, `started_at`) are
    called from exporters' threads. What goes wrong in it costs one log record a minute and what it was to tell,
    never the program.
    """

    process: str = "process_message"
    """The coroutine method that handles one message from the inbox, first argument: all its attempts together.

    An exception that leaves it is a failed message; a message that it never gets is not processed."""

    attempt: str | None = None
    """The coroutine method that makes one attempt at a message inside `process`, where there are retries."""

    judge: str | None = None
    """The plain method that `process` calls with the exception of each failed attempt, where there is one.

    With it `attempt` is covered only while a message is being retried, and costs nothing before."""

    error_handlers: str | None = None
    """The dictionary of coroutine functions of which `process` may call one with the message in place of another
    attempt, where there are such."""

    send: str | None = None
    """The coroutine method that sends its first argument; it returns False for what was not delivered."""

    start: str | None = None
    """The coroutine method that starts the agent."""

    stop: str | None = None
    """The coroutine method that stops the agent.

    `amptalk.agent.time` counts from the call of `start` to the end of `stop`. Without these, readings tell: from the
    moment that the agent says (`started_at`), or else the first that sees it running, to the last that does."""

    loop: str | None = None
    """The method that takes messages from the inbox, for agents whose loop runs inside somebody else's task
    (`await agent.run()`). A task of its own (`create_task(agent.run())`) is recognised without.

    Messages that anybody else takes from the inbox are counted as dropped, with the reason `taken`."""

    def matches(self, agent: Any) -> bool:
        """Whether `agent` is of this kind. Decide by structure, not by class: programs vendor frameworks."""
        raise NotImplementedError

    def inbox(self, agent: Any) -> Any:
        """The `asyncio.Queue` (or a subclass) that the agent's loop takes its messages from."""
        raise NotImplementedError

    def outbox(self, agent: Any) -> Any:
        """The queue that the agent puts its messages on and a router takes them from; None without one."""
        return None

    def agent_id(self, agent: Any) -> str:
        """`agent.id`: unique and stable."""
        return str(agent.agent_id)

    def agent_name(self, agent: Any) -> str:
        """`agent.name`: for people to read. The id, for agents without names."""
        return self.agent_id(agent)

    def is_running(self, agent: Any) -> bool:
        """Whether the agent takes messages from its inbox."""
        raise NotImplementedError

    def started_at(self, agent: Any) -> float | None:
        """When the agent was started, in seconds since the epoch; None where it does not say."""
        return None

    def state_manager(self, agent: Any) -> Any:
        """The agent's state manager; None without one."""
        return None

    def message_type(self, message: Any) -> object:
        """`message.type`: a text, or an enum member whose value is one."""
        return getattr(message, "message_type", None)

    def payload(self, message: Any) -> Any:
        """What `message.size` is measured of."""
        return getattr(message, "payload", None)

    def target(self, message: Any) -> Any:
        """The id of the agent that a message in an outbox is for."""
        return getattr(message, "target_agent_id", None)

    def destination(self, agent: Any, message: Any) -> str | None:
        """What a span calls the agent that a message from `agent` goes to: its name where it is known, else its id."""
        return name_in({}, self.target(message))

    def undelivered_reason(self, agent: Any, message: Any) -> str:
        """Why `send` returned False: `unknown_target`, `expired` or `error`."""
        return "error"


class FrameworkAdapter(AgentAdapter):
    """Agents of generation "framework": `input_queue`, `process_message`, retries, state managers."""

    process: str = "_process_with_retry"
    attempt: str | None = "process_message"
    judge: str | None = "_is_recoverable_error"
    error_handlers: str | None = "error_handlers"
    send: str | None = "send_message"
    start: str | None = "start"
    stop: str | None = "stop"

    def matches(self, agent: Any) -> bool:
        return _has(agent, "agent_id", "name", "input_queue", "process_message")

    def inbox(self, agent: Any) -> Any:
        return agent.input_queue

    def agent_name(self, agent: Any) -> str:
        return str(agent.name)

    def is_running(self, agent: Any) -> bool:
        return bool(getattr(agent, "is_running", False))

    def started_at(self, agent: Any) -> float | None:
        started_at = getattr(getattr(agent, "stats", None), "started_at", None)
        return started_at if isinstance(started_at, (int, float)) else None

    def state_manager(self, agent: Any) -> Any:
        return getattr(agent, "state_manager", None)

    def destination(self, agent: Any, message: Any) -> str | None:
        return name_in(getattr(agent, "connected_agents", {}), self.target(message))

    def undelivered_reason(self, agent: Any, message: Any) -> str:
        return undelivered_reason(message, getattr(agent, "connected_agents", ()))


class CoreAdapter(AgentAdapter):
    """Agents of generation "core": `inbox` and `outbox`, `run`, `_process_message`, `status`; no names, no retries."""

    process: str = "_process_message"
    loop: str | None = "run"
    _stopped = frozenset({"initializing", "shutdown", "shutting_down", "stopped", "terminated"})

    def matches(self, agent: Any) -> bool:
        return _has(agent, "agent_id", "inbox", "outbox", "_process_message", "status")

    def inbox(self, agent: Any) -> Any:
        return agent.inbox

    def outbox(self, agent: Any) -> Any:
        return agent.outbox

    def target(self, message: Any) -> Any:
        return getattr(message, "target_agent", None)

    def is_running(self, agent: Any) -> bool:
        status = getattr(agent.status, "value", agent.status)
        return str(status).lower() not in self._stopped

    def started_at(self, agent: Any) -> float | None:
        started_at = getattr(agent, "start_time", None)
        if isinstance(started_at, datetime):
            return started_at.timestamp()
        return started_at if isinstance(started_at, (int, float)) else None


def name_in(agents: Mapping[Any, Any], agent_id: Any) -> str | None:
    """The name of the agent of this id among `agents`; else the id, and None where there is none."""
    name = getattr(agents.get(agent_id), "name", agent_id)
    return None if name is None else str(name)


def undelivered_reason(message: Any, known: Any) -> str:
    """Why a send returned False, told from what can still be seen of it. `known`: the ids that can be reached."""
    target = getattr(message, "target_agent_id", None)
    if not target or target not in known:
        return "unknown_target"
    metadata = getattr(message, "metadata", None)
    hops, limit = getattr(metadata, "hop_count", None), getattr(metadata, "ttl", None)
    return "expired" if hops is not None and limit is not None and hops > limit else "error"


class _Careful(AgentAdapter):
    """A registered adapter. What it can't tell is left out."""

    def __init__(self, adapter: AgentAdapter) -> None:
        self.adapter = adapter
        self.kind = type(adapter).__qualname__
        for role in ("process", "attempt", "judge", "error_handlers", "send", "start", "stop", "loop"):
            setattr(self, role, getattr(adapter, role, None))

    def _ask(self, question: str, *about: Any) -> Any:
        def ask() -> Any:
            return getattr(self.adapter, question)(*about)

        return guarded(f"{self.kind}.{question}", ask)

    def matches(self, agent: Any) -> bool:
        return bool(self._ask("matches", agent))

    def inbox(self, agent: Any) -> Any:
        return self._ask("inbox", agent)

    def outbox(self, agent: Any) -> Any:
        return self._ask("outbox", agent)

    def agent_id(self, agent: Any) -> str:
        agent_id = self._ask("agent_id", agent)
        return f"{type(agent).__qualname__}-{id(agent):x}" if agent_id is None else str(agent_id)

    def agent_name(self, agent: Any) -> str:
        is_named = getattr(type(self.adapter), "agent_name", None) is not AgentAdapter.agent_name
        name = self._ask("agent_name", agent) if is_named else None
        return self.agent_id(agent) if name is None else str(name)

    def is_running(self, agent: Any) -> bool:
        return bool(self._ask("is_running", agent))

    def started_at(self, agent: Any) -> float | None:
        started_at = self._ask("started_at", agent)
        return started_at if isinstance(started_at, (int, float)) else None

    def state_manager(self, agent: Any) -> Any:
        return self._ask("state_manager", agent)

    def message_type(self, message: Any) -> object:
        return self._ask("message_type", message)

    def payload(self, message: Any) -> Any:
        return self._ask("payload", message)

    def target(self, message: Any) -> Any:
        return self._ask("target", message)

    def destination(self, agent: Any, message: Any) -> str | None:
        destination = self._ask("destination", agent, message)
        return None if destination is None else str(destination)

    def undelivered_reason(self, agent: Any, message: Any) -> str:
        return str(self._ask("undelivered_reason", agent, message) or "error")

    def method(self, agent: Any, role: str) -> str | None:
        """The coroutine method that plays `role`; None, and one log record, where what is named is none."""
        name = getattr(self, role)
        if name is None:
            return None
        if isinstance(name, str) and inspect.iscoroutinefunction(getattr(agent, name, None)):
            return name
        kind = type(agent).__qualname__
        complain(
            f"{self.kind}.{role} of {kind}",
            "%s.%s is %r, but %s has no coroutine method of that name: what it would tell is missing from the metrics",
            self.kind, role, name, kind,
        )  # fmt: skip
        return None


def method_of(adapter: AgentAdapter, agent: Any, role: str) -> str | None:
    """The name of the method that plays `role` (`process`, `attempt`, `send`, …) on this agent; None without."""
    if isinstance(adapter, _Careful):
        return adapter.method(agent, role)
    name = getattr(adapter, role)
    # One that only `__getattr__` makes up is none that the agent's own loop calls.
    is_there = name is not None and hasattr(agent, name) and inspect.getattr_static(agent, name, None) is not None
    return name if is_there else None


def tells_message_type_as_it_is(adapter: AgentAdapter) -> bool:
    """Whether the adapter leaves `message_type` to the message's attribute of that name."""
    adapter = adapter.adapter if isinstance(adapter, _Careful) else adapter
    return getattr(type(adapter), "message_type", None) is AgentAdapter.message_type


_lock = lock_of(sys.modules[__name__], threading.Lock)
_adapters: tuple[AgentAdapter, ...] = (FrameworkAdapter(), CoreAdapter())


def register_adapter(adapter: AgentAdapter) -> None:
    """Let `adapter` be asked first about every agent that is instrumented from now on."""
    global _adapters
    with _lock:
        _adapters = (_Careful(adapter), *_adapters)


def unregister_adapter(adapter: AgentAdapter) -> None:
    """Take `register_adapter` back; agents that are watched already stay watched."""
    global _adapters
    with _lock:
        _adapters = tuple(other for other in _adapters if getattr(other, "adapter", None) is not adapter)


def adapter_for(agent: Any) -> AgentAdapter | None:
    """The first adapter that `agent` matches and that can watch it; None for an agent of no known kind."""
    return next((adapter for adapter in _adapters if adapter.matches(agent) and _can_watch(adapter, agent)), None)


def _can_watch(adapter: AgentAdapter, agent: Any) -> bool:
    """Without an inbox and the end of processing there is nothing to count."""
    if not isinstance(adapter, _Careful):
        return True
    return adapter.inbox(agent) is not None and adapter.method(agent, "process") is not None


def _has(agent: Any, *names: str) -> bool:
    return all(hasattr(agent, name) for name in names)
