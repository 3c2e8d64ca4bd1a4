"""Fresh processes that do one thing and answer questions about it, in lines of JSON.

A module that is measured in a process of its own has a class `Worker`. Its `prepare` runs first, in an event loop; its
other methods are what the benchmark can ask:

    with Child("scrape", peer="ours", agents=1000) as worker:
        worker.ask("touch")
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).parents[2]
_SETTINGS = ("OTEL_", "AMPTALK_")
_READY_S = 180.0
_END_S = 20.0


class Child:
    """The side of the benchmark. Its environment has none of OpenTelemetry's variables."""

    def __init__(self, module: str, **arguments: Any) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.workers", module, json.dumps(arguments)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._answer(_READY_S)
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, *, timeout_s: float = _READY_S, **arguments: Any) -> Any:
        """Call a method of the worker. Raises RuntimeError where that fails, or takes longer than `timeout_s`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": what, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer(timeout_s)["result"]

    def _answer(self, timeout_s: float) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        deadline = threading.Timer(timeout_s, self._process.kill)
        deadline.start()
        try:
            line = self._process.stdout.readline()
        finally:
            deadline.cancel()
        answer: Mapping[str, Any] = json.loads(line) if line else {"error": f"it ended, or took over {timeout_s:.0f} s"}
        if "error" in answer:
            raise RuntimeError(f"a worker failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process: by closing its input, else by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, without settings that would change what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return {**kept, "no_proxy": "*", **changes}


def forget_settings() -> None:
    """The same for this process itself."""
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]


# -- the side of the worker ----------------------------------------------------------------------------


def main() -> None:
    """Prepare the worker, then answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    module, arguments = sys.argv[1], json.loads(sys.argv[2])
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def answer(name: str, given: Mapping[str, Any], worker: Any) -> None:
        try:
            outcome = getattr(worker, name)(**given)
            result = loop.run_until_complete(outcome) if inspect.iscoroutine(outcome) else outcome
        except Exception:
            answers.write(json.dumps({"error": traceback.format_exc()}) + "\n")
            raise
        answers.write(json.dumps({"result": result}) + "\n")

    worker = importlib.import_module(f"tests.benchmarks.{module}").Worker(**arguments)
    answer("prepare", {}, worker)
    for line in sys.stdin:
        request = json.loads(line)
        answer(request["call"], request["arguments"], worker)
    os._exit(0)  # everything has been told; ending 10,000 agents one by one would only take time


def cpu_s() -> float:
    """CPU time of this process so far."""
    return time.process_time()


if __name__ == "__main__":
    main()
