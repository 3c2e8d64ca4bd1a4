"""Orchestrator classes, found when their module is imported, whatever package the framework is vendored in."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from amptalk_otel._guard import guarded

TAILS = ("core.framework.orchestrator", "core.orchestrator")
"""Modules are recognised by the end of their dotted name."""

CLASS_NAME = "Orchestrator"


class Discovery:
    """Calls `found(orchestrator)` for every orchestrator that is made, until `stop`."""

    def __init__(self, found: Callable[[Any], object], more_tails: Iterable[str] = ()) -> None:
        self._found = found
        self._tails = (*TAILS, *more_tails)
        self._covered: list[tuple[type, Any, Any]] = []  # class, its own __init__ (or None), our cover
        self._lock = threading.RLock()
        self._finder = _Finder(self._matches, self.look_at)
        sys.meta_path.insert(0, self._finder)
        for module in list(sys.modules.values()):
            if self._matches(getattr(module, "__name__", "")):
                self.look_at(module)

    def _matches(self, name: str) -> bool:
        return any(name == tail or name.endswith(f".{tail}") for tail in self._tails)

    def look_at(self, module: ModuleType) -> None:
        """Cover the constructor of the module's orchestrator class."""
        guarded("looking for orchestrators", self._cover, getattr(module, CLASS_NAME, None))

    def _cover(self, kind: Any) -> None:
        with self._lock:
            if not isinstance(kind, type) or any(kind is covered for covered, _, _ in self._covered):
                return
            own, cover = vars(kind).get("__init__"), _announcing(kind.__init__, self._found)  # type: ignore[misc]
            kind.__init__ = cover  # type: ignore[misc]
            self._covered.append((kind, own, cover))

    def stop(self) -> None:
        """Put every constructor back and watch imports no more."""
        with self._lock:
            if self._finder in sys.meta_path:
                sys.meta_path.remove(self._finder)
            for kind, own, cover in self._covered:
                if vars(kind).get("__init__") is not cover:
                    continue
                if own is None:
                    del kind.__init__  # type: ignore[misc]
                else:
                    kind.__init__ = own  # type: ignore[misc]
            self._covered.clear()


def _announcing(init: Callable[..., None], found: Callable[[Any], object]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it stands for one
        init(self, *args, **kwargs)
        guarded("instrumenting an orchestrator", found, self)

    return __init__


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the others find, and looks at what they load."""

    def __init__(self, matches: Callable[[str], bool], look_at: Callable[[ModuleType], None]) -> None:
        self._matches = matches
        self._look_at = look_at

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not self._matches(fullname):
            return None
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec is not None and finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self._look_at)
            if spec is not None:
                return spec  # type: ignore[no-any-return]
        return None


class _Loader(importlib.abc.Loader):
    """Loads as the real loader does, then looks at the module. Everything else is the real loader's."""

    def __init__(self, loader: Any, look_at: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._look_at = look_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader  # what the program sees is the module as it would be without us
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._look_at(module)
