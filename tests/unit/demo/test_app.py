"""The demonstration as a whole, on the real instrumentation."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from amptalk_otel import Config, Instrumentation, instrument_orchestrator
from amptalk_otel._protocols import OrchestratorLike
from amptalk_otel.demo import app

ROOT = Path(__file__).parents[3]
CONFIG = Config(prometheus_port=0, service_name="test")
BALANCE = re.compile(
    r"^received ([\d,]+) = processed ([\d,]+) \+ failed ([\d,]+) \+ dropped ([\d,]+)"
    r" \+ in flight ([\d,]+) \+ queued ([\d,]+); retries [\d,]+, undeliverable [\d,]+$"
)
PIPED = """
import asyncio, sys
from amptalk_otel import Config
from amptalk_otel.demo.app import run_demo
demo = run_demo(seconds=0.5, config=Config(prometheus_port=0), rate=100, out=sys.stdout)
sys.exit(asyncio.run(demo))
"""


def run(*, seconds: float | None = 0.4, config: Config = CONFIG, rate: float = 200.0) -> str:
    out = io.StringIO()
    assert asyncio.run(app.run_demo(seconds=seconds, config=config, rate=rate, out=out)) == 0
    return out.getvalue()


def balance(text: str) -> list[int]:
    found = BALANCE.match(text.splitlines()[-1])
    assert found is not None, text
    return [int(number.replace(",", "")) for number in found.groups()]


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


class TestRun:
    def test_url_then_table_then_balance(self) -> None:
        text = run()
        assert re.match(r"Open http://localhost:\d+/metrics ", text)
        for name in ("Transcription", "Language", "Glossary", "Sentiment", "Summary", "Minutes"):
            assert re.search(rf"^{name} +stopped ", text, re.MULTILINE)
        received, *whereabouts = balance(text)
        assert received == sum(whereabouts)
        assert received > 100
        assert "\x1b" not in text

    def test_beyond_what_the_machine_can_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "_FINISH_WORK_S", 0.0)
        received, *whereabouts = balance(run(rate=1e6))
        assert received == sum(whereabouts)
        assert whereabouts[-1] > 0

    def test_page_is_served_while_it_runs(self) -> None:
        async def scenario() -> str:
            out = io.StringIO()
            demo = asyncio.create_task(app.run_demo(seconds=1.0, config=CONFIG, rate=100, out=out))
            while "/metrics" not in out.getvalue():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            url = out.getvalue().split()[1]
            with await asyncio.to_thread(urllib.request.urlopen, url, None, 5) as response:
                page: str = response.read().decode()
            assert await demo == 0
            return page

        page = asyncio.run(scenario())
        assert re.search(r'^amptalk_agent_messages_received_total\{.*agent_name="Language".*\} \d', page, re.MULTILINE)
        assert 'message_type="sentiment_request"' in page

    def test_no_seconds_at_all(self) -> None:
        assert balance(run(seconds=0))[0] >= 0

    def test_wants_a_rate(self) -> None:
        with pytest.raises(ValueError, match="above 0"):
            run(rate=0)

    def test_a_failure_of_the_feed_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def broken(*_: object) -> None:
            raise RuntimeError("no microphone")

        monkeypatch.setattr(app, "feed", broken)
        with pytest.raises(RuntimeError, match="no microphone"):
            run(seconds=5)


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_end_it_cleanly(self, number: signal.Signals) -> None:
        async def scenario() -> str:
            out = io.StringIO()
            asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), number)
            assert await app.run_demo(seconds=None, config=CONFIG, rate=100, out=out) == 0
            return out.getvalue()

        before = signal.getsignal(number)
        received, *whereabouts = balance(asyncio.run(asyncio.wait_for(scenario(), 20)))
        assert received == sum(whereabouts) > 0
        assert signal.getsignal(number) is before

    def test_outside_the_main_thread(self) -> None:
        async def scenario() -> str:
            return await asyncio.to_thread(run)

        assert balance(asyncio.run(scenario()))[0] > 0

    def test_reader_that_goes_away(self) -> None:
        with subprocess.Popen([sys.executable, "-c", PIPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"Open http://")
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(20) == 0

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
    def test_where_nothing_can_be_written(self) -> None:
        command = [sys.executable, "-m", "amptalk_otel", "demo", "--port", "0", "--seconds", "0.1"]
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False, cwd=ROOT
            )
        assert (done.returncode, done.stderr) == (1, "amptalk-otel: [Errno 28] No space left on device\n")


class TestIntroduction:
    def test_busy_port(self, busy_port: int) -> None:
        text = run(config=Config(prometheus_port=busy_port))
        assert text.splitlines()[0] == (
            f"No metrics page: localhost:{busy_port} can't be bound (Address already in use); set"
            " OTEL_EXPORTER_PROMETHEUS_PORT to a free port, or to 0 for any. Ctrl-C ends the demo."
        )
        assert balance(text)[0] > 0

    def test_a_host_that_is_none_and_a_file_that_is_missing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        missing = tmp_path / "web.yml"
        for config, reason in (
            (
                CONFIG.with_changes(prometheus_host="nobody.invalid"),
                r"nobody\.invalid:0 can't be bound \(.+\); set .*_HOST",
            ),
            (CONFIG.with_changes(prometheus_web_config=str(missing)), rf"{missing} can't be read \(No such file"),
        ):
            assert re.match(f"No metrics page: {reason}", run(seconds=0.1, config=config))
        assert caplog.messages == []

    def test_that_failures_are_staged(self) -> None:
        assert run(seconds=0.1).splitlines()[1] == "Some failures are staged, so that there is something to see."

    def test_switched_off(self) -> None:
        text = run(config=Config(sdk_disabled=True))
        assert text.startswith("OTEL_SDK_DISABLED is set")
        assert balance(text) == [0] * 6

    def test_other_exporters_only(self) -> None:
        text = run(config=Config(metrics_exporters=("none",)))
        assert text.startswith("No metrics page, as OTEL_METRICS_EXPORTER")
        assert balance(text)[0] > 0


class TestServiceName:
    @pytest.mark.parametrize(("given", "name"), [(None, "amptalk-demo"), ("mine", "mine")])
    def test_default(self, monkeypatch: pytest.MonkeyPatch, given: str | None, name: str) -> None:
        seen: list[Config] = []

        def note(orchestrator: OrchestratorLike, *, config: Config, tracer_provider: None) -> Instrumentation:
            seen.append(config)
            return instrument_orchestrator(orchestrator, config=config, tracer_provider=tracer_provider)

        monkeypatch.setattr(app, "instrument_orchestrator", note)
        run(seconds=0, config=Config(prometheus_port=0, service_name=given))
        assert seen[0].service_name == name
