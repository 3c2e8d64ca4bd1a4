"""Whatever stands in a request or in a web configuration, it is understood or refused, and always the same way."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amptalk_otel._http import BadRequestError, Limits, Request, take_request
from amptalk_otel._protection import UnusableError
from amptalk_otel._web_config import WebConfig, read_web_config
from tests.support import examples

LIMITS = Limits(line_bytes=60, head_bytes=200, headers=4)
HASH = "$2b$04$" + "a" * 53

PIECES = st.sampled_from(
    [
        b"GET", b" ", b"/metrics", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"Host: a", b"X: y", b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"\0", b"\xff", b":", b"\t", b"x" * 61, b"Connection: close",
    ]
)  # fmt: skip
STREAMS = st.lists(PIECES | st.binary(max_size=20), max_size=30).map(b"".join)


def taken(pieces: list[bytes]) -> list[Request | int]:
    """The requests of a stream, or the status that ends it."""
    found: list[Request | int] = []
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        try:
            while (request := take_request(buffer, LIMITS)) is not None:
                found.append(request)
        except BadRequestError as error:
            return [*found, error.status.value]
    return found


@given(stream=STREAMS)
@settings(max_examples=examples(500))
def test_a_stream_is_a_row_of_requests_and_at_most_one_error_that_ends_it(stream: bytes) -> None:
    found = taken([stream])
    assert all(isinstance(one, Request) for one in found[:-1])
    assert {one for one in found if isinstance(one, int)} <= {400, 414, 431, 505}
    for one in found:
        if isinstance(one, Request):
            assert one.method.isascii()
            assert "\n" not in one.method + one.query + "".join(one.headers) + "".join(one.headers.values())


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 300), max_size=10))
@settings(max_examples=examples(500))
def test_the_requests_of_a_stream_are_the_same_however_it_is_cut(stream: bytes, cuts: list[int]) -> None:
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    whole, cut = taken([stream]), taken(pieces)
    requests = [one for one in whole if isinstance(one, Request)]
    assert [one for one in cut if isinstance(one, Request)] == requests
    assert len(cut) == len(whole)  # an error stays one, though another limit may be the first to be seen


KEYS = st.sampled_from(
    [
        "tls_server_config", "basic_auth_users", "http_server_config", "headers", "http2", "cert_file", "key_file",
        "client_auth_type", "client_ca_file", "client_ca", "client_allowed_sans", "min_version", "max_version",
        "cipher_suites", "prefer_server_cipher_suites", "curve_preferences", "alice", "X-Frame-Options", "<<",
        "? a", "",
    ]
)  # fmt: skip
SCALARS = st.sampled_from(
    [
        "TLS12", "TLS13", "true", "a.crt", "", "~", "[]", "{}", "NoClientCert", "RequireAndVerifyClientCert", "[a, b]",
        HASH, "deny", "[TLS_AES_128_GCM_SHA256]", "&a [*a]", "&b {c: *b}", "*x", "!!python/object:os.system x", "|",
    ]
) | st.text(max_size=10)  # fmt: skip
LINES = st.tuples(st.sampled_from(["", "  ", "    "]), KEYS, SCALARS).map(lambda row: f"{row[0]}{row[1]}: {row[2]}\n")
FILES = st.lists(LINES | st.text(max_size=20), max_size=12).map("".join)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web") / "web.yml"


@given(text=FILES)
@settings(
    max_examples=examples(1000), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_file_is_understood_or_refused_in_one_line_without_its_secrets(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    config, problem = None, f"{path}: "
    try:
        config = read_web_config(path)
    except UnusableError as error:
        problem = str(error)
    assert problem.startswith(f"{path}: ")
    assert "\n" not in problem
    assert HASH not in problem
    if config is not None:
        assert config != WebConfig() or "http_server_config" in text
        assert set(config.users.values()) <= {HASH.encode()}
