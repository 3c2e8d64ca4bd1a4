"""Which values of attributes have series of their own, decided once for all who count in the same series."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

from amptalk_otel._labels import MAX_DISTINCT, OTHER


class Names:
    """The values that are told apart: the first MAX_DISTINCT of each attribute. May be asked from any thread.

    Several agents may be one series, and what one of them counted is added to what others did when it leaves. If each
    decided for itself which values are `_OTHER`, counts would go from one series to another, which falls.
    """

    __slots__ = ("__weakref__", "_others", "_types")

    def __init__(self) -> None:
        self._types: set[str] = set()
        self._others: dict[Hashable, set[Hashable]] = {}  # of all other attributes, most of which never get any

    def has_place(self, of: Hashable, value: Hashable) -> bool:
        """Whether a value of the attribute `of` is told apart, from now on and for ever."""
        known = self._others.get(of)
        return _has_place(self._others.setdefault(of, set()) if known is None else known, value)

    def message_type(self, value: str) -> str:
        """The type as which a message of this type is counted."""
        return value if _has_place(self._types, value) else OTHER

    def state_operation(self, storage: str, operation: str, error_type: str | None) -> tuple[str, str | None]:
        """The operation and error as which an operation is counted. One without an error never has one."""
        is_told = self.has_place(("state.operation", storage), (operation, error_type))
        return operation, error_type if is_told or error_type is None else OTHER


def _has_place(known: set[Any], value: Hashable) -> bool:
    """Takes no lock: where two threads ask at the same time, there may be one value more."""
    if len(known) < MAX_DISTINCT:
        known.add(value)
    return value in known


_names: weakref.WeakValueDictionary[Hashable, Names] = weakref.WeakValueDictionary()


def names_of(series: Hashable) -> Names:
    """Those of all who count in `series`, on whichever page. Called under the lock of whoever watches."""
    return _names.setdefault(series, Names())
