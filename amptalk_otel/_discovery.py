"""Orchestrator classes, found when their module is imported, whatever package the framework is vendored in."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from amptalk_otel._forks import lock_of
from amptalk_otel._guard import guarded
from amptalk_otel._patch import Patches

TAILS = ("core.framework.orchestrator", "core.orchestrator")
"""Modules are recognised by the end of their dotted name."""

CLASS_NAME = "Orchestrator"

_lock = lock_of(sys.modules[__name__], threading.RLock)
_covers: list[_Cover] = []
_under_construction: set[int] = set()  # ids of instances whose constructor runs


class Discovery:
    """Calls `found(orchestrator)` for every orchestrator that is made from now on, until `stop`."""

    def __init__(self, found: Callable[[Any], object], more_tails: Iterable[str] = ()) -> None:
        self.found = found
        self._tails = (*TAILS, *more_tails)
        self._finder = _Finder(self._matches, self.look_at)
        sys.meta_path.insert(0, self._finder)
        for name, module in list(sys.modules.items()):
            if self._matches(name):
                self.look_at(module)

    def _matches(self, name: str) -> bool:
        return any(name == tail or name.endswith(f".{tail}") for tail in self._tails)

    def look_at(self, module: ModuleType) -> None:
        """Cover the constructor of the module's orchestrator class."""
        guarded("looking for orchestrators", self._look_at, module)

    def _look_at(self, module: ModuleType) -> None:
        kind = getattr(module, CLASS_NAME, None)
        if not isinstance(kind, type):
            return
        with _lock:
            if self._finder not in sys.meta_path:  # stopped while the module was loaded
                return
            cover = next((cover for cover in _covers if cover.kind is kind), None)
            if cover is None:
                cover = _Cover(kind)
                _covers.append(cover)
            if self not in cover.discoveries:
                cover.discoveries = (*cover.discoveries, self)

    def stop(self) -> None:
        """Put every constructor back and watch imports no more. Harmless the second time."""
        with _lock:
            if self._finder in sys.meta_path:
                sys.meta_path.remove(self._finder)
            for cover in reversed(_covers.copy()):
                cover.discoveries = tuple(other for other in cover.discoveries if other is not self)
                if not cover.discoveries:
                    _covers.remove(cover)
                    cover.undo()


class _Cover:
    """The constructors of one class and its subclasses, covered once however many discoveries ask.

    An instance is told when its outermost constructor has returned: a subclass may set its name after
    `super().__init__()`.
    """

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.discoveries: tuple[Discovery, ...] = ()
        self._patches = Patches()
        self._own_init_subclass = vars(kind).get("__init_subclass__")
        self._patches.wrap(kind, "__init__", self._announcing)
        self._cover_subclasses_of(kind)
        self._init_subclass = self._watching_subclasses(kind)
        kind.__init_subclass__ = self._init_subclass  # type: ignore[method-assign]

    def _cover_subclasses_of(self, kind: type) -> None:
        subclasses: list[type] = type.__subclasses__(kind)
        for subclass in subclasses:
            self._cover_subclass(subclass)
            self._cover_subclasses_of(subclass)

    def _cover_subclass(self, subclass: type) -> None:
        if self._patches.active and "__init__" in vars(subclass):
            self._patches.wrap(subclass, "__init__", self._announcing)

    def _announcing(self, init: Callable[..., None]) -> Callable[..., None]:
        def __init__(instance: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it stands for one
            key = id(instance)
            if key in _under_construction:  # a constructor of a subclass, which has called this one, will tell
                init(instance, *args, **kwargs)
                return
            _under_construction.add(key)
            try:
                init(instance, *args, **kwargs)
            finally:
                _under_construction.discard(key)
            for discovery in _discoveries_for(instance):
                guarded("instrumenting an orchestrator", discovery.found, instance)

        return __init__

    def _watching_subclasses(self, kind: type) -> Any:
        own, cover_subclass = self._own_init_subclass, self._cover_subclass

        def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:  # noqa: N807 - it stands for one
            if own is not None:
                own.__get__(None, cls)(**kwargs)
            else:
                super(kind, cls).__init_subclass__(**kwargs)  # type: ignore[arg-type]
            guarded("covering a subclass", cover_subclass, cls)

        return classmethod(__init_subclass__)

    def undo(self) -> None:
        self._patches.undo()
        if vars(self.kind).get("__init_subclass__") is not self._init_subclass:
            return
        if self._own_init_subclass is None:
            del self.kind.__init_subclass__
        else:
            self.kind.__init_subclass__ = self._own_init_subclass  # type: ignore[method-assign]


def _discoveries_for(instance: Any) -> Iterable[Discovery]:
    with _lock:
        covers = [cover for cover in _covers if isinstance(instance, cover.kind)]
    return dict.fromkeys(discovery for cover in covers for discovery in cover.discoveries)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets those after it find, and looks at what they load."""

    def __init__(self, matches: Callable[[str], bool], look_at: Callable[[ModuleType], None]) -> None:
        self._matches = matches
        self._look_at = look_at

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not self._matches(fullname) or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            if find_spec is None:  # a finder of before Python 3.4, which only the import system itself can ask
                return None
            spec: importlib.machinery.ModuleSpec | None = find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):  # neither a namespace package nor a loader of before 3.4
                    spec.loader = _Loader(spec.loader, self._look_at)
                return spec
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
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # what the program sees is the module as it would be without us
        module.__loader__ = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException as error:
            # Without our frame, so that the import system can leave out its own as it always does. Python 3.10
            # has the traceback elsewhere as well, and shows ours.
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            raise
        self._look_at(module)
