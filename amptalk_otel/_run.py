"""An unedited program, run with its orchestrators instrumented by a pipeline of ours."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from amptalk_otel._discovery import Discovery
from amptalk_otel._instrumentation import instrument_orchestrator
from amptalk_otel.config import Config


def run_program(command: Sequence[str], config: Config) -> int:
    """Run `app.py [arguments]` or `-m module [arguments]` as Python would; returns its exit code.

    The program's exceptions pass unchanged. Metrics are served and pushed until the process ends; the
    last values are pushed at its exit.
    """
    discovery = Discovery(lambda orchestrator: instrument_orchestrator(orchestrator, config=config), config.modules)
    try:
        if command[0] == "-m":
            _run_module(command[1:])
        else:
            _run_file(command)
    finally:
        discovery.stop()
    return 0


def _run_file(command: Sequence[str]) -> None:
    sys.argv[:] = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    runpy.run_path(command[0], run_name="__main__")


def _run_module(command: Sequence[str]) -> None:
    sys.argv[:] = command
    sys.path[0] = str(Path.cwd())
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
