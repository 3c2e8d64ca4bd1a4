"""Remove each hook by itself, one after another, and see whether a test fails.

A hook is every statement by which something is recorded, wrapped, counted or closed: calls made for their effect,
numbers and places of messages that are written, and the entries of the lists of wrappers. Each is taken out of a copy
of the package, and the tests that know about it run there until one fails. What no test misses is either listed in
EQUIVALENT with the reason, or an error.

    python scripts/check_hooks.py                    # all: some ten minutes on two free CPUs
    python scripts/check_hooks.py --list             # the mutants, without running anything
    python scripts/check_hooks.py --only _inbox.py   # those of which the name contains it

Needs what the tests need (`pip install -e '.[all]' --group test`). Changes nothing outside of a temporary folder. Not
part of CI.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "amptalk_otel"

UNIT = "tests/unit/test_"
BALANCE = "tests/property/test_balance.py"
TRACING = [f"{UNIT}tracing_{name}.py" for name in ("outcomes", "arrivals", "times", "state", "watches", "exemplars")]
ALL = [
    *(f"{UNIT}{name}.py" for name in ("agent_hook", "inbox", "recorder", "unaccounted", "core_generation")),
    *(f"{UNIT}{name}.py" for name in ("orchestrator_hook", "state_hook", "reading", "watch", "budget", "bridge")),
    *(f"{UNIT}{name}.py" for name in ("agent_time", "budget_time", "peaks", "exact_sum")),
    *(f"{UNIT}{name}.py" for name in ("producer", "adapters", "patch", "calls", "copies", "odd_programs")),
    BALANCE,
    *TRACING,
    *(f"{UNIT}tracing_{name}.py" for name in ("core", "sampling", "relation", "no_harm", "starts", "replies", "sends")),
]
"""The tests that can know, those that tell sooner first."""

FIRST = {
    "_calls.py": [f"{UNIT}calls.py", f"{UNIT}odd_programs.py"],
    "_copies.py": [f"{UNIT}copies.py"],
    "_hooks/_agent.py": [f"{UNIT}agent_hook.py", f"{UNIT}odd_programs.py", f"{UNIT}state_hook.py", f"{UNIT}copies.py"],
    "_hooks/_inbox.py": [f"{UNIT}inbox.py", f"{UNIT}agent_hook.py"],
    "_hooks/_processing.py": [f"{UNIT}agent_hook.py", f"{UNIT}tracing_outcomes.py"],
    "_hooks/_orchestrator.py": [f"{UNIT}orchestrator_hook.py", f"{UNIT}odd_programs.py", f"{UNIT}tracing_relation.py"],
    "_hooks/_recoveries.py": [f"{UNIT}odd_programs.py", f"{UNIT}agent_hook.py"],
    "_hooks/_outbox.py": [f"{UNIT}core_generation.py", f"{UNIT}tracing_core.py"],
    "_hooks/_state.py": [f"{UNIT}state_hook.py", f"{UNIT}tracing_state.py", f"{UNIT}odd_programs.py"],
    "_agent_recorder.py": [f"{UNIT}recorder.py", f"{UNIT}agent_hook.py", f"{UNIT}inbox.py", f"{UNIT}unaccounted.py"],
    "_work_recorder.py": [
        f"{UNIT}recorder.py",
        f"{UNIT}agent_hook.py",
        f"{UNIT}agent_time.py",
        f"{UNIT}unaccounted.py",
    ],
    "_timesheet.py": [f"{UNIT}agent_time.py", f"{UNIT}budget_time.py"],
    "_peaks.py": [f"{UNIT}peaks.py"],
    "_type_recorder.py": [f"{UNIT}recorder.py", f"{UNIT}budget.py"],
    "_recorder.py": [f"{UNIT}recorder.py", f"{UNIT}budget.py"],
    "_waiting.py": [f"{UNIT}waiting.py", f"{UNIT}inbox.py"],
}
"""Where hooks are, and the tests that are asked before the others."""

PRELOADED = ("hypothesis.stateful", "opentelemetry.sdk.metrics.export", "opentelemetry.sdk.trace.export", "psutil")
"""What the tests import and is not changed: once for all."""

OPTIONS = (
    *("-x", "-q", "--timeout=60", "-p", "no:cacheprovider"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # those are imported already
    *("-k", "not 20_000 and not (sums_are_exact and (class or name))"),  # they take long, and others tell the same
)

NO_HOOKS = {"swallow", "complain", "super"}
"""Calls that record nothing of the program: they tell of failures of ours."""

WRITTEN_TO = {"recorder", "record", "work", "wait", "retrying", "self", "mine"}
"""Names of what numbers and messages are written to."""

EQUIVALENT: dict[str, str] = {
    "_hooks/_inbox.py Inbox._takes_for_loop: self.loop_coroutine = weakref.ref(coroutine) if isinstance(coroutine, "
    "CoroutineType) else ": "a shortcut: without it every message is counted the careful way, which tells the same",
    "_hooks/_orchestrator.py OrchestratorHook._running: self._kinds = kinds": (
        "a shortcut: without it the kind of every agent is looked up at each reading, and found to be the same"
    ),
    "_agent_recorder.py AgentRecorder._find_record: self.by_type[raw] = record": (
        "a shortcut: without it every message's type is searched for, and found to be the same"
    ),
    "_work_recorder.py WorkRecorder._turn: self.also_in_work = 0": (
        "it is 0 already: less than that would mean that a message ended that never began"
    ),
}
"""Hooks that no test can miss, by name, and why."""


@dataclass(frozen=True)
class Mutant:
    """One hook that is taken out."""

    path: str  # within the package
    name: str  # stays when lines move
    line: int
    start: int  # characters of the source
    end: int
    instead: str


# -- where the hooks are -------------------------------------------------------------------------------


class Finder(ast.NodeVisitor):
    """The hooks of one module."""

    def __init__(self, path: str, source: str) -> None:
        self._path = path
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._scope: list[str] = []
        self._names: Counter[str] = Counter()
        self.found: list[Mutant] = []
        self.visit(ast.parse(source))

    def _take_out(self, node: ast.AST, instead: str) -> None:
        start, end = self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        text = re.sub(r"\s+", " ", self._source[start:end])
        name = f"{self._path} {'.'.join(self._scope)}: {text[:90]}"
        self._names[name] += 1
        if self._names[name] > 1:
            name += f" #{self._names[name]}"
        self.found.append(Mutant(self._path, name, node.lineno, start, end, instead))  # type: ignore[attr-defined]

    def _offset(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        return start + len(self._source[start:].encode()[:column].decode())

    def _visit_scope(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name == "__init__":
            self._visit_constructor(node)
            return
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _visit_scope  # noqa: N815 - ast's names

    def _visit_constructor(self, node: ast.AST) -> None:
        """A constructor's attributes are no hooks, what it wraps is."""
        self._scope.append("__init__")
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and _name_of(part) in ("wrap", "append"):
                self._take_out(part, "True")
        self._scope.pop()

    def visit_Expr(self, node: ast.Expr) -> None:
        if not self._scope:
            return  # made ready when the module is imported
        if isinstance(node.value, ast.Call) and _name_of(node.value) not in NO_HOOKS:
            self._take_out(node, "pass")
        else:
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            self._take_out(node, "pass")

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Call) and _name_of(node.value) in ("guarded", "wrap"):
            self._take_out(node.value, "None")
        elif any(_is_written_to(target) for target in node.targets):
            names = [target for target in node.targets if isinstance(target, ast.Name)]
            self._take_out(node, f"{names[0].id} = 0" if names else "pass")
        else:
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.value, ast.Call) and _name_of(node.value) == "guarded":
            self._take_out(node.value, "None")

    def visit_Delete(self, node: ast.Delete) -> None:
        self._take_out(node, "pass")

    def visit_Call(self, node: ast.Call) -> None:
        """One that wraps, and whose result is looked at."""
        if _name_of(node) == "wrap" and len(node.args) > 1:
            self._take_out(node, "True")
        else:
            self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        """The entries of a list of wrappers."""
        if isinstance(node.iter, ast.Tuple):
            for entry in node.iter.elts:
                if isinstance(entry, ast.Tuple):
                    self._take_out(entry, "*()")
        for statement in node.body:
            self.visit(statement)


def _name_of(call: ast.Call) -> str:
    function = call.func
    return str(getattr(function, "attr", None) or getattr(function, "id", ""))


def _is_written_to(target: ast.expr) -> bool:
    if isinstance(target, ast.Tuple):
        return all(map(_is_written_to, target.elts))
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        target = target.value
        if isinstance(target, ast.Name):
            return target.id in WRITTEN_TO
    return False


def mutants(only: str) -> list[Mutant]:
    """Every hook, one by one."""
    found: list[Mutant] = []
    for path in FIRST:
        found += Finder(path, (ROOT / PACKAGE / path).read_text(encoding="utf-8")).found
    return [mutant for mutant in found if only in mutant.name]


# -- whether a test misses it --------------------------------------------------------------------------


class Copy:
    """A copy of the project in which one hook at a time is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder / PACKAGE)], check=True)

    def missed_by(self, mutant: Mutant) -> str:
        """The first test that fails without it; empty if none does."""
        path = self.folder / PACKAGE / mutant.path
        source = path.read_text(encoding="utf-8")
        path.write_text(source[: mutant.start] + mutant.instead + source[mutant.end :], encoding="utf-8")
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            cached.unlink()
        try:
            first = FIRST[mutant.path]
            return self.failing(first) or self.failing_again([tests for tests in ALL if tests not in first])
        finally:
            path.write_text(source, encoding="utf-8")

    def failing_again(self, tests: list[str]) -> str:
        """The first test that fails, and does so by itself: a busy machine makes others fail, which are passed over."""
        by_chance: list[str] = []
        while "::" in (failed := self.failing([*tests, *(f"--deselect=tests/{test}" for test in by_chance)])):
            if self.failing([f"tests/{failed}"]):
                break
            by_chance.append(failed)
        return failed

    def failing(self, tests: list[str]) -> str:
        """The first test that fails; empty if none does. In a fork of this process, which has imported the rest."""
        told = self.folder / "told"
        child = os.fork()
        if child == 0:
            self._run(tests, told)
        _child, status = os.waitpid(child, 0)
        ended_with = os.waitstatus_to_exitcode(status)
        if ended_with == 0:
            return ""
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", told.read_text(errors="replace"), re.MULTILINE)
        return failed.group(1).removeprefix("tests/") if failed else f"(pytest ended with {ended_with})"

    def _run(self, tests: list[str], told: Path) -> NoReturn:
        ended_with = 1
        try:
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            os.chdir(self.folder)
            sys.path.insert(0, str(self.folder))
            sys.dont_write_bytecode = True
            os.environ.update(PYTHONPATH=str(self.folder), PYTHONDONTWRITEBYTECODE="1", CI="1")
            os.environ["AMPTALK_OTEL_TEST_BALANCE_EXAMPLES"] = "60"
            ended_with = int(pytest.main([*OPTIONS, *tests]))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(ended_with)


_copy: Copy


def _make_copy(folder: str) -> None:
    global _copy
    _copy = Copy(Path(tempfile.mkdtemp(dir=folder)))


def _missed_by(mutant: Mutant) -> str:
    return _copy.missed_by(mutant)


def _broken() -> str:
    return _copy.failing(ALL)


def check(chosen: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, str]]:
    """Which test misses which hook."""
    for name in PRELOADED:
        importlib.import_module(name)
    with (
        tempfile.TemporaryDirectory(prefix="check-hooks-") as folder,
        get_context("fork").Pool(jobs, _make_copy, [folder]) as pool,
    ):
        broken = pool.apply(_broken)
        if broken:
            sys.exit(f"the tests do not pass with every hook in place: {broken}")
        yield from zip(chosen, pool.imap(_missed_by, chosen), strict=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the hooks, and run nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="hooks whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time (default: all CPUs)")
    options = parser.parse_args()
    chosen = mutants(options.only)
    if options.list:
        print("\n".join(f"{mutant.line:4d} {mutant.name}" for mutant in chosen))
        return 0
    say = partial(print, flush=True)
    began_at, outcomes = time.monotonic(), Counter[str]()
    say("| hook that is missing | line | the test that fails |\n|---|---|---|")
    for mutant, test in check(chosen, options.jobs):
        reason = EQUIVALENT.get(mutant.name)
        outcome = "caught" if test else "equivalent" if reason else "survived"
        outcomes[outcome] += 1
        say(f"| `{mutant.name}` | {mutant.line} | {test or (f'none: {reason}' if reason else '**none**')} |")
    numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    say(f"\n{len(chosen)} hooks in {time.monotonic() - began_at:.0f} s: {numbers}")
    return 1 if outcomes["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
