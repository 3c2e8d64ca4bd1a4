"""One unedited program, instrumented in three ways: the same page name by name and value by value."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

RUNTIME = "from amptalk_otel.demo.runtime import"
FRAMEWORK = {  # as an application vendors it: under a prefix of its own
    "acme/vendor/src/core/framework/agent.py": f"{RUNTIME} Agent, SimpleAgent\n",
    "acme/vendor/src/core/framework/message.py": f"{RUNTIME} Message, MessageType\n",
    "acme/vendor/src/core/framework/orchestrator.py": f"{RUNTIME} Orchestrator\n",
}

# Ends by printing what it has seen itself, and the page (or what it got instead).
PROGRAM = '''
import asyncio, json, os, sys, urllib.request

from acme.vendor.src.core.framework.agent import SimpleAgent
from acme.vendor.src.core.framework.message import Message, MessageType
from acme.vendor.src.core.framework.orchestrator import Orchestrator


class Meeting(Orchestrator):
    """Has its name from its own constructor."""

    def __init__(self):
        super().__init__()
        self.name = "meeting"


TYPES = (MessageType.AUDIO_INPUT, MessageType.NLP_REQUEST, MessageType.SUMMARY_REQUEST)
SEEN = []


async def handle(message):
    index = message.payload["index"]
    SEEN.append(index)
    if index % 7 == 0:
        raise ValueError(index)
    if index % 10 == 0:
        await asyncio.sleep(0)
        reply = message.create_reply(MessageType.SUMMARY_REQUEST, {"index": 1})
        reply.source_agent_id, reply.target_agent_id = message.target_agent_id, "nobody" if index % 20 else "writer"
        return [reply]


def make_agent(agent_id):
    agent = SimpleAgent(agent_id=agent_id, name=agent_id.title())
    for kind in TYPES:
        agent.register_message_handler(kind, handle)
    return agent


async def main():
    orchestrator = Meeting()
    for agent_id in ("listener", "writer"):
        orchestrator.register_agent(make_agent(agent_id))
    #EXPLICIT
    late = make_agent("late")
    late.state_persistence_enabled = True
    orchestrator.register_agent(late)
    orchestrator.connect_agents("listener", "writer")
    orchestrator.connect_agents("late", "writer")
    await orchestrator.start()
    sent = []
    for index in range(300):
        target = ("listener", "writer", "late", "absent")[index % 50 % 4]
        message = Message(message_type=TYPES[index % 3], source_agent_id="you", target_agent_id=target,
                          payload={"index": index})
        sent.append(await orchestrator.send_message_to_agent(message))
    await orchestrator.broadcast_message(
        Message(message_type=TYPES[0], source_agent_id="you", payload={"index": 1}))
    for agent in orchestrator.agents.values():
        await asyncio.wait_for(agent.input_queue.join(), 20)
    await asyncio.sleep(0.05)
    #END
    url = "http://localhost:" + os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] + "/metrics"
    try:
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    except OSError as error:
        page = "none: " + str(error)
    await orchestrator.stop()
    result = {"seen": sorted(SEEN), "sent": sent, "page": page, "arguments": sys.argv[1:]}
    print(json.dumps(result))


asyncio.run(main())
'''
EXPLICIT = "from amptalk_otel import instrument_orchestrator; handle_ = instrument_orchestrator(orchestrator)"
SHUTDOWN = "assert await asyncio.to_thread(handle_.shutdown) is True"
VARYING = ("uptime", "agent_time", "oldest_age", "size_bytes_sum")  # and machine, process, sums and time buckets


@dataclass(frozen=True)
class Run:
    seen: list[int]
    sent: list[bool]
    page: str
    stderr: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, source in FRAMEWORK.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


@pytest.fixture
def launcher() -> list[str]:
    """OpenTelemetry's launcher; it sets up no provider unless a distribution is installed."""
    if not list(entry_points(group="opentelemetry_configurator")):
        reason = "opentelemetry-instrument sets up nothing without a distribution: pip install opentelemetry-distro"
        if os.environ.get("CI", "").strip().lower() in ("1", "true", "yes"):
            pytest.fail(reason)
        pytest.skip(reason)
    return [str(BIN / "opentelemetry-instrument"), sys.executable]


def run(folder: Path, command: list[str], *, explicit: str = "", end: str = "") -> Run:
    program = folder / "app.py"
    program.write_text(PROGRAM.replace("#EXPLICIT", explicit).replace("#END", end))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AMPTALK_OTEL_"))}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port()),
    }
    done = subprocess.run(
        [*command, "app.py", "--flag"], cwd=folder, env=environment, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["arguments"] == ["--flag"]
    return Run(result["seen"], result["sent"], result["page"], done.stderr)


def foreign_names() -> set[str]:
    """What prometheus_client itself puts on the page of its global registry."""
    return {family.name for family in REGISTRY.collect()} | {"target", "target_info"}


def is_of_a_second(name: str) -> bool:
    """CPU readings are there from the second reading on, at least a second after the first."""
    return "cpu_utilization" in name


def families(page: str) -> dict[str, tuple[str, str]]:
    """Type and description of each metric of ours."""
    foreign = foreign_names()
    return {
        family.name: (family.type, family.documentation)
        for family in text_string_to_metric_families(page)
        if family.name not in foreign and not is_of_a_second(family.name)
    }


def values(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every value that is the same in each run, by name and labels."""
    found = {}
    for family in text_string_to_metric_families(page):
        if not family.name.startswith("amptalk_"):
            continue
        for sample in family.samples:
            is_time = family.name.endswith("_seconds") and not sample.name.endswith("_count")
            if is_time or any(part in sample.name for part in VARYING):
                continue
            labels = {name: value for name, value in sample.labels.items() if not name.startswith("otel_scope_")}
            key = sample.name, frozenset(labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def total(page: str, name: str, **labels: str) -> float:
    return sum(
        value for (sample, found), value in values(page).items() if sample == name and set(labels.items()) <= set(found)
    )


def uninstrumented(folder: Path) -> Run:
    return run(folder, [sys.executable])


def test_three_ways_to_the_same_page(folder: Path, launcher: list[str]) -> None:
    plain = uninstrumented(folder)
    assert plain.page.startswith("none: ")
    runs = {
        "explicit": run(folder, [sys.executable], explicit=EXPLICIT),
        "launcher": run(folder, launcher),
        "run": run(folder, [str(BIN / "amptalk-otel"), "run", "--quiet"]),
        "module": run(folder, [sys.executable, "-m", "amptalk_otel", "--quiet"]),
    }
    expected = values(runs["explicit"].page)
    assert len(expected) > 60
    assert total(runs["explicit"].page, "amptalk_agent_messages_processed_total") == sum(
        index % 7 != 0 for index in plain.seen
    )
    assert total(runs["explicit"].page, "amptalk_agent_messages_failed_total", error_type="ValueError") == sum(
        index % 7 == 0 for index in plain.seen
    )
    assert total(runs["explicit"].page, "amptalk_orchestrator_messages_undeliverable_total") == plain.sent.count(False)
    assert total(runs["explicit"].page, "amptalk_agent_running", orchestrator_name="meeting") == 3
    names = families(runs["explicit"].page)
    assert {"process_uptime_seconds", "system_memory_linux_available_bytes", "amptalk_state_items"} <= set(names)
    for way, one in runs.items():
        assert (one.seen, one.sent) == (plain.seen, plain.sent), way
        assert families(one.page) == names, way
        assert values(one.page) == expected, way
        assert one.stderr == plain.stderr, way


@pytest.mark.parametrize("way", ["launcher", "run"])
def test_a_launcher_and_an_explicit_call_count_nothing_twice(way: str, folder: Path, launcher: list[str]) -> None:
    command = launcher if way == "launcher" else [str(BIN / "amptalk-otel"), "run", "--quiet"]
    explicit = run(folder, [sys.executable], explicit=EXPLICIT)
    both = run(folder, command, explicit=EXPLICIT)
    assert values(both.page) == values(explicit.page)
    assert families(both.page) == families(explicit.page)
    assert (both.seen, both.sent, both.stderr) == (explicit.seen, explicit.sent, explicit.stderr)


@pytest.mark.parametrize("way", ["launcher", "run"])
@pytest.mark.parametrize("when", ["at the start", "at the end"])
def test_shutting_the_explicit_handle_down_does_not_break_the_program(
    when: str, way: str, folder: Path, launcher: list[str]
) -> None:
    command = launcher if way == "launcher" else [str(BIN / "amptalk-otel"), "run", "--quiet"]
    plain = uninstrumented(folder)
    at_start = when == "at the start"
    ended = run(
        folder, command, explicit=f"{EXPLICIT}; {SHUTDOWN}" if at_start else EXPLICIT, end="" if at_start else SHUTDOWN
    )
    assert (ended.seen, ended.sent, ended.stderr) == (plain.seen, plain.sent, plain.stderr)
    # The launcher's page is not ours to end; what was on it of ours is gone.
    assert ended.page.startswith("none: ") is (way == "run")
    assert values(ended.page if way == "launcher" else "") == {}


def test_the_launcher_alone_tells_nothing_about_a_program_without_the_framework(
    folder: Path, launcher: list[str]
) -> None:
    (folder / "app.py").write_text("import sys\nprint(sys.argv)\nsys.exit(3)\n")
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "OTEL_METRICS_EXPORTER": "none"}
    environment |= {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    done = subprocess.run(
        [*launcher, "app.py", "x"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "['app.py', 'x']\n", "")
