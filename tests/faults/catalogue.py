"""Every fault: its name, how it is injected, and the function that tries it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from tests.faults.trial import Trial

MODULES = ("seams", "agents", "ways_out", "collectors", "loops", "processes")


@dataclass(frozen=True)
class Fault:
    """One row of the table in docs/reliability.md."""

    name: str
    how: str
    attempt: Callable[[], Trial]
    needs: Callable[[], str | None]
    in_own_process: bool
    """Its program is; then stdout and exit status are compared, and stderr is what leaks."""

    @property
    def missing(self) -> str | None:
        """What this machine lacks for it; None where it can be tried."""
        return self.needs()


_known: dict[str, Fault] = {}


def fault(
    name: str, how: str, *, needs: Callable[[], str | None] = lambda: None, own_process: bool = False
) -> Callable[[Callable[[], Trial]], Callable[[], Trial]]:
    """Register a function as the trial of a fault."""

    def register(attempt: Callable[[], Trial]) -> Callable[[], Trial]:
        if name in _known:
            raise ValueError(f"there are two faults of the name {name!r}")
        _known[name] = Fault(name, how, attempt, needs, own_process)
        return attempt

    return register


def faults() -> list[Fault]:
    """All of them, in the order of the table."""
    for module in MODULES:
        import_module(f"tests.faults.{module}")
    return list(_known.values())


def python(major: int, minor: int) -> Callable[[], str | None]:
    """For faults that only a later Python has."""
    return lambda: None if sys.version_info >= (major, minor) else f"needs Python {major}.{minor}"
