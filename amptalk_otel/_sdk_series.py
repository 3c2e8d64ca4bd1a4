"""Series that the SDK can't forget, moved or forgotten.

OpenTelemetry's Python SDK keeps every attribute set that a synchronous instrument has seen until its provider
ends, and since 1.45.2 those of asynchronous instruments count against the cardinality limit for ever
(https://github.com/open-telemetry/opentelemetry-python/issues/3300). There is no public way to remove one, so this
module reaches into the SDK where its structure is as expected, and does nothing where it is not: then stale
series stay, and no number is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_logger = logging.getLogger("amptalk_otel")

To = Callable[[Mapping[str, Any]], "Mapping[str, Any] | None"]
"""The attributes under which a series goes on; none to forget it; None for one that stays as it is."""


def move_series(instrument: Any, to: To) -> int:
    """Move the series of `instrument`: a histogram is added to the one that is there. Returns how many moved."""
    moved = 0
    try:
        for match in _matches(instrument):
            with match._lock:
                moved += _move(match._attributes_aggregation, to)
    except (AttributeError, TypeError, RuntimeError) as error:
        _logger.debug("this SDK keeps the series of agents that left (%s)", type(error).__qualname__)
    return moved


def _move(series: dict[Any, Any], to: To) -> int:
    moved = 0
    known: dict[frozenset[Any], Any] = {}  # by attributes; keys are made otherwise in each version of the SDK
    for key, point in list(series.items()):
        attributes = to(point._attributes or {})
        if attributes is None:
            continue
        moved += 1
        if attributes:
            known = known or {frozenset((other._attributes or {}).items()): other for other in series.values()}
            name = frozenset(attributes.items())
            there = known.get(name)
            if there is not None and there is not point:
                _add(there, point)
            else:
                point._attributes = dict(attributes)
                series[name] = known[name] = point
        del series[key]
    return moved


def _add(histogram: Any, other: Any) -> None:
    """Add an explicit-bucket histogram to another, what was collected already and what was not."""
    with histogram._lock, other._lock:
        for past in ("", "previous_"):
            values = [value for one in (histogram, other) if (value := getattr(one, f"_{past}value")) is not None]
            together = {
                "value": [sum(counts) for counts in zip(*values, strict=True)] if values else None,
                "sum": getattr(histogram, f"_{past}sum") + getattr(other, f"_{past}sum"),
                "min": min(getattr(one, f"_{past}min") for one in (histogram, other)),
                "max": max(getattr(one, f"_{past}max") for one in (histogram, other)),
            }
            for name, value in together.items():
                setattr(histogram, f"_{past}{name}", value)


def _matches(instrument: Any) -> Iterator[Any]:
    real = getattr(instrument, "_real_instrument", None) or instrument  # a proxy made before the provider was set
    for storage in list(real._measurement_consumer._reader_storages.values()):
        yield from storage._instrument_view_instrument_matches.get(real, ())
