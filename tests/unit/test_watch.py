"""Who is watched for whom: sharing, departing, coming back."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from amptalk_otel import AgentReading, Config, Instrumentation, instrument_agent, instrument_orchestrator
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._labels import RETIRED
from amptalk_otel._watch import Watch
from amptalk_otel.demo.runtime import Orchestrator
from tests.support import (
    CONFIG,
    Clock,
    Scripted,
    agent_keys,
    counts,
    handle,
    hold,
    in_loop,
    key,
    note,
    provider_and_reader,
    series,
    settle,
)

LINGERS_S = 30.0


class Seen:
    """One provider that looks at an orchestrator."""

    def __init__(self, orchestrator: Orchestrator, config: Config | None = None) -> None:
        self.provider, self.reader = provider_and_reader()
        config = config or CONFIG.with_changes(departed_agents_linger_s=LINGERS_S)
        self.handle = instrument_orchestrator(orchestrator, config=config, meter_provider=self.provider)

    def reading(self, agent_id: str = "a") -> AgentReading:
        (reading,) = [reading for reading in self.handle.read() if reading.agent_id == agent_id]
        return reading

    def told(self, agent: Scripted) -> dict[Any, Any]:
        return agent_keys(series(self.reader), agent)

    def processed(self, agent: Scripted) -> int:
        name = "amptalk.agent.messages.processed"
        return sum(value for (metric, _attributes), value in self.told(agent).items() if metric == name)

    def end(self) -> None:
        self.handle.shutdown()
        self.provider.shutdown()


def watch_of(handle: Instrumentation) -> Watch:
    assert handle._watch is not None
    return handle._watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of every recorder that is made from now on: wrappers take it from there once, and must not mix it with others."""
    clock = Clock()
    defaults = AgentRecorder.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", clock)
    return clock


@in_loop
async def test_an_agent_that_left_lingers_with_its_last_values_and_then_goes_altogether(clock: Clock) -> None:
    orchestrator, agent = Orchestrator(name="town"), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    seen = Seen(orchestrator)
    await handle(agent, note())
    await agent.enqueue_message(note())
    orchestrator.unregister_agent("a")
    operations = watch_of(seen.handle).operations
    for agent_id in "ab":
        operations.measured(agent_id, None, "transcribe", 1.0)
    whole = {"received": 2, "processed": 1, "dropped": {"unregistered": 1}, "waits": 1, "works": 1}
    assert counts(seen.reading()) == whole
    clock.advance(LINGERS_S)
    assert counts(seen.reading()) == whole
    owner = {"agent_id": "a", "agent_name": "A", "orchestrator_name": "town"}
    told = seen.told(agent)
    assert told[key("amptalk.agent.messages.received", **owner, message_type="command")] == 2
    assert told[key("amptalk.agent.messages.dropped", **owner, message_type="command", reason="unregistered")] == 1
    assert told[key("amptalk.agent.message.process.duration", **owner, message_type="command")][0] == 1
    assert told[key("amptalk.agent.running", **owner)] == 0
    assert told[key("amptalk.agent.queue.size", **owner)] == 0
    assert [agent_id for agent_id, _name, _operation in operations.durations] == ["a", "b"]
    clock.advance(0.001)
    assert seen.handle.read() == []
    assert [agent_id for agent_id, _name, _operation in operations.durations] == ["b", RETIRED]
    assert seen.told(agent) == {}
    retired = {"agent_id": RETIRED, "agent_name": RETIRED, "orchestrator_name": "town"}
    found = series(seen.reader)
    assert found[key("amptalk.agent.messages.received", **retired, message_type="command")] == 2
    assert found[key("amptalk.agent.message.process.duration", **retired, message_type="command")][0] == 1
    seen.end()


@in_loop
async def test_an_agent_that_comes_back_after_it_went_begins_from_zero(clock: Clock) -> None:
    orchestrator, agent = Orchestrator(), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    seen = Seen(orchestrator)
    await handle(agent, note())
    orchestrator.unregister_agent("a")
    clock.advance(LINGERS_S + 1)
    assert seen.told(agent) == {}
    orchestrator.register_agent(agent)
    assert counts(seen.reading()) == {}
    await handle(agent, note())
    assert seen.processed(agent) == 1
    seen.end()


@in_loop
async def test_two_providers_get_the_same_exact_numbers_and_both_keep_those_who_left_for_a_while(clock: Clock) -> None:
    orchestrator, agent = Orchestrator(), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    both = [Seen(orchestrator), Seen(orchestrator)]
    await handle(agent, note())
    assert [seen.processed(agent) for seen in both] == [1, 1]
    await agent.enqueue_message(note())
    orchestrator.unregister_agent("a")
    left = {"received": 2, "processed": 1, "dropped": {"unregistered": 1}, "waits": 1, "works": 1}
    assert [counts(seen.reading()) for seen in both] == [left, left]
    assert [seen.processed(agent) for seen in both] == [1, 1]
    clock.advance(1.0)
    orchestrator.register_agent(agent)
    await handle(agent, note())
    back = {"received": 4, "processed": 3, "dropped": {"unregistered": 1}, "waits": 2, "works": 3}
    assert [counts(seen.reading()) for seen in both] == [back, back]
    assert [seen.processed(agent) for seen in both] == [3, 3]
    for seen in both:
        durations = [value for (name, _), value in seen.told(agent).items() if name.endswith("process.duration")]
        assert [count for count, _sum in durations] == [3]
    orchestrator.unregister_agent("a")
    clock.advance(LINGERS_S + 1)
    assert [seen.told(agent) for seen in both] == [{}, {}]
    for seen in both:
        seen.end()


@in_loop
async def test_an_agent_that_others_still_watch_loses_nothing_when_one_watcher_lets_it_go(clock: Clock) -> None:
    orchestrator, agent = Orchestrator(), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    seen = Seen(orchestrator)
    provider, reader = provider_and_reader()
    alone = instrument_agent(agent, config=CONFIG, meter_provider=provider)
    await handle(agent, note())
    await agent.enqueue_message(note())
    orchestrator.unregister_agent("a")
    assert counts(alone.read()[0]) == {"received": 2, "processed": 1, "queued": 1, "waits": 1, "works": 1}
    clock.advance(LINGERS_S + 1)
    assert seen.told(agent) == {}
    await agent.start()
    await settle()
    await agent.stop()
    assert counts(alone.read()[0]) == {"received": 2, "processed": 2, "waits": 2, "works": 2}
    assert {value for (name, _), value in series(reader).items() if name == "amptalk.agent.messages.processed"} == {2}
    seen.end()
    alone.shutdown()
    provider.shutdown()
    assert set(vars(agent)) == set(vars(Scripted()))


@in_loop
async def test_an_agent_of_the_same_id_and_another_name_has_numbers_of_its_own() -> None:
    orchestrator = Orchestrator()
    first, second = Scripted(agent_id="a", name="First"), Scripted(agent_id="a", name="Second")
    orchestrator.register_agent(first)
    seen = Seen(orchestrator)
    await handle(first, note())
    orchestrator.register_agent(second)
    await handle(second, note(), note())
    assert sorted((reading.agent_name, reading.processed) for reading in seen.handle.read()) == [
        ("First", 1), ("Second", 2),
    ]  # fmt: skip
    seen.end()


@in_loop
async def test_an_agent_dropped_without_a_word_is_let_go_at_the_next_reading(clock: Clock) -> None:
    orchestrator, agent = Orchestrator(), Scripted(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    seen = Seen(orchestrator)
    await handle(agent, note())
    await agent.enqueue_message(note())
    await settle()
    del orchestrator.agents["a"], agent
    gc.collect()
    assert counts(seen.reading()) == {
        "received": 2, "processed": 1, "dropped": {"unregistered": 1}, "waits": 1, "works": 1,
    }  # fmt: skip
    clock.advance(LINGERS_S + 1)
    assert seen.handle.read() == []
    agents = {
        dict(attributes)["agent.id"] for name, attributes in series(seen.reader) if name.startswith("amptalk.agent.")
    }
    assert agents == {RETIRED}
    seen.end()


@in_loop
async def test_an_agent_at_the_address_of_one_that_is_gone_is_another_agent() -> None:
    orchestrator, gone = Orchestrator(), Scripted(agent_id="gone", name="Gone")
    orchestrator.register_agent(gone)
    seen = Seen(orchestrator)
    await handle(gone, note())
    await settle()
    agents = watch_of(seen.handle)._agents
    former = id(gone)
    del orchestrator.agents["gone"], gone
    gc.collect()
    late = Scripted(agent_id="late", name="Late")
    agents[id(late)] = agents.pop(former)
    orchestrator.register_agent(late)
    await handle(late, note())
    assert sorted((reading.agent_id, reading.processed) for reading in seen.handle.read()) == [("gone", 1), ("late", 1)]
    seen.end()


@in_loop
async def test_releasing_a_watch_twice_is_harmless() -> None:
    orchestrator = Orchestrator()
    orchestrator.register_agent(Scripted())
    seen = Seen(orchestrator)
    watch = watch_of(seen.handle)
    watch.release()
    watch.release()
    orchestrator.register_agent(late := Scripted())
    watch.agent_registered(late)
    assert list(watch.agents()) == []
    assert set(vars(late)) == set(vars(Scripted()))
    seen.end()


@in_loop
async def test_releasing_forgets_those_who_left_as_well() -> None:
    orchestrator, agent = Orchestrator(), Scripted(agent_id="a")
    orchestrator.register_agent(agent)
    seen = Seen(orchestrator)
    await handle(agent, note())
    orchestrator.unregister_agent("a")
    assert seen.processed(agent) == 1
    seen.handle.uninstrument()
    assert seen.told(agent) == {}
    again = instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=seen.provider)
    orchestrator.register_agent(agent)
    assert counts(again.read()[0]) == {}
    again.shutdown()
    seen.end()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@in_loop
async def test_the_wrappers_come_off_with_the_last_of_two_providers(order: tuple[int, int]) -> None:
    orchestrator, agent = Orchestrator(), Scripted(hold, agent_id="a")
    orchestrator.register_agent(agent)
    both = [Seen(orchestrator), Seen(orchestrator)]
    await agent.start()
    await agent.enqueue_message(note())
    await settle()
    both[order[0]].handle.uninstrument()
    assert both[order[1]].reading().in_flight == 1
    assert both[order[0]].told(agent) == {}
    await agent.stop()
    assert both[order[1]].reading().dropped == 1
    both[order[1]].handle.uninstrument()
    assert set(vars(agent)) == set(vars(Scripted()))
    assert set(vars(orchestrator)) == set(vars(Orchestrator()))
    assert orchestrator.event_hooks["message_routed"] == []
    for seen in both:
        seen.end()


def test_agents_are_watched_before_there_is_a_loop() -> None:
    orchestrator = Orchestrator()
    agent = Scripted(agent_id="a")
    orchestrator.agents["a"] = agent
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider) as instrumentation:
        asyncio.run(handle(agent, note()))
        assert counts(instrumentation.read()[0]) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
    provider.shutdown()
