"""Metrics that a program defines itself, read when somebody asks."""

from __future__ import annotations

import inspect
import math
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from amptalk_otel._catalogue import CATALOGUE, Kind
from amptalk_otel._forks import lock_of
from amptalk_otel._guard import complain
from amptalk_otel._labels import valid
from amptalk_otel._per_agent import PerAgent, Series, attributes_of
from amptalk_otel._version import __version__

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


Agents = Callable[[], Iterable[tuple[Any, Series]]]
"""The agents that are watched, with the series that they are in."""


class CustomMetrics:
    """The definitions of one monitor, reported while it collects."""

    def __init__(self, agents: Agents) -> None:
        self.scope = ""
        self.agents = agents
        self._definitions: dict[str, Definition] = {}

    def define(self, definition: Definition, provider: MeterProvider | None) -> None:
        """Add a definition, reported to `provider` at once. Raises ValueError for one that can't be used."""
        definition.check()
        definition = replace(definition, description=valid(definition.description))
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

    def let_go(self, agent: Any, series: Series, provider: MeterProvider) -> None:
        """The agent is no longer watched. What it counted is told on."""
        _page_of(provider).let_go(agent, series, self)

    def _join(self, page: _Page, provider: MeterProvider, definition: Definition) -> None:
        page.join(self, provider, definition)


class _Instrument:
    """One metric, and who reports through it."""

    def __init__(self, kind: str) -> None:
        self.definitions: dict[CustomMetrics, Definition] = {}  # not changed, but replaced
        self.per_agent = PerAgent(kind)

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Takes no lock that is held while an instrument is made: the SDK holds one here, which that waits for."""
        definitions = self.definitions
        told = [_value(one) for one in definitions.values() if one.per == "process"][:1]
        found = [Observation(value) for value in told if value is not None]
        agents = {id(agent): (agent, series, _reader(one)) for who, one, agent, series in self._agents(definitions)}
        values = self.per_agent.tell(agents.values())
        return found + [Observation(value, attributes_of(series)) for series, value in values.items()]

    @staticmethod
    def _agents(definitions: dict[CustomMetrics, Definition]) -> list[tuple[CustomMetrics, Definition, Any, Series]]:
        """An agent that several monitors watch has the value that the first one reads."""
        mine = [(who, one) for who, one in reversed(definitions.items()) if one.per == "agent"]
        return [(who, one, agent, series) for who, one in mine for agent, series in who.agents()]

    def leave(self, who: CustomMetrics) -> None:
        definitions = {other: one for other, one in self.definitions.items() if other is not who}
        others = {id(agent) for *_, agent, _series in self._agents(definitions)}
        self.definitions = definitions
        self.per_agent.forget([agent for agent, _series in who.agents() if id(agent) not in others])

    def let_go(self, agent: Any, series: Series, who: CustomMetrics) -> None:
        definition = self.definitions.get(who)
        if definition is None or definition.per != "agent":
            return
        if all(other is not agent for *_, other, _series in self._agents(self.definitions)):
            self.per_agent.leave(agent, series, _reader(definition))


class _Page:
    """The instruments of one provider, and who reports through each.

    Instruments are never removed from a provider, and a second one of the same name, unit, description and kind is
    the first one again, without the second one's callback. So there is one for each, and we do the sharing.
    """

    def __init__(self) -> None:
        self._lock = lock_of(self, threading.Lock)
        self._instruments: dict[tuple[str, ...], _Instrument] = {}

    def shapes(self) -> list[tuple[str, ...]]:
        """Those that somebody reports."""
        return [shape for shape, instrument in self._instruments.copy().items() if instrument.definitions]

    def join(self, who: CustomMetrics, provider: MeterProvider, definition: Definition) -> None:
        with self._lock:
            instrument = self._instruments.get(definition.shape)
            is_made = instrument is not None
            if instrument is None:
                instrument = self._instruments[definition.shape] = _Instrument(definition.kind)
            instrument.definitions = {**instrument.definitions, who: definition}
        if is_made:
            return
        meter = provider.get_meter(who.scope, __version__)
        creators: dict[str, Callable[..., Any]] = {
            "gauge": meter.create_observable_gauge,
            "counter": meter.create_observable_counter,
            "up_down_counter": meter.create_observable_up_down_counter,
        }
        creators[definition.kind](definition.name, [instrument.observe], definition.unit, definition.description)

    def leave(self, who: CustomMetrics) -> None:
        with self._lock:
            for instrument in self._instruments.values():
                instrument.leave(who)

    def let_go(self, agent: Any, series: Series, who: CustomMetrics) -> None:
        for instrument in self._instruments.copy().values():
            instrument.let_go(agent, series, who)


_pages: weakref.WeakKeyDictionary[MeterProvider, _Page] = weakref.WeakKeyDictionary()
_pages_lock = lock_of(sys.modules[__name__], threading.Lock, "_pages_lock")


def _page_of(provider: MeterProvider) -> _Page:
    with _pages_lock:
        return _pages.setdefault(provider, _Page())


# -- values --------------------------------------------------------------------------------------------


def _reader(definition: Definition) -> Callable[[Any], int | float | None]:
    return lambda agent: _value(definition, agent)


def _value(definition: Definition, *target: Any) -> int | float | None:
    """The value of one agent, or of the process; None where `read` gives none."""
    try:
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
    return number


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
