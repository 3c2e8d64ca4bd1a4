"""The generated pages are up to date, and what they say about names and settings is so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import amptalk_otel
from amptalk_otel import Config
from amptalk_otel._catalogue import CATALOGUE
from amptalk_otel.config import SETTINGS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "generate_docs.py"
DOCS = ROOT / "docs"
PAGES = [DOCS / "configuration.md", DOCS / "metrics.md"]

VARIABLES = {variable for setting in SETTINGS for variable in setting.variables}


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found


# -- the script ----------------------------------------------------------------------------------------


def test_the_pages_are_what_the_script_writes() -> None:
    done = generate("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_that_was_changed_by_hand_is_noticed_and_mended(page: Path, tmp_path: Path) -> None:
    for other in PAGES:
        shutil.copy(other, tmp_path)
    copy = tmp_path / page.name
    copy.write_text(copy.read_text(encoding="utf-8").replace("metrics", "meters", 1), encoding="utf-8")
    done = generate("--check", "--folder", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "meters" in done.stderr
    assert done.stderr.endswith("run: python scripts/generate_docs.py\n")
    done = generate("--folder", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"wrote {copy}\n")
    assert copy.read_bytes() == page.read_bytes()


def test_missing_pages_are_noticed_and_written(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    assert generate("--check", "--folder", str(folder)).returncode == 1
    assert not folder.exists()
    assert generate("--folder", str(folder)).returncode == 0
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [page.read_bytes() for page in PAGES]


# -- what the pages say --------------------------------------------------------------------------------


def test_every_setting_has_its_row() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    for setting in SETTINGS:
        variables = ", ".join(f"`{variable}`" for variable in setting.variables)
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {variables} | `{setting.field}` |")]
        assert row.count(" | ") == 3


def test_every_metric_has_its_row() -> None:
    text = PAGES[1].read_text(encoding="utf-8")
    for metric in CATALOGUE:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{metric.name}` | `")]
        assert row.endswith(f"| {metric.description} |")


@pytest.mark.parametrize("page", [PAGES[0], ROOT / "README.md"], ids=lambda page: page.name)
def test_every_variable_that_is_named_is_a_setting(page: Path) -> None:
    named = set(re.findall(r"\b(?:AMPTALK_)?OTEL_[A-Z_]+[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named
    assert named <= VARIABLES


@pytest.mark.parametrize("page", [PAGES[1], ROOT / "README.md"], ids=lambda page: page.name)
def test_every_metric_that_is_named_exists(page: Path) -> None:
    text = PAGES[1].read_text(encoding="utf-8")
    names = dict(re.findall(r"^\| `([a-z._]+)` \| `([a-z_]+)` \|", text, re.MULTILINE))
    assert list(names) == [metric.name for metric in CATALOGUE]
    known = set(names.values())
    known |= {f"{name}_bucket" for name in known if name.endswith(("_seconds", "_bytes"))}
    words = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:amptalk_(?!otel\b)|process_(?!histogram\b)|system_)[a-z_]+", words))
    assert named
    assert named <= known
    dotted = set(re.findall(r"`((?:amptalk|process|system)\.[a-z._]+)`", words))
    assert dotted <= set(names)


@pytest.mark.parametrize(
    "block", [block for page in (PAGES[0], ROOT / "README.md") for block in blocks(page, "console")]
)
def test_the_settings_of_every_recipe_are_good(block: str) -> None:
    settings = re.findall(r"([A-Z_]+)=(\S+)", block)
    for variable, value in settings:
        assert variable in VARIABLES
        assert Config.from_env({variable: value}, strict=True) != Config()


def test_the_recipes_are_more_than_none() -> None:
    assert len(re.findall(r"^\$ export ", "".join(blocks(PAGES[0], "console")), re.MULTILINE)) >= 10


def test_the_python_example_does_what_its_comments_say(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(PAGES[0], "python")
    made: list[Config] = []
    given: list[Config | None] = []

    class Names(dict[str, Any]):
        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, value)
            if name == "config":
                made.append(value)

    def instrument(_orchestrator: object, config: Config | None = None) -> None:
        given.append(config)

    monkeypatch.setattr(amptalk_otel, "instrument_orchestrator", instrument)
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "bot")
    exec(compile(example, "docs/configuration.md", "exec"), {"orchestrator": object()}, Names())
    assert made == [
        Config(prometheus_port=9464),
        Config(prometheus_port=9464, service_name="bot"),
        Config(prometheus_port=1, service_name="bot"),
    ]
    assert given == made[-1:]


def test_the_warnings_of_the_example_are_those_that_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    (example,) = blocks(PAGES[0], "text")
    environ: Mapping[str, str] = {
        "OTEL_EXPORTER_PROMETHEUS_PORT": "eight",
        "OTEL_METRICS_EXPORTER": "prometheus,jaeger",
        "OTEL_EXPORTER_OTLP_HEADERS": "Bearer TOKEN",
    }
    Config.from_env(environ)
    assert example.splitlines() == caplog.messages
    assert "TOKEN" not in example


def test_no_line_of_prose_is_too_long_to_read() -> None:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            assert line.startswith(("|", "<!--")) or len(line) <= 130
