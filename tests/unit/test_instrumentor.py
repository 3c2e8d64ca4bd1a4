"""`AmptalkInstrumentor` instruments what the program creates, and `uninstrument` takes all of it off again."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

import amptalk_otel
from amptalk_otel import Config, _discovery, instrument_orchestrator
from amptalk_otel._zero_code import ZeroCode
from amptalk_otel.demo.runtime import Message, Orchestrator, SimpleAgent
from amptalk_otel.instrumentor import AmptalkInstrumentor
from tests.support import CONFIG, identity, in_loop, key, note, provider_and_reader, series

RECEIVED = "amptalk.agent.messages.received"


@pytest.fixture
def vendored(monkeypatch: pytest.MonkeyPatch) -> type[Orchestrator]:
    """The framework's class as a program has it that has imported it already."""
    module = ModuleType("acme.src.core.framework.orchestrator")

    class Vendored(Orchestrator):
        pass

    monkeypatch.setitem(vars(module), "Orchestrator", Vendored)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Vendored


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    finders = sys.meta_path.copy()
    yield
    instrumentor = AmptalkInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    assert sys.meta_path == finders
    assert _discovery._covers == []


def message() -> Message:
    return note(target_agent_id="a", source_agent_id="b")


def received(found: dict[Any, Any], orchestrator: str = "one") -> int | None:
    attributes = {"agent_id": "a", "agent_name": "A", "orchestrator_name": orchestrator, "message_type": "command"}
    return found.get(key(RECEIVED, **attributes))


async def populate(orchestrator: Orchestrator) -> SimpleAgent:
    agent = SimpleAgent(agent_id="a", name="A")
    orchestrator.register_agent(agent)
    await orchestrator.send_message_to_agent(message())
    return agent


def test_opentelemetrys_launcher_finds_it_by_its_entry_point() -> None:
    (entry_point,) = (one for one in entry_points(group="opentelemetry_instrumentor") if one.name == "amptalk")
    assert entry_point.load() is AmptalkInstrumentor
    assert issubclass(AmptalkInstrumentor, BaseInstrumentor)
    assert tuple(AmptalkInstrumentor().instrumentation_dependencies()) == ()


def test_it_is_an_attribute_of_the_package() -> None:
    assert amptalk_otel.AmptalkInstrumentor is AmptalkInstrumentor
    with pytest.raises(AttributeError, match="'amptalk_otel' has no attribute 'Amptalk'"):
        _ = amptalk_otel.Amptalk


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "amptalk_otel.instrumentor")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.instrumentor", None)
    asks: tuple[Callable[[], object], ...] = (
        lambda: importlib.import_module("amptalk_otel.instrumentor"),
        lambda: amptalk_otel.AmptalkInstrumentor,
        lambda: exec("from amptalk_otel import AmptalkInstrumentor"),
    )
    for ask in asks:
        with pytest.raises(ImportError, match=r"run: pip install 'amptalk_otel\[auto\]'$"):
            ask()
    assert amptalk_otel.instrument_orchestrator is instrument_orchestrator  # the rest works without


@in_loop
async def test_instrument_and_uninstrument(vendored: type[Orchestrator]) -> None:
    before_class = identity(vendored)
    before = vendored("early")  # made before we came: not ours
    provider, reader = provider_and_reader()
    AmptalkInstrumentor().instrument(meter_provider=provider)
    orchestrator = vendored("one")
    names = set(vars(orchestrator))
    agent = await populate(orchestrator)
    assert received(series(reader)) == 1
    assert "send_message_to_agent" in vars(orchestrator)
    assert set(vars(before)) == names - {
        "send_message_to_agent", "register_agent", "add_agent", "unregister_agent", "__getstate__",
    }  # fmt: skip
    AmptalkInstrumentor().uninstrument()
    assert series(reader) == {}
    assert set(vars(orchestrator)) == set(vars(before))
    assert orchestrator.event_hooks["message_routed"] == []
    assert {name: one for name, one in identity(vendored).items() if one != before_class.get(name)} == {}
    assert "_put" not in vars(agent.input_queue)
    await populate(vendored("two"))
    assert series(reader) == {}
    provider.shutdown()


@in_loop
async def test_instrument_twice_and_again_after_uninstrument(
    vendored: type[Orchestrator], caplog: pytest.LogCaptureFixture
) -> None:
    provider, reader = provider_and_reader()
    other_provider, other_reader = provider_and_reader()
    instrumentor = AmptalkInstrumentor()
    assert AmptalkInstrumentor() is instrumentor
    instrumentor.instrument(meter_provider=provider)
    with caplog.at_level(logging.WARNING):
        instrumentor.instrument(meter_provider=other_provider)  # OpenTelemetry's base class refuses
    assert [record.getMessage() for record in caplog.records] == ["Attempting to instrument while already instrumented"]
    await populate(vendored("one"))
    assert received(series(reader)) == 1
    assert series(other_reader) == {}
    instrumentor.uninstrument()
    instrumentor.instrument(meter_provider=other_provider)
    await populate(vendored("two"))
    assert series(reader) == {}
    assert received(series(other_reader), "two") == 1
    instrumentor.uninstrument()
    instrumentor.uninstrument()
    assert series(other_reader) == {}
    provider.shutdown()
    other_provider.shutdown()


@in_loop
async def test_without_providers_it_takes_the_global_ones(
    vendored: type[Orchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, reader = provider_and_reader()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    AmptalkInstrumentor().instrument()
    await populate(vendored("one"))
    assert received(series(reader)) == 1
    provider.shutdown()


@in_loop
async def test_a_given_config_is_used(vendored: type[Orchestrator], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flow.conductor")

    class Conductor(Orchestrator):
        pass

    monkeypatch.setitem(vars(module), "Orchestrator", Conductor)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    provider, reader = provider_and_reader()
    config = Config(metrics_exporters=("none",), modules=("flow.conductor",), message_size_sample_every=0)
    AmptalkInstrumentor().instrument(meter_provider=provider, config=config)
    await populate(Conductor("one"))
    found = series(reader)
    assert received(found) == 1
    assert "amptalk.agent.message.size" not in {name for name, _attributes in found}
    provider.shutdown()


@in_loop
async def test_modules_and_a_switched_off_sdk_come_from_the_environment(
    vendored: type[Orchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("a.flow.conductor")
    monkeypatch.setitem(vars(module), "Orchestrator", type("Conductor", (Orchestrator,), {}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("AMPTALK_OTEL_MODULES", "flow.conductor, other")
    provider, reader = provider_and_reader()
    AmptalkInstrumentor().instrument(meter_provider=provider)
    await populate(module.Orchestrator("one"))
    assert received(series(reader)) == 1
    AmptalkInstrumentor().uninstrument()

    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    finders, constructor = sys.meta_path.copy(), vendored.__init__
    AmptalkInstrumentor().instrument(meter_provider=provider)
    assert sys.meta_path == finders
    assert vendored.__init__ is constructor
    AmptalkInstrumentor().uninstrument()
    provider.shutdown()


@in_loop
async def test_an_explicit_call_beside_it_counts_nothing_twice(vendored: type[Orchestrator]) -> None:
    provider, reader = provider_and_reader()
    AmptalkInstrumentor().instrument(meter_provider=provider)
    orchestrator = vendored("one")
    handle = instrument_orchestrator(orchestrator)  # no pipeline: the launcher's provider is there already
    assert handle.metrics_url is None
    assert instrument_orchestrator(orchestrator, meter_provider=provider) is handle
    await populate(orchestrator)
    assert received(series(reader)) == 1
    assert handle.read()[0].received == 1
    assert handle.shutdown() is True
    assert series(reader) == {}
    assert await orchestrator.send_message_to_agent(message()) is True
    provider.shutdown()


def test_what_is_no_orchestrator_costs_one_record(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = ModuleType("shop.core.orchestrator")
    monkeypatch.setitem(vars(module), "Orchestrator", type("Orchestrator", (), {}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    provider, reader = provider_and_reader()
    AmptalkInstrumentor().instrument(meter_provider=provider)
    module.Orchestrator()
    assert series(reader) == {}
    assert [record.getMessage() for record in caplog.records] == [
        "Orchestrator can't be instrumented: it has no agents"
    ]
    provider.shutdown()


# -- ZeroCode, which it shares with `amptalk-otel run` ---------------------------------------------------


@in_loop
async def test_orchestrators_that_the_program_drops_are_let_go(vendored: type[Orchestrator]) -> None:
    provider, reader = provider_and_reader()
    config = CONFIG.with_changes(departed_agents_linger_s=0.000_001)
    zero_code = ZeroCode(config, meter_provider=provider)
    for index in range(8):
        orchestrator = vendored(f"number-{index}")
        agent = await populate(orchestrator)
        for task in orchestrator.tasks:
            await task
        assert received(series(reader), f"number-{index}") == 1
        del orchestrator, agent
        gc.collect()
    assert len(zero_code._made) <= 2
    zero_code.stop()
    assert series(reader) == {}
    provider.shutdown()


@in_loop
async def test_the_last_values_of_a_dropped_orchestrators_agents_stay_for_a_while(
    vendored: type[Orchestrator],
) -> None:
    provider, reader = provider_and_reader()
    zero_code = ZeroCode(CONFIG, meter_provider=provider)
    orchestrator = vendored("gone")
    agent = await populate(orchestrator)
    for task in orchestrator.tasks:
        await task
    del orchestrator, agent
    gc.collect()
    vendored("next")
    assert received(series(reader), "gone") == 1
    zero_code.stop()
    provider.shutdown()


def test_with_port_0_all_orchestrators_share_one_page_and_its_address_is_told(
    vendored: type[Orchestrator],
) -> None:
    urls: list[str] = []
    zero_code = ZeroCode(Config(prometheus_port=0), tell_url=urls.append)
    first, second = vendored("one"), vendored("two")
    handles = [instrument_orchestrator(one) for one in (first, second)]
    assert [handle.metrics_url for handle in handles] == [urls[0], urls[0]]
    assert len(urls) == 1
    assert ":0/" not in urls[0]
    zero_code.stop()
    for _orchestrator, handle in zip((first, second), handles, strict=True):
        assert handle.active is False
        assert handle.shutdown() is True


def test_without_a_page_no_address_is_told(vendored: type[Orchestrator]) -> None:
    urls: list[str] = []
    zero_code = ZeroCode(CONFIG, tell_url=urls.append)
    made = vendored("one")
    handle = instrument_orchestrator(made)
    assert handle.active
    assert urls == []
    zero_code.stop()
    assert not vars(made).get("register_agent")
    assert handle.shutdown() is True
