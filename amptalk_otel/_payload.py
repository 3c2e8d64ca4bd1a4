"""The size of a payload as JSON, found without ever serialising a large one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_EXACT_UP_TO_BYTES = 16_384
_MOST_NODES = 2_000


def payload_size(payload: Any) -> int | None:
    """Bytes of `json.dumps(payload)`; None where it can't be told cheaply.

    Exact up to 16 KiB. Larger payloads are added up from the lengths of their parts without being
    serialised, which leaves out the escapes of special characters. None for more than 2,000 values
    and for what JSON can't express. Cost: bounded by 2,000 values and 16 KiB of JSON, whatever the payload.
    """
    size = _added_up(payload)
    if size is None or size > _EXACT_UP_TO_BYTES:
        return size
    try:
        return len(json.dumps(payload))
    except (TypeError, ValueError, RecursionError):
        return None


def _added_up(payload: Any) -> int | None:
    """The lengths of all parts and of what `json.dumps` puts between them, without escapes."""
    total, nodes, stack = 0, 0, [payload]
    while stack:
        value = stack.pop()
        nodes += 1
        if isinstance(value, Mapping):
            members, between = len(value), len(": ") * len(value)
            if members > _MOST_NODES:
                return None
            total += sum(len(key if isinstance(key, str) else str(key)) + 2 for key in value)
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            members, between = len(value), 0
            if members > _MOST_NODES:
                return None
            stack.extend(value)
        else:
            size = _size_of_scalar(value)
            if size is None:
                return None
            total += size
            continue
        total += len("{}") + between + len(", ") * max(0, members - 1)
        if nodes + len(stack) > _MOST_NODES:
            return None
    return total


def _size_of_scalar(value: Any) -> int | None:
    if isinstance(value, str):
        return len(value) + 2
    if value is None or isinstance(value, bool):
        return len("false") if value is False else len("null")
    if isinstance(value, int):
        return len(str(value)) if value.bit_length() < 64 else value.bit_length() * 3 // 10 + 1
    return len(repr(value)) if isinstance(value, float) else None
