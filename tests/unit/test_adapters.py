"""An agent class that neither generation knows, watched by an adapter; and adapters that are wrong."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest

from amptalk_otel import AgentAdapter, instrument_agent, instrument_orchestrator, register_adapter, unregister_adapter
from amptalk_otel.adapters import CoreAdapter, FrameworkAdapter, adapter_for
from amptalk_otel.demo.runtime import Orchestrator, SimpleAgent
from tests.core_runtime import CoreAgent
from tests.support import (
    assert_balanced,
    counts,
    handle,
    identity,
    in_loop,
    note,
    provider_and_reader,
    series,
    settle,
)

Letter = dict[str, Any]


class Clerk:
    """Other names, messages that are dicts, a loop of its own, no orchestrator."""

    def __init__(self, number: int, colleagues: dict[int, Clerk] | None = None) -> None:
        self.number = number
        self.desk: asyncio.Queue[Letter] = asyncio.Queue()
        self.drawer: asyncio.Queue[Letter] = asyncio.Queue()
        self.at_work = False
        self.colleagues = colleagues if colleagues is not None else {}
        self.colleagues[number] = self
        self.read: list[str] = []

    async def work(self) -> None:
        self.at_work = True
        while True:
            try:
                await self.answer(await self.desk.get())
            except ValueError:
                self.read.append("into the bin")

    async def answer(self, letter: Letter) -> str:
        self.read.append(letter["subject"])
        if letter["subject"] == "complaint":
            raise ValueError("no")
        if letter["subject"] == "question":
            await self.post({"subject": "reply", "to": letter["from"]})
        return letter["subject"].upper()  # type: ignore[no-any-return]

    async def post(self, letter: Letter) -> bool:
        colleague = self.colleagues.get(letter["to"])
        if colleague is None:
            return False
        await colleague.desk.put(letter)
        return True

    def answer_at_once(self, letter: Letter) -> str:
        return letter["subject"].lower()  # type: ignore[no-any-return]


class ClerkAdapter(AgentAdapter):
    process = "answer"
    send = "post"
    loop = "work"

    def matches(self, agent: Any) -> bool:
        return hasattr(agent, "desk") and hasattr(agent, "answer")

    def inbox(self, agent: Any) -> Any:
        return agent.desk

    def agent_id(self, agent: Any) -> str:
        return str(agent.number)

    def is_running(self, agent: Any) -> bool:
        return bool(agent.at_work)

    def message_type(self, message: Any) -> object:
        return message["subject"]

    def payload(self, message: Any) -> Any:
        return message

    def undelivered_reason(self, agent: Any, message: Any) -> str:
        return "unknown_target"


@pytest.fixture
def register() -> Iterator[Callable[[AgentAdapter], AgentAdapter]]:
    registered: list[AgentAdapter] = []

    def register_for_this_test(adapter: AgentAdapter) -> AgentAdapter:
        register_adapter(adapter)
        registered.append(adapter)
        return adapter

    yield register_for_this_test
    for adapter in registered:
        unregister_adapter(adapter)


def letters(*subjects: str, sender: int = 2) -> list[Letter]:
    return [{"subject": subject, "from": sender, "to": 1} for subject in subjects]


async def read_all(clerk: Clerk, mail: list[Letter]) -> None:
    for letter in mail:
        await clerk.desk.put(letter)
    task = asyncio.create_task(clerk.work())
    await settle(60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


MAIL = [*letters("question", "complaint", "question", "thanks"), *letters("question", sender=3)]
READ = ["question", "complaint", "into the bin", "question", "thanks", "question"]


def test_the_adapter_is_short() -> None:
    assert len(inspect.getsource(ClerkAdapter).splitlines()) < 40


@in_loop
async def test_an_agent_of_another_kind_is_watched(register: Callable[..., AgentAdapter]) -> None:
    register(ClerkAdapter())
    provider, reader = provider_and_reader()
    colleagues: dict[int, Clerk] = {}
    anna, bert = Clerk(1, colleagues), Clerk(2, colleagues)
    for clerk in (anna, bert):
        clerk.desk._get_loop()  # type: ignore[attr-defined]  # else the queue finds its loop while we watch
    before = [identity(owner) for owner in (anna, anna.desk, bert, bert.desk)]
    with instrument_agent(anna, meter_provider=provider) as one, instrument_agent(bert, meter_provider=provider) as two:
        await read_all(anna, MAIL)
        (reading,), (replies,) = one.read(), two.read()
        assert counts(reading) == {
            "received": 5, "processed": 4, "failed": {"ValueError": 1}, "sent": 2,
            "undeliverable": {"unknown_target": 1}, "waits": 5, "works": 5,
        }  # fmt: skip
        assert counts(replies) == {"received": 2, "queued": 2}
        by_type = {kind.message_type: (kind.received, kind.processed, kind.sent) for kind in reading.types}
        assert by_type == {"question": (3, 3, 0), "complaint": (1, 0, 0), "thanks": (1, 1, 0), "reply": (0, 0, 2)}
        assert (reading.agent_id, reading.agent_name, reading.running) == ("1", "1", True)
        assert reading.size_histogram.count == 3  # the first of each type
        found = series(reader)
        running = {dict(key[1])["agent.id"]: value for key, value in found.items() if key[0] == "amptalk.agent.running"}
        assert running == {"1": 1, "2": 0}
    assert anna.read == READ
    after = [identity(owner) for owner in (anna, anna.desk, bert, bert.desk)]
    changing = {"at_work", "_unfinished_tasks", "_getters"}
    for then, now in zip(before, after, strict=True):
        assert set(now) == set(then)
        assert {name for name, one in now.items() if one != then[name]} <= changing
    provider.shutdown()


@in_loop
async def test_what_the_methods_return_and_raise_stays_the_same(register: Callable[..., AgentAdapter]) -> None:
    register(ClerkAdapter())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1)
    with instrument_agent(clerk, meter_provider=provider):
        assert await clerk.answer({"subject": "thanks"}) == "THANKS"
        assert await clerk.answer(letter={"subject": "thanks"}) == "THANKS"
        with pytest.raises(ValueError, match=r"^no$"):
            await clerk.answer({"subject": "complaint"})
        assert await clerk.post({"subject": "x", "to": 9}) is False
        assert await clerk.post({"subject": "x", "to": 1}) is True
        assert inspect.iscoroutinefunction(clerk.answer)
    provider.shutdown()


@in_loop
async def test_without_a_loop_of_that_name_messages_count_as_taken(register: Callable[..., AgentAdapter]) -> None:
    register(type("Nameless", (ClerkAdapter,), {"loop": None})())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1)

    async def somebody() -> None:
        await clerk.work()

    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        await clerk.desk.put({"subject": "thanks"})
        task = asyncio.create_task(somebody())
        await settle()
        assert counts(instrumentation.read()[0]) == {"received": 1, "dropped": {"taken": 1}, "waits": 1}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    provider.shutdown()


@in_loop
async def test_a_loop_that_another_coroutine_awaits_is_known_by_its_name(
    register: Callable[..., AgentAdapter],
) -> None:
    register(ClerkAdapter())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1)

    async def somebody() -> None:
        await clerk.work()

    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        await clerk.desk.put({"subject": "thanks"})
        task = asyncio.create_task(somebody())
        await settle()
        assert counts(instrumentation.read()[0]) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    provider.shutdown()


@in_loop
async def test_an_adapters_message_type_goes_before_the_attribute_of_that_name(
    register: Callable[..., AgentAdapter],
) -> None:
    class ByPriority(FrameworkAdapter):
        def message_type(self, message: Any) -> object:
            return f"{message.message_type.value}/{message.payload['room']}"

    register(ByPriority())
    provider, _reader = provider_and_reader()
    agent = SimpleAgent(agent_id="a", name="A")
    with instrument_agent(agent, meter_provider=provider) as instrumentation:
        await handle(agent, *(note(payload={"room": room}) for room in ("red", "blue", "red", "red")))
        (reading,) = instrumentation.read()
        assert {kind.message_type: kind.processed for kind in reading.types} == {"command/red": 3, "command/blue": 1}
    provider.shutdown()


@in_loop
async def test_an_enum_member_is_told_by_its_value(register: Callable[..., AgentAdapter]) -> None:
    class Subject(Enum):
        THANKS = "with thanks"

    class ByEnum(ClerkAdapter):
        def message_type(self, message: Any) -> object:
            return Subject.THANKS

    register(ByEnum())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1)
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        await read_all(clerk, letters("thanks"))
        assert [kind.message_type for kind in instrumentation.read()[0].types] == ["with thanks"]
    provider.shutdown()


# -- with an orchestrator of another kind ---------------------------------------------------------------


class Office:
    """Keeps clerks in a mapping, and empties their drawers."""

    def __init__(self) -> None:
        self.agents: dict[str, Clerk] = {}

    def register_agent(self, clerk: Clerk) -> None:
        self.agents[str(clerk.number)] = clerk

    async def empty_drawers(self) -> None:
        for clerk in list(self.agents.values()):
            while not clerk.drawer.empty():
                letter = await clerk.drawer.get()
                target = self.agents.get(str(letter["to"]))
                if target is not None:
                    await target.desk.put(letter)


class DrawerAdapter(ClerkAdapter):
    def outbox(self, agent: Any) -> Any:
        return agent.drawer

    def target(self, message: Any) -> Any:
        return str(message["to"])


@in_loop
async def test_a_router_of_another_kind(register: Callable[..., AgentAdapter]) -> None:
    register(DrawerAdapter())
    provider, reader = provider_and_reader()
    office = Office()
    with instrument_orchestrator(office, meter_provider=provider) as instrumentation:
        for number in (1, 2):
            office.register_agent(Clerk(number))
        for to in (1, 2, 2, 9):
            await office.agents["1"].drawer.put({"subject": "memo", "to": to})
        await office.empty_drawers()
        one, two = instrumentation.read()
        assert counts(one) == {"sent": 3, "undeliverable": {"unknown_target": 1}, "received": 1, "queued": 1}
        assert counts(two) == {"received": 2, "queued": 2}
        agents = {
            dict(attributes)["agent.state"]: value
            for (name, attributes), value in series(reader).items()
            if name == "amptalk.orchestrator.agents"
        }
        assert agents == {"running": 0, "stopped": 2}
    provider.shutdown()


# -- registering ---------------------------------------------------------------------------------------


def test_the_known_kinds_are_told_apart() -> None:
    class Core(CoreAgent):
        async def _process_message(self, message: Any) -> None: ...

    assert type(adapter_for(SimpleAgent())) is FrameworkAdapter
    assert type(adapter_for(Core("a", "b"))) is CoreAdapter
    assert adapter_for(Clerk(1)) is None
    assert adapter_for(None) is None
    assert adapter_for(object()) is None


def test_register_and_unregister() -> None:
    first, second = ClerkAdapter(), ClerkAdapter()
    clerk = Clerk(1)

    def asked() -> object:
        return getattr(adapter_for(clerk), "adapter", None)

    register_adapter(first)
    assert asked() is first
    register_adapter(second)
    assert asked() is second  # the last one is asked first
    register_adapter(second)
    unregister_adapter(second)
    assert asked() is first
    unregister_adapter(second)
    assert asked() is first
    unregister_adapter(first)
    assert adapter_for(clerk) is None


def test_an_adapter_may_take_over_a_known_kind() -> None:
    class Renaming(FrameworkAdapter):
        def agent_name(self, agent: Any) -> str:
            return f"the {agent.name}"

    adapter = Renaming()
    register_adapter(adapter)
    provider, _reader = provider_and_reader()
    agent = SimpleAgent(agent_id="a", name="A")
    with instrument_agent(agent, meter_provider=provider) as instrumentation:
        assert [reading.agent_name for reading in instrumentation.read()] == ["the A"]
    unregister_adapter(adapter)
    with instrument_agent(agent, meter_provider=provider) as instrumentation:
        assert [reading.agent_name for reading in instrumentation.read()] == ["A"]
    provider.shutdown()


@in_loop
async def test_agents_that_are_watched_stay_watched_when_their_adapter_leaves() -> None:
    adapter = ClerkAdapter()
    register_adapter(adapter)
    provider, _reader = provider_and_reader()
    clerk, later = Clerk(1), Clerk(2)
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        unregister_adapter(adapter)
        await read_all(clerk, letters("thanks"))
        assert counts(instrumentation.read()[0])["processed"] == 1
        assert instrument_agent(later, meter_provider=provider).active is False
    provider.shutdown()


def test_an_agent_of_no_known_kind_costs_one_record(caplog: pytest.LogCaptureFixture) -> None:
    provider, _reader = provider_and_reader()
    assert instrument_agent(Clerk(1), meter_provider=provider).active is False
    assert [record.getMessage() for record in caplog.records] == [
        "Clerk can't be instrumented: it is of no kind that an adapter knows (see docs/adapters.md)"
    ]
    provider.shutdown()


# -- adapters that are wrong ---------------------------------------------------------------------------


def fail(*_args: Any) -> Any:
    raise ZeroDivisionError("an adapter's mistake")


WITHOUT = {
    "outbox": {},
    "agent_name": {},
    "is_running": {},
    "started_at": {},
    "state_manager": {},
    "payload": {},
    "target": {},
    "agent_id": {},
    "message_type": {},
    "undelivered_reason": {"undeliverable": {"error": 1}},
}
WHOLE = {
    "received": 5, "processed": 4, "failed": {"ValueError": 1}, "sent": 2,
    "undeliverable": {"unknown_target": 1}, "waits": 5, "works": 5,
}  # fmt: skip


@pytest.mark.parametrize("method", WITHOUT)
@in_loop
async def test_a_method_that_raises_costs_one_record_and_what_it_was_to_tell(
    method: str, register: Callable[..., AgentAdapter], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    register(type("Wrong", (ClerkAdapter,), {method: fail})())
    provider, reader = provider_and_reader()
    clerk = Clerk(1)
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        clerk.colleagues[2] = Clerk(2)
        await read_all(clerk, MAIL)
        (reading,) = instrumentation.read()
        assert counts(reading) == {**WHOLE, **WITHOUT[method]}
        assert reading.running is (method != "is_running")
        assert reading.agent_id == (f"Clerk-{id(clerk):x}" if method == "agent_id" else "1")
        assert reading.agent_name == reading.agent_id
        assert ("_OTHER" in {kind.message_type for kind in reading.types}) is (method == "message_type")
        assert series(reader) != {}
    assert clerk.read == READ
    assert [name for name in vars(clerk) if name in ("answer", "post")] == []
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (0 if method == "target" else 1)  # there is no outbox, so nobody asks for targets
    for text in told:
        assert text.startswith(f"Wrong.{method} was skipped (ZeroDivisionError at {__file__}:")
        assert "mistake" not in text
    provider.shutdown()


@pytest.mark.parametrize("method", ["matches", "inbox"])
@in_loop
async def test_an_adapter_that_cannot_tell_the_inbox_is_passed_over(
    method: str, register: Callable[..., AgentAdapter], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    provider, _reader = provider_and_reader()
    right = register(ClerkAdapter())
    register(type("Wrong", (ClerkAdapter,), {method: fail})())
    clerk = Clerk(1)
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        assert getattr(adapter_for(clerk), "adapter", None) is right
        await read_all(clerk, letters("thanks"))
        assert counts(instrumentation.read()[0])["processed"] == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Wrong.{method} was skipped (ZeroDivisionError at ")
    provider.shutdown()


@in_loop
async def test_one_wrong_adapter_does_not_blind_us_to_the_known_kinds(
    register: Callable[..., AgentAdapter], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    register(type("Wrong", (AgentAdapter,), {"matches": fail})())
    provider, reader = provider_and_reader()
    orchestrator = Orchestrator(name="o")
    with instrument_orchestrator(orchestrator, meter_provider=provider) as instrumentation:
        agent = SimpleAgent(agent_id="a", name="A")
        orchestrator.register_agent(agent)
        await handle(agent, note())
        assert counts(instrumentation.read()[0])["processed"] == 1
        assert "amptalk.orchestrator.agents" in {name for name, _attributes in series(reader)}
    assert len(caplog.records) == 1
    provider.shutdown()


@pytest.mark.parametrize(
    ("role", "name", "without"),
    [
        ("send", "psot", ("sent", "undeliverable")),
        ("send", "answer_at_once", ("sent", "undeliverable")),
        ("send", 5, ("sent", "undeliverable")),
        ("start", "begin", ()),
        ("attempt", "number", ()),
    ],
)
@in_loop
async def test_a_name_that_is_no_coroutine_method_costs_one_record(
    role: str, name: Any, without: tuple[str, ...], register: Callable[..., AgentAdapter], caplog: Any
) -> None:
    register(type("Wrong", (ClerkAdapter,), {role: name})())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1, {2: Clerk(2)})
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        await read_all(clerk, MAIL)
        assert counts(instrumentation.read()[0]) == {key: one for key, one in WHOLE.items() if key not in without}
        assert clerk.answer_at_once({"subject": "HI"}) == "hi"
    assert clerk.read == READ
    assert [record.getMessage() for record in caplog.records] == [
        f"Wrong.{role} is {name!r}, but Clerk has no coroutine method of that name: "
        "what it would tell is missing from the metrics"
    ]
    provider.shutdown()


@pytest.mark.parametrize("name", ["anwser", "answer_at_once", "desk", None, 5])
def test_an_adapter_without_a_method_that_processes_is_passed_over(
    name: Any, register: Callable[..., AgentAdapter], caplog: pytest.LogCaptureFixture
) -> None:
    register(type("Wrong", (ClerkAdapter,), {"process": name})())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1)
    before = [identity(clerk), identity(clerk.desk)]
    with caplog.at_level(logging.WARNING):
        assert instrument_agent(clerk, meter_provider=provider).active is False
    assert [identity(clerk), identity(clerk.desk)] == before
    assert clerk.answer_at_once({"subject": "HI"}) == "hi"
    texts = [record.getMessage() for record in caplog.records]
    assert texts[-1].startswith("Clerk can't be instrumented: it is of no kind")
    assert [text[:17] for text in texts[:-1]] == ([] if name is None else ["Wrong.process is "])
    provider.shutdown()


@pytest.mark.parametrize("answer", [5, [], "text", object()])
@in_loop
async def test_an_inbox_that_is_no_queue_costs_one_record(
    answer: object, register: Callable[..., AgentAdapter], caplog: pytest.LogCaptureFixture
) -> None:
    register(type("Wrong", (ClerkAdapter,), {"inbox": lambda _self, _agent: answer})())
    provider, _reader = provider_and_reader()
    clerk = Clerk(1)
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        await read_all(clerk, letters("thanks"))
        (reading,) = instrumentation.read()
        assert_balanced(reading)
        assert (reading.received, reading.queue_size, reading.running) == (0, 0, True)
    assert clerk.read == ["thanks"]
    assert [record.getMessage() for record in caplog.records] == [
        f"an inbox of type {type(answer).__name__} can't be watched: it is no asyncio.Queue"
    ]
    provider.shutdown()


@in_loop
async def test_answers_of_the_wrong_type_are_made_the_best_of(register: Callable[..., AgentAdapter]) -> None:
    class Sloppy(ClerkAdapter):
        def agent_id(self, agent: Any) -> Any:
            return 7

        def agent_name(self, agent: Any) -> Any:
            return None

        def is_running(self, agent: Any) -> Any:
            return "yes"

        def started_at(self, agent: Any) -> Any:
            return "yesterday"

        def message_type(self, message: Any) -> object:
            return 5 if message["subject"] == "thanks" else None

        def undelivered_reason(self, agent: Any, message: Any) -> Any:
            return None

    register(Sloppy())
    provider, reader = provider_and_reader()
    clerk = Clerk(1)
    with instrument_agent(clerk, meter_provider=provider) as instrumentation:
        await read_all(clerk, letters("thanks", "hello"))
        await clerk.post({"subject": "x", "to": 9})
        (reading,) = instrumentation.read()
        assert (reading.agent_id, reading.agent_name, reading.running) == ("7", "7", True)
        assert {kind.message_type: kind.processed for kind in reading.types} == {"5": 1, "_OTHER": 1}
        assert counts(reading)["undeliverable"] == {"error": 1}
        assert ("amptalk.agent.running", frozenset({("agent.id", "7"), ("agent.name", "7")})) in series(reader)
    provider.shutdown()


def test_a_class_instead_of_an_instance_costs_one_record(
    register: Callable[..., Any], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    register(ClerkAdapter)
    assert adapter_for(Clerk(1)) is None
    assert type(adapter_for(SimpleAgent())) is FrameworkAdapter
    (record,) = caplog.records
    assert "matches was skipped (TypeError at " in record.getMessage()


def test_an_object_that_is_no_adapter_costs_one_record(
    register: Callable[..., Any], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    register(object())
    assert adapter_for(Clerk(1)) is None
    (record,) = caplog.records
    assert "matches was skipped (AttributeError at " in record.getMessage()
