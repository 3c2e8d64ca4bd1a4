"""The metrics page: the same samples as the stock exporter's, made in one pass, with what is kept between passes."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as StockFamily
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from amptalk_otel import _lines, instrument_orchestrator
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Distribution
from amptalk_otel._catalogue import CATALOGUE, Owner, Snapshot
from amptalk_otel._exposition import MetricsPage
from amptalk_otel._reading import (
    AgentReading,
    OperationReading,
    OrchestratorReading,
    StateReading,
    TypeReading,
)
from amptalk_otel._system import CpuWindow, System
from amptalk_otel.demo.runtime import Orchestrator, StateManager
from tests.stock import generate_openmetrics, stock_page
from tests.support import CONFIG, Scripted, handle, in_loop, note
from tests.waiters import wait_until_waiting

TIMEOUT_S = 20.0
RESOURCE: dict[str, Any] = {"service.name": 'a "b"\\\n', "process.pid": 7, "k8s.list": ("x", "y"), "9lives": True}
FORMATS = [False, True]
openmetrics_parser: Any = parser  # untyped


# -- states to render ----------------------------------------------------------------------------------


def durations(*counts: int, seconds: float = 0.5) -> Distribution:
    rest = (0,) * (len(DURATION_BOUNDS_S) + 1 - len(counts))
    return Distribution(DURATION_BOUNDS_S, (*counts, *rest), seconds)


def of_type(name: str = "request", received: int = 5, **changes: Any) -> TypeReading:
    sizes = Distribution(SIZE_BOUNDS_BYTES, (0, 2, *(0,) * 9), 300)
    reading = TypeReading(
        name, received, 4, 3, 2, {"ValueError": 1}, {}, {"expired": 1}, {}, durations(3, 1), durations(0, 4), sizes
    )
    return replace(reading, **changes)


def agent(number: int, *types: TypeReading, orchestrator: str | None = "town", **changes: Any) -> AgentReading:
    reading = AgentReading(f"id-{number}", f"agent {number}", orchestrator, True, 1.5, 2, None, types, (), number)
    return replace(reading, **changes)


def everything() -> Snapshot:
    """A snapshot in which each metric of the catalogue has something to tell, and labels are missing here and there."""
    states = StateReading("memory", 10, 1, {("read", None): durations(1), ("write", "OSError"): durations(2)})
    return Snapshot(
        machine=False,
        agents=(
            agent(1, of_type(retries={"OSError": 2}), of_type("command", dropped={"taken": 1}), states=(states,)),
            agent(2, of_type(received=0, failed={}), orchestrator=None, oldest_age_s=0.25),
            agent(3, of_type("x" * 128, received=2**60, wait=durations(10**6, 2**59, seconds=1e17)), orchestrator=None),
            agent(4, orchestrator=None, states=(StateReading("disk", None, None, {}),)),
        ),
        orchestrators=(
            OrchestratorReading("town", 3, 1, {"request": 2}, {}),
            OrchestratorReading("village", 0, 0, {}, {("request", "error"): 1}),
        ),
        states=(StateReading("memory", 5, 2, {("delete", None): durations(1, seconds=1e-9)}),),
        operations=(
            OperationReading(("id-1", "agent 1", "transcribe"), durations(1)),
            OperationReading(("id-9", None, "ümläut\n"), durations(1, seconds=123456789.0)),
        ),
    )


def page_for(snapshot: Snapshot | Callable[[], Snapshot], **options: Any) -> MetricsPage:
    read = snapshot if callable(snapshot) else lambda: snapshot
    return MetricsPage(lambda _breathe: read(), System(), resource_attributes=RESOURCE, **options)


def text_of(page: MetricsPage, *, openmetrics: bool = False, names: frozenset[str] = frozenset()) -> str:
    return b"".join(page.pages(openmetrics, names)).decode()


def parsed(text: str, *, openmetrics: bool) -> list[StockFamily]:
    """Strictly for OpenMetrics: families that are told twice or in pieces are errors."""
    parse = openmetrics_parser.text_string_to_metric_families if openmetrics else text_string_to_metric_families
    families = list(parse(text))
    assert len({family.name for family in families}) == len(families)
    return families


# -- the same as the stock exporter's ------------------------------------------------------------------


@pytest.mark.parametrize("scope_labels", [False, True])
@pytest.mark.parametrize("openmetrics", FORMATS)
def test_the_page_has_the_lines_of_the_stock_exporter(openmetrics: bool, scope_labels: bool) -> None:
    snapshot = everything()
    page = page_for(snapshot, scope_labels=scope_labels)
    stock = stock_page(
        snapshot, System(), openmetrics=openmetrics, scope_labels=scope_labels, resource_attributes=RESOURCE
    )
    names = {line.split("{")[0] for line in stock.splitlines() if line.startswith("amptalk_")}
    assert len(names) == sum(
        3 if metric.bounds else 1 for metric in CATALOGUE if metric.owner is not Owner.PROCESS
    )  # nothing of the catalogue is left out here
    for _again in range(2):
        text = text_of(page, openmetrics=openmetrics)
        assert sorted(text.split("\n")) == sorted(stock.split("\n"))
        assert parsed(text, openmetrics=openmetrics)


@pytest.mark.parametrize("openmetrics", FORMATS)
def test_agents_of_one_orchestrator_come_in_the_order_of_the_stock_exporter(openmetrics: bool) -> None:
    snapshot = Snapshot(agents=tuple(agent(number, of_type(), of_type("command")) for number in range(100)))
    stock = stock_page(snapshot, System(), openmetrics=openmetrics, resource_attributes=RESOURCE)
    assert text_of(page_for(snapshot), openmetrics=openmetrics) == stock


def varying(text: str) -> list[str]:
    """Lines, without the values that are another at each reading."""
    clocks = ("process_", "system_", "amptalk_agent_uptime")
    return sorted(line.rpartition(" ")[0] if line.startswith(clocks) else line for line in text.split("\n"))


@pytest.mark.parametrize("openmetrics", FORMATS)
@pytest.mark.parametrize("scope_labels", [False, True])
@in_loop
async def test_a_program_gives_the_page_that_it_gives_through_the_sdk(
    openmetrics: bool, scope_labels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuWindow, "read", lambda _window: 0.5)
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=scope_labels)
    provider = MeterProvider([reader], resource=Resource(RESOURCE), shutdown_on_exit=False)
    orchestrator, scripted = Orchestrator(name="town"), Scripted(agent_id="a", name="A")
    scripted.state_manager = StateManager()
    orchestrator.agents["a"] = scripted
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider) as instrumentation:
        scripted.script = [ConnectionError(), None, ValueError()]
        await handle(scripted, note(), note())
        await orchestrator.send_message_to_agent(note(target_agent_id="nobody"))
        await scripted.state_manager.save_state("a", {"x": 1})
        watch = instrumentation._watch
        assert watch is not None
        watch.operations.measured("a", "A", "transcribe", 0.25)
        page = MetricsPage(watch.snapshot, System(), resource_attributes=RESOURCE, scope_labels=scope_labels)
        ours = text_of(page, openmetrics=openmetrics)
        stock = (generate_openmetrics if openmetrics else generate_latest)(registry).decode()
    provider.shutdown()
    assert varying(ours) == varying(stock)
    assert 'amptalk_agent_messages_processed_total{agent_id="a"' in ours


@pytest.mark.parametrize("openmetrics", FORMATS)
def test_a_page_of_nothing_is_empty(openmetrics: bool) -> None:
    registry = CollectorRegistry(auto_describe=False)
    provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    stock = (generate_openmetrics if openmetrics else generate_latest)(registry).decode()
    provider.shutdown()
    assert text_of(page_for(Snapshot()), openmetrics=openmetrics) == stock == ("# EOF\n" if openmetrics else "")


def test_target_info_comes_first() -> None:
    lines = text_of(page_for(everything())).splitlines()
    assert lines[:3] == [
        "# HELP target_info Target metadata",
        "# TYPE target_info gauge",
        'target_info{_lives="true",k8s_list="[\\"x\\", \\"y\\"]",process_pid="7",service_name="a \\"b\\"\\\\\\n"} 1.0',
    ]


@pytest.mark.parametrize("openmetrics", FORMATS)
def test_a_page_is_empty_where_the_sdk_is_disabled(openmetrics: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert text_of(page_for(everything()), openmetrics=openmetrics) == ("# EOF\n" if openmetrics else "")


def test_more_numbers_and_types_than_are_kept_are_written_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lines, "_COUNTS_KEPT", 3)
    monkeypatch.setattr(_lines, "_MIDDLES_KEPT", 1)
    snapshot = everything()
    stock = stock_page(snapshot, System(), openmetrics=False, resource_attributes=RESOURCE)
    assert sorted(text_of(page_for(snapshot)).split("\n")) == sorted(stock.split("\n"))


def test_a_text_that_is_no_unicode_costs_a_character_and_not_the_page() -> None:
    page = MetricsPage(
        lambda _breathe: Snapshot(agents=(agent(1, agent_name="a\ud800b"),)),
        System(),
        resource_attributes={"x": "\ud800"},
    )
    text = text_of(page)
    assert 'target_info{x="?"} 1.0' in text
    assert 'amptalk_agent_running{agent_id="id-1",agent_name="a?b",orchestrator_name="town"} 1.0' in text


def test_machine_and_process_are_on_the_page_and_one_that_cannot_be_read_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, lenient_guard: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(CpuWindow, "read", lambda _window: 0.5)
    snapshot = Snapshot(machine=True)
    rows = {
        "system_cpu_utilization", "system_memory_utilization", "system_memory_linux_available_bytes",
        "process_cpu_utilization", "process_memory_usage_bytes", "process_memory_virtual_bytes",
        "process_uptime_seconds",
    }  # fmt: skip
    found = {family.name for family in parsed(text_of(page_for(snapshot)), openmetrics=False)}
    assert found == {"target_info", *rows}
    monkeypatch.setattr("amptalk_otel._system.psutil.virtual_memory", lambda: 1 / 0)
    found = {family.name for family in parsed(text_of(page_for(snapshot)), openmetrics=False)}
    assert found == {"target_info", *rows} - {"system_memory_utilization", "system_memory_linux_available_bytes"}
    assert [message.split(" (")[0] for message in caplog.messages] == [
        "reading system.memory.utilization was skipped",
        "reading system.memory.linux.available was skipped",
    ]


# -- what is kept from one pass to the next ------------------------------------------------------------


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The label sets that were made into text."""
    found: list[dict[str, str]] = []
    labels = _lines.labels

    def spy(values: dict[str, str]) -> _lines.Labels:
        found.append(values)
        return labels(values)

    monkeypatch.setattr(_lines, "labels", spy)
    return found


def test_labels_are_rendered_once_for_each_series(rendered: list[dict[str, str]]) -> None:
    now = [everything()]
    page = page_for(lambda: now[0])
    text_of(page)
    series = {tuple(sorted(values.items())) for values in rendered}
    assert len(rendered) == len(series) > 20
    rendered.clear()
    text_of(page, openmetrics=True)
    now[0] = replace(now[0], agents=tuple(replace(one, queue_size=9) for one in now[0].agents))
    assert text_of(page).count("\namptalk_agent_queue_size{") == 4
    assert rendered == []


def test_an_agent_that_changes_changes_on_the_page() -> None:
    first, other = of_type(received=5), of_type("other", received=1)
    snapshots = iter(
        [
            Snapshot(agents=(agent(1, first, other), agent(2, first))),
            Snapshot(agents=(agent(1, first, replace(other, received=2)), agent(2, first))),
            Snapshot(agents=(agent(1, replace(first, wait=durations(9)), other), agent(2, first, other))),
            Snapshot(agents=(agent(2, first, orchestrator=None), agent(1, first, other))),
            Snapshot(agents=(agent(2, first, orchestrator=None),)),
            Snapshot(agents=(agent(2, first, agent_name="renamed"), agent(2, recorder_id=7, agent_name="namesake"))),
        ]
    )
    now: list[Snapshot] = []

    def read() -> Snapshot:
        now[:] = [next(snapshots)]
        return now[0]

    page = page_for(read)
    for _ in range(6):
        text = text_of(page)
        stock = stock_page(now[0], System(), openmetrics=False, resource_attributes=RESOURCE)
        assert sorted(text.split("\n")) == sorted(stock.split("\n"))


def test_what_is_read_of_message_types_depends_on_nothing_else() -> None:
    """Lines of types that did not change are not made again: no metric with a message type may read anything else."""
    types = (of_type(), of_type("command"))
    one = agent(1, *types)
    other = replace(one, running=False, uptime_s=9.0, queue_size=7, oldest_age_s=3.0)
    rows = [metric for metric in CATALOGUE if metric.owner is Owner.AGENT and "message.type" in metric.attributes]
    assert len(rows) >= 10
    for metric in rows:
        assert list(metric.read(one)) == list(metric.read(other)), metric.name


def test_nothing_is_kept_of_agents_that_left() -> None:
    class Referable(TypeReading):
        """That can be referred to weakly."""

    copy = Referable(**{field.name: getattr(of_type(), field.name) for field in fields(TypeReading)})
    now = [Snapshot(agents=tuple(agent(number, replace(copy)) for number in range(3)), states=everything().states)]
    page = page_for(lambda: now[0])
    text_of(page)
    watched = [weakref.ref(one.types[0]) for one in now[0].agents]
    now[0] = Snapshot(agents=tuple(now[0].agents)[:1])
    text_of(page)
    gc.collect()
    assert [reading() is not None for reading in watched] == [True, False, False]
    assert (len(page._renderer._agents), len(page._renderer._known)) == (1, 0)


def test_no_page_is_kept_after_it_was_given_away() -> None:
    page = page_for(everything())
    text_of(page)
    assert [column.chunks or column.parts for column in page._renderer.columns] == [[]] * len(CATALOGUE)


def test_a_pass_that_failed_leaves_nothing_on_the_next_page(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = everything()
    page = page_for(snapshot)
    write = page._renderer._histograms[-1].write
    page._renderer._histograms[-1].write = lambda _labels, _value: 1 / 0  # type: ignore[assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        page.pages(False)
    page._renderer._histograms[-1].write = write
    assert text_of(page) == text_of(page_for(snapshot))


# -- slices --------------------------------------------------------------------------------------------


def test_the_work_is_offered_to_be_interrupted_at_every_agent_and_every_slice() -> None:
    snapshot = Snapshot(agents=tuple(agent(number, of_type()) for number in range(200)))
    page = page_for(snapshot)
    breaths = []
    page._renderer.render(snapshot, lambda: breaths.append(1))
    chunks = [chunk for column in page._renderer.columns for chunk in column.take()]
    assert len(breaths) == 200 + len(chunks)
    assert max(map(len, chunks)) < 200_000


def test_a_page_comes_in_pieces_of_moderate_size() -> None:
    snapshot = Snapshot(agents=tuple(agent(number, of_type()) for number in range(300)))
    pieces = page_for(snapshot).pages(False)
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 200_000
    assert sum(map(len, pieces)) / len(pieces) > 30_000  # large ones are not joined with the small ones next to them


# -- name[] --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"amptalk_agent_queue_size"},
        {"amptalk_agent_messages_received_total", "target_info"},
        {"amptalk_agent_messages_received"},
        {"amptalk_agent_message_wait_duration_seconds_sum", "amptalk_agent_message_wait_duration_seconds_count"},
        {"amptalk_agent_message_wait_duration_seconds_bucket"},
        {"amptalk_agent_message_wait_duration_seconds"},
        {"nothing"},
    ],
)
@pytest.mark.parametrize("openmetrics", FORMATS)
def test_only_the_samples_that_were_asked_for(names: set[str], openmetrics: bool) -> None:
    page = page_for(everything())
    whole = [line for line in text_of(page, openmetrics=openmetrics).split("\n") if not line.startswith("#")]
    some = text_of(page, openmetrics=openmetrics, names=frozenset(names))
    assert [line for line in some.split("\n") if line and not line.startswith("#")] == [
        line for line in whole if re.split("[{ ]", line)[0] in names
    ]
    for header in re.findall("^# HELP (\\S+)", some, re.MULTILINE):
        assert re.search(f"^{header}", some, re.MULTILINE)


# -- instruments that the program made itself ----------------------------------------------------------


class Families(Collector):
    """Gives what it has."""

    def __init__(self, *families: StockFamily) -> None:
        self.families = families

    def collect(self) -> Iterator[StockFamily]:
        yield from self.families


def registry_of(*families: StockFamily) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(*families))
    return registry


def gauge(name: str, value: float, **labels: str) -> StockFamily:
    family = GaugeMetricFamily(name, "Somebody else's.", labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


@pytest.mark.parametrize("openmetrics", FORMATS)
def test_other_families_follow_ours_as_prometheus_client_writes_them(openmetrics: bool) -> None:
    others = CollectorRegistry()
    Counter("theirs", "A counter.", ["a"], registry=others).labels('"\n').inc()
    Histogram("their_time", "A histogram.", registry=others).observe(0.3)
    Gauge("empty", "No sample.", ["a"], registry=others)
    stock = (generate_openmetrics if openmetrics else generate_latest)(others).decode()
    ours = text_of(page_for(everything()), openmetrics=openmetrics).removesuffix("# EOF\n")
    text = text_of(page_for(everything(), others=others), openmetrics=openmetrics)
    without_empty = re.sub("# (HELP|TYPE) empty .*\n", "", stock)
    if openmetrics:
        assert text == ours + without_empty
    else:  # prometheus_client gathers the moments of creation at the end of each family
        assert sorted(text.split("\n")) == sorted((ours + without_empty).split("\n"))
    assert text.count("# EOF\n") == openmetrics


@pytest.mark.parametrize("openmetrics", FORMATS)
def test_other_families_alone_have_target_info_too(openmetrics: bool) -> None:
    families = parsed(
        text_of(page_for(Snapshot(), others=registry_of(gauge("x", 1))), openmetrics=openmetrics),
        openmetrics=openmetrics,
    )
    assert [family.name for family in families] == ["target" if openmetrics else "target_info", "x"]


@pytest.mark.parametrize("openmetrics", FORMATS)
def test_a_family_of_the_same_name_and_type_is_put_to_ours(openmetrics: bool) -> None:
    others = registry_of(gauge("amptalk_agent_queue_size", 7, agent_id="x"), gauge("x", 1), gauge("x", 2, a="b"))
    text = text_of(page_for(everything(), others=others), openmetrics=openmetrics)
    families = {family.name: family for family in parsed(text, openmetrics=openmetrics)}
    sizes = {sample.labels["agent_id"]: sample.value for sample in families["amptalk_agent_queue_size"].samples}
    assert sizes == {"id-1": 2.0, "id-2": 2.0, "id-3": 2.0, "id-4": 2.0, "x": 7.0}
    assert [sample.value for sample in families["x"].samples] == [1.0, 2.0]
    alone = text_of(page_for(everything()), openmetrics=openmetrics)
    assert (
        text_of(page_for(everything(), others=others), openmetrics=openmetrics, names=frozenset({"x"})).count("\nx")
        == 2
    )
    assert "x" not in {family.name for family in parsed(alone, openmetrics=openmetrics)}


@pytest.mark.parametrize("openmetrics", FORMATS)
@pytest.mark.parametrize("name", ["amptalk_agent_messages_received", "amptalk_agent_messages_received_total"])
def test_a_family_of_another_type_is_left_out_and_told(
    openmetrics: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = text_of(page_for(everything(), others=registry_of(gauge(name, 7))), openmetrics=openmetrics)
    assert text == text_of(page_for(everything()), openmetrics=openmetrics)
    assert caplog.messages == [f"{name} is on the metrics page with another type; left out"]


def test_names_restrict_other_families_as_well() -> None:
    others = registry_of(gauge("x", 1), gauge("y", 2))
    assert text_of(page_for(everything(), others=others), names=frozenset({"y"})).splitlines() == [
        "# HELP y Somebody else's.",
        "# TYPE y gauge",
        "y 2.0",
    ]


def test_others_that_fail_do_not_cost_us_our_page(lenient_guard: None, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[StockFamily]:
            raise RuntimeError("s3cret")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())
    assert text_of(page_for(everything(), others=registry)) == text_of(page_for(everything()))
    (message,) = caplog.messages
    assert message.startswith("reading the program's own instruments was skipped (RuntimeError at ")


# -- many at once --------------------------------------------------------------------------------------


def test_scrapes_at_once_share_a_pass_whatever_they_ask_for() -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    reads: list[int] = []
    snapshot = everything()

    def read() -> Snapshot:
        reads.append(len(reads))
        begun.release()
        assert go_on.wait(TIMEOUT_S)
        return snapshot

    page = page_for(read)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(text_of, page)
        assert begun.acquire(timeout=TIMEOUT_S)
        later = [pool.submit(text_of, page, openmetrics=bool(number % 2)) for number in range(8)]
        wait_until_waiting(page._passes, 8)
        go_on.set()
        pages = [task.result(TIMEOUT_S) for task in (first, *later)]
    assert reads == [0, 1]
    expected = [text_of(page_for(snapshot), openmetrics=openmetrics) for openmetrics in FORMATS]
    assert pages == [expected[0], *expected * 4]


def test_a_scrape_never_tells_what_was_before_it() -> None:
    received = [0]
    page = page_for(lambda: Snapshot(agents=(agent(1, of_type(received=received[0])),)))
    stop = threading.Event()

    def scrape_always() -> None:
        while not stop.is_set():
            page.pages(True)

    threads = [threading.Thread(target=scrape_always) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 100):
            received[0] = number
            (line,) = text_of(page, names=frozenset({"amptalk_agent_messages_received_total"})).splitlines()[2:]
            assert line.endswith(f" {number}.0")
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S)


def test_a_snapshot_that_fails_fails_the_scrape_and_not_the_next_one() -> None:
    failures = [RuntimeError("no")]

    def read() -> Snapshot:
        if failures:
            raise failures.pop()
        return everything()

    page = page_for(read)
    with pytest.raises(RuntimeError, match="no"):
        page.pages(False)
    assert text_of(page) == text_of(page_for(everything()))
