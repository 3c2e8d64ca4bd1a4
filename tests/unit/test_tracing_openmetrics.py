"""Exemplars on the page: behind bucket lines of OpenMetrics, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptalk_otel._buckets import DURATION_BOUNDS_S, BucketCounts, Distribution
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._reading import AgentReading
from tests.support import Clock, Scripted, handle, in_loop, note
from tests.tracing import Spans, id_of, trace_of, traced
from tests.unit.test_exposition import agent, of_type, page_for, parsed, text_of

WORK = "amptalk_agent_message_process_duration_seconds"
WAIT = "amptalk_agent_message_wait_duration_seconds"
EXEMPLAR = re.compile(r' # \{trace_id="[0-9a-f]{32}",span_id="[0-9a-f]{16}"\} \S+ \S+$')
TIME_NS = 1_800_000_000_123_456_789


def exemplified(*values: float) -> Distribution:
    """A distribution whose every value is an example, of a trace of its own number."""
    buckets = BucketCounts(DURATION_BOUNDS_S)
    for number, value in enumerate(values, 1):
        buckets.record(value)
        buckets.exemplify(value, TIME_NS + number * 10**9, number, number * 16)
    return replace(buckets.copy(), exemplars=buckets.copy_exemplars())


def without_exemplars(reading: AgentReading) -> AgentReading:
    types = tuple(
        replace(kind, wait=replace(kind.wait, exemplars=()), process=replace(kind.process, exemplars=()))
        for kind in reading.types
    )
    return replace(reading, types=types)


def found_on(text: str) -> dict[str, Any]:
    """By the family and `le`: the exemplar that a strict parser finds there."""
    return {
        f"{family.name} {sample.labels['le']}": sample.exemplar
        for family in parsed(text, openmetrics=True)
        for sample in family.samples
        if sample.exemplar is not None
    }


READING = agent(1, of_type(wait=exemplified(0.0004, 1e9), process=exemplified(0.3, 0.007, 0.4)))


def test_each_exemplar_is_behind_the_bucket_that_its_value_fell_into() -> None:
    text = text_of(page_for(Snapshot(agents=(READING,))), openmetrics=True)
    found = found_on(text)
    assert set(found) == {f"{WAIT} 0.0005", f"{WAIT} +Inf", f"{WORK} 0.5", f"{WORK} 0.01"}
    last = found[f"{WORK} 0.5"]
    assert last.labels == {"trace_id": f"{3:032x}", "span_id": f"{48:016x}"}
    assert (last.value, float(last.timestamp)) == (0.4, (TIME_NS + 3 * 10**9) / 1e9)
    lines = [line for line in text.split("\n") if " # " in line]
    assert len(lines) == 4
    assert all(EXEMPLAR.search(line) and "_bucket{" in line for line in lines)


def test_the_classic_page_is_the_same_with_exemplars_and_without() -> None:
    pages = [
        b"".join(page_for(Snapshot(agents=(reading,))).pages(False))
        for reading in (READING, without_exemplars(READING))
    ]
    assert _without_clocks(pages[0]) == _without_clocks(pages[1])
    assert b"trace_id" not in pages[0]


def test_without_its_exemplars_the_openmetrics_page_is_what_it_would_be() -> None:
    pages = [
        text_of(page_for(Snapshot(agents=(reading,))), openmetrics=True)
        for reading in (READING, without_exemplars(READING))
    ]
    stripped = "\n".join(EXEMPLAR.sub("", line) for line in pages[0].split("\n"))
    assert pages[0] != pages[1]
    assert _without_clocks(stripped.encode()) == _without_clocks(pages[1].encode())


def _without_clocks(page: bytes) -> list[bytes]:
    """What is told of the machine and the process is another at each reading."""
    return [line for line in page.split(b"\n") if not line.startswith((b"process_", b"system_"))]


@pytest.mark.parametrize("name", [f"{WORK}_bucket", f"{WORK}_count"])
def test_a_page_that_is_asked_for_some_names_has_their_exemplars(name: str) -> None:
    page = page_for(Snapshot(agents=(READING,)))
    text = text_of(page, openmetrics=True, names=frozenset({name}))
    assert len([line for line in text.split("\n") if EXEMPLAR.search(line)]) == (2 if name.endswith("bucket") else 0)


def test_among_many_types_each_keeps_its_own() -> None:
    """More than are written at a time; every third one has none."""
    types = tuple(
        of_type(f"type {number}", process=exemplified(0.3) if number % 3 else exemplified()) for number in range(40)
    )
    agents = tuple(agent(number, *types) for number in range(5))
    text = text_of(page_for(Snapshot(agents=agents)), openmetrics=True)
    having = [
        (sample.labels["agent_id"], sample.labels["message_type"])
        for family in parsed(text, openmetrics=True)
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert sorted(having) == sorted(
        (f"id-{number}", f"type {kind}") for number in range(5) for kind in range(40) if kind % 3
    )


def test_exemplars_change_from_one_page_to_the_next() -> None:
    readings = iter((READING, without_exemplars(READING), READING))
    page = page_for(lambda: Snapshot(agents=(next(readings),)))
    assert [len(found_on(text_of(page, openmetrics=True))) for _ in range(3)] == [4, 0, 4]


@given(
    values=st.lists(st.floats(0.0, 1e12), max_size=6),
    ids=st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)),
    time_ns=st.integers(0, 2**63 - 1),
)
def test_a_strict_parser_reads_back_every_exemplar(values: list[float], ids: tuple[int, int], time_ns: int) -> None:
    buckets = BucketCounts(DURATION_BOUNDS_S)
    for value in values:
        buckets.record(value)
        buckets.exemplify(value, time_ns, *ids)
    distribution = replace(buckets.copy(), exemplars=buckets.copy_exemplars())
    reading = agent(1, of_type(process=distribution))
    found: list[Any] = list(found_on(text_of(page_for(Snapshot(agents=(reading,))), openmetrics=True)).values())
    assert [exemplar.value for exemplar in found] == [value for value, *_rest in distribution.exemplars]
    assert all(exemplar.labels == {"trace_id": f"{ids[0]:032x}", "span_id": f"{ids[1]:016x}"} for exemplar in found)
    assert [float(exemplar.timestamp) for exemplar in found] == pytest.approx([time_ns / 1e9] * len(found), abs=1e-8)


@in_loop
async def test_the_page_of_a_traced_agent_leads_to_its_spans() -> None:
    spans, clock = Spans(), Clock()

    async def work(_message: Any) -> None:
        clock.advance(0.3)

    bob = Scripted(work, agent_id="b", name="Bob")
    with traced(spans, bob, clock=clock) as (hook,):
        await handle(bob, note())
        text = text_of(page_for(Snapshot(agents=(hook.read(),))), openmetrics=True)
    span = spans.one("process Bob")
    of = {"trace_id": f"{trace_of(span):032x}", "span_id": f"{id_of(span):016x}"}
    found = found_on(text)
    assert {place: exemplar.labels for place, exemplar in found.items()} == {f"{WAIT} 0.0005": of, f"{WORK} 0.5": of}
    assert [exemplar.value for exemplar in found.values()] == [0.0, pytest.approx(0.3)]
