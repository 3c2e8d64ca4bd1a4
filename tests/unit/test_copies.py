"""Copies of what is instrumented are as if it were not."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from amptalk_otel import instrument_orchestrator
from amptalk_otel._copies import keep_out_of_copies
from amptalk_otel._patch import Patches
from amptalk_otel.demo.runtime import Message, Orchestrator, SimpleAgent, StateManager
from tests.support import CONFIG, Scripted, hooked, identity, in_loop, note, provider_and_reader


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickled])


class Keeper(SimpleAgent):
    """Keeps what it handles."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: list[str] = []

    async def process_message(self, message: Message) -> None:
        self.kept.append(message.message_id)


@WAYS
@in_loop
async def test_a_copy_of_an_agent_works_for_itself(way: Callable[[Any], Any]) -> None:
    template = Keeper(agent_id="t", name="T")
    other = Keeper(agent_id="o", name="O")
    with hooked(template) as hook:
        clone = way(template)
        assert vars(clone).keys() == vars(Keeper()).keys()
        if way is copy.copy:
            clone.input_queue, clone.kept, clone.tasks, clone.connected_agents = asyncio.Queue(), [], [], {}
        clone.connect(other)
        assert await clone.send_message(note(target_agent_id="o")) is True
        await clone.start()
        assert (clone.is_running, template.is_running) == (True, False)
        await clone.enqueue_message(note(message_id="1"))
        await asyncio.wait_for(clone.input_queue.join(), 20)
        await clone.stop()
        assert (clone.kept, template.kept) == (["1"], [])
        assert (hook.read().received, hook.read().sent) == (0, 0)
        assert template.input_queue.qsize() == 0


@WAYS
@in_loop
async def test_a_copy_of_an_orchestrator_or_a_state_manager_has_no_wrappers(way: Callable[[Any], Any]) -> None:
    provider, _reader = provider_and_reader()
    orchestrator, agent = Orchestrator(name="town"), Scripted(agent_id="a")
    agent.state_manager = manager = StateManager()
    before = identity(orchestrator).keys(), identity(manager).keys()
    orchestrator.agents["a"] = agent
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider):
        await manager.save_state("x", {"y": 1})
        assert vars(orchestrator).keys() != before[0]
        assert vars(manager).keys() != before[1]
        orchestrator.event_hooks.clear()  # which hold our bound method
        clones = way(orchestrator), way(manager)
    assert tuple(vars(clone).keys() for clone in clones) == before
    assert await clones[1].load_state("x") == {"y": 1}
    assert (identity(orchestrator).keys(), identity(manager).keys()) == before
    provider.shutdown()


class Stateful:
    """Tells its state itself, in two parts."""

    __slots__ = ("__dict__", "__weakref__", "slot")

    def __init__(self) -> None:
        self.slot, self.attribute = 1, 2

    def work(self) -> int:
        return 1


class Own(Stateful):
    __slots__ = ()

    def __getstate__(self) -> list[int]:
        return [self.slot, self.attribute]

    def __setstate__(self, state: list[int]) -> None:
        self.slot, self.attribute = state


@pytest.mark.parametrize("kind", [Stateful, Own])
@WAYS
def test_slots_and_states_of_its_own_are_kept(way: Callable[[Any], Any], kind: type[Stateful]) -> None:
    thing, patches = kind(), Patches()
    before = identity(thing)
    keep_out_of_copies(patches, thing)
    clone = way(thing)
    assert (clone.slot, vars(clone)) == (1, {"attribute": 2})
    patches.undo()
    assert identity(thing) == before


def test_what_the_instance_had_itself_is_what_its_copy_has() -> None:
    thing = Keeper()

    async def own(_message: Message) -> bool:
        return True

    thing.send_message = own  # type: ignore[method-assign,assignment]
    with hooked(thing):
        assert copy.copy(thing).send_message is own
