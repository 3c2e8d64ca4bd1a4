"""The outbox: for agents that hand their messages to a router instead of sending them themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._copies import keep_out_of_copies
from amptalk_otel._guard import guarded
from amptalk_otel._patch import Patches


class Router(Protocol):
    """Whoever takes messages from outboxes and puts them into inboxes."""

    def knows(self, agent_id: Any) -> bool:
        """Whether a message to `agent_id` reaches an inbox."""

    def routed(self, message: Any) -> None:
        """Is told each message that does."""


class Outbox:
    """The hooked outbox of one agent: a message is sent, or undeliverable, when the router takes it."""

    __slots__ = ("_recorder", "_router", "_target_of", "patches", "sent_on")

    def __init__(
        self, recorder: AgentRecorder, queue: Any, target_of: Callable[[Any], Any], router: Router | None
    ) -> None:
        self._recorder = recorder
        self._target_of = target_of
        self._router = router
        self.patches = Patches()
        self.sent_on: Callable[[Any], None] | None = None
        """For traces: is told each message that the agent puts here."""
        if queue is not None and callable(getattr(queue, "_get", None)):
            self.patches.wrap(queue, "_get", self._cover_get)
            self.patches.wrap(queue, "_put", self._cover_put)
            guarded("keeping wrappers out of copies", keep_out_of_copies, self.patches, queue)

    def _cover_put(self, put: Callable[..., Any]) -> Callable[..., Any]:
        def _put(message: Any) -> None:
            if self.sent_on is not None and self.patches.active:
                guarded("following a message into the outbox", self.sent_on, message)
            put(message)

        return _put

    def _cover_get(self, get: Callable[..., Any]) -> Callable[..., Any]:
        def _get() -> Any:
            message = get()
            guarded("counting a message that left the outbox", self._left, message)
            return message

        return _get

    def _left(self, message: Any) -> None:
        if not self.patches.active:  # somebody else has covered us since, and we are off
            return
        router = self._router
        if router is not None and not router.knows(self._target_of(message)):
            self._recorder.undeliverable(message, "unknown_target")
            return
        self._recorder.sent(message)
        if router is not None:
            router.routed(message)
