"""Whose work is under way: the current task, and the frames of those who wait for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


def current_task() -> asyncio.Task[Any] | None:
    """The task under way; None where no loop runs, or a callback."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def callers() -> Iterator[FrameType]:
    """The frames of whoever called the caller of this, the nearest first; within a task, those who await it too."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - as `inspect` does, at a lower cost
    while frame is not None:
        yield frame
        frame = frame.f_back
