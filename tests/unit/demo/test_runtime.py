"""The stand-in behaves as the framework does, quirks included."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from amptalk_otel.demo.runtime import (
    Agent,
    CommunicationConfig,
    CommunicationManager,
    CommunicationMode,
    MemoryOptimizer,
    Message,
    MessageMetadata,
    MessagePriority,
    MessageType,
    Orchestrator,
    SimpleAgent,
    StateManager,
    StorageType,
    agents,
    create_state_manager,
)


class Scripted(Agent):
    """Plays a list of outcomes: an exception is raised, anything else is returned."""

    def __init__(self, *script: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.script = list(script)
        self.seen: list[Message] = []
        self.base_retry_delay = 0.001

    async def process_message(self, message: Message) -> list[Message] | None:
        self.seen.append(message)
        outcome = self.script.pop(0) if self.script else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class HeldUp(Agent):
    """Never gets done with a message."""

    async def process_message(self, message: Message) -> list[Message] | None:
        await asyncio.Event().wait()
        return None


async def handle(agent: Agent, *messages: Message) -> None:
    """Start the agent, let it work through the messages, and stop it."""
    await agent.start()
    for message in messages:
        await agent.enqueue_message(message)
    await asyncio.wait_for(agent.input_queue.join(), 5)
    await agent.stop()


def connected_pair(**kwargs: Any) -> tuple[Scripted, Scripted]:
    first, second = Scripted(agent_id="a", **kwargs), Scripted(agent_id="b")
    first.connect(second)
    return first, second


class TestMessages:
    def test_types_have_plain_string_values(self) -> None:
        assert len(MessageType) == 28
        assert MessageType.AUDIO_INPUT.value == "audio_input"
        assert [p.value for p in MessagePriority] == [0, 1, 2, 3]

    def test_json_round_trip(self) -> None:
        message = Message(
            message_type=MessageType.NLP_REQUEST,
            target_agent_id="a",
            priority=MessagePriority.CRITICAL,
            payload={"text": "über"},
        )
        message.metadata.add_checkpoint("parsed", {"lines": 3})
        message.metadata.recovery_attempts.append({"attempt": 1})
        assert Message.from_json(message.to_json()) == message
        assert json.loads(message.to_json())["message_type"] == "nlp_request"

    def test_metadata_does_not_take_unknown_keys(self) -> None:
        with pytest.raises(TypeError, match="traceparent"):
            MessageMetadata.from_dict({"traceparent": "00-1-2-01"})

    def test_equal_and_not_hashable(self) -> None:
        message = Message()
        assert message == Message.from_dict(message.to_dict())
        with pytest.raises(TypeError, match="unhashable"):
            hash(message)

    def test_extra_attributes_do_not_survive_a_clone(self) -> None:
        message = Message()
        message.extra = 1  # type: ignore[attr-defined]
        clone = Message.from_dict(message.to_dict())
        assert not hasattr(clone, "extra")
        assert clone.message_id == message.message_id
        assert clone.metadata.created_at == message.metadata.created_at

    def test_reply_goes_back_in_the_same_conversation(self) -> None:
        message = Message(source_agent_id="a", target_agent_id="b")
        message.metadata.conversation_id = "c"
        message.metadata.hop_count = 4
        reply = message.create_reply(MessageType.NLP_RESULT, {"n": 1})
        assert (reply.source_agent_id, reply.target_agent_id) == ("b", "a")
        assert reply.metadata.conversation_id == "c"
        assert reply.metadata.parent_message_id == message.message_id
        assert reply.metadata.hop_count == 4
        assert reply.message_id != message.message_id

    def test_error_reply(self) -> None:
        message = Message(message_type=MessageType.AUDIO_INPUT, source_agent_id="a")
        reply = message.create_error_reply("no sound", {"line": 2})
        assert reply.message_type is MessageType.ERROR
        assert reply.payload == {"error": "no sound", "original_message_type": "audio_input"}
        assert (reply.metadata.error, reply.metadata.error_details) == ("no sound", {"line": 2})


class TestAgentLife:
    def test_defaults(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            assert len(agent.agent_id) == 36
            assert agent.agent_id[:8] in agent.name
            assert agent.state_manager is None
            assert not agent.enable_performance_monitoring
            assert (agent.max_retry_attempts, agent.max_retry_delay) == (3, 30.0)
            assert "enable_performance_monitoring" not in vars(Agent)

        asyncio.run(scenario())

    def test_processes_what_comes_in(self) -> None:
        async def scenario() -> None:
            agent, message = Scripted(), Message(message_type=MessageType.AUDIO_INPUT)
            await handle(agent, message)
            assert agent.seen == [message]
            assert agent.stats.messages_received == agent.stats.messages_processed == 1
            assert agent.stats.received_by_type == {"audio_input": 1}
            assert message.metadata.processing_time is not None
            assert agent.stats.started_at is not None
            assert agent.stats.stopped_at is not None

        asyncio.run(scenario())

    def test_start_twice_makes_one_loop(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            await agent.start()
            await agent.start()
            assert len(agent.tasks) == 1
            await agent.stop()
            assert agent.tasks == []

        asyncio.run(scenario())

    def test_stop_leaves_the_inbox_alone(self) -> None:
        async def scenario() -> None:
            agent = HeldUp()
            await agent.start()
            for _ in range(3):
                await agent.enqueue_message(Message())
            await asyncio.sleep(0)
            await agent.stop()
            assert agent.input_queue.qsize() == 2
            assert agent.stats.messages_received == 3
            assert agent.stats.messages_processed == agent.stats.messages_failed == 0

        asyncio.run(scenario())

    def test_cancelling_an_idle_loop_ends_in_a_value_error(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            await agent.start()
            await asyncio.sleep(0)
            loop_task = agent.tasks[0]
            await agent.stop()
            assert isinstance(loop_task.exception(), ValueError)

        asyncio.run(scenario())

    def test_restart_works_off_what_was_left(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            await agent.enqueue_message(Message())
            await handle(agent)
            assert agent.stats.messages_processed == 1

        asyncio.run(scenario())

    def test_status(self) -> None:
        async def scenario() -> None:
            agent, _ = connected_pair(name="first")
            await agent.enqueue_message(Message())
            status = await agent.get_status()
            assert status["agent_id"] == "a"
            assert status["name"] == "first"
            assert status["is_running"] is False
            assert status["queue_size"] == 1
            assert status["connected_agents"] == ["b"]
            assert status["stats"]["messages_received"] == 1
            assert status["performance_monitoring"] == {"enabled": False, "registered": False}

        asyncio.run(scenario())

    def test_methods_are_looked_up_on_the_instance_at_each_call(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            await agent.start()
            calls: list[str] = []
            for name in ("process_message", "_process_with_retry", "send_message"):
                setattr(agent, name, noting(calls, name, getattr(agent, name)))
            agent.script.append([Message()])
            await agent.enqueue_message(Message())
            await agent.input_queue.join()
            await agent.stop()
            assert calls == ["_process_with_retry", "process_message", "send_message"]

        asyncio.run(scenario())


def noting(calls: list[str], name: str, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return await original(*args, **kwargs)

    return wrapper


class TestRetries:
    def test_retries_until_it_works(self) -> None:
        async def scenario() -> None:
            agent, message = Scripted(ConnectionError(), OSError()), Message()
            await handle(agent, message)
            assert agent.stats.messages_processed == 1
            assert (agent.stats.retries, agent.stats.successful_retries) == (2, 1)
            assert message.metadata.retry_count == 2

        asyncio.run(scenario())

    def test_gives_up_after_four_attempts_with_the_last_error(self) -> None:
        async def scenario() -> None:
            script = [RuntimeError("1"), RuntimeError("2"), RuntimeError("3"), LookupError("4")]
            agent, message = Scripted(*script), Message()
            await handle(agent, message)
            assert len(agent.seen) == 4
            assert agent.stats.errors == {"LookupError": 1}
            assert (agent.stats.retries, agent.stats.successful_retries) == (3, 0)
            assert message.metadata.error == "4"

        asyncio.run(scenario())

    @pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, AttributeError])
    def test_some_errors_are_final(self, error: type[Exception]) -> None:
        async def scenario() -> None:
            agent = Scripted(error("no"))
            await handle(agent, Message())
            assert len(agent.seen) == 1
            assert agent.stats.errors == {error.__name__: 1}
            assert agent.stats.retries == 0

        asyncio.run(scenario())

    def test_error_handler_takes_the_place_of_processing(self) -> None:
        async def scenario() -> None:
            contexts: list[dict[str, Any]] = []

            async def repair(message: Message, context: dict[str, Any]) -> None:
                contexts.append(context)

            agent = Scripted(ConnectionError("down"))
            agent.error_handlers["ConnectionError"] = repair
            await handle(agent, Message())
            assert len(agent.seen) == 1
            assert agent.stats.messages_processed == 1
            assert str(contexts[0]["error"]) == "down"

        asyncio.run(scenario())

    def test_back_off_doubles_up_to_the_limit(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            agent.base_retry_delay, agent.retry_jitter = 1.0, 0.0
            assert [agent._retry_delay(n) for n in (1, 2, 3, 9)] == [1.0, 2.0, 4.0, 30.0]

        asyncio.run(scenario())


class TestSending:
    def test_replies_reach_the_connected_agent(self) -> None:
        async def scenario() -> None:
            first, second = connected_pair()
            first.script.append([Message(target_agent_id="b")])
            await handle(first, Message())
            assert second.input_queue.qsize() == 1
            assert first.stats.messages_sent == 1

        asyncio.run(scenario())

    @pytest.mark.parametrize("target", [None, "", "stranger"])
    def test_unknown_target_is_false_and_counted_nowhere(self, target: str | None) -> None:
        async def scenario() -> None:
            first, _ = connected_pair()
            assert await first.send_message(Message(target_agent_id=target)) is False
            assert first.stats.messages_sent == first.stats.messages_failed == 0

        asyncio.run(scenario())

    def test_error_while_sending_is_false(self) -> None:
        async def scenario() -> None:
            first, second = connected_pair()
            second.input_queue = None  # type: ignore[assignment]
            assert await first.send_message(Message(target_agent_id="b")) is False

        asyncio.run(scenario())

    def test_memory_channel_delivers_a_copy(self) -> None:
        async def scenario() -> None:
            config = CommunicationConfig(mode=CommunicationMode.MEMORY_CHANNEL)
            first, second = connected_pair(communication_config=config)
            message = Message(target_agent_id="b", payload={"n": 1})
            assert await first.send_message(message)
            copy = second.input_queue.get_nowait()
            assert copy == message
            assert copy is not message
            metrics = first.get_communication_metrics()
            assert metrics["total_messages_delivered"] == 1
            assert metrics["total_bytes_sent"] == len(copy.to_json())

        asyncio.run(scenario())

    def test_local_manager_delivers_the_message_itself(self) -> None:
        async def scenario() -> None:
            manager, agent, message = CommunicationManager(), Scripted(), Message()
            assert await manager.send_message(message, agent)
            assert agent.input_queue.get_nowait() is message
            assert message.metadata.hop_count == 1

        asyncio.run(scenario())

    def test_expired_message_is_only_in_the_tracker(self) -> None:
        async def scenario() -> None:
            manager, agent, message = CommunicationManager(), Scripted(), Message()
            message.metadata.hop_count = message.metadata.ttl
            assert await manager.send_message(message, agent) is False
            assert agent.input_queue.empty()
            assert manager.get_metrics() == {
                "mode": "local",
                "total_messages_sent": 0,
                "total_messages_delivered": 0,
                "total_messages_failed": 1,
                "total_bytes_sent": 0,
            }

        asyncio.run(scenario())

    def test_declared_modes_deliver_nothing(self) -> None:
        async def scenario() -> None:
            manager = CommunicationManager(CommunicationConfig(mode=CommunicationMode.HTTP))
            agent = Scripted()
            assert await manager.send_message(Message(), agent) is False
            assert agent.input_queue.empty()

        asyncio.run(scenario())


class TestSimpleAgent:
    def test_calls_the_handler_of_the_type(self) -> None:
        async def scenario() -> None:
            seen: list[Message] = []

            async def note(message: Message) -> None:
                seen.append(message)

            agent = SimpleAgent()
            agent.register_message_handler(MessageType.NLP_REQUEST, note)
            wanted = Message(message_type=MessageType.NLP_REQUEST)
            await handle(agent, wanted, Message(message_type=MessageType.HEARTBEAT))
            assert seen == [wanted]
            assert agent.stats.messages_processed == 2

        asyncio.run(scenario())


class TestOwnMonitoring:
    def test_breaks_every_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        added: list[Agent] = []

        class Monitor:
            def add_agent(self, agent: Agent) -> None:
                added.append(agent)

        async def scenario() -> None:
            agent = Scripted()
            agent.enable_performance_monitoring = True
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                await handle(agent, *(Message() for _ in range(20)))
            assert added == [agent]
            assert agent.seen == []
            assert sum(agent.stats.errors.values()) == agent.stats.messages_failed == 20
            assert set(agent.stats.errors) <= {"TypeError", "AttributeError"}
            assert (await agent.get_status())["performance_monitoring"] == {
                "enabled": True,
                "registered": True,
            }

        monkeypatch.setattr(agents, "get_monitor", Monitor)
        asyncio.run(scenario())

    def test_is_harmless_without_a_monitor(self) -> None:
        async def scenario() -> None:
            agent = Scripted()
            agent.enable_performance_monitoring = True
            await handle(agent, Message())
            assert agent.stats.messages_processed == 1

        asyncio.run(scenario())


class TestOrchestrator:
    def test_group_and_broadcast_send_clones(self) -> None:
        async def scenario() -> None:
            orchestrator = Orchestrator(name="meeting")
            pair = connected_pair()
            orchestrator.register_agent(pair[0], groups=["all", "first"])
            orchestrator.register_agent(pair[1], groups=["all"])
            message = Message()
            assert await orchestrator.send_message_to_group(message, "all")
            assert await orchestrator.broadcast_message(message)
            assert not await orchestrator.send_message_to_group(message, "nobody")
            for agent in pair:
                assert agent.input_queue.qsize() == 2
                clone = agent.input_queue.get_nowait()
                assert clone.message_id == message.message_id
                assert clone.target_agent_id == agent.agent_id
                assert clone is not message
            assert message.target_agent_id is None

        asyncio.run(scenario())

    def test_send_to_one_agent(self) -> None:
        async def scenario() -> None:
            orchestrator, agent = Orchestrator(), Scripted(agent_id="a")
            orchestrator.register_agent(agent)
            assert await orchestrator.send_message_to_agent(Message(target_agent_id="a"))
            assert not await orchestrator.send_message_to_agent(Message(target_agent_id="x"))
            old = Message(target_agent_id="a")
            old.metadata.hop_count = 10
            assert not await orchestrator.send_message_to_agent(old)
            assert agent.input_queue.qsize() == 1

        asyncio.run(scenario())

    def test_hooks_by_keyword_and_once_positionally(self) -> None:
        async def scenario() -> None:
            calls: list[tuple[int, list[str]]] = []

            async def broken(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError("a hook's own affair")

            async def note(*args: Any, **kwargs: Any) -> None:
                calls.append((len(args), sorted(kwargs)))

            orchestrator, agent = Orchestrator(), Scripted(agent_id="a")
            orchestrator.register_event_hook("message_routed", broken)
            orchestrator.register_event_hook("message_routed", note)
            orchestrator.register_agent(agent, groups=["g"])
            await orchestrator.send_message_to_agent(Message(target_agent_id="a"))
            await orchestrator.send_message_to_group(Message(), "g")
            await orchestrator.broadcast_message(Message())
            by_keyword = (0, ["message", "target_agent"])
            assert calls == [by_keyword, (2, []), by_keyword]

        asyncio.run(scenario())

    def test_life_events(self) -> None:
        async def scenario() -> None:
            events: list[str] = []
            orchestrator, agent = Orchestrator(), Scripted(agent_id="a")
            for name in list(orchestrator.event_hooks):
                orchestrator.register_event_hook(name, appending(events, name))
            orchestrator.register_agent(agent)
            await orchestrator.start()
            assert agent.is_running
            assert orchestrator.unregister_agent("a")
            assert not orchestrator.unregister_agent("a")
            await asyncio.sleep(0)
            assert agent.is_running
            await agent.stop()
            await orchestrator.stop()
            assert sorted(events) == [
                "agent_added",
                "agent_removed",
                "system_started",
                "system_stopped",
            ]

        asyncio.run(scenario())

    def test_unregister_leaves_groups_and_connections(self) -> None:
        async def scenario() -> None:
            orchestrator = Orchestrator()
            first, second = Scripted(agent_id="a"), Scripted(agent_id="b")
            orchestrator.register_agent(first, groups=["g"])
            orchestrator.register_agent(second, groups=["g"])
            assert orchestrator.connect_agents("a", "b")
            assert not orchestrator.connect_agents("a", "x")
            orchestrator.unregister_agent("b")
            assert orchestrator.agent_groups == {"g": {"a"}}
            assert first.connected_agents == {}

        asyncio.run(scenario())

    def test_add_agent_shares_the_way_of_communicating(self) -> None:
        async def scenario() -> None:
            config = CommunicationConfig(mode=CommunicationMode.MEMORY_CHANNEL)
            orchestrator, agent = Orchestrator(communication_config=config), Scripted()
            orchestrator.add_agent(agent)
            assert agent.communication_config is config
            assert agent.communication_manager is orchestrator.communication_manager
            other = Scripted()
            orchestrator.register_agent(other)
            assert other.communication_config is None

        asyncio.run(scenario())

    def test_one_agent_at_a_time(self) -> None:
        async def scenario() -> None:
            orchestrator, agent = Orchestrator(), Scripted(agent_id="a")
            orchestrator.register_agent(agent)
            await orchestrator.start(start_agents=False)
            assert not agent.is_running
            assert await orchestrator.start_agent("a")
            assert agent.is_running
            assert await orchestrator.stop_agent("a")
            assert not await orchestrator.stop_agent("x")
            await orchestrator.stop(stop_agents=False)
            assert not agent.is_running

        asyncio.run(scenario())


def appending(events: list[str], name: str) -> Callable[..., Awaitable[None]]:
    async def hook(*args: Any, **kwargs: Any) -> None:
        events.append(name)

    return hook


async def edit_and_fail(manager: StateManager) -> None:
    async with manager.snapshot("a") as state:
        state["n"] = 2
        raise RuntimeError


class TestState:
    def test_memory(self) -> None:
        async def scenario() -> None:
            manager = create_state_manager("memory")
            data = {"text": "ä"}
            assert await manager.save_state("a", data)
            data["text"] = "changed later"
            assert await manager.load_state("a") == {"text": "ä"}
            assert await manager.load_state("b") is None
            assert manager.memory_optimizer.current_size_bytes == len(json.dumps({"text": "ä"}))
            assert manager.memory_optimizer.item_count == 1
            assert await manager.delete_state("a") is True
            assert await manager.delete_state("a") is False
            assert manager.memory_optimizer.current_size_bytes == 0

        asyncio.run(scenario())

    def test_file_keeps_a_copy_in_memory(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            manager = StateManager(StorageType.FILE, tmp_path / "deep")
            await manager.save_state("an/agent", {"n": 1})
            assert manager.memory_data == {"an/agent": {"n": 1}}
            again = StateManager(StorageType.FILE, tmp_path / "deep")
            assert await again.list_states() == ["an/agent"]
            assert await again.load_state("an/agent") == {"n": 1}
            assert again.get_stats()["stored_items"] == 1
            await again.clear_all()
            assert await again.list_states() == []
            assert await StateManager(StorageType.FILE, tmp_path).load_state("an/agent") is None

        asyncio.run(scenario())

    def test_file_storage_wants_a_path(self) -> None:
        with pytest.raises(ValueError, match="storage_path"):
            StateManager(StorageType.FILE)

    def test_memory_limit_forgets_sizes_and_keeps_the_states(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            on_disk = StateManager(StorageType.FILE, tmp_path, max_size_bytes=20)
            in_memory = StateManager(max_size_bytes=20)
            for manager in (on_disk, in_memory):
                for key in ("a", "b", "c"):
                    await manager.save_state(key, {"key": key})
                assert await manager.load_state("a") == {"key": "a"}
                assert manager.memory_optimizer.current_size_bytes <= 20
                assert (manager.memory_optimizer.item_count, len(manager.memory_data)) == (1, 3)

        asyncio.run(scenario())

    def test_snapshot_saves_unless_the_block_fails(self) -> None:
        async def scenario() -> None:
            manager = StateManager()
            async with manager.snapshot("a") as state:
                state["n"] = 1
            with pytest.raises(RuntimeError):
                await edit_and_fail(manager)
            assert await manager.load_state("a") == {"n": 1}

        asyncio.run(scenario())

    def test_optimizer_counts_a_state_once(self) -> None:
        optimizer = MemoryOptimizer(max_size_bytes=10)
        optimizer.record("a", 4)
        optimizer.record("b", 4)
        optimizer.record("a", 7)
        assert (optimizer.current_size_bytes, optimizer.item_count) == (11, 2)
        assert optimizer.is_over_limit()
        assert optimizer.least_recent() == "b"
        optimizer.clear()
        assert optimizer.least_recent() is None

    def test_agent_finds_its_state_again(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            first = Scripted(agent_id="a")
            first.state_persistence_enabled = True
            first.state_persistence_path = str(tmp_path)
            first.state["seen"] = 7
            await handle(first, Message())
            manager = first.state_manager
            second = Scripted(agent_id="a")
            second.state_persistence_enabled = True
            second.state_persistence_path = str(tmp_path)
            await second.start()
            assert second.state == {"seen": 7}
            assert second.state_manager is not manager
            await second.stop()

        asyncio.run(scenario())

    def test_agent_saves_now_and_then(self) -> None:
        async def scenario() -> None:
            agent = Scripted(agent_id="a")
            agent.state_persistence_enabled = True
            agent.state_persistence_interval = 0.001
            await agent.start()
            agent.state["n"] = 1
            await asyncio.sleep(0.02)
            assert agent.state_manager is not None
            assert await agent.state_manager.load_state("a") == {"n": 1}
            await agent.stop()

        asyncio.run(scenario())
