"""Real servers for the integration tests: each a context manager around one process on 127.0.0.1.

    with Collector() as collector:
        ...                                   # export to collector.grpc_endpoint or collector.http_endpoint
        collector.wait_for_spans(lambda spans: len(spans) == 2)

`scripts/install_test_servers.py` installs the programs. Every wait here is bounded; a server that doesn't start is
reported with the end of its log. A server's ports stay its own from the moment it is made until it is left, also
while it is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Union

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAMS = ("prometheus", "promtool", "victoria-metrics", "otelcol")
INSTALL_SCRIPT = "scripts/install_test_servers.py"

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
WAIT_TIMEOUT_S = 30.0
HTTP_TIMEOUT_S = 5.0
POLL_S = 0.03
START_ATTEMPTS = 5

_T = TypeVar("_T")
# No proxy of the environment may come between a test and a server on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """A server could not be started, or answered a request with an error."""


# ------------------------------------------------------------------------------------------------------ the programs


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that `scripts/install_test_servers.py` installs into."""
    chosen = environ.get("AMPTALK_OTEL_TEST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "amptalk-otel-tests"


def find_server(name: str) -> Path | None:
    """Return an installed program of `PROGRAMS`, or None when it is missing."""
    if name not in PROGRAMS:
        raise ValueError(f"{name!r} is none of {', '.join(PROGRAMS)}")
    path = cache_folder() / "bin" / name
    return path if os.access(path, os.X_OK) else None


def require_program(name: str) -> Path:
    """Return an installed program; raise `ServerError` when it is missing."""
    path = find_server(name)
    if path is None:
        raise ServerError(f"{name} is not installed: run `python {INSTALL_SCRIPT}`")
    return path


def run_program(name: str, *arguments: str | Path, text: str = "", timeout_s: float = 30.0) -> tuple[int, str]:
    """Run a program to its end with `text` as its input; return its exit code and all that it printed."""
    argv = [require_program(name), *arguments]
    done = subprocess.run(
        argv, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False
    )
    return done.returncode, done.stdout


def check_metrics(text: str) -> tuple[int, str]:
    """Run `promtool check metrics` on a page of the classic text format, which ends with a line feed.

    Exit code 0: clean; 3: it parses, with lint problems; 1: it doesn't parse. OpenMetrics pages are not understood.
    """
    return run_program("promtool", "check", "metrics", text=text)


# ------------------------------------------------------------------------------------------------- waiting and HTTP


def wait_until(
    read: Callable[[], _T], accept: Callable[[_T], bool], timeout_s: float = WAIT_TIMEOUT_S, *, what: str = "a value"
) -> _T:
    """Call `read` until `accept` takes what it returns; raise `TimeoutError`, which shows the last value, when late."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = read()
        if accept(value):
            return value
        if time.monotonic() >= deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}; last seen: {value!r}")
        time.sleep(POLL_S)


def fetch(
    url: str, parameters: Mapping[str, str] | None = None, *, body: bytes | None = None, accept: str | None = None
) -> bytes:
    """Return what a server answers to a GET (with a body: a POST of JSON); raise `ServerError` otherwise."""
    if parameters:
        url = f"{url}?{urllib.parse.urlencode(parameters)}"
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if accept is not None:
        headers["Accept"] = accept
    try:
        with _opener.open(urllib.request.Request(url, body, headers), timeout=HTTP_TIMEOUT_S) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace").strip()
        raise ServerError(f"{url} answered {error.code}: {said[:500]}") from error
    except (OSError, urllib.error.URLError) as error:
        raise ServerError(f"{url} did not answer: {error}") from error


def answers(url: str, *, body: bytes | None = None) -> bool:
    """Tell whether a server answers well at an address."""
    with contextlib.suppress(ServerError):
        fetch(url, body=body)
        return True
    return False


def reserve_port() -> socket.socket:
    """Return a socket that keeps a free port of 127.0.0.1 for a server of ours.

    Bound but not listening: on Linux the server, which sets SO_REUSEADDR as we do, may listen on that very port,
    while nobody else is given it and a client is refused for as long as the server is down.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


# ------------------------------------------------------------------------------------------------------- the process


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Ask a process to end; kill it when it doesn't."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)


class Server:
    """One server process: `start`, `stop`, `kill`, and all three again on the same ports.

    As a context manager it starts on entry; on exit it stops, frees its ports and removes its folder. A server that
    nobody leaves is ended when it is collected or when Python exits.
    """

    program: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]] = ("http",)

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self.program}-", ignore_cleanup_errors=True)
        self._reserved: dict[str, socket.socket] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self.starts = 0
        self._reserve_ports()

    def _command(self) -> list[str]:
        """Write the configuration and return the arguments."""
        raise NotImplementedError

    def _is_ready(self) -> bool:
        """Tell whether the server does its work."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The server's temporary folder: its configuration, data and log."""
        return Path(self._folder.name)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of a running server."""
        if self._process is None or not self.running:
            raise ServerError(f"{self.program} is not running")
        return self._process.pid

    def port(self, name: str = "http") -> int:
        """Return one of the server's ports, which stay the same after a restart."""
        port: int = self._reserved[name].getsockname()[1]
        return port

    def address(self, name: str = "http") -> str:
        """Return host and port of one of the server's ports."""
        return f"127.0.0.1:{self.port(name)}"

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of the server's log, over all its starts."""
        path = self.folder / "server.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def start(self) -> None:
        """Start the server and wait until it is ready; nothing happens when it runs already."""
        if self.running:
            return
        for attempt in range(1, START_ATTEMPTS + 1):
            self._spawn()
            try:
                self._wait_until_ready()
            except ServerError as error:
                self.stop()
                if attempt == START_ATTEMPTS or "address already in use" not in str(error):
                    raise
                if self.starts == 1:  # before the first good start nobody knows the ports yet
                    self._reserve_ports()
                self.starts -= 1
                time.sleep(0.2)
            else:
                return

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the server in good order; what doesn't end in time is killed. Its ports and data stay."""
        if self._process is not None:
            _end(self._process, timeout_s)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop the server for good: ports and folder are given back."""
        self.stop()
        for reserved in self._reserved.values():
            reserved.close()
        self._folder.cleanup()

    def _reserve_ports(self) -> None:
        for reserved in self._reserved.values():
            reserved.close()
        self._reserved = {name: reserve_port() for name in self.port_names}

    def _spawn(self) -> None:
        self.starts += 1
        argv = [str(require_program(self.program)), *self._command()]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,  # and our process group: a signal that ends a whole test run ends the server too
            )
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _end, self._process, STOP_TIMEOUT_S)

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            ready = self._is_ready()
            if not self.running:  # asked after `ready`: whoever answered, it wasn't our process
                raise ServerError(f"{self.program} ended at its start; the end of its log:\n{self.log_tail()}")
            if ready:
                return
            if time.monotonic() >= deadline_s:
                raise ServerError(
                    f"{self.program} was not ready after {START_TIMEOUT_S:g} s; the end of its log:\n{self.log_tail()}"
                )
            time.sleep(POLL_S)


# ------------------------------------------------------------------------------------------- servers that are queried


@dataclass(frozen=True)
class Sample:
    """One element of a query's result. `labels` has the metric's name under `__name__`, where it kept one."""

    labels: Mapping[str, str]
    value: float
    time_s: float


@dataclass(frozen=True)
class Exemplar:
    """One exemplar of a series, as Prometheus stored it."""

    series_labels: Mapping[str, str]
    labels: Mapping[str, str]
    value: float
    time_s: float


class QueryServer(Server):
    """A server with the query interface of Prometheus."""

    @property
    def url(self) -> str:
        """The server's base address."""
        return f"http://{self.address()}"

    def query(self, promql: str) -> list[Sample]:
        """Return the result of an instant query, as of now; a scalar is one sample without labels."""
        return self._query({"query": promql})

    def wait_for(
        self, promql: str, accept: Callable[[list[Sample]], bool] = bool, timeout_s: float = WAIT_TIMEOUT_S
    ) -> list[Sample]:
        """Ask until `accept` takes the result (by default: until there is any) and return it."""
        return wait_until(lambda: self.query(promql), accept, timeout_s, what=f"the query {promql}")

    def _query(self, parameters: Mapping[str, str]) -> list[Sample]:
        data = json.loads(fetch(f"{self.url}/api/v1/query", parameters))["data"]
        if data["resultType"] == "scalar":
            return [_sample({}, data["result"])]
        if data["resultType"] != "vector":
            raise ServerError(f"the query's result is a {data['resultType']}; ask for a vector or a scalar")
        return [_sample(element["metric"], element["value"]) for element in data["result"]]


def _sample(labels: Mapping[str, str], pair: Sequence[Any]) -> Sample:
    return Sample(labels, value=float(pair[1]), time_s=float(pair[0]))


class Prometheus(QueryServer):
    """A Prometheus that scrapes the given targets (`host:port`, or the page's whole address).

    Its first scrape comes 5 to 10 s after the start: it throttles the discovery of targets, static ones too, and
    accepts no shorter time (https://github.com/prometheus/prometheus/pull/14447). So one Prometheus for several
    targets is cheaper than several. A scrape that takes longer than `scrape_interval_s` fails.
    """

    program = "prometheus"

    def __init__(
        self,
        targets: Sequence[str] = (),
        *,
        scrape_interval_s: float = 0.2,
        features: Sequence[str] = (),
        rule_files: Sequence[Path] = (),
        extra_arguments: Sequence[str] = (),
    ) -> None:
        """`features` are names for `--enable-feature`; alert rules are evaluated as often as targets are scraped."""
        super().__init__()
        self._interval = f"{round(scrape_interval_s * 1000)}ms"
        self._targets = [_static_target(target) for target in targets]
        self._rule_files = [str(path.absolute()) for path in rule_files]
        self._arguments = [*([f"--enable-feature={','.join(features)}"] if features else []), *extra_arguments]

    def query_exemplars(self, promql: str) -> list[Exemplar]:
        """Return the exemplars of the last hour; needs the feature `exemplar-storage` and an OpenMetrics page."""
        now_s = time.time()
        parameters = {"query": promql, "start": f"{now_s - 3600:.3f}", "end": f"{now_s + 60:.3f}"}
        data = json.loads(fetch(f"{self.url}/api/v1/query_exemplars", parameters))["data"]
        return [
            Exemplar(series["seriesLabels"], one["labels"], float(one["value"]), float(one["timestamp"]))
            for series in data
            for one in series["exemplars"]
        ]

    def _command(self) -> list[str]:
        config = {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": self._interval,
            },
            "rule_files": self._rule_files,
            "scrape_configs": [{"job_name": "tests", "static_configs": self._targets}],
        }
        path = self.folder / "prometheus.yml"
        path.write_text(json.dumps(config))
        return [
            f"--config.file={path}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.address()}",
            *self._arguments,
        ]

    def _is_ready(self) -> bool:
        return answers(f"{self.url}/-/ready")


def _static_target(target: str) -> dict[str, Any]:
    parts = urllib.parse.urlsplit(target if "//" in target else f"http://{target}")
    labels = {"__scheme__": parts.scheme, "__metrics_path__": parts.path or "/metrics"}
    return {"targets": [parts.netloc], "labels": labels}


class VictoriaMetrics(QueryServer):
    """A VictoriaMetrics, which takes OTLP metrics over HTTP as protobuf."""

    program = "victoria-metrics"

    def __init__(self, *, prometheus_naming: bool = True) -> None:
        """With `prometheus_naming`, names are what Prometheus would call them; without, as they came."""
        super().__init__()
        self._prometheus_naming = prometheus_naming

    @property
    def otlp_metrics_url(self) -> str:
        """Where an OTLP exporter (HTTP, protobuf) sends metrics."""
        return f"{self.url}/opentelemetry/v1/metrics"

    def query(self, promql: str) -> list[Sample]:
        """Return the result of an instant query that sees all that was written before it."""
        fetch(f"{self.url}/internal/force_flush")
        return self._query({"query": promql, "time": f"{time.time() + 1:.3f}"})

    def _command(self) -> list[str]:
        return [
            f"-httpListenAddr={self.address()}",
            f"-storageDataPath={self.folder / 'data'}",
            "-search.latencyOffset=0s",
            "-search.disableCache",
            "-memory.allowedBytes=128MiB",
            f"-opentelemetry.usePrometheusNaming={str(self._prometheus_naming).lower()}",
        ]

    def _is_ready(self) -> bool:
        return answers(f"{self.url}/health")


# ------------------------------------------------------------------------------------- what the Collector wrote down

Attribute = Union[str, bool, int, float, None, "tuple[Attribute, ...]"]
Attributes = Mapping[str, Attribute]
MetricKey = tuple[str, frozenset[tuple[str, Attribute]]]


@dataclass(frozen=True)
class PointExemplar:
    """An exemplar on a data point; ids are lower-case hexadecimal, or empty."""

    trace_id: str
    span_id: str
    value: float
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True)
class MetricPoint:
    """One data point. `value` is for sums and gauges; `count` to `bounds` are for histograms."""

    name: str
    kind: str  # "sum", "gauge", "histogram", "exponential_histogram" or "summary"
    unit: str
    description: str
    attributes: Attributes
    resource: Attributes
    scope: str
    time_ns: int
    start_time_ns: int
    value: float | None = None  # an int stays an int
    monotonic: bool | None = None
    temporality: str | None = None  # "cumulative" or "delta"
    count: int | None = None
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    bucket_counts: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()
    exemplars: tuple[PointExemplar, ...] = ()

    @property
    def key(self) -> MetricKey:
        """What tells this series from others: its name and attributes."""
        return metric_key(self.name, self.attributes)


@dataclass(frozen=True)
class SpanLink:
    """A link of a span to another one; ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class SpanEvent:
    """An event on a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """One finished span; ids are lower-case hexadecimal, a root's `parent_span_id` is None."""

    name: str
    kind: str  # "internal", "server", "client", "producer", "consumer" or "unspecified"
    trace_id: str
    span_id: str
    parent_span_id: str | None
    attributes: Attributes
    resource: Attributes
    scope: str
    start_ns: int
    end_ns: int
    status: str  # "unset", "ok" or "error"
    status_message: str
    links: tuple[SpanLink, ...]
    events: tuple[SpanEvent, ...]


_METRIC_KINDS = {
    "sum": "sum",
    "gauge": "gauge",
    "histogram": "histogram",
    "exponentialHistogram": "exponential_histogram",
    "summary": "summary",
}
_TEMPORALITIES = {1: "delta", 2: "cumulative"}
_SPAN_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "ok", "error")


def metric_key(name: str, attributes: Attributes) -> MetricKey:
    """Return the key of a series in `Collector.exported_metrics()`."""
    return name, frozenset(attributes.items())


def parse_attribute(value: Mapping[str, Any]) -> Attribute:
    """Return the Python value of an OTLP `AnyValue`; lists become tuples, maps tuples of pairs."""
    for kind, inner in value.items():
        if kind == "intValue":
            return int(inner)
        if kind == "doubleValue":
            return float(inner)
        if kind == "arrayValue":
            return tuple(parse_attribute(item) for item in inner.get("values", []))
        if kind == "kvlistValue":
            return tuple((pair["key"], parse_attribute(pair["value"])) for pair in inner.get("values", []))
        return inner  # type: ignore[no-any-return]  # a string, a bool, or bytes in base 64
    return None


def parse_attributes(pairs: Iterable[Mapping[str, Any]]) -> Attributes:
    """Return OTLP key-value pairs as a mapping."""
    return {pair["key"]: parse_attribute(pair["value"]) for pair in pairs}


def parse_metrics(export: Mapping[str, Any]) -> Iterator[MetricPoint]:
    """Yield the data points of one OTLP/JSON export of metrics."""
    for resource, scope, metric in _walk(export, "resourceMetrics", "scopeMetrics", "metrics"):
        for key, kind in _METRIC_KINDS.items():
            data = metric.get(key, {})
            for point in data.get("dataPoints", []):
                yield MetricPoint(
                    name=metric["name"],
                    kind=kind,
                    unit=metric.get("unit", ""),
                    description=metric.get("description", ""),
                    attributes=parse_attributes(point.get("attributes", [])),
                    resource=resource,
                    scope=scope,
                    time_ns=int(point.get("timeUnixNano", 0)),
                    start_time_ns=int(point.get("startTimeUnixNano", 0)),
                    monotonic=bool(data.get("isMonotonic", False)) if kind == "sum" else None,
                    temporality=_TEMPORALITIES.get(data.get("aggregationTemporality", 0)),
                    exemplars=tuple(_exemplars(point)),
                    **_point_values(point, kind),
                )


def _exemplars(point: Mapping[str, Any]) -> Iterator[PointExemplar]:
    for exemplar in point.get("exemplars", []):
        yield PointExemplar(
            trace_id=exemplar.get("traceId", ""),
            span_id=exemplar.get("spanId", ""),
            value=float(exemplar["asDouble"] if "asDouble" in exemplar else exemplar["asInt"]),
            time_ns=int(exemplar["timeUnixNano"]),
            attributes=parse_attributes(exemplar.get("filteredAttributes", [])),
        )


def _point_values(point: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if kind in ("sum", "gauge"):
        if "asInt" in point:
            return {"value": int(point["asInt"])}
        return {"value": float(point["asDouble"]) if "asDouble" in point else None}
    return {
        "count": int(point.get("count", 0)),
        "bucket_counts": tuple(int(count) for count in point.get("bucketCounts", [])),
        "bounds": tuple(float(bound) for bound in point.get("explicitBounds", [])),
        **{name: float(point[name]) for name in ("sum", "min", "max") if name in point},
    }


def parse_spans(export: Mapping[str, Any]) -> Iterator[Span]:
    """Yield the spans of one OTLP/JSON export of traces."""
    for resource, scope, span in _walk(export, "resourceSpans", "scopeSpans", "spans"):
        status = span.get("status", {})
        yield Span(
            name=span["name"],
            kind=_SPAN_KINDS[span.get("kind", 0)],
            trace_id=span["traceId"],
            span_id=span["spanId"],
            parent_span_id=span.get("parentSpanId") or None,
            attributes=parse_attributes(span.get("attributes", [])),
            resource=resource,
            scope=scope,
            start_ns=int(span["startTimeUnixNano"]),
            end_ns=int(span["endTimeUnixNano"]),
            status=_STATUSES[status.get("code", 0)],
            status_message=status.get("message", ""),
            links=tuple(
                SpanLink(link["traceId"], link["spanId"], parse_attributes(link.get("attributes", [])))
                for link in span.get("links", [])
            ),
            events=tuple(
                SpanEvent(event["name"], int(event["timeUnixNano"]), parse_attributes(event.get("attributes", [])))
                for event in span.get("events", [])
            ),
        )


def _walk(
    export: Mapping[str, Any], resources: str, scopes: str, items: str
) -> Iterator[tuple[Attributes, str, Mapping[str, Any]]]:
    """Yield (resource attributes, scope name, item) for every metric or span of an export."""
    for of_resource in export.get(resources, []):
        resource = parse_attributes(of_resource.get("resource", {}).get("attributes", []))
        for of_scope in of_resource.get(scopes, []):
            scope = of_scope.get("scope", {}).get("name", "")
            for item in of_scope.get(items, []):
                yield resource, scope, item


def read_json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Return the complete lines of a file that may still be written; a torn last line is left out."""
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line.strip()]


class Collector(Server):
    """An OpenTelemetry Collector that writes down what it gets and shows the metrics to Prometheus as well.

    `stop` and `start` (or `kill` and `start`) keep its addresses and what was exported before.
    """

    program = "otelcol"
    port_names = ("grpc", "http", "prometheus")

    @property
    def grpc_endpoint(self) -> str:
        """Where an OTLP exporter for gRPC sends to (insecure)."""
        return f"http://{self.address('grpc')}"

    @property
    def http_endpoint(self) -> str:
        """The base address for OTLP over HTTP; exporters add `/v1/metrics` or `/v1/traces`."""
        return f"http://{self.address('http')}"

    @property
    def prometheus_url(self) -> str:
        """The page on which the Collector shows the metrics it got."""
        return f"http://{self.address('prometheus')}/metrics"

    def exported_points(self) -> list[MetricPoint]:
        """Return every data point that arrived, in order; what was just sent may take 0.1 s to show."""
        return [point for export in self._read("metrics") for point in parse_metrics(export)]

    def exported_metrics(self) -> dict[MetricKey, MetricPoint]:
        """Return the last point of every (name, attributes), whichever resource it came from."""
        return {point.key: point for point in self.exported_points()}

    def exported_spans(self) -> list[Span]:
        """Return every span that arrived, in order; what was just sent may take 0.1 s to show."""
        return [span for export in self._read("traces") for span in parse_spans(export)]

    def wait_for_metrics(
        self, accept: Callable[[dict[MetricKey, MetricPoint]], bool] = bool, timeout_s: float = WAIT_TIMEOUT_S
    ) -> dict[MetricKey, MetricPoint]:
        """Read the metrics until `accept` takes them (by default: until there are any)."""
        return wait_until(self.exported_metrics, accept, timeout_s, what="metrics in the Collector")

    def wait_for_spans(
        self, accept: Callable[[list[Span]], bool] = bool, timeout_s: float = WAIT_TIMEOUT_S
    ) -> list[Span]:
        """Read the spans until `accept` takes them (by default: until there are any)."""
        return wait_until(self.exported_spans, accept, timeout_s, what="spans in the Collector")

    def _file(self, signal: str, start: int) -> Path:
        return self.folder / f"{signal}-{start}.jsonl"  # one per start: a kill may leave a torn last line

    def _read(self, signal: str) -> Iterator[Mapping[str, Any]]:
        if not self.folder.exists():
            raise ServerError("this Collector was left, and what it wrote went with it")
        for start in range(1, self.starts + 1):
            yield from read_json_lines(self._file(signal, start))

    def _command(self) -> list[str]:
        signals = ("metrics", "traces")
        files = {f"file/{signal}": self._file_exporter(signal) for signal in signals}
        prometheus = {"endpoint": self.address("prometheus"), "enable_open_metrics": True}
        protocols = {name: {"endpoint": self.address(name)} for name in ("grpc", "http")}
        config = {
            "receivers": {"otlp": {"protocols": protocols}},
            "exporters": {**files, "prometheus": prometheus},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},  # its own metrics would take a fixed port
                "pipelines": {
                    "metrics": {"receivers": ["otlp"], "exporters": ["file/metrics", "prometheus"]},
                    "traces": {"receivers": ["otlp"], "exporters": ["file/traces"]},
                },
            },
        }
        path = self.folder / "collector.yaml"
        path.write_text(json.dumps(config))
        return [f"--config={path}"]

    def _file_exporter(self, signal: str) -> dict[str, str]:
        return {"path": str(self._file(signal, self.starts)), "flush_interval": "50ms"}

    def _is_ready(self) -> bool:
        """The HTTP receiver starts last: when it takes an empty export, everything is up."""
        return answers(f"{self.http_endpoint}/v1/metrics", body=b"{}")
