"""Every code block of README.md and docs/ runs, or is checked; a block that nobody knows how to run fails.

One test is one page: its blocks run from top to bottom, as a reader would, in one namespace and one folder. The page
finds an `orchestrator` at work, and `my_agent` in it. A block with `title="name"` is also saved as that file. Blocks
that only end things (`shutdown`, `stop_collecting`, `uninstrument`) run last, so that the others meet a page that is
alive.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from amptalk_otel import (
    Config,
    Instrumentation,
    PerformanceMonitor,
    _instrumentation,
    _pipeline,
    instrument_orchestrator,
    performance_monitor,
)
from amptalk_otel._catalogue import CATALOGUE, Kind, Metric
from amptalk_otel._server import MetricsServer, Page
from amptalk_otel._web_config import read_web_config
from amptalk_otel.config import SETTINGS
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent
from tests.docs.blocks import Block, blocks_of, commands_of, mismatch, prose_of, words_in_backticks
from tests.integration.servers import find_server, run_program

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCKS = {page: blocks_of(page) for page in PAGES}
IN_CI = os.environ.get("CI", "").strip().lower() in ("1", "true", "yes")
COMMAND_TIMEOUT_S = 40.0
RUNS_S = 3  # how long a program that goes on for ever is watched

# ------------------------------------------------------------------------------------------- what pages may speak of

TEXT_BLOCKS = {  # samples that nothing runs, by page and first line
    ("README.md", "                                   in                                                wait    wait"),
    ("configuration.md", "OTEL_METRICS_EXPORTER='prometheus,jaeger': must be some of"),
    ("troubleshooting.md", "metrics are not served: "),
    ("troubleshooting.md", "Worker can't be watched: it is of no kind that an adapter knows"),
    ("troubleshooting.md", "metrics are not pushed (ConnectionError); the next push is tried as usual"),
    ("reliability.md", "metrics are not pushed (ConnectionError); the next push is tried as usual"),
}
OTHER_PACKAGES = {"tox", "opentelemetry-distro", "opentelemetry-instrumentation-logging", "."}
OTHER_VARIABLES = {  # read by OpenTelemetry's launcher, its SDK and its instrumentations
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_LOGS_EXPORTER",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
    "OTEL_PYTHON_LOG_CORRELATION",
}
LOGGING_INSTRUMENTATION = "logging"  # installed for another test; starts a thread as the interpreter ends, on 3.12 an error
FORMER_METRICS = {"process_cpu_usage_percent", "system_cpu_usage_percent", "system_memory_usage_percent"}
COLLECTOR_METRICS = {"process_cpu_utilization_ratio"}  # as the Collector's own page has it
PROMQL_WORDS = {
    "__name__", "and", "bool", "by", "deriv", "histogram_quantile", "increase", "instance", "job", "le", "max",
    "max_over_time", "min", "min_over_time",
    "on", "or", "rate", "sum", "topk", "unless", "without",
}  # fmt: skip
SHOWN = {  # what the Python of a page prints, among other things
    "README.md": r"^http://localhost:\d+/metrics\n(.*\n)*Transcriber \d+ [1-9]\d* 0\.\d+$",
    "index.md": r"^http://localhost:\d+/metrics$",
    "tracing.md": r"^00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]$",
    "quickstart.md": r"^Transcriber [1-9]\d* [1-9]\d* 0 \d+$",
    "troubleshooting.md": r"^True http://localhost:\d+/metrics\n(.*\n)*\['Transcriber'\]\n\['transcriber'\]$",
}
RESOURCE_LABELS = {"service_name", "service_instance_id"}


def prometheus_names() -> set[str]:
    """The names of all series on our page."""
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    for metric in CATALOGUE:
        _create(provider.get_meter("docs"), metric)
    page = generate_latest(registry).decode()
    provider.shutdown()
    series = {re.split(r"[{ ]", line)[0] for line in page.splitlines() if line and not line.startswith("#")}
    return series | {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}


def _create(meter: Meter, metric: Metric) -> None:
    def callback(_options: CallbackOptions) -> list[Observation]:
        return [Observation(1)]

    if metric.kind is Kind.HISTOGRAM:
        meter.create_histogram(metric.name, metric.unit).record(1)
    elif metric.kind is Kind.COUNTER:
        meter.create_observable_counter(metric.name, [callback], metric.unit)
    elif metric.kind is Kind.GAUGE:
        meter.create_observable_gauge(metric.name, [callback], metric.unit)
    else:
        meter.create_observable_up_down_counter(metric.name, [callback], metric.unit)


NAMES = prometheus_names()
LABELS = {name.replace(".", "_") for metric in CATALOGUE for name in metric.attributes} | {
    "agent_id", "agent_name", "orchestrator_name", "agent_state", "operation_name", "state_storage",
    "state_operation", "error_type",
}  # fmt: skip
VARIABLES = {variable for setting in SETTINGS for variable in setting.variables} | OTHER_VARIABLES


# ----------------------------------------------------------------------------------------------------- one page at work


class PageRun:
    """One page, read by somebody who does all that it says."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.exported: dict[str, str] = {}
        self.printed: list[str] = []
        self.namespace: dict[str, Any] = {"__name__": "page"}
        self.handlers: dict[str, Callable[[Block], Awaitable[None]]] = {
            "python": self.python,
            "console": self.console,
            "bash": self.console,
            "yaml": self.yaml,
            "promql": self.promql,
            "text": self.sample,
            "": self.sample,
        }

    async def run(self, tally: Counter[str]) -> None:
        """Run every block of the page."""
        blocks = BLOCKS[self.page]
        ending = [block for block in blocks if _only_ends(block)]
        for block in [*(block for block in blocks if block not in ending), *ending]:
            handler = self.handlers.get(block.language)
            assert handler is not None, f"{block}: nobody knows how to run this language"
            if block.title is not None:
                path = self.folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            await handler(block)
            tally[block.language or "text"] += 1

    # -- python ----------------------------------------------------------------------------------------

    async def python(self, block: Block) -> None:
        """Run it here; a file (a block with a title) must be run by a command further down instead."""
        code = compile(
            "\n" * (block.line - 1) + block.text, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        if block.title is not None:
            module = Path(block.title).stem
            later = [other for other in BLOCKS[self.page] if other.line > block.line and other.language == "console"]
            assert any(module in command.text for other in later for command in commands_of(other)), (
                f"{block}: no command runs this file"
            )
            return
        outcome = eval(code, self.namespace)
        if inspect.iscoroutine(outcome):
            await asyncio.wait_for(outcome, 20)
        await asyncio.sleep(0.05)  # the agents go on with their work while somebody reads

    # -- commands --------------------------------------------------------------------------------------

    async def console(self, block: Block) -> None:
        commands = commands_of(block)
        assert commands, f"{block}: no commands"
        for command in commands:
            for part in command.text.split(" && "):
                printed = await self.command(block, part)
            if printed is not None:
                missing = mismatch(command.output, printed)
                assert missing is None, f"{block}: {command.text}\nprinted\n{printed}\nand not\n{missing}"

    async def command(self, block: Block, text: str) -> str | None:
        """Run one command; None where it is checked instead."""
        words = shlex.split(text)
        given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        unknown = {name for name in given if name.startswith(("OTEL_", "AMPTALK_"))} - VARIABLES
        assert not unknown, f"{block}: {unknown} are no settings"
        program = next((word for word in words if not re.match(r"[A-Z_]+=", word)), "")
        if program == "export":
            self.export(block, given)
            return None
        if program == "pip":
            assert words[1] == "install", block
            for requirement in words[2:]:
                _check_requirement(block, requirement)
            return None
        if program == "tox":
            assert (ROOT / "tox.ini").exists()
            return None
        if program in ("prometheus", "promtool", "otelcol"):
            self.server(block, words)
            return None
        if program == "tail":
            assert (ROOT / "examples" / "collector-traces.yaml").read_text().count(f"path: {words[3]}\n") == 1
            return None
        if program == "ss":
            return await self.shell(block, text) if shutil.which("ss") else None
        assert program in ("amptalk-otel", "curl", "python", "opentelemetry-instrument"), f"{block}: {program}?"
        return await self.shell(block, text)

    def export(self, block: Block, given: dict[str, str]) -> None:
        assert given, f"{block}: exports nothing"
        self.exported.update(given)
        Config.from_env(self.exported, strict=True)

    def server(self, block: Block, words: list[str]) -> None:
        """What would be started is checked. The file that it names is a block of the page."""
        file = next(word.split("=")[-1] for word in words if word.endswith((".yml", ".yaml")))
        assert (self.folder / file).exists(), f"{block}: no block of the page is {file}"
        check_server_file(self.folder / file)

    async def shell(self, block: Block, text: str) -> str:
        if "opentelemetry-instrument" in text and importlib.util.find_spec("opentelemetry.distro") is None:
            reason = "opentelemetry-distro is not installed"
            pytest.fail(reason) if IN_CI else pytest.skip(reason)
        if "4318/v1/" in text or "--traces" in text:
            return await self.with_collector(block, text)
        if ":8000" in text:
            address = self.address()
            text = text.replace("localhost:8000", address).replace(":8000", f":{address.rpartition(':')[2]}")
        text = re.sub(r"OTEL_EXPORTER_PROMETHEUS_PORT=(?!80000)\d+|--port \d+", _any_port, text)
        if "amptalk-otel demo" in text:
            text += "" if "--seconds" in text else " --seconds 1"
            text += "" if "--port" in text else " --port 0"
            text = re.sub(r"--seconds \d+", "--seconds 1", text)
        return await asyncio.to_thread(self.run_shell, block, text)

    def run_shell(self, block: Block, text: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AMPTALK_"))}
        environment |= self.exported
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
            "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
            "OTEL_EXPORTER_PROMETHEUS_HOST": "localhost",
            "OTEL_METRICS_EXPORTER": self.exported.get("OTEL_METRICS_EXPORTER", "prometheus").replace("otlp", "none"),
            "OTEL_TRACES_EXPORTER": self.exported.get("OTEL_TRACES_EXPORTER", "none").replace("otlp", "none"),
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": LOGGING_INSTRUMENTATION,
            "PYTHONDONTWRITEBYTECODE": "1",
            "no_proxy": "*",
        }
        text = re.sub(r"(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=\S+)", rf"\1,{LOGGING_INSTRUMENTATION}", text)
        goes_on = "app.py" in text and "amptalk-otel" not in text
        shell = ["timeout", "--preserve-status", "-s", "INT", str(RUNS_S)] if goes_on else []
        run = subprocess.run(
            [*shell, "bash", "-c", text], env=environment, cwd=self.folder, timeout=COMMAND_TIMEOUT_S, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        ended_by_us = goes_on and run.stdout.rstrip().endswith("KeyboardInterrupt")
        killed_by_us = goes_on and run.returncode == 128 + signal.SIGINT  # `timeout` sends it twice
        succeeded = run.returncode == 0 or ended_by_us or killed_by_us
        assert succeeded, f"{block}: {text}\nended with {run.returncode}\n{run.stdout}"
        assert "Traceback" not in run.stdout or ended_by_us, f"{block}: {text}\n{run.stdout}"
        return run.stdout

    async def with_collector(self, block: Block, text: str) -> str:
        from tests.integration.servers import Collector

        if find_server("otelcol") is None:
            return "200"
        with Collector() as collector:
            text = text.replace("http://localhost:4318", collector.http_endpoint)
            if "--traces" not in text:
                return await asyncio.to_thread(self.run_shell, block, text)
            text = f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.http_endpoint} {text} --seconds 1 --port 0"
            printed = await asyncio.to_thread(self.run_shell, block, text)
            collector.wait_for_spans(lambda spans: f"= pushed {len(spans):,} + not pushed 0\n" in printed)
            return printed

    def address(self) -> str:
        """Where the page's program serves its metrics; it is made to, if the page has not come to that."""
        handles = [one for one in self.namespace.values() if isinstance(one, (Instrumentation, PerformanceMonitor))]
        if not any(handle.metrics_url for handle in handles):
            handles = [instrument_orchestrator(self.namespace["orchestrator"])]
            self.namespace["instrumentation"] = handles[0]
        url = next(handle.metrics_url for handle in handles if handle.metrics_url)
        return re.sub(r"^http://|/metrics$", "", url)

    # -- files and queries -----------------------------------------------------------------------------

    async def yaml(self, block: Block) -> None:
        path = self.folder / (block.title or "block.yml")
        path.write_text(block.text, encoding="utf-8")
        check_server_file(path)

    async def promql(self, block: Block) -> None:
        expressions = _expressions(block)
        assert expressions, f"{block}: no expressions"
        for expression in expressions:
            spoken = set(re.findall(r"(?<![\w.])[a-zA-Z_]\w*", re.sub(r'"[^"]*"', "", expression)))
            unknown = spoken - NAMES - LABELS - RESOURCE_LABELS - PROMQL_WORDS
            assert not unknown, f"{block}: {unknown} are neither metrics, labels nor PromQL"
        if find_server("promtool") is not None:
            rules = [{"record": f"rule:{index}", "expr": text} for index, text in enumerate(expressions)]
            path = self.folder / "rules.yml"
            path.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": rules}]}), encoding="utf-8")
            code, said = run_program("promtool", "check", "rules", "--lint=none", path)
            assert code == 0, f"{block}: {said}"

    async def sample(self, block: Block) -> None:
        first = block.text.splitlines()[0]
        known = [text for name, text in TEXT_BLOCKS if name == block.page.name and first.startswith(text)]
        assert known, f"{block}: a sample that TEXT_BLOCKS does not list"


def _only_ends(block: Block) -> bool:
    """Whether a block does nothing but end what others began."""
    if block.language != "python" or block.title is not None:
        return False
    statements = [node for node in ast.parse(block.text).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    ends = ("shutdown", "stop_collecting", "uninstrument")
    return all(isinstance(node, ast.Expr) and any(end in ast.unparse(node) for end in ends) for node in statements)


def _any_port(found: re.Match[str]) -> str:
    return re.sub(r"\d+", "0", found[0])


def _check_requirement(block: Block, requirement: str) -> None:
    name, _, extras = requirement.rstrip("]").partition("[")
    known = set(importlib.metadata.metadata("amptalk_otel").get_all("Provides-Extra") or ())
    assert name in OTHER_PACKAGES | {"amptalk_otel"}, f"{block}: {name}?"
    unknown = set(filter(None, extras.split(","))) - known
    assert not unknown, f"{block}: {unknown} are no extras"


def _expressions(block: Block) -> list[str]:
    """Expressions are parted by a blank line, a comment, or the next line that goes on without an indent."""
    found: list[str] = []
    fresh = True
    for line in block.text.splitlines():
        if not line.strip() or line.startswith("#"):
            fresh = True
        elif fresh or not line.startswith((" ", ")")):
            found.append(line)
            fresh = False
        else:
            found[-1] += f"\n{line}"
    return found


def check_server_file(path: Path) -> None:
    """Parse it, and have the server that it is for check it, where that is installed."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict), f"{path.name}: not a mapping"
    if "basic_auth_users" in document:
        read_web_config(path)  # promtool would look for its certificates
        return
    if "scrape_configs" in document:
        program, arguments = "promtool", ["check", "config", *(["--syntax-only"] if "ca_file" in str(document) else [])]
    elif "groups" in document:
        program, arguments = "promtool", ["check", "rules"]
    elif "receivers" in document:
        program, arguments = "otelcol", ["validate", "--config"]
    elif "datasources" in document:  # Grafana's, which has no such command
        _check_data_sources(path, document["datasources"])
        return
    else:
        pytest.fail(f"{path.name}: neither Prometheus' nor a collector's")
    if find_server(program) is not None:
        code, said = run_program(program, *arguments, path)
        assert code == 0, f"{path.name}: {said}"


def _check_data_sources(path: Path, sources: list[dict[str, Any]]) -> None:
    """Exemplars lead from one data source to another that is there, by the label that they have on our page."""
    destinations = [
        destination
        for source in sources
        for destination in source.get("jsonData", {}).get("exemplarTraceIdDestinations", [])
    ]
    assert destinations, f"{path.name}: leads nowhere"
    assert {destination["name"] for destination in destinations} == {"trace_id"}
    assert {destination["datasourceUid"] for destination in destinations} <= {source["uid"] for source in sources}


# -------------------------------------------------------------------------------------------------------------- tests

APP = """
import asyncio

from src.core.framework.agent import SimpleAgent
from src.core.framework.message import Message, MessageType
from src.core.framework.orchestrator import Orchestrator


async def main():
    orchestrator = Orchestrator(name="meeting")
    orchestrator.register_agent(SimpleAgent(agent_id="transcriber", name="Transcriber"))
    await orchestrator.start()
    message = {"source_agent_id": "microphone", "target_agent_id": "transcriber", "payload": {}}
    for _ in range(5):
        await orchestrator.send_message_to_agent(Message(message_type=MessageType.AUDIO_INPUT, **message))
    await asyncio.sleep(0.2)
    await orchestrator.stop()


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How many blocks ran, by language; printed at the end, and not zero."""
    ran: Counter[str] = Counter()
    yield ran
    assert sum(ran.values()) > 0
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        by_language = ", ".join(f"{number} {language}" for language, number in sorted(ran.items()))
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"{sum(ran.values())} code blocks of the documentation ran: {by_language}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program with the framework vendored in, and the repository's examples."""
    framework = tmp_path / "src/core/framework"
    framework.mkdir(parents=True)
    for name in ("agent", "message", "orchestrator"):
        (framework / f"{name}.py").write_text("from amptalk_otel.demo.runtime import *\n")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


class _AnyPort(MetricsServer):
    """On a free port, whatever port is asked for; pages of one port are shared as ever."""

    def __init__(self, page: Page, host: str, port: int, **options: Any) -> None:
        super().__init__(page, host, 0, **options)
        self.port = port or self.port


@pytest.fixture
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this process depends on its environment, on ports of the machine, or on another page's monitor."""
    monkeypatch.setattr(_pipeline, "MetricsServer", _AnyPort)
    monkeypatch.setattr(performance_monitor, "_global", None)
    for setting in SETTINGS:
        for variable in setting.variables:
            monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("any_port")
def test_every_block_of_the_page_works(
    page: Path,
    folder: Path,
    tally: Counter[str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.WARNING, "amptalk_otel")
    before = sum(tally.values())
    asyncio.run(asyncio.wait_for(_read_page(page, folder, tally), 110))
    assert sum(tally.values()) - before == len(BLOCKS[page])
    assert [record.getMessage() for record in caplog.records if record.name == "amptalk_otel"] == []
    shown = SHOWN.get(page.name, "")
    assert re.search(shown, capsys.readouterr().out, re.MULTILINE), f"{page.name} does not print {shown}"


async def _read_page(page: Path, folder: Path, tally: Counter[str]) -> None:
    orchestrator = Orchestrator(name="meeting")
    agent = SimpleAgent(agent_id="transcriber", name="Transcriber")
    orchestrator.register_agent(agent)
    await orchestrator.start()
    feeding = asyncio.create_task(_feed(orchestrator))
    reader = PageRun(page, folder)
    reader.namespace |= {
        "orchestrator": orchestrator,
        "my_agent": agent,
        "perform_complex_operation": lambda: asyncio.sleep(0),
    }
    try:
        await reader.run(tally)
    finally:
        feeding.cancel()
        await orchestrator.stop()
        await _end(reader.namespace)


async def _feed(orchestrator: Orchestrator) -> None:
    while True:
        message = Message(
            message_type=MessageType.AUDIO_INPUT,
            source_agent_id="microphone",
            target_agent_id="transcriber",
            payload={},
        )
        await orchestrator.send_message_to_agent(message)
        await asyncio.sleep(0.01)


async def _end(namespace: dict[str, Any]) -> None:
    """End what the page began, those handles included that it lost sight of."""
    handles = [entry.instrumentation for entries in _instrumentation._existing.values() for entry in entries]
    for handle in handles:
        await asyncio.to_thread(handle.shutdown)
    for monitor in (*namespace.values(), performance_monitor._global):
        if isinstance(monitor, PerformanceMonitor):
            await monitor.stop_collecting()
    for pipeline, _users in list(_pipeline._shared):
        _pipeline.release(pipeline, 5.0)


def test_there_are_blocks() -> None:
    languages = Counter(block.language for page in PAGES for block in BLOCKS[page])
    assert {"python", "console", "yaml", "promql"} <= set(languages)
    assert all(BLOCKS[page] for page in PAGES if page.name in ("README.md", "index.md", "quickstart.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_speaks_of_metrics_and_settings_that_exist(page: Path) -> None:
    prefixes = ("amptalk_", "system_", "process_")
    words = set(words_in_backticks(page))
    metrics = {word for word in words if word.startswith(prefixes) and re.fullmatch(r"[a-z_]+", word)}
    known = NAMES | FORMER_METRICS | COLLECTOR_METRICS | {"amptalk_otel", "process_message"}
    assert metrics - known == set()
    variables = set(re.findall(r"\b(?:OTEL|AMPTALK_OTEL)_[A-Z_]*[A-Z]\b", prose_of(page)))
    assert {name for name in variables if name not in VARIABLES and f"{name}_*" not in prose_of(page)} == set()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None:
        reason = "mkdocs-material is not installed"
        pytest.fail(reason) if IN_CI else pytest.skip(reason)
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # the theme's notice, which is no finding
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    built = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert built == {page.stem for page in DOCS.glob("*.md")} | {"404"}
    pages = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html"))
    assert not re.search(r'(?:src|href)="https?://(?!squidfunk\.github\.io|localhost)[^"]*\.(?:js|css|woff2?)"', pages)


# ---------------------------------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        ((), "anything", None),
        (("a 1", "b 2.5"), "a 7\nx\nb 3", None),
        (("...", "b 2"), "a\nb 1", None),
        (("b", "a"), "a\nb", "a"),
        (("{x=... 1",), '{x="y"} 2', None),
        (("a",), "a b", "a"),
    ],
)
def test_mismatch(expected: tuple[str, ...], printed: str, missing: str | None) -> None:
    assert mismatch(expected, printed) == missing


@pytest.mark.parametrize(
    ("language", "text", "complaint"),
    [
        ("rust", "fn main() {}", "nobody knows"),
        ("text", "a sample", "TEXT_BLOCKS"),
        ("python", "assert 1 == 2", "1 == 2|^$"),
        ("console", "$ rm -rf nothing", r"rm\?"),
        ("console", "$ pip install 'amptalk_otel[everything]'", "no extras"),
        ("console", "$ export OTEL_NO_SUCH=1", "no settings"),
        ("console", "$ python -c 'print(1)'\nb", "and not"),
        ("yaml", "a: 1", "neither"),
        ("promql", "amptalk_agent_no_such_total", "neither metrics"),
    ],
)
def test_a_bad_block_fails(
    language: str, text: str, complaint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder / "bad.md"
    page.write_text(f"# Bad\n\n```{language}\n{text}\n```\n")
    monkeypatch.setitem(BLOCKS, page, blocks_of(page))
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(pytest.raises((AssertionError, pytest.fail.Exception)))
        asyncio.run(PageRun(page, folder).run(Counter()))
    assert re.search(complaint, str(caught.value))


def test_a_block_that_does_not_end_is_told(tmp_path: Path) -> None:
    page = tmp_path / "open.md"
    page.write_text("```python\nprint()\n")
    with pytest.raises(ValueError, match=r"open\.md:1: the block does not end"):
        blocks_of(page)
