"""What an OTLP export of 1,000 agents costs: CPU time of the program, to a collector in another process.

Both peers push to a collector in this process, which takes everything and keeps nothing. They do so at an interval, as
programs do; an export is what happens from one arrival to the next. Peers run one after the other, in fresh processes,
several times: two at once would disturb each other.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.sdk.metrics import MeterProvider

from amptalk_otel import Config, instrument_orchestrator
from tests.benchmarks.by_hand import no_cap
from tests.benchmarks.harness import progress, ratio, summarize, turns
from tests.benchmarks.peers import OURS, must_watch
from tests.benchmarks.population import TYPES, Population
from tests.benchmarks.report import Result, Table, number, spread, times
from tests.benchmarks.workers import Child, cpu_s

STOCK = "stock path"
PEERS = (OURS, STOCK)
AGENTS = 1_000
INTERVAL_S = 1.5
SETTLE_S = 0.25  # after an arrival: the rest of the export arrives, the answer is read, and all is quiet until the next
_TIMEOUT_S = 60.0


@dataclass
class Costs:
    """What one peer's exports took, and the bytes of the last one."""

    cpu_ms: list[float] = field(default_factory=list)
    request_bytes: int = 0


def run(*, short: bool) -> Result:
    blocks, exports = (1, 3) if short else (3, 4)
    costs = {peer: Costs() for peer in PEERS}
    with _collector() as (endpoint, arrivals):
        for number_of_block, order in enumerate(turns(PEERS, blocks)):
            for peer in order:
                _export(peer, endpoint, arrivals, exports, costs[peer])
                progress(f"{peer}: block {number_of_block + 1} of {blocks}")
    ours = costs[OURS]
    rows = tuple(
        (peer, spread(summarize(one.cpu_ms)), number(one.request_bytes / 1e3), times(ratio(one.cpu_ms, ours.cpu_ms)))
        for peer, one in costs.items()
    )
    table = Table(("", "CPU of one export, ms", "request, kB", "CPU ÷ ours"), rows)
    notes = (
        f"{AGENTS:,} agents, {blocks * exports} exports of each peer over HTTP as protobuf, not compressed.",
        "Every agent handles a message between two exports.",
    )
    return Result("export", (table,), {"export.stock_to_ours": ratio(costs[STOCK].cpu_ms, ours.cpu_ms)}, notes)


def _export(peer: str, endpoint: str, arrivals: queue.Queue[int], exports: int, costs: Costs) -> None:
    with Child("export", peer=peer, endpoint=endpoint) as worker:
        _take_all(arrivals)
        for number_of_export in range(exports + 1):
            worker.ask("touch")
            before = worker.ask("cpu_s")
            size = arrivals.get(timeout=_TIMEOUT_S)
            time.sleep(SETTLE_S)
            size += _take_all(arrivals)  # an export may come in several requests
            if number_of_export:  # the first one warms up
                costs.cpu_ms.append((worker.ask("cpu_s") - before) * 1e3)
                costs.request_bytes = size


def _take_all(arrivals: queue.Queue[int]) -> int:
    """The bytes of all that has arrived and was not looked at."""
    size = 0
    while not arrivals.empty():
        size += arrivals.get_nowait()
    return size


# -- a collector ---------------------------------------------------------------------------------------


@contextmanager
def _collector() -> Iterator[tuple[str, queue.Queue[int]]]:
    """An OTLP endpoint, and the sizes of what arrives there."""
    arrivals: queue.Queue[int] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            self.rfile.read(size)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()
            arrivals.put(size)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """No line for each request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="bench-collector", daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", arrivals
    finally:
        server.shutdown()
        server.server_close()


# -- the process of one peer ---------------------------------------------------------------------------


class Worker:
    """Agents that are watched and pushed."""

    def __init__(self, peer: str, endpoint: str) -> None:
        self._peer, self._endpoint = peer, endpoint

    async def prepare(self) -> None:
        population = self._population = Population(AGENTS, types=TYPES[:1])
        await population.start()
        self._instrumentation = (
            instrument_orchestrator(
                population.orchestrator,
                config=Config(
                    metrics_exporters=("otlp",), otlp_endpoint=self._endpoint, metric_export_interval_s=INTERVAL_S
                ),
            )
            if self._peer == OURS
            else instrument_orchestrator(population.orchestrator, meter_provider=_stock_provider(self._endpoint))
        )
        must_watch(self._instrumentation, population)

    async def touch(self) -> None:
        await self._population.touch()
        gc.collect()

    def cpu_s(self) -> float:
        return cpu_s()


def _stock_provider(endpoint: str) -> MeterProvider:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"),
        export_interval_millis=INTERVAL_S * 1e3,
        **no_cap(PeriodicExportingMetricReader),
    )
    return MeterProvider([reader], shutdown_on_exit=False)
