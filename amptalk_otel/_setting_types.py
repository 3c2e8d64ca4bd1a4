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
    """A URL as it may be shown: what stands before an `@` may be a password, and a query may have a key."""
    text = re.sub(r"^(.*?//)?.*@", r"\1(hidden)@", text, flags=re.DOTALL)
    return re.sub(r"([?#]).+", r"\1(hidden)", text, flags=re.DOTALL)


def has_scheme(url: str) -> bool:
    """Whether a URL has a scheme, `http` or `https`."""
    return url.lower().startswith(("http://", "https://"))


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


# https://www.rfc-editor.org/rfc/rfc9110#section-5; `requests` takes no value that begins with a blank.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"(?:[!-~][ -~]*)?")


def _check_headers(value: Any) -> None:
    _check_pairs(value)
    if not all(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(member) for name, member in value.items()):
        raise ValueError("must be names and values of HTTP headers, which are ASCII and have no control characters")


@_with_check(_check_headers)
def headers(text: str) -> dict[str, str]:
    """Pairs, of which each is a header of HTTP."""
    found = pairs(text)
    _check_headers(found)
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


def _time(per_second: float, least_s: float, limits: str) -> Callable[[str], float]:
    """A time in units of which so many are a second, as a number of seconds."""

    def check_time(value: Any) -> None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not least_s <= value <= 31_536_000:
            raise ValueError(f"must be a number {limits}")

    @_with_check(check_time)
    def parse_time(text: str) -> float:
        try:
            value = float(text) / per_second
        except ValueError:
            value = math.nan
        check_time(value)
        return value

    return parse_time


_TIMES = "from a millisecond to a year"
seconds = _time(1.0, 0.001, _TIMES)
milliseconds = _time(1000.0, 0.001, _TIMES)
interval = _time(1000.0, 0.01, "from 10 milliseconds to a year")  # a thread that pushes more often does nothing else
linger = _time(1000.0, math.ulp(0.0), "above 0 and at most a year")  # what ends at once is no harm


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
    texts = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    if not texts or not all(map(_is_dotted, value)):
        raise ValueError("must be a tuple of str, each a dotted module name")


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


@_with_check(_check_names)
def names(text: str) -> tuple[str, ...]:
    """Dotted module names, comma-separated."""
    value = tuple(filter(None, (member.strip() for member in text.split(","))))
    if not all(map(_is_dotted, value)):
        raise ValueError("must be dotted module names separated by commas")
    return value


def _check_patterns(value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(pattern, str) and pattern.strip() for pattern in value):
        raise ValueError("must be a tuple of str, each a shell pattern")
    for pattern in value:
        _check_text(pattern)


@_with_check(_check_patterns)
def patterns(text: str) -> tuple[str, ...]:
    """Shell patterns, comma-separated."""
    value = tuple(filter(None, (member.strip() for member in text.split(","))))
    _check_patterns(value)
    return value
