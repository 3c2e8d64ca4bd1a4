"""What takes a process of its own: forks, signals, the end of the interpreter, a full disk. Each has a time limit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.faults.catalogue import fault
from tests.faults.collectors import OK, Answer, answering, read_request
from tests.faults.trial import MESSAGES, SECRETS, Outcome, Strikes, Trial

ROOT = Path(__file__).parents[2]
_LIMIT_S = 60.0
_RUNS = 2

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

def told(handle, program, lateness):
    if handle is not None:
        from tests.faults.trial import lost
        sys.stderr.write(f"lost={lost(program.log, handle.read())} blocked={lateness.most_s:.3f}" + chr(10))

async def work(program, handle=None, messages=MESSAGES):
    from tests.faults.trial import Lateness, pause
    lateness = Lateness()
    with lateness.measured(asyncio.get_running_loop()):
        await program.orchestrator.start()
        for index in range(messages):
            if index == messages // 2:
                await program.broadcast()
            await program.send(index)
            if index % 12 == 0:
                await pause()
        await program.finish()
    say("handled", len(program.log.events), hash(str(program.log.events)))
    told(handle, program, lateness)
    await program.orchestrator.stop()
""".replace("MESSAGES", str(MESSAGES))
_TOLD = re.compile(r"lost=(\d+) blocked=([\d.]+)")
_LOGGED = ("metrics are not pushed", "spans are not pushed")


def _ran(script: str, *, watched: bool, stdout: Any = subprocess.PIPE, **environ: str) -> tuple[Outcome, list[str]]:
    """The outcome of the program, and the lines of its stderr."""
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
        try:
            out, err = process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Outcome(ended="hangs", stdout=f"{out}{err}"), []
    return Outcome(stdout=out or "", ended=f"exit status {process.returncode}"), err.splitlines()


def _tried(
    script: str, environ: Mapping[str, str] | None = None, *, push_to: Answer | None = None, stdout: Any = None
) -> Trial:
    """Run the program plain and instrumented. With `push_to`, metrics and spans go to a collector that does that."""
    lost, leaked, blocked = 0, [], []
    output = subprocess.PIPE if stdout is None else stdout
    plain, noise_of_plain = _ran(script, watched=False, stdout=output)
    leaked += [f"of the plain run: {line}" for line in noise_of_plain]
    for _ in range(_RUNS):
        with answering(push_to, Strikes()) if push_to is not None else nullcontext(0) as port:
            pushing = {**_PUSHING, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:s3cret-password@127.0.0.1:{port}"}
            settings = {**(pushing if push_to is not None else {}), **(environ or {})}
            watched, noise = _ran(script, watched=True, stdout=output, **settings)
        counts = [found for line in noise if (found := _TOLD.fullmatch(line))]
        lost += sum(int(found[1]) for found in counts)
        blocked += [float(found[2]) for found in counts]
        if not counts and "work(" in script:
            leaked.append("the program did not come to its count")
        leaked += _beyond_the_log([line for line in noise if not _TOLD.fullmatch(line)])
        if watched != plain:
            break
    return Trial(_RUNS, plain, watched, lost, leaked, max(blocked, default=None))


def _beyond_the_log(noise: list[str]) -> list[str]:
    """What is on stderr besides one record for each signal that is not pushed."""
    once = [line for line in noise if line.startswith(_LOGGED)]
    leaked = [line for line in noise if line not in once or once.count(line) > 1]
    return leaked + [f"secret in: {line}" for line in noise if any(secret in line for secret in SECRETS)]


_PUSHING = {
    "OTEL_METRICS_EXPORTER": "prometheus,otlp",
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_METRIC_EXPORT_INTERVAL": "50",
    "OTEL_BSP_SCHEDULE_DELAY": "50",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cret-header",
}


def _black_hole(_client: Any) -> None:
    time.sleep(_LIMIT_S)


def _take(client: Any) -> None:
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
import urllib.request, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for forks of processes with threads
for number in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        program = program or made()
        handle = watch(program.orchestrator)
        asyncio.run(work(program, handle))
        if handle is not None:
            page = urllib.request.urlopen(handle.metrics_url, timeout=5).read()
            if b"amptalk_agent_messages_received_total{" not in page:
                say("the child has no page of its own")
        if handle is not None and number == 0:
            handle.shutdown(1.0)
        sys.exit(number)
    children.append(child)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
if PRELOADED and handle is not None:
    handle.shutdown(1.0)
"""


@fault("fork, then instrument", "two children of a gunicorn-style parent instrument themselves", own_process=True)
def fork_then_instrument() -> Trial:
    return _tried("PRELOADED = False" + _FORK_AFTER, push_to=_take)


@fault(
    "fork of a preloaded program",
    "the parent is instrumented and pushes; two children are forked, instrument again, work, and end",
    own_process=True,
)
def fork_preloaded() -> Trial:
    return _tried("PRELOADED = True" + _FORK_AFTER, push_to=_take)


@fault(
    "fork while everybody is at work",
    "20 forks in the middle of scrapes and pushes; each child registers an agent and ends",
    own_process=True,
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
    return _tried(script, push_to=_take)


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


@fault("`SIGTERM` in the middle of an export", "the program has no handler for it", own_process=True)
def sigterm() -> Trial:
    return _tried(_AT_WORK + _SIGNALLED + "asyncio.run(main())", push_to=_black_hole)


@fault(
    "`SIGTERM` that the program handles", "its handler stops the loop; a black hole keeps the exports", own_process=True
)
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
    return _tried(_AT_WORK + script, push_to=_black_hole)


@fault("Ctrl-C", "`SIGINT` in the middle of an export ends `asyncio.run` with `KeyboardInterrupt`", own_process=True)
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
    return _tried(_AT_WORK + script, push_to=_black_hole)


@fault("the interpreter ends while exporting", "no `shutdown`; a black hole keeps the exports", own_process=True)
def interpreter_ends() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
say("over")
"""
    return _tried(_AT_WORK + script, push_to=_black_hole)


@fault("`os._exit` while exporting", "the process ends without any clean-up", own_process=True)
def exits_at_once() -> Trial:
    script = """
async def main():
    await work(program, handle)
asyncio.run(main())
say("over")
os._exit(4)
"""
    return _tried(_AT_WORK + script, push_to=_black_hole)


@fault("an uncaught exception while exporting", "the program ends with a traceback of its own", own_process=True)
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
    return _tried(_AT_WORK + script, push_to=_black_hole)


# -- the rest ------------------------------------------------------------------------------------------


@fault(
    "the disk is full", "the `console` exporters write to a stdout that takes nothing (`/dev/full`)", own_process=True
)
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
    environ = {
        "OTEL_METRICS_EXPORTER": "console",
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRIC_EXPORT_INTERVAL": "50",
    }
    with Path("/dev/full").open("w") as full:
        return _tried(_AT_WORK + script, environ, stdout=full)


_SHUT_DOWN = """
async def main():
    await work(program, handle)
asyncio.run(main())
if handle is not None:
    began = time.monotonic()
    handle.shutdown(timeout_s=1.0)
    took_s = time.monotonic() - began
    if took_s > 1.5:
        say("shutdown took", took_s)
say("over")
"""


@fault(
    "shutdown into a black hole",
    "`shutdown(timeout_s=1.0)`, which may take 1.5 s, while the collector never answers",
    own_process=True,
)
def shutdown_silent() -> Trial:
    return _tried(_AT_WORK + _SHUT_DOWN, push_to=_black_hole)


@fault("gRPC to a black hole", "the same, with both exporters using gRPC", own_process=True)
def grpc_silent() -> Trial:
    return _tried(_AT_WORK + _SHUT_DOWN, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, push_to=_black_hole)


@fault("gRPC to nobody", "both exporters use gRPC; nobody listens at the address", own_process=True)
def grpc_down() -> Trial:
    environ = {
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "50",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:s3cret-password@127.0.0.1:9",
    }
    return _tried(_AT_WORK + _SHUT_DOWN, environ)
