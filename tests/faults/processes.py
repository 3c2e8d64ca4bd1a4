"""What takes a process of its own: forks, signals, the end of the interpreter, a full disk. Each runs for a bounded time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.faults.catalogue import PROCESS, fault
from tests.faults.collectors import answering
from tests.faults.trial import MESSAGES, SECRETS, Outcome, Strikes, Trial

ROOT = Path(__file__).parents[2]
_LIMIT_S = 60.0
_RUNS = 3

_PROGRAM = """
import asyncio, os, signal, sys, threading, time
from tests.workload import Program

def made():
    async def make():
        program = Program(base_retry_delay=0.0)
        await asyncio.sleep(0.01)
        return program
    return asyncio.run(make())

def watch(orchestrator):
    if os.environ["WATCHED"] != "1":
        return None
    from amptalk_otel import instrument_orchestrator
    return instrument_orchestrator(orchestrator)

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + chr(10))
    sys.stdout.flush()

def told(handle, program):
    if handle is not None:
        from tests.faults.trial import lost
        sys.stderr.write(f"lost={lost(program.log, handle.read())}" + chr(10))

async def work(program, handle=None, messages=%(messages)d):
    from tests.faults.trial import pause
    await program.orchestrator.start()
    for index in range(messages):
        if index == messages // 2:
            await program.broadcast()
        await program.send(index)
        if index %% 12 == 0:
            await pause()
    await program.finish()
    say("handled", len(program.log.events), hash(str(program.log.events)))
    told(handle, program)
    await program.orchestrator.stop()
""" % {"messages": MESSAGES}


def _ran(script: str, *, watched: bool, stdout: Any = subprocess.PIPE, during: Any = None, **environ: str) -> Outcome:
    """The outcome of the program; what the instrumentation counted wrongly is told by a line `lost=`."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AMPTALK_"))},
        "WATCHED": str(int(watched)),
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "default,ignore::ResourceWarning",  # as Python itself has them
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
        "OTEL_METRICS_EXPORTER": "prometheus",
        **environ,
    }
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM + script], cwd=ROOT, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True
    ) as process:
        if during is not None:
            threading.Thread(target=during, args=(process,), daemon=True).start()
        try:
            out, err = process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Outcome(ended="hangs", stdout=f"{out}{err}")
    return Outcome([err], stdout=out or "", ended=f"exit status {process.returncode}")


def _tried(
    script: str,
    *,
    pushes: bool = False,
    silent: bool = True,
    runs: int = _RUNS,
    said: tuple[str, ...] = (),
    **options: Any,
) -> Trial:
    """Run the program plain and instrumented. `said`: what one log record on stderr may say, each once a minute.

    With `pushes` metrics and spans go to a collector that is a black hole, or else (`silent=False`) takes them.
    """
    lost, leaked = 0, []
    plain = _ran(script, watched=False, **options)
    for _ in range(runs):
        with answering(_swallow if silent else _take, Strikes()) if pushes else nullcontext(0) as port:
            environ = {
                "OTEL_METRICS_EXPORTER": "prometheus,otlp",
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_METRIC_EXPORT_INTERVAL": "50",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
                "OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cret-header",
            }
            watched = _ran(script, watched=True, **{**(environ if pushes else {}), **options})
        noise = watched.events[0].splitlines() if watched.events else []
        lost += sum(int(found[1]) for line in noise if (found := re.fullmatch(r"lost=(\d+)", line)))
        if not any(line.startswith("lost=") for line in noise) and "work(" in script:
            leaked.append("the program did not come to its count")
        noise = [line for line in noise if not line.startswith("lost=")]
        once = [line for line in noise if any(text in line for text in said)]
        leaked += [line for line in noise if line not in once or once.count(line) > 1]
        leaked += [f"secret in: {line}" for line in noise if any(secret in line for secret in SECRETS)]
        if watched.stdout != plain.stdout or watched.ended != plain.ended:
            break
    watched.events = plain.events = []
    return Trial(runs, plain, watched, lost, leaked, 0.0)


def _swallow(_client: Any) -> None:
    time.sleep(_LIMIT_S)


def _take(client: Any) -> None:
    from tests.faults.collectors import OK, read_request

    while True:
        read_request(client)
        client.sendall(OK)


# -- forks ---------------------------------------------------------------------------------------------

_FORK_AFTER = """
program = made() if PRELOADED else None
handle = watch(program.orchestrator) if PRELOADED else None
if PRELOADED:
    time.sleep(0.3)  # until exporters of the parent are at work
sys.stdout.flush()
children = []
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for forks of processes with threads
for number in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        program = program or made()
        handle = watch(program.orchestrator)
        asyncio.run(work(program, handle))
        if handle is not None and number == 0:
            handle.shutdown(1.0)
        sys.exit(number)
    children.append(child)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
if PRELOADED and handle is not None:
    handle.shutdown(1.0)
"""


@fault("fork, then instrument", "two children of a gunicorn-style parent instrument themselves", compared=PROCESS)
def fork_then_instrument() -> Trial:
    return _tried("PRELOADED = False" + _FORK_AFTER, pushes=True, silent=False)


@fault(
    "fork of a preloaded program",
    "the parent is instrumented and pushes; two children are forked, instrument again, work, and end",
    compared=PROCESS,
)
def fork_preloaded() -> Trial:
    return _tried("PRELOADED = True" + _FORK_AFTER, pushes=True, silent=False)


@fault(
    "fork while everybody is at work",
    "20 forks in the middle of scrapes and pushes; each child registers an agent and ends",
    compared=PROCESS,
)
def fork_at_work() -> Trial:
    script = """
import urllib.request, warnings
warnings.simplefilter("ignore", DeprecationWarning)
program = made()
handle = watch(program.orchestrator)
over = threading.Event()
def scrape():
    while not over.is_set():
        if handle is not None:
            urllib.request.urlopen(handle.metrics_url, timeout=5).read()
        time.sleep(0.001)
scraper = threading.Thread(target=scrape, daemon=True)
scraper.start()

async def in_child():
    from amptalk_otel.demo.runtime import SimpleAgent
    watch(program.orchestrator)
    program.orchestrator.register_agent(SimpleAgent(agent_id="late", name="late"))
    program.orchestrator.unregister_agent("late")
    await asyncio.sleep(0)

for number in range(20):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        asyncio.run(in_child())
        os._exit(number)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
over.set()
scraper.join()
if handle is not None:
    handle.shutdown(1.0)
"""
    return _tried(script, pushes=True, silent=False)


# -- ends ----------------------------------------------------------------------------------------------

_AT_WORK = """
program = made()
handle = watch(program.orchestrator)
"""

_SIGNALLED = """
async def main():
    await work(program, handle)
    time.sleep(0.2)  # an export is under way by now
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(30)
    say("never")
"""


@fault("`SIGTERM` in the middle of an export", "the program has no handler for it", compared=PROCESS)
def sigterm() -> Trial:
    return _tried(_AT_WORK + _SIGNALLED + "asyncio.run(main())", pushes=True)


@fault("`SIGTERM` that the program handles", "its handler stops the loop; a black hole keeps the exports", compared=PROCESS)
def sigterm_handled() -> Trial:
    script = """
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await work(program, handle)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    say("stopped in good order")
asyncio.run(main())
say("over")
sys.exit(3)
"""
    return _tried(_AT_WORK + script, pushes=True, said=_NOT_PUSHED, runs=1)


@fault("Ctrl-C", "`SIGINT` in the middle of an export ends `asyncio.run` with `KeyboardInterrupt`", compared=PROCESS)
def sigint() -> Trial:
    script = """
async def main():
    await work(program, handle)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(30)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    say("interrupted")
    sys.exit(130)
"""
    return _tried(_AT_WORK + script, pushes=True, said=_NOT_PUSHED, runs=1)


_NOT_PUSHED = ("metrics are not pushed", "spans are not pushed")


@fault("the interpreter ends while exporting", "no `shutdown`; a black hole keeps the exports", compared=PROCESS)
def interpreter_ends() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
say("over")
"""
    return _tried(_AT_WORK + script, pushes=True, said=_NOT_PUSHED, runs=1)


@fault("`os._exit` while exporting", "the process ends without any clean-up", compared=PROCESS)
def exits_at_once() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
say("over")
os._exit(4)
"""
    return _tried(_AT_WORK + script, pushes=True)


@fault("an uncaught exception while exporting", "the program ends with a traceback of its own", compared=PROCESS)
def program_fails() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
try:
    raise LookupError("of the program")
except LookupError:
    sys.exit(1)
"""
    return _tried(_AT_WORK + script, pushes=True, said=_NOT_PUSHED, runs=1)


# -- the rest ------------------------------------------------------------------------------------------


@fault("the disk is full", "the `console` exporters write to a stdout that takes nothing (`/dev/full`)", compared=PROCESS)
def disk_full() -> Trial:
    script = """
async def main():
    await work(program, handle)
sys.stdout, real = open(os.devnull, "w"), sys.stdout  # the program itself prints nothing
say = lambda *words: None
asyncio.run(main())
sys.stdout = real
"""
    # Made before: the exporters keep the stdout that there is when they are made.
    environ = {"OTEL_METRICS_EXPORTER": "console", "OTEL_TRACES_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
    with Path("/dev/full").open("w") as full:
        return _tried(_AT_WORK + script, stdout=full, said=_NOT_PUSHED, **environ)


@fault("gRPC to a black hole", "both exporters use gRPC; the collector never answers", compared=PROCESS)
def grpc_silent() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
if handle is not None:
    began = time.monotonic()
    handle.shutdown(1.0)
    assert time.monotonic() - began < 1.5
say("over")
"""
    return _tried(_AT_WORK + script, pushes=True, said=_NOT_PUSHED, runs=1, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")


@fault("gRPC to nobody", "both exporters use gRPC; nobody listens at the address", compared=PROCESS)
def grpc_down() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
if handle is not None:
    handle.shutdown(1.0)
say("over")
"""
    environ = {
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "50",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:s3cret-password@127.0.0.1:9",
    }
    return _tried(_AT_WORK + script, said=_NOT_PUSHED, runs=1, **environ)
