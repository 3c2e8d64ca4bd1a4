"""The size of payloads, found cheaply."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptalk_otel import _payload
from amptalk_otel._payload import payload_size

SMALL_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@given(SMALL_JSON)
def test_the_size_of_a_small_payload_is_exact(payload: Any) -> None:
    assert payload_size(payload) == len(json.dumps(payload))


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "x" * 100_000},
        {"samples": ["y" * 1_000 for _ in range(500)]},
        {"nested": {f"key {number}": {"value": "z" * 200} for number in range(300)}},
    ],
)
def test_the_size_of_a_large_payload_of_plain_text_is_nearly_exact(payload: dict[str, Any]) -> None:
    exact = len(json.dumps(payload))
    assert exact > 16_384
    size = payload_size(payload)
    assert size is not None
    assert abs(size - exact) < 0.05 * exact


def test_a_large_payload_is_not_serialised(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_payload: Any) -> str:
        raise AssertionError

    monkeypatch.setattr(json, "dumps", never)
    assert payload_size({"audio": "x" * 50_000_000}) == 50_000_000 + len('{"audio": ""}')


def self_containing() -> list[Any]:
    payload: list[Any] = []
    payload.append(payload)
    return payload


@pytest.mark.parametrize(
    "payload",
    [
        list(range(3_000)),
        {str(number): number for number in range(3_000)},
        [[[number] * 30] for number in range(100)],
        {"when": datetime.now(timezone.utc)},
        b"bytes",
        {1, 2},
        {(1, 2): "a tuple for a key"},
        object(),
        self_containing(),
    ],
    ids=["long list", "large dict", "wide tree", "date", "bytes", "set", "tuple key", "object", "self"],
)
def test_what_has_too_many_values_or_is_no_json_has_no_size(payload: Any) -> None:
    assert payload_size(payload) is None


def test_a_deep_payload_does_not_break_anything() -> None:
    payload: list[Any] = []
    for _ in range(1_500):
        payload = [payload]
    assert payload_size(payload) in (None, len("[") * 1_501 * 2)


class Lazy(Mapping[str, int]):
    """A mapping that is no dict, which `json` does not take."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def test_a_mapping_that_json_does_not_take_has_no_size() -> None:
    assert payload_size(Lazy()) is None


@pytest.mark.parametrize(
    "payload",
    [{}, [], {"a": [1, -2.5, None, True, False, "x"], "b": {"c": {}}}, [0.1] * 900, {1: 2, None: 3}, "text", 2**62],
)
def test_adding_up_the_parts_is_exact_where_nothing_is_escaped(payload: Any) -> None:
    assert _payload._added_up(payload) == len(json.dumps(payload))
