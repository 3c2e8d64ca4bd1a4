"""Each kind of setting: which texts it takes, what it makes of them, and what it says about the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from amptalk_otel import _setting_types as types

NOT_UTF8 = "caf\udce9"


def refused(parse: Callable[[str], Any], text: str) -> str:
    """What `parse` says about a text that it does not take."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("TRUE", True), ("False", False), ("false", False)])
def test_booleans_are_true_or_false_in_any_case(text: str, value: bool) -> None:
    assert types.boolean(text) is value


@pytest.mark.parametrize("text", ["1", "0", "yes", "on", "truee", "t", NOT_UTF8])
def test_nothing_else_is_a_boolean(text: str) -> None:
    assert refused(types.boolean, text) == "must be true or false"


@pytest.mark.parametrize("text", ["a", "two words", "café", "x" * 5000])
def test_a_text_is_taken_as_it_is(text: str) -> None:
    assert types.text(text) == text


def test_a_text_that_no_exporter_can_encode_is_refused() -> None:
    assert refused(types.text, NOT_UTF8) == "must be UTF-8"


def test_an_empty_text_is_refused() -> None:
    assert refused(types.text, "") == "must be a text that is not empty"


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:4318",
        "https://collector.example.com/otlp/v1/metrics?tenant=a",
        "HTTP://collector",
        "http://[::1]:4318",
        "localhost:4317",
        "10.0.0.1:4317",
        "collector",
        "http://user:password@collector",
    ],
)
def test_urls_and_bare_host_names_are_endpoints(text: str) -> None:
    assert types.url(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "://host",
        "ftp://host",
        "unix:///tmp/socket",
        "http://host:99999",
        "http://host:0",
        "http://host:port",
        "http://two words",
        "http://host/\tx",
        "http://[::1",
        "?",
    ],
)
def test_other_texts_are_no_endpoints(text: str) -> None:
    assert refused(types.url, text) == "must be a URL such as http://localhost:4318"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:4318/v1", "http://host:4318/v1"),
        ("host:4317", "host:4317"),
        ("https://user:secret@host/v1", "https://(hidden)@host/v1"),
        ("user:secret@host:4317", "(hidden)@host:4317"),
        ("http://user:se/cr@et@host", "http://(hidden)@host"),
        ("http://user:a\nb@host", "http://(hidden)@host"),
        ("https://host/v1?api_key=secret#part", "https://host/v1?(hidden)"),
        ("https://host/v1#secret\nx", "https://host/v1#(hidden)"),
        ("user:secret@host?key=secret", "(hidden)@host?(hidden)"),
        ("https://host?key=a@b", "https://(hidden)@b"),
        ("https://host?", "https://host?"),
    ],
)
def test_what_stands_before_an_at_sign_in_an_endpoint_and_its_query_are_hidden(url: str, shown: str) -> None:
    assert types.without_credentials(url) == shown


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=b", {"a": "b"}),
        (" a = b , c = d ", {"a": "b", "c": "d"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("a=b,,c=d,", {"a": "b", "c": "d"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=x%2Cy%3Dz%20", {"a": "x,y=z "}),
        ("k%C3%A9y=v%C3%A9", {"kéy": "vé"}),
        (",", {}),
    ],
)
def test_pairs_are_separated_by_commas_and_percent_encoded(text: str, value: dict[str, str]) -> None:
    assert types.pairs(text) == value


@pytest.mark.parametrize("text", ["a", "a=b,c", "=b", " =b", "a=1,=2"])
def test_pairs_are_refused_as_a_whole_when_one_is_wrong(text: str) -> None:
    assert refused(types.pairs, text) == "must be key=value pairs separated by commas"


def test_pairs_that_no_exporter_can_encode_are_refused() -> None:
    assert refused(types.pairs, f"a={NOT_UTF8}") == "must be UTF-8"
    assert refused(types.pairs, f"{NOT_UTF8}=a") == "must be UTF-8"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=b", {"a": "b"}),
        ("Authorization=Basic%20YTpi%3D%3D", {"Authorization": "Basic YTpi=="}),
        ("x!#$%25&'*+-.^_`|~0=%21 ~", {"x!#$%&'*+-.^_`|~0": "! ~"}),
        ("a=,", {"a": ""}),
    ],
)
def test_headers_are_pairs(text: str, value: dict[str, str]) -> None:
    assert types.headers(text) == value


@pytest.mark.parametrize(
    "text", ["a%20b=c", "a%3A=b", "%00=a", "%C3%A9=a", "a=%C3%A9", "a=b%0Ac", "a=b%0D", "a=%00", "a=%7F", "a=%20b"]
)
def test_pairs_that_http_can_not_send_are_no_headers(text: str) -> None:
    assert types.pairs(text)
    assert refused(types.headers, text) == (
        "must be names and values of HTTP headers, which are ASCII and have no control characters"
    )
    with pytest.raises(ValueError, match="must be names and values of HTTP headers"):
        types.check(types.headers, types.pairs(text))


def test_headers_that_are_no_pairs_are_refused_as_such() -> None:
    assert refused(types.headers, "a") == "must be key=value pairs separated by commas"


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("8000", 8000), ("65535", 65535), ("0000008000", 8000)])
def test_ports_are_whole_numbers_up_to_65535(text: str, value: int) -> None:
    assert types.port(text) == value


@pytest.mark.parametrize("text", ["65536", "-1", "+1", "80.0", "8000/tcp", "0x50", "٨٠", "²", "1_0", "9" * 5000, "1 2"])
def test_nothing_else_is_a_port(text: str) -> None:
    assert refused(types.port, text) == "must be a port number from 0 to 65535"


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10.0), ("0.001", 0.001), ("1e3", 1000.0), ("31536000", 31_536_000.0)]
)
def test_seconds_are_numbers_from_a_thousandth(text: str, value: float) -> None:
    assert types.seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("10", 0.01), ("1", 0.001), ("60000", 60.0), ("31536000000", 31_536_000.0)]
)
def test_milliseconds_become_seconds(text: str, value: float) -> None:
    assert types.milliseconds(text) == value


TIMES = {
    types.seconds: ("0.00099", "from a millisecond to a year"),
    types.milliseconds: ("0.99", "from a millisecond to a year"),
    types.interval: ("9.99", "from 10 milliseconds to a year"),
    types.linger: ("0", "above 0 and at most a year"),
}


@pytest.mark.parametrize("parse", TIMES)
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "31536000001", "ten", "1s", ""])
def test_nothing_else_is_a_time(parse: Callable[[str], float], text: str) -> None:
    too_little, limits = TIMES[parse]
    assert refused(parse, text) == refused(parse, too_little) == f"must be a number {limits}"


def test_an_interval_is_10_milliseconds_at_least_and_what_lingers_may_go_at_once() -> None:
    assert (types.interval("10"), types.linger("1e-9")) == (0.01, 1e-12)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("100", 100), ("1000000000", 1_000_000_000), ("007", 7)])
def test_counts_are_whole_numbers_from_0(text: str, value: int) -> None:
    assert types.count(text) == value


@pytest.mark.parametrize("text", ["-1", "1.0", "1000000001", "many", "9" * 5000, "٣", "1_0"])
def test_nothing_else_is_a_count(text: str) -> None:
    assert refused(types.count, text) == "must be a whole number from 0 to 1,000,000,000"


@pytest.mark.parametrize(("text", "value"), [("grpc", "grpc"), ("GRPC", "grpc"), ("Http/Protobuf", "http/protobuf")])
def test_a_choice_is_taken_in_any_case(text: str, value: str) -> None:
    assert types.choice("http/protobuf", "grpc")(text) == value


@pytest.mark.parametrize("text", ["http", "grpc,http/protobuf", "grpc "])
def test_a_choice_lists_what_there_is_to_choose(text: str) -> None:
    assert refused(types.choice("http/protobuf", "grpc"), text) == "must be one of http/protobuf, grpc"


SOME = types.choices("prometheus", "otlp", "none")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("otlp", ("otlp",)),
        ("otlp,prometheus", ("otlp", "prometheus")),
        (" OTLP , prometheus ,", ("otlp", "prometheus")),
        ("otlp,otlp", ("otlp",)),
        ("none", ("none",)),
    ],
)
def test_choices_keep_their_order_and_come_once(text: str, value: tuple[str, ...]) -> None:
    assert SOME(text) == value


@pytest.mark.parametrize(
    ("text", "usable", "message"),
    [
        ("otlp,zipkin", ("otlp",), "must be some of prometheus, otlp, none"),
        ("zipkin,none", ("none",), "must be some of prometheus, otlp, none"),
        ("none,otlp", ("otlp",), "none goes alone"),
    ],
)
def test_choices_that_are_partly_wrong_tell_the_usable_ones(text: str, usable: tuple[str, ...], message: str) -> None:
    with pytest.raises(types.PartlyUsableError) as caught:
        SOME(text)
    assert (caught.value.usable, str(caught.value)) == (usable, message)


@pytest.mark.parametrize("text", ["zipkin", ",", "zipkin,jaeger"])
def test_choices_of_which_none_is_known_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be some of prometheus, otlp, none") as caught:
        SOME(text)
    assert not isinstance(caught.value, types.PartlyUsableError)


@pytest.mark.parametrize(
    ("text", "value"),
    [("core", ("core",)), (" a.b , c_1.d,", ("a.b", "c_1.d")), ("größe", ("größe",)), (",", ())],
)
def test_names_are_dotted_and_separated_by_commas(text: str, value: tuple[str, ...]) -> None:
    assert types.names(text) == value


@pytest.mark.parametrize("text", ["a-b", "a..b", ".a", "a.", "a b", "1a", "a,b/c", NOT_UTF8])
def test_nothing_else_is_a_name(text: str) -> None:
    assert refused(types.names, text) == "must be dotted module names separated by commas"


@pytest.mark.parametrize(
    ("text", "value"), [("secret-*,", ("secret-*",)), (" a , ,b?,", ("a", "b?")), (",", ()), (" , ", ())]
)
def test_patterns_are_separated_by_commas_and_blank_ones_are_none(text: str, value: tuple[str, ...]) -> None:
    assert types.patterns(text) == value


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        (types.names, ("a.b",)),
        (types.boolean, True),
        (types.text, "a"),
        (types.url, "http://host"),
        (types.pairs, {"a": "b"}),
        (types.port, 0),
        (types.seconds, 1),
        (types.milliseconds, 0.001),
        (types.interval, 0.01),
        (types.linger, 1e-9),
        (types.headers, {"a": "b"}),
        (types.patterns, ("a*",)),
        (types.count, 0),
        (types.choice("a", "b"), "b"),
        (types.choices("a", "b"), ("b", "a")),
    ],
)
def test_every_kind_checks_values_given_in_python(parse: Callable[[str], Any], value: Any) -> None:
    types.check(parse, value)
    with pytest.raises(ValueError, match="must be"):
        types.check(parse, object())
    with pytest.raises(ValueError, match="must be"):
        types.check(parse, None)
