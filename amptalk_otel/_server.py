"""The metrics page over HTTP, on a small threaded server of the standard library."""

from __future__ import annotations

import errno
import io
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client.exposition import choose_encoder, gzip_accepted

from amptalk_otel._guard import swallow

_POLL_S = 0.05
_REQUEST_TIMEOUT_S = 10.0
_GZIP_LEVEL = 1  # 18 MB become 0.93 in 54 ms; level 6 makes it 0.75 in 141 ms, level 3 0.86 in 51
_GZIP_FORMAT = 31  # zlib's largest window, in gzip's frame (https://docs.python.org/3/library/zlib.html)
_METHODS = "OPTIONS,GET,HEAD"
_TEXT = ("Content-Type", "text/plain; charset=utf-8")

_Answer = tuple[str, list[tuple[str, str]], list[bytes]]


class Page(Protocol):
    """What is served."""

    def pages(self, openmetrics: bool, names: frozenset[str] = ...) -> list[bytes]:  # noqa: FBT001
        """The page of this moment in pieces; with `names`, only the samples of these names."""


class MetricsServer:
    """Serves a page at `url` from a daemon thread. The port is bound in the constructor.

    Raises OSError where the address can't be bound.
    """

    def __init__(self, page: Page, host: str, port: int) -> None:
        family, address = _resolve(host, port)
        server_class = type("_Server", (_ThreadingServer,), {"address_family": family})
        self._server: WSGIServer = server_class(address, _QuietHandler)
        self._server.set_app(_application(page))
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


def _application(page: Page) -> Callable[..., Iterable[bytes]]:
    """Answers as prometheus_client's `make_wsgi_app` does, and HEAD as well."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        try:
            status, headers, body = _answer(page, method, environ)
        except Exception:
            swallow("serving the metrics page")
            status, headers = "500 Internal Server Error", [_TEXT]
            body = [b"The metrics could not be read; the program's log says where.\n"]
        start_response(status, [*headers, ("Content-Length", str(sum(map(len, body))))])
        return _drained(body) if method != "HEAD" else []

    return serve


def _answer(page: Page, method: str, environ: dict[str, Any]) -> _Answer:
    if method == "OPTIONS":
        return "200 OK", [("Allow", _METHODS)], []
    if method not in ("GET", "HEAD"):
        status = "405 Method Not Allowed"
        return status, [("Allow", _METHODS), _TEXT], [f"# HTTP {status}: {method}; use OPTIONS or GET\n".encode()]
    if environ["PATH_INFO"] == "/favicon.ico":  # browsers ask for it
        return "200 OK", [_TEXT], []
    content_type = _content_type(environ.get("HTTP_ACCEPT", ""))
    names = parse_qs(environ.get("QUERY_STRING", "")).get("name[]", [])
    body = page.pages(content_type.startswith("application/openmetrics-text"), frozenset(names))
    headers = [("Content-Type", content_type)]
    if gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", "")):
        return "200 OK", [*headers, ("Content-Encoding", "gzip")], _gzipped(_drained(body))
    return "200 OK", headers, body


def _content_type(accept: str) -> str:
    """As prometheus_client negotiates it: it knows which formats, versions and escaping schemes there are.

    All our names are valid without escaping, which is what `underscores` and `allow-utf-8` make of them. The schemes
    that would rewrite valid names are answered with `underscores`: the choice is the server's
    (https://prometheus.io/docs/instrumenting/content_negotiation/).
    """
    try:
        _encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        _encoder, content_type = choose_encoder("")
    for scheme in ("dots", "values"):
        content_type = content_type.replace(f"escaping={scheme}", "escaping=underscores")
    return content_type


def _gzipped(chunks: Iterable[bytes]) -> list[bytes]:
    """Piece by piece; zlib works without the interpreter, so the event loop goes on meanwhile."""
    deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    pieces = [deflate.compress(chunk) for chunk in chunks]
    return [piece for piece in (*pieces, deflate.flush()) if piece]


def _drained(chunks: list[bytes]) -> Iterator[bytes]:
    """Each chunk once, and none kept: to free many megabytes at once takes milliseconds, in which nothing else runs."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()
