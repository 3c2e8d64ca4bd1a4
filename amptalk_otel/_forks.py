"""What a forked child has to make anew: a lock that another thread of the parent held would stay locked for ever."""

from __future__ import annotations

import os
from collections.abc import Callable


def after_fork(act: Callable[[], None]) -> None:
    """Call `act` in each forked child, before anything else runs there. Nothing where the system knows no forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)
