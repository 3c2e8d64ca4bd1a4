"""What is installed: built into a wheel as `pip install` builds it, and opened."""

from __future__ import annotations

import email.message
import email.parser
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import amptalk_otel

ROOT = Path(__file__).parents[2]
_HATCHLING = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy without its git folder and caches."""
    source, built = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info"))
    if importlib.util.find_spec("hatchling"):
        command = [sys.executable, "-c", _HATCHLING, str(built)]
    else:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(built), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def dist_info(wheel: Path) -> str:
    return f"amptalk_otel-{amptalk_otel.__version__}.dist-info"


@pytest.fixture(scope="module")
def metadata(wheel: Path, dist_info: str) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(f"{dist_info}/METADATA").decode())


# -- contents ------------------------------------------------------------------------------------------


def test_the_wheel_is_for_every_python_3_and_platform(wheel: Path) -> None:
    assert wheel.name == f"amptalk_otel-{amptalk_otel.__version__}-py3-none-any.whl"


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(names: list[str], dist_info: str) -> None:
    package = ROOT / "amptalk_otel"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(dist_info)} == expected


@pytest.mark.parametrize("name", ["py.typed", "demo/transcript.vtt", "cli.py", "__init__.py"])
def test_the_wheel_has_what_typing_and_the_demo_need(wheel: Path, name: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"amptalk_otel/{name}") == (ROOT / "amptalk_otel" / name).read_bytes()


def test_the_wheel_has_no_tests_examples_or_documentation(names: list[str], dist_info: str) -> None:
    assert {name.split("/")[0] for name in names} == {"amptalk_otel", dist_info}
    assert [name for name in names if "test" in name or "conftest" in name or name.endswith(".pyc")] == []


def test_the_wheel_has_the_license(wheel: Path, dist_info: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{dist_info}/licenses/LICENSE").decode()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


# -- metadata ------------------------------------------------------------------------------------------


def test_the_metadata_tells_license_and_pythons(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "amptalk_otel"
    assert metadata["Version"] == amptalk_otel.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    classifiers = metadata.get_all("Classifier") or []
    pythons = [text.rpartition(" ")[2] for text in classifiers if "Python :: 3." in text]
    assert pythons == ["3.10", "3.11", "3.12", "3.13"]
    assert "Typing :: Typed" in classifiers


def test_the_readme_is_the_description(metadata: email.message.Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def requirements(metadata: email.message.Message) -> dict[str | None, list[str]]:
    """The names of what is required, by extra."""
    found: dict[str | None, list[str]] = {}
    for line in metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = line.partition(";")
        extra = marker.split("==")[1].strip().strip("\"'") if "extra" in marker else None
        name = requirement.replace(">", "<").split("<")[0].strip()
        found.setdefault(extra, []).append(name)
    return found


def test_the_extras_are_there_and_the_exporters_for_otlp_only_with_them(metadata: email.message.Message) -> None:
    assert {"otlp", "auto", "all"} <= set(metadata.get_all("Provides-Extra") or [])
    required = requirements(metadata)
    assert sorted(required[None]) == [
        "opentelemetry-api",
        "opentelemetry-exporter-prometheus",
        "opentelemetry-sdk",
        "prometheus-client",
        "psutil",
    ]
    assert sorted(required["otlp"]) == [
        "opentelemetry-exporter-otlp-proto-grpc",
        "opentelemetry-exporter-otlp-proto-http",
    ]
    others = [name for extra, names in required.items() if extra not in (None, "all") for name in names]
    assert sorted(required["all"]) == sorted(others)


def test_the_command_and_the_instrumentor_are_entry_points(wheel: Path, dist_info: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{dist_info}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"amptalk-otel": "amptalk_otel.cli:main"}
    assert dict(entry_points["opentelemetry_instrumentor"]) == {
        "amptalk": "amptalk_otel.instrumentor:AmptalkInstrumentor"
    }


def test_while_changes_are_unreleased_the_version_is_not_that_of_a_release() -> None:
    _, unreleased, *rest = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    released = [re.match(r"\[([\d.]+)\] - \d{4}-\d\d-\d\d$", section.splitlines()[0]) for section in rest]
    assert unreleased.startswith("[Unreleased]\n")
    assert "- " not in unreleased or amptalk_otel.__version__ not in [match[1] for match in released if match]


# -- as it is imported ---------------------------------------------------------------------------------

_IMPORT_FROM_WHEEL = """
import sys
wheel = sys.argv[1]
sys.path[:] = [wheel] + [path for path in sys.path if path not in ("", ".")]
import amptalk_otel
assert amptalk_otel.__file__.startswith(wheel), amptalk_otel.__file__
names = {name: getattr(amptalk_otel, name) for name in amptalk_otel.__all__}
star = {}
exec("from amptalk_otel import *", star)
assert set(names) <= set(star), set(names) - set(star)
from amptalk_otel.cli import main
try:
    main(["--version"])
except SystemExit as end:
    sys.exit(end.code)
"""


def test_the_package_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_FROM_WHEEL, str(wheel)],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"amptalk-otel {amptalk_otel.__version__}\n"


def test_all_names_everything_public_once() -> None:
    public = {
        name
        for name, value in vars(amptalk_otel).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("amptalk_otel")
    }
    assert set(amptalk_otel.__all__) - {"__version__"} == public
    assert len(set(amptalk_otel.__all__)) == len(amptalk_otel.__all__)
    assert list(amptalk_otel.__all__) == sorted(amptalk_otel.__all__)


def test_the_public_names_are_those_that_were_promised() -> None:
    assert set(amptalk_otel.__all__) >= {
        "Config",
        "Instrumentation",
        "PerformanceMonitor",
        "get_monitor",
        "instrument_agent",
        "instrument_orchestrator",
        "instrument_state_manager",
        "setup_performance_monitoring",
    }


_IMPORTED = """
import sys
import amptalk_otel
heavy = {"grpc", "requests", "opentelemetry.exporter.otlp", "opentelemetry.instrumentation", "amptalk_otel.demo"}
print(sorted(heavy & set(sys.modules)))
"""


def test_importing_the_package_imports_no_exporter_that_was_not_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
