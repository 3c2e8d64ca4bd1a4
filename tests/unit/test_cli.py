"""The `amptalk-otel` command: what it takes, and one line for what it does not. (The demo has its own tests.)"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import amptalk_otel
from amptalk_otel import cli
from amptalk_otel.config import SETTINGS, Config

ROOT = Path(__file__).parents[2]
Demo = tuple[float | None, float, Config, bool]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        for variable in setting.variables:
            monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def demos(monkeypatch: pytest.MonkeyPatch) -> list[Demo]:
    """What the demo would be called with."""
    calls: list[Demo] = []

    def demo(seconds: float | None, rate: float, config: Config, *, traces: bool) -> int:
        calls.append((seconds, rate, config, traces))
        return 0

    monkeypatch.setattr(cli, "_demo", demo)
    return calls


def run(*arguments: str) -> int:
    """The exit code, whichever way it is given."""
    try:
        return cli.main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "amptalk-otel: the following arguments are required: COMMAND"),
        ("dance", "amptalk-otel: argument COMMAND: invalid choice: 'dance'"),
        ("--port 1", "amptalk-otel: "),
        ("demo --port 70000", "amptalk-otel demo: argument --port: '70000' is not a port number from 0 to 65535"),
        ("demo --port 000000999999", "amptalk-otel demo: argument --port: '000000999999' is not a port number"),
        ("demo --port -1", "amptalk-otel demo: argument --port: "),
        ("demo --port", "amptalk-otel demo: argument --port: expected one argument"),
        ("demo --port http", "amptalk-otel demo: argument --port: 'http' is not a port number from 0 to 65535"),
        (f"demo --port {'9' * 5000}", "amptalk-otel demo: argument --port: '9999"),
        ("demo --rate 0", "amptalk-otel demo: argument --rate: '0' is not a number above 0 and up to 1,000,000"),
        ("demo --rate -5", "amptalk-otel demo: argument --rate: "),
        ("demo --rate nan", "amptalk-otel demo: argument --rate: 'nan' is not a number above 0"),
        ("demo --rate inf", "amptalk-otel demo: argument --rate: 'inf' is not a number above 0"),
        ("demo --seconds x", "amptalk-otel demo: argument --seconds: 'x' is not a number above 0"),
        ("demo --seconds ''", "amptalk-otel demo: argument --seconds: '' is not a number above 0"),
        ("demo --minutes 1", "amptalk-otel: unrecognized arguments: --minutes 1"),
        ("demo now", "amptalk-otel: unrecognized arguments: now"),
        ("run", "amptalk-otel: name a program to run"),
        ("run -m", "amptalk-otel: name a program to run"),
        ("run --port 70000 app.py", "amptalk-otel run: argument --port: '70000' is not a port number from 0 to 65535"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_line_on_stderr(
    line: str, message: str, capsys: pytest.CaptureFixture[str], demos: list[Any]
) -> None:
    assert run(*shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message)
    assert err.endswith(" --help)\n")
    assert (out, err.count("\n"), demos) == ("", 1, [])


@pytest.mark.parametrize("name", ["no_such_program.py", "a" * 5000])
def test_a_program_that_is_not_there_is_exit_2_and_one_line_on_stderr(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", name) == 2
    assert capsys.readouterr() == ("", f"amptalk-otel: there is no file {name}\n")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "OTEL_EXPORTER_PROMETHEUS_PORT",
            "abc",
            "amptalk-otel: OTEL_EXPORTER_PROMETHEUS_PORT='abc': must be a port number from 0 to 65535\n",
        ),
        (
            "OTEL_METRICS_EXPORTER",
            "prometheus,jaeger",
            "amptalk-otel: OTEL_METRICS_EXPORTER='prometheus,jaeger': "
            "must be some of prometheus, otlp, console, none\n",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "s3cret",
            "amptalk-otel: OTEL_EXPORTER_OTLP_HEADERS=(hidden): must be key=value pairs separated by commas\n",
        ),
        ("OTEL_SDK_DISABLED", "a\nb", "amptalk-otel: OTEL_SDK_DISABLED='a\\nb': must be true or false\n"),
    ],
)
def test_a_bad_variable_is_exit_2_and_one_line_on_stderr(
    variable: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    demos: list[Any],
) -> None:
    monkeypatch.setenv(variable, value)
    assert run("demo") == 2
    assert capsys.readouterr() == ("", message)
    assert demos == []


def test_an_option_goes_before_a_bad_variable(monkeypatch: pytest.MonkeyPatch, demos: list[Demo]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "abc")
    assert run("demo", "--port", "0") == 0
    assert demos == [(None, 20.0, Config(prometheus_port=0), False)]


def test_options_and_variables_reach_the_demo(monkeypatch: pytest.MonkeyPatch, demos: list[Demo]) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "bot")
    assert run("demo", "--seconds", "1.5", "--rate", "100", "--port", "9464", "--traces") == 0
    assert demos == [(1.5, 100.0, Config(service_name="bot", prometheus_port=9464), True)]


def test_without_options_the_demo_runs_until_it_is_stopped_on_the_default_port(
    demos: list[Demo],
) -> None:
    assert run("demo") == 0
    assert demos == [(None, 20.0, Config(), False)]


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("run {file}", ["{file}"]),
        ("run {file} --verbose -m --port 1", ["{file}", "--verbose", "-m", "--port", "1"]),
        ("run -- {file} -- x", ["{file}", "--", "x"]),
        ("run -m package.app", ["-m", "package.app"]),
        ("run -m package.app --verbose --help -m x", ["-m", "package.app", "--verbose", "--help", "-m", "x"]),
    ],
)
@pytest.mark.parametrize("port", [None, 0])
def test_what_follows_run_is_the_programs_own(
    line: str, program: list[str], port: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], Config, bool]] = []

    def run_program(command: list[str], config: Config, *, quiet: bool) -> int:
        calls.append((list(command), config, quiet))
        return 0

    monkeypatch.setattr("amptalk_otel._run.run_program", run_program)
    if port is not None:
        line = line.replace("run", f"run --port {port} --quiet", 1)
    assert run(*line.format(file=__file__).split()) == 0
    expected = Config() if port is None else Config(prometheus_port=port)
    assert calls == [([part.format(file=__file__) for part in program], expected, port is not None)]


@pytest.mark.parametrize("line", ["--help", "demo --help", "run --help"])
def test_help_has_examples_that_work(line: str, capsys: pytest.CaptureFixture[str], demos: list[Any]) -> None:
    assert run(*line.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\nexamples:\n" in out
    _, _, examples = out.partition("\nexamples:\n")
    commands = re.findall(r"^  amptalk-otel (demo.*?)(?:  .*)?$", examples, re.MULTILINE)
    assert len(commands) >= 3
    for number, command in enumerate(commands, start=1):
        assert run(*command.split()) == 0
        assert len(demos) == number


def test_the_variables_in_the_help_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    named = set(re.findall(r"\b(?:AMPTALK_)?OTEL_[A-Z_]+", capsys.readouterr().out))
    assert named >= {"OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert named <= {variable for setting in SETTINGS for variable in setting.variables}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr() == (f"amptalk-otel {amptalk_otel.__version__}\n", "")


def test_the_command_works_as_a_program() -> None:
    script = "import sys; from amptalk_otel.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--port", "70000"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "amptalk-otel demo: argument --port: '70000' is not a port number from 0 to 65535 "
        "(see amptalk-otel demo --help)\n"
    )


def test_ctrl_c_ends_the_demo_with_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(**_options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("amptalk_otel.demo.app.run_demo", interrupted)
    monkeypatch.setattr("logging.basicConfig", lambda **_options: None)
    assert run("demo", "--port", "0") == 0
