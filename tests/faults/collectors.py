"""Collectors that are down, slow, silent, rude or not who they say they are."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import opentelemetry.exporter.otlp.proto.http.metric_exporter  # their import takes long, and is no fault
import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401

from amptalk_otel import Config
from tests.certificates import Authority
from tests.faults.catalogue import fault
from tests.faults.trial import Strikes, Trial, ordinary, tried
from tests.faults.ways_out import PUSHED

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
Answer = Callable[[socket.socket], None]


@contextmanager
def answering(answer: Answer, strikes: Strikes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that does to each connection what `answer` does."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    open_: list[socket.socket] = []
    over = threading.Event()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answer(context.wrap_socket(client, server_side=True) if context is not None else client)

    def accept() -> None:
        while not over.is_set():
            try:
                client, _address = server.accept()
            except OSError:
                return
            strikes.strike()
            open_.append(client)
            threading.Thread(target=serve, args=(client,), name="collector", daemon=True).start()

    threading.Thread(target=accept, name="collectors", daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for client in open_:
            client.close()


def read_request(client: socket.socket) -> tuple[bytes, bytes]:
    """Read one request to its end, as far as it has one; its first line and its body."""
    client.settimeout(5)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(client)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")), 0)
    while len(body) < length:
        body += _received(client)
    return lines[0], body


def _received(client: socket.socket) -> bytes:
    received = client.recv(65536)
    if not received:
        raise ConnectionAbortedError
    return received


def _to(port: int, **changes: Any) -> Config:
    return PUSHED.with_changes(otlp_endpoint=f"http://user:s3cret-password@127.0.0.1:{port}", **changes)


def _tried_against(answer: Answer, **changes: Any) -> Trial:
    return tried(ordinary(), lambda strikes: answering(answer, strikes), config=lambda port: _to(port, **changes))


@fault("the collector is down", "nobody listens at its address")
def collector_down() -> Trial:
    @contextmanager
    def refusing(strikes: Strikes) -> Iterator[int]:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            strikes.strike()
            yield bound.getsockname()[1]

    return tried(ordinary(), refusing, config=_to)


@fault("the collector is slow", "each push is answered after 0.3 s")
def collector_slow() -> Trial:
    def slowly(client: socket.socket) -> None:
        while True:
            read_request(client)
            time.sleep(0.3)
            client.sendall(OK)

    return _tried_against(slowly)


@fault("the collector is a black hole", "connections are accepted, and nothing is ever read or answered")
def collector_silent() -> Trial:
    return _tried_against(lambda _client: time.sleep(20))


@fault("the collector resets", "each connection is reset in the middle of the request")
def collector_resets() -> Trial:
    def reset(client: socket.socket) -> None:
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    return _tried_against(reset)


@fault("the collector sends garbage", "each push is answered with random bytes")
def collector_sends_garbage() -> Trial:
    chosen = random.Random(4)

    def garbage(client: socket.socket) -> None:
        read_request(client)
        client.sendall(chosen.randbytes(2_000))
        client.close()

    return _tried_against(garbage)


@fault("the collector refuses", "each push is answered with 401, 429, 500 or 503, and a text that quotes its headers")
def collector_refuses() -> Trial:
    statuses = iter([b"401 No s3cret-header", b"429 Slow down", b"500 Oh no", b"503 Later"] * 10_000)

    def refuse(client: socket.socket) -> None:
        read_request(client)
        body = b"your authorization s3cret-header is not welcome"
        head = b"HTTP/1.1 " + next(statuses) + b"\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(body) + body)
        client.close()

    return _tried_against(refuse)


@fault(
    "the certificate has expired",
    "the collector speaks TLS, with a certificate of the right name that ended an hour ago",
)
def certificate_expired() -> Trial:
    with TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.server(is_expired=True))

        def answer(client: socket.socket) -> None:
            read_request(client)
            client.sendall(OK)

        return tried(
            ordinary(),
            lambda strikes: answering(answer, strikes, context),
            config=lambda port: PUSHED.with_changes(
                otlp_endpoint=f"https://localhost:{port}", otlp_certificate=str(authority.file)
            ),
        )
