"""One client's connection: what is read of it without waiting, and what is written to it within a time."""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus

from amptalk_otel._http import Answer, Limits, Request, take_request, written

_RECEIVE_BYTES = 1 << 16
_DISCARDED_BYTES = 1 << 20

WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class State(enum.Enum):
    """What a connection waits for."""

    HANDSHAKE = enum.auto()  # for TLS to be set up
    REQUEST = enum.auto()  # for a request, or the rest of its head
    TURN = enum.auto()  # for a thread to answer
    ANSWER = enum.auto()  # for its answer to be written; a thread has it
    END = enum.auto()  # for the client to hang up


class Connection:
    """A socket that does not block, the bytes that came of it, and until when it has what it waits for.

    One thread has it at a time: the one that waits for all connections, or the one that answers its request.
    """

    def __init__(self, client: socket.socket, limits: Limits, now: float) -> None:
        self.socket = client
        self.state = State.HANDSHAKE if isinstance(client, ssl.SSLSocket) else State.REQUEST
        self.request: Request | None = None
        self.deadline = now + limits.head_s
        self.quiet_since = now
        self._limits = limits
        self._buffer = bytearray()
        self._is_used = False  # its deadline is that of an idle connection, until the next request begins
        self._discarded = 0

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request is there; some clients send an empty line after each."""
        return bool(self._buffer.lstrip(b"\r\n"))

    def next_request(self) -> Request | None:
        """The next request, or None while it is not complete.

        Raises BadRequestError, and EOFError or OSError where the client is gone.
        """
        while (request := take_request(self._buffer, self._limits)) is None:
            try:
                received = self.socket.recv(_RECEIVE_BYTES)
            except WOULD_BLOCK:
                self._note_begin()
                return None
            if not received:
                raise EOFError
            self._buffer += received
        return request

    def _note_begin(self) -> None:
        if self._is_used and self.has_begun:
            self._is_used = False
            self.deadline = time.monotonic() + self._limits.head_s

    def write(self, answer: Answer) -> None:
        """Write a whole answer; the state tells what comes then. Raises OSError, TimeoutError among them."""
        until = time.monotonic() + self._limits.write_s
        for piece in self._pieces(answer, keeps=self._is_kept):
            self._send(memoryview(piece), until)
        self._go_on(keeps=self._is_kept)

    def write_at_once(self, answer: Answer) -> None:
        """As `write`, without waiting: raises OSError where it does not fit into the socket's buffer."""
        self._fit(answer, keeps=self._is_kept)
        self._go_on(keeps=self._is_kept)

    @property
    def _is_kept(self) -> bool:
        return self.request is not None and self.request.keeps

    def _pieces(self, answer: Answer, *, keeps: bool) -> Iterator[bytes]:
        is_head = self.request is not None and self.request.method == "HEAD"
        return written(answer, keeps=keeps, with_body=not is_head)

    def _fit(self, answer: Answer, *, keeps: bool) -> None:
        self.socket.setblocking(False)
        for piece in self._pieces(answer, keeps=keeps):
            if self.socket.send(piece) < len(piece):
                raise BlockingIOError

    def _go_on(self, *, keeps: bool) -> None:
        self.socket.setblocking(False)
        self.quiet_since = time.monotonic()
        if keeps:
            self.state, self._is_used = State.REQUEST, True
            self.deadline = self.quiet_since + self._limits.idle_s
        else:
            self._finish_writing()

    def _send(self, rest: memoryview, until: float) -> None:
        while rest:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.socket.settimeout(left_s)
            rest = rest[self.socket.send(rest) :]

    def refuse(self, status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> None:
        """Answer at once, with what fits into the socket's buffer, and end. Raises OSError where it does not fit."""
        self._fit(Answer(status, tuple(headers), [f"{status.value} {status.phrase}\n".encode()]), keeps=False)
        self._finish_writing()

    def _finish_writing(self) -> None:
        """Tell the client that no more comes, and wait for it to hang up: what it sent would reset the connection."""
        self.state = State.END
        self.deadline = time.monotonic() + self._limits.linger_s
        if isinstance(self.socket, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                self.socket.unwrap()
        self.socket.shutdown(socket.SHUT_WR)

    def has_ended(self) -> bool:
        """Throw away what comes; True once the client has hung up, or goes on for too long."""
        while self._discarded < _DISCARDED_BYTES:
            try:
                received = len(self.socket.recv(_RECEIVE_BYTES))
            except WOULD_BLOCK:
                return False
            if not received:
                return True
            self._discarded += received
        return True

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.socket.close()
