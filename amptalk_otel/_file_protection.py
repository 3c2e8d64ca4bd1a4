"""A protection as its files say at this moment; where they can't be used, nobody is let in."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import Generic, TypeVar

from amptalk_otel._credentials import Passwords, divided, is_token, read_token, require_bcrypt
from amptalk_otel._guard import complain
from amptalk_otel._protection import Protection, UnusableError
from amptalk_otel._tls import context_for, is_for_one_of
from amptalk_otel._web_config import WebConfig, read_web_config

_T = TypeVar("_T")


class FileProtection(Protection):
    """What a web configuration and a token's file say. Both are read again when they, or certificates, change.

    Whether there is TLS is settled once. Raises UnusableError where anything can't be used from the beginning.
    """

    def __init__(self, web_config: str | None, token_file: str | None) -> None:
        self._passwords = Passwords()
        path = Path(web_config).absolute() if web_config else None  # the program may change its folder
        self._config: _Kept[WebConfig] = _Kept(lambda: _stamps(path), lambda: _config(path))
        token = Path(token_file).absolute() if token_file else None
        self._token: _Kept[bytes | None] = _Kept(lambda: _stamps(token), lambda: read_token(token) if token else None)
        self._context: _Kept[ssl.SSLContext | None] = _Kept(self._context_key, self._make_context)
        self.uses_tls = self._context.get() is not None
        self._token.get()

    def _context_key(self) -> object:
        tls = self._config.get().tls
        return tls, _stamps(*(tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ())

    def _make_context(self) -> ssl.SSLContext | None:
        tls = self._config.get().tls
        return context_for(tls) if tls is not None else None

    def secure(self, client: socket) -> socket:
        if not self.uses_tls:
            return client
        context = self._usable(self._context)
        if context is None:
            raise _refused("TLS can't be switched off while the page is served")
        return context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)

    def admits_peer(self, client: socket) -> bool:
        tls = self._usable(self._config).tls
        allowed = tls.client_allowed_sans if tls is not None else None
        return allowed is None or (isinstance(client, ssl.SSLSocket) and is_for_one_of(client, allowed))

    def still_admits(self, client: socket) -> bool:
        """Not once anything of TLS is another: who may connect is judged by a new handshake."""
        try:
            return not isinstance(client, ssl.SSLSocket) or client.context is self._context.get()
        except UnusableError:
            return True  # its requests are told so

    def admits(self, authorization: str) -> bool:
        config, token = self._usable(self._config), self._usable(self._token)
        if config.tls is not None and not self.uses_tls:
            raise _refused("TLS can't be switched on while the page is served")
        self._usable(self._context)
        if not config.users and token is None:
            return True
        scheme, credentials = divided(authorization)
        if scheme == "bearer" and token is not None:
            return is_token(credentials, token)
        if scheme == "basic" and config.users:
            return self._passwords.admit(credentials, config.users)
        return False

    def challenges(self) -> tuple[str, ...]:
        basic = ('Basic realm="metrics", charset="UTF-8"',) if self._usable(self._config).users else ()
        return (*basic, 'Bearer realm="metrics"') if self._usable(self._token) is not None else basic

    def headers(self) -> tuple[tuple[str, str], ...]:
        try:
            return self._config.get().headers
        except UnusableError:
            return ()

    def _usable(self, kept: _Kept[_T]) -> _T:
        try:
            return kept.get()
        except UnusableError as error:
            raise _refused(str(error)) from None


def _refused(reason: str) -> _RefusedError:
    complain("protection of the metrics page", "nobody is let in to the metrics page: %s", reason)
    return _RefusedError(reason)


class _RefusedError(UnusableError, ConnectionError):
    """Ends a connection that is being made, and a request with an error."""


def _config(path: Path | None) -> WebConfig:
    config = read_web_config(path) if path is not None else WebConfig()
    if config.users:
        require_bcrypt()
    return config


def _stamps(*paths: Path | None) -> tuple[object, ...]:
    """What changes when a file does."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path | None) -> object:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class _Kept(Generic[_T]):
    """What `make` returns, or the reason why it can't; made anew when `key` changes."""

    def __init__(self, key: Callable[[], object], make: Callable[[], _T]) -> None:
        self._key = key
        self._make = make
        self._lock = threading.Lock()
        self._seen: tuple[object, _T | None, str | None] | None = None

    def get(self) -> _T:
        try:
            key = self._key()
        except Exception as error:
            raise UnusableError(_reason(error)) from None
        seen = self._seen
        if seen is None or seen[0] != key:
            with self._lock:
                seen = self._seen = self._made(key)
        _, value, problem = seen
        if problem is not None:
            raise UnusableError(problem)
        return value  # type: ignore[return-value]

    def _made(self, key: object) -> tuple[object, _T | None, str | None]:
        try:
            return key, self._make(), None
        except Exception as error:  # whatever is the matter with a file: nobody is let in, and the next change is seen
            return key, None, _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, UnusableError):
        return str(error)
    return f"what the files say can't be used ({type(error).__qualname__})"
