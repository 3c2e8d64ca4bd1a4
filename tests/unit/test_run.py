"""`amptalk-otel run` and `python -m amptalk_otel`: the program runs as Python itself would run it."""

from __future__ import annotations

import os
import py_compile
import re
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("amptalk-otel")
WAYS = {
    "python": [sys.executable],
    "module": [sys.executable, "-m", "amptalk_otel", "--quiet"],
    "script": [str(SCRIPT), "run", "--quiet"],
    "telling": [sys.executable, "-m", "amptalk_otel"],
}
NOTHING = "amptalk-otel: no orchestrator was found; name its module in AMPTALK_OTEL_MODULES (docs/zero-code.md)\n"
Outcome = tuple[int, str, str]

WHO = """
'''A program.'''
import sys
main = sys.modules["__main__"]
print(sys.argv, sys.path[:2], __name__, __file__, __doc__, __package__)
print(sorted(name for name in globals() if name not in ("main", "__conditional_annotations__")))
print(type(__builtins__).__name__, type(__loader__).__name__, getattr(__spec__, "name", None))
print(vars(main) is globals(), __annotations__)
"""

PROGRAMS = {
    "who": WHO,
    "sibling": "import helper\nprint(helper.VALUE, helper.__file__)",
    "exit-3": "import sys\nprint('out')\nsys.exit(3)",
    "exit-text": "import sys\nsys.exit('that is that')",
    "exit-none": "import sys\nsys.exit()",
    "exception": "def f():\n    raise ValueError('bad')\ntry:\n    f()\nexcept ValueError as error:\n"
    "    raise LookupError('worse') from error",
    "coroutine": "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    raise OSError(5, 'no')\n"
    "asyncio.run(main())",
    "syntax": "def f(:\n    pass",
    "interrupt": "raise KeyboardInterrupt",
    "sigint": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)",
    "sigint-asyncio": "import asyncio, os, signal\nasync def main():\n    os.kill(os.getpid(), signal.SIGINT)\n"
    "    try:\n        await asyncio.sleep(30)\n    finally:\n        print('tidy')\n"
    "try:\n    asyncio.run(main())\nexcept KeyboardInterrupt:\n    print('interrupted')",
    "sigterm": "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)",
    "signal-handlers": "import signal\nprint([signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)])",
    "hook": "import sys\ndef hook(kind, error, tb):\n    print('hook', kind.__name__, tb.tb_frame.f_code.co_name)\n"
    "sys.excepthook = hook\n1 / 0",
    "default-hook": "import sys\nprint(sys.excepthook is sys.__excepthook__)\n",
    "threads": "import threading, time, sys\ndef late():\n    threading.main_thread().join()\n"
    "    print('late', VALUE, vars(sys.modules['__main__']) is globals())\n"
    "VALUE = 5\nthreading.Thread(target=late).start()\nprint('end of main')",
    "atexit": "import atexit, pickle, sys\nclass A:\n    pass\n"
    "atexit.register(lambda: print(pickle.loads(pickle.dumps(A())).__class__ is A))\nsys.exit(4)",
    "logging": "import logging\nprint(logging.root.handlers, logging.root.level, logging.getLogger('x').level)\n"
    "logging.warning('first')\nlogging.basicConfig(level=logging.DEBUG, format='late')\n",
    "basic-config": "import logging, sys\n"
    "logging.basicConfig(level=logging.DEBUG, format='%(name)s %(message)s', stream=sys.stdout)\n"
    "logging.getLogger('app').debug('seen')\nlogging.getLogger('amptalk_otel').info('seen')\n"
    "print(len(logging.root.handlers))",
    "warnings": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)",
    "stdin": "print(input())",
    "source": "import inspect, linecache\ndef f():\n    return 1\n"
    "print(inspect.getsource(f), linecache.getline(__file__, 2))",
    "recursion": "import sys\ndef f(n):\n    return n and f(n - 1)\nprint(f(sys.getrecursionlimit() - 60))",
    "future": "from __future__ import annotations\ndef f(x: Undefined): ...\nprint(f.__annotations__)",
    "no-future": "try:\n    def f(x: Undefined): ...\n    print(f.__annotations__)\n"
    "except NameError as error:\n    print(error)",
    "main-guard": "def main():\n    print('ran')\nif __name__ == '__main__':\n    main()",
}


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AMPTALK_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120", **variables}


def run(way: str, arguments: list[str], folder: Path, *flags: str, **variables: str) -> Outcome:
    command = [WAYS[way][0], *flags, *WAYS[way][1:], *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(**variables), input="typed\n", capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def ways(*names: str) -> Callable[[list[str], Path], list[Outcome]]:
    """Run the same program in several ways at once."""

    def run_all(arguments: list[str], folder: Path) -> list[Outcome]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda way: run(way, arguments, folder), names))

    return run_all


three_ways = ways("python", "module", "script")


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., str]:
    """Write a file below a folder of the test; returns its relative name."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "helper.py").write_text("VALUE = 'sibling'\n")

    def write(source: str, name: str = "app/program.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return name

    return write


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_without_the_framework_runs_as_without_us(
    name: str, program: Callable[..., str], tmp_path: Path
) -> None:
    arguments = [program(PROGRAMS[name]), "--port", "1", "-m", "--", "x y"]
    plain, module = ways("python", "module")(arguments, tmp_path)
    assert module == plain


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("exit-3", 3, "out"),
        ("exit-text", 1, "that is that"),
        ("exception", 1, "LookupError: worse"),
        ("syntax", 1, "SyntaxError"),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("sigint", -signal.SIGINT, "KeyboardInterrupt"),
        ("sigterm", -signal.SIGTERM, ""),
        ("threads", 0, "late 5 True"),
        ("atexit", 4, "True"),
        ("basic-config", 0, "app seen\namptalk_otel seen\n1\n"),
        ("who", 0, "['app/program.py', 'a', '-b'] ["),
    ],
)
def test_how_programs_end(name: str, code: int, said: str, program: Callable[..., str], tmp_path: Path) -> None:
    returncode, out, err = run("module", [program(PROGRAMS[name]), "a", "-b"], tmp_path)
    assert returncode == code
    assert said in out + err
    assert "amptalk" not in (out + err).replace("amptalk_otel seen", "").replace(str(ROOT), "")


@pytest.mark.parametrize("source", [WHO, PROGRAMS["exception"]], ids=["who", "exception"])
@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("package/module.py", ["-m", "package.module"]),
        ("package/__main__.py", ["-m", "package"]),
        ("single.py", ["-m", "single"]),
        ("folder/__main__.py", ["folder"]),
        ("folder/__main__.py", ["./folder/"]),
        ("single.py", ["single.py"]),
        ("single.py", ["./single.py"]),
    ],
)
def test_modules_and_folders_run_as_without_us(
    file: str, arguments: list[str], source: str, program: Callable[..., str], tmp_path: Path
) -> None:
    program("print('package', __import__('sys').argv)", "package/__init__.py")
    program(source, file)
    plain, module, script = three_ways([*arguments, "a", "--port", "1"], tmp_path)
    assert plain[0] == {WHO: 0, PROGRAMS["exception"]: 1}[source]
    assert module == plain
    assert script == plain


def test_an_archive_and_a_compiled_file_run_as_without_us(program: Callable[..., str], tmp_path: Path) -> None:
    source = tmp_path / program(WHO, "app/compiled.py")
    py_compile.compile(str(source), cfile=str(tmp_path / "compiled.pyc"))
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", PROGRAMS["exception"])
    for name, code in (("compiled.pyc", 0), ("app.zip", 1)):
        plain, module, script = three_ways([name, "a"], tmp_path)
        assert plain[0] == code
        assert module == plain
        assert script == plain


@pytest.mark.parametrize("arguments", [["-m", "absent"], ["-m", "package"], ["-m", "package.absent"], ["app"]])
def test_what_cannot_be_run_is_told_as_without_us(
    arguments: list[str], program: Callable[..., str], tmp_path: Path
) -> None:
    program("", "package/__init__.py")
    plain, *ours = three_ways(arguments, tmp_path)
    assert plain[0] == 1
    for outcome in ours:
        assert outcome[:2] == plain[:2]
        assert re.sub(r"^\S*/python[\d.]*: ", "", outcome[2]) == re.sub(r"^\S*/python[\d.]*: ", "", plain[2])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
def test_a_safe_path_stays_safe(program: Callable[..., str], tmp_path: Path) -> None:
    name = program(WHO)
    assert run("module", [name], tmp_path, "-P") == run("python", [name], tmp_path, "-P")
    sibling = program(PROGRAMS["sibling"], "app/other.py")
    assert run("module", [sibling], tmp_path, "-P")[0] == 1


def test_a_linked_program_finds_its_neighbours(program: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(tmp_path / program(PROGRAMS["sibling"] + "\nprint(__file__)"))
    plain, module, script = three_ways(["link.py"], tmp_path)
    assert plain[0] == 0
    assert module == plain
    assert script == plain


@pytest.mark.parametrize("way", ["module", "script"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["absent.py"], "amptalk-otel: there is no file absent.py"),
        (["a" * 5000], "amptalk-otel: there is no file aaaa"),
        ([], "amptalk-otel: name a program to run (see amptalk-otel run --help)"),
        (["-m"], "amptalk-otel: name a program to run (see amptalk-otel run --help)"),
        (["--port", "x", "app.py"], "amptalk-otel run: argument --port: 'x' is not a port number from 0 to 65535"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(way: str, arguments: list[str], line: str, tmp_path: Path) -> None:
    returncode, out, err = run(way, arguments, tmp_path)
    assert (returncode, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_read_exits_2_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop.py").symlink_to("/proc/self/mem")
    returncode, out, err = run("module", ["loop.py"], tmp_path)
    assert (returncode, out) == (2, "")
    assert re.fullmatch(r"amptalk-otel: can't open loop\.py \(.+\)\n", err)


def test_a_setting_that_cannot_be_used_exits_2(program: Callable[..., str], tmp_path: Path) -> None:
    returncode, out, err = run("module", [program("print(1)")], tmp_path, OTEL_EXPORTER_PROMETHEUS_PORT="many")
    assert (returncode, out) == (2, "")
    assert err == ("amptalk-otel: OTEL_EXPORTER_PROMETHEUS_PORT='many': must be a port number from 0 to 65535\n")


# -- a program that uses the framework -----------------------------------------------------------------

FRAMEWORK = "from amptalk_otel.demo.runtime import Orchestrator as Base\nclass Orchestrator(Base):\n    pass\n"
SCRAPE = """
import asyncio, re, sys, threading, urllib.request
from acme.core.framework.orchestrator import Orchestrator
from amptalk_otel.demo.runtime import Message, MessageType, SimpleAgent

async def work(name):
    orchestrator = Orchestrator(name)
    agent = SimpleAgent(agent_id=name, name=name)
    orchestrator.register_agent(agent)
    await orchestrator.start()
    for _ in range(3):
        await orchestrator.send_message_to_agent(
            Message(message_type=MessageType.COMMAND, source_agent_id="you", target_agent_id=name, payload={}))
    await asyncio.wait_for(agent.input_queue.join(), 20)
    await orchestrator.stop()
    return orchestrator

def scrape(url):
    page = urllib.request.urlopen(url, timeout=10).read().decode()
    return re.findall(r'^amptalk_agent_messages_processed_total{agent_id="(\\w+)".* (\\d+).0$', page, re.M)
"""


@pytest.fixture
def vendored(program: Callable[..., str]) -> None:
    for package in ("acme", "acme/core", "acme/core/framework"):
        program("", f"app/{package}/__init__.py")
    program(FRAMEWORK, "app/acme/core/framework/orchestrator.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("given", ["--port", "OTEL_EXPORTER_PROMETHEUS_PORT"])
def test_the_page_is_at_the_given_port(given: str, vendored: None, program: Callable[..., str], tmp_path: Path) -> None:
    port = free_port()
    name = program(SCRAPE + f"kept = asyncio.run(work('one'))\nprint(scrape('http://localhost:{port}/metrics'))")
    options = ["--port", str(port)] if given == "--port" else []
    variables = {given: str(port)} if given != "--port" else {}
    assert run("script", [*options, name], tmp_path, **variables) == (0, "[('one', '3')]\n", "")


def test_with_port_0_the_address_is_told_on_stderr_and_shared(
    vendored: None, program: Callable[..., str], tmp_path: Path
) -> None:
    name = program(
        SCRAPE + "told = []\n"
        "write = sys.stderr.write\n"
        "sys.stderr.write = lambda text: (told.append(text), write(text))\n"
        "kept = [asyncio.run(work(name)) for name in ('one', 'two')]\n"
        "print(sorted(scrape(re.search('http:.*', ''.join(told)).group())))"
    )
    returncode, out, err = run("telling", ["--port", "0", name], tmp_path)
    assert (returncode, out) == (0, "[('one', '3'), ('two', '3')]\n")
    assert re.fullmatch(r"amptalk-otel: metrics at http://localhost:[1-9]\d+/metrics\n", err)


def test_the_address_is_told_once_on_stderr(vendored: None, program: Callable[..., str], tmp_path: Path) -> None:
    name, port = program(SCRAPE + "kept = [asyncio.run(work(name)) for name in ('one', 'two')]"), str(free_port())
    told = f"amptalk-otel: metrics at http://localhost:{port}/metrics\n"
    assert run("telling", ["--port", port, name], tmp_path) == (0, "", told)
    assert run("module", ["--port", port, name], tmp_path) == (0, "", "")
    assert run("telling", [name], tmp_path, OTEL_METRICS_EXPORTER="none") == (0, "", "")


@pytest.mark.parametrize(
    "name", ["who", "sigint-asyncio", "exit-none", "threads", "atexit", "exit-3", "exception", "syntax", "interrupt"]
)
def test_that_nothing_was_found_is_told_at_the_end_of_a_program_that_did_not_fail(
    name: str, program: Callable[..., str], tmp_path: Path
) -> None:
    arguments = [program(PROGRAMS[name])]
    plain, telling = ways("python", "telling")(arguments, tmp_path)
    fails = name in ("atexit", "exit-3", "exception", "syntax")
    assert telling == (*plain[:2], plain[2] + ("" if fails else NOTHING))
    assert run("telling", arguments, tmp_path, OTEL_SDK_DISABLED="true") == plain


def test_that_nothing_was_found_is_told_by_one_process_and_not_on_stdout(
    program: Callable[..., str], tmp_path: Path
) -> None:
    name = program("import os, sys\nif os.fork():\n    os.wait()\nsys.exit()\n")
    assert run("telling", [name], tmp_path) == (0, "", NOTHING)
    assert run("telling", [program("import sys\nsys.stderr = None")], tmp_path) == (0, "", "")


def test_one_that_a_thread_makes_after_the_main_module_is_found(
    vendored: None, program: Callable[..., str], tmp_path: Path
) -> None:
    name = program(
        SCRAPE + "def late():\n    threading.main_thread().join()\n    Orchestrator('late')\n"
        "threading.Thread(target=late).start()\n"
    )
    assert run("telling", [name], tmp_path, OTEL_METRICS_EXPORTER="none") == (0, "", "")


def test_one_double_dash_before_the_program_is_ours(program: Callable[..., str], tmp_path: Path) -> None:
    name = program("import sys\nprint(sys.argv)")
    for way in ("module", "script"):
        assert run(way, ["--", name, "--", "x"], tmp_path) == (0, f"['{name}', '--', 'x']\n", "")


def test_the_module_knows_the_commands_unless_there_is_such_a_file(program: Callable[..., str], tmp_path: Path) -> None:
    name = program("print('ran')")
    assert run("telling", ["run", "--quiet", name], tmp_path) == (0, "ran\n", "")
    out = run("telling", ["demo", "--seconds", "0.1", "--port", "0"], tmp_path)[1]
    assert out.startswith("Open http://localhost:")
    for command in ("run", "demo"):
        program(f"print('a file named {command}')", command)
        assert run("telling", [command], tmp_path) == (0, f"a file named {command}\n", NOTHING)


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3),
    reason="starts no threads once the main module has ended (https://github.com/python/cpython/issues/113964)",
)
def test_a_thread_that_outlives_the_main_module_is_served(
    vendored: None, program: Callable[..., str], tmp_path: Path
) -> None:
    port = free_port()
    name = program(
        SCRAPE + "def late():\n"
        "    threading.main_thread().join()\n"
        "    kept = asyncio.run(work('late'))\n"
        f"    print(scrape('http://localhost:{port}/metrics'))\n"
        "threading.Thread(target=late).start()\n"
    )
    assert run("module", ["--port", str(port), name], tmp_path) == (0, "[('late', '3')]\n", "")


def test_a_program_that_fails_shows_its_own_traceback_only(
    vendored: None, program: Callable[..., str], tmp_path: Path
) -> None:
    name = program(SCRAPE + "kept = asyncio.run(work('one'))\nOrchestrator(colour='red')")
    plain, module, script = (
        run(way, [name], tmp_path, OTEL_METRICS_EXPORTER="none") for way in ("python", "module", "script")
    )
    assert plain[0] == 1
    assert plain[2].splitlines()[-1].endswith("got an unexpected keyword argument 'colour'")
    assert module[:2] == script[:2] == plain[:2]
    assert module[2].splitlines()[-1] == plain[2].splitlines()[-1]
    assert "_run.py" not in module[2]


def test_a_switched_off_sdk_leaves_everything_off(vendored: None, program: Callable[..., str], tmp_path: Path) -> None:
    name = program(SCRAPE + "print(type(sys.meta_path[0]).__name__, hasattr(Orchestrator.__init__, '__wrapped__'))")
    assert run("module", [name], tmp_path, OTEL_SDK_DISABLED="true") == run("python", [name], tmp_path)
    on = run("module", [name], tmp_path)
    assert on == (0, "_Finder True\n", "")
