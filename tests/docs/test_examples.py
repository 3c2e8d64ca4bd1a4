"""The examples run as written, and what they print is right."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import blocks_of
from tests.integration.servers import find_server, run_program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def run(name: str, *arguments: str) -> str:
    """What an example prints; nothing goes wrong."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {"OTEL_EXPORTER_PROMETHEUS_PORT": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_metrics_add_up() -> None:
    first, *_tables, transcriber, summarizer = run("performance_monitoring_demo.py", "1").splitlines()
    assert re.fullmatch(r"metrics: http://localhost:\d+/metrics", first)
    counts = {
        name: int(number) for name, number in re.findall(r"(queue|received|processed|failed) +(\d+)", transcriber)
    }
    cancelled = counts["received"] - counts["processed"] - counts["failed"] - counts["queue"]
    assert counts["received"] > 10
    assert cancelled in (0, 1)  # the one in work when the orchestrator stopped
    assert summarizer.startswith("Summarizer")


def test_traces_are_those_that_the_documentation_shows() -> None:
    (shown,) = (
        block.text.removeprefix("$ python examples/tracing.py\n")
        for block in blocks_of(ROOT / "docs" / "tracing.md")
        if block.text.startswith("$ python examples/tracing.py\n")
    )
    assert run("tracing.py") == shown


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio itself ends all tasks there at Ctrl-C, in no order")
def test_the_program_of_the_quick_start_takes_ctrl_c(tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs" / "quickstart.md") if block.title == "app.py")
    (tmp_path / "app.py").write_text(block.text, encoding="utf-8")
    environment = {**os.environ, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "app.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("http://localhost:")
        time.sleep(0.2)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    assert (program.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_each_is_short(program: Path) -> None:
    assert len(program.read_text().splitlines()) < 100


def test_the_collector_takes_its_configuration() -> None:
    path = EXAMPLES / "collector-traces.yaml"
    assert "traces" in yaml.safe_load(path.read_text())["service"]["pipelines"]
    if find_server("otelcol") is not None:
        assert run_program("otelcol", "validate", "--config", path)[0] == 0
