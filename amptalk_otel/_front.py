"""The endpoint's front: one thread waits for all clients; a complete request gets a thread of its own.

So a client that is slow, or says nothing, costs a socket and a few bytes, and those are bounded; and what a request
costs is bounded by how many are answered at the same time.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus

from amptalk_otel._connection import WOULD_BLOCK, Connection, State
from amptalk_otel._guard import swallow
from amptalk_otel._http import Answer, BadRequestError, Limits, Request

_PAUSE_S = 0.5  # before the next try to accept, where the process has no more file descriptors
_RETRY_AFTER = ("Retry-After", "5")
_PLACE = "serving the metrics page"

# Its `poll` keeps nothing in the kernel: a forked child that closes its copies changes nothing for its parent.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Front:
    """Serves a listening socket until it is told to end.

    `at_once` answers what needs no thread of its own, and is None for all else. `secure` makes TLS of a new connection,
    `admits` judges its client certificate once TLS is set up, and `still_admits` before each of its requests.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Request], Answer],
        *,
        at_once: Callable[[Request], Answer | None],
        limits: Limits,
        refusal_headers: Iterable[tuple[str, str]],
        secure: Callable[[socket.socket], socket.socket],
        admits: Callable[[socket.socket], bool],
        still_admits: Callable[[socket.socket], bool],
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._at_once = at_once
        self._limits = limits
        self._refusal_headers = tuple(refusal_headers)
        self._secure = secure
        self._admits = admits
        self._still_admits = still_admits
        self._connections: dict[Connection, None] = {}  # all there are, the oldest first
        self._turns: deque[Connection] = deque()
        self._returned: deque[Connection] = deque()  # by those who have answered
        self._answering = 0
        self._threads: list[threading.Thread] = []  # that answer, or did so last
        self._accepts_again_at = 0.0
        self._is_ending = False
        self._alarm, self._bell = socket.socketpair()
        self._selector = _Selector()
        for waited_for in (self._listener, self._alarm):
            waited_for.setblocking(False)
            self._selector.register(waited_for, selectors.EVENT_READ)
        self._bell.setblocking(False)

    # -- the thread that waits -----------------------------------------------------------------------

    def run(self) -> None:
        """Serve, until `end` is called from another thread."""
        try:
            while not self._is_ending:
                self._turn()
        finally:
            self.close()

    def end(self) -> None:
        """Let `run` return."""
        self._is_ending = True
        self._ring()

    def close(self) -> None:
        """Hang up on all clients but those whose answer is being written, and free the port."""
        self._is_ending = True
        self._selector.close()
        for one in (self._listener, self._alarm, self._bell):
            one.close()
        for connection in self._connections:
            if connection.state is not State.ANSWER:
                connection.close()
        self._connections = {connection: None for connection in self._connections if connection.state is State.ANSWER}
        self._close_returned()

    def leave_to_parent(self) -> None:
        """Called in a forked child, where no thread of ours runs: close the copies of all sockets, and say nothing.

        What is connected stays connected to the parent, TLS included: neither is shut down here.
        """
        self._is_ending = True
        self._selector.close()
        for one in (self._listener, self._alarm, self._bell):
            one.close()
        for connection in (*self._connections, *self._returned):
            connection.close()
        self._connections.clear()
        self._returned.clear()

    def wait_for_answers(self, timeout_s: float) -> None:
        """For the threads that are about to end; one whose client does not read takes longer."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _turn(self) -> None:
        events = self._selector.select(self._time_left_s())
        with contextlib.suppress(*WOULD_BLOCK):
            self._alarm.recv(4096)  # before what it rang for is looked after: then it may ring again
        self._take_back()
        for key, _ in events:
            if key.fileobj is self._listener:
                self._accept()
            elif key.data in self._connections:  # or it was closed for another's sake meanwhile
                self._go_on(key.data)
        self._give_turns()
        self._expire()

    def _time_left_s(self) -> float | None:
        deadlines = [connection.deadline for connection in self._connections if connection.state is not State.ANSWER]
        if self._accepts_again_at:
            deadlines.append(self._accepts_again_at)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (*WOULD_BLOCK, ConnectionAbortedError):
            return
        except OSError:
            self._selector.unregister(self._listener)
            self._accepts_again_at = time.monotonic() + _PAUSE_S
            return
        if len(self._connections) >= self._limits.connections and not self._made_room():
            client.close()
            return
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = self._secure(client)
        except Exception as error:
            client.close()
            if not isinstance(error, OSError):
                swallow(_PLACE)
            return
        connection = Connection(client, self._limits, time.monotonic())
        self._connections[connection] = None
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _made_room(self) -> bool:
        quiet = [one for one in self._connections if one.state not in (State.TURN, State.ANSWER)]
        if quiet:
            self._drop(min(quiet, key=lambda connection: connection.quiet_since))
        return bool(quiet)

    def _go_on(self, connection: Connection) -> None:
        """Take a connection as far as it goes without waiting."""
        try:
            if connection.state is State.HANDSHAKE and not self._has_shaken_hands(connection):
                return
            if connection.state is State.REQUEST:
                connection.request = connection.next_request()
                if connection.request is not None:
                    self._take(connection, connection.request)
            elif connection.state is State.END and connection.has_ended():
                self._drop(connection)
        except BadRequestError as error:
            self._refuse(connection, error.status)
        except (OSError, EOFError):
            self._drop(connection)
        except Exception:
            self._drop(connection)
            swallow(_PLACE)

    def _has_shaken_hands(self, connection: Connection) -> bool:
        secured = connection.socket
        assert isinstance(secured, ssl.SSLSocket)
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(secured, selectors.EVENT_READ, connection)
            return False
        except ssl.SSLWantWriteError:
            self._selector.modify(secured, selectors.EVENT_WRITE, connection)
            return False
        self._selector.modify(secured, selectors.EVENT_READ, connection)
        if not self._admits(secured):
            raise ConnectionRefusedError
        connection.state = State.REQUEST
        return True

    def _take(self, connection: Connection, request: Request) -> None:
        """Answer a request that needs no thread, and let others wait for theirs."""
        if not self._still_admits(connection.socket):
            raise ConnectionRefusedError
        self._selector.unregister(connection.socket)
        answer = self._at_once(request)
        if answer is None:
            connection.state = State.TURN
            connection.deadline = time.monotonic() + self._limits.wait_s
            self._turns.append(connection)
            return
        connection.write_at_once(answer)
        self._answering += 1
        self._return(connection)  # its next request has to wait until all others had their turn

    def _refuse(self, connection: Connection, status: HTTPStatus) -> None:
        was_waiting = connection.state is State.TURN
        headers = (*self._refusal_headers, _RETRY_AFTER) if was_waiting else self._refusal_headers
        try:
            connection.refuse(status, headers)
        except OSError:
            self._drop(connection)
            return
        if was_waiting:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _expire(self) -> None:
        now = time.monotonic()
        late = [one for one in self._connections if one.deadline <= now and one.state is not State.ANSWER]
        for connection in late:
            if connection.state is State.TURN:
                self._turns.remove(connection)
                self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE)
            elif connection.state is State.REQUEST and connection.has_begun:
                self._refuse(connection, HTTPStatus.REQUEST_TIMEOUT)
            else:
                self._drop(connection)
        if 0.0 < self._accepts_again_at <= now:
            self._accepts_again_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _drop(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.close()

    # -- the threads that answer ---------------------------------------------------------------------

    def _give_turns(self) -> None:
        while self._turns and self._answering < self._limits.requests:
            connection = self._turns.popleft()
            connection.state = State.ANSWER
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="amptalk-otel-metrics-request", daemon=True
            )
            self._answering += 1
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._answering -= 1
                connection.state = State.TURN
                self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE)

    def _serve(self, connection: Connection) -> None:
        request = connection.request
        assert request is not None
        try:
            connection.write(self._answer(request))
        except OSError:  # the client is gone, or does not read
            connection.close()
        except BaseException:  # a callback's cancellation or exit: in this thread it is nobody's
            connection.close()
            swallow(_PLACE)
        finally:
            self._return(connection)
            if self._is_ending:
                self._close_returned()

    def _return(self, connection: Connection) -> None:
        self._returned.append(connection)
        self._ring()

    def _take_back(self) -> None:
        for _ in range(len(self._returned)):
            try:
                connection = self._returned.popleft()
            except IndexError:  # a thread has closed it, as the end has come
                return
            self._answering -= 1
            connection.request = None
            if connection.state is State.ANSWER or connection.socket.fileno() < 0:  # it has no answer, or a part of it
                self._drop(connection)
                continue
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._go_on(connection)  # its next request may be here already

    def _close_returned(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._returned.popleft().close()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens
            self._bell.send(b"\0")
