"""The machine and the process: psutil's readings, made when somebody asks and safe for several readers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import psutil

from amptalk_otel._forks import after_fork_of, lock_of

_MIN_WINDOW_S = 1.0
_FIRST_WINDOW_S = 0.1
_LONGEST_BEGIN_S = 0.02
_PATIENCE_S = 1.0


class CpuWindow:
    """Utilisation since the last look, as a fraction of all the CPU time there was.

    `psutil.cpu_percent(None)` measures since anybody's last call, so two readers spoil each other's
    window. Here the readers share one: a value covers at least a second, and whoever asks sooner gets
    the value that was found last.
    """

    def __init__(self, sample: Callable[[], tuple[float, float]]) -> None:
        """`sample` returns (busy, available) CPU seconds, both only growing."""
        self._sample = sample
        self._lock = lock_of(self, threading.Lock)
        self._value: float | None = None
        self._looked_at = time.monotonic()
        self._busy = self._available = 0.0
        self._begun = False
        # Bounded: whoever makes us may be the event loop, and a read of a sick system may hang.
        beginning = threading.Thread(target=self._begin_early, name="amptalk-otel-system", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: the first who reads begins
            beginning.start()
            beginning.join(_LONGEST_BEGIN_S)

    def read(self) -> float | None:
        """Between 0 and 1; None in the first tenth of a second. The value found last while another reader hangs."""
        lock = self._lock
        if not lock.acquire(timeout=_PATIENCE_S):
            return self._value
        try:
            return self._read()
        finally:
            lock.release()

    def forget(self) -> None:
        """What is sampled begins anew, and so does the window."""
        self._value, self._begun = None, False
        self._looked_at = time.monotonic()

    def _read(self) -> float | None:
        window_s = time.monotonic() - self._looked_at
        if window_s < (_FIRST_WINDOW_S if self._value is None else _MIN_WINDOW_S):
            return self._value
        if not self._begun:
            self._begin()
            return None
        busy, available = self._sample()
        if available > self._available:
            value = (busy - self._busy) / (available - self._available)
            self._value = min(1.0, max(0.0, value))
        self._looked_at, self._busy, self._available = time.monotonic(), busy, available
        return self._value

    def _begin_early(self) -> None:
        with self._lock, contextlib.suppress(Exception):  # what fails now fails again, and is told, when somebody reads
            self._begin()

    def _begin(self) -> None:
        self._busy, self._available = self._sample()
        self._looked_at = time.monotonic()
        self._begun = True


class System:
    """What psutil tells about this machine and process. Each method is one read of psutil's, and no I/O besides."""

    def __init__(self) -> None:
        self._cpus = _cpus_available()
        self._process: psutil.Process | None = None  # made by whoever reads first: it may fail
        self._anchor_s: float | None = None
        self._system_cpu = CpuWindow(_system_cpu_times)
        self._process_cpu = CpuWindow(self._process_cpu_times)
        after_fork_of(self, System._forget_process)

    def _forget_process(self) -> None:
        """A forked child is another process, with an age and CPU time of its own."""
        self._process = self._anchor_s = None
        self._process_cpu.forget()

    def system_cpu_utilization(self) -> float | None:
        return self._system_cpu.read()

    def process_cpu_utilization(self) -> float | None:
        return self._process_cpu.read()

    def system_memory_utilization(self) -> float:
        memory = psutil.virtual_memory()
        return float((memory.total - memory.available) / memory.total)

    def system_memory_available(self) -> int:
        return int(psutil.virtual_memory().available)

    def process_memory_usage(self) -> int:
        return int(self._own_process().memory_info().rss)

    def process_memory_virtual(self) -> int:
        return int(self._own_process().memory_info().vms)

    def process_uptime(self) -> float:
        """Seconds since the process was created: wall time once, monotonic from then on."""
        if self._anchor_s is None:
            self._anchor_s = time.time() - self._own_process().create_time() - time.monotonic()
        return self._anchor_s + time.monotonic()

    def _own_process(self) -> psutil.Process:
        process = self._process
        if process is None:
            process = self._process = psutil.Process()
        return process

    def _process_cpu_times(self) -> tuple[float, float]:
        times = self._own_process().cpu_times()
        return times.user + times.system, time.monotonic() * self._cpus


def _system_cpu_times() -> tuple[float, float]:
    times = psutil.cpu_times()._asdict()
    # Linux counts guest time in user time already (https://www.kernel.org/doc/html/latest/filesystems/proc.html).
    total = sum(seconds for mode, seconds in times.items() if mode not in ("guest", "guest_nice"))
    return total - times.get("idle", 0.0) - times.get("iowait", 0.0), total


def _cpus_available() -> int:
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):  # refused, as some sandboxes do
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
