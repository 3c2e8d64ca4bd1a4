"""Kinds of settings: each turns a variable's text into a value, or says in one clause what would be right."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")


class PartlyUsableError(ValueError):
    """A list of which some members can be used."""

    def __init__(self, message: str, usable: Any) -> None:
        super().__init__(message)
        self.usable = usable


def check(parse: Callable[[str], Any], value: Any) -> None:
    """Raise ValueError unless `value`, given in Python, is one that `parse` could have made."""
    checker = getattr(parse, "check", None)
    if checker is not None:
        checker(value)


def _with_check(checker: Callable[[Any], None]) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    def attach(parse: Callable[[str], T]) -> Callable[[str], T]:
        parse.check = checker  # type: ignore[attr-defined]
        return parse

    return attach


def _check_boolean(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError("must be True or False")  # noqa: TRY004 - one kind of error for every bad setting


@_with_check(_check_boolean)
def boolean(text: str) -> bool:
    """`true` or `false` in any case, as the specification has it."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _check_text(value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    _check_encodable(value)


def _check_encodable(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:  # a variable that is not UTF-8 would make the whole page fail
        raise ValueError("must be UTF-8") from None


@_with_check(_check_text)
def text(text: str) -> str:
    _check_text(text)
    return text


def _check_url(value: Any) -> None:
    _check_text(value)
    try:
        parts = urlsplit(value if "//" in value else f"//{value}")
        port = parts.port
    except ValueError:
        raise ValueError("must be a URL such as http://localhost:4318") from None
    if not parts.hostname or port == 0 or parts.scheme not in ("", "http", "https") or any(c.isspace() for c in value):
        raise ValueError("must be a URL such as http://localhost:4318")


def without_credentials(text: str) -> str:
    """A URL as it may be shown: what stands before an `@` may be a password."""
    return re.sub(r"^(.*?//)?.*@", r"\1(hidden)@", text, flags=re.DOTALL)


@_with_check(_check_url)
def url(text: str) -> str:
    _check_url(text)
    return text


def _check_pairs(value: Any) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and key and isinstance(member, str) for key, member in value.items()
    ):
        raise ValueError("must be a mapping from texts to texts")
    _check_encodable("".join((*value.keys(), *value.values())))


@_with_check(_check_pairs)
def pairs(text: str) -> dict[str, str]:
    """`key=value,key=value`; keys and values percent-encoded (W3C Baggage)."""
    found: dict[str, str] = {}
    for member in filter(None, (member.strip() for member in text.split(","))):
        key, equals, value = member.partition("=")
        if not equals or not key.strip():
            raise ValueError("must be key=value pairs separated by commas")
        found[unquote(key.strip())] = unquote(value.strip())
    _check_pairs(found)
    return found


def _check_port(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise ValueError("must be a port number from 0 to 65535")


@_with_check(_check_port)
def port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        raise ValueError("must be a port number from 0 to 65535")
    value = int(text)
    _check_port(value)
    return value


def _check_seconds(value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 31_536_000 or not math.isfinite(value):
        raise ValueError("must be a number above 0 and at most a year")


@_with_check(_check_seconds)
def seconds(text: str) -> float:
    value = _number(text)
    _check_seconds(value)
    return value


@_with_check(_check_seconds)
def milliseconds(text: str) -> float:
    """A time in milliseconds, as a number of seconds."""
    value = _number(text) / 1000.0
    _check_seconds(value)
    return value


def _check_ratio(value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")


@_with_check(_check_ratio)
def ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number from 0 to 1") from None
    _check_ratio(value)
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number above 0 and at most a year") from None


def _check_count(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1_000_000_000:
        raise ValueError("must be a whole number from 0 to 1,000,000,000")


@_with_check(_check_count)
def count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        raise ValueError("must be a whole number from 0 to 1,000,000,000")
    value = int(text)
    _check_count(value)
    return value


def choice(*known: str) -> Callable[[str], str]:
    """One of `known`, in any case, as the specification has it."""
    listed = ", ".join(known)

    def check_choice(value: Any) -> None:
        if value not in known:
            raise ValueError(f"must be one of {listed}")

    @_with_check(check_choice)
    def parse_choice(text: str) -> str:
        check_choice(text.lower())
        return text.lower()

    parse_choice.known = known  # type: ignore[attr-defined]
    return parse_choice


def choices(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Some of `known`, in any case, comma-separated; `none` only alone."""
    listed = ", ".join(known)

    def check_choices(value: Any) -> None:
        if not isinstance(value, tuple) or not value or not all(member in known for member in value):
            raise ValueError(f"must be a tuple of some of {listed}")
        if len(set(value)) < len(value):
            raise ValueError("must name each once")
        if "none" in value and len(value) > 1:
            raise ValueError("none goes alone")

    @_with_check(check_choices)
    def parse_choices(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(filter(None, (member.strip() for member in text.lower().split(",")))))
        usable = tuple(member for member in given if member in known)
        if "none" in usable and len(usable) > 1:
            usable = tuple(member for member in usable if member != "none")
            raise PartlyUsableError("none goes alone", usable)
        if usable != given and usable:
            raise PartlyUsableError(f"must be some of {listed}", usable)
        if not usable:
            raise ValueError(f"must be some of {listed}")
        return usable

    return parse_choices


def _check_names(value: Any) -> None:
    dotted = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    if not dotted or not all(part.isidentifier() for name in value for part in name.split(".")):
        raise ValueError("must be dotted module names separated by commas")


@_with_check(_check_names)
def names(text: str) -> tuple[str, ...]:
    """Dotted module names, comma-separated."""
    value = tuple(filter(None, (member.strip() for member in text.split(","))))
    _check_names(value)
    return value


def _check_patterns(value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(pattern, str) and pattern.strip() for pattern in value):
        raise ValueError("must be shell patterns separated by commas")
    for pattern in value:
        _check_text(pattern)


@_with_check(_check_patterns)
def patterns(text: str) -> tuple[str, ...]:
    """Shell patterns, comma-separated."""
    value = tuple(member.strip() for member in text.split(","))
    _check_patterns(value)
    return value
