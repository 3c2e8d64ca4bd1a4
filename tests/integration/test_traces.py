"""Five agents with a broadcast, a retry, a failure and replies: every span as the Collector wrote it down."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from amptalk_otel import Config, instrument_orchestrator
from amptalk_otel.demo.runtime import CommunicationMode, MessageType, Orchestrator, SimpleAgent, StateManager
from tests.integration.servers import Collector, Span
from tests.trace_workload import (
    BACKOFF_S,
    SECRET,
    TIMEOUT_S,
    Newsroom,
    by_label,
    events_of,
    letter,
    rows_of,
    text_of,
    tree_of,
    written_spans,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CLOCKS_S = 0.005  # how far the clocks of a send and of a process span may lie apart, with a busy machine between

TREES = {
    "parent": """
        send *: roll-call (producer)
          process Archive: roll-call (consumer)
          process Critic: roll-call (consumer)
          process Listener: roll-call (consumer)
          process Summary: roll-call (consumer)
          process Writer: roll-call (consumer)
        send Archive: hold (producer)
          process Archive: hold (consumer)
        send Listener: audio (producer)
          process Listener: audio (consumer)
            send Writer: transcribe (producer)
              process Writer: transcribe (consumer)
                send Critic: judge (producer)
                  process Critic: judge (consumer) ! error ValueError
                send Listener: transcript (producer)
                  process Listener: transcript (consumer)
                send Summary: summarise (producer)
                  process Summary: summarise (consumer)
                    send Writer: summed-up (producer)
                      process Writer: summed-up (consumer)
                send nobody: astray (producer) ! error unknown_target
        send keepers: file (producer)
          process Archive: file (consumer)
          process Critic: file (consumer)
        """,
    "link": """
        process Archive: file (consumer) <- send keepers: file
        process Archive: hold (consumer) <- send Archive: hold
        process Archive: roll-call (consumer) <- send *: roll-call
        process Critic: file (consumer) <- send keepers: file
        process Critic: judge (consumer) ! error ValueError <- send Critic: judge
        process Critic: roll-call (consumer) <- send *: roll-call
        process Listener: audio (consumer) <- send Listener: audio
          send Writer: transcribe (producer)
        process Listener: roll-call (consumer) <- send *: roll-call
        process Listener: transcript (consumer) <- send Listener: transcript
        process Summary: roll-call (consumer) <- send *: roll-call
        process Summary: summarise (consumer) <- send Summary: summarise
          send Writer: summed-up (producer)
        process Writer: roll-call (consumer) <- send *: roll-call
        process Writer: summed-up (consumer) <- send Writer: summed-up
        process Writer: transcribe (consumer) <- send Writer: transcribe
          send Critic: judge (producer)
          send Listener: transcript (producer)
          send Summary: summarise (producer)
          send nobody: astray (producer) ! error unknown_target
        send *: roll-call (producer)
        send Archive: hold (producer)
        send Listener: audio (producer)
        send keepers: file (producer)
        """,
    "both": """
        send *: roll-call (producer)
          process Archive: roll-call (consumer) <- send *: roll-call
          process Critic: roll-call (consumer) <- send *: roll-call
          process Listener: roll-call (consumer) <- send *: roll-call
          process Summary: roll-call (consumer) <- send *: roll-call
          process Writer: roll-call (consumer) <- send *: roll-call
        send Archive: hold (producer)
          process Archive: hold (consumer) <- send Archive: hold
        send Listener: audio (producer)
          process Listener: audio (consumer) <- send Listener: audio
            send Writer: transcribe (producer)
              process Writer: transcribe (consumer) <- send Writer: transcribe
                send Critic: judge (producer)
                  process Critic: judge (consumer) ! error ValueError <- send Critic: judge
                send Listener: transcript (producer)
                  process Listener: transcript (consumer) <- send Listener: transcript
                send Summary: summarise (producer)
                  process Summary: summarise (consumer) <- send Summary: summarise
                    send Writer: summed-up (producer)
                      process Writer: summed-up (consumer) <- send Writer: summed-up
                send nobody: astray (producer) ! error unknown_target
        send keepers: file (producer)
          process Archive: file (consumer) <- send keepers: file
          process Critic: file (consumer) <- send keepers: file
        """,
}

# Of two messages of a type that an agent gets, the first is measured: `message_size_sample_every` is 2.
# "s": a number of seconds, looked at in `check_times`. Besides these, each span has the three of `of_operation`.
ATTRIBUTES = """
                                 | destination | type                  | conversation | priority | agent    | size | wait | error          | state
    send *: roll-call            | *           | status_request        |              | low      |          |      |      |                |
    process Archive: roll-call   | Archive     | status_request        |              | low      | Archive  | 33   | s    |                |
    process Critic: roll-call    | Critic      | status_request        |              | low      | Critic   | 33   | s    |                |
    process Listener: roll-call  | Listener    | status_request        |              | low      | Listener | 33   | s    |                |
    process Summary: roll-call   | Summary     | status_request        |              | low      | Summary  | 33   | s    |                |
    process Writer: roll-call    | Writer      | status_request        |              | low      | Writer   | 33   | s    |                |
    send Archive: hold           | Archive     | command               |              | normal   |          |      |      |                |
    process Archive: hold        | Archive     | command               |              | normal   | Archive  |      | s    |                | cancelled
    send Listener: audio         | Listener    | audio_input           | talk         | high     |          |      |      |                |
    process Listener: audio      | Listener    | audio_input           | talk         | high     | Listener | 33   | s    |                |
    send Writer: transcribe      | Writer      | transcription_request | talk         | normal   | Listener |      |      |                |
    process Writer: transcribe   | Writer      | transcription_request | talk         | normal   | Writer   | 33   | s    |                |
    send Critic: judge           | Critic      | sentiment_request     | talk         | normal   | Writer   |      |      |                |
    process Critic: judge        | Critic      | sentiment_request     | talk         | normal   | Critic   | 33   | s    | ValueError     |
    send Listener: transcript    | Listener    | transcription_result  | talk         | normal   | Writer   |      |      |                |
    process Listener: transcript | Listener    | transcription_result  | talk         | normal   | Listener | 33   | s    |                |
    send Summary: summarise      | Summary     | summary_request       | talk         | normal   | Writer   |      |      |                |
    process Summary: summarise   | Summary     | summary_request       | talk         | normal   | Summary  | 33   | s    |                |
    send Writer: summed-up       | Writer      | summary_result        | talk         | normal   | Summary  |      |      |                |
    process Writer: summed-up    | Writer      | summary_result        | talk         | normal   | Writer   | 33   | s    |                |
    send nobody: astray          | nobody      | notification          | talk         | normal   | Writer   |      |      | unknown_target |
    send keepers: file           | keepers     | command               |              | normal   |          |      |      |                |
    process Archive: file        | Archive     | command               |              | normal   | Archive  | 33   | s    |                |
    process Critic: file         | Critic      | command               |              | normal   | Critic   | 33   | s    |                |
"""  # noqa: E501 - a table
COLUMNS = {
    "destination": "messaging.destination.name",
    "type": "message.type",
    "conversation": "messaging.message.conversation_id",
    "priority": "amptalk.message.priority",
    "agent": "gen_ai.agent.name",
    "size": "messaging.message.body.size",
    "wait": "amptalk.message.wait.duration",
    "error": "error.type",
    "state": "amptalk.message.state",
}

EVENTS = {
    "process Writer: transcribe": [
        "attempt failed amptalk.attempt=1 error.type=ConnectionError",
        "retry amptalk.attempt=2 amptalk.backoff=s",
    ],
    "process Critic: judge": [
        "attempt failed amptalk.attempt=1 error.type=ValueError",
        "exception exception.stacktrace=... exception.type=ValueError",
    ],
}


def tracing_to(collector: Collector, **settings: Any) -> Config:
    settings.setdefault("otlp_endpoint", collector.http_endpoint)
    return Config(
        metrics_exporters=("none",),
        traces_exporters=("otlp",),
        service_name="newsroom",
        message_size_sample_every=2,
        **settings,
    )


def raw_of(collector: Collector) -> str:
    """All that was written, as it was written."""
    return "".join(path.read_text() for path in collector.folder.glob("*.jsonl"))


async def run_newsroom(config: Config, mode: CommunicationMode = CommunicationMode.LOCAL) -> None:
    program = Newsroom(mode)
    instrumentation = instrument_orchestrator(program.orchestrator, config=config)
    try:
        await program.run()
    finally:
        assert await asyncio.to_thread(instrumentation.shutdown) is True


def expected_attributes() -> dict[str, dict[str, Any]]:
    expected = {}
    for label, cells in rows_of(ATTRIBUTES).items():
        name, message_id = label.split(": ")
        operation = name.split()[0]
        row: dict[str, Any] = {COLUMNS[column]: cell for column, cell in cells.items()}
        row |= {
            "messaging.system": "amptalk",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.message.id": message_id,
        }
        if "agent" in cells:
            row["gen_ai.agent.id"] = cells["agent"].lower()
        if "size" in cells:
            row["messaging.message.body.size"] = int(cells["size"])
        expected[label] = row
    return expected


def with_times_as_s(name: str, value: Any) -> Any:
    """Times differ from run to run: what is exact of them is that they are numbers."""
    if name in ("amptalk.message.wait.duration", "amptalk.backoff"):
        return "s" if isinstance(value, float) else value
    return value


def attributes_of(spans: dict[str, Span]) -> dict[str, dict[str, Any]]:
    return {
        label: {name: with_times_as_s(name, value) for name, value in span.attributes.items()}
        for label, span in spans.items()
    }


def event_value(name: str, value: Any) -> str:
    return "..." if name == "exception.stacktrace" else str(with_times_as_s(name, value))


def check_times(spans: dict[str, Span]) -> None:
    """Waits, back-offs, and what lies before what."""
    tolerance_ns = CLOCKS_S * 1e9
    for label, span in spans.items():
        assert span.start_ns <= span.end_ns, label
        for event in span.events:
            assert span.start_ns - tolerance_ns <= event.time_ns <= span.end_ns + tolerance_ns, (label, event)
        wait_s = span.attributes.get("amptalk.message.wait.duration")
        if wait_s is None:
            continue
        assert isinstance(wait_s, float)
        sent = spans[f"send {span.name.split()[1]}: {label.split(': ')[1]}"] if label in DIRECT else spans[VIA[label]]
        assert wait_s >= 0.0
        put_at_ns = span.start_ns - wait_s * 1e9  # which is inside the send
        assert sent.start_ns - tolerance_ns <= put_at_ns <= sent.end_ns + tolerance_ns, label
    retried = spans["process Writer: transcribe"]
    backoff_s = retried.events[1].attributes["amptalk.backoff"]
    assert isinstance(backoff_s, float)
    assert BACKOFF_S - CLOCKS_S <= backoff_s <= (retried.end_ns - retried.start_ns) / 1e9
    late = spans["process Writer: roll-call"]
    assert late.start_ns >= retried.end_ns
    waited_s = late.attributes["amptalk.message.wait.duration"]
    assert isinstance(waited_s, float)
    assert waited_s >= BACKOFF_S - CLOCKS_S * 4  # sent as soon as the first try was over


SENDS = [label for label in rows_of(ATTRIBUTES) if label.startswith("send ")]
PROCESSES = [label for label in rows_of(ATTRIBUTES) if label.startswith("process ")]
DIRECT = {label for label in PROCESSES if label.replace("process", "send", 1) in SENDS}
VIA = {
    label: "send *: roll-call" if label.endswith("roll-call") else "send keepers: file"
    for label in PROCESSES
    if label not in DIRECT
}


@pytest.mark.parametrize("relation", ["parent", "link", "both"])
def test_the_collector_has_every_span_and_nothing_else(relation: str, collector: Collector) -> None:
    config = tracing_to(collector, trace_relation=relation)
    asyncio.run(asyncio.wait_for(run_newsroom(config), 60))
    expected = expected_attributes()
    written = written_spans(collector, len(expected))
    assert tree_of(written) == text_of(TREES[relation])
    spans = by_label(written)
    assert attributes_of(spans) == expected
    events = {label: events_of(span, event_value) for label, span in spans.items() if span.events}
    assert events == EVENTS
    check_times(spans)
    stack = spans["process Critic: judge"].events[1].attributes["exception.stacktrace"]
    assert "in _judge" in str(stack)
    assert {(span.scope, span.resource["service.name"]) for span in written} == {("amptalk_otel", "newsroom")}
    raw = raw_of(collector)
    assert raw.count('"spanId"') >= len(expected)
    assert SECRET not in raw


def test_grpc_tells_the_same(collector: Collector) -> None:
    config = tracing_to(collector, otlp_traces_protocol="grpc", otlp_endpoint=collector.grpc_endpoint)
    asyncio.run(asyncio.wait_for(run_newsroom(config), 60))
    assert tree_of(written_spans(collector, len(expected_attributes()))) == text_of(TREES["parent"])


def test_messages_that_are_bytes_on_the_way_tell_the_same(collector: Collector) -> None:
    asyncio.run(asyncio.wait_for(run_newsroom(tracing_to(collector), CommunicationMode.MEMORY_CHANNEL), 60))
    expected = expected_attributes()
    written = written_spans(collector, len(expected))
    assert tree_of(written) == text_of(TREES["parent"])
    assert attributes_of(by_label(written)) == expected


# --------------------------------------------------------------------------------------------- state of the agents


STATE_TREE = """
    load_state (internal)
    send Keeper: keep (producer)
      process Keeper: keep (consumer)
        delete_state (internal)
        load_state (internal)
        save_state (internal)
        save_state (internal) ! error TypeError
    """
KEEPER = {"gen_ai.agent.id": "keeper", "gen_ai.agent.name": "Keeper"}


async def use_state(manager: StateManager, config: Config) -> None:
    """One message, whose handler saves, loads, deletes, and fails to save."""
    done = asyncio.Event()

    async def keep(_message: object) -> None:
        await manager.save_state("shelf", {"text": SECRET})
        await manager.load_state("shelf")
        await manager.delete_state("shelf")
        with contextlib.suppress(TypeError):
            await manager.save_state("shelf", {"text": {SECRET}})
        done.set()

    orchestrator = Orchestrator(name="library")
    agent = SimpleAgent(agent_id="keeper", name="Keeper")
    agent.register_message_handler(MessageType.COMMAND, keep)
    agent.state_manager = manager
    orchestrator.register_agent(agent)
    instrumentation = instrument_orchestrator(orchestrator, config=config)
    try:
        await orchestrator.start()
        await orchestrator.send_message_to_agent(letter("keep", MessageType.COMMAND, to="keeper"))
        await asyncio.wait_for(done.wait(), TIMEOUT_S)
        await asyncio.wait_for(agent.input_queue.join(), TIMEOUT_S)
        await orchestrator.stop()
    finally:
        assert await asyncio.to_thread(instrumentation.shutdown) is True


def test_state_operations_are_spans_of_the_work_that_they_are_done_in(collector: Collector) -> None:
    asyncio.run(asyncio.wait_for(use_state(StateManager(), tracing_to(collector)), 60))
    spans = written_spans(collector, 6)
    own = sorted((span for span in spans if span.kind == "internal"), key=lambda span: span.start_ns)
    assert tree_of(spans) == text_of(STATE_TREE)
    assert [(span.name, dict(span.attributes)) for span in own] == [
        (name, {"state.storage": "memory", "state.operation": operation, **KEEPER, **error})
        for name, operation, error in (
            ("load_state", "read", {}),  # when the agent starts
            ("save_state", "write", {}),
            ("load_state", "read", {}),
            ("delete_state", "delete", {}),
            ("save_state", "write", {"error.type": "TypeError"}),
        )
    ]
    assert [[event.name for event in span.events] for span in own] == [[], [], [], [], ["exception"]]
    assert SECRET not in raw_of(collector)
