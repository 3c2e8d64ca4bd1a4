"""Ways to watch a population and to serve its page: ours, the stock path, and tools used by hand."""

from __future__ import annotations

import asyncio
import http.client
import threading
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, make_wsgi_app

from amptalk_otel import Config, Instrumentation, instrument_orchestrator
from tests.benchmarks.by_hand import stock_reader
from tests.benchmarks.mirror import Mirror, PrometheusMirror, SdkMirror, shape_of
from tests.benchmarks.population import TYPES, Population

NOTHING, OURS, STOCK = "uninstrumented", "amptalk_otel", "stock reader"
PROMETHEUS_CLIENT, SDK = "prometheus_client by hand", "OpenTelemetry SDK by hand"
CONFIG = Config(metrics_exporters=("prometheus",), prometheus_port=0, max_agents=100_000)
_TIMEOUT_S = 120.0
_PIECE_BYTES = 1 << 18


@dataclass
class Watched:
    """A population with its page (None: it has none)."""

    population: Population
    url: str | None
    close: Callable[[], object]
    mirror: Mirror | None = None

    async def touch(self) -> None:
        """Every agent handles one message, and all that the page shows of it changes."""
        await self.population.touch()
        if self.mirror is not None:
            self.mirror.touch()


async def watch(peer: str, population: Population) -> Watched:
    """Put `peer` on a population that runs."""
    return await _WATCHERS[peer](population)


async def _nothing(population: Population) -> Watched:
    return Watched(population, None, lambda: None)


async def _ours(population: Population) -> Watched:
    instrumentation = instrument_orchestrator(population.orchestrator, config=CONFIG)
    must_watch(instrumentation, population)
    return Watched(population, instrumentation.metrics_url, instrumentation.shutdown)


async def _stock(population: Population) -> Watched:
    registry = CollectorRegistry()
    provider = MeterProvider([stock_reader(registry)], shutdown_on_exit=False)
    instrumentation = instrument_orchestrator(population.orchestrator, meter_provider=provider, config=CONFIG)
    must_watch(instrumentation, population)
    url, stop = serve(registry)

    def close() -> None:
        instrumentation.shutdown()
        provider.shutdown()
        stop()

    return Watched(population, url, close)


async def _prometheus_client(population: Population) -> Watched:
    registry = CollectorRegistry()
    mirror = PrometheusMirror(shape_of(await sample_page(), "agent-00000"), _names(population), registry)
    url, stop = serve(registry)
    return Watched(population, url, stop, mirror)


async def _sdk(population: Population) -> Watched:
    registry = CollectorRegistry()
    provider = MeterProvider([stock_reader(registry)], shutdown_on_exit=False)
    mirror = SdkMirror(shape_of(await sample_page(), "agent-00000"), _names(population), provider)
    url, stop = serve(registry)

    def close() -> None:
        provider.shutdown()
        stop()

    return Watched(population, url, close, mirror)


_WATCHERS: dict[str, Callable[[Population], Awaitable[Watched]]] = {
    NOTHING: _nothing,
    OURS: _ours,
    STOCK: _stock,
    PROMETHEUS_CLIENT: _prometheus_client,
    SDK: _sdk,
}


def must_watch(instrumentation: Instrumentation, population: Population) -> None:
    """An instrumentation that is not there would be the cheapest of all."""
    watched = len(instrumentation.read())
    if watched != len(population.agents):
        raise RuntimeError(f"{watched} of {len(population.agents)} agents are watched")


def _names(population: Population) -> list[tuple[str, str]]:
    return [(agent.agent_id, agent.name) for agent in population.agents]


async def sample_page() -> str:
    """Our page for one agent that has handled one message: what it holds is what other peers hold per agent."""
    population = Population(1, types=TYPES[:1])
    await population.start()
    watched = await _ours(population)
    await population.touch()
    page = await asyncio.to_thread(get, watched.url, encoding="identity")
    await asyncio.to_thread(watched.close)
    await population.stop()
    return page.decode()


# -- pages ---------------------------------------------------------------------------------------------


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """No line for each request."""


def serve(registry: CollectorRegistry) -> tuple[str, Callable[[], None]]:
    """Serve a registry as prometheus_client documents it; the page's address, and how to end it."""
    server = make_server("127.0.0.1", 0, make_wsgi_app(registry), handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="bench-page", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return f"http://127.0.0.1:{server.server_address[1]}/metrics", stop


def get(url: str | None, *, encoding: str) -> bytes:
    """The body of a page as it comes over the wire. Raises RuntimeError for anything but 200."""
    assert url is not None
    return b"".join(pieces(url, encoding=encoding))


def pieces(url: str, *, encoding: str = "identity") -> Iterator[bytes]:
    """The same, piece by piece."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path, headers={"Accept-Encoding": encoding})
        response = connection.getresponse()
        sent = response.getheader("Content-Encoding", "identity")
        if (response.status, sent) != (200, encoding):
            raise RuntimeError(f"{url} answered {response.status} in {sent}, not 200 in {encoding}")
        while piece := response.read(_PIECE_BYTES):
            yield piece
    finally:
        connection.close()
