"""Whatever programs call their things: the page and OTLP can be read, and no sum changes where two names become one."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel import Config, instrument_orchestrator
from amptalk_otel._bridge import serve
from amptalk_otel._encoding import Encoder
from amptalk_otel._exposition import MetricsPage
from amptalk_otel._labels import MAX_LENGTH, clean
from amptalk_otel._pipeline import _MAX_RESOURCE_LENGTH, _resource
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, StateManager
from tests.support import Scripted, examples, handle

openmetrics: Any = openmetrics_parser  # untyped
ODD = '\\"\n{}=, #\r\t\0\x1f\x7f\x85\u2028é😀\ud800\udcff_'
TEXT = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from(ODD), max_size=10),
    st.builds(lambda text: (text or "x") * 200, st.text(st.sampled_from(ODD + "ab"), max_size=9)),
    st.sampled_from(["", " ", "_OTHER", "_RETIRED", "x" * 127, "x" * 128, "x" * 129]),
)

SETTING = TEXT.filter(lambda text: not any("\ud800" <= one <= "\udfff" for one in text))  # or it is refused


class Odd:
    """An id that is no text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


NAME = st.one_of(TEXT, TEXT.map(Odd), st.integers(), st.none(), st.binary(max_size=5), st.floats())
CLASS_NAME = TEXT.filter(lambda text: "\0" not in text and text.isprintable())  # what Python has as one


class World:
    """One orchestrator with agents of any names, and what they were given."""

    def __init__(self, grouping: str, config: Config) -> None:
        self.config = config.with_changes(metrics_exporters=("none",), agent_grouping=grouping)
        self.bridge, self.provider = ProducerBridge(), MeterProvider(shutdown_on_exit=False)
        serve(self.provider, self.bridge)
        self.received = 0

    async def live(self, name: Any, agents: list[tuple[Any, Any]], kinds: list[Any], errors: list[str]) -> None:
        orchestrator = Orchestrator(name=name)
        told = self.told = instrument_orchestrator(orchestrator, config=self.config, meter_provider=self.provider)
        watch = told._watch
        assert watch is not None
        for number, (agent_id, agent_name) in enumerate(agents):
            one = type(errors[0], (Scripted,), {})(agent_id="x")
            one.agent_id, one.name = agent_id, agent_name
            one.script = [type(error, (ValueError,), {})() for error in errors]
            one.state_manager = StateManager()
            one.state_manager.storage_type = kinds[0]
            orchestrator.agents[str(number)] = one
            watch.agent_registered(one)
            await one.state_manager.save_state("x", {})
            watch.operations.measured(clean(agent_id), clean(agent_name), clean(kinds[0]), 1.0)
            await handle(one, *[Message(message_type=kind) for kind in kinds])
            self.received += len(kinds)

    def end(self) -> None:
        self.told.shutdown()
        self.provider.shutdown()

    def page(self, is_openmetrics: bool) -> str:
        resource = _resource(self.config).attributes
        page = MetricsPage(self.bridge.sources.stream, self.bridge.system, resource_attributes=resource)
        return b"".join(page.pages(openmetrics=is_openmetrics)).decode("utf-8")

    def export(self) -> ExportMetricsServiceRequest:
        scopes = CatalogueProducer(self.bridge).produce()
        data = MetricsData([ResourceMetrics(_resource(self.config), scopes, "")])
        return ExportMetricsServiceRequest.FromString(Encoder().encode(data).SerializeToString())


def check_text(text: str) -> None:
    assert 0 < len(text) <= MAX_LENGTH
    assert all(character >= " " and not "\x7f" <= character < "\xa0" for character in text), text
    text.encode()


def check_page(world: World, *, is_openmetrics: bool) -> None:
    parse = openmetrics.text_string_to_metric_families if is_openmetrics else text_string_to_metric_families
    samples = [sample for family in parse(world.page(is_openmetrics)) for sample in family.samples]
    keys = {(sample.name, frozenset(sample.labels.items())) for sample in samples}
    assert len(keys) == len(samples)
    for text in {text for sample in samples if sample.name != "target_info" for text in sample.labels.values()}:
        check_text(text)
    received = sum(sample.value for sample in samples if sample.name == "amptalk_agent_messages_received_total")
    assert received == world.received


def check_export(world: World) -> None:
    (told,) = world.export().resource_metrics
    assert all(len(one.value.string_value) <= _MAX_RESOURCE_LENGTH for one in told.resource.attributes)
    for metric in told.scope_metrics[0].metrics:
        data: Any = getattr(metric, str(metric.WhichOneof("data")))
        for text in {one.value.string_value for point in data.data_points for one in point.attributes}:
            check_text(text)
        if metric.name == "amptalk.agent.messages.received":
            assert sum(point.as_int for point in data.data_points) == world.received


@settings(max_examples=examples(40))
@given(
    orchestrator=NAME,
    agents=st.lists(st.tuples(NAME, NAME), min_size=1, max_size=2),
    kinds=st.lists(NAME, min_size=1, max_size=2, unique_by=str),
    errors=st.lists(CLASS_NAME, min_size=1, max_size=2),
    resource=st.dictionaries(SETTING.filter(bool), SETTING, max_size=2),
    grouping=st.sampled_from(["id", "name", "class"]),
    is_openmetrics=st.booleans(),
)
def test_any_names_can_be_told(
    orchestrator: Any,
    agents: list[Any],
    kinds: list[Any],
    errors: list[str],
    resource: dict[str, str],
    grouping: str,
    *,
    is_openmetrics: bool,
) -> None:
    world = World(grouping, Config(resource_attributes=resource))
    types: list[Any] = [Enum("Kind", {"MEMBER": kind}).MEMBER for kind in kinds]  # type: ignore[attr-defined]
    asyncio.run(world.live(orchestrator, agents, types, errors))
    check_page(world, is_openmetrics=is_openmetrics)
    check_export(world)
    world.end()


def test_ids_that_become_the_same_text_are_one_series() -> None:
    world = World("id", Config())
    ids = ["x" * 128 + "1", "x" * 128 + "2", "a\nb", "a\rb", "\ud800", "\ud801"]
    kinds: list[Any] = [MessageType.COMMAND]
    asyncio.run(world.live("town", [(one, "name") for one in ids], kinds, ["Error"]))
    found = {reading.agent_id: reading.received for reading in world.bridge.sources.snapshot().agents}
    assert found == {"x" * 128: 2, "a b": 2, "?": 2}
    world.end()
