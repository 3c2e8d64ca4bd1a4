"""Where agents keep their state between runs: in memory, or in JSON files with a copy in memory."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

DEFAULT_MAX_SIZE_BYTES = 100 * 1024 * 1024


class StorageType(Enum):
    """Where states are kept."""

    MEMORY = "memory"
    FILE = "file"


class MemoryOptimizer:
    """Knows how large the states in memory are and which of them were used least recently."""

    def __init__(self, max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> None:
        self.max_size_bytes = max_size_bytes
        self.current_size_bytes: int = 0
        self._sizes: dict[str, int] = {}

    @property
    def item_count(self) -> int:
        return len(self._sizes)

    def record(self, key: str, size_bytes: int) -> None:
        """Note a state's size and that it has just been used."""
        self.forget(key)
        self._sizes[key] = size_bytes
        self.current_size_bytes += size_bytes

    def forget(self, key: str) -> None:
        self.current_size_bytes -= self._sizes.pop(key, 0)

    def clear(self) -> None:
        self._sizes.clear()
        self.current_size_bytes = 0

    def least_recent(self) -> str | None:
        return next(iter(self._sizes), None)

    def is_over_limit(self) -> bool:
        return self.current_size_bytes > self.max_size_bytes


class StateManager:
    """Saves, loads and deletes one JSON-serialisable dictionary per key."""

    def __init__(
        self,
        storage_type: StorageType = StorageType.MEMORY,
        storage_path: str | Path | None = None,
        max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES,
    ) -> None:
        if storage_type is StorageType.FILE and storage_path is None:
            raise ValueError("file storage needs a storage_path")
        self.storage_type = storage_type
        self.storage_path: Path | None = Path(storage_path) if storage_path is not None else None
        self.memory_data: dict[str, dict[str, Any]] = {}
        self.memory_optimizer: MemoryOptimizer = MemoryOptimizer(max_size_bytes)

    async def save_state(self, agent_id: str, data: dict[str, Any]) -> bool:
        text = json.dumps(data)
        if self.storage_path is not None:
            await asyncio.to_thread(self._write, self._file(agent_id), text)
        self._remember(agent_id, data, len(text.encode()))
        return True

    async def load_state(self, agent_id: str) -> dict[str, Any] | None:
        if agent_id in self.memory_data:
            return copy.deepcopy(self.memory_data[agent_id])
        if self.storage_path is None:
            return None
        text = await asyncio.to_thread(self._read, self._file(agent_id))
        if text is None:
            return None
        data: dict[str, Any] = json.loads(text)
        self._remember(agent_id, data, len(text.encode()))
        return copy.deepcopy(data)

    async def delete_state(self, agent_id: str) -> bool:
        """Delete a state; False when there was none."""
        found = self.memory_data.pop(agent_id, None) is not None
        self.memory_optimizer.forget(agent_id)
        if self.storage_path is not None:
            found = await asyncio.to_thread(self._remove, self._file(agent_id)) or found
        return found

    async def list_states(self) -> list[str]:
        keys = set(self.memory_data)
        if self.storage_path is not None:
            keys.update(await asyncio.to_thread(self._keys_on_disk))
        return sorted(keys)

    async def clear_all(self) -> None:
        for agent_id in await self.list_states():
            await self.delete_state(agent_id)
        self.memory_optimizer.clear()

    @asynccontextmanager
    async def snapshot(self, agent_id: str) -> AsyncIterator[dict[str, Any]]:
        """Give a state out for editing and save it when the block ends without an error."""
        state = await self.load_state(agent_id) or {}
        yield state
        await self.save_state(agent_id, state)

    def get_stats(self) -> dict[str, Any]:
        """Describe the store. Lists the directory of a file store, so it may block."""
        stored = self._keys_on_disk() if self.storage_path is not None else list(self.memory_data)
        return {
            "storage_type": self.storage_type.value,
            "stored_items": len(stored),
            "memory_items": self.memory_optimizer.item_count,
            "memory_size_bytes": self.memory_optimizer.current_size_bytes,
            "max_size_bytes": self.memory_optimizer.max_size_bytes,
        }

    def _remember(self, key: str, data: dict[str, Any], size_bytes: int) -> None:
        self.memory_data[key] = copy.deepcopy(data)
        self.memory_optimizer.record(key, size_bytes)
        # As in the framework the optimizer only forgets what it would evict: the data stays where it is.
        while self.memory_optimizer.is_over_limit():
            oldest = self.memory_optimizer.least_recent()
            if oldest is None:
                break
            self.memory_optimizer.forget(oldest)

    def _file(self, key: str) -> Path:
        assert self.storage_path is not None
        return self.storage_path / f"{quote(key, safe='')}.json"

    def _keys_on_disk(self) -> list[str]:
        assert self.storage_path is not None
        return [unquote(path.stem) for path in self.storage_path.glob("*.json")]

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @staticmethod
    def _read(path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @staticmethod
    def _remove(path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True


def create_state_manager(
    storage_type: StorageType | str = StorageType.MEMORY,
    storage_path: str | Path | None = None,
    max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES,
) -> StateManager:
    """Make a state manager; the storage type may be given by its name."""
    return StateManager(StorageType(storage_type), storage_path, max_size_bytes)
