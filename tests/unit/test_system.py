"""psutil's readings: true, shared by several readers, and each failing for itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from amptalk_otel import _system, instrument_orchestrator
from amptalk_otel._bridge import bridge_for
from amptalk_otel._catalogue import CATALOGUE, Owner
from amptalk_otel._system import CpuWindow, System


class Machine:
    """CPU time and a monotonic clock that move when they are told to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.busy_s = 50.0
        self.available_s = 400.0
        self.samples = 0

    def monotonic(self) -> float:
        return self.now_s

    def sample(self) -> tuple[float, float]:
        self.samples += 1
        return self.busy_s, self.available_s

    def run(self, seconds: float, *, busy_s: float, cpus: int = 4) -> None:
        self.now_s += seconds
        self.busy_s += busy_s
        self.available_s += seconds * cpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(_system, "time", machine)
    return machine


# -- the window ----------------------------------------------------------------------------------------


def test_there_is_no_value_in_the_first_tenth_of_a_second(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    machine.run(0.09, busy_s=0.1)
    assert window.read() is None
    machine.run(0.01, busy_s=0.1)
    assert window.read() == pytest.approx(0.2 / (0.1 * 4))


def test_a_value_is_the_share_of_the_window_and_not_of_all_time(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    machine.run(2.0, busy_s=2.0)
    assert window.read() == pytest.approx(0.25)
    machine.run(10.0, busy_s=30.0)
    assert window.read() == pytest.approx(0.75)


def test_who_asks_within_a_second_gets_the_value_found_last(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    machine.run(5.0, busy_s=10.0)
    first = window.read()
    samples = machine.samples
    machine.run(0.99, busy_s=3.9)
    assert first == pytest.approx(0.5)
    assert (window.read(), machine.samples) == (first, samples)
    machine.run(0.02, busy_s=0.1)
    assert window.read() == pytest.approx(4.0 / (1.01 * 4))


def test_two_readers_that_scrape_right_after_each_other_see_the_same(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    seen: list[tuple[float | None, float | None]] = []
    for busy_s in (15.0, 30.0, 45.0):
        machine.run(15.0, busy_s=busy_s)
        one = window.read()
        machine.run(0.01, busy_s=0.04)
        seen.append((one, window.read()))
    assert [one for one, _ in seen] == pytest.approx([0.25, 0.5, 0.75], abs=0.001)
    assert [one == other for one, other in seen] == [True, True, True]


@pytest.mark.parametrize(("busy_s", "value"), [(-5.0, 0.0), (100.0, 1.0)])
def test_values_stay_between_0_and_1(machine: Machine, busy_s: float, value: float) -> None:
    window = CpuWindow(machine.sample)
    machine.run(2.0, busy_s=busy_s)
    assert window.read() == value


def test_a_clock_of_cpu_time_that_stands_leaves_the_last_value(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    machine.run(2.0, busy_s=2.0)
    window.read()
    machine.run(2.0, busy_s=0.0, cpus=0)
    assert window.read() == pytest.approx(0.25)


def test_a_machine_without_cpu_time_has_no_value(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    machine.run(2.0, busy_s=0.0, cpus=0)
    assert window.read() is None


def test_a_first_sample_that_fails_is_told_to_whoever_reads_and_the_window_begins_later(machine: Machine) -> None:
    broken = True

    def sample() -> tuple[float, float]:
        if broken:
            raise psutil.AccessDenied
        return machine.sample()

    window = CpuWindow(sample)
    machine.run(2.0, busy_s=2.0)
    with pytest.raises(psutil.AccessDenied):
        window.read()
    broken = False
    machine.run(2.0, busy_s=2.0)
    assert window.read() is None
    machine.run(2.0, busy_s=6.0)
    assert window.read() == pytest.approx(0.75)


def test_a_sample_that_fails_later_leaves_the_window_open(machine: Machine) -> None:
    broken = False

    def sample() -> tuple[float, float]:
        if broken:
            raise psutil.AccessDenied
        return machine.sample()

    window = CpuWindow(sample)
    broken = True
    machine.run(2.0, busy_s=8.0)
    with pytest.raises(psutil.AccessDenied):
        window.read()
    broken = False
    machine.run(2.0, busy_s=0.0)
    assert window.read() == pytest.approx(0.5)


def test_readers_in_several_threads_share_one_window(machine: Machine) -> None:
    window = CpuWindow(machine.sample)
    machine.run(2.0, busy_s=4.0)
    together = threading.Barrier(8, timeout=10)
    seen: list[float | None] = []

    def read() -> None:
        together.wait()
        seen.append(window.read())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (seen, machine.samples) == ([0.5] * 8, 2)


# -- this machine --------------------------------------------------------------------------------------


def test_memory_is_this_machines_and_this_processs() -> None:
    system = System()
    memory = psutil.virtual_memory()
    mine = psutil.Process().memory_info()
    assert 0.0 < system.system_memory_utilization() < 1.0
    assert system.system_memory_available() == pytest.approx(memory.available, rel=0.5)
    assert system.system_memory_available() < memory.total
    assert system.process_memory_usage() == pytest.approx(mine.rss, rel=0.2)
    assert system.process_memory_virtual() == pytest.approx(mine.vms, rel=0.2)
    assert system.process_memory_usage() < system.process_memory_virtual()


def test_memory_utilization_is_what_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 1000
        available = 250

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert System().system_memory_utilization() == 0.75
    assert System().system_memory_available() == 250


def test_uptime_counts_from_the_creation_of_the_process_and_does_not_follow_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = System()
    expected = time.time() - psutil.Process().create_time()
    assert system.process_uptime() == pytest.approx(expected, abs=5.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert system.process_uptime() == pytest.approx(expected, abs=5.0)


def test_cpu_times_leave_guest_time_out_which_user_time_has_already(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        def _asdict(self) -> dict[str, float]:
            return {"user": 30.0, "system": 10.0, "idle": 50.0, "iowait": 10.0, "guest": 5.0, "guest_nice": 1.0}

    monkeypatch.setattr(psutil, "cpu_times", Times)
    assert _system._system_cpu_times() == (40.0, 100.0)


def test_process_cpu_is_a_share_of_the_cpus_that_the_process_may_use(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Times:
        user = 0.0
        system = 0.0

    monkeypatch.setattr(_system, "_cpus_available", lambda: 8)
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda _process: Times)
    system = System()
    Times.user, Times.system = 3.0, 1.0
    machine.now_s += 2.0
    assert system.process_cpu_utilization() == pytest.approx(4.0 / (2.0 * 8))


def test_the_cpus_available_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 3, 5}, raising=False)
    assert _system._cpus_available() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _system._cpus_available() == 1


@pytest.mark.parametrize("refusal", [PermissionError, OSError])
def test_where_the_affinity_is_not_told_all_cpus_count(refusal: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_process: int) -> Any:
        raise refusal

    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert System()._cpus == 7


# -- failures ------------------------------------------------------------------------------------------

PROCESS_METRICS = [metric.name for metric in CATALOGUE if metric.owner is Owner.PROCESS]


class Orchestrator:
    """An orchestrator without agents."""

    def __init__(self) -> None:
        self.name = "test"
        self.agents: dict[str, object] = {}


def read_all() -> dict[str, float]:
    """What a reader finds of machine and process, two seconds after the start, by metric."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    orchestrator = Orchestrator()
    with instrument_orchestrator(orchestrator, meter_provider=provider):
        _rewind(bridge_for(provider))
        found: dict[str, float] = {}
        for _ in range(2):
            data = reader.get_metrics_data()
            assert data is not None
            for metric in data.resource_metrics[0].scope_metrics[0].metrics:
                if metric.name.startswith(("system.", "process.")):
                    (point,) = metric.data.data_points
                    assert isinstance(point, NumberDataPoint)
                    found[metric.name] = float(point.value)
    provider.shutdown()
    return found


def _rewind(bridge: Any) -> None:
    """Let the CPU windows be two seconds old already: psutil's times move in steps of 10 ms."""
    system: Any = bridge._system
    for window in (system._system_cpu, system._process_cpu):
        window._looked_at -= 2.0
        window._available -= 2.0
        window._busy -= 1.0


def test_all_rows_are_there() -> None:
    found = read_all()
    assert sorted(found) == sorted(PROCESS_METRICS)
    assert 0.0 <= found["system.cpu.utilization"] <= 1.0
    assert 0.0 <= found["process.cpu.utilization"] <= 1.0
    assert 0.0 < found["process.uptime"] < 86_400.0 * 30


def _fail(*_arguments: object) -> Any:
    raise psutil.AccessDenied(pid=1, msg="s3cret")


@pytest.mark.parametrize(
    ("break_it", "missing"),
    [
        (lambda patch: patch.setattr(psutil, "cpu_times", _fail), ["system.cpu.utilization"]),
        (
            lambda patch: patch.setattr(psutil, "virtual_memory", _fail),
            ["system.memory.linux.available", "system.memory.utilization"],
        ),
        (lambda patch: patch.setattr(psutil.Process, "cpu_times", _fail), ["process.cpu.utilization"]),
        (
            lambda patch: patch.setattr(psutil.Process, "memory_info", _fail),
            ["process.memory.usage", "process.memory.virtual"],
        ),
        (lambda patch: patch.setattr(psutil.Process, "create_time", _fail), ["process.uptime"]),
        (
            lambda patch: patch.setattr(psutil, "Process", _fail),
            ["process.cpu.utilization", "process.memory.usage", "process.memory.virtual", "process.uptime"],
        ),
    ],
    ids=["cpu_times", "virtual_memory", "process cpu_times", "memory_info", "create_time", "Process"],
)
def test_what_psutil_can_not_read_costs_its_rows_and_one_log_record_each(
    break_it: Callable[[pytest.MonkeyPatch], None],
    missing: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lenient_guard: None,
) -> None:
    break_it(monkeypatch)
    found = read_all()
    assert sorted(set(PROCESS_METRICS) - set(found)) == missing
    assert sorted(message.split(" was skipped (AccessDenied at ")[0] for message in caplog.messages) == [
        f"reading {name}" for name in missing
    ]
    assert "s3cret" not in caplog.text


def test_who_reads_while_another_reader_hangs_gets_the_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_system, "_PATIENCE_S", 0.01)
    hangs, go_on, goes_on = threading.Event(), threading.Event(), threading.Event()
    was_told: list[bool] = []

    def sample() -> tuple[float, float]:
        hangs.set()
        was_told.append(go_on.wait(20))
        goes_on.set()
        return 1.0, 2.0

    window = CpuWindow(sample)  # which gives up waiting for the first sample
    assert hangs.wait(20)
    reader = threading.Thread(target=window.read, daemon=True)
    reader.start()
    assert window.read() is None
    go_on.set()
    reader.join(20)
    assert not reader.is_alive()
    assert goes_on.wait(20)
    assert was_told[0], "the read waited for the one that hangs"
