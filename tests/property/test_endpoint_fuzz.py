"""Whatever bytes come to the endpoint, it answers in HTTP or hangs up, and goes on; seeded, and as long as it is told.

AMPTALK_OTEL_FUZZ_INPUTS sets how many inputs there are in all (default: 6,000), AMPTALK_OTEL_FUZZ_SEED the first seed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from amptalk_otel._file_protection import FileProtection
from amptalk_otel._http import Limits
from amptalk_otel._protection import OPEN, Protection
from amptalk_otel._server import MetricsServer
from tests.certificates import Authority
from tests.wire_http import connect, exchange, replies, take_reply

INPUTS = int(os.environ.get("AMPTALK_OTEL_FUZZ_INPUTS", "6000"))
SEED = int(os.environ.get("AMPTALK_OTEL_FUZZ_SEED", "6"))
CLIENTS = 8  # at once; some of them wait for the server to give them up
DESCRIPTORS = Path("/proc/self/fd")
TIMEOUT_S = 20.0
PASSWORD = "wonderland"
TOKEN = "s3cret-0123456789"
STATUSES = {200, 400, 401, 404, 405, 408, 414, 431, 503, 505}
TLS_ALERT = re.compile(rb"\x15\x03[\x01-\x04]\x00\x02..", re.DOTALL)

pytestmark = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts file descriptors as Linux shows them")


class Text:
    def pages(self, openmetrics: bool, names: frozenset[str] = frozenset()) -> list[bytes]:
        return [b"answer 42.0\n"] * 100


# -- inputs --------------------------------------------------------------------------------------------

ALICE = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
HEADERS = [
    "Host: localhost:8000",
    "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.2",
    "Accept: text/plain;version=nan;q=x,*/*;q=",
    "Accept-Encoding: gzip",
    "Accept-Encoding: gzip;q=0, deflate,,;=",
    "Connection: keep-alive",
    "Connection: close",
    "Content-Length: 5",
    "Content-Length: -1",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Upgrade: h2c",
    f"Authorization: Basic {ALICE}",
    f"Authorization: Bearer {TOKEN}",
    "Authorization: Basic ????",
    "Authorization: Bearer",
    "Authorization: Negotiate YII=",
    "X-Prometheus-Scrape-Timeout-Seconds: 10",
    "Cookie: " + "a=b; " * 50,
]
TARGETS = [
    *["/metrics"] * 12, "/metrics?name[]=answer", "/metrics?name%5B%5D=answer&name[]=%ff", "/-/healthy", "/favicon.ico",
    "/", "*", "http://localhost/metrics", "//", "/%2e%2e/metrics", "/metrics#x", "/metrics?" + "&" * 300,
    "/metrics?a=;b", "/" + "a" * 9000, "http://[::1/metrics", "/metrics?" + "name[]=x&" * 250,
]  # fmt: skip
METHODS = [*["GET"] * 12, "HEAD", "OPTIONS", "POST", "DELETE", "TRACE", "CONNECT", "PRI", "get", "G" * 20]
VERSIONS = [*["HTTP/1.1"] * 12, "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.", "HTTP/11.1", "http/1.1", ""]


def a_request(rng: random.Random) -> bytes:
    """One that is right, or nearly."""
    end = rng.choice(["\r\n", "\r\n", "\r\n", "\n"])
    lines = [f"{rng.choice(METHODS)} {rng.choice(TARGETS)} {rng.choice(VERSIONS)}"]
    lines += HEADERS[:1] * (rng.random() < 0.7)
    lines += rng.sample(HEADERS[1:], rng.randint(0, 8))
    return (end.join(lines) + end + end).encode("latin-1")


def mutated(rng: random.Random) -> bytes:
    data = bytearray(a_request(rng))
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place:place] = rng.randbytes(rng.randint(1, 8))
        elif kind == 2:
            del data[place : place + rng.randint(1, 20)]
        elif kind == 3:
            piece = data[place : place + rng.randint(1, 40)]
            data[place:place] = piece * rng.randint(1, 5)
        else:
            data[place:place] = rng.choice([b"\r", b"\n", b"\0", b"\r\n\r\n", b": ", b"\x80", b"\t", b" ", b"%"])
    return bytes(data)


def garbage(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([1, 3, 10, 100, 1000, 20_000]))


def truncated(rng: random.Random) -> bytes:
    request = a_request(rng)
    return request[: rng.randrange(len(request))]


def oversized(rng: random.Random) -> bytes:
    size = rng.choice([9_000, 17_000, 70_000])
    return rng.choice(
        [
            b"GET /" + b"x" * size + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: " + b"x" * size + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (size // 6) + b"\r\n",
            b"\r\n" * size,
            b"x" * size,
            b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x" * size,
        ]
    )


def pipelined(rng: random.Random) -> bytes:
    return b"".join((a_request if rng.random() < 0.8 else mutated)(rng) for _ in range(rng.randint(2, 12)))


KINDS: list[Callable[[random.Random], bytes]] = [a_request, mutated, mutated, garbage, truncated, oversized, pipelined]


# -- sending -------------------------------------------------------------------------------------------


def send(client: socket.socket, rng: random.Random, data: bytes) -> bytes:
    """In pieces, or at once; ending in one of the ways that clients end. What came back until the server hung up."""
    pieces = rng.randint(1, 4) if rng.random() < 0.3 else 1
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(pieces - 1))
    with contextlib.suppress(ConnectionError, ssl.SSLError):  # it may hang up before it has all
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            client.sendall(data[start:end])
            if pieces > 1 and rng.random() < 0.2:
                time.sleep(rng.random() * 0.003)
    if rng.random() < 0.15:
        return b""  # gone without a look at the answer
    with contextlib.suppress(OSError):
        if not isinstance(client, ssl.SSLSocket):
            client.shutdown(socket.SHUT_WR)
    return drained(client)


def drained(client: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := client.recv(1 << 16):
            received += more
    return bytes(received)


def well_formed(stream: bytes) -> list[int]:
    """The statuses of a stream of answers. Raises ValueError where it is anything else.

    To which requests an answer belongs is not known, so one may be to HEAD, and have no body.
    """
    statuses = []
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        if not rest or rest.startswith(b"HTTP/1.1 "):
            reply, rest = take_reply(head + b"\r\n\r\n" + rest, is_head=True)
        else:
            reply, rest = take_reply(stream)
        statuses.append(reply.status)
        stream = rest
    return statuses


def one_input(seed: int, port: int, tls: ssl.SSLContext | None) -> list[int]:
    rng = random.Random(seed)
    data = rng.choice(KINDS)(rng)
    with connect(port) as client:
        if tls is None:
            return well_formed(send(client, rng, data))
        if rng.random() < 0.2:  # plain bytes to where TLS is spoken
            received = send(client, rng, data)
            assert not received or TLS_ALERT.fullmatch(received), received
            return []
        try:
            secured = tls.wrap_socket(client, server_hostname="localhost")
        except (ssl.SSLError, ConnectionError):
            pytest.fail("a good handshake was refused")
        with secured:
            return well_formed(send(secured, rng, data))


def attack(server: MetricsServer, inputs: int, first: int, tls: ssl.SSLContext | None = None) -> Counter[int]:
    """Statuses by how often they were answered; 0 stands for a connection that was closed without an answer."""
    found: Counter[int] = Counter()

    def attempt(seed: int) -> list[int]:
        try:
            statuses = one_input(seed, server.port, tls)
        except Exception as error:
            pytest.fail(f"input with seed {seed}: {error!r}")
        assert set(statuses) <= STATUSES, f"input with seed {seed}: {statuses}"
        return statuses

    with ThreadPoolExecutor(CLIENTS) as pool:
        for statuses in pool.map(attempt, range(first, first + inputs)):
            found.update(statuses or [0])
    return found


# -- what must hold ------------------------------------------------------------------------------------


@contextlib.contextmanager
def unharmed(server: MetricsServer, alive: Callable[[], bool]) -> Iterator[None]:
    """What is sent inside changes nothing that lasts."""
    assert alive()
    settle(server)
    before = descriptors()
    yield
    assert alive()
    settle(server)
    until = time.monotonic() + TIMEOUT_S
    while descriptors() > before or threads() != ["amptalk-otel-metrics"]:  # what other tests left may go meanwhile
        assert time.monotonic() < until, (before, descriptors(), threads())
        time.sleep(0.01)


def descriptors() -> int:
    return len(list(DESCRIPTORS.iterdir()))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("amptalk-otel-metrics")]


def settle(server: MetricsServer) -> None:
    until = time.monotonic() + TIMEOUT_S
    while server._front._connections:
        assert time.monotonic() < until, list(server._front._connections)
        time.sleep(0.01)


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, protection: Protection = OPEN) -> Iterator[MetricsServer]:
    limits = Limits(head_s=0.3, idle_s=0.3, linger_s=0.3)
    monkeypatch.setattr("amptalk_otel._server.LIMITS", limits)
    server = MetricsServer(Text(), "localhost", 0, protection=protection)
    try:
        yield server
    finally:
        assert server.close(TIMEOUT_S)


def tell(capsys: pytest.CaptureFixture[str], what: str, inputs: int, found: Counter[int]) -> None:
    with capsys.disabled():
        shown = ", ".join(f"{status or 'closed'}: {number}" for status, number in sorted(found.items()))
        print(f"\n{what}: {inputs} inputs, 0 failures ({shown})")


def test_no_bytes_do_any_harm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    inputs = INPUTS * 4 // 6
    with serving(monkeypatch) as server:

        def alive() -> bool:
            return replies(exchange(server.port, b"GET /metrics HTTP/1.0\r\n\r\n"))[0].status == 200

        with unharmed(server, alive):
            found = attack(server, inputs, SEED * 1_000_000)
        assert caplog.messages == []
        assert capsys.readouterr() == ("", "")
    assert {200, 400, 404, 405, 414, 431, 505} <= set(found)
    tell(capsys, "endpoint", inputs, found)


def test_no_bytes_get_past_tls_passwords_and_tokens(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    authority.server()
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    tls = "tls_server_config: {cert_file: server.crt, key_file: server.key}"
    (tmp_path / "web.yml").write_text(f"{tls}\nbasic_auth_users: {{alice: {hashed}}}\n")
    (tmp_path / "token").write_text(TOKEN)
    protection = FileProtection(str(tmp_path / "web.yml"), str(tmp_path / "token"))
    inputs = INPUTS // 6
    context = authority.trust()
    with serving(monkeypatch, protection) as server:

        def alive() -> bool:
            with connect(server.port) as client, context.wrap_socket(client, server_hostname="localhost") as secured:
                secured.sendall(f"GET /metrics HTTP/1.0\r\nAuthorization: Basic {ALICE}\r\n\r\n".encode())
                return replies(drained(secured))[0].status == 200

        with unharmed(server, alive):
            found = attack(server, inputs, SEED * 2_000_000, context)
        assert caplog.messages == []
        assert capsys.readouterr() == ("", "")
    assert {200, 400, 401} <= set(found)
    tell(capsys, "endpoint with TLS and passwords", inputs, found)


def test_only_the_right_credentials_open_the_page_however_they_are_spoilt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{alice: {hashed}}}\n")
    (tmp_path / "token").write_text(TOKEN)
    right = {f"Basic {ALICE}", f"Bearer {TOKEN}"}
    rng = random.Random(SEED)
    inputs = INPUTS // 6
    statuses: Counter[int] = Counter()
    protection = FileProtection(str(tmp_path / "web.yml"), str(tmp_path / "token"))
    with serving(monkeypatch, protection) as server:
        for _ in range(inputs):
            text = list(rng.choice(sorted(right)))
            for _ in range(rng.randint(0, 3)):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randint(0, 2)] = rng.choice(["", "A", "=", " ", "\t", "Basic ", "z"])
            header = "".join(text)
            (reply,) = replies(
                exchange(server.port, f"GET /metrics HTTP/1.0\r\nAuthorization: {header}\r\n\r\n".encode())
            )
            scheme, _, credentials = header.strip().partition(" ")
            known = {each.partition(" ")[::2] for each in right}
            assert reply.status == (200 if (scheme.capitalize(), credentials.strip()) in known else 401), header
            statuses[reply.status] += 1
    assert statuses[200] > 0 < statuses[401]
    tell(capsys, "credentials", inputs, statuses)


def test_a_crowd_of_slow_and_silent_clients_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    inputs = max(50, min(1000, INPUTS // 20))
    with serving(monkeypatch) as server:

        def alive() -> bool:
            return replies(exchange(server.port, b"GET /metrics HTTP/1.0\r\n\r\n"))[0].status == 200

        with unharmed(server, alive), contextlib.ExitStack() as stack:
            for number in range(inputs):
                client = stack.enter_context(connect(server.port))
                with contextlib.suppress(ConnectionError):
                    client.sendall(truncated(rng)[: rng.randint(0, 40)])
                if number % 25 == 0:
                    assert alive()
                assert len(server._front._connections) <= Limits().connections
                assert len(threads()) <= 1 + Limits().requests
    tell(capsys, "slow and silent clients", inputs, Counter({200: inputs // 25}))
