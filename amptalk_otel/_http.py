"""HTTP/1.0 and 1.1 as far as a metrics page needs it: the head of a request within limits, and an answer as bytes.

https://www.rfc-editor.org/rfc/rfc9112. Bodies are never read: a connection ends after a request that has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Limits:
    """What the endpoint spends on its clients: on all of them together, and on each."""

    requests: int = 10  # answered at the same time, each by a thread of its own
    wait_s: float = 1.0  # for one of those threads, before the answer is 503
    connections: int = 100  # open at the same time; beyond, the one that waits longest is closed
    line_bytes: int = 8_192
    head_bytes: int = 16_384
    headers: int = 100
    names: int = 200  # that one request may ask for by `name[]`
    head_s: float = 10.0  # from the first byte (TLS: from the handshake's beginning) to the end of the head
    write_s: float = 30.0  # for a whole answer
    idle_s: float = 120.0  # between two requests of a connection
    linger_s: float = 2.0  # for the client to hang up, once the last answer is sent


class BadRequestError(Exception):
    """A request that is not answered as it was asked, and the status that says why."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What was asked; the names of headers are in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    keeps: bool = False  # the client may go on with another request


@dataclass(frozen=True)
class Answer:
    """What is told: the body in pieces, each of which is let go once it is sent."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...] = ()
    body: list[bytes] = field(default_factory=list)


_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(r"\r?\n")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word for it
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rf"({_TOKEN}):([\t -~\x80-\xff]*)")
_METHOD_BYTE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")
_SINGLE = frozenset({"authorization", "content-length", "host", "transfer-encoding"})
_BLANK = " \t"


def take_request(buffer: bytearray, limits: Limits) -> Request | None:
    """Take the first request off `buffer`; None where its head is not complete yet.

    Raises BadRequestError for what is no request, and for more than the limits allow.
    """
    start = len(buffer) - len(buffer.lstrip(b"\r\n"))  # RFC 9112, 2.2: empty lines before a request are ignored
    if start < len(buffer) and not _METHOD_BYTE.match(buffer, start):
        raise BadRequestError(HTTPStatus.BAD_REQUEST)  # such as TLS where there is none: no end of a line may come
    end = _END.search(buffer, start)
    if end is None or end.end() > limits.head_bytes:
        if len(buffer) > limits.head_bytes:
            raise _too_large(buffer[start:], limits)
        return None
    lines = _LINE_END.split(buffer[start : end.start()].decode("latin-1"))
    del buffer[: end.end()]
    if len(lines[0]) > limits.line_bytes:
        raise BadRequestError(HTTPStatus.REQUEST_URI_TOO_LONG)
    if len(lines) - 1 > limits.headers:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return _request(lines[0], _headers(lines[1:]))


def _too_large(head: bytearray, limits: Limits) -> BadRequestError:
    if b"\n" not in head[: limits.line_bytes + 2]:
        return BadRequestError(HTTPStatus.REQUEST_URI_TOO_LONG)
    return BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def _headers(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadRequestError(HTTPStatus.BAD_REQUEST)
        name, value = match[1].lower(), match[2].strip(_BLANK)
        if name in found:
            if name in _SINGLE:
                raise BadRequestError(HTTPStatus.BAD_REQUEST)
            value = f"{found[name]}, {value}"
        found[name] = value
    return found


def _request(line: str, headers: dict[str, str]) -> Request:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequestError(HTTPStatus.BAD_REQUEST)
    method, target, major, minor = match.groups()
    if major != "1":
        raise BadRequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if (minor != "0" and "host" not in headers) or not headers.get("content-length", "0").isdecimal():
        raise BadRequestError(HTTPStatus.BAD_REQUEST)
    path, query = _parts(target)
    return Request(method, path, query, headers, keeps=_keeps(minor != "0", headers))


def _parts(target: str) -> tuple[str, str]:
    """Path and query of a target, which may be a whole URL (RFC 9112, 3.2.2)."""
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return unquote(path), query.partition("#")[0]
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadRequestError(HTTPStatus.BAD_REQUEST) from None
    if target != "*" and (parts.scheme not in ("http", "https") or not parts.netloc):
        raise BadRequestError(HTTPStatus.BAD_REQUEST)
    return unquote(parts.path) or "/", parts.query


def _keeps(is_default: bool, headers: Mapping[str, str]) -> bool:  # noqa: FBT001
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return False
    wishes = {wish.strip(_BLANK).lower() for wish in headers.get("connection", "").split(",")}
    return "close" not in wishes and (is_default or "keep-alive" in wishes)


_SHORT_BYTES = 1 << 14


def written(answer: Answer, *, keeps: bool, with_body: bool = True) -> Iterator[bytes]:
    """The answer as it goes over the wire; a short one in one piece, so that it goes in one packet."""
    head = _head(answer, keeps=keeps)
    chunks = drained(answer.body) if with_body else iter(())
    first = next(chunks, b"")
    if len(first) < _SHORT_BYTES:
        yield head + first
    else:
        yield head
        yield first
    del first
    yield from chunks


def _head(answer: Answer, *, keeps: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        *(f"{name}: {value}" for name, value in answer.headers),
        f"Content-Length: {sum(map(len, answer.body))}",
        f"Connection: {'keep-alive' if keeps else 'close'}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def drained(chunks: list[bytes]) -> Iterator[bytes]:
    """Each chunk once, and none kept: to free many megabytes at once takes milliseconds, in which nothing else runs."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()


def with_headers(answer: Answer, headers: Iterable[tuple[str, str]]) -> Answer:
    """The answer with more headers, of which the first of a name counts; those that it has go before."""
    more: dict[str, tuple[str, str]] = {}
    for header in headers:
        more.setdefault(header[0].lower(), header)
    for name, _ in answer.headers:
        more.pop(name.lower(), None)
    return Answer(answer.status, (*answer.headers, *more.values()), answer.body)
