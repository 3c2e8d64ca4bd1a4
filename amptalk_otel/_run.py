"""An unedited program, run as Python would run it, with its orchestrators instrumented by a pipeline of ours."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from amptalk_otel._zero_code import ZeroCode
from amptalk_otel.config import Config

_NOTHING = "no orchestrator was found; name its module in AMPTALK_OTEL_MODULES (docs/zero-code.md)"


def run_program(command: Sequence[str], config: Config, *, quiet: bool = False) -> int:
    """Run `app.py [arguments]` or `-m module [arguments]` as Python would; returns its exit code.

    The program's exceptions pass unchanged, and its tracebacks are shown without our frames. Metrics are
    served and pushed until the process ends, for threads too that outlive the main module; the last values
    are pushed at its exit. Unless `quiet`, stderr is told the address of the page once, or at the exit of a program
    that did not fail that no orchestrator was found.
    """
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={})
    try:
        run = _prepare(command, main)
    except OSError as error:
        _say(f"can't open {command[0]} ({error.strerror or type(error).__qualname__})")
        return 2
    if not config.sdk_disabled:
        zero_code = ZeroCode(config, tell_url=None if quiet else lambda url: _say(f"metrics at {url}"))
        if not quiet:
            atexit.register(_tell_if_nothing_was_found, zero_code, os.getpid())  # threads may outlive the main module
    try:
        run()
    except SystemExit as end:
        if end.code:
            atexit.unregister(_tell_if_nothing_was_found)
        raise
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            atexit.unregister(_tell_if_nothing_was_found)
        _show_from(_without_us(error.__traceback__))
        raise
    return 0


def _tell_if_nothing_was_found(zero_code: ZeroCode, process_id: int) -> None:
    if not zero_code.found_any and os.getpid() == process_id:
        _say(_NOTHING)


def _say(text: str) -> None:
    """The command's own word, before, beside or after the program; not on stdout, whatever became of stderr."""
    with contextlib.suppress(Exception):
        sys.stderr.write(f"amptalk-otel: {text}\n")


def _prepare(command: Sequence[str], main: ModuleType) -> Callable[[], None]:
    """Set `sys.argv` and `sys.path` as Python does; returns what runs the program. Raises OSError for no file."""
    if command[0] == "-m":
        _set_path(str(Path.cwd()))
        sys.argv[:] = ["-m", *command[2:]]
        return lambda: runpy._run_module_as_main(command[1])  # type: ignore[attr-defined]  # noqa: SLF001 - what `python -m` runs
    sys.argv[:] = command
    if pkgutil.get_importer(command[0]) is not None:  # a folder or an archive, with a `__main__` inside
        _set_path(_absolute(command[0]), always=True)
        return lambda: runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]  # noqa: SLF001
    code = _load(command[0], main)
    _set_path(str(Path(command[0]).resolve().parent))
    return lambda: exec(code(), vars(main))  # noqa: S102 - this is what running a program is


def _load(name: str, main: ModuleType) -> Callable[[], CodeType]:
    """Make `main` the module of this file; returns what compiles it."""
    path = _absolute(name)
    is_compiled = path.endswith(".pyc")
    loader = SourcelessFileLoader("__main__", path) if is_compiled else SourceFileLoader("__main__", path)
    vars(main).update(__file__=path, __cached__=None, __loader__=loader)
    source = loader.get_data(path)
    if isinstance(loader, SourceFileLoader):
        return lambda: loader.source_to_code(source, path)
    return lambda: loader.get_code("__main__")  # type: ignore[return-value]


def _absolute(name: str) -> str:
    return os.path.join(os.getcwd(), name)  # noqa: PTH109, PTH118 - not normalised, as Python has it


def _set_path(first: str, *, always: bool = False) -> None:
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):  # else there is no such entry
        sys.path[0] = first
    elif always:
        sys.path.insert(0, first)


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    """What Python itself would show: from the program's first frame on; nothing for one that does not compile."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib")):
        traceback = traceback.tb_next
    return traceback


def _show_from(traceback: TracebackType | None) -> None:
    """Let the exception that is about to end the process be shown from here on."""
    show = sys.excepthook

    def show_from(kind: type[BaseException], error: BaseException, _whole: TracebackType | None) -> None:
        show(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = show_from
