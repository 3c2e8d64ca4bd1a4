"""HTTP as bytes: answers of the endpoint, read strictly."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

TIMEOUT_S = 20.0

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([ -~]*)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([!-~][ -~]*)")


@dataclass(frozen=True)
class Reply:
    """One answer; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def take_reply(stream: bytes, *, is_head: bool = False) -> tuple[Reply, bytes]:
    """The first answer of a stream, and the rest. Raises ValueError where it is not well-formed or not complete."""
    head, end, rest = stream.partition(b"\r\n\r\n")
    if not end:
        raise ValueError(f"no end of a head in {stream[:200]!r}")
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise ValueError(f"no status line: {first!r}")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise ValueError(f"no header: {line!r}")
        name = header[1].decode().lower()
        if name in headers and name != "www-authenticate":
            raise ValueError(f"a header twice: {line!r}")
        headers[name] = header[2].decode()
    length = 0 if is_head else int(headers["content-length"])
    if len(rest) < length:
        raise ValueError(f"{length - len(rest)} of {length} bytes are missing")
    return Reply(int(status[1]), headers, rest[:length]), rest[length:]


def replies(stream: bytes) -> list[Reply]:
    """All answers of a stream that has ended, to requests none of which was a HEAD."""
    found = []
    while stream:
        reply, stream = take_reply(stream)
        found.append(reply)
    return found


def connect(port: int) -> socket.socket:
    """A connection to the endpoint on this machine."""
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S)


def until_closed(client: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    received = bytearray()
    while more := client.recv(1 << 16):
        received += more
    return bytes(received)


def exchange(port: int, request: bytes) -> bytes:
    """All that comes as the answer to some bytes, to the end of the connection."""
    with connect(port) as client:
        client.sendall(request)
        return until_closed(client)


def receive_reply(client: socket.socket, *, is_head: bool = False) -> Reply:
    """One answer on a connection that goes on; nothing may follow it."""
    received = b""
    while True:
        more = client.recv(1 << 16)
        received += more
        try:
            reply, rest = take_reply(received, is_head=is_head)
        except ValueError:
            if not more:
                raise
        else:
            assert rest == b""
            return reply
