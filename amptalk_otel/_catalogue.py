"""Every metric in one table: its name, unit, kind, description and attributes, and how it is read.

The bridges to OpenTelemetry, the documentation, and the tests all derive from `CATALOGUE`. Names follow
OpenTelemetry's naming rules (https://opentelemetry.io/docs/specs/semconv/general/naming/) and its system and
process conventions (https://opentelemetry.io/docs/specs/semconv/system/); for agents there are none yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Distribution
from amptalk_otel._labels import RETIRED
from amptalk_otel._reading import AgentReading, OperationReading, OrchestratorReading, StateReading, TypeReading
from amptalk_otel._recorder import OperationKey
from amptalk_otel._system import System

Attributes = Mapping[str, str]
Sample = tuple[Attributes, "int | float | Distribution"]
Read = Callable[[Any], Iterable[Sample]]


class Kind(Enum):
    """OpenTelemetry's instrument kinds."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "updowncounter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Owner(Enum):
    """Whose metric it is: tells what `Metric.read` is given and which attributes come on top."""

    PROCESS = "process"
    AGENT = "agent"
    ORCHESTRATOR = "orchestrator"
    STATE = "state"
    OPERATION = "operation"


@dataclass(frozen=True)
class Metric:
    """One row of the catalogue."""

    name: str
    kind: Kind
    unit: str
    description: str
    owner: Owner
    read: Read
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Snapshot:
    """All readings of one collection."""

    machine: bool = False  # whether machine and process are reported
    agents: Collection[AgentReading] = ()
    orchestrators: tuple[OrchestratorReading, ...] = ()
    states: tuple[StateReading, ...] = ()  # of state managers that are watched without their agent
    operations: tuple[OperationReading, ...] = ()

    def __add__(self, other: Snapshot) -> Snapshot:
        return Snapshot(
            self.machine or other.machine,
            (*self.agents, *other.agents),
            self.orchestrators + other.orchestrators,
            self.states + other.states,
            self.operations + other.operations,
        )


def samples(metric: Metric, snapshot: Snapshot, system: System) -> Iterator[Sample]:
    """The points of one metric in `snapshot`."""
    for owner_attributes, source in owners(metric.owner, snapshot, system):
        for attributes, value in metric.read(source):
            yield {**owner_attributes, **attributes}, value


def owners(owner: Owner, snapshot: Snapshot, system: System) -> Iterator[tuple[Attributes, Any]]:
    """What `Metric.read` is given for each owner of this kind, with the owner's attributes."""
    if owner is Owner.PROCESS:
        return iter([({}, system)] if snapshot.machine else [])
    if owner is Owner.AGENT:
        return ((attributes_of(agent), agent) for agent in snapshot.agents)
    if owner is Owner.ORCHESTRATOR:
        return (({"orchestrator.name": one.name}, one) for one in snapshot.orchestrators)
    if owner is Owner.OPERATION:
        return ((operation_attributes(one.key), one) for one in snapshot.operations)
    with_agent = ((attributes_of(agent), state) for agent in snapshot.agents for state in agent.states)
    return chain(with_agent, (({}, state) for state in snapshot.states))


def attributes_of(agent: AgentReading) -> dict[str, str]:
    """The owner's attributes of a reading."""
    return agent_attributes(agent.agent_id, agent.agent_name, agent.orchestrator_name)


def agent_attributes(agent_id: str, agent_name: str, orchestrator_name: str | None) -> dict[str, str]:
    """The attributes that every metric of an agent has."""
    attributes = {"agent.id": agent_id, "agent.name": agent_name}
    if orchestrator_name is not None:
        attributes["orchestrator.name"] = orchestrator_name
    return attributes


def operation_attributes(key: OperationKey) -> dict[str, str]:
    """The attributes of `amptalk.operation.duration`."""
    agent_id, agent_name, operation = key
    attributes = {"agent.id": agent_id, "operation.name": operation}
    if agent_name is not None:
        attributes["agent.name"] = agent_name
    return attributes


# -- how rows are read: lists, which are made faster than generators ------------------------------------

_NO_ATTRIBUTES: Attributes = {}


class One:
    """Reads a single value without attributes; none where `value_of` gives None.

    What agents are and not what they counted is not told of `_RETIRED`, which are none: they would seem to be stopped.
    """

    def __init__(self, value_of: Callable[[Any], int | float | None]) -> None:
        self.value_of: Callable[[Any], int | float | None] = value_of

    def __call__(self, source: Any) -> Sequence[Sample]:
        value = self.value_of(source)
        return [({}, value)] if value is not None else []


class ByType:
    """Reads a value per message type. A type that an agent never saw in this role has no point."""

    def __init__(self, value_of: Callable[[TypeReading], int | Distribution | None]) -> None:
        self.value_of: Callable[[TypeReading], int | Distribution | None] = value_of

    def __call__(self, agent: AgentReading) -> Sequence[Sample]:
        value_of = self.value_of
        return [
            ({"message.type": reading.message_type}, value) for reading in agent.types if (value := value_of(reading))
        ]


class ByTypeAnd:
    """Reads a count per message type and one more attribute."""

    def __init__(self, attribute: str, values_of: Callable[[TypeReading], Mapping[str, int]]) -> None:
        self.attribute: str = attribute
        self.values_of: Callable[[TypeReading], Mapping[str, int]] = values_of

    def __call__(self, agent: AgentReading) -> Sequence[Sample]:
        return [
            ({"message.type": reading.message_type, self.attribute: value}, number)
            for reading in agent.types
            for value, number in self.values_of(reading).items()
        ]


class ByState:
    """Reads seconds per state of the agent: all of them, from the first reading on."""

    attribute = "state"

    def __init__(self, values_of: Callable[[AgentReading], Mapping[str, float]]) -> None:
        self.values_of: Callable[[AgentReading], Mapping[str, float]] = values_of

    def __call__(self, agent: AgentReading) -> Sequence[Sample]:
        return [({self.attribute: state}, seconds) for state, seconds in self.values_of(agent).items()]


def _distribution(read: Callable[[TypeReading], Distribution]) -> ByType:
    def of_type(reading: TypeReading) -> Distribution | None:
        distribution = read(reading)
        return distribution if any(distribution.counts) else None

    return ByType(of_type)


def _of_state(read: Callable[[StateReading], int | None]) -> Read:
    def read_state(state: StateReading) -> Iterator[Sample]:
        value = read(state)
        if value is not None:
            yield {"state.storage": state.storage}, value

    return read_state


def _state_durations(state: StateReading) -> Iterator[Sample]:
    for (operation, error_type), distribution in state.durations.items():
        yield state_operation_attributes(state.storage, operation, error_type), distribution


def state_operation_attributes(storage: str, operation: str, error_type: str | None) -> dict[str, str]:
    """The attributes of `amptalk.state.operation.duration`."""
    attributes = {"state.storage": storage, "state.operation": operation}
    if error_type is not None:
        attributes["error.type"] = error_type
    return attributes


def _agents_by_state(orchestrator: OrchestratorReading) -> Iterator[Sample]:
    yield {"agent.state": "running"}, orchestrator.running
    yield {"agent.state": "stopped"}, orchestrator.stopped


def _routed(orchestrator: OrchestratorReading) -> Iterator[Sample]:
    for message_type, number in orchestrator.routed.items():
        yield {"message.type": message_type}, number


def _orchestrator_undeliverable(orchestrator: OrchestratorReading) -> Iterator[Sample]:
    for (message_type, reason), number in orchestrator.undeliverable.items():
        yield {"message.type": message_type, "reason": reason}, number


# -- the table -----------------------------------------------------------------------------------------

WAIT_DURATION = "amptalk.agent.message.wait.duration"
PROCESS_DURATION = "amptalk.agent.message.process.duration"
MESSAGE_SIZE = "amptalk.agent.message.size"
STATE_OPERATION_DURATION = "amptalk.state.operation.duration"
OPERATION_DURATION = "amptalk.operation.duration"

CATALOGUE: tuple[Metric, ...] = (
    Metric(
        "system.cpu.utilization", Kind.GAUGE, "1",
        "Share of the machine's CPU time spent busy since the last reading, at least a second ago.",
        Owner.PROCESS, One(System.system_cpu_utilization),
    ),
    Metric(
        "system.memory.utilization", Kind.GAUGE, "1",
        "Share of the machine's memory that is not available to new programs.",
        Owner.PROCESS, One(System.system_memory_utilization),
    ),
    Metric(
        "system.memory.linux.available", Kind.UP_DOWN_COUNTER, "By",
        "Memory that programs can get without swapping.",
        Owner.PROCESS, One(System.system_memory_available),
    ),
    Metric(
        "process.cpu.utilization", Kind.GAUGE, "1",
        "CPU time of this process since the last reading, as a share of all CPUs available to it.",
        Owner.PROCESS, One(System.process_cpu_utilization),
    ),
    Metric(
        "process.memory.usage", Kind.UP_DOWN_COUNTER, "By",
        "Physical memory in use by this process (resident set size).",
        Owner.PROCESS, One(System.process_memory_usage),
    ),
    Metric(
        "process.memory.virtual", Kind.UP_DOWN_COUNTER, "By",
        "Virtual memory committed to this process.",
        Owner.PROCESS, One(System.process_memory_virtual),
    ),
    Metric(
        "process.uptime", Kind.GAUGE, "s",
        "Time since this process was created.",
        Owner.PROCESS, One(System.process_uptime),
    ),
    Metric(
        "amptalk.agent.running", Kind.UP_DOWN_COUNTER, "{agent}",
        "1 while the agent is running, 0 while it is stopped.",
        Owner.AGENT, One(lambda agent: int(agent.running) if agent.agent_id != RETIRED else None),
    ),
    Metric(
        "amptalk.agent.uptime", Kind.GAUGE, "s",
        "Time since the agent was started; 0 while it is stopped.",
        Owner.AGENT, One(lambda agent: agent.uptime_s if agent.agent_id != RETIRED else None),
    ),
    Metric(
        "amptalk.agent.time", Kind.COUNTER, "s",
        "Time that the agent was running, by what it was at: idle, busy, retry_backoff or blocked_sending.",
        Owner.AGENT, ByState(lambda agent: agent.time.by_state), ("state",),
    ),
    Metric(
        "amptalk.agent.queue.size", Kind.UP_DOWN_COUNTER, "{message}",
        "Messages waiting in the agent's inbox.",
        Owner.AGENT, One(lambda agent: agent.queue_size if agent.agent_id != RETIRED else None),
    ),
    Metric(
        "amptalk.agent.queue.peak", Kind.GAUGE, "{message}",
        "Highest number of messages waiting in the agent's inbox in the last minute (60 to 65 s).",
        Owner.AGENT, One(lambda agent: agent.queue_peak if agent.agent_id != RETIRED else None),
    ),
    Metric(
        "amptalk.agent.queue.oldest_age", Kind.GAUGE, "s",
        "How long the oldest message in the inbox has been waiting; 0 for an empty inbox.",
        Owner.AGENT, One(lambda agent: agent.oldest_age_s or 0.0 if agent.agent_id != RETIRED else None),
    ),
    Metric(
        "amptalk.agent.messages.in_flight", Kind.UP_DOWN_COUNTER, "{message}",
        "Messages that the agent has taken from its inbox and not finished.",
        Owner.AGENT, One(lambda agent: agent.in_flight),
    ),
    Metric(
        "amptalk.agent.messages.unaccounted", Kind.UP_DOWN_COUNTER, "{message}",
        "Messages received that are neither finished nor dropped, in hand nor in the inbox; 0 if all is right.",
        Owner.AGENT, One(lambda agent: agent.unaccounted),
    ),
    Metric(
        "amptalk.agent.messages.received", Kind.COUNTER, "{message}",
        "Messages that arrived in the agent's inbox, whichever way they came.",
        Owner.AGENT, ByType(lambda reading: reading.received), ("message.type",),
    ),
    Metric(
        "amptalk.agent.messages.processed", Kind.COUNTER, "{message}",
        "Messages that the agent processed successfully, at whatever attempt.",
        Owner.AGENT, ByType(lambda reading: reading.processed), ("message.type",),
    ),
    Metric(
        "amptalk.agent.messages.sent", Kind.COUNTER, "{message}",
        "Messages that the agent sent and that were accepted for delivery.",
        Owner.AGENT, ByType(lambda reading: reading.sent), ("message.type",),
    ),
    Metric(
        "amptalk.agent.messages.failed", Kind.COUNTER, "{message}",
        "Messages whose processing ended in an error, after all retries.",
        Owner.AGENT, ByTypeAnd("error.type", lambda reading: reading.failed), ("message.type", "error.type"),
    ),
    Metric(
        "amptalk.agent.messages.dropped", Kind.COUNTER, "{message}",
        "Messages that left the inbox without being processed to an end: cancelled, unregistered or taken.",
        Owner.AGENT, ByTypeAnd("reason", lambda reading: reading.dropped), ("message.type", "reason"),
    ),
    Metric(
        "amptalk.agent.messages.undeliverable", Kind.COUNTER, "{message}",
        "Messages that the agent sent and that reached no inbox: unknown_target, expired or error.",
        Owner.AGENT, ByTypeAnd("reason", lambda reading: reading.undeliverable), ("message.type", "reason"),
    ),
    Metric(
        "amptalk.agent.retries", Kind.COUNTER, "{retry}",
        "Further attempts at a message, by the error of the attempt before.",
        Owner.AGENT, ByTypeAnd("error.type", lambda reading: reading.retries), ("message.type", "error.type"),
    ),
    Metric(
        WAIT_DURATION, Kind.HISTOGRAM, "s",
        "Time that messages lay in the agent's inbox.",
        Owner.AGENT, _distribution(lambda reading: reading.wait), ("message.type",), DURATION_BOUNDS_S,
    ),
    Metric(
        PROCESS_DURATION, Kind.HISTOGRAM, "s",
        "Time from taking a message to its success or failure, all attempts and the back-off between them included.",
        Owner.AGENT, _distribution(lambda reading: reading.process), ("message.type",), DURATION_BOUNDS_S,
    ),
    Metric(
        MESSAGE_SIZE, Kind.HISTOGRAM, "By",
        "Size of payloads as JSON, measured on a sample of the messages received.",
        Owner.AGENT, _distribution(lambda reading: reading.size), ("message.type",), SIZE_BOUNDS_BYTES,
    ),
    Metric(
        "amptalk.orchestrator.agents", Kind.UP_DOWN_COUNTER, "{agent}",
        "Agents registered with the orchestrator.",
        Owner.ORCHESTRATOR, _agents_by_state, ("agent.state",),
    ),
    Metric(
        "amptalk.orchestrator.messages.routed", Kind.COUNTER, "{message}",
        "Messages that the orchestrator put into an inbox itself; a broadcast counts once per agent.",
        Owner.ORCHESTRATOR, _routed, ("message.type",),
    ),
    Metric(
        "amptalk.orchestrator.messages.undeliverable", Kind.COUNTER, "{message}",
        "Messages that the orchestrator was to send and that reached no inbox: unknown_target, expired or error.",
        Owner.ORCHESTRATOR, _orchestrator_undeliverable, ("message.type", "reason"),
    ),
    Metric(
        "amptalk.state.size", Kind.UP_DOWN_COUNTER, "By",
        "Serialised size of the states that the state manager holds in memory.",
        Owner.STATE, _of_state(lambda state: state.size_bytes), ("state.storage",),
    ),
    Metric(
        "amptalk.state.items", Kind.UP_DOWN_COUNTER, "{item}",
        "States that the state manager holds in memory.",
        Owner.STATE, _of_state(lambda state: state.items), ("state.storage",),
    ),
    Metric(
        STATE_OPERATION_DURATION, Kind.HISTOGRAM, "s",
        "Time of saving (write), loading (read) and deleting states.",
        Owner.STATE, _state_durations, ("state.storage", "state.operation", "error.type"), DURATION_BOUNDS_S,
    ),
    Metric(
        OPERATION_DURATION, Kind.HISTOGRAM, "s",
        "Time of operations that the program measures itself with `measure_execution_time`.",
        Owner.OPERATION, lambda operation: [({}, operation.duration)], ("operation.name",), DURATION_BOUNDS_S,
    ),
)  # fmt: skip
"""All metrics, in the order of the documentation."""

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in CATALOGUE}
