"""The soak can be run, and can fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.soak import __main__ as soak

ROOT = Path(__file__).parents[2]
A_GLANCE = 0.1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AMPTALK_OTEL_P"))}
    return subprocess.run(
        [sys.executable, "-m", "tests.soak", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_a_short_soak_is_flat() -> None:
    done = run(str(A_GLANCE))
    head, *lines = done.stdout.splitlines()
    assert head.split() == (
        "s RSS MB fds threads series objects unaccounted agents messages restarts".split()  # noqa: SIM905 - as printed
    )
    assert len(lines) > 10
    assert lines[-2].startswith("ended: ")
    assert "the page differs by 0, unaccounted 0" in lines[-2]
    assert (lines[-1], done.returncode) == ("all flat", 0), done.stderr


def test_help_has_examples() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "tox -e soak -- 10 " in done.stdout


def test_a_time_that_is_none_is_an_error() -> None:
    done = run("-1")
    assert done.returncode == 2
    assert "minutes must be more than 0" in done.stderr


@pytest.mark.usefixtures("lenient_guard")
def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "find_server", lambda _name: None)
    replace = soak.Churn._replace_one
    with ExitStack() as leaked:

        async def leaking(churn: soak.Churn) -> None:
            leaked.enter_context(socket.socket())
            await replace(churn)

        monkeypatch.setattr(soak.Churn, "_replace_one", leaking)
        found = soak.soak(A_GLANCE, 0.2)
    assert [sentence.split(":")[0] for sentence in found] == ["file_descriptors grows"], found


@pytest.mark.usefixtures("lenient_guard")
def test_a_message_that_is_not_counted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "find_server", lambda _name: None)
    scrape = soak.scrape
    monkeypatch.setattr(soak, "unaccounted", lambda handle: int(bool(scrape(handle))))
    monkeypatch.setattr(soak, "missing", lambda _churn, _page: -2)
    assert soak.soak(0.02, 0.2)[:2] == ["unaccounted at the end: 1", "the page differs by -2 messages at the end"]


@pytest.mark.parametrize(
    ("values", "grows"),
    [
        ([10.0] * 9, False),
        ([10.0, 10.0, 10.0, 30.0, 30.0, 30.0, 10.0, 10.0, 10.0], False),  # comes and goes
        ([10.0, 10.0, 10.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0], False),  # a step
        ([float(value) for value in range(10, 19)], True),
    ],
)
def test_what_rises_from_third_to_third_grows(values: list[float], *, grows: bool) -> None:
    assert (soak.growth("threads", values) is not None) is grows


def test_one_unaccounted_message_is_one_too_many() -> None:
    assert soak.growth("unaccounted", [0.0, 1.0, 0.0]) == "unaccounted: 1 at one moment"
    assert soak.growth("unaccounted", [0.0, 0.0, 0.0]) is None
