"""The web configuration file of Prometheus' exporters: read strictly, for what is misunderstood protects nothing.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What is known there and can't be
done here is an error as well. No message quotes a value that may be secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amptalk_otel._protection import UnusableError, regular

_MAX_BYTES = 1 << 20
_MISSING = "run: pip install 'amptalk_otel[web]'"

_BCRYPT = re.compile(r"\$2[aby]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # YAML can write one, and no encoding has any
_PLAIN_KEY = re.compile(r"[a-z_]{1,50}")
_VERSIONS = ("TLS12", "TLS13")
_CLIENT_AUTH = ("NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
_HEADERS: Mapping[str, tuple[str, ...]] = {  # and the values they may have; none: any
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

CIPHERS: Mapping[str, str] = {  # Go's names, which the file has, and OpenSSL's
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""Those of TLS 1.2 (https://pkg.go.dev/crypto/tls#CipherSuites); those of TLS 1.3 can't be chosen, there as here."""

CIPHERS_OF_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


@dataclass(frozen=True)
class TlsSettings:
    """`tls_server_config`."""

    cert_file: Path
    key_file: Path
    client_auth_type: str = "NoClientCert"
    client_ca_file: Path | None = None
    client_ca: str | None = None
    client_allowed_sans: tuple[str, ...] | None = None
    cipher_suites: tuple[str, ...] = ()
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    prefer_server_cipher_suites: bool = True


@dataclass(frozen=True)
class WebConfig:
    """What the file says; users have bcrypt hashes."""

    tls: TlsSettings | None = None
    users: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    headers: tuple[tuple[str, str], ...] = ()


def read_web_config(path: Path) -> WebConfig:
    """What a file says. Raises UnusableError where it can't be read, or says anything that can't be done."""
    try:
        with regular(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UnusableError(f"{path} can't be read ({error.strerror})") from None
    if len(content) > _MAX_BYTES:
        raise UnusableError(f"{path} has more than {_MAX_BYTES} bytes")
    try:
        return _web_config(_document(content), path.parent)
    except UnusableError as error:
        raise UnusableError(f"{path}: {error}") from None


def _document(content: bytes) -> Any:
    """YAML in which every scalar is a text, so that a user may be called `no` or `007`."""
    try:
        import yaml
    except ImportError:
        raise UnusableError(f"PyYAML is not installed; {_MISSING}") from None

    class Loader(yaml.BaseLoader):
        """Takes no key twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(node.value):
                raise yaml.constructor.ConstructorError(problem_mark=node.start_mark)
            made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            return made

    try:
        return yaml.load(content, Loader)  # noqa: S506 - a BaseLoader makes nothing but texts, lists and mappings
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise UnusableError(f"is not YAML, or has a key twice{place}") from None


def _web_config(document: Any, folder: Path) -> WebConfig:
    sections = _mapping("the file", document, ("tls_server_config", "http_server_config", "basic_auth_users"))
    if not sections:
        raise UnusableError("is empty, and would protect nothing")
    tls = _tls(sections["tls_server_config"], folder) if "tls_server_config" in sections else None
    users = _users(sections["basic_auth_users"]) if "basic_auth_users" in sections else {}
    return WebConfig(tls, users, _http(sections.get("http_server_config", "")))


# -- sections ------------------------------------------------------------------------------------------


def _tls(section: Any, folder: Path) -> TlsSettings:
    where = "tls_server_config"
    given = _mapping(where, section, (*_TLS_KEYS, *_TLS_UNABLE))
    for key in _TLS_UNABLE:
        if key in given:
            raise UnusableError(f"{where}: {key} can't be used here: {_TLS_UNABLE[key]}")
    values: dict[str, Any] = {key: _TLS_KEYS[key](f"{where}: {key}", value) for key, value in given.items()}
    values = {key: value for key, value in values.items() if value not in ("", ())}
    for key in ("cert_file", "key_file"):
        if key not in values:
            raise UnusableError(f"{where}: {key} is missing")
    for key in ("cert_file", "key_file", "client_ca_file"):
        if key in values:
            values[key] = folder / values[key]
    return _consistent(TlsSettings(**values))


def _consistent(tls: TlsSettings) -> TlsSettings:
    verifies = tls.client_auth_type != "NoClientCert"
    authorities = [each for each in (tls.client_ca_file, tls.client_ca) if each is not None]
    problems = {
        "max_version is below min_version": tls.max_version < tls.min_version,
        "client_ca and client_ca_file exclude each other": len(authorities) > 1,
        "client certificates are asked for, and there is no client_ca_file": verifies and not authorities,
        "there is a client CA, and client_auth_type asks for no certificate": bool(authorities) and not verifies,
        "client_allowed_sans needs the client_auth_type RequireAndVerifyClientCert": (
            tls.client_allowed_sans is not None and tls.client_auth_type != "RequireAndVerifyClientCert"
        ),
        "cipher_suites has none for TLS 1.2, which is the max_version": (
            bool(tls.cipher_suites) and tls.max_version == "TLS12" and not set(tls.cipher_suites) & set(CIPHERS)
        ),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UnusableError(f"tls_server_config: {problem}")
    return tls


def _users(section: Any) -> dict[bytes, bytes]:
    users = _mapping("basic_auth_users", section, None)
    if not users:
        raise UnusableError("basic_auth_users names nobody")
    for number, (name, hashed) in enumerate(users.items(), 1):
        # Names are not told: a password, or its hash, may stand where a name should.
        where = f"basic_auth_users: entry {number} has"
        if ":" in name:
            raise UnusableError(f"{where} a name with a colon, which basic auth can't send")
        if _SURROGATE.search(name):
            raise UnusableError(f"{where} a name that can't be sent")
        if not isinstance(hashed, str) or not _BCRYPT.fullmatch(hashed):
            raise UnusableError(f"{where} no bcrypt hash")
    return {name.encode(): hashed.encode() for name, hashed in users.items()}


def _http(section: Any) -> tuple[tuple[str, str], ...]:
    where = "http_server_config"
    given = _mapping(where, section, ("http2", "headers"))
    _boolean(f"{where}: http2", given.get("http2", "true"))  # spoken or not, a client that can do both is served
    headers = _mapping(f"{where}: headers", given.get("headers", ""), tuple(_HEADERS))
    for name, value in headers.items():
        allowed = _HEADERS[name]
        if not _text(name, value).isprintable() or not value.isascii() or (allowed and value not in ("", *allowed)):
            raise UnusableError(f"{where}: {name} can't have this value")
    return tuple((name, value) for name, value in headers.items() if value)


# -- values --------------------------------------------------------------------------------------------


def _mapping(where: str, value: Any, known: Iterable[str] | None) -> dict[str, Any]:
    if value in ("", None):
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UnusableError(f"{where} must be a mapping")
    if known is not None:
        allowed = set(known)
        for number, key in enumerate(value, 1):
            if key not in allowed:
                shown = repr(key) if _PLAIN_KEY.fullmatch(key) else f"entry {number}"  # which may be a secret
                raise UnusableError(f"{where} has a key that is not known: {shown}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UnusableError(f"{where} must be a text")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if value == "":
        return ()
    if not isinstance(value, list):
        raise UnusableError(f"{where} must be a list")
    return tuple(_text(where, each) for each in value)


def _boolean(where: str, value: Any) -> bool:
    text = _text(where, value).lower()
    if text not in _BOOLEANS:
        raise UnusableError(f"{where} must be true or false")
    return _BOOLEANS[text]


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def read(where: str, value: Any) -> str:
        text = _text(where, value)
        if text in _UNVERIFIED:
            raise UnusableError(f"{where}: Python can't ask for a certificate that it does not verify")
        if text not in ("", *known):
            raise UnusableError(f"{where} must be one of {', '.join(known)}")
        return text

    return read


def _ciphers(where: str, value: Any) -> tuple[str, ...]:
    names = _texts(where, value)
    unknown = [name for name in names if name not in CIPHERS and name not in CIPHERS_OF_TLS13]
    if unknown:
        raise UnusableError(f"{where}: {unknown[0][:50]!r} is none of Go's secure suites")
    return names


def _sans(where: str, value: Any) -> tuple[str, ...]:
    names = _texts(where, value)
    if not names:  # which would let nobody in
        raise UnusableError(f"{where} names nobody")
    return names


_TLS_KEYS: Mapping[str, Callable[[str, Any], Any]] = {
    "cert_file": _text,
    "key_file": _text,
    "client_auth_type": _one_of(*_CLIENT_AUTH),
    "client_ca_file": _text,
    "client_ca": _text,
    "client_allowed_sans": _sans,
    "cipher_suites": _ciphers,
    "min_version": _one_of(*_VERSIONS),
    "max_version": _one_of(*_VERSIONS),
    "prefer_server_cipher_suites": _boolean,
}

_TLS_UNABLE: Mapping[str, str] = {
    "cert": "Python takes certificates from files; give cert_file",
    "key": "Python takes keys from files; give key_file",
    "curve_preferences": "Python has no way to set them",
}
