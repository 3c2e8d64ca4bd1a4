"""Agents that come and go at an orchestrator, and what it routes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from amptalk_otel import AgentReading, Instrumentation, instrument_orchestrator
from amptalk_otel.demo.runtime import (
    CommunicationConfig,
    CommunicationMode,
    Message,
    MessageMetadata,
    MessageType,
    Orchestrator,
)
from tests.support import (
    CONFIG,
    Scripted,
    counts,
    handle,
    hold,
    identity,
    in_loop,
    key,
    note,
    provider_and_reader,
    series,
    settle,
)

if TYPE_CHECKING:
    from typing_extensions import Self

ROUTED, UNDELIVERABLE = "amptalk.orchestrator.messages.routed", "amptalk.orchestrator.messages.undeliverable"


class Town:
    """An orchestrator under watch, with agents a, b, c of which the first two are a group."""

    def __init__(self, **options: Any) -> None:
        self.orchestrator = Orchestrator(name="town", **options)
        self.agents = {agent_id: Scripted(agent_id=agent_id, name=agent_id.upper()) for agent_id in "abc"}
        for agent_id, agent in self.agents.items():
            self.orchestrator.register_agent(agent, ["ab"] if agent_id in "ab" else None)
        self.provider, self.reader = provider_and_reader()
        self.instrumentation = self.instrument()

    def instrument(self) -> Instrumentation:
        return instrument_orchestrator(self.orchestrator, config=CONFIG, meter_provider=self.provider)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.instrumentation.shutdown()
        self.provider.shutdown()

    def read(self, agent_id: str) -> AgentReading:
        (reading,) = [reading for reading in self.instrumentation.read() if reading.agent_id == agent_id]
        return reading

    def told(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        return {
            frozenset(attributes - {("orchestrator.name", "town")}): value
            for (metric, attributes), value in series(self.reader).items()
            if metric == name
        }


def types(**numbers: int) -> dict[frozenset[tuple[str, str]], int]:
    return {frozenset({("message.type", kind)}): number for kind, number in numbers.items()}


# -- routed --------------------------------------------------------------------------------------------


@in_loop
async def test_each_message_routed_counts_once_and_a_broadcast_once_per_agent() -> None:
    with Town() as town:
        send = town.orchestrator
        assert await send.send_message_to_agent(note(MessageType.COMMAND, target_agent_id="a"))
        assert town.told(ROUTED) == types(command=1)
        assert await send.send_message_to_group(note(MessageType.NLP_REQUEST), "ab")
        assert await send.broadcast_message(note(MessageType.HEARTBEAT))
        assert town.told(ROUTED) == types(command=1, nlp_request=2, heartbeat=3)
        assert town.told(UNDELIVERABLE) == {}
        assert [town.read(agent_id).received for agent_id in "abc"] == [3, 2, 1]


@in_loop
async def test_what_the_orchestrator_can_not_deliver_is_told_by_reason_and_not_routed() -> None:
    with Town() as town:
        send = town.orchestrator.send_message_to_agent
        assert not await send(note(target_agent_id="nobody"))
        assert not await send(note())
        assert not await send(note(target_agent_id="a", metadata=MessageMetadata(hop_count=10, ttl=10)))
        town.orchestrator.communication_manager.config.mode = CommunicationMode.HTTP
        assert not await send(note(target_agent_id="a"))
        assert town.told(ROUTED) == {}
        assert town.told(UNDELIVERABLE) == {
            frozenset({("message.type", "command"), ("reason", reason)}): number
            for reason, number in {"unknown_target": 2, "expired": 1, "error": 1}.items()
        }
        assert not await town.orchestrator.send_message_to_group(note(), "nobody's")
        assert town.read("a").received == 0


@in_loop
async def test_one_message_sent_twice_at_once_counts_twice() -> None:
    async def look(**_event: Any) -> None:
        await asyncio.sleep(0)

    with Town() as town:
        town.orchestrator.event_hooks["message_routed"].insert(0, look)
        message = note(target_agent_id="a")
        send = town.orchestrator.send_message_to_agent

        async def send_later() -> None:
            await asyncio.sleep(0)
            await send(message)

        await asyncio.gather(send(message), send_later(), send(message))
        assert town.told(ROUTED) == types(command=3)


@in_loop
async def test_a_send_that_raises_is_undeliverable_and_raises_the_same() -> None:
    failure = OSError("no way")

    async def refuse(_message: Message, _target: Any) -> bool:
        raise failure

    with Town() as town:
        town.orchestrator.communication_manager.send_message = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(OSError, match="no way") as raised:
            await town.orchestrator.send_message_to_agent(note(target_agent_id="a"))
        assert raised.value is failure
        assert town.told(UNDELIVERABLE) == {frozenset({("message.type", "command"), ("reason", "error")}): 1}


@in_loop
async def test_the_programs_own_event_hooks_are_called_in_their_order_with_what_they_were_called_with() -> None:
    async def record(orchestrator: Orchestrator, *, instrumented: bool) -> list[Any]:
        seen: list[Any] = []

        def noting(name: str) -> Any:
            async def hook(*args: Any, **kwargs: Any) -> None:
                seen.append((name, len(args), sorted(kwargs)))

            return hook

        events = ("agent_added", "agent_removed", "system_started", "system_stopped", "message_routed")
        for event in events:
            orchestrator.register_event_hook(event, noting(f"{event} first"))
        provider, _reader = provider_and_reader()
        if instrumented:
            instrumentation = instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider)
        for event in events:
            orchestrator.register_event_hook(event, noting(f"{event} second"))
        agent = Scripted(agent_id="a")
        orchestrator.register_agent(agent, ["all"])
        await orchestrator.start()
        await orchestrator.send_message_to_agent(note(target_agent_id="a"))
        await orchestrator.send_message_to_group(note(), "all")
        await orchestrator.broadcast_message(note())
        orchestrator.unregister_agent("a")
        await settle()
        await orchestrator.stop()
        await agent.stop()
        if instrumented:
            instrumentation.shutdown()
        return seen

    plain = await record(Orchestrator(), instrumented=False)
    assert len(plain) == 14
    assert await record(Orchestrator(), instrumented=True) == plain


# -- agents --------------------------------------------------------------------------------------------


@in_loop
async def test_agents_are_counted_by_whether_they_run() -> None:
    name = "amptalk.orchestrator.agents"
    running, stopped = (frozenset({("agent.state", state)}) for state in ("running", "stopped"))
    with Town() as town:
        assert town.told(name) == {running: 0, stopped: 3}
        await town.orchestrator.start()
        await town.agents["b"].stop()
        assert town.told(name) == {running: 2, stopped: 1}
        town.orchestrator.unregister_agent("b")
        assert town.told(name) == {running: 2, stopped: 0}
        await town.orchestrator.stop()


@pytest.mark.parametrize("way", ["register_agent", "add_agent"])
@in_loop
async def test_agents_that_come_later_are_watched_from_then_on(way: str) -> None:
    with Town(communication_config=CommunicationConfig(CommunicationMode.MEMORY_CHANNEL)) as town:
        late = Scripted(agent_id="late", name="Late")
        getattr(town.orchestrator, way)(late, groups=["ab"])
        assert await town.orchestrator.send_message_to_group(note(), "ab")
        await handle(late)
        assert counts(town.read("late")) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        assert town.read("late").orchestrator_name == "town"
        assert series(town.reader)[
            key("amptalk.agent.messages.processed", agent_id="late", agent_name="Late", orchestrator_name="town",
                message_type="command")
        ] == 1  # fmt: skip


@in_loop
async def test_an_agent_let_go_and_taken_back_goes_on_counting_where_it_stood() -> None:
    with Town() as town:
        agent = town.agents["a"]
        await handle(agent, note(), note())
        agent.script = [hold]
        await agent.start()
        for _ in range(3):
            await agent.enqueue_message(note())
        await settle()
        assert town.orchestrator.unregister_agent("a")
        assert counts(town.read("a")) == {
            "received": 5, "processed": 2, "dropped": {"unregistered": 2}, "in_flight": 1, "waits": 3, "works": 2,
        }  # fmt: skip
        assert set(vars(agent)) == set(vars(Scripted()))
        await agent.stop()
        assert counts(town.read("a"))["dropped"] == {"cancelled": 1, "unregistered": 2}
        await agent.enqueue_message(note())  # nobody looks
        assert town.read("a").received == 5

        town.orchestrator.register_agent(agent)
        assert counts(town.read("a")) == {
            "received": 8,
            "processed": 2,
            "dropped": {"cancelled": 1, "unregistered": 2},
            "queued": 3,
            "waits": 3,
            "works": 2,
        }
        await handle_all(agent)
        assert counts(town.read("a")) == {
            "received": 8, "processed": 5, "dropped": {"cancelled": 1, "unregistered": 2}, "waits": 3, "works": 5,
        }  # fmt: skip


async def handle_all(agent: Scripted) -> None:
    await agent.start()
    await settle(40)
    await agent.stop()


@in_loop
async def test_an_agent_registered_twice_is_watched_once() -> None:
    with Town() as town:
        town.orchestrator.register_agent(town.agents["a"])
        await handle(town.agents["a"], note())
        assert counts(town.read("a")) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        assert len(town.instrumentation.read()) == 3


@in_loop
async def test_an_agent_that_takes_anothers_place_goes_on_with_its_counters() -> None:
    with Town() as town:
        former, latter = town.agents["a"], Scripted(agent_id="a", name="A")
        await handle(former, note())
        await former.enqueue_message(note())
        town.orchestrator.register_agent(latter)
        assert counts(town.read("a")) == {
            "received": 2, "processed": 1, "dropped": {"unregistered": 1}, "waits": 1, "works": 1,
        }  # fmt: skip
        await handle(latter, note())
        await former.enqueue_message(note())
        assert counts(town.read("a")) == {
            "received": 3, "processed": 2, "dropped": {"unregistered": 1}, "waits": 2, "works": 2,
        }  # fmt: skip
        assert "_put" not in vars(former.input_queue)


@in_loop
async def test_unregistering_who_is_not_there_returns_false_and_nothing_happens() -> None:
    with Town() as town:
        assert town.orchestrator.unregister_agent("nobody") is False
        assert len(town.instrumentation.read()) == 3


@in_loop
async def test_methods_may_be_called_by_keyword() -> None:
    with Town() as town:
        late = Scripted(agent_id="late")
        town.orchestrator.register_agent(agent=late, groups=["x"])
        assert len(town.instrumentation.read()) == 4
        assert await town.orchestrator.send_message_to_agent(message=note(target_agent_id="late"))
        assert town.orchestrator.unregister_agent(agent_id="late") is True
        assert town.read("late").dropped == 1


@pytest.mark.usefixtures("lenient_guard")
@in_loop
async def test_something_strange_among_the_agents_does_not_keep_the_others_from_being_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    town = Town()
    town.instrumentation.shutdown()
    town.orchestrator.agents["strange"] = object()  # type: ignore[assignment]
    with Town.__new__(Town) as other:
        other.__dict__.update(town.__dict__)
        other.instrumentation = other.instrument()
        assert other.instrumentation.active
        await handle(other.agents["c"], note())
        assert counts(other.read("c")) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        assert len(other.instrumentation.read()) == 3
    assert [record.levelname for record in caplog.records if record.name == "amptalk_otel"] == ["WARNING"]


# -- coming off ----------------------------------------------------------------------------------------


@in_loop
async def test_nothing_is_left_on_an_orchestrator() -> None:
    town = Town()
    town.instrumentation.shutdown()
    orchestrator = town.orchestrator

    async def hook(**_event: Any) -> None:
        """Belongs to the program."""

    orchestrator.register_event_hook("message_routed", hook)
    orchestrator.enable_performance_monitoring = True
    before, hooks = identity(orchestrator), {event: list(of) for event, of in orchestrator.event_hooks.items()}
    with Town.__new__(Town) as again:
        again.__dict__.update(town.__dict__)
        again.instrumentation = again.instrument()
        assert orchestrator.enable_performance_monitoring is False
        assert identity(orchestrator) != before
        assert orchestrator.event_hooks != hooks
    assert identity(orchestrator) == before
    assert orchestrator.event_hooks == hooks


@in_loop
async def test_wrappers_of_others_on_an_orchestrator_do_not_break_and_ours_below_count_no_more() -> None:
    with Town() as town:
        orchestrator = town.orchestrator
        calls: list[str] = []
        for attribute in ("register_agent", "unregister_agent", "send_message_to_agent"):
            original = getattr(orchestrator, attribute)

            def covering(*args: Any, _original: Any = original, _name: str = attribute, **kwargs: Any) -> Any:
                calls.append(_name)
                return _original(*args, **kwargs)

            setattr(orchestrator, attribute, covering)
        town.instrumentation.uninstrument()
        late = Scripted(agent_id="late")
        orchestrator.register_agent(late)
        assert "_put" not in vars(late.input_queue)
        town.instrumentation = town.instrument()
        assert await orchestrator.send_message_to_agent(note(target_agent_id="late"))
        assert town.told(ROUTED) == types(command=1)
        assert town.read("late").received == 1
        orchestrator.unregister_agent("late")
        assert town.read("late").dropped == 1
        assert calls == ["register_agent", "send_message_to_agent", "unregister_agent"]


@in_loop
async def test_nothing_of_ours_keeps_agents_or_orchestrator_alive() -> None:
    town = Town()
    await handle(town.agents["a"], note())
    await town.agents["a"].enqueue_message(note())
    town.orchestrator.unregister_agent("a")
    await settle()
    gone = weakref.ref(town.agents.pop("a"))
    gc.collect()
    assert gone() is None, "unregistered"
    del town.orchestrator.agents["b"]
    gone = weakref.ref(town.agents.pop("b"))
    gc.collect()
    assert gone() is None, "dropped without a word"
    last = town.agents["c"]
    remaining: list[weakref.ref[Any]] = [weakref.ref(it) for it in (town.orchestrator, last, last.input_queue)]
    instrumentation, provider = town.instrumentation, town.provider
    del town, last
    gc.collect()
    assert [reference() for reference in remaining] == [None] * 3
    assert {reading.agent_id: (reading.received, reading.dropped) for reading in instrumentation.read()} == {
        "a": (2, 1), "b": (0, 0), "c": (0, 0),
    }  # fmt: skip
    instrumentation.shutdown()
    provider.shutdown()


@pytest.mark.parametrize("at_once", [1, 2])
@in_loop
async def test_no_message_is_taken_for_one_that_is_still_being_sent(at_once: int) -> None:
    async def look(**_event: Any) -> None:
        await asyncio.sleep(0)

    with Town() as town:
        town.orchestrator.event_hooks["message_routed"].insert(0, look)
        watch = town.instrumentation._watch
        assert watch is not None
        assert watch._orchestrator is not None
        message = note(target_agent_id="a")
        await asyncio.gather(*[town.orchestrator.send_message_to_agent(message) for _ in range(at_once)])
        assert watch._orchestrator._sending == {}


class HasItsOwnWays(Orchestrator):
    """Takes agents in without calling `register_agent`."""

    def add_agent(self, agent: Any, groups: Any = None) -> None:
        self.agents[agent.agent_id] = agent

    async def create_agent(self, agent: Any) -> Any:
        self.agents[agent.agent_id] = agent
        return agent


@in_loop
async def test_agents_are_found_in_whichever_way_they_are_taken_in() -> None:
    orchestrator, (provider, _reader) = HasItsOwnWays(name="town"), provider_and_reader()
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider) as instrumentation:
        orchestrator.add_agent(Scripted(agent_id="a"))
        assert [reading.agent_id for reading in instrumentation.read()] == ["a"]
        await orchestrator.create_agent(Scripted(agent_id="b"))
        assert [reading.agent_id for reading in instrumentation.read()] == ["a", "b"]
    provider.shutdown()


class TakesTime(Orchestrator):
    """Takes agents in while others run."""

    async def register_agent(self, agent: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.agents[agent.agent_id] = agent


@in_loop
async def test_an_agent_that_takes_anothers_place_lets_that_one_go_also_where_it_takes_time() -> None:
    orchestrator, (provider, _reader) = TakesTime(name="town"), provider_and_reader()
    former, agent = Scripted(agent_id="a", name="A"), Scripted(agent_id="a", name="A")
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider) as instrumentation:
        await orchestrator.register_agent(former)
        await orchestrator.register_agent(agent)
        assert "_put" not in vars(former.input_queue)
        agent.input_queue.put_nowait(note())
        (reading,) = instrumentation.read()
        assert counts(reading) == {"received": 1, "queued": 1}
    provider.shutdown()
