"""The metrics page over HTTP: where it is served, and what a request is told."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import threading
import zlib
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

from prometheus_client.exposition import choose_encoder, gzip_accepted

from amptalk_otel._front import Front
from amptalk_otel._guard import swallow
from amptalk_otel._http import Answer, Limits, Request, drained, with_headers
from amptalk_otel._protection import OPEN, Protection, TooBusyError, UnusableError

_BACKLOG = 128
_LAST_ANSWERS_S = 0.2  # that are being given when it ends
_GZIP_LEVEL = 1  # 18 MB become 0.93 in 54 ms; level 6 makes it 0.75 in 141 ms, level 3 0.86 in 51
_GZIP_FORMAT = 31  # zlib's largest window, in gzip's frame (https://docs.python.org/3/library/zlib.html)
_METHODS = "OPTIONS,GET,HEAD"
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_PATHS = ("/metrics", "/favicon.ico")  # browsers ask for an icon
_HEALTH_PATH = "/-/healthy"
_CAUTIOUS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "deny"),
)
"""What a browser is told: to keep, run and embed nothing."""

LIMITS = Limits()


class Page(Protocol):
    """What is served."""

    def pages(self, openmetrics: bool, names: frozenset[str] = ...) -> list[bytes]:  # noqa: FBT001
        """The page of this moment in pieces; with `names`, only the samples of these names."""


class MetricsServer:
    """Serves a page at `url` from a daemon thread. The port is bound in the constructor.

    Raises OSError where the address can't be bound, RuntimeError where no thread can be started.
    """

    def __init__(self, page: Page, host: str, port: int, *, protection: Protection = OPEN) -> None:
        listener = _listening(*_resolve(host, port))
        answers = _Answers(page, protection)
        self._front = Front(
            listener,
            answers,
            at_once=answers.at_once,
            limits=LIMITS,
            refusal_headers=(_TEXT, *_CAUTIOUS),
            secure=protection.secure,
            admits=protection.admits_peer,
            still_admits=protection.still_admits,
        )
        self._thread = threading.Thread(target=self._front.run, name="amptalk-otel-metrics", daemon=True)
        address, self.port = listener.getsockname()[:2]
        self.url = f"{'https' if protection.uses_tls else 'http'}://{_shown(host, address)}:{self.port}/metrics"
        try:
            self._thread.start()
        except RuntimeError:  # there can be no more threads
            self._front.close()
            raise

    def close(self, timeout_s: float) -> bool:
        """Stop serving and free the port; False where the thread is still alive after `timeout_s`."""
        if self._thread.is_alive():
            self._front.end()
            self._thread.join(timeout_s)
            self._front.wait_for_answers(min(timeout_s, _LAST_ANSWERS_S))
        else:  # in a forked child, which has none of its parent's threads
            self._front.close()
        return not self._thread.is_alive()

    def leave_to_parent(self) -> None:
        """Called in a forked child: the port is the parent's alone, who may want it again after a restart."""
        self._front.leave_to_parent()


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


def _shown(host: str, address: str) -> str:
    """The host as a URL has it, and one that can be asked: all addresses of this machine are no address."""
    if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _listening(family: socket.AddressFamily, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart would find the port taken
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


# -- answers -------------------------------------------------------------------------------------------


class _Answers:
    """What a request is told. The page is answered as prometheus_client's `make_wsgi_app` does, and HEAD as well."""

    def __init__(self, page: Page, protection: Protection) -> None:
        self._page = page
        self._protection = protection

    def at_once(self, request: Request) -> Answer | None:
        """The answer to a probe, which knows no password and has to be told also while the page takes all threads."""
        if request.path != _HEALTH_PATH or request.method not in ("GET", "HEAD"):
            return None
        return self._with_headers(_said(HTTPStatus.OK, "Healthy."))

    def __call__(self, request: Request) -> Answer:
        try:
            answer = self._guarded(request)
        except BaseException:  # a callback's cancellation or exit: in this thread it is nobody's
            swallow("serving the metrics page")
            text = "The metrics could not be read; the program's log says where."
            answer = _said(HTTPStatus.INTERNAL_SERVER_ERROR, text)
        return self._with_headers(answer)

    def _with_headers(self, answer: Answer) -> Answer:
        return with_headers(answer, (*self._protection.headers(), *_CAUTIOUS))

    def _guarded(self, request: Request) -> Answer:
        try:
            if not self._protection.admits(request.headers.get("authorization", "")):
                challenges = tuple(("WWW-Authenticate", each) for each in self._protection.challenges())
                return _said(HTTPStatus.UNAUTHORIZED, "Unauthorized", *challenges)
        except TooBusyError:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, "Too many passwords to check", ("Retry-After", "5"))
        except UnusableError:
            return _said(HTTPStatus.INTERNAL_SERVER_ERROR, "The protection of this page can't be used; see the log.")
        return self._admitted(request)

    def _admitted(self, request: Request) -> Answer:
        method = request.method
        if request.path not in (*_PATHS, _HEALTH_PATH) and (method, request.path) != ("OPTIONS", "*"):
            return _said(HTTPStatus.NOT_FOUND, "Not found; the metrics are at /metrics")
        if method == "OPTIONS":
            return Answer(HTTPStatus.OK, (("Allow", _METHODS),))
        if method not in ("GET", "HEAD"):
            status = HTTPStatus.METHOD_NOT_ALLOWED
            text = f"# HTTP {status.value} {status.phrase}: {method}; use OPTIONS or GET"
            return _said(status, text, ("Allow", _METHODS))
        if request.path != "/metrics":
            return Answer(HTTPStatus.OK, (_TEXT,))
        return self._metrics(request)

    def _metrics(self, request: Request) -> Answer:
        try:
            names = frozenset(parse_qs(request.query, max_num_fields=LIMITS.names).get("name[]", []))
        except ValueError:
            return _said(HTTPStatus.BAD_REQUEST, f"More than {LIMITS.names} names are asked for")
        content_type = _content_type(request.headers.get("accept", ""))
        body = self._page.pages(content_type.startswith("application/openmetrics-text"), names)
        headers = (("Content-Type", content_type),)
        if gzip_accepted(_wanted(request.headers.get("accept-encoding", ""))):
            return Answer(HTTPStatus.OK, (*headers, ("Content-Encoding", "gzip")), _gzipped(body))
        return Answer(HTTPStatus.OK, headers, body)


def _said(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (*headers, _TEXT), [f"{text}\n".encode()])


_UNWANTED = re.compile(r";\s*q\s*=\s*0(?:\.0*)?\s*(?:;|$)", re.IGNORECASE)


def _wanted(header: str) -> str:
    """What a client accepts, without what it says that it does not (`q=0`): prometheus_client looks at names only."""
    return ",".join(member for member in header.split(",") if not _UNWANTED.search(member))


def _content_type(accept: str) -> str:
    """As prometheus_client negotiates it: it knows which formats and escaping schemes there are.

    Whichever version of OpenMetrics a client names, there is one that is written. All our names are valid without
    escaping, which is what `underscores` and `allow-utf-8` make of them. The schemes that would rewrite valid names are
    answered with `underscores`: the choice is the server's
    (https://prometheus.io/docs/instrumenting/content_negotiation/).
    """
    try:
        _encoder, content_type = choose_encoder(_wanted(accept))
    except (TypeError, ValueError):  # a version that is no number
        _encoder, content_type = choose_encoder("")
    if content_type.startswith("application/openmetrics-text"):
        content_type = re.sub(r"version=[^;]*", "version=1.0.0", content_type)
    for scheme in ("dots", "values"):
        content_type = content_type.replace(f"escaping={scheme}", "escaping=underscores")
    return content_type


def _gzipped(chunks: list[bytes]) -> list[bytes]:
    """Piece by piece; zlib works without the interpreter, so the event loop goes on meanwhile."""
    deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    pieces = [deflate.compress(chunk) for chunk in drained(chunks)]
    return [piece for piece in (*pieces, deflate.flush()) if piece]
