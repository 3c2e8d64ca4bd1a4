"""State managers: durations, sizes, and who they belong to."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from amptalk_otel import instrument_agent, instrument_state_manager
from amptalk_otel._hooks._state import StateManagerHook, User, hook_state_manager
from amptalk_otel._recorder import StateOwner, StateRecorder
from amptalk_otel.demo.runtime import StateManager, StorageType
from tests.support import (
    CONFIG,
    Clock,
    Scripted,
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

DURATION = "amptalk.state.operation.duration"


def operations(hook: StateManagerHook) -> dict[tuple[str, str | None], int]:
    return {of: distribution.count for of, distribution in hook.read().durations.items()}


@in_loop
async def test_saving_loading_and_deleting_are_timed_each_as_its_own_operation() -> None:
    clock, manager = Clock(), StateManager()
    user = User(StateOwner())
    user.owner.states.append(StateRecorder("memory", user.owner, clock=clock))
    hook = hook_state_manager(manager, user)
    former = manager.memory_optimizer.record

    def slow(key: str, size_bytes: int) -> None:
        clock.advance(2.0)
        former(key, size_bytes)

    manager.memory_optimizer.record = slow  # type: ignore[method-assign]
    assert await manager.save_state("a", {"x": 1}) is True
    assert await manager.save_state(agent_id="b", data={"x": 2}) is True
    assert await manager.load_state("a") == {"x": 1}
    assert await manager.delete_state("a") is True
    assert await manager.delete_state("a") is False
    assert operations(hook) == {("write", None): 2, ("read", None): 1, ("delete", None): 2}
    assert hook.read().durations["write", None].sum == 4.0
    assert hook.read().durations["read", None].sum == 0.0
    hook.release(user)


@in_loop
async def test_sizes_and_items_follow_what_is_stored() -> None:
    manager = StateManager()
    user = User(StateOwner())
    hook = hook_state_manager(manager, user)
    seen = [(hook.read().items, hook.read().size_bytes)]
    for state_id, data in (("a", {"x": 1}), ("b", {"x": "long"}), ("a", {})):
        await manager.save_state(state_id, data)
        seen.append((hook.read().items, hook.read().size_bytes))
    await manager.delete_state("b")
    seen.append((hook.read().items, hook.read().size_bytes))
    assert seen == [(0, 0), (1, 8), (2, 8 + 13), (2, 2 + 13), (1, 2)]
    assert hook.read().storage == "memory"
    hook.release(user)


@in_loop
async def test_a_snapshot_is_a_read_and_a_write() -> None:
    manager = StateManager()
    user = User(StateOwner())
    hook = hook_state_manager(manager, user)
    async with manager.snapshot("a") as state:
        state["x"] = 1
    assert operations(hook) == {("read", None): 1, ("write", None): 1}
    assert manager.memory_data == {"a": {"x": 1}}
    hook.release(user)


@in_loop
async def test_what_fails_is_told_by_its_error_and_raises_the_same(tmp_path: Path) -> None:
    manager = StateManager(StorageType.FILE, tmp_path)
    user = User(StateOwner())
    hook = hook_state_manager(manager, user)
    failure = PermissionError("read-only")

    def refuse(_path: Path, _text: str) -> None:
        raise failure

    manager._write = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(PermissionError, match="read-only") as raised:
        await manager.save_state("a", {})
    assert raised.value is failure
    with pytest.raises(TypeError, match="JSON"):
        await manager.save_state("a", {"x": object()})
    assert operations(hook) == {("write", "PermissionError"): 1, ("write", "TypeError"): 1}
    assert (hook.read().storage, hook.read().items) == ("file", 0)
    hook.release(user)


@in_loop
async def test_a_manager_made_in_start_is_found_with_the_load_that_start_makes() -> None:
    agent = Scripted()
    agent.state_persistence_enabled = True
    with hooked(agent) as hook:
        assert hook.read().states == ()
        await agent.start()
        (state,) = hook.read().states
        assert {of: distribution.count for of, distribution in state.durations.items()} == {("read", None): 1}
        agent.state["x"] = 1
        await agent.stop()
        (state,) = hook.read().states
        assert {of: distribution.count for of, distribution in state.durations.items()} == {
            ("read", None): 1, ("write", None): 1,
        }  # fmt: skip
        assert (state.storage, state.items, state.size_bytes) == ("memory", 1, 8)
        former = agent.state_manager
        await agent.start()  # makes another manager
        assert "save_state" not in vars(former)
        await agent.stop()
        (state,) = hook.read().states
        assert {of: distribution.count for of, distribution in state.durations.items()} == {
            ("read", None): 2, ("write", None): 2,
        }  # fmt: skip
        assert state.items == 1
        manager = agent.state_manager
        assert manager is not None
        assert "save_state" in vars(manager)
    assert "save_state" not in vars(manager)


class MakesItsManager(Scripted):
    """Has no method of its own for that."""

    _initialize_state_manager = None  # type: ignore[assignment]

    async def start(self) -> None:
        self.state_manager = StateManager()
        await super().start()


@in_loop
async def test_a_manager_that_start_itself_makes_is_found_when_it_is_done() -> None:
    agent = MakesItsManager()
    with hooked(agent) as hook:
        await agent.start()
        assert agent.state_manager is not None
        await agent.state_manager.save_state("a", {})
        (state,) = hook.read().states
        assert {of: distribution.count for of, distribution in state.durations.items()} == {("write", None): 1}
        await agent.stop()


@in_loop
async def test_a_manager_that_two_agents_share_is_counted_once() -> None:
    provider, reader = provider_and_reader()
    manager, agents = StateManager(), [Scripted(agent_id=name, name=name) for name in "ab"]
    instrumentations = []
    for agent in agents:
        agent.state_manager = manager
        instrumentations.append(instrument_agent(agent, config=CONFIG, meter_provider=provider))
    await manager.save_state("x", {"some": "thing"})
    told = {name: value for name, value in series(reader).items() if name[0].startswith("amptalk.state.")}
    assert sorted(name for name, _attributes in told) == [
        "amptalk.state.items", DURATION, "amptalk.state.size",
    ]  # fmt: skip
    assert told[key("amptalk.state.items", agent_id="a", agent_name="a", state_storage="memory")] == 1
    for instrumentation in instrumentations:
        assert "save_state" in vars(manager)
        instrumentation.shutdown()
    assert "save_state" not in vars(manager)
    provider.shutdown()


@in_loop
async def test_a_manager_of_its_own_is_told_without_an_agent() -> None:
    provider, reader = provider_and_reader()
    manager = StateManager()
    before = identity(manager)
    with instrument_state_manager(manager, config=CONFIG, meter_provider=provider) as instrumentation:
        assert instrument_state_manager(manager, config=CONFIG, meter_provider=provider) is instrumentation
        await manager.save_state("x", {})
        told = {name: value for name, value in series(reader).items() if name[0].startswith("amptalk.state.")}
        assert told.pop(key("amptalk.state.items", state_storage="memory")) == 1
        assert told.pop(key("amptalk.state.size", state_storage="memory")) == 2
        assert told.pop(key(DURATION, state_storage="memory", state_operation="write"))[0] == 1
        assert told == {}
    assert identity(manager) == before
    assert not [name for name in series(reader) if name[0].startswith("amptalk.state.")]
    provider.shutdown()


@in_loop
async def test_others_wrappers_on_a_manager_go_on_and_ours_below_count_no_more() -> None:
    manager, user = StateManager(), User(StateOwner())
    hook = hook_state_manager(manager, user)
    ours = manager.save_state

    async def covering(*args: Any, **kwargs: Any) -> bool:
        return await ours(*args, **kwargs)

    manager.save_state = covering  # type: ignore[method-assign]
    hook.release(user)
    assert await manager.save_state("a", {}) is True
    assert operations(hook) == {}
    again = hook_state_manager(manager, user)
    await manager.save_state("a", {})
    assert operations(again) == {("write", None): 1}
    again.release(user)


@in_loop
async def test_a_cancelled_operation_raises_its_cancellation(tmp_path: Path) -> None:
    class Slow(StateManager):
        async def save_state(self, agent_id: str, data: dict[str, Any]) -> bool:
            await asyncio.Event().wait()
            return True

    manager = Slow()
    user = User(StateOwner())
    hook = hook_state_manager(manager, user)
    saving = asyncio.create_task(manager.save_state("a", {}))
    await settle()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert sum(operations(hook).values()) == 1
    hook.release(user)


@in_loop
async def test_a_manager_that_nobody_holds_any_more_goes() -> None:
    agent = Scripted()
    agent.state_manager = StateManager()
    with hooked(agent) as hook:
        await agent.state_manager.save_state("a", {})
        gone = weakref.ref(agent.state_manager)
        agent.state_manager = None
        gc.collect()
        assert gone() is None
        (state,) = hook.read().states
        assert (state.items, state.size_bytes) == (None, None)
        assert state.durations["write", None].count == 1
        await handle(agent, note())
