"""Long work in a thread, in small steps, so that the event loop in another thread is not kept waiting."""

from __future__ import annotations

import asyncio
import time

WORK_S = 0.0007
"""Work between two pauses: what an event loop may have to wait for the interpreter."""

MOST_WORK_S = 0.002
"""The same where the loop itself keeps us waiting."""

PAUSE_S = 0.001
"""How long the interpreter is given away, so that more than half of the time is left to the program.

A loop that waits for nothing but sockets and timers would do with the tenth of it. But each system call of a busy one
gives the interpreter away as well, and would cost it a whole stretch of our work. `time.sleep(0)` takes the interpreter
back before the waiting thread has woken up."""

_SHARE = 4


class Pace:
    """Gives the interpreter away for a millisecond after every 0.7 ms of work, and once to begin with.

    A thread that computes is asked for the interpreter only after `sys.getswitchinterval()` (5 ms), and a scrape of
    many agents would delay the loop by that, again and again. What the work calls in one piece is not divided:
    `breathe` has to be called often.

    A loop that is busy gives the interpreter back after that interval only. Then we work for a quarter of the time
    that we waited, or a scrape would come too late just when it is needed most. To have waited once is no sign of that:
    the machine may have been busy.
    """

    def __init__(self) -> None:
        self._until = time.perf_counter()
        self._waited_s = 0.0  # the last time

    def breathe(self) -> None:
        """Pause if it is time to. Costs a tenth of a microsecond if it is not."""
        now = time.perf_counter()
        if now >= self._until:
            if not runs_a_loop():
                time.sleep(PAUSE_S)
            again = time.perf_counter()
            former_s, self._waited_s = self._waited_s, again - now
            self._until = again + min(MOST_WORK_S, max(WORK_S, min(former_s, self._waited_s) / _SHARE))


def runs_a_loop() -> bool:
    """Whether this thread runs an event loop: then a pause would delay what it is there to protect."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
