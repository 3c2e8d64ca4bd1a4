"""Log records that a program makes while it works on a message tell the trace that they belong to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from amptalk_otel.demo.runtime import Message
from tests.support import Scripted, in_loop, note, settle
from tests.tracing import Spans, attributes_of, connect, id_of, trace_of, traced

instrumentation = pytest.importorskip("opentelemetry.instrumentation.logging")
logger = logging.getLogger("program")


@pytest.fixture(autouse=True)
def correlation() -> Iterator[None]:
    """As a program switches it on, without its format on the root logger and without export of records."""
    instrumentor = instrumentation.LoggingInstrumentor()
    instrumentor.instrument(inject_trace_context=True, set_logging_format=True, enable_log_auto_instrumentation=False)
    yield
    instrumentor.uninstrument()


def ids_of(record: logging.LogRecord) -> tuple[str, str]:
    return record.otelTraceID, record.otelSpanID  # type: ignore[attr-defined]


@in_loop
async def _converse(spans: Spans) -> None:
    tasks = []

    async def beside(message: Message) -> None:
        await asyncio.sleep(0)
        logger.warning("beside %s", message.message_id)

    async def work(message: Message) -> None:
        logger.warning("begin %s", message.message_id)
        tasks.append(asyncio.create_task(beside(message)))
        await asyncio.sleep(0)
        logger.warning("end %s", message.message_id)

    alice, bob = Scripted(name="Alice", agent_id="a"), Scripted(*[work] * 20, name="Bob", agent_id="b")
    connect(alice, bob)
    with traced(spans, alice, bob):
        with spans.root("startup"):
            await bob.start()
        for number in range(20):
            with spans.root(f"request {number}"):
                await alice.send_message(note(message_id=str(number), target_agent_id="b"))
        while len(spans.named("process Bob")) < 20:
            await settle()
        await asyncio.gather(*tasks)
        logger.warning("outside")
        await bob.stop()


def test_records_made_in_handlers_and_beside_them_have_the_ids_of_the_process_span(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spans = Spans()
    _converse(spans)
    expected = {
        attributes_of(span)["messaging.message.id"]: (f"{trace_of(span):032x}", f"{id_of(span):016x}")
        for span in spans.named("process Bob")
    }
    records = [record for record in caplog.records if record.name == "program"]
    told = [(record.getMessage(), ids_of(record)) for record in records]
    assert sorted(told) == sorted(
        [(f"{when} {message}", ids) for message, ids in expected.items() for when in ("begin", "beside", "end")]
        + [("outside", ("0", "0"))]
    )
    assert len({trace for trace, _span in expected.values()}) == 20
    assert {record.otelTraceSampled for record in records if record.getMessage() != "outside"} == {True}  # type: ignore[attr-defined]
