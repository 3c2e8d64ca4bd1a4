"""The command: runs benchmarks, prints their tables, pastes them into the documentation, and checks the bounds."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from tests.benchmarks import bounds
from tests.benchmarks.harness import Summary
from tests.benchmarks.report import PICTURES, Result, machine, paste
from tests.benchmarks.workers import ROOT

BENCHMARKS = {  # in the order of the page: those that say most come first
    "messages": "CPU time of one message: uninstrumented, ours, and by hand with four kinds of tools",
    "growth": "the same from 10 to 10,000 agents, as a plot",
    "tracing": "CPU time of one message with spans, unsampled to 100 %, against spans made by hand with the SDK",
    "scrape": "CPU time and size of the page from 10 to 10,000 agents, against the stock reader and prometheus_client",
    "export": "CPU time of an OTLP export of 1,000 agents, against the stock path",
    "loop_delay": "delay of the event loop with 1,000 agents and a scrape a second, against idle and stock",
    "memory": "memory an agent, against the SDK and prometheus_client",
    "churn": "100,000 agents that come and go, every scrape checked",
    "imports": "time of the import and of the first instrumentation, and what is imported",
}
NOT_IN_SHORT = ("growth",)  # has no ratio to check
PAGE = ROOT / "docs" / "performance.md"
OK, OUT_OF_BOUNDS = 0, 1  # 2 is argparse's, for bad usage

_EPILOG = """\
benchmarks:
{benchmarks}

examples:
  tox -e bench                                         everything, into docs/performance.md; about ten minutes
  tox -e bench -- --short --check                      what CI runs; about two minutes
  python -m tests.benchmarks --only messages           one benchmark, printed only
  python -m tests.benchmarks --only scrape --write     one benchmark, pasted into its place on the page
  python -m tests.benchmarks --record --write --check  on a quiet machine: record the ratios that later runs are held to

exit codes: 0 all is well, 1 a ratio is out of bounds (--check), 2 bad usage.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.short and (options.write or options.record):
        parser.error("--short measures too little for --write and --record")
    names = options.only or [name for name in BENCHMARKS if not (options.short and name in NOT_IN_SHORT)]
    results = _run_all(names, short=options.short)
    ratios = {name: value for result in results for name, value in result.ratios.items()}
    sections = _sections(results, ratios, short=options.short)
    for section in sections.values():
        print(f"{section}\n")
    if options.json is not None:
        text = json.dumps([result.as_json() for result in results], indent=2)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    if options.write:
        _write(results, sections, everything=set(names) == set(BENCHMARKS))
    found = _check(ratios, short=options.short) if options.check else []
    if options.record:
        recorded = bounds.record(ratios)
        for name in sorted(ratios.keys() & recorded.keys()):
            print(f"recorded {name}: {bounds.described(recorded[name])}", file=sys.stderr)
    return OUT_OF_BOUNDS if found else OK


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12}{what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure what amptalk_otel costs beside its peers. Progress goes to stderr, tables to stdout.",
        epilog=_EPILOG.format(benchmarks=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="fewer rounds and fewer agents, for CI")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BENCHMARKS, help="run these benchmarks only")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio is out of bounds (see bounds.py)")
    parser.add_argument("--write", action="store_true", help="paste tables and plots into docs/performance.md")
    parser.add_argument("--record", action="store_true", help="write the ratios to tests/benchmarks/recorded.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON, too")
    return parser


def _run_all(names: Sequence[str], *, short: bool) -> list[Result]:
    results = []
    for name in dict.fromkeys(names):
        started = time.monotonic()
        print(f"{name}: {BENCHMARKS[name]}", file=sys.stderr, flush=True)
        results.append(import_module(f"tests.benchmarks.{name}").run(short=short))
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return results


def _sections(results: Sequence[Result], ratios: Mapping[str, Summary], *, short: bool) -> dict[str, str]:
    """Markdown by the name of its place on the page."""
    sections = {"machine": machine(short=short).markdown()}
    if ratios:
        sections["limits"] = bounds.table(ratios).markdown()
    return sections | {result.name: result.markdown() for result in results}


def _write(results: Sequence[Result], sections: Mapping[str, str], *, everything: bool) -> None:
    """Paste the sections. The limits and the machine are those of a whole run, or stay as they are."""
    page = PAGE.read_text(encoding="utf-8")
    for name, content in sections.items():
        if everything or name not in ("machine", "limits"):
            page = paste(page, name, content)
    PAGE.write_text(page, encoding="utf-8")
    folder = PAGE.parent / PICTURES
    folder.mkdir(exist_ok=True)
    for result in results:
        for name, picture in result.pictures.items():
            (folder / name).write_text(picture, encoding="utf-8")
    print("wrote docs/performance.md", file=sys.stderr)


def _check(ratios: Mapping[str, Summary], *, short: bool) -> list[str]:
    found = bounds.violations(ratios, bounds.load(), short=short)
    for sentence in found:
        print(f"out of bounds: {sentence}", file=sys.stderr)
    judged = sum(bound.name in ratios for bound in bounds.BOUNDS)
    print(f"{judged - len(found)} of {judged} ratios are within bounds", file=sys.stderr)
    return found
