"""Event loops, tasks and threads of every kind."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Coroutine
from typing import Any

from amptalk_otel.demo.runtime import Message
from tests.faults.agents import Roster, UsualAgent
from tests.faults.catalogue import fault, python
from tests.faults.trial import MESSAGES, Outcome, Stage, Trial, ordinary, pause, quick_program, tried, without_times
from tests.workload import TYPES

_LOOPS = 4


def _uvloop_is_missing() -> str | None:
    return None if importlib.util.find_spec("uvloop") else "needs uvloop"


def _counted(trial: Trial, times: int = MESSAGES) -> Trial:
    """A fault that is there all the time strikes each message."""
    trial.tried = times
    return trial


@fault("uvloop", "the program runs on uvloop's event loop", needs=_uvloop_is_missing)
def on_uvloop() -> Trial:
    import uvloop

    def run(program: Coroutine[Any, Any, Any]) -> Any:
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(program)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return _counted(tried(ordinary(), run=run))


@fault("eager tasks", "the loop's task factory is `asyncio.eager_task_factory`", needs=python(3, 12))
def eager_tasks() -> Trial:
    def run(program: Coroutine[Any, Any, Any]) -> Any:
        async def main() -> Any:
            asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
            return await asyncio.create_task(program)

        return asyncio.run(main())

    return _counted(tried(ordinary(), run=run))


@fault("debug mode", "`asyncio.run(debug=True)`: coroutines that are not awaited, slow callbacks and more are told")
def debug_mode() -> Trial:
    return _counted(tried(ordinary(), run=lambda program: asyncio.run(program, debug=True)))


@fault("several loops in several threads", f"{_LOOPS} threads, each with a loop and an orchestrator of its own")
def several_loops() -> Trial:
    run = ordinary()

    async def program(stage: Stage) -> Outcome:
        outcomes: dict[int, Outcome] = {}
        handles: list[Any] = []

        def one(number: int) -> None:
            own = Stage(stage._config, stage.strikes)
            outcomes[number] = asyncio.run(run(own))
            stage.lost += own.lost
            handles.append(own.handle)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(_LOOPS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.005)
        for handle in filter(None, handles):
            await asyncio.to_thread(handle.shutdown, 1.0)
        return Outcome([outcomes[number] for number in range(_LOOPS)])

    return _counted(tried(program), _LOOPS * MESSAGES)


@fault("cancellation storms", "senders, handlers and agents' loops are cancelled at every third step, and begin again")
def cancellation_storms() -> Trial:
    async def program(stage: Stage) -> Outcome:
        log: list[Any] = []

        class Slow(UsualAgent):
            async def process_message(self, message: Any) -> None:
                index = message.payload["index"]
                log.append(("began", index))
                try:
                    for _ in range(index % 4):
                        await asyncio.sleep(0)
                except asyncio.CancelledError:
                    log.append(("cancelled", index))
                    raise
                log.append(("done", index))

        roster, agent = Roster(), Slow("agent")
        agent.input_queue = asyncio.Queue(maxsize=5)
        roster.register_agent(agent)
        stage.watch(roster)
        sent = 0
        await agent.start()
        for index in range(MESSAGES):
            message = Message(message_type=TYPES[index % len(TYPES)], payload={"index": index})
            sender = asyncio.create_task(agent.enqueue_message(message))
            await asyncio.sleep(0)
            if index % 3 == 0:
                stage.strikes.strike()
                (loop_task,) = agent.tasks
                loop_task.cancel()
                sender.cancel()
                await asyncio.gather(sender, loop_task, return_exceptions=True)
                agent.tasks.clear()
                await agent.start()
            done = await asyncio.gather(sender, return_exceptions=True)
            sent += done[0] is None
            if index % 24 == 0:
                await pause()
        await asyncio.wait_for(_emptied(agent), 20)
        if stage.handle is not None:
            (reading,) = stage.handle.read()
            began = sum(1 for what, _index in log if what == "began")
            finished = sum(1 for what, _index in log if what == "done")
            stage.lost += abs(reading.received - sent) + abs(reading.processed - finished) + abs(reading.in_flight)
            stage.lost += abs(reading.received - reading.processed - reading.failed - reading.dropped)
            stage.lost += abs(began - finished - reading.failed - reading.dropped)
        await agent.stop()
        return Outcome([log, sent])

    return tried(program)


async def _emptied(agent: UsualAgent) -> None:
    while not agent.input_queue.empty():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)


@fault("instrumented and not, again and again", "shut down and instrumented anew in the middle of the work")
def on_and_off() -> Trial:
    async def program(stage: Stage) -> Outcome:
        work = quick_program()
        await work.orchestrator.start()
        for index in range(MESSAGES):
            if index % 12 == 0:
                await pause()
                if stage.handle is not None:
                    await asyncio.to_thread(stage.handle.shutdown, 1.0)
                    stage.strikes.strike()
                stage.watch(work.orchestrator)
            await work.send(index)
        await work.finish()
        statuses = {agent_id: await agent.get_status() for agent_id, agent in work.agents.items()}
        await work.orchestrator.stop()
        return Outcome(work.log.events, {agent: without_times(status) for agent, status in statuses.items()})

    return tried(program)
