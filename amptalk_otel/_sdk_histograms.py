"""What the SDK's histograms are told, of whom, and how their series are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import Histogram
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import Identity
from amptalk_otel._catalogue import (
    MESSAGE_SIZE,
    OPERATION_DURATION,
    PROCESS_DURATION,
    STATE_OPERATION_DURATION,
    WAIT_DURATION,
    agent_attributes,
    operation_attributes,
    state_operation_attributes,
)
from amptalk_otel._names import names_of
from amptalk_otel._recorder import OperationKey, OperationRecorder, OrchestratorRecorder, Reported, StateOwner

_NO_TRACE = set_span_in_context(INVALID_SPAN, Context())
"""Not the current one: an agent's loop keeps the span that it was started in, which would be in every exemplar.
Not an empty one either, which the SDK takes for none."""


class HistogramObserver:
    """Hands one owner's values to SDK histograms, with attribute sets built once per message type."""

    def __init__(self, instruments: Mapping[str, Any], owner: Reported) -> None:
        self._wait: Histogram = instruments[WAIT_DURATION]
        self._process: Histogram = instruments[PROCESS_DURATION]
        self._size: Histogram = instruments[MESSAGE_SIZE]
        self._state: Histogram = instruments[STATE_OPERATION_DURATION]
        self._operation: Histogram = instruments[OPERATION_DURATION]
        self._owner_attributes = _owner_attributes(owner)
        self._attributes: dict[str, dict[str, str]] = {}

    def waited(self, message_type: str, seconds: float, context: Context | None) -> None:
        self._wait.record(seconds, self._of_type(message_type), context or _NO_TRACE)

    def worked(self, message_type: str, seconds: float, context: Context | None) -> None:
        self._process.record(seconds, self._of_type(message_type), context or _NO_TRACE)

    def sized(self, message_type: str, size_bytes: int) -> None:
        self._size.record(size_bytes, self._of_type(message_type), _NO_TRACE)

    def operated(self, storage: str, operation: str, error_type: str | None, seconds: float) -> None:
        attributes = state_operation_attributes(storage, operation, error_type)
        self._state.record(seconds, {**self._owner_attributes, **attributes})

    def measured(self, key: OperationKey, seconds: float) -> None:
        self._operation.record(seconds, operation_attributes(key))

    def _of_type(self, message_type: str) -> dict[str, str]:
        try:
            return self._attributes[message_type]
        except KeyError:
            attributes = self._attributes[message_type] = {**self._owner_attributes, "message.type": message_type}
            return attributes


class Heir:
    """The series in which agents' histograms go on. It has places for as many types as its counters have."""

    def __init__(self, series: Identity) -> None:
        self._attributes = agent_attributes(*series)
        self._names = names_of(series)

    def attributes(self, former: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a series that goes on in it."""
        latter = {**former, **self._attributes}
        if "message.type" in latter:
            latter["message.type"] = self._names.message_type(latter["message.type"])
        if "error.type" in latter:  # of a state manager's operation
            of = latter.get("state.storage", ""), latter.get("state.operation", "")
            latter["error.type"] = self._names.state_operation(*of, latter["error.type"])[1]
        return latter


def _owner_attributes(owner: Reported) -> dict[str, str]:
    if isinstance(owner, AgentRecorder):
        return agent_attributes(owner.agent_id, owner.agent_name, owner.orchestrator_name)
    return {}


def identity_of(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    whose = [attributes.get(key) for key in ("agent.id", "agent.name", "orchestrator.name", "operation.name")]
    return (*whose, None if "agent.id" in attributes else attributes.get("state.storage"))


def identities_of(owner: Reported) -> list[tuple[Any, ...]]:
    """What tells an owner's series from others'."""
    if isinstance(owner, OperationRecorder):
        return [identity_of(operation_attributes(key)) for key in owner.durations.copy()]
    if isinstance(owner, OrchestratorRecorder):
        return [identity_of({"orchestrator.name": owner.name})]
    if isinstance(owner, StateOwner) and not isinstance(owner, AgentRecorder):
        return [identity_of({"state.storage": state.storage}) for state in owner.states]
    return [identity_of(_owner_attributes(owner))]
