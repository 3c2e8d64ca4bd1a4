"""Nothing leaks: a program full of secrets runs with everything switched on, and all that comes out is searched."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from amptalk_otel import Config, Instrumentation, instrument_orchestrator, instrument_state_manager
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, SimpleAgent, StateManager
from tests.faults.collectors import answering, read_request
from tests.faults.trial import Strikes
from tests.unit.test_pipeline import grpc_collector

Handles = tuple[Instrumentation, Instrumentation]
TIMEOUT_S = 20.0
PAYLOAD, EXCEPTION, STATE = "s3cret-payload", "s3cret-exception", "s3cret-state"
HEADER, OTHER_HEADER, ENDPOINT = "s3cret-header", "s3cret-other-header", "s3cret-endpoint"
TOKEN, TRIED, PASSWORD, ANSWER = "s3cret-token-0123456789", "s3cret-tried", "s3cret-password", "s3cret-answer"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
SECRETS = ("s3cret", HASH, BASIC, base64.b64encode(b"s3cret").decode()[:7])


@dataclass
class Seen:
    """All that came out, as text, with where it did."""

    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, text: str | bytes) -> None:
        self.texts.append((where, text.decode("latin-1") if isinstance(text, bytes) else text))

    def places(self) -> list[str]:
        return sorted({where for where, _text in self.texts})

    def leaks(self) -> list[str]:
        return [f"{where}: {text[:2000]}" for where, text in self.texts if any(secret in text for secret in SECRETS)]


class _Everything(logging.Handler):
    """Every record of every logger, with its arguments and its traceback; not what the program itself logs."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(logging.DEBUG)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("amptalk_otel.demo", "asyncio")):
            self._seen.add("log", f"{record.name}: {self.format(record)} {vars(record)!r}")


@pytest.fixture
def seen(capfd: pytest.CaptureFixture[str]) -> Iterator[Seen]:
    """With the log at DEBUG. What was printed is added by the test."""
    found = Seen()
    handler, root = _Everything(found), logging.getLogger()
    former = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield found
    root.removeHandler(handler)
    root.setLevel(former)


# -- the program ---------------------------------------------------------------------------------------


async def work(watch: Callable[[Orchestrator, StateManager], Handles]) -> Handles:
    """Messages that succeed, fail, are retried and go nowhere; states that are saved and can't be."""
    orchestrator, manager = Orchestrator(name="leaky"), StateManager()

    async def handle(message: Message) -> list[Message]:
        if message.payload["fails"]:
            raise message.payload["fails"](f"{EXCEPTION} in {message.payload}")
        return [message.create_reply(MessageType.COMMAND, {"text": PAYLOAD})]

    agents = [SimpleAgent(agent_id=name, name=name) for name in ("one", "two")]
    for agent in agents:
        agent.base_retry_delay = 0.0
        agent.register_message_handler(MessageType.AUDIO_INPUT, handle)
        orchestrator.register_agent(agent)
    orchestrator.connect_agents("one", "two")
    handles = watch(orchestrator, manager)
    await orchestrator.start()
    for fails in (None, ValueError, ConnectionError):
        for target in ("one", "nobody"):
            payload = {"text": PAYLOAD, "fails": fails, "set": {PAYLOAD}}
            await orchestrator.send_message_to_agent(
                Message(
                    message_type=MessageType.AUDIO_INPUT,
                    source_agent_id="two",
                    target_agent_id=target,
                    payload=payload,
                )
            )
    await asyncio.gather(*(asyncio.wait_for(agent.input_queue.join(), TIMEOUT_S) for agent in agents))
    await manager.save_state("one", {"text": STATE})
    with pytest.raises(TypeError):
        await manager.save_state("one", {"text": {STATE}})
    await orchestrator.stop()
    return handles


def ask(url: str, authorization: str, accept: str = "text/plain") -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Authorization": authorization, "Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read() + str(error.headers).encode()


# -- collectors ----------------------------------------------------------------------------------------


def http(status: bytes, seen: Seen) -> AbstractContextManager[int]:
    """Answers each push with a status and a secret. Keeps what it is sent but its headers, which are for it."""

    def answer(client: Any) -> None:
        while True:
            _first_line, body = read_request(client)
            seen.add("push", body)
            client.sendall(status % ANSWER.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER.encode())

    return answering(answer, Strikes())


@contextmanager
def grpc(seen: Seen) -> Iterator[int]:
    """Takes metrics, and knows no spans."""
    with grpc_collector() as collector:
        yield collector.port
        for request in collector.requests:
            seen.add("push", request.SerializeToString())


CASES: dict[str, tuple[str, Callable[[Seen], AbstractContextManager[int]]]] = {
    "taken": ("http/protobuf", lambda seen: http(b"HTTP/1.1 200 OK %s", seen)),
    "refused": ("http/protobuf", lambda seen: http(b"HTTP/1.1 401 No %s", seen)),
    "put off": ("http/protobuf", lambda seen: http(b"HTTP/1.1 503 Later %s", seen)),
    "gRPC": ("grpc", grpc),
}


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("case", CASES)
def test_no_secret_comes_out(
    case: str, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"Bearer {OTHER_HEADER},x-other={OTHER_HEADER}")
    protocol, collector = CASES[case]
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "web.yml").write_text(f"basic_auth_users:\n  alice: {HASH}\n")
    with collector(seen) as port:
        config = Config(
            metrics_exporters=("prometheus", "otlp"),
            traces_exporters=("otlp",),
            exemplar_filter="always_on",
            message_size_sample_every=1,
            prometheus_port=0,
            prometheus_web_config=str(tmp_path / "web.yml"),
            prometheus_bearer_token_file=str(tmp_path / "token"),
            otlp_protocol=protocol,
            otlp_endpoint=f"http://{'' if protocol == 'grpc' else f'user:{ENDPOINT}@'}127.0.0.1:{port}",
            otlp_headers={"authorization": f"Bearer {HEADER}"},
            otlp_timeout_s=1.0,
            metric_export_interval_s=0.05,
        )
        seen.add("repr", f"{config!r} {config} {config!s:>3}")

        def watch(orchestrator: Orchestrator, manager: StateManager) -> Handles:
            handle = instrument_orchestrator(orchestrator, config=config)
            return handle, instrument_state_manager(manager, config=config.with_changes(prometheus_port=_port(handle)))

        handles = asyncio.run(work(watch))
        handle = handles[0]
        url = str(handle.metrics_url)
        for authorization in (f"Bearer {TOKEN}", f"Basic {BASIC}"):
            for accept in ("text/plain", "application/openmetrics-text"):
                status, page = ask(url, authorization, accept)
                assert (status, b"amptalk_agent_messages_failed_total" in page) == (200, True)
                seen.add("page", page)
        for wrong in (f"Bearer {TRIED}", "Basic " + base64.b64encode(f"alice:{TRIED}".encode()).decode(), TRIED):
            status, page = ask(url, wrong)
            assert status == 401
            seen.add("page", page)
        time.sleep(0.1)
        seen.add("repr", f"{handle!r} {handle.read()!r}")
        for one in reversed(handles):
            one.shutdown(TIMEOUT_S)
    for thread in threading.enumerate():
        if thread.name.startswith("Otel"):
            thread.join(TIMEOUT_S)
    printed = capfd.readouterr()
    seen.add("printed", printed.out + printed.err)
    assert seen.places() == [*([] if case == "taken" else ["log"]), "page", "printed", "push", "repr"]
    assert seen.leaks() == []


def _port(handle: Instrumentation) -> int:
    return int(str(handle.metrics_url).split(":")[2].split("/")[0])


def test_no_secret_is_in_a_span(seen: Seen) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    config = Config(metrics_exporters=("none",))

    def watch(orchestrator: Orchestrator, manager: StateManager) -> Handles:
        return (
            instrument_orchestrator(orchestrator, config=config, tracer_provider=provider),
            instrument_state_manager(manager, config=config, tracer_provider=provider),
        )

    for handle in asyncio.run(work(watch)):
        handle.shutdown(1.0)
    finished = spans.get_finished_spans()
    kinds = {span.name for span in finished}
    assert {"send one", "process one"} <= kinds
    assert any(span.events for span in finished)
    for span in finished:
        seen.add("span", span.to_json())
        seen.add("span", repr([(event.name, dict(event.attributes or {})) for event in span.events]))
    assert seen.leaks() == []


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", f"Bearer {HEADER}"),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", f"a=b,{HEADER}"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"=,{HEADER}"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"htp://user:{ENDPOINT}@collector"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://user:{ENDPOINT}@"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://user:{ENDPOINT}@[collector"),
    ],
)
def test_a_bad_setting_is_told_without_its_secret(variable: str, text: str, seen: Seen) -> None:
    config = Config.from_env({variable: text})
    with pytest.raises(ValueError, match=variable) as raised:
        Config.from_env({variable: text}, strict=True)
    seen.add("error", f"{raised.value!r} {raised.getrepr(style='native')}")
    seen.add("repr", repr(config))
    assert seen.places() == ["error", "log", "repr"]
    assert seen.leaks() == []


def test_the_search_finds_what_is_there(seen: Seen) -> None:
    logging.getLogger("opentelemetry.exporter.other").debug("with %s", {"authorization": HEADER})
    logging.getLogger("urllib3").warning("failed", exc_info=ValueError(EXCEPTION))
    seen.add("page", f"Basic {BASIC}".encode())
    seen.add("page", f"alice: {HASH}")
    seen.add("page", b"nothing")
    assert len(seen.leaks()) == 4
