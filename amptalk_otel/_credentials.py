"""Who may read the page: users with passwords, and bearers of a token. Nothing here is logged, or compared in parts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from amptalk_otel._protection import TooBusyError, UnusableError, regular

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # https://www.rfc-editor.org/rfc/rfc6750#section-2.1
_TOKEN_BYTES = 4096
# Not its path: that may be the token itself, given in place of its file.
_FILE = "the file of AMPTALK_OTEL_PROMETHEUS_BEARER_TOKEN_FILE"
_REMEMBERED = 100
_WAITING = 4
_PASSWORD_BYTES = 72  # bcrypt takes no more


def divided(authorization: str) -> tuple[str, bytes]:
    """An `Authorization` header's scheme in lower case, and its credentials."""
    scheme, _, credentials = authorization.partition(" ")
    return scheme.lower(), credentials.strip().encode("latin-1", "replace")


class Passwords:
    """Checks passwords against bcrypt hashes, one at a time: each takes tenths of a second of CPU, on purpose.

    Passwords that were right are remembered, as keyed digests, until their user's hash changes.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._right: dict[bytes, None] = {}
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_WAITING + 1)  # and the one that is checked

    def admit(self, credentials: bytes, users: Mapping[bytes, bytes]) -> bool:
        """Whether these credentials of basic auth are those of a user. Raises TooBusyError."""
        try:
            user, colon, password = base64.b64decode(credentials, validate=True).partition(b":")
        except binascii.Error:
            return False
        if not colon:
            return False
        hashed = users.get(user)
        digest = self._digest(user, hashed or b"", password)
        if digest in self._right:
            return True
        if not self._waiting.acquire(blocking=False):
            raise TooBusyError
        try:
            with self._turn:
                if digest in self._right:  # meanwhile
                    return True
                # A user that is not there takes as long as one of those that are.
                is_right = _matches(password, hashed or self._stand_in(user, users)) and hashed is not None
                if is_right:
                    self._remember(digest)
                return is_right
        finally:
            self._waiting.release()

    def _digest(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, framed, "sha256")

    def _stand_in(self, user: bytes, users: Mapping[bytes, bytes]) -> bytes:
        number = int.from_bytes(self._digest(user)[:8], "big")
        return list(users.values())[number % len(users)]

    def _remember(self, digest: bytes) -> None:
        while len(self._right) >= _REMEMBERED:
            del self._right[next(iter(self._right))]
        self._right[digest] = None


def _matches(password: bytes, hashed: bytes) -> bool:
    import bcrypt

    is_possible = len(password) <= _PASSWORD_BYTES and b"\0" not in password
    return bcrypt.checkpw(password if is_possible else b"-", hashed) and is_possible


def require_bcrypt() -> None:
    """Raise UnusableError where passwords can't be checked."""
    try:
        import bcrypt  # noqa: F401
    except ImportError:
        raise UnusableError("bcrypt is not installed; run: pip install 'amptalk_otel[web]'") from None


def read_token(path: Path) -> bytes:
    """The digest of the token in a file. Raises UnusableError where there is none."""
    try:
        with regular(path).open("rb") as file:
            token = file.read(_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise UnusableError(f"{_FILE} can't be read ({error.strerror})") from None
    if len(token) > _TOKEN_BYTES or not _TOKEN.fullmatch(token):
        raise UnusableError(f"{_FILE} has no bearer token: letters, digits and ._~+/- in one line")
    return hashlib.sha256(token).digest()


def is_token(credentials: bytes, digest: bytes) -> bool:
    """Whether these are the token's; takes the same time wherever they differ."""
    return hmac.compare_digest(hashlib.sha256(credentials).digest(), digest)
