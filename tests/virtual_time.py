"""An event loop whose clock jumps to the next timer: hours of an agent's life in a second, the same in each run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: time passes instead."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Of a single thread, with timers and nothing else to wait for."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(main: Callable[[Callable[[], float]], Coroutine[Any, Any, None]]) -> None:
    """Run `main`, which is given the clock, to its end."""
    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(main(loop.time))
    finally:
        loop.close()
