"""Passwords and tokens: who is let in, at what cost, and what is remembered."""

from __future__ import annotations

import base64
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from amptalk_otel import _credentials
from amptalk_otel._credentials import Passwords, divided, is_token, read_token, require_bcrypt
from amptalk_otel._protection import TooBusyError, UnusableError

TIMEOUT_S = 20.0


def hashed(password: bytes, cost: int = 4) -> bytes:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost))


USERS = {b"alice": hashed(b"wonderland"), "é".encode(): hashed("ü:ß".encode())}


def basic(user: str, password: str) -> bytes:
    return base64.b64encode(f"{user}:{password}".encode())


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """What bcrypt was asked."""
    asked: list[tuple[bytes, bytes]] = []
    check = bcrypt.checkpw

    def counted(password: bytes, against: bytes) -> bool:
        asked.append((password, against))
        return check(password, against)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    return asked


# -- passwords -----------------------------------------------------------------------------------------


def test_the_right_password_is_let_in_and_no_other() -> None:
    passwords = Passwords()
    assert passwords.admit(basic("alice", "wonderland"), USERS)
    assert passwords.admit(basic("é", "ü:ß"), USERS)
    for user, password in [
        ("alice", "wonderlan"), ("alice", "wonderland "), ("alice", ""), ("alice", "ü:ß"), ("Alice", "wonderland"),
        ("", ""), ("", "wonderland"), ("bob", "wonderland"), ("alice", "wonderland\0"), ("alice:", "wonderland"),
    ]:  # fmt: skip
        assert not passwords.admit(basic(user, password), USERS)


@pytest.mark.parametrize(
    "credentials", [b"", b"=", b"alice:wonderland", b"YWxpY2U=", b"YWxpY2U6d29uZGVybGFuZA", b"\xff", b"a b", b"%"]
)
def test_what_is_no_pair_in_base64_is_not_let_in(credentials: bytes, checks: list[Any]) -> None:
    assert not Passwords().admit(credentials, USERS)
    assert checks == []


def test_a_right_password_is_checked_once(checks: list[Any]) -> None:
    passwords = Passwords()
    for _ in range(5):
        assert passwords.admit(basic("alice", "wonderland"), USERS)
    assert checks == [(b"wonderland", USERS[b"alice"])]


def test_a_wrong_password_is_checked_each_time(checks: list[Any]) -> None:
    passwords = Passwords()
    for _ in range(3):
        assert not passwords.admit(basic("alice", "x"), USERS)
    assert len(checks) == 3


def test_a_user_that_is_not_there_costs_a_check_as_well(checks: list[Any]) -> None:
    passwords = Passwords()
    for user in ("bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan"):
        assert not passwords.admit(basic(user, "wonderland"), USERS)
        assert not passwords.admit(basic(user, "wonderland"), USERS)
    assert len(checks) == 16
    assert all(password == b"wonderland" for password, _ in checks)
    assert {against for _, against in checks} <= set(USERS.values())
    assert [against for _, against in checks[::2]] == [against for _, against in checks[1::2]]


def test_a_password_that_is_too_long_for_bcrypt_is_wrong_and_costs_a_check(checks: list[Any]) -> None:
    long = "x" * 72
    users = {b"alice": hashed(long.encode())}
    passwords = Passwords()
    assert passwords.admit(basic("alice", long), users)
    assert not passwords.admit(basic("alice", long + "y"), users)
    assert len(checks) == 2


@pytest.mark.parametrize("password", ["x" * 73, "a\0b"])
def test_what_bcrypt_can_not_take_is_no_other_password_either(password: str) -> None:
    users = {b"alice": hashed(b"-")}  # which is what is checked in its stead
    assert Passwords().admit(basic("alice", "-"), users)
    assert not Passwords().admit(basic("alice", password), users)


def test_what_was_right_is_forgotten_when_the_hash_changes() -> None:
    passwords = Passwords()
    assert passwords.admit(basic("alice", "wonderland"), USERS)
    assert not passwords.admit(basic("alice", "wonderland"), {b"alice": hashed(b"mirror")})
    assert not passwords.admit(basic("alice", "wonderland"), {b"bob": USERS[b"alice"]})
    assert passwords.admit(basic("alice", "wonderland"), USERS)


def test_what_is_remembered_is_bounded_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_credentials, "_REMEMBERED", 3)
    passwords = Passwords()
    users = {str(number).encode(): hashed(str(number).encode()) for number in range(6)}
    for number in range(6):
        assert passwords.admit(basic(str(number), str(number)), users)
        assert len(passwords._right) <= 3
    assert all(len(digest) == 32 for digest in passwords._right)
    assert passwords._right.keys() != Passwords()._right.keys()


def test_only_so_many_passwords_wait_for_their_check_and_those_that_are_known_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passwords = Passwords()
    assert passwords.admit(basic("alice", "wonderland"), USERS)
    go_on, at_once = threading.Event(), []

    def held_up(_password: bytes, _against: bytes) -> bool:
        at_once.append(1)
        assert go_on.wait(TIMEOUT_S)
        return False

    monkeypatch.setattr(bcrypt, "checkpw", held_up)
    with ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(passwords.admit, basic("alice", "x"), USERS) for _ in range(5)]  # one, and four that wait
        while passwords._waiting._value:
            pass
        with pytest.raises(TooBusyError):
            passwords.admit(basic("alice", "x"), USERS)
        assert passwords.admit(basic("alice", "wonderland"), USERS)
        assert sum(at_once) <= 1
        go_on.set()
        assert [task.result(TIMEOUT_S) for task in tasks] == [False] * 5
    assert not passwords.admit(basic("alice", "x"), USERS)


def test_a_password_that_comes_many_times_at_once_is_checked_once(checks: list[Any]) -> None:
    passwords = Passwords()
    with passwords._turn, ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(passwords.admit, basic("alice", "wonderland"), USERS) for _ in range(5)]
        while passwords._waiting._value:
            pass
        passwords._turn.release()
        assert [task.result(TIMEOUT_S) for task in tasks] == [True] * 5
        passwords._turn.acquire()
    assert len(checks) == 1


def test_without_bcrypt_the_message_has_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_bcrypt()
    nothing: Any = None
    monkeypatch.setitem(sys.modules, "bcrypt", nothing)
    with pytest.raises(UnusableError, match=r"^bcrypt is not installed; run: pip install 'amptalk_otel\[web\]'$"):
        require_bcrypt()


# -- headers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic abc", ("basic", b"abc")),
        ("bEARER  abc ", ("bearer", b"abc")),
        ("", ("", b"")),
        ("Bearer", ("bearer", b"")),
        ("Bearer a b", ("bearer", b"a b")),
        ("Bearer \xff", ("bearer", b"\xff")),
    ],
)
def test_a_header_is_a_scheme_and_credentials(header: str, found: tuple[str, bytes]) -> None:
    assert divided(header) == found


# -- tokens --------------------------------------------------------------------------------------------


def test_a_token_is_known_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b" s3cret-._~+/09AZ==\r\n")
    digest = read_token(path)
    assert b"s3cret" not in digest
    assert is_token(b"s3cret-._~+/09AZ==", digest)
    for wrong in (b"", b"s3cret", b"s3cret-._~+/09AZ== ", b"S3cret-._~+/09AZ=="):
        assert not is_token(wrong, digest)


@pytest.mark.parametrize("content", [b"", b" \n", b"a b", b"a\nb", b"caf\xc3\xa9", b"=", b"a" * 4097])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(
        UnusableError, match=r"TOKEN_FILE has no bearer token: letters, digits and \._~\+/- in one line$"
    ):
        read_token(path)


@pytest.mark.parametrize(("length", "reason"), [(10, "No such file or directory"), (400, "File name too long")])
def test_a_token_in_place_of_its_file_is_refused_and_not_shown(tmp_path: Path, length: int, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        read_token(tmp_path / ("s3cret" * length))
    assert str(caught.value) == f"the file of AMPTALK_OTEL_PROMETHEUS_BEARER_TOKEN_FILE can't be read ({reason})"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_token_is_not_waited_for_at_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(UnusableError, match=r"can't be read \(Not a regular file\)$"):
        read_token(tmp_path / "token")
