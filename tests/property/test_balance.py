"""Whatever a program does to its agents, the numbers are those of a log kept beside it, after every single step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from amptalk_otel import instrument_orchestrator
from amptalk_otel.demo.runtime import Agent, Message, MessageType, Orchestrator
from tests.support import CONFIG, Key, assert_balanced, counts, note, provider_and_reader, series, settle

AGENTS = "abc"
ROOM = {"a": 0, "b": 0, "c": 4}  # messages that an inbox has room for; 0: any number
KINDS = (MessageType.COMMAND, MessageType.HEARTBEAT)
ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "ConnectionError": ConnectionError, "OSError": OSError}
ATTEMPTS = 4


class Driven(Agent):
    """Does with a message what it is told to."""

    verdict: asyncio.Future[Any] | None = None

    async def process_message(self, message: Message) -> Any:
        self.verdict = asyncio.get_running_loop().create_future()
        outcome = await self.verdict
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass
class Waiting:
    """A message in an inbox: the object, and whether we saw it arrive."""

    message: Message
    seen_arriving: bool


@dataclass
class Work:
    """The message that an agent is at."""

    message: Message
    counted: bool  # it was taken while the agent was watched
    attempts: int = 1
    undisturbed: bool = True  # the agent was watched all the time


@dataclass
class Log:
    """What happened to one agent."""

    watched: bool = True
    running: bool = False
    inbox: list[Waiting] = field(default_factory=list)
    work: Work | None = None
    numbers: Counter[str] = field(default_factory=Counter)
    named: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("failed", "dropped", "retries", "undeliverable")}
    )

    def arrives(self, message: Message) -> None:
        self.inbox.append(Waiting(message, self.watched))
        self.numbers["received"] += self.watched

    def leaves(self) -> Message:
        waiting = self.inbox.pop(0)
        self.numbers["waits"] += self.watched and waiting.seen_arriving
        return waiting.message

    def goes_on(self) -> None:
        """What the loop does by itself: it takes the next message when it is done with the last."""
        if self.running and self.work is None and self.inbox:
            self.work = Work(self.leaves(), self.watched)

    def ends(self, name: str, error: str = "") -> None:
        assert self.work is not None
        if self.work.counted:
            if error:
                self.named[name][error] += 1
            else:
                self.numbers[name] += 1
            self.numbers["works"] += name != "dropped"
        self.work = None

    def expected(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(self.numbers)
        found["in_flight"] = int(self.work is not None and self.work.counted)
        found["queued"] = len(self.inbox) if self.watched else 0
        found |= {name: dict(+counter) for name, counter in self.named.items()}
        return {name: value for name, value in found.items() if value}


class Town(RuleBasedStateMachine):
    """Three agents, their logs, and rules for what may happen to them."""

    agent_ids: ClassVar[st.SearchStrategy[str]] = st.sampled_from(AGENTS)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.orchestrator = Orchestrator(name="town")
        self.agents = {agent_id: Driven(agent_id=agent_id, name=agent_id) for agent_id in AGENTS}
        self.logs = {agent_id: Log() for agent_id in AGENTS}
        self.provider, self.reader = provider_and_reader()
        self.run(self.begin())

    async def begin(self) -> None:
        for agent_id, agent in self.agents.items():
            agent.base_retry_delay = 0.0
            agent.input_queue = asyncio.Queue(ROOM[agent_id])
            for other in self.agents.values():
                agent.connect(other)
            self.orchestrator.register_agent(agent)
        self.handle = instrument_orchestrator(self.orchestrator, config=CONFIG, meter_provider=self.provider)

    def run(self, act: Coroutine[Any, Any, Any]) -> Any:
        async def act_and_settle() -> Any:
            result = await act
            await settle(25)
            return result

        result = self.loop.run_until_complete(act_and_settle())
        for log in self.logs.values():
            log.goes_on()
        return result

    def has_room(self, agent_id: str) -> bool:
        return not ROOM[agent_id] or len(self.logs[agent_id].inbox) < ROOM[agent_id]

    # -- messages come ---------------------------------------------------------------------------------

    @rule(agent_id=agent_ids, kind=st.sampled_from(KINDS), nowait=st.booleans())
    def put(self, agent_id: str, kind: MessageType, nowait: bool) -> None:
        agent, log, message = self.agents[agent_id], self.logs[agent_id], note(kind)

        async def act() -> None:
            if nowait or not self.has_room(agent_id):
                try:
                    agent.input_queue.put_nowait(message)
                except asyncio.QueueFull:
                    assert not self.has_room(agent_id)
                    return
            else:
                await agent.enqueue_message(message)
            log.arrives(message)

        self.run(act())

    @rule(agent_id=agent_ids)
    def put_the_same_object_again(self, agent_id: str) -> None:
        log = self.logs[agent_id]
        known = [waiting.message for waiting in log.inbox] + ([log.work.message] if log.work is not None else [])
        if known and self.has_room(agent_id):

            async def act() -> None:
                self.agents[agent_id].input_queue.put_nowait(known[0])
                log.arrives(known[0])

            self.run(act())

    @rule(agent_id=agent_ids)
    def put_in_vain(self, agent_id: str) -> None:
        """Somebody waits for room and gives up."""
        if self.has_room(agent_id):
            return

        async def act() -> None:
            waiting = asyncio.ensure_future(self.agents[agent_id].input_queue.put(note()))
            await settle()
            waiting.cancel()

        self.run(act())

    @rule(kind=st.sampled_from(KINDS))
    def broadcast(self, kind: MessageType) -> None:
        targets = [agent_id for agent_id in AGENTS if self.logs[agent_id].watched]
        if not all(self.has_room(agent_id) for agent_id in targets):
            return
        before = {agent_id: self.agents[agent_id].input_queue.qsize() for agent_id in targets}

        async def act() -> None:
            await self.orchestrator.broadcast_message(note(kind))
            for agent_id in targets:
                assert self.agents[agent_id].input_queue.qsize() == before[agent_id] + 1
                clone = self.agents[agent_id].input_queue._queue[-1]  # type: ignore[attr-defined]
                self.logs[agent_id].arrives(clone)

        self.run(act())

    @rule(sender=agent_ids, to=st.sampled_from([*AGENTS, "nobody", None]))
    def send(self, sender: str, to: str | None) -> None:
        if to in ROOM and not self.has_room(to):
            return
        log, message = self.logs[sender], note(target_agent_id=to)
        reachable = to in self.agents[sender].connected_agents

        async def act() -> None:
            assert await self.agents[sender].send_message(message) is reachable
            if reachable:
                self.logs[str(to)].arrives(message)

        self.run(act())
        if log.watched and reachable:
            log.numbers["sent"] += 1
        elif log.watched:
            log.named["undeliverable"]["unknown_target"] += 1

    # -- messages go -----------------------------------------------------------------------------------

    @rule(agent_id=agent_ids)
    def take(self, agent_id: str) -> None:
        """Somebody other than the agent takes a message."""
        log = self.logs[agent_id]

        async def act() -> None:
            if log.inbox:
                taken = self.agents[agent_id].input_queue.get_nowait()
                assert taken is log.leaves()
                log.named["dropped"]["taken"] += log.watched

        self.run(act())

    @rule(agent_id=agent_ids)
    def succeed(self, agent_id: str) -> None:
        self.decide(agent_id, None)

    @rule(agent_id=agent_ids, error=st.sampled_from(sorted(ERRORS)))
    def fail(self, agent_id: str, error: str) -> None:
        work = self.logs[agent_id].work
        if work is not None and (error == "ValueError" or work.undisturbed):
            self.decide(agent_id, ERRORS[error]())

    def decide(self, agent_id: str, outcome: Exception | None) -> None:
        log, verdict = self.logs[agent_id], self.agents[agent_id].verdict
        if log.work is None:
            return
        assert verdict is not None

        async def act() -> None:
            verdict.set_result(outcome)

        # First the log: what the loop does next depends on it.
        if outcome is None:
            log.ends("processed")
        elif isinstance(outcome, ValueError) or log.work.attempts == ATTEMPTS:
            log.ends("failed", type(outcome).__name__)
        else:
            log.work.attempts += 1
            log.named["retries"][type(outcome).__name__] += log.work.counted
        self.run(act())

    # -- agents come and go ----------------------------------------------------------------------------

    @rule(agent_id=agent_ids)
    def start(self, agent_id: str) -> None:
        self.logs[agent_id].running = True
        self.run(self.agents[agent_id].start())

    @rule(agent_id=agent_ids)
    def stop(self, agent_id: str) -> None:
        log = self.logs[agent_id]
        if log.running and log.work is not None:
            log.ends("dropped", "cancelled")
        log.running = False
        self.run(self.agents[agent_id].stop())

    @rule(agent_id=agent_ids)
    def unregister(self, agent_id: str) -> None:
        log = self.logs[agent_id]

        async def act() -> None:
            assert self.orchestrator.unregister_agent(agent_id) is log.watched
            if log.watched:
                log.named["dropped"]["unregistered"] += len(log.inbox)
            self.watch(log, watched=False)

        self.run(act())

    @rule(agent_id=agent_ids)
    def register(self, agent_id: str) -> None:
        log = self.logs[agent_id]

        async def act() -> None:
            self.orchestrator.register_agent(self.agents[agent_id])
            for other in self.agents.values():
                other.connect(self.agents[agent_id])
            if not log.watched:
                log.numbers["received"] += len(log.inbox)
            self.watch(log, watched=True)

        self.run(act())

    def watch(self, log: Log, *, watched: bool) -> None:
        if log.watched is not watched:
            log.watched = watched
            for waiting in log.inbox:
                waiting.seen_arriving = False
            if log.work is not None:
                log.work.undisturbed = False

    # -- what must hold --------------------------------------------------------------------------------

    @invariant()
    def every_reading_is_what_the_log_says(self) -> None:
        readings = {reading.agent_id: reading for reading in self.handle.read()}
        assert set(readings) == set(AGENTS)
        for agent_id, log in self.logs.items():
            assert_balanced(readings[agent_id])
            assert counts(readings[agent_id]) == log.expected(), agent_id
            assert readings[agent_id].running is (log.running and log.watched)

    @precondition(lambda self: sum(log.numbers["received"] for log in self.logs.values()) % 5 == 4)
    @invariant()
    def every_collection_is_what_the_log_says(self) -> None:
        found = series(self.reader)
        for agent_id, log in self.logs.items():
            expected = log.expected()
            for metric, name in (("received", "received"), ("processed", "processed"), ("sent", "sent")):
                assert total(found, f"amptalk.agent.messages.{metric}", agent_id) == expected.get(name, 0)
            assert total(found, "amptalk.agent.queue.size", agent_id) == expected.get("queued", 0)
            for metric in ("failed", "dropped", "undeliverable"):
                told = total(found, f"amptalk.agent.messages.{metric}", agent_id)
                assert told == sum(expected.get(metric, {}).values())

    def teardown(self) -> None:
        async def end() -> None:
            for agent in self.agents.values():
                await agent.stop()

        self.loop.run_until_complete(end())
        self.handle.shutdown()
        self.provider.shutdown()
        for agent in self.agents.values():
            assert set(vars(agent)) - {"verdict"} == set(vars(Driven())), "something of ours is left"
            assert "_put" not in vars(agent.input_queue)
        self.loop.close()


def total(found: dict[Key, Any], metric: str, agent_id: str) -> int:
    return sum(value for (name, of), value in found.items() if name == metric and ("agent.id", agent_id) in of)


TestTown = Town.TestCase
TestTown.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
