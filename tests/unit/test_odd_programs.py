"""Programs that override, call and break what we cover in ways of their own: they go on as they would without us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import pytest

from amptalk_otel import instrument_agent, instrument_orchestrator, instrument_state_manager
from amptalk_otel.demo.runtime import Agent, Message, MessageMetadata, Orchestrator, StateManager
from tests.support import (
    CONFIG,
    Clock,
    Scripted,
    counts,
    handle,
    hooked,
    identity,
    in_loop,
    key,
    note,
    provider_and_reader,
    series,
    settle,
)
from tests.tracing import Spans

if TYPE_CHECKING:
    from typing_extensions import Self

DURATION = "amptalk.state.operation.duration"


class Watched:
    """An orchestrator under watch."""

    def __init__(self, orchestrator: Orchestrator, **options: Any) -> None:
        self.orchestrator = orchestrator
        self.provider, self.reader = provider_and_reader()
        self.handle = instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=self.provider, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.handle.shutdown()
        self.provider.shutdown()

    def watched(self) -> list[str]:
        return [reading.agent_id for reading in self.handle.read()]


# -- methods that are no coroutine functions -----------------------------------------------------------


class Factory(Orchestrator):
    def create_agent(self, agent_id: str) -> Agent:
        agent = Scripted(agent_id=agent_id)
        self.agents[agent_id] = agent
        return agent


@in_loop
async def test_a_factory_that_is_a_plain_method_returns_its_agent_and_that_is_watched() -> None:
    with Watched(Factory()) as town:
        agent = town.orchestrator.create_agent("a")  # type: ignore[attr-defined]
        assert isinstance(agent, Scripted)
        assert town.watched() == ["a"]


class AtOnce(Scripted):
    """Sends and stops without being awaited."""

    def send_message(self, message: Message) -> Awaitable[bool]:  # type: ignore[override]
        return asyncio.ensure_future(super().send_message(message))

    def stop(self) -> Awaitable[None]:  # type: ignore[override]
        return asyncio.ensure_future(super().stop())


@in_loop
async def test_what_a_program_does_not_await_is_done_all_the_same() -> None:
    sender, receiver = AtOnce(agent_id="s"), Scripted(agent_id="r")
    sender.connect(receiver)
    await sender.start()
    with hooked(sender), hooked(receiver) as hook:
        sender.send_message(note(target_agent_id="r"))  # type: ignore[unused-awaitable]
        sender.stop()  # type: ignore[unused-awaitable]
        await settle()
        assert (hook.read().received, sender.is_running) == (1, False)


class Returning(Scripted):
    """Hands on the coroutines of others, as decorators do."""

    def send_message(self, message: Message) -> Awaitable[bool]:  # type: ignore[override]
        return super().send_message(message)

    def _process_with_retry(self, message: Message) -> Awaitable[Any]:  # type: ignore[override]
        return asyncio.ensure_future(super()._process_with_retry(message))

    def start(self) -> Awaitable[None]:  # type: ignore[override]
        return super().start()


@in_loop
async def test_coroutines_and_futures_that_plain_methods_return_are_counted() -> None:
    sender, receiver = Returning(agent_id="s"), Scripted(agent_id="r")
    sender.connect(receiver)
    sender.script = [[note(target_agent_id="r")], ValueError()]
    with hooked(sender) as hook:
        await handle(sender, note(), note())
        found = counts(hook.read())
        assert found == {
            "received": 2, "processed": 1, "failed": {"ValueError": 1}, "sent": 1, "waits": 2, "works": 2,
        }  # fmt: skip


class PlainStore:
    """A state manager without a coroutine."""

    storage_type = "dict"

    def __init__(self) -> None:
        self.memory_data: dict[str, Any] = {}

    def save_state(self, state_id: str, data: Any) -> bool:
        self.memory_data[state_id] = data
        return True

    def load_state(self, state_id: str) -> Any:
        return self.memory_data.get(state_id)

    def delete_state(self, state_id: str) -> bool:
        return self.memory_data.pop(state_id, None) is not None


def test_a_state_manager_of_plain_methods_keeps_working() -> None:
    provider, _reader = provider_and_reader()
    store: Any = PlainStore()
    before = identity(store)
    with instrument_state_manager(store, config=CONFIG, meter_provider=provider):
        assert store.save_state("a", 1) is True
        assert store.load_state("a") == 1
        assert store.delete_state("a") is True
    assert identity(store) == before
    provider.shutdown()


class Later(Orchestrator):
    async def unregister_agent(self, agent_id: str) -> bool:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().unregister_agent(agent_id)


@in_loop
async def test_an_agent_is_let_go_by_a_coroutine_too() -> None:
    with Watched(Later()) as town:
        agent = Scripted(agent_id="a")
        town.orchestrator.register_agent(agent)
        await agent.enqueue_message(note())
        await town.orchestrator.unregister_agent("a")  # type: ignore[misc]
        (reading,) = town.handle.read()
        assert counts(reading) == {"received": 1, "dropped": {"unregistered": 1}}
        assert "send_message" not in vars(agent)


# -- arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["register_agent", "add_agent"])
@in_loop
async def test_an_agent_given_by_name_after_its_groups_is_watched(method: str) -> None:
    with Watched(Orchestrator()) as town:
        getattr(town.orchestrator, method)(groups=["g"], agent=Scripted(agent_id="a"))
        assert town.watched() == ["a"]
        town.orchestrator.unregister_agent(agent_id="a")
        assert [reading.running for reading in town.handle.read()] == [False]


@pytest.mark.parametrize("by_name", [True, False])
@in_loop
async def test_a_groups_name_is_told_and_never_the_message(by_name: bool) -> None:
    spans = Spans()
    with Watched(Orchestrator(), tracer_provider=spans.provider) as town:
        town.orchestrator.register_agent(Scripted(agent_id="a"), ["g"])
        message = note(payload={"secret": "word"})
        if by_name:
            await town.orchestrator.send_message_to_group(group_id="g", message=message)
        else:
            await town.orchestrator.send_message_to_group(message, "g")
    (span,) = spans.named("send g")
    assert span.attributes is not None
    assert span.attributes["messaging.destination.name"] == "g"
    assert span.attributes["message.type"] == "command"
    assert "word" not in str(span.attributes) + span.name


# -- events --------------------------------------------------------------------------------------------


@in_loop
async def test_no_hook_of_the_program_is_left_out_when_ours_goes_in_the_middle_of_an_event() -> None:
    orchestrator, heard = Orchestrator(), []
    orchestrator.register_agent(Scripted(agent_id="a"))
    town = Watched(orchestrator)

    async def first(*_args: Any, **_kwargs: Any) -> None:
        heard.append("first")
        town.handle.uninstrument()

    async def second(*_args: Any, **_kwargs: Any) -> None:
        heard.append("second")

    orchestrator.event_hooks["message_routed"].insert(0, first)
    orchestrator.register_event_hook("message_routed", second)
    await orchestrator.broadcast_message(note())
    assert heard == ["first", "second"]
    assert orchestrator.event_hooks["message_routed"] == [first, second]
    town.__exit__()


class AsyncEvents(Orchestrator):
    async def register_event_hook(self, event: str, hook: Any) -> None:  # type: ignore[override]
        super().register_event_hook(event, hook)


class MoreEvents(Orchestrator):
    def register_event_hook(self, event: str, hook: Any, priority: int) -> None:  # type: ignore[override]
        super().register_event_hook(event, hook)


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("kind", [AsyncEvents, MoreEvents])
@in_loop
async def test_an_orchestrator_with_events_of_its_own_is_watched_and_left_as_it_was(kind: type[Orchestrator]) -> None:
    orchestrator, agent = kind(), Scripted(agent_id="a")
    orchestrator.register_agent(agent)
    await settle()
    before = identity(orchestrator)
    with Watched(orchestrator) as town:
        assert town.watched() == ["a"]
    assert identity(orchestrator) == before


# -- agents that can't be looked at --------------------------------------------------------------------


class Fickle(Scripted):
    """One of its attributes raises while `fails` names it."""

    fails = ""

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "fails"):
            raise RuntimeError(name)
        return object.__getattribute__(self, name)


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("attribute", ["is_running", "stats", "state_manager"])
@in_loop
async def test_an_attribute_that_can_not_be_read_takes_no_count_away(attribute: str) -> None:
    orchestrator, agent = Orchestrator(name="town"), Fickle(agent_id="a", name="A")
    agent.state_manager = StateManager()
    orchestrator.register_agent(agent)
    with Watched(orchestrator) as town:
        await handle(agent, note(), note())
        await agent.state_manager.save_state("x", {})
        received = key("amptalk.agent.messages.received", agent_id="a", agent_name="A", orchestrator_name="town",
                       message_type="command")  # fmt: skip
        for fails in ("", attribute, ""):
            agent.fails = fails
            assert series(town.reader)[received] == 2
            (reading,) = town.handle.read()
            assert (reading.processed, len(reading.states)) == (2, 1)


@pytest.mark.usefixtures("lenient_guard")
@in_loop
async def test_a_state_manager_that_can_not_be_read_takes_no_count_away() -> None:
    class Broken(StateManager):
        fails = False

        def __getattribute__(self, name: str) -> Any:
            if name == "memory_optimizer" and object.__getattribute__(self, "fails"):
                raise RuntimeError
            return object.__getattribute__(self, name)

    agent = Scripted()
    agent.state_manager = manager = Broken()
    with hooked(agent) as hook:
        await manager.save_state("a", {})
        manager.fails = True
        (state,) = hook.read().states
        assert state.durations["write", None].count == 1
        assert (state.items, state.size_bytes) == (None, None)


@pytest.mark.usefixtures("lenient_guard")
@in_loop
async def test_one_odd_agent_does_not_take_the_orchestrators_numbers_away() -> None:
    orchestrator, agent, odd = Orchestrator(name="town"), Scripted(agent_id="a"), Fickle(agent_id="b")
    orchestrator.register_agent(agent)
    await agent.start()
    with Watched(orchestrator) as town:
        odd.fails = "name"
        orchestrator.register_agent(odd)
        told = series(town.reader)
        assert told[key("amptalk.orchestrator.agents", orchestrator_name="town", agent_state="running")] == 1
        assert told[key("amptalk.orchestrator.agents", orchestrator_name="town", agent_state="stopped")] == 1
    await agent.stop()


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("attribute", ["input_queue", "send_message", "_is_recoverable_error"])
@in_loop
async def test_an_agent_that_can_not_be_hooked_is_left_as_it_was_and_keeps_what_it_counted(attribute: str) -> None:
    orchestrator, agent = Orchestrator(name="town"), Fickle(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    agent.fails = ""
    before = identity(agent)
    owner = {"agent_id": "a", "agent_name": "A", "orchestrator_name": "town", "message_type": "command"}
    with Watched(orchestrator) as town:
        await handle(agent, note())
        orchestrator.unregister_agent("a")
        agent.fails = attribute
        orchestrator.register_agent(agent)
        agent.fails = ""
        is_hooked = attribute == "_is_recoverable_error"  # which is only where retries are told from
        assert (set(vars(agent)) != set(before)) == is_hooked
        assert series(town.reader)[key("amptalk.agent.messages.received", **owner)] == 1
        orchestrator.unregister_agent("a")
        orchestrator.register_agent(agent)
        await handle(agent, note())
        assert series(town.reader)[key("amptalk.agent.messages.received", **owner)] == 2
    assert set(vars(agent)) == set(before)
    assert not {"_put", "_get", "__getstate__"} & set(vars(agent.input_queue))


@pytest.mark.usefixtures("lenient_guard")
@in_loop
async def test_an_agent_whose_queue_appears_too_late_is_left_as_it_was() -> None:
    class Lazy(Scripted):
        reads = 0

        @property
        def input_queue(self) -> Any:
            Lazy.reads += 1
            if Lazy.reads == 2:  # the first is whether there is one
                raise RuntimeError
            return self._queue

        @input_queue.setter
        def input_queue(self, queue: Any) -> None:
            self._queue = queue

    agent = Lazy()
    before = identity(agent)
    provider, _reader = provider_and_reader()
    with instrument_agent(agent, config=CONFIG, meter_provider=provider):
        assert identity(agent) == before
    assert identity(agent) == before
    provider.shutdown()


# -- state managers that are shared --------------------------------------------------------------------


@in_loop
async def test_what_a_shared_manager_does_is_told_of_those_who_still_have_it() -> None:
    orchestrator, manager = Orchestrator(name="town"), StateManager()
    agents = [Scripted(agent_id=name, name=name) for name in "ab"]
    for agent in agents:
        agent.state_manager = manager
        orchestrator.register_agent(agent)
    with Watched(orchestrator) as town:
        await manager.save_state("x", {})
        orchestrator.unregister_agent("a")
        for _ in range(3):
            await manager.save_state("y", {})
        told = series(town.reader)
        owner = {"orchestrator_name": "town", "state_storage": "memory"}
        writes = {
            name: told[key(DURATION, agent_id=name, agent_name=name, state_operation="write", **owner)][0]
            for name in "ab"
        }
        assert writes == {"a": 1, "b": 3}
        assert told[key("amptalk.state.items", agent_id="b", agent_name="b", **owner)] == 2
        orchestrator.unregister_agent("b")
        assert "save_state" not in vars(manager)


@in_loop
async def test_states_that_the_optimizer_forgot_are_held_all_the_same() -> None:
    agent = Scripted()
    agent.state_manager = manager = StateManager(max_size_bytes=20)
    with hooked(agent) as hook:
        for number in range(10):
            await manager.save_state(str(number), {"number": number})
        (state,) = hook.read().states
        assert state.items == len(manager.memory_data) == 10
        assert state.size_bytes == manager.memory_optimizer.current_size_bytes <= 20


# -- error handlers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("retried_before", [0, 1])
@in_loop
async def test_the_work_of_an_error_handler_is_work_and_a_retry(retried_before: int) -> None:
    agent, clock = Scripted(ConnectionError()), Clock()

    async def mend(_message: Message, _details: dict[str, Any]) -> None:
        assert agent.error_handlers["ConnectionError"] is not mend
        clock.advance(0.5)

    agent.error_handlers["ConnectionError"] = mend
    with hooked(agent, clock) as hook:
        await handle(agent, note(metadata=MessageMetadata(retry_count=retried_before)))
        reading = hook.read()
        assert (reading.time.busy_s, reading.time.retry_backoff_s) == (0.5, 0.0)
        assert counts(reading)["retries"] == {"ConnectionError": 1}
        assert agent.error_handlers == {"ConnectionError": mend}


@in_loop
async def test_an_error_handler_registered_meanwhile_stays() -> None:
    agent = Scripted(ConnectionError())

    async def mend(_message: Message, _details: dict[str, Any]) -> None:
        agent.error_handlers["ConnectionError"] = other

    async def other(_message: Message, _details: dict[str, Any]) -> None: ...

    agent.error_handlers["ConnectionError"] = mend
    with hooked(agent):
        await handle(agent, note())
        assert agent.error_handlers == {"ConnectionError": other}


# -- the framework's own monitor -----------------------------------------------------------------------


class Monitored(Scripted):
    """With a monitor of the framework's, which it leaves when it stops."""

    async def stop(self) -> None:
        if self.enable_performance_monitoring and self._performance_monitor:
            self._performance_monitor.remove(self.agent_id)
        await super().stop()


@in_loop
async def test_an_agent_leaves_the_monitor_that_it_was_with_before_us() -> None:
    agent, monitor = Monitored(agent_id="a"), {"a"}
    agent._performance_monitor, agent.enable_performance_monitoring = monitor, True
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
    assert monitor == set()
    assert agent.enable_performance_monitoring is True


# -- loops ---------------------------------------------------------------------------------------------


class Unusual(Scripted):
    """Calls itself by another name."""

    async def _message_loop(me) -> None:
        while me.is_running:
            message = await me.input_queue.get()
            await me._process_with_retry(message)
            me.input_queue.task_done()

    async def start(me) -> None:
        me.is_running = True
        me.running = asyncio.create_task(me._message_loop())


@in_loop
async def test_a_loop_is_known_whatever_it_calls_its_agent() -> None:
    agent = Unusual()
    with hooked(agent) as hook:
        await agent.start()
        await agent.enqueue_message(note())
        await asyncio.wait_for(agent.input_queue.join(), 20)
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        agent.running.cancel()
        await settle()
