"""The size of a payload as JSON, found without ever serialising a large one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_EXACT_UP_TO_BYTES = 16_384
_MOST_NODES = 2_000
_SEPARATOR_BYTES = 2  # ", " and ": " in json.dumps' default form


def payload_size(payload: Any) -> int | None:
    """Bytes of `json.dumps(payload)`; None where it can't be told cheaply.

    Exact up to 16 KiB. Larger payloads are added up from the lengths of their parts without being
    serialised, which leaves out the escapes of special characters. None for more than 2,000 values
    and for what JSON can't express. Cost: bounded by 2,000 values and 16 KiB of JSON, whatever the payload.
    """
    estimate = _estimate(payload)
    if estimate is None or estimate > _EXACT_UP_TO_BYTES:
        return estimate
    try:
        return len(json.dumps(payload))
    except (TypeError, ValueError, RecursionError):
        return None


def _estimate(payload: Any) -> int | None:
    total, nodes, stack = 0, 0, [payload]
    while stack:
        value = stack.pop()
        nodes += 1
        if nodes > _MOST_NODES:
            return None
        if isinstance(value, str):
            total += len(value) + 2
        elif isinstance(value, Mapping):
            if nodes + 2 * len(value) > _MOST_NODES:
                return None
            total += 2 + 2 * _SEPARATOR_BYTES * len(value)
            stack.extend(value.keys())
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            if nodes + len(value) > _MOST_NODES:
                return None
            total += 2 + _SEPARATOR_BYTES * len(value)
            stack.extend(value)
        elif isinstance(value, int) or value is None:
            total += 5 if value is None or isinstance(value, bool) else value.bit_length() // 3 + 1
        elif isinstance(value, float):
            total += 18
        else:
            return None
    return total
