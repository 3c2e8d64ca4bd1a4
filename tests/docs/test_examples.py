"""The example runs as written, and its numbers add up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "performance_monitoring_demo.py"


def test_the_example_runs_and_its_messages_add_up() -> None:
    environment = {**os.environ, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), "1"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    first, *_tables, transcriber, summarizer = run.stdout.splitlines()
    assert re.fullmatch(r"metrics: http://localhost:\d+/metrics", first)
    counts = {
        name: int(number) for name, number in re.findall(r"(queue|received|processed|failed) +(\d+)", transcriber)
    }
    cancelled = counts["received"] - counts["processed"] - counts["failed"] - counts["queue"]
    assert counts["received"] > 10
    assert cancelled in (0, 1)  # the one in work when the orchestrator stopped
    assert summarizer.startswith("Summarizer")


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 100
