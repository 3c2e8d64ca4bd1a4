"""The metrics page: prometheus_client's WSGI application on a small threaded server of the standard library."""

from __future__ import annotations

import errno
import io
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from amptalk_otel._guard import swallow

_POLL_S = 0.05
_REQUEST_TIMEOUT_S = 10.0


class MetricsServer:
    """Serves a registry at `url` from a daemon thread. The port is bound in the constructor.

    Raises OSError where the address can't be bound.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        family, address = _resolve(host, port)
        server_class = type("_Server", (_ThreadingServer,), {"address_family": family})
        self._server: WSGIServer = server_class(address, _QuietHandler)
        self._server.set_app(_one_at_a_time(make_wsgi_app(registry)))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="amptalk-otel-metrics", daemon=True
        )
        self._thread.start()
        shown = f"[{host}]" if ":" in host else host
        self.port = int(self._server.server_address[1])
        self.url = f"http://{shown}:{self.port}/metrics"

    def close(self, timeout_s: float) -> bool:
        """Stop serving and free the port; False where the thread is still alive after `timeout_s`."""
        if self._thread.is_alive():  # not so in a forked child, where `shutdown` would wait for ever
            self._server.shutdown()
            self._thread.join(timeout_s)
        self._server.server_close()
        return not self._thread.is_alive()


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        # HTTPServer's own asks a name server for the host's full name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart would find the port taken
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _QuietHandler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S

    def get_stderr(self) -> Any:
        """Nowhere: wsgiref would print a traceback for each client that stops reading."""
        return io.StringIO()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Nothing: each scrape would be a line on the program's stderr."""


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The address to bind. `localhost` is 127.0.0.1, whatever else the name has: that is what scrapers try."""
    if host == "localhost":
        return socket.AF_INET, ("127.0.0.1", port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:
        raise OSError(errno.EINVAL, "not a host name") from None
    family, _, _, _, address = found[0]
    return family, address


def _one_at_a_time(app: Callable[..., Any]) -> Callable[..., Any]:
    """The stock reader hands over its data through one queue: two scrapes at once would mix their pages."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            with lock:
                return list(app(environ, start_response))
        except Exception:
            swallow("serving the metrics page")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"The metrics could not be read; the program's log says where.\n"]

    return serve
