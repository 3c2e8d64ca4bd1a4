"""Orchestrators are found in whatever package the framework is vendored, and nothing else is changed."""

from __future__ import annotations

import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.resources
import importlib.util
import inspect
import logging
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from amptalk_otel import _discovery
from amptalk_otel._discovery import Discovery

ORCHESTRATOR = '''
class Orchestrator:
    """Knows its agents."""

    def __init__(self, name="orchestrator", *, fail=False):
        if fail:
            raise LookupError(name)
        self.name = name
'''


class Tree:
    """A folder of modules to import from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, source: str = ORCHESTRATOR, *, packages: bool = True) -> str:
        path = self.folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for parent in path.relative_to(self.folder).parents:
            if packages and parent != Path():
                (self.folder / parent / "__init__.py").touch()
        importlib.invalidate_caches()
        return name

    def load(self, name: str, source: str = ORCHESTRATOR, *, packages: bool = True) -> ModuleType:
        return importlib.import_module(self.write(name, source, packages=packages))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """Modules that are written here are gone from `sys.modules` afterwards; nothing of ours may be left."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules, finders = set(sys.modules), sys.meta_path.copy()
    yield Tree(tmp_path)
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path_importer_cache.pop(str(tmp_path), None)
    assert not any(isinstance(finder, _discovery._Finder) for finder in sys.meta_path)
    sys.meta_path[:] = finders
    assert _discovery._covers == []
    assert _discovery._under_construction == set()


@pytest.fixture
def discover() -> Iterator[Callable[..., list[Any]]]:
    """Start a discovery; returns the list of what it finds."""
    discoveries = []

    def start(*tails: str) -> list[Any]:
        found: list[Any] = []
        discoveries.append(Discovery(found.append, tails))
        return found

    yield start
    for discovery in discoveries:
        discovery.stop()


def own(kind: type) -> dict[str, int]:
    return {name: id(value) for name, value in vars(kind).items()}


# -- which modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "acme.src.core.framework.orchestrator",
        "src.core.framework.orchestrator",
        "core.framework.orchestrator",
        "src.core.orchestrator",
        "core.orchestrator",
        "a.b.c.d.e.core.orchestrator",
    ],
)
@pytest.mark.parametrize("packages", [True, False], ids=["packages", "namespace-packages"])
@pytest.mark.parametrize("imported", ["before", "after"])
def test_the_framework_is_found_under_any_prefix(
    tree: Tree, discover: Callable[..., list[Any]], name: str, packages: bool, imported: str
) -> None:
    if imported == "before":
        tree.load(name, packages=packages)
    found = discover()
    module = importlib.import_module(tree.write(name, packages=packages))
    made = module.Orchestrator("one")
    assert found == [made]
    assert made.name == "one"


@pytest.mark.parametrize(
    "name",
    [
        "mycore.orchestrator",
        "my_core.framework.orchestrator",
        "core.orchestrators",
        "core.orchestrator.extra",
        "core.other.orchestrator",
        "framework.orchestrator",
        "orchestrator",
        "core.orchestrator2",
    ],
)
def test_names_that_only_look_alike_are_left_alone(tree: Tree, discover: Callable[..., list[Any]], name: str) -> None:
    if name == "core.orchestrator.extra":
        (tree.folder / "core" / "orchestrator").mkdir(parents=True)
        (tree.folder / "core" / "orchestrator" / "__init__.py").touch()
    found = discover()
    module = tree.load(name)
    loader = module.__spec__.loader if module.__spec__ is not None else None
    assert isinstance(loader, importlib.machinery.SourceFileLoader)
    module.Orchestrator()
    assert found == []
    assert "__wrapped__" not in vars(module.Orchestrator.__init__)


def test_more_modules_are_found_by_the_tails_that_are_given(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover("flow.conductor", "solo")
    modules = [tree.load(name) for name in ("acme.flow.conductor", "solo", "x.solo", "overflow.conductor", "asolo")]
    made = [module.Orchestrator() for module in modules]
    assert found == made[:3]


def test_a_program_that_imports_a_package_for_the_module_inside(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    tree.write("acme.core.framework.orchestrator")
    (tree.folder / "acme" / "core" / "framework" / "__init__.py").write_text("from .orchestrator import Orchestrator\n")
    (tree.folder / "acme" / "core" / "orchestrator.py").write_text("from .framework import Orchestrator\n")
    found = discover()
    framework = importlib.import_module("acme.core.framework")
    again = importlib.import_module("acme.core.orchestrator")  # matches too, and has the same class
    assert again.Orchestrator is framework.Orchestrator
    made = framework.Orchestrator()
    assert found == [made]


def test_a_module_in_sys_modules_may_be_anything(
    tree: Tree, discover: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("not now")

    monkeypatch.setitem(sys.modules, "hostile", Hostile())
    monkeypatch.setitem(sys.modules, "none", None)
    monkeypatch.setitem(sys.modules, "absent.core.orchestrator", None)
    found = discover()
    made = tree.load("core.orchestrator").Orchestrator()
    assert found == [made]


def test_a_module_that_fails_when_it_is_looked_at_costs_one_record(
    tree: Tree, discover: Callable[..., list[Any]], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    found = discover()
    with caplog.at_level(logging.WARNING):
        module = tree.load("core.orchestrator", "def __getattr__(name):\n    raise OSError('lazy')\n")
    assert isinstance(module, ModuleType)
    assert found == []
    (record,) = caplog.records
    assert record.getMessage().startswith("looking for orchestrators was skipped (OSError at ")


# -- what is imported ----------------------------------------------------------------------------------


def test_the_module_is_as_it_would_be_without_us(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    name = "acme.core.orchestrator"
    plain = tree.load(name)
    plain_spec = plain.__spec__
    assert plain_spec is not None
    del sys.modules[name]
    found = discover()
    module = importlib.import_module(name)
    spec = module.__spec__
    assert spec is not None
    assert module.Orchestrator() in found
    assert type(spec.loader) is importlib.machinery.SourceFileLoader
    assert module.__loader__ is spec.loader
    assert (spec.name, spec.origin, spec.cached, spec.has_location, spec.parent) == (
        plain_spec.name, plain_spec.origin, plain_spec.cached, plain_spec.has_location, plain_spec.parent,
    )  # fmt: skip
    assert set(vars(module)) == set(vars(plain))
    assert inspect.getsource(module) == ORCHESTRATOR
    assert inspect.getsource(module.Orchestrator).startswith("class Orchestrator:")
    assert str(inspect.signature(module.Orchestrator)) == "(name='orchestrator', *, fail=False)"
    assert module.Orchestrator.__init__.__qualname__ == "Orchestrator.__init__"
    assert importlib.resources.files("acme.core").joinpath("orchestrator.py").read_text() == ORCHESTRATOR


def test_a_spec_that_the_program_asks_for_answers_as_the_real_one(
    tree: Tree, discover: Callable[..., list[Any]]
) -> None:
    discover()
    spec = importlib.util.find_spec(tree.write("core.orchestrator"))
    assert spec is not None
    loader: Any = spec.loader
    assert loader.get_source("core.orchestrator") == ORCHESTRATOR
    assert loader.path == spec.origin
    assert loader.is_package("core.orchestrator") is False
    with pytest.raises(AttributeError, match="nonsense"):
        _ = loader.nonsense


def test_a_package_named_orchestrator_keeps_its_resources(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    tree.write("core.orchestrator.__init__", ORCHESTRATOR)
    (tree.folder / "core" / "orchestrator" / "data.txt").write_text("here")
    found = discover()
    module = importlib.import_module("core.orchestrator")
    assert importlib.resources.files(module).joinpath("data.txt").read_text() == "here"
    assert importlib.import_module("core.orchestrator").Orchestrator() in found


def test_a_module_in_a_zip_file(tree: Tree, discover: Callable[..., list[Any]], monkeypatch: Any) -> None:
    archive = tree.folder / "vendored.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped/__init__.py", "")
        file.writestr("zipped/core/__init__.py", "")
        file.writestr("zipped/core/data.txt", "here")
        file.writestr("zipped/core/orchestrator.py", ORCHESTRATOR)
    monkeypatch.syspath_prepend(str(archive))
    found = discover()
    module = importlib.import_module("zipped.core.orchestrator")
    made = module.Orchestrator()
    assert found == [made]
    assert type(module.__loader__).__name__ == "zipimporter"
    assert inspect.getsource(module) == ORCHESTRATOR
    assert importlib.resources.files("zipped.core").joinpath("data.txt").read_text() == "here"


class Memory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder and loader of the program's own, which hands out the same spec each time."""

    def __init__(self, name: str) -> None:
        self.answer = "42"
        self.created: list[str] = []
        self.spec = importlib.machinery.ModuleSpec(name, self)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return self.spec if fullname == self.spec.name else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        self.created.append(spec.name)
        return ModuleType(spec.name, "made by hand")

    def exec_module(self, module: ModuleType) -> None:
        exec(ORCHESTRATOR, vars(module))


def test_a_loader_of_the_programs_own(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    memory = Memory("remote.core.orchestrator")
    tree.write("remote.core.other", "")
    sys.meta_path.insert(0, memory)
    found = discover()
    for round_ in (1, 2):
        sys.modules.pop("remote.core.orchestrator", None)
        module = importlib.import_module("remote.core.orchestrator")
        assert module.__doc__ == "made by hand"
        assert module.__loader__ is memory
        assert memory.spec.loader is memory
        made = module.Orchestrator()
        assert found[-1] is made
        assert len(found) == round_
    assert memory.created == ["remote.core.orchestrator"] * 2


class BeforePython34(importlib.abc.MetaPathFinder):
    """Hands out a spec whose loader knows only `load_module`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != "core.orchestrator":
            return None
        return importlib.machinery.ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def load_module(self, fullname: str) -> ModuleType:
        module = sys.modules[fullname] = ModuleType(fullname)
        module.answer = 42  # type: ignore[attr-defined]
        return module


@pytest.mark.filterwarnings("ignore::ImportWarning", "ignore::DeprecationWarning")
@pytest.mark.skipif(sys.version_info >= (3, 15), reason="load_module is gone")
def test_a_loader_of_before_exec_module_loads_as_ever(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    tree.write("core.other", "")
    sys.meta_path.insert(0, BeforePython34())
    found = discover()
    assert importlib.import_module("core.orchestrator").answer == 42
    assert found == []


def test_a_finder_that_only_the_import_system_can_ask_is_left_to_it(
    tree: Tree, discover: Callable[..., list[Any]]
) -> None:
    importlib.import_module(tree.write("core.orchestrator").partition(".")[0])
    sys.meta_path.insert(0, object())  # type: ignore[arg-type]
    discover()
    assert sys.meta_path[0].find_spec("core.orchestrator", [str(tree.folder / "core")]) is None
    del sys.meta_path[1]
    assert sys.meta_path[0].find_spec("core.orchestrator", [str(tree.folder / "core")]) is not None


def test_a_lazy_import_stays_correct(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    importlib.import_module(tree.write("core.orchestrator").partition(".")[0])
    spec = importlib.util.find_spec("core.orchestrator")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Orchestrator()
    assert found == [made]


def test_an_import_of_nothing_fails_as_ever(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    tree.write("core.other", "")
    discover()
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'core.orchestrator'$"):
        importlib.import_module("core.orchestrator")


@pytest.mark.parametrize("error", ["ValueError('bad')", "ImportError('bad')", "KeyboardInterrupt()", "SystemExit(3)"])
def test_a_module_that_raises_raises_the_same_with_the_same_traceback(
    tree: Tree, discover: Callable[..., list[Any]], error: str
) -> None:
    tree.write("core.orchestrator", f"cause = LookupError('before')\ndef f():\n    raise {error} from cause\nf()\n")

    def fail() -> tuple[BaseException, list[tuple[str, str, int | None]]]:
        try:
            import core.orchestrator  # type: ignore[import-not-found]  # noqa: F401
        except BaseException as raised:
            frames = traceback.extract_tb(raised.__traceback__)
            return raised, [(frame.filename, frame.name, frame.lineno) for frame in frames]
        pytest.fail("it did not raise")

    plain, plain_frames = fail()
    discover()
    raised, frames = fail()
    if sys.version_info < (3, 11):  # our frame is there, and so the import system's
        frames = [frame for frame in frames if not frame[0].startswith(("<frozen importlib", _discovery.__file__))]
    assert frames == plain_frames
    assert frames[-1][1:] == ("f", 3)
    assert type(raised) is type(plain)
    assert raised.args == plain.args
    assert repr(raised.__cause__) == "LookupError('before')"
    assert raised.__suppress_context__ is True
    assert "core.orchestrator" not in sys.modules


def test_a_module_is_found_at_the_second_try(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    with pytest.raises(ZeroDivisionError):
        tree.load("core.orchestrator", "1 / 0")
    module = tree.load("core.orchestrator", ORCHESTRATOR + "\n\n# longer than before\n")
    made = module.Orchestrator()
    assert found == [made]


def test_reload_and_import_again(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    module = tree.load("core.orchestrator")
    first = module.Orchestrator
    assert importlib.import_module("core.orchestrator") is module
    assert importlib.reload(module) is module
    second = module.Orchestrator
    assert second is not first
    assert type(module.__loader__) is importlib.machinery.SourceFileLoader
    del sys.modules["core.orchestrator"]
    third = importlib.import_module("core.orchestrator").Orchestrator
    made = [kind() for kind in (first, second, third, second)]
    assert found == made


# -- which classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "Orchestrator = 1", "def Orchestrator():\n    return 5", "Orchestrator = None"])
def test_an_orchestrator_that_is_no_class_is_left_alone(
    tree: Tree, discover: Callable[..., list[Any]], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = discover()
    module = tree.load("core.orchestrator", source)
    if "def" in source:
        assert module.Orchestrator() == 5
    assert found == []
    assert caplog.records == []


def test_a_class_that_cannot_be_changed_costs_one_record(
    tree: Tree, discover: Callable[..., list[Any]], lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    found = discover()
    module = tree.load("core.orchestrator", "Orchestrator = dict")
    assert module.Orchestrator(a=1) == {"a": 1}
    assert found == []
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(caplog.records)
    assert 1 <= len(caplog.records) <= 2


LATE = """
class Base:
    def __init__(self, name):
        self.name = name

class Orchestrator(Base):
    pass
"""


def test_a_class_without_a_constructor_of_its_own(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    module = tree.load("core.orchestrator", LATE)
    module.Base("not one")
    made = module.Orchestrator("one")
    assert found == [made]


def test_a_subclass_is_told_once_and_when_it_is_complete(tree: Tree) -> None:
    names: list[str] = []
    discovery = Discovery(lambda orchestrator: names.append(orchestrator.name))
    kind: Any = tree.load("core.orchestrator").Orchestrator

    class Middle(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("base")
            self.name += "-middle"

    class Silent(Middle):
        pass

    class Outer(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.name += "-outer"

    class NeverCallsBase(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            self.name = "own way"

    for made in (kind, Middle, Silent, Outer, NeverCallsBase):
        made()
    discovery.stop()
    assert names == ["orchestrator", "base-middle", "base-middle", "base-middle-outer", "own way"]


def test_subclasses_that_are_there_already_are_covered(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    kind: Any = tree.load("core.orchestrator").Orchestrator

    class Early(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.name = "early"

    names: list[str] = []
    discovery = Discovery(lambda orchestrator: names.append(orchestrator.name))
    Early()
    discovery.stop()
    Early()
    assert names == ["early"]


def test_a_class_that_looks_after_its_subclasses_still_does(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    module = tree.load(
        "core.orchestrator",
        "class Orchestrator:\n"
        "    kinds = []\n"
        "    def __init_subclass__(cls, /, label, **kwargs):\n"
        "        super().__init_subclass__(**kwargs)\n"
        "        cls.kinds.append((cls.__name__, label))\n",
    )
    kind: Any = module.Orchestrator
    special = type("Special", (kind,), {"__init__": lambda self: None}, label="x")
    with pytest.raises(TypeError, match="label"):
        type("Wrong", (kind,), {})
    assert kind.kinds == [("Special", "x")]
    made = special()
    assert found == [made]


def test_keywords_for_nobody_are_refused_as_ever(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    discover()
    kind: Any = tree.load("core.orchestrator").Orchestrator
    with pytest.raises(TypeError, match=r"__init_subclass__\(\) takes no keyword arguments"):
        type("Wrong", (kind,), {}, label="x")


def test_an_instance_that_makes_another_in_its_constructor(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    module = tree.load(
        "core.orchestrator",
        "class Orchestrator:\n"
        "    def __init__(self, depth=1):\n"
        "        self.inner = Orchestrator(depth - 1) if depth else None\n",
    )
    made = module.Orchestrator()
    assert found == [made.inner, made]


def test_a_constructor_that_raises_tells_nothing(tree: Tree, discover: Callable[..., list[Any]]) -> None:
    found = discover()
    kind = tree.load("core.orchestrator").Orchestrator
    with pytest.raises(LookupError, match="no"):
        kind("no", fail=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        kind(colour="red")
    assert found == []
    made = kind("yes")
    assert found == [made]
    assert copy.copy(made).name == "yes"


def test_what_is_told_never_reaches_the_constructor(
    tree: Tree, lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_orchestrator: Any) -> None:
        raise OSError("no")

    discovery = Discovery(fail)
    kind = tree.load("core.orchestrator").Orchestrator
    assert [kind(name).name for name in "ab"] == ["a", "b"]
    discovery.stop()
    assert [record.getMessage()[:47] for record in caplog.records] == [
        "instrumenting an orchestrator was skipped (OSEr",
    ]


# -- ending --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [ORCHESTRATOR, LATE], ids=["own-constructor", "inherited-constructor"])
def test_stop_puts_everything_back(tree: Tree, source: str) -> None:
    module = tree.load("core.orchestrator", source)
    kind: Any = module.Orchestrator

    class Early(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("early")

    finders = sys.meta_path.copy()
    before = [own(kind), own(Early)]
    found: list[Any] = []
    discovery = Discovery(found.append)

    class Late(kind):  # type: ignore[misc]
        __init__ = vars(Early.__init__)["__wrapped__"]

    later = tree.load("later.core.orchestrator", source).Orchestrator
    Early()
    assert len(found) == 1
    assert [own(kind), own(Early)] != before
    discovery.stop()
    discovery.stop()
    assert [own(kind), own(Early)] == before
    assert own(Late)["__init__"] == before[1]["__init__"]
    assert "__wrapped__" not in vars(later.__init__)
    assert sys.meta_path == finders
    later("x")
    kind("x")
    assert len(found) == 1
    assert "__wrapped__" not in vars(tree.load("even_later.core.orchestrator").Orchestrator.__init__)


@pytest.mark.parametrize("first_to_stop", [0, 1])
def test_two_discoveries_tell_each_instance_once_each(tree: Tree, first_to_stop: int) -> None:
    kind = tree.load("core.orchestrator").Orchestrator
    before = own(kind)
    founds: list[list[Any]] = [[], []]
    discoveries = [Discovery(found.append) for found in founds]
    later = tree.load("later.core.orchestrator").Orchestrator  # two finders, none of which asks the other for ever
    made = [kind("a"), later("b")]
    assert founds == [made, made]
    discoveries[first_to_stop].stop()
    kind("c")
    assert [len(found) for found in founds] == ([2, 3] if first_to_stop == 0 else [3, 2])
    discoveries[1 - first_to_stop].stop()
    kind("d")
    assert sum(len(found) for found in founds) == 5
    assert own(kind) == before
    assert "__wrapped__" not in vars(later.__init__)


def test_two_discoveries_with_different_tails_that_meet_in_one_class_hierarchy(tree: Tree) -> None:
    tree.write("core.orchestrator")
    tree.write(
        "other.base",
        "from core.orchestrator import Orchestrator as Base\n"
        "class Orchestrator(Base):\n"
        "    def __init__(self):\n"
        "        super().__init__('derived')\n",
    )
    founds: list[list[Any]] = [[], []]
    discoveries = [Discovery(founds[0].append), Discovery(founds[1].append, ["other.base"])]
    module = importlib.import_module("other.base")
    before = [own(module.Orchestrator.__init__.__class__)]
    derived, base = module.Orchestrator(), module.Base()
    assert founds == [[derived, base], [derived, base]]
    for discovery in discoveries:
        discovery.stop()
    assert "__wrapped__" not in vars(module.Orchestrator.__init__)
    assert "__wrapped__" not in vars(module.Base.__init__)
    assert before == [own(module.Orchestrator.__init__.__class__)]


def test_a_constructor_that_somebody_else_has_covered_stays_theirs(tree: Tree) -> None:
    found: list[Any] = []
    discovery = Discovery(found.append)
    kind: Any = tree.load("core.orchestrator").Orchestrator
    ours = kind.__init__

    def theirs(self: Any, *args: Any, **kwargs: Any) -> None:
        ours(self, *args, **kwargs)
        self.name += "!"

    kind.__init__ = theirs
    discovery.stop()
    assert kind.__init__ is theirs
    assert kind("x").name == "x!"
    assert found == []


def test_constructors_in_several_threads(tree: Tree) -> None:
    found: list[Any] = []
    discovery = Discovery(found.append)
    kind = tree.load("core.orchestrator").Orchestrator
    start = threading.Barrier(8)

    def make() -> None:
        start.wait(10)
        for _ in range(200):
            kind()

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    discovery.stop()
    assert len(found) == len({id(one) for one in found}) == 1600
