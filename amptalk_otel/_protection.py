"""What protects an endpoint: nothing, unless files say otherwise (`_file_protection`)."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from socket import socket


class UnusableError(Exception):
    """The protection that was asked for can't be had; the message says why, in one line without secrets."""


class TooBusyError(Exception):
    """Too many passwords are being checked."""


def regular(path: Path) -> Path:
    """The path of a file. Raises OSError where it is none: whoever reads a FIFO may wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    return path


class Protection:
    """This one lets everybody in."""

    uses_tls: bool = False

    def secure(self, client: socket) -> socket:
        """A new connection as it is to be spoken to. Raises OSError where it is refused."""
        return client

    def admits_peer(self, client: socket) -> bool:  # noqa: ARG002
        """Whether the client at the other end of a connection may ask for anything."""
        return True

    def still_admits(self, client: socket) -> bool:  # noqa: ARG002
        """Whether a connection that was admitted may go on with another request."""
        return True

    def admits(self, authorization: str) -> bool:  # noqa: ARG002
        """Whether a request with this header `Authorization` is answered. Raises TooBusyError and UnusableError."""
        return True

    def challenges(self) -> tuple[str, ...]:
        """What a request that is not admitted is told to send."""
        return ()

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What every answer has besides."""
        return ()


OPEN = Protection()
