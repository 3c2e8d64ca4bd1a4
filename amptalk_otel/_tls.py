"""TLS as a web configuration has it: a context of the standard library, and who a client certificate is for."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import ssl
from collections.abc import Iterable
from typing import Any

from amptalk_otel._protection import UnusableError, regular
from amptalk_otel._web_config import CIPHERS, TlsSettings

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_KINDS = ("DNS", "email", "IP Address", "URI")


def context_for(tls: TlsSettings) -> ssl.SSLContext:
    """The context of a server. Raises UnusableError where a file can't be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.maximum_version = _VERSIONS[tls.max_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if tls.prefer_server_cipher_suites:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    _choose_ciphers(context, tls)
    _load(context, tls)
    context.verify_mode = _VERIFY[tls.client_auth_type]
    return context


def _choose_ciphers(context: ssl.SSLContext, tls: TlsSettings) -> None:
    if not tls.cipher_suites:
        return
    older = [CIPHERS[name] for name in tls.cipher_suites if name in CIPHERS]
    if not older:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return
    try:
        context.set_ciphers(":".join(older))
    except ssl.SSLError:
        raise UnusableError("tls_server_config: this OpenSSL has none of the cipher_suites") from None


def _load(context: ssl.SSLContext, tls: TlsSettings) -> None:
    try:
        # Without a password, OpenSSL would ask for an encrypted key's on the terminal.
        context.load_cert_chain(regular(tls.cert_file), regular(tls.key_file), password=b"")
    except (OSError, ValueError) as error:
        raise UnusableError(f"{tls.cert_file} with {tls.key_file} can't be used ({_reason(error)})") from None
    if tls.client_ca_file is None and tls.client_ca is None:
        return
    try:
        authorities = regular(tls.client_ca_file) if tls.client_ca_file is not None else None
        context.load_verify_locations(cafile=authorities, cadata=tls.client_ca)
    except (OSError, ValueError) as error:
        raise UnusableError(f"{tls.client_ca_file or 'client_ca'} can't be used ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """In OpenSSL's or the system's words, of which none quotes the file."""
    words = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__qualname__)
    plain = re.sub(r"^\[SSL\] | \(_ssl\.c:\d+\)$", "", words).lower().replace("_", " ")
    return "not in PEM form, or encrypted" if plain == "pem lib" else plain


def is_for_one_of(client: ssl.SSLSocket, allowed: tuple[str, ...]) -> bool:
    """Whether the client's certificate has one of these subject alternative names: DNS, e-mail, IP or URI, exactly."""
    certificate: Any = client.getpeercert() or {}
    names: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ())
    return any(_plain(kind, name) in allowed for kind, name in names if kind in _KINDS)


def _plain(kind: str, name: str) -> str:
    """Addresses as they are usually written, which OpenSSL does not do with those of IPv6."""
    if kind == "IP Address":
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(name.strip()))
    return name
