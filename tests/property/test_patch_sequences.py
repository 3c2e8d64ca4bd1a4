"""However instrumentations and other people's wrappers come and go, the program works and gets its objects back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from amptalk_otel import Instrumentation, instrument_agent, instrument_orchestrator
from amptalk_otel._patch import Patches
from amptalk_otel.demo.runtime import Orchestrator, StateManager
from tests.support import CONFIG, Scripted, assert_balanced, examples, identity, note, provider_and_reader, settle

CHANGING = ("_unfinished_tasks", "stats")


class Thing:
    """Something to cover."""

    def work(self) -> list[int]:
        return []


def marking(mark: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def marked() -> Any:
            return [mark, *original()]

        return marked

    return wrap


@given(st.lists(st.integers(0, 3), max_size=12))
def test_layers_taken_off_from_the_top_give_back_what_was_below(steps: list[int]) -> None:
    """A step of 0 takes the top layer off, any other puts one on."""
    thing = Thing()
    layers: list[tuple[int, Patches]] = []
    for step in steps:
        if step:
            layers.append((step, Patches()))
            assert layers[-1][1].wrap(thing, "work", marking(step))
        elif layers:
            layers.pop()[1].undo()
        assert thing.work() == [mark for mark, _patches in reversed(layers)]
    while layers:
        layers.pop()[1].undo()
    assert vars(thing) == {}


@given(st.permutations(range(4)))
def test_layers_taken_off_in_any_order_never_break_a_call(order: list[int]) -> None:
    thing, layers = Thing(), [Patches() for _ in range(4)]
    for mark, patches in enumerate(layers):
        patches.wrap(thing, "work", marking(mark))
    for mark in order:
        layers[mark].undo()
        assert set(thing.work()) <= set(range(4))
    assert [patches.active for patches in layers] == [False] * 4


class Program:
    """An orchestrator with two agents, and two providers that may look at it."""

    def __init__(self) -> None:
        self.orchestrator, self.manager = Orchestrator(name="town"), StateManager()
        self.agents = [Scripted(agent_id=agent_id) for agent_id in "ab"]
        for agent in self.agents:
            agent.state_manager = self.manager
            self.orchestrator.agents[agent.agent_id] = agent
        self.providers = [provider_and_reader()[0] for _ in range(2)]
        self.handles: dict[tuple[int, int], Instrumentation] = {}
        self.owners = [self.orchestrator, self.manager, *self.agents, *(agent.input_queue for agent in self.agents)]
        self.before = self.identities()
        self.foreign: list[tuple[object, str, Any]] = []

    def identities(self) -> list[dict[str, int]]:
        return [{name: held for name, held in identity(owner).items() if name not in CHANGING} for owner in self.owners]

    def instrument(self, target: int, provider: int) -> None:
        options: dict[str, Any] = {"config": CONFIG, "meter_provider": self.providers[provider]}
        known = self.handles.get((target, provider))
        handle = (
            instrument_orchestrator(self.orchestrator, **options)
            if target == 0
            else instrument_agent(self.agents[0], **options)
        )
        assert handle.active
        assert known is None or handle is known
        self.handles[target, provider] = handle

    def uninstrument(self, target: int, provider: int) -> None:
        handle = self.handles.pop((target, provider), None)
        if handle is not None:
            handle.uninstrument()

    def cover(self, which: int) -> None:
        """Somebody else puts a wrapper on."""
        owner, attribute = [
            (self.agents[0], "process_message"),
            (self.agents[0].input_queue, "_put"),
            (self.orchestrator, "send_message_to_agent"),
            (self.manager, "save_state"),
        ][which]
        original = getattr(owner, attribute)

        def covering(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        setattr(owner, attribute, covering)
        self.foreign.append((owner, attribute, covering))

    async def work(self) -> None:
        """One message each, at most once counted however many wrappers there are."""
        handles = list(self.handles.values())
        before = [{reading.agent_id: reading for reading in handle.read()} for handle in handles]
        assert await self.orchestrator.send_message_to_agent(note(target_agent_id="a"))
        await settle()
        await self.manager.save_state("x", {})
        assert self.agents[0].seen
        for handle, former in zip(handles, before, strict=True):
            for reading in handle.read():
                assert_balanced(reading)
                came = reading.agent_id == "a"
                assert reading.received == former[reading.agent_id].received + came
                assert reading.processed == former[reading.agent_id].processed + came

    def end(self) -> None:
        for handle in self.handles.values():
            handle.uninstrument()
        for provider in self.providers:
            provider.shutdown()


ON_OFF = st.tuples(st.sampled_from(["instrument", "uninstrument"]), st.integers(0, 1), st.integers(0, 1))
COVER = st.tuples(st.just("cover"), st.integers(0, 3))
WORK = st.tuples(st.just("work"))


async def play(steps: list[tuple[Any, ...]]) -> None:
    program = Program()
    await program.agents[0].start()
    await settle()
    program.before = program.identities()
    seen = 0
    try:
        for name, *arguments in steps:
            if name == "work":
                await program.work()
                seen += 1
            else:
                getattr(program, name)(*arguments)
        assert len(program.agents[0].seen) == seen
        assert program.agents[0].stats.messages_processed == seen
    finally:
        program.end()
    if not program.foreign:
        assert program.identities() == program.before
    assert program.orchestrator.event_hooks["message_routed"] == []
    await program.orchestrator.send_message_to_agent(note(target_agent_id="a"))
    await settle()
    assert program.agents[0].stats.messages_processed == seen + 1
    await program.agents[0].stop()


@settings(max_examples=examples(60))
@given(st.lists(ON_OFF | WORK, max_size=14))
def test_two_providers_that_come_and_go_leave_every_object_as_it_was(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(steps))


@settings(max_examples=examples(60))
@given(st.lists(ON_OFF | WORK | COVER, max_size=14))
def test_other_peoples_wrappers_in_between_break_nothing_and_nothing_is_counted_twice(
    steps: list[tuple[Any, ...]],
) -> None:
    asyncio.run(play(steps))
