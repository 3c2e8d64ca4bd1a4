"""What spans say of messages and agents, in the words of OpenTelemetry's conventions.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ and
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/. Payloads never.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from amptalk_otel._labels import clean

SYSTEM = "amptalk"

AttributeValue = str | int | float


class Description(NamedTuple):
    """What the spans of many messages have in common."""

    name: str
    attributes: dict[str, AttributeValue]


def of_message(message: Any) -> dict[str, AttributeValue]:
    """What is known of one message without looking into it."""
    attributes: dict[str, AttributeValue] = {}
    message_id = getattr(message, "message_id", None)
    if message_id is not None and message_id != "":
        attributes["messaging.message.id"] = clean(message_id)
    conversation_id = getattr(getattr(message, "metadata", None), "conversation_id", None)
    if conversation_id is not None and conversation_id != "":
        attributes["messaging.message.conversation_id"] = clean(conversation_id)
    priority = getattr(message, "priority", None)
    if priority is not None:
        attributes["amptalk.message.priority"] = clean(_name_of(priority))
    return attributes


def of_send(destination: str | None, message_type: str, sender: tuple[str, str] | None) -> Description:
    """Sends to `destination`, if there is one. `sender`: id and name, if it is an agent."""
    return _of_operation("send", destination, message_type, sender)


def of_process(message_type: str, agent: tuple[str, str]) -> Description:
    """The processing of messages by an agent, of which id and name are told."""
    return _of_operation("process", agent[1], message_type, agent)


def of_agent(agent_id: str, agent_name: str) -> dict[str, str]:
    """Who works."""
    return {"gen_ai.agent.id": agent_id, "gen_ai.agent.name": agent_name}


def _of_operation(
    operation: str, destination: str | None, message_type: str, agent: tuple[str, str] | None
) -> Description:
    attributes: dict[str, AttributeValue] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "message.type": message_type,
        **(of_agent(*agent) if agent is not None else {}),
    }
    if destination is None:
        return Description(operation, attributes)
    attributes["messaging.destination.name"] = destination = clean(destination)
    return Description(f"{operation} {destination}", attributes)


def _name_of(member: Any) -> Any:
    """An enum member's name in lower case; anything else as it is."""
    name = getattr(member, "_name_", None)
    return name.lower() if isinstance(name, str) else member
