"""One at a time, and once for all who wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

PATIENCE_S = 30.0

ResultT = TypeVar("ResultT")


class Turns(Generic[ResultT]):
    """Runs `make` for callers from any thread: never two at once, and once for all who came before it began.

    Whoever comes while it runs waits for the next run, so that no result is older than the call for it. At most the
    run under way and the one after it are waited for, for 30 s at most; after that, TimeoutError. What `make` raises
    is raised for all who share the run, and the next one begins afresh.
    """

    def __init__(self, make: Callable[[], ResultT], patience_s: float = PATIENCE_S) -> None:
        self._make = make
        self._patience_s = patience_s
        self._next: Future[ResultT] | None = None  # the run that has not begun, if anybody waits for it
        self._lock = threading.Lock()  # of `_next`; never held for longer than it takes to look
        self._at_work = threading.Lock()

    def share(self) -> ResultT:
        """The result of a run that begins after this call."""
        with self._lock:
            coming = self._next
            leads = coming is None
            if coming is None:
                coming = self._next = Future()
        if leads:
            self._run(coming)
        return coming.result(self._patience_s)

    def _run(self, coming: Future[ResultT]) -> None:
        in_turn = self._at_work.acquire(timeout=self._patience_s)
        try:
            with self._lock:
                self._next = None
            if in_turn:
                coming.set_result(self._make())
            else:
                coming.set_exception(TimeoutError(f"the turn before takes longer than {self._patience_s} s"))
        except BaseException as error:  # whoever shares it must hear of it, whatever it is
            coming.set_exception(error)
        finally:
            if in_turn:
                self._at_work.release()
