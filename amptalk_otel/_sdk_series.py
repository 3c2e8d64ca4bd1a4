"""Series that the SDK can't forget, forgotten.

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


def forget_series(instrument: Any, leaving: Callable[[Mapping[str, Any]], bool]) -> int:
    """Remove the series of `instrument` whose attributes are `leaving`; returns how many went."""
    forgotten = 0
    try:
        for match in _matches(instrument):
            with match._lock:
                series = match._attributes_aggregation
                for key in [key for key, point in series.items() if leaving(point._attributes or {})]:
                    del series[key]
                    forgotten += 1
    except (AttributeError, TypeError, RuntimeError) as error:
        _logger.debug("this SDK keeps the series of agents that left (%s)", type(error).__qualname__)
    return forgotten


def _matches(instrument: Any) -> Iterator[Any]:
    real = getattr(instrument, "_real_instrument", None) or instrument  # a proxy made before the provider was set
    for storage in list(real._measurement_consumer._reader_storages.values()):
        yield from storage._instrument_view_instrument_matches.get(real, ())
