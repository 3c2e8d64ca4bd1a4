#!/usr/bin/env python3
"""Install the real servers that the integration tests talk to.

Prometheus, promtool and VictoriaMetrics come from Debian's stable packages, through an apt configuration of
this script's own: the machine's packages and settings stay as they are. The OpenTelemetry Collector is built
from pinned Go modules. Everything lands in a cache folder outside the repository; nothing else is written,
apart from the caches of the go command.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEBIAN_SUITE = "trixie"
DEBIAN_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
# A source that offers one of these suites with the component `main` is a mirror of Debian itself.
DEBIAN_SUITES = frozenset(
    {"bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"},
)

# The modules of one Collector release carry two numbers: v0.N for what may still change, v1.M for what is stable.
# 0.155.0 and 1.61.0 are one release, and the contrib modules of that release share its v0.N.
COLLECTOR = "v0.155.0"
COLLECTOR_STABLE = "v1.61.0"
CORE = "go.opentelemetry.io/collector"
CONTRIB = "github.com/open-telemetry/opentelemetry-collector-contrib"
COLLECTOR_PARTS: dict[str, tuple[str, ...]] = {
    "receivers": (f"{CORE}/receiver/otlpreceiver {COLLECTOR}",),
    "processors": (
        f"{CORE}/processor/batchprocessor {COLLECTOR}",
        f"{CORE}/processor/memorylimiterprocessor {COLLECTOR}",
    ),
    "exporters": (
        f"{CORE}/exporter/debugexporter {COLLECTOR}",
        f"{CORE}/exporter/otlpexporter {COLLECTOR}",
        f"{CORE}/exporter/otlphttpexporter {COLLECTOR}",
        f"{CONTRIB}/exporter/fileexporter {COLLECTOR}",
        f"{CONTRIB}/exporter/prometheusexporter {COLLECTOR}",
    ),
    "providers": (
        f"{CORE}/confmap/provider/envprovider {COLLECTOR_STABLE}",
        f"{CORE}/confmap/provider/fileprovider {COLLECTOR_STABLE}",
        f"{CORE}/confmap/provider/yamlprovider {COLLECTOR_STABLE}",
    ),
}
COLLECTOR_GO = (1, 25)  # the lowest Go that this release's modules accept

LOCK_TIMEOUT_S = 1800.0
UPDATE_TIMEOUT_S = 180.0
DOWNLOAD_TIMEOUT_S = 600.0
BUILD_TIMEOUT_S = 1500.0
SHORT_TIMEOUT_S = 60.0
HEARTBEAT_S = 15.0

EXAMPLES = """\
examples:
  python scripts/install_test_servers.py
      install whatever is missing; a second run only says where things are
  python scripts/install_test_servers.py --only prometheus,promtool
      only these two, without the Collector, which takes minutes to build
  AMPTALK_OTEL_TEST_CACHE=~/test-servers python scripts/install_test_servers.py
      another cache folder; give the tests the same variable

The cache folder is --cache, else $AMPTALK_OTEL_TEST_CACHE, else $XDG_CACHE_HOME/amptalk-otel-tests,
else ~/.cache/amptalk-otel-tests. It takes about 220 MiB, and the caches
of the go command grow by about 1.6 GiB while the Collector is built. Exit code: 0 installed, 2 not possible here.
"""


class CannotInstallError(Exception):
    """Something can't be installed here; its text is one plain sentence."""


@dataclass(frozen=True)
class Server:
    """One program to install: its name for `--only`, its file in `bin/`, and what it is made from."""

    name: str
    binary: str
    wanted: str
    package: str | None = None


# ---------------------------------------------------------------------------------------- files made from the pins


def manifest(output: str) -> str:
    """Return the builder's manifest (JSON, which is YAML too)."""
    parts = {kind: [{"gomod": module} for module in modules] for kind, modules in COLLECTOR_PARTS.items()}
    name_and_place = {"name": "otelcol", "module": "otelcol", "version": COLLECTOR[1:], "output_path": output}
    return json.dumps({"dist": name_and_place, **parts}, indent=2)


def go_mod() -> str:
    """Return the go.mod of the Collector to build.

    The builder would write the same and then run `go mod tidy`, which also fetches what the tests of every
    dependency need: more than a hundred modules that no build uses, each one more thing to be unreachable.
    """
    modules = [module for part in COLLECTOR_PARTS.values() for module in part]
    requires = "\n".join(f"\t{module}" for module in [*modules, f"{CORE}/otelcol {COLLECTOR}"])
    return f"module otelcol\n\ngo {COLLECTOR_GO[0]}.{COLLECTOR_GO[1]}.0\n\nrequire (\n{requires}\n)\n"


def servers() -> tuple[Server, ...]:
    """Return everything this script can install."""
    debian = f"Debian {DEBIAN_SUITE}"
    pins = hashlib.sha256((manifest("") + go_mod()).encode()).hexdigest()[:12]
    return (
        *(Server(name, name, debian, package=name) for name in ("prometheus", "promtool", "victoria-metrics")),
        Server("collector", "otelcol", f"{COLLECTOR} {COLLECTOR_STABLE} pins {pins}"),
    )


# ------------------------------------------------------------------------------------------------ running commands


class Progress:
    """Prints what is being done, with the seconds since the start, and keeps the commands' output in a log file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._started_s = time.monotonic()

    def say(self, text: str) -> None:
        """Print one progress line at once."""
        print(f"[{time.monotonic() - self._started_s:6.1f} s] {text}", flush=True)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout_s: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command to its end, with a sign of life every 15 s; raise when it fails or takes too long."""
        name = Path(argv[0]).name
        with self.log.open("ab") as log:
            try:
                process = subprocess.Popen(
                    [str(part) for part in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=env,
                    start_new_session=True,  # so that a stop reaches what the command itself started
                )
            except OSError as error:
                raise CannotInstallError(f"the command {name} can't be run: {error}") from error
            try:
                self._wait(process, name, timeout_s)
            finally:
                end_group(process)
        if process.returncode != 0:
            raise CannotInstallError(
                f"{name} ended with exit code {process.returncode} and said: {last_line(self.log)} (more in {self.log})"
            )

    def _wait(self, process: subprocess.Popen[bytes], name: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise CannotInstallError(f"{name} took more than {timeout_s:.0f} s and was stopped (see {self.log})")
            try:
                process.wait(min(HEARTBEAT_S, remaining_s))
            except subprocess.TimeoutExpired:
                self.say(f"  {name} is still at work")
            else:
                return


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that still runs, with everything it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(SHORT_TIMEOUT_S)


def last_line(path: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def ask(*argv: str | Path) -> str:
    """Return what a short command prints."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SHORT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotInstallError(f"{Path(argv[0]).name} doesn't run: {error}") from error
    return done.stdout.strip()


def mebibytes(path: Path) -> str:
    """Return a file's size for people."""
    return f"{path.stat().st_size / 2**20:.1f} MiB"


# -------------------------------------------------------------------------------------------------- Debian packages


def one_line_sources(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (mirror, suites, components) of a one-line apt sources file."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match:
            yield match[1], [match[2]], match[3].split()


def deb822_sources(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (mirror, suites, components) of a deb822 apt sources file."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        unfolded = re.sub(r"\n[ \t]+", " ", paragraph)
        pairs = (line.split(":", 1) for line in unfolded.splitlines() if ":" in line)
        fields = {name.strip().lower(): value.split() for name, value in pairs}
        if "deb" not in fields.get("types", []) or fields.get("enabled") in (["no"], ["false"]):
            continue
        for mirror in fields.get("uris", []):
            yield mirror, fields.get("suites", []), fields.get("components", [])


def debian_mirrors(etc_apt: Path) -> list[str]:
    """Return the mirrors of Debian itself that the machine's apt sources name, in their order, each once."""
    paths = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    mirrors: dict[str, None] = {}
    for path in paths:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        parse = deb822_sources if path.suffix == ".sources" else one_line_sources
        for mirror, suites, components in parse(path.read_text(errors="replace")):
            if "main" in components and DEBIAN_SUITES.intersection(suites):
                mirrors[mirror] = None
    return list(mirrors)


def private_apt(folder: Path, mirror: str, keyring: Path) -> dict[str, str]:
    """Write an apt configuration with its own state, cache and one source; return the environment that uses it.

    Only how the machine reaches its mirrors (proxies, time-outs) is taken over: none of its other sources, pins or
    hooks. The sandbox user is off because it couldn't enter a private folder; signatures are checked all the same.
    """
    for name in ("state/lists/partial", "cache/archives/partial", "empty"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} {DEBIAN_SUITE} main\n")
    inherited = [
        line
        for line in ask("apt-config", "dump").splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]
    own = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": folder / "empty",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": folder / "empty",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": folder / "empty",
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": folder / "empty",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    config = folder / "apt.conf"
    config.write_text("\n".join([*inherited, *(f'{key} "{value}";' for key, value in own.items())]) + "\n")
    return {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}


def updated_apt(folder: Path, progress: Progress) -> dict[str, str]:
    """Read the package list from the first mirror that answers; return the environment for apt-get."""
    for command in ("apt-get", "apt-config", "dpkg", "dpkg-deb"):
        if shutil.which(command) is None:
            raise CannotInstallError(f"the command {command} is missing: Debian packages need a Debian system")
    keyring = next((path for path in DEBIAN_KEYRINGS if path.is_file()), None)
    if keyring is None:
        raise CannotInstallError("the package debian-archive-keyring, whose keys check the signatures, is missing")
    failure = CannotInstallError("the machine's apt sources name no mirror of Debian")
    for number, mirror in enumerate(debian_mirrors(Path("/etc/apt")), start=1):
        progress.say(f"reading the package list of Debian {DEBIAN_SUITE}, mirror {number} of the machine's sources")
        env = private_apt(folder, mirror, keyring)
        try:
            progress.run(["apt-get", "update"], timeout_s=UPDATE_TIMEOUT_S, env=env)
        except CannotInstallError as error:
            failure = error
        else:
            return env
    raise failure


def install_package(server: Server, cache: Path, folder: Path, env: Mapping[str, str], progress: Progress) -> str:
    """Download and unpack one package, move its program to the cache and return the package's version."""
    downloads, unpacked = folder / f"{server.name}-deb", folder / f"{server.name}-files"
    downloads.mkdir()
    progress.say(f"downloading the package {server.package}")
    argv = ["apt-get", "download", str(server.package)]
    progress.run(argv, timeout_s=DOWNLOAD_TIMEOUT_S, cwd=downloads, env=env)
    (package,) = downloads.glob("*.deb")
    version = ask("dpkg-deb", "-f", package, "Version")
    progress.say(f"unpacking {server.package} {version} ({mebibytes(package)})")
    progress.run(["dpkg", "-x", package, unpacked], timeout_s=SHORT_TIMEOUT_S)
    place(unpacked / "usr/bin" / server.binary, cache, server)
    return version


def install_packages(wanted: Sequence[Server], cache: Path, progress: Progress) -> None:
    """Install every Debian package among the wanted servers."""
    with tempfile.TemporaryDirectory(dir=cache, prefix="debian-", ignore_cleanup_errors=True) as name:
        env = updated_apt(Path(name), progress)
        for server in wanted:
            version = install_package(server, cache, Path(name), env, progress)
            remember(cache, server, version)


# ------------------------------------------------------------------------------------------------------ the Collector


def go_environment(cache: Path, folder: Path) -> dict[str, str]:
    """Return the environment for go: its own caches stay where the machine has them, unless it has none."""
    env = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOBIN": str(folder), "TMPDIR": str(folder)}
    if "HOME" not in env:
        env.setdefault("GOPATH", str(cache / "go"))
        env.setdefault("GOCACHE", str(cache / "go-build"))
    return env


def check_go() -> None:
    """Raise when go is missing or too old for the pinned modules."""
    if shutil.which("go") is None:
        raise CannotInstallError("the command go, which builds the Collector, is missing")
    match = re.match(r"go(\d+)\.(\d+)", ask("go", "env", "GOVERSION"))
    if match and (int(match[1]), int(match[2])) < COLLECTOR_GO:
        needed = ".".join(map(str, COLLECTOR_GO))
        raise CannotInstallError(f"building the Collector needs Go {needed} or newer, here is {match[0][2:]}")


def install_collector(wanted: Sequence[Server], cache: Path, progress: Progress) -> None:
    """Build the Collector and put it into the cache."""
    (server,) = wanted
    check_go()
    with tempfile.TemporaryDirectory(dir=cache, prefix="collector-", ignore_cleanup_errors=True) as name:
        built = build_collector(Path(name), go_environment(cache, Path(name)), progress)
        progress.say(f"built the Collector ({mebibytes(built)})")
        place(built, cache, server)
    remember(cache, server, COLLECTOR[1:])


def build_collector(folder: Path, env: Mapping[str, str], progress: Progress) -> Path:
    """Generate the Collector's source with its own builder and compile it, without symbols; return the program."""
    progress.say(f"building the Collector's builder {COLLECTOR} with {ask('go', 'env', 'GOVERSION')}")
    progress.run(["go", "install", f"{CORE}/cmd/builder@{COLLECTOR}"], timeout_s=BUILD_TIMEOUT_S, env=env)
    source, built = folder / "source", folder / "otelcol"
    (folder / "manifest.yaml").write_text(manifest(str(source)))
    progress.say(f"generating the Collector {COLLECTOR} / {COLLECTOR_STABLE}")
    generate: list[str | Path] = [
        folder / "builder",
        "--config",
        folder / "manifest.yaml",
        "--skip-get-modules",
        "--skip-compilation",
    ]
    progress.run(generate, timeout_s=SHORT_TIMEOUT_S, cwd=folder, env=env)
    (source / "go.mod").write_text(go_mod())
    progress.say("compiling the Collector: one to five minutes on two cores")
    compile_: list[str | Path] = ["go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", built, "."]
    progress.run(compile_, timeout_s=BUILD_TIMEOUT_S, cwd=source, env=env)
    return built


# ----------------------------------------------------------------------------------------------------- the cache folder


def cache_folder(option: str | None, environ: Mapping[str, str]) -> Path:
    """Return the cache folder: option, then AMPTALK_OTEL_TEST_CACHE, then the user's cache folder."""
    chosen = option or environ.get("AMPTALK_OTEL_TEST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "amptalk-otel-tests"


def read_versions(cache: Path) -> dict[str, dict[str, str]]:
    """Return what versions.json says is installed; nothing when it is missing or broken."""
    try:
        versions = json.loads((cache / "versions.json").read_text())
    except (OSError, ValueError):
        return {}
    return versions if isinstance(versions, dict) else {}


def is_installed(cache: Path, server: Server) -> bool:
    """Tell whether the program is there and was made from the present pins."""
    recorded = read_versions(cache).get(server.binary, {}).get("wanted")
    return recorded == server.wanted and os.access(cache / "bin" / server.binary, os.X_OK)


def place(built: Path, cache: Path, server: Server) -> None:
    """Check that a new program runs, then move it to its place in one step."""
    ask(built, "--version")
    (cache / "bin").mkdir(exist_ok=True)
    built.replace(cache / "bin" / server.binary)


def remember(cache: Path, server: Server, version: str) -> None:
    """Record an installed program in versions.json."""
    versions = {**read_versions(cache), server.binary: {"version": version, "wanted": server.wanted}}
    new = cache / "versions.json.new"
    new.write_text(json.dumps(versions, indent=2, sort_keys=True) + "\n")
    new.replace(cache / "versions.json")


@contextlib.contextmanager
def locked(cache: Path, progress: Progress) -> Iterator[None]:
    """Let one run at a time change the cache folder; the kernel drops the lock of a run that died."""
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    with (cache / "lock").open("w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise CannotInstallError("another run of this script holds the cache folder") from None
                if not told:
                    progress.say("waiting for another run of this script")
                    told = True
                time.sleep(0.5)
        yield


# -------------------------------------------------------------------------------------------------------- command line


def install(wanted: Sequence[Server], cache: Path, progress: Progress) -> list[str]:
    """Install what is missing and return what went wrong, one sentence each; one failure doesn't stop the others."""
    for left_over in (*cache.glob("debian-*"), *cache.glob("collector-*")):  # of a run that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    missing = [server for server in wanted if not is_installed(cache, server)]
    debian = [server for server in missing if server.package is not None]
    collector = [server for server in missing if server.package is None]
    failures = [
        attempt(install_packages, debian, cache, progress),
        attempt(install_collector, collector, cache, progress),
    ]
    return [failure for failure in failures if failure is not None]


def attempt(
    step: Callable[[Sequence[Server], Path, Progress], None],
    wanted: Sequence[Server],
    cache: Path,
    progress: Progress,
) -> str | None:
    """Run one step, if there is anything to do for it; return what went wrong as one sentence."""
    try:
        if wanted:
            step(wanted, cache, progress)
    except (CannotInstallError, OSError) as error:
        return f"Can't install {', '.join(server.name for server in wanted)}: {error}."
    return None


def parse_arguments(argv: Sequence[str] | None) -> tuple[list[Server], Path]:
    """Return what to install and where."""
    known = {server.name: server for server in servers()}
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", metavar="DIR", help="the folder to install into")
    parser.add_argument("--only", metavar="NAMES", help=f"comma-separated, of: {', '.join(known)} (default: all)")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(known)
    for name in names:
        if name not in known:
            parser.error(f"--only: {name!r} is none of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)], cache_folder(options.cache, os.environ)


def stop_in_order(_signal: int, _frame: object) -> None:
    """End as Ctrl-C would, so that the commands that still run are ended and temporary folders removed."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    wanted, cache = parse_arguments(argv)
    signal.signal(signal.SIGTERM, stop_in_order)
    failures = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        progress = Progress(cache / "install.log")
        if not all(is_installed(cache, server) for server in wanted):
            with locked(cache, progress):
                progress.log.write_bytes(b"")
                failures = install(wanted, cache, progress)
    except (CannotInstallError, OSError) as error:
        failures = [f"Can't install into {cache}: {error}."]
    except KeyboardInterrupt:
        failures = ["Stopped before everything was installed."]
    report(wanted, cache, failures)
    return 2 if failures else 0


def report(wanted: Sequence[Server], cache: Path, failures: Sequence[str]) -> None:
    """Print where the installed programs are, then what went wrong."""
    versions = read_versions(cache)
    for server in wanted:
        if is_installed(cache, server):
            print(f"{server.name} {versions[server.binary]['version']}: {cache / 'bin' / server.binary}", flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
