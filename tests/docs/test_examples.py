"""The example and the README's code run as written, and what they say is so."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "performance_monitoring_demo.py"
README_BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def test_the_example_runs_and_its_messages_add_up() -> None:
    environment = {**os.environ, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), "1"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    first, *_tables, transcriber, summarizer = run.stdout.splitlines()
    assert re.fullmatch(r"metrics: http://localhost:\d+/metrics", first)
    counts = {name: int(number) for name, number in re.findall(r"(queue|received|processed|failed) +(\d+)", transcriber)}
    cancelled = counts["received"] - counts["processed"] - counts["failed"] - counts["queue"]
    assert counts["received"] > 10
    assert cancelled in (0, 1)  # the one in work when the orchestrator stopped
    assert summarizer.startswith("Summarizer")


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 100


def test_the_readme_runs_as_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "0")
    assert len(README_BLOCKS) == 4
    begin, end, read, configure = README_BLOCKS

    async def program() -> None:
        orchestrator = Orchestrator(name="readme")
        orchestrator.register_agent(SimpleAgent(agent_id="reader", name="Reader"))
        scope = {"orchestrator": orchestrator}
        exec(compile(begin, "README.md", "exec"), scope)
        await orchestrator.start()
        await orchestrator.send_message_to_agent(
            Message(message_type=MessageType.NLP_REQUEST, source_agent_id="you", target_agent_id="reader", payload={})
        )
        await asyncio.sleep(0.05)
        for block in (read, configure, end):
            exec(compile(block, "README.md", "exec"), scope)
        assert getattr(scope["config"], "prometheus_port", None) == 0
        await orchestrator.stop()

    asyncio.run(program())
    url, agent = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"http://localhost:\d+/metrics", url)
    assert re.fullmatch(r"Reader 0 1 0\.0\d+", agent)
