"""Metrics that a program defines itself, read when somebody asks."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from amptalk_otel._catalogue import BY_NAME, agent_attributes
from amptalk_otel._guard import complain
from amptalk_otel._labels import clean
from amptalk_otel._version import __version__
from amptalk_otel.adapters import adapter_for

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,254}")  # https://opentelemetry.io/docs/specs/otel/metrics/api/
_KINDS = ("gauge", "counter", "up_down_counter")
_PER = ("agent", "process")
_UNITS = {"s": "_seconds", "By": "_bytes", "1": "_ratio"}


@dataclass(frozen=True)
class Definition:
    """One metric of the program's own."""

    name: str
    read: Callable[..., Any]
    unit: str
    description: str
    kind: str
    per: str


class CustomMetrics:
    """The definitions of one monitor, and their instruments while it collects."""

    def __init__(self, scope: str, agents: Callable[[], Iterable[Any]]) -> None:
        self._scope = scope
        self._agents = agents
        self._definitions: dict[str, Definition] = {}
        self._provider: weakref.ref[MeterProvider] | None = None
        # Instruments are never removed from a provider: a second attachment to it goes on with the first one's.
        self._made: weakref.WeakKeyDictionary[MeterProvider, set[str]] = weakref.WeakKeyDictionary()

    def define(self, name: str, read: Callable[..., Any], *, unit: str, description: str, kind: str, per: str) -> None:
        """Add a definition. Raises ValueError for one that can't be used."""
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"{name!r} is no metric name: a letter, then letters, digits and _ . - / (255 at most)")
        taken = _flat(name) in _CATALOGUE_NAMES or any(_flat(name) == _flat(other) for other in self._definitions)
        if taken:
            raise ValueError(f"the metric name {name!r} is taken")
        if kind not in _KINDS:
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(_KINDS)}")
        if per not in _PER:
            raise ValueError(f"per={per!r}: must be one of {', '.join(_PER)}")
        if not callable(read):
            raise ValueError("read must be callable")  # noqa: TRY004 - one kind of error for every bad definition
        self._definitions[name] = Definition(name, read, unit, description, kind, per)

    def attach(self, provider: MeterProvider) -> None:
        """Report to `provider` from now on."""
        self._provider = weakref.ref(provider)
        made = self._made.setdefault(provider, set())
        meter = provider.get_meter(self._scope, __version__)
        creators: dict[str, Callable[..., Any]] = {
            "gauge": meter.create_observable_gauge,
            "counter": meter.create_observable_counter,
            "up_down_counter": meter.create_observable_up_down_counter,
        }
        for name, definition in self._definitions.items():
            if name not in made:
                made.add(name)
                callback = self._callback(definition, self._provider)
                creators[definition.kind](name, [callback], definition.unit, definition.description)

    def detach(self) -> None:
        """Report nothing until `attach`."""
        self._provider = None

    def _callback(
        self, definition: Definition, provider: weakref.ref[MeterProvider]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            reporting = self._provider is not None and self._provider() is provider()
            return self._observe(definition) if reporting else ()

        return observe

    def _observe(self, definition: Definition) -> list[Observation]:
        if definition.per == "process":
            observation = _read(definition, {})
            return [observation] if observation is not None else []
        observations = (_read(definition, _attributes(agent), agent) for agent in self._agents())
        return [observation for observation in observations if observation is not None]


def _attributes(agent: Any) -> dict[str, str]:
    adapter = adapter_for(agent)
    if adapter is None:
        return {}
    return agent_attributes(clean(adapter.agent_id(agent)), clean(adapter.agent_name(agent)), None)


def _read(definition: Definition, attributes: dict[str, str], *arguments: Any) -> Observation | None:
    try:
        value = definition.read(*arguments)
    except Exception as error:
        complain(f"metric {definition.name}", "metric %s: read raised %s", definition.name, type(error).__qualname__)
        return None
    if value is None:
        return None
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        kind = type(value).__qualname__
        complain(f"metric {definition.name}", "metric %s: read returned no finite number (%s)", definition.name, kind)
        return None
    return Observation(value, attributes)


def _flat(name: str) -> str:
    """A name as Prometheus has it, without unit and `_total`: names that differ less would meet on the page."""
    flat = re.sub(r"[^a-z0-9]+", "_", name.lower()).removesuffix("_total")
    for suffix in _UNITS.values():
        flat = flat.removesuffix(suffix)
    return flat


_CATALOGUE_NAMES = frozenset(_flat(name) for name in BY_NAME)
