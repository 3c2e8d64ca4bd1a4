"""The demonstration's spans: told where they go, pushed there, and counted."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from amptalk_otel import Config, cli
from amptalk_otel._otlp import MissingExtraError
from amptalk_otel.demo import app
from amptalk_otel.demo.spans import Spans, address

ROOT = Path(__file__).parents[3]
LOOK = "What it writes down: tail -n 1 traces.jsonl | python -m json.tool"
START = "Start one: otelcol --config examples/collector-traces.yaml (in the source)"


class Collector(ThreadingHTTPServer):
    """Takes spans, or refuses them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: list[str] = []
        self.services: set[str] = set()
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        collector: Any = self.server
        if collector.status == 200 and self.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                collector.services.add(attributes["service.name"])
                for scope in resource.scope_spans:
                    collector.names += [span.name for span in scope.spans]
        self.send_response(collector.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """The exporters' loggers as they were."""
    names = ("http.trace_exporter", "grpc.exporter")
    known = [logging.getLogger(f"opentelemetry.exporter.otlp.proto.{name}") for name in names]
    levels = [logger.level for logger in known]
    yield
    for logger, level in zip(known, levels, strict=True):
        logger.setLevel(level)


def config(endpoint: str) -> Config:
    return Config(prometheus_port=0, service_name="test", otlp_endpoint=endpoint)


def run(settings: Config, *, seconds: float = 0.4) -> list[str]:
    out = io.StringIO()
    demo = app.run_demo(seconds=seconds, config=settings, rate=200, out=out, traces=True)
    assert asyncio.run(demo) == 0
    return out.getvalue().splitlines()


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class TestRun:
    def test_spans_arrive_and_are_counted(self, collector: Collector) -> None:
        lines = run(config(collector.url), seconds=1.5)
        assert lines[0].startswith("Open http://localhost:")
        assert lines[1] == f"Spans are pushed to {collector.url}/v1/traces."
        found = re.fullmatch(r"spans ([\d,]+) = pushed ([\d,]+) \+ not pushed 0", lines[-1])
        assert found is not None, lines[-1]
        assert int(found[1].replace(",", "")) == int(found[2].replace(",", "")) == len(collector.names) > 100
        assert {"send Transcription", "process Glossary", "process Minutes", "save_state"} <= set(collector.names)
        assert collector.services == {"test"}

    def test_without_a_collector_it_goes_on(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        there = f"http://127.0.0.1:{closed_port()}"
        lines = run(config(there))
        assert lines[1] == f"No collector at {there}/v1/traces yet; until then spans get lost."
        assert lines[2].startswith("Some failures are staged")
        assert re.fullmatch(r"spans ([\d,]+) = pushed 0 \+ not pushed \1", lines[-1])
        assert lines[-2].startswith("received ")
        assert capfd.readouterr().err == ""
        assert caplog.messages == []

    def test_one_that_refuses_spans_is_none(self, collector: Collector) -> None:
        collector.status = 404
        lines = run(config(collector.url))
        assert lines[1].startswith("No collector at ")
        assert re.fullmatch(r"spans ([\d,]+) = pushed 0 \+ not pushed \1", lines[-1])

    def test_switched_off(self) -> None:
        lines = run(Config(sdk_disabled=True))
        assert lines[0].startswith("OTEL_SDK_DISABLED is set")
        assert not any("pans" in line for line in lines)

    def test_unsampled_spans_are_none(self, collector: Collector) -> None:
        unsampled = config(collector.url).with_changes(traces_sampler="always_off")
        assert run(unsampled)[-1] == "spans 0 = pushed 0 + not pushed 0"
        assert collector.names == []


class TestIntroduction:
    @pytest.mark.parametrize(
        ("settings", "there"),
        [
            (Config(), "http://localhost:4318/v1/traces"),
            (Config(otlp_endpoint="http://localhost:4318/"), "http://localhost:4318/v1/traces"),
            (Config(otlp_protocol="grpc"), "http://localhost:4317"),
            (Config(otlp_traces_protocol="grpc", otlp_endpoint="http://a:1"), "http://a:1"),
            (Config(otlp_traces_endpoint="http://a:1/in", otlp_endpoint="http://b:2"), "http://a:1/in"),
            (Config(otlp_endpoint="http://me:secret@a:1"), "http://(hidden)@a:1/v1/traces"),
        ],
    )
    def test_address(self, settings: Config, there: str) -> None:
        assert address(settings) == there

    @pytest.mark.parametrize(("answers", "first"), [(True, "Spans are pushed to "), (False, "No collector at ")])
    def test_commands_for_the_collector_of_the_examples(
        self, answers: bool, first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Spans, "_answers", lambda _spans: answers)
        spans = Spans(Config(service_name="test"))
        line, *commands = spans.introduction()
        spans.provider.shutdown()
        assert line.startswith(f"{first}http://localhost:4318/v1/traces")
        assert commands == ([LOOK] if answers else [START, LOOK])

    def test_what_the_commands_name_is_there(self) -> None:
        (path,) = re.findall(r"\S+\.yaml", START)
        settings = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
        assert settings["exporters"]["file"]["path"] in LOOK
        protocols = settings["receivers"]["otlp"]["protocols"]
        assert [protocols[name]["endpoint"] for name in ("grpc", "http")] == ["localhost:4317", "localhost:4318"]


class TestMissingExtra:
    @pytest.fixture
    def no_exporter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)

    @pytest.mark.usefixtures("no_exporter")
    def test_is_one_line_and_exit_1(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("logging.basicConfig", lambda **_options: None)
        for name in ("PROTOCOL", "TRACES_PROTOCOL"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
        assert cli.main(["demo", "--traces", "--port", "0"]) == 1
        message = "spans are not pushed: the otlp exporter is not installed; run: pip install 'amptalk_otel[otlp]'"
        assert capsys.readouterr() == ("", f"amptalk-otel: {message}\n")

    @pytest.mark.usefixtures("no_exporter")
    def test_without_traces_nobody_misses_it(self) -> None:
        with pytest.raises(MissingExtraError):
            Spans(Config())
        out = io.StringIO()
        demo = app.run_demo(seconds=0, config=Config(prometheus_port=0), rate=200, out=out)
        assert asyncio.run(demo) == 0
