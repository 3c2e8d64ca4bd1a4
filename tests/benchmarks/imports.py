"""What importing costs, and the first instrumentation; and what is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

from tests.benchmarks.harness import exactly, progress, ratio, summarize, turns
from tests.benchmarks.report import Result, Table, spread
from tests.benchmarks.workers import ROOT, environment

SDK, OURS = "import opentelemetry.sdk.metrics", "import amptalk_otel"
FIRST = "import, and the first instrument_orchestrator"
HEAVY = ("grpc", "rich", "google.protobuf", "opentelemetry.exporter.otlp", "requests")  # needed by none of these
WATCHED = (*HEAVY, "prometheus_client", "psutil", "wsgiref")
_TIMEOUT_S = 60.0
_PROGRAMS = {
    SDK: "import opentelemetry.sdk.metrics",
    OURS: "import amptalk_otel",
    FIRST: """
import amptalk_otel
from amptalk_otel.demo.runtime import Orchestrator
handle = amptalk_otel.instrument_orchestrator(Orchestrator(), config=amptalk_otel.Config(prometheus_port=0))
assert handle.metrics_url
""",
}
_MEASURE = """
import json, sys, time
program, watched = json.loads(sys.argv[1])
code = compile(program, "program", "exec")
wall, cpu = time.perf_counter(), time.process_time()
exec(code, {})
wall_ms, cpu_ms = (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3
loaded = [name for name in watched if name in sys.modules]
print(json.dumps({"wall_ms": wall_ms, "cpu_ms": cpu_ms, "loaded": loaded, "modules": len(sys.modules)}), flush=True)
import os; os._exit(0)
"""


def run(*, short: bool) -> Result:
    rounds = 3 if short else 15
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _PROGRAMS}
    with tempfile.TemporaryDirectory() as cache:
        for name in _PROGRAMS:
            _run(name, cache)  # compiles to bytecode, as installing does
        for number_of_round, order in enumerate(turns(tuple(_PROGRAMS), rounds)):
            for name in order:
                found[name].append(_run(name, cache))
            progress(f"round {number_of_round + 1} of {rounds}")
    wall = {name: [run["wall_ms"] for run in runs] for name, runs in found.items()}
    heavy = {module for name in (OURS, FIRST) for module in found[name][0]["loaded"] if module in HEAVY}
    ratios = {"imports.heavy": exactly(len(heavy)), "imports.ours_to_sdk": ratio(wall[OURS], wall[SDK])}
    rows = tuple(
        (
            f"`{name}`" if name != FIRST else name,
            spread(summarize(wall[name])),
            spread(summarize([run["cpu_ms"] for run in runs])),
            f"{runs[0]['modules']:,}",
            ", ".join(f"`{module}`" for module in runs[0]["loaded"]) or "none",
        )
        for name, runs in found.items()
    )
    head = ("", "wall, ms", "CPU, ms", "modules", "of those worth knowing")
    notes = (
        f"{rounds} fresh interpreters for each row, bytecode compiled beforehand.",
        "Worth knowing: " + ", ".join(f"`{module}`" for module in WATCHED) + ".",
    )
    return Result("imports", (Table(head, rows),), ratios, notes)


def _run(name: str, cache: str) -> dict[str, Any]:
    variables = environment(PYTHONPYCACHEPREFIX=cache)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, json.dumps([_PROGRAMS[name], WATCHED])],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome
