"""What instrumented objects look like from outside. Matched by structure: nothing of the framework is imported.

Attributes are read-only here, so that an object whose attribute has a narrower type fits as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class OrchestratorLike(Protocol):
    """An orchestrator: agents by id."""

    @property
    def agents(self) -> Mapping[str, Any]: ...


class StateManagerLike(Protocol):
    """A state manager: saves, loads and deletes states by id."""

    async def save_state(self, state_id: str, data: Any, /) -> Any: ...
    async def load_state(self, state_id: str, /) -> Any: ...
    async def delete_state(self, state_id: str, /) -> Any: ...


ORCHESTRATOR_ATTRIBUTES = ("agents",)
STATE_MANAGER_ATTRIBUTES = ("save_state", "load_state")


def missing_attributes(target: object, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that `target` does not have."""
    return tuple(name for name in names if not hasattr(target, name))
