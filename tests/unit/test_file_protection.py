"""A protected endpoint: TLS, client certificates, passwords and tokens, as the files say at each moment."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from cryptography import x509

from amptalk_otel import Config
from amptalk_otel._file_protection import FileProtection
from amptalk_otel._http import Limits
from amptalk_otel._pipeline import Pipeline, acquire, release
from amptalk_otel._protection import UnusableError
from amptalk_otel._server import MetricsServer
from tests.certificates import Authority
from tests.wire_http import TIMEOUT_S, Reply, connect, receive_reply, until_closed

HASH = bcrypt.hashpw(b"wonderland", bcrypt.gensalt(4)).decode()
ALICE = "Basic " + base64.b64encode(b"alice:wonderland").decode()
USERS = f"basic_auth_users:\n  alice: {HASH}\n"
TOKEN = "s3cret.token-0123456789"
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
VERIFIED = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: authority.crt\n"


class Text:
    """A page that counts who read it."""

    read = 0

    def pages(self, openmetrics: bool, names: frozenset[str] = frozenset()) -> list[bytes]:
        self.read += 1
        return [b"answer 42.0\n"]


class Endpoint:
    """A server whose protection is in a folder."""

    def __init__(self, folder: Path, web: str | None, token: str | None = None) -> None:
        self.folder = folder
        self.page = Text()
        if web is not None:
            self.write("web.yml", web)
        if token is not None:
            self.write("token", token)
        protection = FileProtection(
            str(folder / "web.yml") if web is not None else None, str(folder / "token") if token is not None else None
        )
        self.server = MetricsServer(self.page, "localhost", 0, protection=protection)

    def write(self, name: str, text: str) -> None:
        """Change a file as an operator does, in one step."""
        beside = self.folder / f"{name}.new"
        beside.write_text(text)
        beside.replace(self.folder / name)

    def ask(
        self,
        authorization: str | None = None,
        *,
        path: str = "/metrics",
        tls: ssl.SSLContext | None = None,
        method: str = "GET",
    ) -> Reply:
        header = f"Authorization: {authorization}\r\n" if authorization is not None else ""
        with self.connected(tls) as client:
            client.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{header}Connection: close\r\n\r\n".encode())
            return receive_reply(client, is_head=method == "HEAD")

    @contextlib.contextmanager
    def connected(self, tls: ssl.SSLContext | None) -> Iterator[socket.socket]:
        with connect(self.server.port) as client:
            if tls is None:
                yield client
            else:
                with tls.wrap_socket(client, server_hostname="localhost") as secured:
                    yield secured

    def refuses(self, tls: ssl.SSLContext | None) -> bool:
        """Whether a client gets nothing at all, however it learns so."""
        try:
            self.ask(tls=tls)
        except (OSError, ValueError):
            return True
        return False


Start = Callable[..., Endpoint]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.server()
    return authority


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    endpoints: list[Endpoint] = []

    def begin(web: str | None = None, token: str | None = None) -> Endpoint:
        endpoints.append(Endpoint(tmp_path, web, token))
        return endpoints[-1]

    yield begin
    for endpoint in endpoints:
        assert endpoint.server.close(TIMEOUT_S)


# -- passwords and tokens ------------------------------------------------------------------------------


def test_without_the_password_there_is_no_page(start: Start) -> None:
    endpoint = start(USERS)
    wrong = base64.b64encode(b"alice:mirror").decode()
    for authorization in (None, "", "Basic", f"Basic {wrong}", f"Bearer {TOKEN}", ALICE.replace("Basic", "Digest")):
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            reply = endpoint.ask(authorization, method=method)
            assert (reply.status, reply.body) == (401, b"" if method == "HEAD" else b"Unauthorized\n")
            assert reply.headers["www-authenticate"] == 'Basic realm="metrics", charset="UTF-8"'
    assert endpoint.page.read == 0
    assert endpoint.ask(ALICE).body == b"answer 42.0\n"
    assert endpoint.ask(ALICE.replace("Basic", "bAsIc")).status == 200


def test_without_the_token_there_is_no_page(start: Start) -> None:
    endpoint = start(token=f"{TOKEN}\n")
    for authorization in (None, "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", ALICE, TOKEN):
        reply = endpoint.ask(authorization)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="metrics"')
    assert endpoint.page.read == 0
    assert endpoint.ask(f"Bearer {TOKEN}").status == endpoint.ask(f"bearer  {TOKEN}").status == 200


def test_with_both_either_is_enough(start: Start) -> None:
    endpoint = start(USERS, TOKEN)
    assert [endpoint.ask(each).status for each in (ALICE, f"Bearer {TOKEN}", None)] == [200, 200, 401]


@pytest.mark.parametrize("path", ["/metrics", "/", "/favicon.ico", "/other"])
def test_who_is_not_let_in_does_not_even_learn_which_paths_there_are(start: Start, path: str) -> None:
    assert start(USERS).ask(path=path).status == 401


def test_health_is_told_to_everybody(start: Start) -> None:
    endpoint = start(USERS, TOKEN)
    assert endpoint.ask(path="/-/healthy").body == b"Healthy.\n"
    assert endpoint.ask(path="/-/healthy", method="POST").status == 401


def test_too_many_passwords_at_once_are_told_to_come_later(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = start(USERS)
    monkeypatch.setattr("amptalk_otel._credentials.threading.BoundedSemaphore.acquire", lambda *_, **__: False)
    reply = endpoint.ask(ALICE)
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")


def test_configured_headers_go_before_ours(start: Start) -> None:
    headers = "http_server_config: {headers: {X-Frame-Options: sameorigin, Strict-Transport-Security: max-age=1}}\n"
    endpoint = start(headers + USERS)
    for reply in (endpoint.ask(), endpoint.ask(ALICE), endpoint.ask(path="/-/healthy")):
        assert reply.headers["x-frame-options"] == "sameorigin"
        assert reply.headers["strict-transport-security"] == "max-age=1"
        assert reply.headers["x-content-type-options"] == "nosniff"


# -- TLS -----------------------------------------------------------------------------------------------


def test_tls_is_spoken_and_nothing_else(start: Start, authority: Authority) -> None:
    endpoint = start(TLS)
    assert endpoint.server.url == f"https://localhost:{endpoint.server.port}/metrics"
    assert endpoint.ask(tls=authority.trust()).body == b"answer 42.0\n"
    assert endpoint.refuses(None)
    assert endpoint.refuses(ssl.create_default_context())  # a client that does not trust it
    assert endpoint.page.read == 1


def test_a_connection_over_tls_serves_many_requests(start: Start, authority: Authority) -> None:
    endpoint = start(TLS)
    with endpoint.connected(authority.trust()) as client:
        for _ in range(5):
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert receive_reply(client).headers["connection"] == "keep-alive"
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 3 + b"GET / HTTP/1.0\r\n\r\n")
        assert until_closed(client).count(b"HTTP/1.1 200 OK\r\n") == 3


def test_a_large_page_goes_over_tls(start: Start, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = start(TLS)
    pieces = [bytes([number]) * 200_000 for number in range(50)]
    monkeypatch.setattr(endpoint.page, "pages", lambda *_: list(pieces))
    assert endpoint.ask(tls=authority.trust()).body == b"".join(pieces)


@pytest.mark.parametrize("offered", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("settings", "spoken"),
    [
        ("", {"TLSv1.2", "TLSv1.3"}),
        ("  min_version: TLS13\n", {"TLSv1.3"}),
        ("  max_version: TLS12\n", {"TLSv1.2"}),
        ("  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", {"TLSv1.3"}),
    ],
)
def test_versions_are_those_that_are_configured(
    start: Start, authority: Authority, offered: ssl.TLSVersion, settings: str, spoken: set[str]
) -> None:
    endpoint = start(TLS + settings)
    context = authority.trust()
    context.minimum_version = context.maximum_version = offered
    name = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[offered]
    if name not in spoken:
        assert endpoint.refuses(context)
        return
    with endpoint.connected(context) as client:
        assert isinstance(client, ssl.SSLSocket)
        assert client.version() == name


@pytest.mark.parametrize("prefers", [True, False])
def test_cipher_suites_are_those_that_are_configured_in_the_order_of_who_is_preferred(
    start: Start, authority: Authority, prefers: bool
) -> None:
    suites = ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]
    endpoint = start(
        TLS
        + f"  max_version: TLS12\n  prefer_server_cipher_suites: {prefers}\n  cipher_suites: [{', '.join(suites)}]\n"
    )
    ours, theirs = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
    context = authority.trust()
    context.set_ciphers(f"{theirs}:{ours}")
    with endpoint.connected(context) as client:
        assert isinstance(client, ssl.SSLSocket)
        cipher = client.cipher()
        assert cipher is not None
        assert cipher[0] == (ours if prefers else theirs)
    context.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
    assert endpoint.refuses(context)


def test_a_handshake_that_is_not_finished_holds_up_nobody_and_is_given_up(
    start: Start, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amptalk_otel._server.LIMITS", Limits(head_s=0.5))
    endpoint = start(TLS)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(endpoint.server.port)) for _ in range(30)]
        for client in silent[:15]:
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert endpoint.ask(tls=authority.trust()).status == 200
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("amptalk-otel-metrics")]
        assert len(names) <= 2  # the one that waits for all, and the one that has just answered
        for client in silent:
            with contextlib.suppress(ConnectionError):
                assert until_closed(client) == b""


def test_a_slow_head_over_tls_is_given_up(start: Start, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amptalk_otel._server.LIMITS", Limits(head_s=0.5))
    with start(TLS).connected(authority.trust()) as client:
        client.sendall(b"GET /metrics HTT")
        assert receive_reply(client).status == 408


# -- client certificates -------------------------------------------------------------------------------


def test_only_a_client_with_a_certificate_of_the_authority_is_served(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    endpoint = start(VERIFIED)
    (tmp_path / "others").mkdir()
    stranger = Authority(tmp_path / "others").client("stranger")
    assert endpoint.ask(tls=authority.trust(authority.client("prometheus"))).status == 200
    assert endpoint.refuses(authority.trust())
    assert endpoint.refuses(authority.trust(stranger))
    assert endpoint.refuses(authority.trust(authority.client("late", is_expired=True)))
    assert endpoint.refuses(authority.trust(authority.server("a-server")))  # which is for another purpose
    assert endpoint.page.read == 1


def test_a_certificate_may_be_optional_but_not_wrong(start: Start, authority: Authority, tmp_path: Path) -> None:
    endpoint = start(VERIFIED.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
    (tmp_path / "others").mkdir()
    assert endpoint.ask(tls=authority.trust()).status == 200
    assert endpoint.ask(tls=authority.trust(authority.client("prometheus"))).status == 200
    assert endpoint.refuses(authority.trust(Authority(tmp_path / "others").client("stranger")))


def test_the_authority_may_stand_in_the_file_itself(start: Start, authority: Authority) -> None:
    lines = "".join(f"    {line}\n" for line in authority.file.read_text().splitlines())
    inline = VERIFIED.replace("client_ca_file: authority.crt\n", f"client_ca: |\n{lines}")
    endpoint = start(inline)
    assert endpoint.ask(tls=authority.trust(authority.client("prometheus"))).status == 200
    assert endpoint.refuses(authority.trust())


NAMES: dict[str, x509.GeneralName] = {
    "prometheus.example.com": x509.DNSName("prometheus.example.com"),
    "ops@example.com": x509.RFC822Name("ops@example.com"),
    "10.1.2.3": x509.IPAddress(ip_address("10.1.2.3")),
    "2001:db8::1": x509.IPAddress(ip_address("2001:db8::1")),
    "spiffe://example.com/prometheus": x509.UniformResourceIdentifier("spiffe://example.com/prometheus"),
}


@pytest.mark.parametrize("name", NAMES)
def test_only_a_client_with_an_allowed_name_is_served(start: Start, authority: Authority, name: str) -> None:
    endpoint = start(f"{VERIFIED}  client_allowed_sans: ['{name}', other]\n")
    other = x509.DNSName("x.example.com")
    assert endpoint.ask(tls=authority.trust(authority.client("named", other, NAMES[name]))).status == 200
    wrong = [x509.DNSName(f"x{name[1:9].replace(':', '')}"), x509.DNSName("PROMETHEUS.example.com"), other]
    assert endpoint.refuses(authority.trust(authority.client("wrong", *wrong)))
    assert endpoint.refuses(authority.trust(authority.client("nameless")))
    assert endpoint.page.read == 1


def test_a_certificate_and_a_password_are_both_asked_for(start: Start, authority: Authority) -> None:
    endpoint = start(VERIFIED + USERS)
    known = authority.trust(authority.client("prometheus"))
    assert [endpoint.ask(each, tls=known).status for each in (ALICE, None)] == [200, 401]
    assert endpoint.refuses(authority.trust())


# -- files that change ---------------------------------------------------------------------------------


def test_a_new_certificate_is_used_from_the_next_connection_on(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    endpoint = start(TLS)
    with endpoint.connected(authority.trust()) as client:
        assert isinstance(client, ssl.SSLSocket)
        first = client.getpeercert(binary_form=True)
        authority.server("newer")
        (tmp_path / "newer.crt").replace(tmp_path / "server.crt")
        assert endpoint.refuses(authority.trust())  # it does not go with its key yet
        (tmp_path / "newer.key").replace(tmp_path / "server.key")
        with endpoint.connected(authority.trust()) as later:
            assert isinstance(later, ssl.SSLSocket)
            assert later.getpeercert(binary_form=True) != first
        assert is_hung_up_on(client)  # and comes again with a new handshake


def get_again(client: socket.socket, path: str = "/metrics") -> Reply:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return receive_reply(client)


def is_hung_up_on(client: socket.socket, path: str = "/metrics") -> bool:
    """Whether another request on a connection is not answered."""
    try:
        get_again(client, path)
    except TimeoutError:
        raise
    except (OSError, ValueError):
        return True
    return False


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy"])
@pytest.mark.parametrize(
    "after",
    [
        VERIFIED + "  client_allowed_sans: [other.example.com]\n",
        VERIFIED.replace("authority.crt", "others.crt"),
        USERS,
    ],
    ids=["name", "authority", "no TLS"],
)
def test_a_client_certificate_that_is_no_longer_allowed_ends_its_connections(
    start: Start, authority: Authority, tmp_path: Path, after: str, path: str
) -> None:
    Authority(tmp_path, "others")
    before = VERIFIED + "  client_allowed_sans: [prometheus.example.com]\n"
    endpoint = start(before)
    known = authority.trust(authority.client("known", NAMES["prometheus.example.com"]))
    with endpoint.connected(known) as client, endpoint.connected(known) as other:
        for _ in range(2):
            assert get_again(client).status == get_again(other, path).status == 200
        endpoint.write("web.yml", f"# the same\n{before}")
        assert get_again(client).status == 200
        endpoint.write("web.yml", after)
        assert is_hung_up_on(client)
        assert is_hung_up_on(other, path)


@pytest.mark.parametrize("spoilt", ["server.crt", "server.key", "authority.crt", "web.yml"])
def test_a_connection_is_told_that_a_file_of_tls_is_gone(
    start: Start, authority: Authority, tmp_path: Path, spoilt: str
) -> None:
    endpoint = start(VERIFIED)
    known = authority.trust(authority.client("prometheus"))
    with endpoint.connected(known) as client:
        assert get_again(client).status == 200
        (tmp_path / spoilt).rename(tmp_path / "elsewhere")
        assert [get_again(client).status for _ in range(2)] == [500, 500]
        assert endpoint.refuses(known)
        assert endpoint.page.read == 1
        (tmp_path / "elsewhere").rename(tmp_path / spoilt)
        assert endpoint.ask(tls=known).status == 200


def test_a_new_password_is_asked_for_from_the_next_request_on(start: Start) -> None:
    endpoint = start(USERS)
    assert endpoint.ask(ALICE).status == 200
    endpoint.write("web.yml", USERS.replace(HASH, bcrypt.hashpw(b"mirror", bcrypt.gensalt(4)).decode()))
    assert endpoint.ask(ALICE).status == 401
    mirror = base64.b64encode(b"alice:mirror").decode()
    assert endpoint.ask(f"Basic {mirror}").status == 200


def test_a_new_token_is_asked_for_from_the_next_request_on(start: Start) -> None:
    endpoint = start(token=TOKEN)
    endpoint.write("token", "another")
    assert [endpoint.ask(f"Bearer {each}").status for each in (TOKEN, "another")] == [401, 200]


@pytest.mark.parametrize("web", ["", "basic_auth_users: {alice: wonderland}", "oops: 1", TLS + USERS])
def test_a_file_that_is_spoilt_lets_nobody_in_until_it_is_mended(
    start: Start, authority: Authority, caplog: pytest.LogCaptureFixture, web: str
) -> None:
    endpoint = start(USERS, TOKEN)
    endpoint.write("web.yml", web)
    for authorization in (ALICE, f"Bearer {TOKEN}", None):
        reply = endpoint.ask(authorization)
        assert (reply.status, reply.body) == (500, b"The protection of this page can't be used; see the log.\n")
    assert endpoint.ask(path="/-/healthy").status == 200
    assert endpoint.page.read == 0
    (message,) = caplog.messages
    assert message.startswith("nobody is let in to the metrics page: ")
    assert "wonderland" not in message
    endpoint.write("web.yml", USERS)
    assert [endpoint.ask(each).status for each in (ALICE, f"Bearer {TOKEN}", None)] == [200, 200, 401]


@pytest.mark.parametrize(
    "web",
    [
        f'basic_auth_users: {{"a\\ud800": {HASH}}}',
        'tls_server_config: {cert_file: "a\\0b", key_file: server.key}',
        VERIFIED.replace("client_ca_file: authority.crt", 'client_ca: "\\u00e9"'),
    ],
    ids=["a name", "a path", "a certificate"],  # a hash is another one each time
)
def test_a_file_that_nobody_would_write_is_one_that_is_spoilt(
    start: Start, authority: Authority, caplog: pytest.LogCaptureFixture, web: str
) -> None:
    endpoint = start(USERS)
    endpoint.write("web.yml", web)
    assert [endpoint.ask(ALICE).status for _ in range(2)] == [500, 500]
    assert endpoint.ask(path="/-/healthy").status == 200
    (message,) = caplog.messages
    assert message.startswith("nobody is let in to the metrics page: ")
    endpoint.write("web.yml", USERS)
    assert endpoint.ask(ALICE).status == 200
    endpoint.write("beside.yml", web)
    with pytest.raises(UnusableError):
        FileProtection(str(endpoint.folder / "beside.yml"), None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_certificate_is_not_waited_for_at_a_fifo(start: Start, authority: Authority, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("server.crt", "server.key", "authority.crt"):
        (tmp_path / "web.yml").write_text(VERIFIED.replace(name, "fifo"))
        with pytest.raises(UnusableError, match=r"fifo.* can't be used \(not a regular file\)$"):
            FileProtection(str(tmp_path / "web.yml"), None)


@pytest.mark.parametrize("name", ["web.yml", "token"])
def test_a_file_that_is_gone_lets_nobody_in(start: Start, tmp_path: Path, name: str) -> None:
    endpoint = start(USERS, TOKEN)
    (tmp_path / name).unlink()
    assert [endpoint.ask(each).status for each in (ALICE, f"Bearer {TOKEN}", None)] == [500] * 3


def test_tls_can_not_be_switched_off_while_the_page_is_served(
    start: Start, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = start(TLS + USERS)
    endpoint.write("web.yml", USERS)
    assert endpoint.refuses(authority.trust())
    assert endpoint.refuses(None)
    assert caplog.messages == [
        "nobody is let in to the metrics page: TLS can't be switched off while the page is served"
    ]
    endpoint.write("web.yml", TLS + USERS)
    assert endpoint.ask(ALICE, tls=authority.trust()).status == 200


def test_the_files_are_found_though_the_program_changes_its_folder(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "web.yml").write_text(USERS)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.chdir(tmp_path)
    protection = FileProtection("web.yml", "token")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "token").write_text("another")
    assert protection.admits("Bearer another")
    assert protection.admits(ALICE)


# -- what can't be used from the beginning -------------------------------------------------------------


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    path = tmp_path / "server.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"s3cret")
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
    )
    (tmp_path / "web.yml").write_text(TLS)
    with pytest.raises(
        UnusableError, match=r"server\.crt with .*server\.key can't be used \(not in PEM form, or encrypted\)$"
    ):
        FileProtection(str(tmp_path / "web.yml"), None)


@pytest.mark.parametrize(
    ("web", "name"),
    [
        (TLS.replace("server.crt", "none.crt"), "none.crt"),
        (TLS.replace("server.key", "authority.crt"), "authority.crt"),
        (TLS.replace("server.crt", "web.yml"), "web.yml"),
        (VERIFIED.replace("authority.crt", "none.crt"), "none.crt"),
        (VERIFIED.replace("authority.crt", "server.key"), "server.key"),
        (VERIFIED.replace("client_ca_file: authority.crt", "client_ca: nothing"), "client_ca"),
    ],
)
def test_files_that_are_no_certificates_or_keys_are_refused(
    authority: Authority, tmp_path: Path, web: str, name: str
) -> None:
    (tmp_path / "web.yml").write_text(web)
    with pytest.raises(UnusableError, match=rf"{name}.* can't be used \([A-Za-z0-9 :,]+\)$") as caught:
        FileProtection(str(tmp_path / "web.yml"), None)
    assert "\n" not in str(caught.value)


def refused_without(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch, web: str) -> str:
    import sys

    nothing: Any = None
    monkeypatch.setitem(sys.modules, module, nothing)
    (folder / "web.yml").write_text(web)
    with pytest.raises(UnusableError) as caught:
        FileProtection(str(folder / "web.yml"), None)
    return str(caught.value)


def test_what_is_missing_is_named_with_the_line_that_installs_it(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        message = refused_without("yaml", tmp_path, patch, TLS)
        assert message.endswith("PyYAML is not installed; run: pip install 'amptalk_otel[web]'")
    with monkeypatch.context() as patch:
        message = refused_without("bcrypt", tmp_path, patch, USERS)
        assert message.endswith("bcrypt is not installed; run: pip install 'amptalk_otel[web]'")
        (tmp_path / "web.yml").write_text(TLS)
        assert FileProtection(str(tmp_path / "web.yml"), None).uses_tls  # which needs no bcrypt


# -- by settings ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def piped(**settings: Any) -> Iterator[Pipeline]:
    pipeline = acquire(Config(prometheus_port=0, **settings))
    try:
        yield pipeline
    finally:
        assert release(pipeline, TIMEOUT_S)


def test_the_settings_protect_the_page(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(TLS + USERS)
    (tmp_path / "token").write_text(TOKEN)
    files = {
        "prometheus_web_config": str(tmp_path / "web.yml"),
        "prometheus_bearer_token_file": str(tmp_path / "token"),
    }
    with piped(**files) as pipeline:
        url = pipeline.metrics_url
        assert url is not None
        assert url.startswith("https://localhost:")
        port = int(url.split(":")[2].split("/")[0])
        for authorization, status in ((ALICE, 200), (f"Bearer {TOKEN}", 200), ("", 401)):
            with connect(port) as client, authority.trust().wrap_socket(client, server_hostname="localhost") as secured:
                request = f"GET /metrics HTTP/1.0\r\nAuthorization: {authorization}\r\n\r\n"
                secured.sendall(request.encode())
                assert receive_reply(secured).status == status
    assert TOKEN not in repr(pipeline.config)
    assert HASH not in repr(pipeline.config)


@pytest.mark.parametrize("setting", ["prometheus_web_config", "prometheus_bearer_token_file"])
def test_nothing_is_served_where_the_protection_can_not_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    pipeline = acquire(Config(prometheus_port=port, **{setting: str(tmp_path / "nothing")}))  # type: ignore[arg-type]
    try:
        assert pipeline.metrics_url is None
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        is_token = setting == "prometheus_bearer_token_file"  # which may be the token itself, by mistake
        named = "the file of AMPTALK_OTEL_PROMETHEUS_BEARER_TOKEN_FILE" if is_token else str(tmp_path / "nothing")
        assert record.getMessage() == f"metrics are not served: {named} can't be read (No such file or directory)"
        with pytest.raises(ConnectionRefusedError):
            connect(port)
    finally:
        assert release(pipeline, TIMEOUT_S)


def test_who_asks_for_protection_does_not_share_a_page_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "web.yml").write_text(USERS)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    open_to_all = Config(prometheus_port=port)
    guarded = open_to_all.with_changes(prometheus_web_config=str(tmp_path / "web.yml"))
    first = acquire(open_to_all)
    second = acquire(guarded)
    try:
        assert second is not first
        assert second.metrics_url is None
        (message,) = caplog.messages
        assert message.startswith(f"metrics are not served: localhost:{port} can't be bound")
    finally:
        assert release(second, TIMEOUT_S)
        assert release(first, TIMEOUT_S)
    first = acquire(guarded)
    second = acquire(open_to_all)
    try:
        assert second is first  # whose protection is more than was asked for
    finally:
        assert release(second, TIMEOUT_S)
        assert release(first, TIMEOUT_S)


def test_a_scrape_with_a_password_that_is_known_costs_no_bcrypt(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = start(USERS)
    assert endpoint.ask(ALICE).status == 200
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: pytest.fail("checked again"))
    assert [endpoint.ask(ALICE).status for _ in range(3)] == [200] * 3


def test_nothing_is_logged_or_printed_about_requests_that_are_refused(
    start: Start, authority: Authority, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = start(VERIFIED + USERS, TOKEN)
    endpoint.ask("Bearer s3cret", tls=authority.trust(authority.client("prometheus")))
    assert endpoint.refuses(authority.trust())
    assert endpoint.refuses(None)
    time.sleep(0.05)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")
