"""A forked child gives back what it has of its parent's, and the parent and its clients do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import amptalk_otel
from amptalk_otel import Config, Instrumentation, PerformanceMonitor, _system
from amptalk_otel._bridge import InstrumentsBridge
from amptalk_otel._custom import _Page
from amptalk_otel._file_protection import FileProtection
from amptalk_otel._forks import after_fork, lock_of
from amptalk_otel._per_agent import PerAgent
from amptalk_otel._pipeline import Pipeline, acquire, release
from amptalk_otel._producer import CatalogueProducer
from amptalk_otel._protection import OPEN
from amptalk_otel._server import MetricsServer
from amptalk_otel._system import System
from tests.certificates import Authority
from tests.faults.collectors import OK, answering, read_request
from tests.faults.trial import Strikes
from tests.unit.test_endpoint import Text
from tests.unit.test_pipeline import count
from tests.wire_http import TIMEOUT_S, connect, receive_reply

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

LOCKS = (type(threading.Lock()), type(threading.RLock()))
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


class Child:
    """A forked child that does one thing and then lives on until it is told to end."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._done, done = os.pipe()
        ended, self._end = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: this process has threads
            self._id = os.fork()
        if self._id:
            os.close(done)
            os.close(ended)
            return
        status = 1
        try:
            signal.alarm(20)
            for one in (self._done, self._end):
                os.close(one)
            act()
            os.write(done, b"1")
            os.read(ended, 1)
            status = 0
        finally:
            os._exit(status)

    def wait(self) -> None:
        """Until it has done its thing."""
        assert os.read(self._done, 1) == b"1"

    def end(self) -> int:
        os.close(self._end)
        os.close(self._done)
        return os.waitstatus_to_exitcode(os.waitpid(self._id, 0)[1])


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[Callable[[MetricsServer], socket.socket]]:
    """Connects, by TLS where the server speaks it."""
    authority = Authority(tmp_path)
    authority.server()
    (tmp_path / "web.yml").write_text(TLS, encoding="utf-8")
    with contextlib.ExitStack() as opened:

        def connected(server: MetricsServer) -> socket.socket:
            client = connect(server.port)
            if server.url.startswith("https"):
                client = authority.trust().wrap_socket(client, server_hostname="localhost")
            opened.enter_context(client)
            return client

        yield connected


@pytest.mark.parametrize("uses_tls", [False, True], ids=["plain", "TLS"])
def test_clients_stay_with_the_parent_and_the_child_has_none_of_them(
    client_of: Callable[[MetricsServer], socket.socket], tmp_path: Path, *, uses_tls: bool
) -> None:
    page = Text()
    protection = FileProtection(str(tmp_path / "web.yml"), None) if uses_tls else OPEN
    server = MetricsServer(page, "localhost", 0, protection=protection)
    idle, answered, new = (client_of(server) for _ in range(3))
    idle.sendall(GET)
    assert receive_reply(idle).body == page.body
    page.go_on.clear()
    answered.sendall(GET)
    while page.at_once == 0:
        pass
    sockets = [connection.socket for connection in server._front._connections]
    assert len(sockets) == 3

    def leave() -> None:
        server.leave_to_parent()
        assert [one.fileno() for one in sockets] == [-1] * 3

    child = Child(leave)
    child.wait()
    page.go_on.set()
    assert receive_reply(answered).body == page.body  # it was being answered
    for client in (idle, answered, new):
        client.sendall(GET)
        assert receive_reply(client).body == page.body
    assert server.close(TIMEOUT_S)
    for client in (idle, answered, new):
        assert client.recv(1) == b"", "the child holds the connection"
    with socket.create_server(("127.0.0.1", server.port)):  # and not the port either
        pass
    assert child.end() == 0


def test_a_child_gives_the_port_back_by_itself() -> None:
    """Also that of a pipeline which is just ending, and in nobody's use any more."""
    pipeline = Pipeline(Config(prometheus_port=0))
    shared = acquire(Config(prometheus_port=0))
    ports = [one._server.port for one in (pipeline, shared) if one._server is not None]
    child = Child(lambda: None)
    child.wait()
    assert pipeline.shutdown(TIMEOUT_S)
    assert release(shared, TIMEOUT_S)
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert len(ports) == 2
    assert child.end() == 0


def test_a_child_pushes_nothing_of_its_parents_and_ends_nothing() -> None:
    pushed: list[bytes] = []

    def take(client: socket.socket) -> None:
        while True:
            pushed.append(read_request(client)[0])
            client.sendall(OK)

    with answering(take, Strikes()) as port:
        config = Config(
            metrics_exporters=("otlp",),
            traces_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{port}",
            metric_export_interval_s=3600.0,
        )
        pipeline = acquire(config)
        assert pipeline.tracer_provider is not None
        tracer = pipeline.tracer_provider.get_tracer("test")

        def act() -> None:
            count(pipeline, 1)
            assert "OtelPeriodicExportingMetricReader" not in [thread.name for thread in threading.enumerate()]
            tracer.start_span("of the child").end()
            pipeline.flush(2.0)
            vars(pipeline)["_shutdowns"] = None  # which nobody asks for
            assert pipeline.shutdown(2.0)

        child = Child(act)
        child.wait()
        assert child.end() == 0
        assert pushed == []
        count(pipeline, 1)
        tracer.start_span("of the parent").end()
        assert release(pipeline, TIMEOUT_S)
        assert sorted(pushed) == [b"POST /v1/metrics HTTP/1.1", b"POST /v1/traces HTTP/1.1"]


def test_a_child_of_a_program_that_has_shut_down_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    config = Config(metrics_exporters=("otlp",), traces_exporters=("otlp",), otlp_endpoint="http://127.0.0.1:9")
    pipeline = acquire(config)
    release(pipeline, TIMEOUT_S)
    del pipeline
    gc.collect()
    child = Child(lambda: None)
    child.wait()
    assert child.end() == 0
    assert capfd.readouterr() == ("", "")


@contextlib.contextmanager
def held_by_another_thread(locks: list[Any]) -> Iterator[None]:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait(TIMEOUT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(TIMEOUT_S)
    yield
    done.set()
    thread.join(TIMEOUT_S)


def names_of_locks(owner: object) -> list[str]:
    return [name for name, value in vars(owner).items() if isinstance(value, LOCKS)]


def test_a_child_has_locks_of_its_own() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith("amptalk_otel.")]
    pipeline = Pipeline(Config(metrics_exporters=("none",)))
    monitor = PerformanceMonitor(enable_prometheus=False)
    monitor._begin()
    assert monitor._watch is not None
    made: list[object] = [
        pipeline, pipeline.bridge.sources, pipeline.bridge.sources.ledger,
        CatalogueProducer(pipeline.bridge), InstrumentsBridge(pipeline.meter_provider), System()._process_cpu,
        Instrumentation(), monitor, monitor._watch.operations, PerAgent("gauge"), _Page(),
    ]  # fmt: skip
    places = [(owner, name) for owner in (*modules, *made) for name in names_of_locks(owner)]
    assert len(places) >= 20

    def acquire_all() -> None:
        for owner, name in places:
            assert getattr(owner, name).acquire(timeout=1), f"{owner}: {name}"

    with held_by_another_thread([getattr(owner, name) for owner, name in places]):
        child = Child(acquire_all)
        child.wait()
    assert child.end() == 0
    asyncio.run(monitor.stop_collecting())
    assert pipeline.shutdown(TIMEOUT_S)


def test_every_lock_is_made_anew_or_of_what_no_child_uses() -> None:
    """A child has no page, no readers and no exporters of its parent's: it makes its own."""
    made = re.compile(r"threading\.R?Lock\(\)")
    folder = Path(amptalk_otel.__file__).parent
    plain = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if made.search(path.read_text("utf-8"))}
    by_itself = {"_pipeline.py"}
    of_page_and_exporters = {"_credentials.py", "_encoding.py", "_file_protection.py", "_readers.py", "_turns.py"}
    assert plain - by_itself == of_page_and_exporters


def test_whoever_forks_with_a_lock_of_ours_in_hand_may_let_it_go() -> None:
    class Owner:
        def __init__(self) -> None:
            self._lock = lock_of(self, threading.Lock)

    owner = Owner()
    former = owner._lock
    with owner._lock:

        def let_go() -> None:
            assert owner._lock.acquire(timeout=1)
            former.release()

        child = Child(let_go)
        child.wait()
    assert owner._lock is former
    assert child.end() == 0


def test_what_is_gone_is_not_made_anew() -> None:
    class Owner:
        """Has a lock."""

    owner = Owner()
    lock_of(owner, threading.Lock)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_a_child_tells_its_own_memory_age_and_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    parent_s = system.process_uptime()
    assert system.process_memory_usage() > 0
    monkeypatch.setattr(_system, "_FIRST_WINDOW_S", 0.0)
    assert [system.process_cpu_utilization() for _ in range(2)][1] is not None

    def look() -> None:
        process = psutil.Process()
        assert process.pid == system._own_process().pid
        assert abs(system.process_uptime() - (time.time() - process.create_time())) < 1.0
        assert system.process_uptime() < parent_s
        assert system.process_cpu_utilization() is None, "of the parent's last window"
        assert system.process_cpu_utilization() is not None

    child = Child(look)
    child.wait()
    assert child.end() == 0


def test_where_there_are_no_forks_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    after_fork(lambda: None)
