"""Whatever a program does to its agents, the numbers are those of a log kept beside it, after every single step."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from opentelemetry.sdk.metrics import MeterProvider

from amptalk_otel import Instrumentation, instrument_orchestrator, instrument_state_manager
from amptalk_otel._bridge import InstrumentsBridge, bridge_for, serve
from amptalk_otel._catalogue import CATALOGUE, Owner
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel.demo.runtime import (
    CommunicationConfig,
    CommunicationManager,
    CommunicationMode,
    Message,
    MessagePriority,
    MessageType,
    Orchestrator,
    StateManager,
)
from tests.property.town import Abort, Box, Driven, Log, law, told
from tests.support import CONFIG, assert_balanced, note, provider_and_reader, series

AGENTS = "abc"
GROUP = "ac"
KINDS = (MessageType.COMMAND, MessageType.HEARTBEAT)
ERRORS: dict[str, type[BaseException]] = {
    "ValueError": ValueError, "ConnectionError": ConnectionError, "OSError": OSError, "Abort": Abort,
}  # fmt: skip
RETRIED = ("ConnectionError", "OSError")
REPLIES = st.lists(st.tuples(st.sampled_from([*AGENTS, "nobody", None]), st.sampled_from(KINDS)), max_size=3)
ATTEMPTS = 4
OPERATIONS = {"save_state": "write", "load_state": "read", "delete_state": "delete"}
EXAMPLES = int(os.environ.get("AMPTALK_OTEL_TEST_BALANCE_EXAMPLES", "100"))
STEPS = 20
PHASES = tuple(Phase) if EXAMPLES >= 100 else (Phase.reuse, Phase.generate)
"""Who looks at fewer, as `scripts/check_hooks.py` does, wants to know whether a step fails, not the shortest way."""

Point = tuple[str, dict[str, Any], Any]


def former_inbox_with_room(log: Log) -> Box | None:
    return log.hooked if log.hooked is not None and log.hooked is not log.box and log.hooked.has_room() else None


def full_inboxes(log: Log) -> list[Box]:
    """Inboxes in which anything lies, the former included."""
    boxes = [log.box] if log.hooked is None or log.hooked is log.box else [log.box, log.hooked]
    return [box for box in boxes if box.items]


def known_messages(log: Log) -> list[Message]:
    return [lying.message for lying in log.box.items] + ([log.work.message] if log.work is not None else [])


def is_full(log: Log) -> bool:
    return not log.box.has_room()


def is_at_work(log: Log) -> bool:
    return log.work is not None


def is_undisturbed(log: Log) -> bool:
    return log.work is not None and log.work.undisturbed


def is_alive(log: Log) -> bool:
    return log.alive


class Town(RuleBasedStateMachine):
    """Three agents, their logs, and rules for what may happen to them.

    Agent `a` makes its state manager when it starts, `b` sends bytes, and `c` has an inbox with little room.
    """

    agent_ids: ClassVar[st.SearchStrategy[str]] = st.sampled_from(AGENTS)
    choices: ClassVar[st.SearchStrategy[int]] = st.integers(0, 2)
    kinds: ClassVar[st.SearchStrategy[MessageType]] = st.sampled_from(KINDS)
    targets: ClassVar[st.SearchStrategy[str | None]] = st.sampled_from([*AGENTS, "nobody", None])

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.orchestrator, self.shelf = Orchestrator(name="town"), StateManager()
        self.arrivals: list[tuple[str, Message]] = []
        self.agents = {agent_id: Driven(agent_id, self.arrivals) for agent_id in AGENTS}
        self.logs: dict[str, Log] = {}
        self.moves = 0
        self.handles: list[Instrumentation] = []
        self.orchestrated: Counter[tuple[str, str]] = Counter()
        self.shelved: Counter[tuple[str, str]] = Counter()
        self.provider, self.reader = provider_and_reader()
        # The SDK measures its time limit by the wall clock, which somebody may set.
        self.reader.collect = partial(self.reader.collect, timeout_millis=1e9)  # type: ignore[misc, method-assign]
        self.producer: CatalogueProducer | None = None
        self.run(self.begin())
        self.clean = {agent_id: set(vars(agent)) for agent_id, agent in self.agents.items()}

    async def begin(self) -> None:
        for agent_id, agent in self.agents.items():
            room = 4 if agent_id == "c" else 0
            agent.input_queue = asyncio.Queue(room)
            self.logs[agent_id] = Log(Box("first", room, agent.input_queue))
            for other in self.agents.values():
                agent.connect(other)
            self.orchestrator.register_agent(agent, ["group"] if agent_id in GROUP else None)
            agent.state_manager = StateManager()
        self.agents["a"].state_manager, self.agents["a"].state_persistence_enabled = None, True
        config = CommunicationConfig(CommunicationMode.MEMORY_CHANNEL)
        self.agents["b"].communication_config = config
        self.agents["b"].communication_manager = CommunicationManager(config)

    def run(self, act: Coroutine[Any, Any, Any]) -> Any:
        """Do one thing, and let everybody go on until nobody has anything to do."""
        self.moves += 1
        result = self.loop.run_until_complete(self.until_quiet(act))
        for agent_id, message in self.arrivals:
            log = self.logs[agent_id]
            log.arrives(log.box, message)
        self.arrivals.clear()
        for log in self.logs.values():
            log.goes_on()
        return result

    async def until_quiet(self, act: Coroutine[Any, Any, Any]) -> Any:
        result = await act
        for _ in range(200):
            await asyncio.sleep(0)
            if not self.loop._ready:  # type: ignore[attr-defined]
                break
        return result

    def those(self, wanted: Callable[[Log], object]) -> list[str]:
        """The agents whose log is as wanted."""
        return [agent_id for agent_id, log in self.logs.items() if wanted(log)]

    def chosen(self, choice: int, wanted: Callable[[Log], object]) -> str:
        """One of them."""
        agent_ids = self.those(wanted)
        return agent_ids[choice % len(agent_ids)]

    def have_room(self, *agent_ids: str) -> bool:
        wanted = Counter(agent_ids)
        return all(self.logs[agent_id].box.has_room(number) for agent_id, number in wanted.items())

    # -- who watches -----------------------------------------------------------------------------------

    @initialize(by_sdk=st.booleans(), idle=st.sets(agent_ids))
    def choose(self, by_sdk: bool, idle: set[str]) -> None:
        """Numbers come from instruments of the SDK, or from our own producer; some agents run already."""
        for agent_id in sorted(set(AGENTS) - idle):
            self.start(agent_id)
        if not by_sdk:
            self.provider.shutdown()
            self.provider, bridge = MeterProvider(shutdown_on_exit=False), ProducerBridge()
            serve(self.provider, bridge)
            self.producer = CatalogueProducer(bridge)
        self.instrument()

    @precondition(lambda self: self.moves % 6 == 5)  # it makes an end to all that was going on
    @rule()
    def switch(self) -> None:
        """Instrument what is not, or take it off."""
        if self.handles:
            self.uninstrument()
        else:
            self.instrument()

    def instrument(self) -> None:
        async def act() -> None:
            options: dict[str, Any] = {"config": CONFIG, "meter_provider": self.provider}
            self.handles.append(instrument_orchestrator(self.orchestrator, **options))
            self.handles.append(instrument_state_manager(self.shelf, **options))

        self.run(act())
        for log in self.logs.values():
            if log.registered:
                log.comes_into_view()

    def uninstrument(self) -> None:
        for handle in self.handles:
            handle.uninstrument()
        self.handles.clear()
        self.orchestrated.clear()
        self.shelved.clear()
        for agent_id, log in self.logs.items():
            log.is_forgotten()
            assert set(vars(self.agents[agent_id])) == self.clean[agent_id], "something of ours is left"
            assert not {"_put", "_get"} & set(vars(log.box.queue))

    # -- messages come ---------------------------------------------------------------------------------

    @rule(agent_id=agent_ids, kinds=st.lists(kinds, min_size=1, max_size=5))
    def put_several(self, agent_id: str, kinds: list[MessageType]) -> None:
        for kind in kinds:
            self.put(agent_id, kind, nowait=True, priority=MessagePriority.NORMAL)

    @rule(agent_id=agent_ids, kind=kinds, nowait=st.booleans(), priority=st.sampled_from(MessagePriority))
    def put(self, agent_id: str, kind: MessageType, nowait: bool, priority: MessagePriority) -> None:
        agent, box, message = self.agents[agent_id], self.logs[agent_id].box, note(kind, priority=priority)

        async def act() -> None:
            if not nowait and box.has_room():
                await agent.enqueue_message(message)
                return
            try:
                agent.input_queue.put_nowait(message)
            except asyncio.QueueFull:
                assert not box.has_room()
            else:
                assert box.has_room()
                self.arrivals.append((agent_id, message))

        self.run(act())

    @precondition(lambda self: self.those(former_inbox_with_room))
    @rule(choice=choices, kind=kinds)
    def put_where_it_used_to_be(self, choice: int, kind: MessageType) -> None:
        """Somebody still holds the inbox that was replaced."""
        log, message = self.logs[self.chosen(choice, former_inbox_with_room)], note(kind)
        former = former_inbox_with_room(log)
        assert former is not None

        async def act() -> None:
            former.queue.put_nowait(message)
            log.arrives(former, message)

        self.run(act())

    @precondition(lambda self: self.those(known_messages))
    @rule(choice=choices)
    def put_the_same_object_again(self, choice: int) -> None:
        agent_id = self.chosen(choice, known_messages)
        if self.have_room(agent_id):
            (message, *_more) = known_messages(self.logs[agent_id])

            async def act() -> None:
                self.agents[agent_id].input_queue.put_nowait(message)
                self.arrivals.append((agent_id, message))

            self.run(act())

    @precondition(lambda self: self.those(is_full))
    @rule(choice=choices)
    def put_in_vain(self, choice: int) -> None:
        """Somebody waits for room and gives up."""
        agent_id = self.chosen(choice, is_full)

        async def act() -> None:
            waiting = asyncio.ensure_future(self.agents[agent_id].input_queue.put(note()))
            await asyncio.sleep(0)
            waiting.cancel()

        self.run(act())

    @rule(kind=kinds, to_group=st.booleans())
    def broadcast(self, kind: MessageType, to_group: bool) -> None:
        targets = [agent_id for agent_id in (GROUP if to_group else AGENTS) if self.logs[agent_id].registered]
        if not self.have_room(*targets):
            return

        async def act() -> None:
            if to_group:
                await self.orchestrator.send_message_to_group(note(kind), "group")
            else:
                await self.orchestrator.broadcast_message(note(kind))

        self.run(act())
        if self.handles:
            self.orchestrated[kind.value, ""] += len(targets)

    @rule(to=targets, kind=kinds, expired=st.booleans())
    def route(self, to: str | None, kind: MessageType, expired: bool) -> None:
        """The orchestrator sends."""
        there = to in self.logs and self.logs[to].registered
        if there and to is not None and not self.have_room(to):
            return
        message = note(kind, target_agent_id=to)
        message.metadata.hop_count = 99 * expired
        delivered = self.run(self.orchestrator.send_message_to_agent(message))
        assert delivered is (there and not expired)
        if self.handles:
            reason = "" if delivered else "expired" if there else "unknown_target"
            self.orchestrated[kind.value, reason] += 1

    @rule(sender=agent_ids, to=targets, kind=kinds, expired=st.booleans())
    def send(self, sender: str, to: str | None, kind: MessageType, expired: bool) -> None:
        if to in self.logs and not self.have_room(str(to)):
            return
        message, reachable = note(kind, target_agent_id=to), to in self.agents[sender].connected_agents
        message.metadata.hop_count = 99 * expired
        too_old = expired and sender == "b"
        assert self.run(self.agents[sender].send_message(message)) is (reachable and not too_old)
        self.count_sent(sender, kind, to, too_old=too_old)

    def count_sent(self, sender: str, kind: MessageType, to: str | None, *, too_old: bool = False) -> None:
        log, reachable = self.logs[sender], to in self.agents[sender].connected_agents
        if not log.watched:
            return
        if reachable and not too_old:
            log.count(kind.value, "sent")
        else:
            log.count(kind.value, "undeliverable", "expired" if reachable else "unknown_target")

    # -- messages go -----------------------------------------------------------------------------------

    @precondition(lambda self: self.those(full_inboxes))
    @rule(choice=choices, box=choices)
    def take(self, choice: int, box: int) -> None:
        """Somebody other than the agent takes a message."""
        log = self.logs[self.chosen(choice, full_inboxes)]
        boxes = full_inboxes(log)
        chosen = boxes[box % len(boxes)]

        async def act() -> None:
            taken = chosen.queue.get_nowait()
            lying = log.leaves(chosen)
            assert taken is lying.message
            if chosen is log.hooked:
                log.count(lying.kind, "dropped", "taken")

        self.run(act())

    @precondition(lambda self: self.those(is_at_work))
    @rule(choice=choices)
    def succeed(self, choice: int) -> None:
        self.reply(choice, [])

    @precondition(lambda self: self.those(is_at_work))
    @rule(choice=choices, replies=REPLIES)
    def reply(self, choice: int, replies: list[tuple[str | None, MessageType]]) -> None:
        agent_id = self.chosen(choice, is_at_work)
        reached = [str(to) for to, _kind in replies if to in self.agents[agent_id].connected_agents]
        if not self.have_room(*reached):
            replies = []
        self.decide(agent_id, [note(kind, target_agent_id=to) for to, kind in replies])
        for to, kind in replies:
            self.count_sent(agent_id, kind, to)

    @precondition(lambda self: self.those(is_at_work))
    @rule(choice=choices, error=st.sampled_from(sorted(ERRORS)))
    def fail(self, choice: int, error: str) -> None:
        agent_id = self.chosen(choice, is_at_work)
        work = self.logs[agent_id].work
        if work is not None and (work.undisturbed or error not in RETRIED):
            self.decide(agent_id, ERRORS[error]())

    @precondition(lambda self: self.those(is_undisturbed))
    @rule(choice=choices, error=st.sampled_from(RETRIED), times=st.integers(2, ATTEMPTS))
    def fail_again_and_again(self, choice: int, error: str, times: int) -> None:
        agent_id = self.chosen(choice, is_undisturbed)
        work = self.logs[agent_id].work
        for _ in range(times):
            if work is self.logs[agent_id].work:
                self.decide(agent_id, ERRORS[error]())

    def decide(self, agent_id: str, outcome: list[Message] | BaseException) -> None:
        """Tell an agent that is at work how its present attempt ends."""
        log, verdict = self.logs[agent_id], self.agents[agent_id].verdict
        assert log.work is not None
        assert verdict is not None

        async def act() -> None:
            verdict.set_result(outcome)

        # First the log: what the loop does next depends on it.
        error = type(outcome).__name__
        if isinstance(outcome, list):
            log.ends("processed")
        elif error in RETRIED and log.work.attempts < ATTEMPTS:
            log.work.attempts += 1
            if log.work.counted:
                log.count(log.work.kind, "retries", error)
        else:
            log.ends("failed", error)
        if isinstance(outcome, Abort):
            log.dies()
        self.run(act())

    @precondition(lambda self: self.those(is_alive))
    @rule(choice=choices, inside=st.booleans())
    def cancel(self, choice: int, inside: bool) -> None:
        """The agent's task is cancelled, or what its handler waits for; the agent does not know."""
        agent_id = self.chosen(choice, is_alive)
        log, agent = self.logs[agent_id], self.agents[agent_id]
        verdict = agent.verdict if inside and log.work is not None else None

        async def act() -> None:
            if verdict is not None:
                verdict.cancel()
            else:
                agent.tasks[0].cancel()

        log.dies()
        self.run(act())

    # -- agents come and go ----------------------------------------------------------------------------

    @rule(agent_id=agent_ids, again=st.booleans())
    def start_or_stop(self, agent_id: str, again: bool) -> None:
        """One whose loop has ended is restarted; `again`: what is already done is done once more."""
        log = self.logs[agent_id]
        if log.alive:
            (self.start if again else self.stop)(agent_id)
            return
        if log.running or again:
            self.stop(agent_id)
        self.start(agent_id)

    def start(self, agent_id: str) -> None:
        log = self.logs[agent_id]
        if not log.running:
            if log.watched:
                log.hook_inbox()
                log.count("read", "state")
            log.running = log.alive = True
        self.run(self.agents[agent_id].start())

    def stop(self, agent_id: str) -> None:
        log = self.logs[agent_id]
        if log.running:
            log.dies()
            log.running = False
            if log.watched and agent_id == "a":
                log.count("write", "state")
        self.run(self.agents[agent_id].stop())

    @rule(agent_id=agent_ids, again=st.booleans())
    def register_or_unregister(self, agent_id: str, again: bool) -> None:
        (self.register if self.logs[agent_id].registered is again else self.unregister)(agent_id)

    def unregister(self, agent_id: str) -> None:
        log = self.logs[agent_id]

        async def act() -> None:
            assert self.orchestrator.unregister_agent(agent_id) is log.registered

        self.run(act())
        log.registered = False
        log.goes_out_of_view()

    def register(self, agent_id: str) -> None:
        log = self.logs[agent_id]

        async def act() -> None:
            self.orchestrator.register_agent(self.agents[agent_id], ["group"] if agent_id in GROUP else None)
            for other in self.agents.values():
                other.connect(self.agents[agent_id])

        self.run(act())
        log.registered = True
        if self.handles:
            log.comes_into_view()

    @rule(agent_id=agent_ids, order=st.sampled_from(["first", "last", "urgent"]), room=st.sampled_from([0, 3]))
    def replace_inbox(self, agent_id: str, order: str, room: int) -> None:
        """The agent gets another inbox; what lies in the former stays there. We look at it when the agent starts."""
        self.logs[agent_id].box = box = Box(order, room)
        self.agents[agent_id].input_queue = box.queue

    # -- states ----------------------------------------------------------------------------------------

    @rule(owner=st.sampled_from([*AGENTS, None]), method=st.sampled_from(sorted(OPERATIONS)), in_vain=st.booleans())
    def use_states(self, owner: str | None, method: str, in_vain: bool) -> None:
        manager = self.shelf if owner is None else self.agents[owner].state_manager
        if manager is None:
            return
        fails = in_vain and method == "save_state"

        async def act() -> None:
            try:
                await getattr(manager, method)("key", *[{"a": object() if fails else 1}][: method == "save_state"])
            except TypeError:
                assert fails

        self.run(act())
        operation, error = OPERATIONS[method], "TypeError" if fails else ""
        if owner is None:
            self.shelved[operation, error] += bool(self.handles)
        elif self.logs[owner].watched:
            self.logs[owner].count(operation, "state", error)

    # -- what must hold --------------------------------------------------------------------------------

    @invariant()
    def every_reading_is_what_the_log_says(self) -> None:
        readings = {reading.agent_id: reading for handle in self.handles for reading in handle.read()}
        assert set(readings) == {agent_id for agent_id, log in self.logs.items() if log.known}
        for agent_id, reading in readings.items():
            log = self.logs[agent_id]
            assert_balanced(reading)
            assert told(reading) == log.expected(), agent_id
            assert reading.running is (log.running and log.watched)

    @invariant()
    def every_collection_is_what_the_log_says(self) -> None:
        found = self.loop.run_until_complete(self.collect())
        if not self.handles:
            assert [point for point in found if point[0].startswith("amptalk.")] == []
            return
        for agent_id, log in self.logs.items():
            assert law(found, agent_id) == (0, 0)
            of_agent = [(name, value) for name, attributes, value in found if attributes.get("agent.id") == agent_id]
            for what in ("received", "processed", "failed", "dropped", "sent", "undeliverable"):
                expected = sum(number for key, number in log.numbers.items() if key[1] == what)
                name = f"amptalk.agent.messages.{what}"
                assert sum(value for metric, value in of_agent if metric == name) == expected, (agent_id, what)
        assert told_by_orchestrator(found) == dict(+self.orchestrated)
        if self.producer is not None or self.moves % 5 == 0:
            assert told_by_shelf(found) == dict(+self.shelved)

    async def collect(self) -> list[Point]:
        """All points. Made on the loop, where nobody gives way to it; the SDK's reader is slow, and asked seldom."""
        if self.producer is not None:
            return [
                (metric.name, dict(point.attributes or {}), value_of(point))
                for scope in self.producer.produce() for metric in scope.metrics for point in metric.data.data_points
            ]  # fmt: skip
        if self.moves % 5 == 0:
            return [(name, dict(attributes), value) for (name, attributes), value in series(self.reader).items()]
        bridge = bridge_for(self.provider)
        assert isinstance(bridge, InstrumentsBridge)
        return [
            (metric.name, dict(observation.attributes or {}), observation.value)
            for metric in CATALOGUE
            if metric.owner in (Owner.AGENT, Owner.ORCHESTRATOR)
            for observation in bridge.observe(metric)
        ]

    def teardown(self) -> None:
        async def end() -> None:
            for agent in self.agents.values():
                await agent.stop()

        self.loop.run_until_complete(end())
        self.uninstrument()
        self.provider.shutdown()
        self.loop.close()


def value_of(point: Any) -> Any:
    return (point.count, point.sum) if hasattr(point, "bucket_counts") else point.value


def told_by_orchestrator(found: list[Point]) -> dict[tuple[str, str], int]:
    return {
        (attributes["message.type"], attributes.get("reason", "")): value
        for name, attributes, value in found
        if name.startswith("amptalk.orchestrator.messages.")
    }


def told_by_shelf(found: list[Point]) -> dict[tuple[str, str], int]:
    """What is told of the state manager that is nobody's in particular."""
    return {
        (attributes["state.operation"], attributes.get("error.type", "")): value[0]
        for name, attributes, value in found
        if name == "amptalk.state.operation.duration" and "agent.id" not in attributes
    }


TestTown = pytest.mark.timeout(60 + EXAMPLES)(Town.TestCase)
TestTown.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, phases=PHASES, deadline=None)
