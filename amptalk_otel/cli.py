"""The `amptalk-otel` command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from amptalk_otel import _setting_types
from amptalk_otel._version import __version__
from amptalk_otel.config import Config

_EXAMPLES = """\
examples:
  amptalk-otel demo                      run until Ctrl-C; open http://localhost:8000/metrics
  amptalk-otel demo --seconds 10         stop by itself
  amptalk-otel demo --port 0 --rate 100  any free port, 100 segments a second
  amptalk-otel demo --traces             push its spans to a collector as well
  amptalk-otel run --port 9464 app.py    watch the agents of a program, unedited
  amptalk-otel run -m package.app --fast the same for a module; what follows its name is for the program

Every setting of the library works here too, as an environment variable; for example, to push to a collector:
  OTEL_METRICS_EXPORTER=prometheus,otlp OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 amptalk-otel demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 success, 1 failure, 2 wrong usage or settings."""
    options = _parser().parse_args(arguments)
    try:
        changes = {} if options.port is None else {"prometheus_port": options.port}
        config = Config.from_env(strict=True, **changes)
    except ValueError as error:
        print(f"amptalk-otel: {error}", file=sys.stderr)
        return 2
    if options.command == "run":
        return _run(_command_of(options), config, quiet=options.quiet)
    return _demo(options.seconds, options.rate, config, traces=options.traces)


def _demo(seconds: float | None, rate: float, config: Config, *, traces: bool) -> int:
    from amptalk_otel._otlp import MissingExtraError
    from amptalk_otel.demo.app import run_demo

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        return asyncio.run(run_demo(seconds=seconds, config=config, rate=rate, out=sys.stdout, traces=traces))
    except KeyboardInterrupt:
        return 0
    except (MissingExtraError, OSError) as error:  # such as a disk that is full
        print(f"amptalk-otel: {error}", file=sys.stderr)
        return 1


def _command_of(options: argparse.Namespace) -> list[str]:
    if options.module is not None:
        return ["-m", *options.module]
    program: list[str] = options.program
    return program[1:] if program[:1] == ["--"] else program  # which Python 3.12.5 and later take away themselves


def _run(command: Sequence[str], config: Config, *, quiet: bool) -> int:
    """Run a program. Logging is left alone: it is the program's."""
    from amptalk_otel._run import run_program

    if not command or command == ["-m"]:
        print("amptalk-otel: name a program to run (see amptalk-otel run --help)", file=sys.stderr)
        return 2
    if command[0] != "-m" and not os.path.exists(command[0]):  # noqa: PTH110 - pathlib's raises for a long name
        print(f"amptalk-otel: there is no file {command[0]}", file=sys.stderr)
        return 2
    return run_program(command, config, quiet=quiet)


class _Parser(argparse.ArgumentParser):
    """One line for a wrong argument: what is wrong, and where help is."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="amptalk-otel",
        description="OpenTelemetry metrics and traces for AMPTALK multi-agent programs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"amptalk-otel {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = _add_command(
        commands,
        "demo",
        "watch a meeting pipeline of six agents at work",
        "Run a meeting pipeline on a real transcript, serve its metrics and show them here.",
    )
    demo.add_argument("--seconds", type=_positive, metavar="N", help="stop after N seconds (default: at Ctrl-C)")
    demo.add_argument(
        "--rate", type=_positive, default=20.0, metavar="R", help="transcript segments per second (default: 20)"
    )
    demo.add_argument(
        "--traces",
        action="store_true",
        help="push the spans of its messages to a collector as well (default: http://localhost:4318)",
    )
    run = _add_command(
        commands,
        "run",
        "run a program with every orchestrator that it creates instrumented",
        "Run a program, unedited, with every orchestrator that it creates instrumented.",
    )
    run.add_argument(
        "--quiet", action="store_true", help="do not tell on stderr where the metrics are, or that none are"
    )
    # An option of its own: argparse takes no remainder that begins with one.
    run.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="app.py [arguments]",
        help="or: -m module [arguments]; the arguments are the program's",
    )
    return parser


def _add_command(commands: Any, name: str, brief: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=description,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=_port, metavar="P", help="port of the metrics page; 0 for any (default: 8000)")
    return parser


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number <= 1_000_000.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1,000,000")
    return number


def _port(text: str) -> int:
    try:
        return _setting_types.port(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number from 0 to 65535") from None
