"""Generation "core": what the metrics say of some thousand messages equals the program's own log."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections import Counter
from typing import Any

import pytest

from amptalk_otel import Instrumentation, instrument_agent, instrument_orchestrator
from tests.core_runtime import CoreAgent, CoreMessage, CoreOrchestrator, Status
from tests.core_workload import EARLY, GATEWAY, LATE, SINK, Key, Log, Program, Worker
from tests.support import Clock, assert_balanced, counts, identity, in_loop, provider_and_reader, series, settle

MESSAGES = 5_000


def third(attributes: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(attributes[name]) for name in ("error.type", "reason") if name in attributes)


def by_key(found: dict[Any, Any], name: str) -> dict[Key, Any]:
    """The series of one metric that are not zero, keyed as in the log; of a histogram its count."""
    rows: dict[Key, Any] = {}
    for (metric, attributes), value in found.items():
        if metric == name:
            flat = dict(attributes)
            owner = flat.get("agent.id") or flat["orchestrator.name"]
            count = value[0] if isinstance(value, tuple) else value
            if count:
                rows[(owner, flat["message.type"], *third(flat))] = count
    return rows


def values(found: dict[Any, Any], name: str) -> dict[str, Any]:
    """One value for each agent."""
    return {dict(attributes)["agent.id"]: value for (metric, attributes), value in found.items() if metric == name}


def expected(log: Log) -> dict[str, Counter[Key]]:
    return {
        "amptalk.agent.messages.received": log.received,
        "amptalk.agent.messages.processed": log.processed,
        "amptalk.agent.messages.failed": log.failed,
        "amptalk.agent.messages.sent": log.sent,
        "amptalk.agent.messages.undeliverable": log.undeliverable,
        "amptalk.agent.messages.dropped": Counter(),
        "amptalk.agent.retries": Counter(),
        "amptalk.orchestrator.messages.routed": log.routed,
        "amptalk.orchestrator.messages.undeliverable": Counter(),
        "amptalk.agent.message.wait.duration": log.received,
        "amptalk.agent.message.process.duration": log.processing,
    }


@pytest.mark.parametrize("instrumented_first", [True, False], ids=["before-agents", "after-start"])
def test_the_metrics_say_what_the_program_knows(instrumented_first: bool) -> None:
    provider, reader = provider_and_reader()
    found: dict[Any, Any] = {}

    @in_loop
    async def run() -> None:
        program = Program()
        if instrumented_first:
            instrumentation = instrument_orchestrator(program.orchestrator, meter_provider=provider)
            await program.start()
        else:
            await program.start()
            await settle()
            instrumentation = instrument_orchestrator(program.orchestrator, meter_provider=provider)
        with instrumentation:
            await program.run(MESSAGES)
            found.update(series(reader))
            for reading in instrumentation.read():
                assert_balanced(reading)
            log = program.log
            assert sum(log.received.values()) > MESSAGES
            assert {error for _agent_id, _kind, error in log.failed} == {"ValueError", "LookupError"}
            assert {agent for agent, _kind in log.received} == {*EARLY, *LATE, SINK}
            for name, counted in expected(log).items():
                assert by_key(found, name) == dict(counted), name
            everybody = {GATEWAY, *EARLY, *LATE, SINK}
            assert values(found, "amptalk.agent.queue.size") == dict.fromkeys(everybody, 0)
            assert values(found, "amptalk.agent.messages.in_flight") == dict.fromkeys(everybody, 0)
            assert values(found, "amptalk.agent.running") == dict.fromkeys(everybody, 1)
            await program.orchestrator.stop()
            assert set(values(series(reader), "amptalk.agent.running").values()) == {0}

    run()
    names = {dict(attributes).get("agent.name") for _name, attributes in found} - {None}
    assert names == {GATEWAY, *EARLY, *LATE, SINK}  # no names of their own: the ids
    provider.shutdown()


def test_the_program_does_the_same_with_and_without() -> None:
    def outcome(*, instrumented: bool) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            provider, _reader = provider_and_reader()
            program = Program()
            instrumentation = (
                instrument_orchestrator(program.orchestrator, meter_provider=provider) if instrumented else None
            )
            await program.start()
            await program.run(MESSAGES)
            before_stop = program.outcome()
            await program.orchestrator.stop()
            if instrumentation is not None:
                instrumentation.shutdown()
            provider.shutdown()
            return {"before": before_stop, "after": program.outcome()}

        return asyncio.run(asyncio.wait_for(run(), 60))

    plain, watched = outcome(instrumented=False), outcome(instrumented=True)
    assert sum(len(indexes) for indexes in plain["before"]["handled"].values()) > MESSAGES
    assert watched == plain


@in_loop
async def test_every_object_is_as_before_once_it_is_off_again() -> None:
    provider, _reader = provider_and_reader()
    program = Program()
    await program.start()
    await settle()
    owners: list[Any] = [program.orchestrator]
    for agent in program.orchestrator.agents.values():
        owners += [agent, agent.inbox, agent.outbox]
    stable = ("_unfinished_tasks", "_getters", "_putters", "status")
    before = [{name: one for name, one in identity(owner).items() if name not in stable} for owner in owners]
    instrumentation = instrument_orchestrator(program.orchestrator, meter_provider=provider)
    during = [identity(owner) for owner in owners]
    instrumentation.uninstrument()
    after = [{name: one for name, one in identity(owner).items() if name not in stable} for owner in owners]
    assert [set(now) - set(then) for now, then in zip(during, before, strict=True)][:4] == [
        {"register_agent", "create_agent", "__getstate__"},
        {"_process_message", "status", "__getstate__"},
        {"_put", "_get", "__getstate__", *set(stable) - {"status"}},
        {"_put", "_get", "__getstate__", *set(stable) - {"status"}},
    ]
    assert after == before
    await program.orchestrator.stop()
    provider.shutdown()


class Plain(CoreAgent):
    """Waits at each message until it is let through."""

    def __init__(self, agent_id: str = "plain", agent_type: str = "plain") -> None:
        super().__init__(agent_id, agent_type)
        self.gate = asyncio.Event()

    async def _process_message(self, message: CoreMessage) -> None:
        await self.gate.wait()


def to(agent: CoreAgent, kind: str = "note") -> CoreMessage:
    return CoreMessage("driver", agent.agent_id, kind, {})


@in_loop
async def test_queue_size_and_in_flight_are_those_of_the_moment() -> None:
    provider, reader = provider_and_reader()
    orchestrator = CoreOrchestrator()
    agent = Plain()
    await orchestrator.register_agent(agent)
    for _ in range(3):
        await agent.inbox.put(to(agent))  # before we come
    with instrument_orchestrator(orchestrator, meter_provider=provider) as instrumentation:
        assert values(series(reader), "amptalk.agent.queue.size") == {"plain": 3}
        await orchestrator.start()
        await agent.inbox.put(to(agent))
        await settle()
        found = series(reader)
        assert values(found, "amptalk.agent.queue.size") == {"plain": 3}
        assert values(found, "amptalk.agent.messages.in_flight") == {"plain": 1}
        agent.gate.set()
        await settle(40)
        # The wait of those that were there before us is not known.
        assert counts(instrumentation.read()[0]) == {"received": 4, "processed": 4, "works": 4, "waits": 1}
        await orchestrator.stop()
    provider.shutdown()


@in_loop
async def test_a_message_in_work_when_the_orchestrator_stops_is_dropped() -> None:
    provider, _reader = provider_and_reader()
    orchestrator = CoreOrchestrator()
    agent = Plain()
    await orchestrator.register_agent(agent)
    with instrument_orchestrator(orchestrator, meter_provider=provider) as instrumentation:
        await orchestrator.start()
        for _ in range(2):
            await agent.inbox.put(to(agent))
        await settle()
        await orchestrator.stop()
        assert counts(instrumentation.read()[0]) == {
            "received": 2, "queued": 1, "dropped": {"cancelled": 1}, "waits": 1,
        }  # fmt: skip
    provider.shutdown()


@pytest.mark.parametrize(
    ("status", "running"),
    [
        (Status.INITIALIZING, False),
        (Status.READY, True),
        (Status.BUSY, True),
        (Status.ERROR, True),
        (Status.SHUTDOWN, False),
        ("ready", True),
        ("Shutdown", False),
    ],
)
def test_the_status_tells_whether_an_agent_runs(status: Any, running: bool) -> None:
    provider, reader = provider_and_reader()
    orchestrator = CoreOrchestrator()

    @in_loop
    async def run() -> None:
        agent = Plain()
        agent.status = status
        await orchestrator.register_agent(agent)
        with instrument_orchestrator(orchestrator, meter_provider=provider):
            found = series(reader)
            assert values(found, "amptalk.agent.running") == {"plain": int(running)}
            states = {
                dict(attributes)["agent.state"]: value
                for (name, attributes), value in found.items()
                if name == "amptalk.orchestrator.agents"
            }
            assert states == {"running": int(running), "stopped": int(not running)}

    run()
    provider.shutdown()


@in_loop
async def test_uptime_counts_from_the_agents_own_start_time(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, _reader = provider_and_reader()
    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: 5_000.0)
    agent = Plain()
    agent.start_time = 4_900.0
    with instrument_agent(agent, meter_provider=provider) as instrumentation:
        shared = next(iter(instrumentation._watch._agents.values()))  # type: ignore[union-attr]
        monkeypatch.setattr(shared.hook.recorder, "clock", clock)
        assert instrumentation.read()[0].uptime_s == 0.0  # still initializing
        agent.status = Status.READY
        assert instrumentation.read()[0].uptime_s == 100.0
        clock.advance(7.5)
        assert instrumentation.read()[0].uptime_s == 107.5
        agent.status = Status.SHUTDOWN
        assert instrumentation.read()[0].uptime_s == 0.0
    provider.shutdown()


@in_loop
async def test_a_loop_inside_somebody_elses_task_is_the_agents_loop() -> None:
    provider, _reader = provider_and_reader()
    agent = Worker("alone", "worker", log=Log())

    async def main() -> None:
        await agent.run()

    with instrument_agent(agent, meter_provider=provider) as instrumentation:
        task = asyncio.create_task(main())
        for index in (1, 2, 3):
            await agent.inbox.put(CoreMessage("driver", "alone", "note", {"index": index}))
        await settle()
        assert counts(instrumentation.read()[0]) == {"received": 3, "processed": 3, "waits": 3, "works": 3}
        await agent.inbox.put(CoreMessage("driver", "alone", "note", {"index": 4}))
        taken = await agent.inbox.get()  # before the loop comes to it
        assert taken.payload == {"index": 4}
        assert counts(instrumentation.read()[0])["dropped"] == {"taken": 1}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    provider.shutdown()


@in_loop
async def test_an_agent_without_orchestrator_counts_what_leaves_its_outbox_as_sent() -> None:
    provider, _reader = provider_and_reader()
    agent = Plain()
    with instrument_agent(agent, meter_provider=provider) as instrumentation:
        await agent.send_message("somebody", "note", {})
        assert counts(instrumentation.read()[0]) == {}
        assert (await agent.outbox.get()).target_agent == "somebody"
        assert counts(instrumentation.read()[0]) == {"sent": 1}
    provider.shutdown()


@in_loop
async def test_an_outbox_that_somebody_else_has_covered_counts_no_more_when_we_are_off() -> None:
    provider, _reader = provider_and_reader()
    orchestrator = CoreOrchestrator()
    agent = Plain()
    await orchestrator.register_agent(agent)
    instrumentation: Instrumentation = instrument_orchestrator(orchestrator, meter_provider=provider)
    watch = instrumentation._watch
    assert watch is not None
    recorder = next(iter(watch._agents.values())).hook.recorder
    vars(agent.outbox)["_get"] = functools.partial(vars(agent.outbox)["_get"])  # somebody else's cover over ours
    await agent.send_message("plain", "note", {})
    await agent.outbox.get()
    assert [(kind.message_type, kind.sent) for kind in recorder.records] == [("note", 1)]
    instrumentation.uninstrument()
    await agent.send_message("plain", "note", {})
    await agent.outbox.get()
    assert [(kind.message_type, kind.sent) for kind in recorder.records] == [("note", 1)]
    provider.shutdown()


@in_loop
async def test_an_agent_that_takes_anothers_place_is_watched_instead() -> None:
    provider, reader = provider_and_reader()
    orchestrator = CoreOrchestrator()
    with instrument_orchestrator(orchestrator, meter_provider=provider):
        first = await orchestrator.create_agent(Plain, "same", "plain")
        await first.inbox.put(to(first))
        second = await orchestrator.create_agent(Plain, "same", "plain")
        await second.inbox.put(to(second))
        found = series(reader)
        assert by_key(found, "amptalk.agent.messages.received") == {("same", "note"): 2}
        assert by_key(found, "amptalk.agent.messages.dropped") == {("same", "note", "unregistered"): 1}
        assert values(found, "amptalk.agent.queue.size") == {"same": 1}
        assert "_put" not in vars(first.inbox)
    del first, second
    gc.collect()
    provider.shutdown()
