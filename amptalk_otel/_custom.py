"""Metrics that a program defines itself, read when somebody asks."""

from __future__ import annotations

import inspect
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from amptalk_otel._catalogue import CATALOGUE, Kind, agent_attributes
from amptalk_otel._guard import complain
from amptalk_otel._labels import clean
from amptalk_otel._version import __version__
from amptalk_otel.adapters import adapter_for

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,254}")  # https://opentelemetry.io/docs/specs/otel/metrics/api/
_UNIT_LENGTH = 63  # the same page
_KINDS = ("gauge", "counter", "up_down_counter")
_PER = ("agent", "process")
_INT64 = 2**63  # integers from here on can't be pushed by OTLP

# Both as in https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#metric-metadata-1
_UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius",
    "Hz": "hertz", "1": "ratio", "%": "percent",
}  # fmt: skip
_PER_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


@dataclass(frozen=True)
class Definition:
    """One metric of the program's own."""

    name: str
    read: Any
    unit: str
    description: str
    kind: str
    per: str

    @property
    def shape(self) -> tuple[str, ...]:
        """What several monitors must agree in to share an instrument."""
        return self.name, self.unit, self.description, self.kind

    def check(self) -> None:
        """Raise ValueError for what can't be used."""
        if not _is_text(self.name) or not _NAME.fullmatch(self.name):
            rule = "a letter, then letters, digits and _ . - / (255 at most)"
            raise ValueError(f"{self.name!r} is no metric name: {rule}")
        if not _is_text(self.unit) or not self.unit.isascii() or len(self.unit) > _UNIT_LENGTH:
            raise ValueError(f"unit={self.unit!r}: must be an ASCII text of at most {_UNIT_LENGTH} characters")
        if not _is_text(self.description):
            raise ValueError(f"description={self.description!r}: must be a text")
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r}: must be one of {', '.join(_KINDS)}")
        if self.per not in _PER:
            raise ValueError(f"per={self.per!r}: must be one of {', '.join(_PER)}")
        if not callable(self.read) or inspect.iscoroutinefunction(self.read):
            raise ValueError("read must be a plain function")
        if names_on_page(self.name, self.unit) & _TAKEN:
            raise ValueError(f"the metric name {self.name!r} is taken by the catalogue")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


Source = Callable[[], list[Observation]]


class CustomMetrics:
    """The definitions of one monitor, reported while it collects."""

    def __init__(self, scope: str, agents: Callable[[], Iterable[Any]]) -> None:
        self.scope = scope
        self._agents = agents
        self._definitions: dict[str, Definition] = {}

    def define(self, definition: Definition, provider: MeterProvider | None) -> None:
        """Add a definition, reported to `provider` at once. Raises ValueError for one that can't be used."""
        definition.check()
        others = [other.shape for other in self._definitions.values()]
        page = _page_of(provider) if provider is not None else None
        if page is not None:
            others += [shape for shape in page.shapes() if shape != definition.shape]
        names = names_on_page(definition.name, definition.unit)
        if any(names & names_on_page(name, unit) for name, unit, *_ in others):
            raise ValueError(f"the metric name {definition.name!r} is taken by another definition")
        self._definitions[definition.name] = definition
        if page is not None and provider is not None:
            self._join(page, provider, definition)

    def attach(self, provider: MeterProvider) -> None:
        """Report to `provider` from now on."""
        page = _page_of(provider)
        for definition in self._definitions.values():
            names = names_on_page(definition.name, definition.unit)
            others = [shape for shape in page.shapes() if shape != definition.shape]
            if any(names & names_on_page(name, unit) for name, unit, *_ in others):
                message = "metric %s is left out: another monitor on the same page defines it otherwise"
                complain(f"metric {definition.name}", message, definition.name)
            else:
                self._join(page, provider, definition)

    def detach(self, provider: MeterProvider) -> None:
        """Report nothing to `provider` any more."""
        _page_of(provider).leave(self)

    def _join(self, page: _Page, provider: MeterProvider, definition: Definition) -> None:
        page.join(self, provider, definition, lambda: self._observe(definition))

    def _observe(self, definition: Definition) -> list[Observation]:
        targets = [()] if definition.per == "process" else [(agent,) for agent in self._agents()]
        observations = (_observe_one(definition, *target) for target in targets)
        return [observation for observation in observations if observation is not None]


class _Page:
    """The instruments of one provider, and who reports through each.

    Instruments are never removed from a provider, and a second one of the same name, unit, description and kind is
    the first one again, without the second one's callback. So there is one for each, and we do the sharing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, ...], dict[CustomMetrics, Source]] = {}

    def shapes(self) -> list[tuple[str, ...]]:
        """Those that somebody reports."""
        return [shape for shape, sources in self._sources.copy().items() if sources]

    def join(self, who: CustomMetrics, provider: MeterProvider, definition: Definition, source: Source) -> None:
        with self._lock:
            made = definition.shape in self._sources
            self._sources[definition.shape] = {**self._sources.get(definition.shape, {}), who: source}
        if made:
            return
        meter = provider.get_meter(who.scope, __version__)
        creators: dict[str, Callable[..., Any]] = {
            "gauge": meter.create_observable_gauge,
            "counter": meter.create_observable_counter,
            "up_down_counter": meter.create_observable_up_down_counter,
        }
        callback = self._callback(definition.shape)
        creators[definition.kind](definition.name, [callback], definition.unit, definition.description)

    def leave(self, who: CustomMetrics) -> None:
        with self._lock:
            for shape, sources in self._sources.items():
                self._sources[shape] = {other: source for other, source in sources.items() if other is not who}

    def _callback(self, shape: tuple[str, ...]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        # Takes no lock: the SDK holds one of its own here, which creating an instrument waits for.
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            found: dict[Any, Observation] = {}
            for source in self._sources[shape].values():
                for observation in source():  # an agent that several monitors watch has one value
                    found.setdefault((observation.attributes or {}).get("agent.id"), observation)
            return list(found.values())

        return observe


_pages: weakref.WeakKeyDictionary[MeterProvider, _Page] = weakref.WeakKeyDictionary()
_pages_lock = threading.Lock()


def _page_of(provider: MeterProvider) -> _Page:
    with _pages_lock:
        return _pages.setdefault(provider, _Page())


# -- values --------------------------------------------------------------------------------------------


def _observe_one(definition: Definition, *target: Any) -> Observation | None:
    """The value of one agent, or of the process; None where `read` gives none."""
    try:
        attributes = _attributes(*target)
        value = definition.read(*target)
    except Exception as error:
        complain(f"metric {definition.name}", "metric %s: read raised %s", definition.name, type(error).__qualname__)
        return None
    if value is None:
        return None
    number = _number(value)
    if number is None or (definition.kind == "counter" and number < 0):
        kind, wanted = type(value).__qualname__, "number from 0 on" if definition.kind == "counter" else "finite number"
        complain(f"metric {definition.name}", "metric %s: read returned no %s (%s)", definition.name, wanted, kind)
        return None
    return Observation(number, attributes)


def _attributes(agent: Any = None) -> dict[str, str]:
    adapter = adapter_for(agent) if agent is not None else None
    if adapter is None:
        return {}
    return agent_attributes(clean(adapter.agent_id(agent)), clean(adapter.agent_name(agent)), None)


def _number(value: Any) -> int | float | None:
    """A plain number that every exporter can tell; True is 1."""
    if not isinstance(value, (int, float)):
        return None
    try:
        if isinstance(value, int) and -_INT64 <= value < _INT64:
            return int(value)
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


# -- names ---------------------------------------------------------------------------------------------


def names_on_page(name: str, unit: str) -> set[str]:
    """A metric's names for Prometheus, in lower case and without `_total`: with its unit and without.

    Two metrics that have one in common would meet on the page, or be one instrument to OpenTelemetry.
    """
    flat = re.sub(r"[^a-z0-9]+", "_", name.lower()).removesuffix("_total")
    suffix = _unit_word(re.sub(r"\{.*\}", "", unit))
    return {flat, f"{flat.removesuffix(suffix)}{suffix}"}


def _unit_word(unit: str) -> str:
    top, _, bottom = unit.partition("/")
    words = _UNITS.get(top, top), "per" if bottom else "", _PER_UNITS.get(bottom, bottom)
    flat = re.sub(r"[^a-z0-9]+", "_", " ".join(words).lower()).strip("_")
    return f"_{flat}" if flat else ""


def _catalogue_names() -> Iterable[str]:
    yield from ("target", "target_info")  # the exporter's own
    for metric in CATALOGUE:
        for name in names_on_page(metric.name, metric.unit):
            yield name
            if metric.kind is Kind.HISTOGRAM:
                yield from (f"{name}_{series}" for series in ("bucket", "count", "sum"))


_TAKEN = frozenset(_catalogue_names())
