"""The web configuration file: what is understood, and that nothing else is taken for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from amptalk_otel._protection import UnusableError
from amptalk_otel._web_config import CIPHERS, CIPHERS_OF_TLS13, TlsSettings, WebConfig, read_web_config

HASH = "$2y$10$6OXsba3NRT4aqhCxA7FHyusbeQeib3fNlNG3XJdHBN/w6G47k9DQ6"
TLS = "tls_server_config:\n  cert_file: a.crt\n  key_file: a.key\n"


def read(folder: Path, text: str) -> WebConfig:
    path = folder / "web.yml"
    path.write_text(text)
    return read_web_config(path)


def problem(folder: Path, text: str) -> str:
    with pytest.raises(UnusableError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'web.yml'}: ")
    return message.removeprefix(f"{folder / 'web.yml'}: ")


# -- what is understood --------------------------------------------------------------------------------


def test_a_whole_file_is_understood_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"""
tls_server_config:
  cert_file: server.crt
  key_file: /etc/keys/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: authorities/ca.crt
  client_allowed_sans: [prometheus.example.com, 10.0.0.1]
  min_version: TLS12
  max_version: TLS12
  prefer_server_cipher_suites: false
  cipher_suites:
    - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
http_server_config:
  http2: false
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: sameorigin
    X-XSS-Protection:
basic_auth_users:
  alice: {HASH}
  no: {HASH}
  007: {HASH}
""",
    )
    assert config == WebConfig(
        tls=TlsSettings(
            cert_file=tmp_path / "server.crt",
            key_file=Path("/etc/keys/server.key"),
            client_auth_type="RequireAndVerifyClientCert",
            client_ca_file=tmp_path / "authorities/ca.crt",
            client_allowed_sans=("prometheus.example.com", "10.0.0.1"),
            cipher_suites=("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",),
            min_version="TLS12",
            max_version="TLS12",
            prefer_server_cipher_suites=False,
        ),
        users={b"alice": HASH.encode(), b"no": HASH.encode(), b"007": HASH.encode()},
        headers=(("Strict-Transport-Security", "max-age=31536000"), ("X-Frame-Options", "sameorigin")),
    )


def test_what_is_left_out_has_the_defaults_of_the_toolkit(tmp_path: Path) -> None:
    tls = read(tmp_path, TLS).tls
    assert tls == TlsSettings(tmp_path / "a.crt", tmp_path / "a.key")
    assert (tls.min_version, tls.max_version, tls.client_auth_type) == ("TLS12", "TLS13", "NoClientCert")
    assert tls.prefer_server_cipher_suites is True
    empty = "  client_auth_type:\n  client_ca_file: ''\n  cipher_suites: []\n  cipher_suites: \n"
    assert read(tmp_path, TLS + empty.replace("  cipher_suites: []\n", "")).tls == tls


def test_a_file_may_have_users_alone_or_headers_alone(tmp_path: Path) -> None:
    assert read(tmp_path, f"basic_auth_users: {{a: {HASH}}}") == WebConfig(users={b"a": HASH.encode()})
    headers = "http_server_config: {headers: {X-Frame-Options: deny}}"
    assert read(tmp_path, headers) == WebConfig(headers=(("X-Frame-Options", "deny"),))


def test_hashes_do_not_show(tmp_path: Path) -> None:
    config = read(tmp_path, f"basic_auth_users: {{alice: {HASH}}}")
    assert HASH not in repr(config)
    assert "alice" not in repr(config)


def test_the_cipher_suites_are_known_to_this_openssl() -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in CIPHERS.values():
        context.set_ciphers(name)
    known = {cipher["name"] for cipher in ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).get_ciphers()}
    assert set(CIPHERS_OF_TLS13) <= known


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, and would protect nothing"),
        ("# nothing\n", "is empty, and would protect nothing"),
        ("{}", "is empty, and would protect nothing"),
        ("- a", "the file must be a mapping"),
        ("a", "the file must be a mapping"),
        ("{[a]: b}", "is not YAML, or has a key twice at line 1"),
        ("a: b\n c: d: e", "is not YAML, or has a key twice at line 2"),
        ("a: \x00", "is not YAML, or has a key twice"),
        ("[" * 100_000, "is not YAML, or has a key twice"),
        ("basic_auth_user: {}", "the file has a key that is not known: 'basic_auth_user'"),
        ("rate_limit: {burst: 1}", "the file has a key that is not known: 'rate_limit'"),
        ("tls_server_config:", "tls_server_config: cert_file is missing"),
        ("tls_server_config: x", "tls_server_config must be a mapping"),
        ("tls_server_config: {min_version: TLS13}", "tls_server_config: cert_file is missing"),
        ("tls_server_config: {cert_file: a}", "tls_server_config: key_file is missing"),
        ("tls_server_config: {cert_file: '', key_file: a}", "tls_server_config: cert_file is missing"),
        (TLS + "  cert_file: b", "is not YAML, or has a key twice at line 2"),
        (TLS + "  certfile: b", "tls_server_config has a key that is not known: 'certfile'"),
        (TLS + "  cert: x", "tls_server_config: cert can't be used here: Python takes certificates from files; give"),
        (TLS + "  key: x", "tls_server_config: key can't be used here: Python takes keys from files; give key_file"),
        (TLS + "  curve_preferences: [X25519]", "tls_server_config: curve_preferences can't be used here: Python has"),
        (TLS + "  min_version: TLS10", "tls_server_config: min_version must be one of TLS12, TLS13"),
        (TLS + "  min_version: TLS13\n  max_version: TLS12", "tls_server_config: max_version is below min_version"),
        (TLS + "  min_version: [TLS13]", "tls_server_config: min_version must be a text"),
        (TLS + "  client_auth_type: Require", "tls_server_config: client_auth_type must be one of NoClientCert, "),
        (TLS + "  client_auth_type: RequireAnyClientCert", "tls_server_config: client_auth_type: Python can't ask "),
        (TLS + "  client_auth_type: RequestClientCert", "tls_server_config: client_auth_type: Python can't ask "),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert", "tls_server_config: client certificates are asked "),
        (TLS + "  client_ca_file: ca.crt", "tls_server_config: there is a client CA, and client_auth_type asks for no"),
        (TLS + "  client_ca: x\n  client_ca_file: y", "tls_server_config: client_ca and client_ca_file exclude each"),
        (TLS + "  client_allowed_sans: [a]", "tls_server_config: client_allowed_sans needs the client_auth_type Req"),
        (
            TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: x\n  client_allowed_sans: [a]",
            "tls_server_config: client_allowed_sans needs the client_auth_type RequireAndVerifyClientCert",
        ),
        (TLS + "  client_allowed_sans: []", "tls_server_config: client_allowed_sans names nobody"),
        (TLS + "  client_allowed_sans: a", "tls_server_config: client_allowed_sans must be a list"),
        (TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]", "tls_server_config: cipher_suites: 'TLS_RSA_WITH_RC4_"),
        (TLS + "  cipher_suites: [[x]]", "tls_server_config: cipher_suites must be a text"),
        (
            TLS + "  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]",
            "tls_server_config: cipher_suites has none for TLS 1.2, which is the max_version",
        ),
        (TLS + "  prefer_server_cipher_suites: 1", "tls_server_config: prefer_server_cipher_suites must be true or f"),
        ("http_server_config: {http3: true}", "http_server_config has a key that is not known: entry 1"),
        ("http_server_config: {http2: maybe}", "http_server_config: http2 must be true or false"),
        ("http_server_config: {headers: {Server: x}}", "http_server_config: headers has a key that is not known: e"),
        ("http_server_config: {headers: {X-Frame-Options: no}}", "http_server_config: X-Frame-Options can't have t"),
        ("http_server_config: {headers: {X-XSS-Protection: 'é'}}", "http_server_config: X-XSS-Protection can't have"),
        ('http_server_config: {headers: {X-XSS-Protection: "a\\r\\nb"}}', "http_server_config: X-XSS-Protection can"),
        ("basic_auth_users:", "basic_auth_users names nobody"),
        ("basic_auth_users: {}", "basic_auth_users names nobody"),
        ("basic_auth_users: [alice]", "basic_auth_users must be a mapping"),
        ("basic_auth_users: {alice: s3cret}", "basic_auth_users: entry 1 has no bcrypt hash"),
        ("basic_auth_users: {alice: }", "basic_auth_users: entry 1 has no bcrypt hash"),
        ("basic_auth_users: {alice: [a]}", "basic_auth_users: entry 1 has no bcrypt hash"),
        (f"basic_auth_users: {{alice: {HASH}s}}", "basic_auth_users: entry 1 has no bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH}, '{HASH}': b}}", "basic_auth_users: entry 2 has no bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH}, s3cret: b}}", "basic_auth_users: entry 2 has no bcrypt hash"),
        (
            f"basic_auth_users: {{alice: {HASH.replace('$10$', '$32$')}}}",
            "basic_auth_users: entry 1 has no bcrypt hash",
        ),
        (
            # Six bits of the salt's last character count two, and bcrypt takes no others: it would fail each request.
            f"basic_auth_users: {{alice: {HASH[:28]}v{HASH[29:]}}}",
            "basic_auth_users: entry 1 has no bcrypt hash",
        ),
        (
            f"basic_auth_users: {{'a:b': {HASH}}}",
            "basic_auth_users: entry 1 has a name with a colon, which basic auth can't send",
        ),
        (f'basic_auth_users: {{"a\\ud800": {HASH}}}', "basic_auth_users: entry 1 has a name that can't be sent"),
        (f"'{HASH}': x", "the file has a key that is not known: entry 1"),
        ("tls_server_config: {cert_file: a, S3cret: x}", "tls_server_config has a key that is not known: entry 2"),
        (f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}", "is not YAML, or has a key twice at line 2"),
        ("basic_auth_users: {<<: {a: b}}", "basic_auth_users: entry 1 has no bcrypt hash"),
    ],
)
def test_a_file_that_is_not_quite_right_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    found = problem(tmp_path, text)
    assert found.startswith(message)
    assert "s3cret" not in found.lower()
    assert HASH not in found


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_bytes(b"basic_auth_users: {caf\xe9: x}")
    with pytest.raises(UnusableError, match="is not YAML"):
        read_web_config(path)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    with pytest.raises(UnusableError, match=r"web\.yml can't be read \(No such file or directory\)$"):
        read_web_config(path)
    with pytest.raises(UnusableError, match=r"can't be read \(Not a regular file\)$"):
        read_web_config(tmp_path)
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UnusableError, match=r"has more than 1048576 bytes$"):
        read_web_config(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_file_is_not_waited_for_at_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "web.yml")
    with pytest.raises(UnusableError, match=r"web\.yml can't be read \(Not a regular file\)$"):
        read_web_config(tmp_path / "web.yml")


@pytest.mark.parametrize("last", ".Oeu")
def test_hashes_of_bcrypt_are_taken_and_bcrypt_takes_them(tmp_path: Path, last: str) -> None:
    hashed = HASH[:28] + last + HASH[29:]
    assert read(tmp_path, f"basic_auth_users: {{alice: {hashed}}}").users == {b"alice": hashed.encode()}
    bcrypt.checkpw(b"x", hashed.encode())


def test_without_pyyaml_the_message_has_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    monkeypatch.setitem(sys.modules, "yaml", nothing)
    assert problem(tmp_path, TLS) == "PyYAML is not installed; run: pip install 'amptalk_otel[web]'"
