"""Agents, queues, messages and handlers of every make."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from amptalk_otel import Instrumentation
from amptalk_otel.demo.runtime import Message, SimpleAgent
from tests.faults.catalogue import fault
from tests.faults.trial import MESSAGES, MakeProgram, Outcome, Stage, Strikes, Trial, ordinary, pause, tried
from tests.workload import TYPES, Program

_strikes = Strikes()


def _asked_by_us() -> bool:
    """Whether it is the instrumentation, and not the program, that asks."""
    name = str(sys._getframe(2).f_globals.get("__name__", ""))
    return name.startswith("amptalk_otel.") and not name.startswith("amptalk_otel.demo")


def _program_of(kind: type[SimpleAgent]) -> MakeProgram:
    """The program with agents of another class."""

    class OfKind(Program):
        def _make_agent(self, agent_id: str, base_retry_delay: float) -> SimpleAgent:
            agent = kind(agent_id=agent_id, name=agent_id.upper())
            agent.base_retry_delay = base_retry_delay
            agent.retry_jitter = 0.0
            for message_type in TYPES:
                agent.register_message_handler(message_type, self._handler(agent_id))
            self.orchestrator.register_agent(agent)
            return agent

    return lambda: OfKind(base_retry_delay=0.0)


def _tried_with(kind: type[SimpleAgent], *, counts: bool = True) -> Trial:
    """The strikes are counted by the objects themselves, in the instrumented run.

    Agents of which nothing can be counted have no counts; wrong ones would be lost messages (`counts=False`).
    """
    _strikes.count = 0
    run = ordinary(_program_of(kind), counts=counts)

    async def program(stage: Stage) -> Outcome:
        outcome = await run(stage)
        stage.strikes.count = _strikes.count
        return outcome

    return tried(program)


# -- agents --------------------------------------------------------------------------------------------


class _Vanishing(SimpleAgent):
    """Half of what is read of it is missing each second time that it is not the program who reads."""

    _asked = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("is_running", "stats", "tasks", "state_manager", "connected_agents") and _asked_by_us():
            _Vanishing._asked += 1
            if _Vanishing._asked % 2:
                _strikes.strike()
                raise AttributeError(name)
        return super().__getattribute__(name)


@fault(
    "attributes vanish", "`is_running`, `stats`, `tasks` … of agents are missing each second time that they are read"
)
def attributes_vanish() -> Trial:
    return _tried_with(_Vanishing)


class _ReadOnly(SimpleAgent):
    """Takes no attribute that it has not had from the start: none of its methods can be covered."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.__dict__["_is_made"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_is_made") and name not in self.__dict__:
            _strikes.strike()
            raise AttributeError(f"{name} is read-only")
        super().__setattr__(name, value)


@fault("a read-only agent", "`__setattr__` raises for each method that is to be covered")
def read_only_agent() -> Trial:
    return _tried_with(_ReadOnly, counts=False)


class _Slotted:
    """An agent without a dictionary."""

    __slots__ = ("__weakref__", "agent_id", "handled", "input_queue", "is_running", "name", "tasks")

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.name = agent_id.upper()
        self.input_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.is_running = False
        self.tasks: list[Any] = []
        self.handled: list[Any] = []

    async def start(self) -> None:
        self.is_running = True
        self.tasks.append(asyncio.create_task(self._loop()))

    async def stop(self) -> None:
        self.is_running = False
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def enqueue_message(self, message: Any) -> None:
        await self.input_queue.put(message)

    async def process_message(self, message: Any) -> None:
        self.handled.append(message.payload["index"])
        if message.payload["index"] % 9 == 0:
            raise ValueError(f"message {message.payload['index']} is bad")

    async def send_message(self, message: Any) -> bool:
        return bool(message)

    async def _loop(self) -> None:
        while True:
            message = await self.input_queue.get()
            try:
                await self.process_message(message)
            except ValueError as error:
                self.handled.append(str(error))
            finally:
                self.input_queue.task_done()


class _SlottedWithoutReferences:
    """The same, and it can't be referred to weakly either."""

    __slots__ = ("agent_id", "handled", "input_queue", "is_running", "name", "tasks")
    __init__ = _Slotted.__init__
    start, stop, _loop = _Slotted.start, _Slotted.stop, _Slotted._loop
    enqueue_message, process_message = _Slotted.enqueue_message, _Slotted.process_message
    send_message = _Slotted.send_message


class _Trapping(_Slotted):
    """Has whatever it is asked for."""

    __slots__ = ("__dict__",)

    def __getattr__(self, name: str) -> Any:
        _strikes.strike()

        def anything(*_args: Any, **_kwargs: Any) -> Any:
            return self

        return anything


class _Refusing(_Slotted):
    """Answers whoever asks for what it has not with an error of its own."""

    __slots__ = ("__dict__",)

    def __getattr__(self, name: str) -> Any:
        _strikes.strike()
        raise RuntimeError(f"there is no {name}")


class UsualAgent(_Slotted):
    __slots__ = ("__dict__",)


class Roster:
    """An orchestrator with the least that it takes."""

    def __init__(self) -> None:
        self.name = "roster"
        self.agents: dict[str, Any] = {}

    def register_agent(self, agent: Any) -> None:
        self.agents[agent.agent_id] = agent

    def unregister_agent(self, agent_id: str) -> None:
        self.agents.pop(agent_id, None)


_BAD = len(range(0, MESSAGES, 9))


def _wrong(agent_id: str, handle: Instrumentation, *, counted: bool) -> int:
    """By how many messages the counts of an agent are wrong. One that can't be counted has no counts."""
    found = [reading for reading in handle.read() if reading.agent_id == agent_id]
    numbers = [0, 0, 0, 0]
    for reading in found:
        numbers = [reading.received, reading.processed, reading.failed, reading.dropped + reading.in_flight]
    expected = (MESSAGES, MESSAGES - _BAD, _BAD, 0) if counted else (0, 0, 0, 0)
    return sum(abs(one - other) for one, other in zip(numbers, expected, strict=True))


def _tried_beside(make: Callable[[str], Any], *, counts: bool = False) -> Trial:
    """Odd agents beside a usual one; `counts`: whether they can be counted as well."""
    _strikes.count = 0

    async def program(stage: Stage) -> Outcome:
        roster = Roster()
        odd, usual = make("odd"), UsualAgent("usual")
        roster.register_agent(usual)
        stage.watch(roster)
        roster.register_agent(odd)
        for agent in (odd, usual):
            await agent.start()
        for index in range(MESSAGES):
            for agent in (odd, usual):
                await agent.enqueue_message(Message(message_type=TYPES[0], payload={"index": index}))
            if index % 24 == 0:
                await pause()
        await asyncio.gather(odd.input_queue.join(), usual.input_queue.join())
        if stage.handle is not None:
            stage.lost += _wrong("usual", stage.handle, counted=True) + _wrong("odd", stage.handle, counted=counts)
            stage.strikes.count = _strikes.count or MESSAGES
        for agent in (odd, usual):
            await agent.stop()
        roster.unregister_agent("odd")
        return Outcome([odd.handled, usual.handled])

    return tried(program)


@fault("a slotted agent", "agents have `__slots__` and no dictionary: no method can be covered")
def slotted_agent() -> Trial:
    return _tried_beside(_Slotted)


@fault("an agent without weak references", "agents have `__slots__` without `__weakref__`")
def slotted_agent_without_references() -> Trial:
    return _tried_beside(_SlottedWithoutReferences)


@fault("an agent that has everything", "`__getattr__` returns a function for whatever it is asked for")
def trapping_agent() -> Trial:
    return _tried_beside(_Trapping, counts=True)


@fault("an agent that refuses", "`__getattr__` raises `RuntimeError` for whatever it has not")
def refusing_agent() -> Trial:
    return _tried_beside(_Refusing)


# -- queues --------------------------------------------------------------------------------------------


class _SizeRaises(asyncio.Queue[Any]):
    def qsize(self) -> int:
        if _asked_by_us():
            _strikes.strike()
            raise RuntimeError("nobody knows")
        return super().qsize()


class _ReadOnlyQueue(asyncio.Queue[Any]):
    def __setattr__(self, name: str, value: Any) -> None:
        if callable(value) and hasattr(type(self), name):
            _strikes.strike()
            raise AttributeError(f"{name} is read-only")
        super().__setattr__(name, value)


class _SlottedQueue:
    """No `asyncio.Queue` and not like one: it only behaves as one."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner: asyncio.Queue[Any] = asyncio.Queue()

    async def put(self, item: Any) -> None:
        _strikes.strike()
        await self._inner.put(item)

    async def get(self) -> Any:
        return await self._inner.get()

    def task_done(self) -> None:
        self._inner.task_done()

    async def join(self) -> None:
        await self._inner.join()

    def qsize(self) -> int:
        return self._inner.qsize()


class _TrappingQueue(asyncio.Queue[Any]):
    def __getattr__(self, name: str) -> Any:
        _strikes.strike()
        return lambda *_args, **_kwargs: self


class _OddStore(asyncio.Queue[Any]):
    """Loses and doubles nothing, but its store can't be counted and its items are wrapped."""

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Any] = deque()

    def _put(self, item: Any) -> None:
        _strikes.strike()
        self._queue.append((0, item))

    def _get(self) -> Any:
        return self._queue.popleft()[1]


def _with_queue(kind: type[Any]) -> Callable[[str], Any]:
    def make(agent_id: str) -> Any:
        agent = UsualAgent(agent_id)
        agent.input_queue = kind()
        return agent

    return make


@fault("`qsize` raises", "the inbox raises when its length is read, until the program is idle")
def qsize_raises() -> Trial:
    return _tried_beside(_with_queue(_SizeRaises), counts=True)


@fault("a read-only queue", "the inbox takes no attributes: `_put` and `_get` can't be covered")
def read_only_queue() -> Trial:
    return _tried_beside(_with_queue(_ReadOnlyQueue))


@fault("a queue of another make", "the inbox is no `asyncio.Queue`, has `__slots__` and no `_put`")
def slotted_queue() -> Trial:
    return _tried_beside(_with_queue(_SlottedQueue))


@fault("a queue that has everything", "`__getattr__` of the inbox returns a function for whatever it is asked for")
def trapping_queue() -> Trial:
    return _tried_beside(_with_queue(_TrappingQueue), counts=True)


@fault("a queue with its own store", "the inbox keeps its items wrapped, in a store of its own")
def odd_store() -> Trial:
    return _tried_beside(_with_queue(_OddStore), counts=True)


# -- messages and handlers -----------------------------------------------------------------------------


class _Hostile:  # noqa: PLW1641 - it has one
    """A payload that raises at whatever is done to it."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__dict__"):
            _strikes.strike()
            raise RuntimeError("secret-payload")
        return super().__getattribute__(name)

    def __len__(self) -> int:
        _strikes.strike()
        raise RuntimeError("secret-payload")

    __iter__ = __str__ = __repr__ = __hash__ = __bool__ = __len__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        _strikes.strike()
        raise RuntimeError("secret-payload")


class _HostileMessage:  # noqa: PLW1641 - the framework's messages can't be hashed either
    """A message that lets nobody but the program look at it, is equal to nothing and can't be hashed."""

    def __init__(self, index: int) -> None:
        self.payload = {"index": index, "hostile": _Hostile()}

    def __getattribute__(self, name: str) -> Any:
        if name in ("message_type", "message_id", "metadata", "payload") and _asked_by_us():
            _strikes.strike()
            raise RuntimeError("secret-payload")
        return super().__getattribute__(name)

    def __eq__(self, other: object) -> bool:
        _strikes.strike()
        raise RuntimeError("secret-payload")


@fault("hostile messages", "type, id and payload of messages raise when they are read, compared, hashed or measured")
def hostile_messages() -> Trial:
    _strikes.count = 0

    async def program(stage: Stage) -> Outcome:
        roster, agent = Roster(), UsualAgent("agent")
        roster.register_agent(agent)
        stage.watch(roster)
        await agent.start()
        for index in range(MESSAGES):
            await agent.enqueue_message(_HostileMessage(index))
            if index % 24 == 0:
                await pause()
        await agent.input_queue.join()
        if stage.handle is not None:
            stage.lost += _wrong("agent", stage.handle, counted=True)
            stage.strikes.count = _strikes.count
        await agent.stop()
        return Outcome([agent.handled])

    return tried(program)


class _Fatal(BaseException):
    """What neither the program nor anybody else takes for an ordinary failure."""


class _Strange(Exception):
    """An exception that can't be shown."""

    def __str__(self) -> str:
        raise RuntimeError("secret-payload")

    __repr__ = __str__


@fault(
    "`BaseException` from handlers",
    "one handler in eight ends with `_Fatal`, which ends its agent's loop, or with `GeneratorExit`",
)
def base_exceptions() -> Trial:
    return tried(_raising((_Fatal("secret-payload"), GeneratorExit("secret-payload"))))


@fault("exceptions that can't be shown", "one handler in eight raises an exception whose `str` and `repr` raise")
def strange_exceptions() -> Trial:
    return tried(_raising((_Strange("secret-payload"),)))


def _raising(errors: tuple[BaseException, ...]) -> Callable[[Stage], Any]:
    """Agents whose loop is ended by what their handlers raise, and started again by the program."""

    async def program(stage: Stage) -> Outcome:
        handled: list[Any] = []
        ends: Counter[str] = Counter()

        class Raising(UsualAgent):
            async def process_message(self, message: Any) -> None:
                index = message.payload["index"]
                handled.append(index)
                if index % 8 == 7:
                    stage.strikes.strike()
                    raise errors[index % len(errors)]

        roster, agent = Roster(), Raising("agent")
        roster.register_agent(agent)
        stage.watch(roster)
        for index in range(MESSAGES):
            await agent.enqueue_message(Message(message_type=TYPES[index % len(TYPES)], payload={"index": index}))
        while len(handled) < MESSAGES:
            await agent.start()
            (task,) = agent.tasks
            while not task.done() and not (len(handled) == MESSAGES and agent.input_queue.empty()):
                await asyncio.sleep(0.001)
            if task.done():
                ends[type(task.exception()).__name__] += 1
            agent.tasks.clear()
            if not task.done():
                task.cancel()
        if stage.handle is not None:
            (reading,) = stage.handle.read()
            failed = sum(number for kind in reading.types for number in kind.failed.values())
            stage.lost += abs(reading.received - MESSAGES) + abs(
                reading.processed + failed + reading.dropped - MESSAGES
            )
        return Outcome([handled, dict(ends)])

    return program
