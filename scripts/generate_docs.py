#!/usr/bin/env python3
"""Write docs/configuration.md and docs/metrics.md from the tables in the code.

The tables come from `amptalk_otel.config.SETTINGS` and `amptalk_otel._catalogue.CATALOGUE`, the names on
the page from a real exporter, the example of a warning from a real one; the prose around them stands here.
With `--check` nothing is written: exit code 1 tells that a file is not what would be written.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: E402
from opentelemetry.metrics import Observation  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402

from amptalk_otel._bridge import _create  # noqa: E402
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES  # noqa: E402
from amptalk_otel._catalogue import CATALOGUE, Kind, Metric, Owner  # noqa: E402
from amptalk_otel._guard import logger  # noqa: E402
from amptalk_otel.config import DEFAULTS, SETTINGS, Config, Setting  # noqa: E402

_GENERATED = "<!-- Written by scripts/generate_docs.py: change that, or the tables in the code, and run it. -->\n"

# -- configuration.md ----------------------------------------------------------------------------------

_CONFIGURATION = """\
# Configuration

Nothing has to be configured: without any setting, the metrics are served for Prometheus at
<http://localhost:8000/metrics>, reachable from this machine only, and nothing is pushed anywhere.

## Where settings come from

An argument goes before an environment variable, and that before the default.

```python
from amptalk_otel import Config, instrument_orchestrator

config = Config(prometheus_port=9464)  # this port, and defaults for the rest
config = Config.from_env(prometheus_port=9464)  # this port, whatever is set
config = Config.from_env()  # the environment, and defaults for the rest; the same as no config
instrument_orchestrator(orchestrator, config=config)
```

The variables are OpenTelemetry's own where it has one. They are read when the instrumentation begins (never at
import), and once. An empty variable counts as not set.

A `Config` that is made without `from_env` takes nothing from these variables, with the exceptions that
OpenTelemetry's own code makes. Its exporters look for certificates and the "insecure" switch in the environment where
the `Config` gives none, never for headers. Its SDK reads how spans are batched, and `OTEL_SDK_DISABLED=true` switches
it off in any case.

## Recipes

Another port, or any free one (`instrumentation.metrics_url` tells which):

```console
$ export OTEL_EXPORTER_PROMETHEUS_PORT=9464
$ export OTEL_EXPORTER_PROMETHEUS_PORT=0
```

A page that other machines can reach, over TLS and with a password. Without the second line it has neither: mind who can
connect. [The endpoint](endpoint.md) tells what stands in the file, which needs `pip install 'amptalk_otel[web]'`:

```console
$ export OTEL_EXPORTER_PROMETHEUS_HOST=0.0.0.0
$ export AMPTALK_OTEL_PROMETHEUS_WEB_CONFIG=web-config.yml
```

Push to an OpenTelemetry Collector every ten seconds, instead of serving a page or besides (`prometheus,otlp`). This needs
`pip install 'amptalk_otel[otlp]'`:

```console
$ export OTEL_SERVICE_NAME=meeting-bot
$ export OTEL_METRICS_EXPORTER=otlp
$ export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318
$ export OTEL_METRIC_EXPORT_INTERVAL=10000
```

The same over gRPC, compressed, to a collector that wants a token:

```console
$ export OTEL_EXPORTER_OTLP_PROTOCOL=grpc
$ export OTEL_EXPORTER_OTLP_ENDPOINT=https://collector.example.com:4317
$ export OTEL_EXPORTER_OTLP_COMPRESSION=gzip
$ export OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN
```

Traces as well, a tenth of them, to the same collector ([Tracing](tracing.md) tells what they show):

```console
$ export OTEL_TRACES_EXPORTER=otlp
$ export OTEL_TRACES_SAMPLER=parentbased_traceidratio
$ export OTEL_TRACES_SAMPLER_ARG=0.1
```

Traces to a collector of their own; the endpoint of one signal is used as it is:

```console
$ export OTEL_TRACES_EXPORTER=otlp
$ export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://tempo.example.com:4318/v1/traces
```

See what would be sent, as JSON on stdout, or send no metrics (traces are off unless you ask for them):

```console
$ export OTEL_METRICS_EXPORTER=console OTEL_TRACES_EXPORTER=console
$ export OTEL_METRICS_EXPORTER=none
```

Leave the whole program uninstrumented, without touching its code:

```console
$ export OTEL_SDK_DISABLED=true
```

## What happens with a bad value

A bad value never stops your program. It costs one warning on the logger `amptalk_otel`, which names the variable, the
value and what is used instead:

```text
{warnings}
```

Headers, the name of the token's file, and what stands before an `@` or after a `?` in an endpoint, are never shown. In
Python code a bad value raises `ValueError` with the name of the field, and so does `Config.from_env(strict=True)`. The
`amptalk-otel` command ends with exit code 2.

What is right as a value but fails in the world is treated alike:

| what | what happens |
|---|---|
| the port is taken, the host can't be bound | one warning with the port; no page (`metrics_url` is None), everything else goes on |
| the web configuration or the token's file can't be used | one warning with the reason; no page: one without protection is not what was asked for |
| the same host and port a second time in one program | one page for both, with the settings of the first; but who asks for protection gets no page that has another, or none |
| `otlp` without the extra | one warning with the line that installs it; everything else goes on |
| the collector is down, refuses, or redirects (which is not followed) | [one warning a minute](reliability.md#what-the-log-says); the next push is tried as usual, and no message of your program waits for it |
| the collector does not answer, or takes nothing, at the end | `shutdown(timeout_s=5.0)` returns False in time; a program that just ends waits 5 s at most |

## All settings

Times are seconds in a `Config`, above 0 and at most a year; where OpenTelemetry counts a variable in milliseconds, the
row says so. Other whole numbers go from 0 to 1,000,000,000, unless the row says otherwise. What is comma-separated in a
variable is a tuple of `str` in a `Config`, and `key=value` pairs are a mapping. In a variable, `true`, `false` and the
names to choose from may be in any case.

How spans are batched, `OTEL_BSP_*`, is no setting of ours: the SDK reads
[these variables](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#batch-span-processor)
itself, when the instrumentation begins.

{settings}
"""  # noqa: E501 - rows of Markdown tables can't be folded

_SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("Everything", "", r"sdk_disabled|service_name|resource_attributes|modules"),
    ("Metrics", "", r"metrics?_.*|prometheus_.*|exemplar_filter|message_size_sample_every"),
    (
        "Agents",
        "Which are watched, and in which series: [Many agents](metrics.md#many-agents).",
        r"agents?_.*|max_agents|departed_agents_linger_s",
    ),
    ("Traces", "What they do: [Tracing](tracing.md).", r"traces?_.*|propagators"),
    ("OTLP", "For the `otlp` exporters of metrics and traces.", r"otlp_(?!metrics_|traces_).*"),
    ("OTLP, for metrics alone", "", r"otlp_metrics_.*"),
    ("OTLP, for traces alone", "", r"otlp_traces_.*"),
)
"""Title, sentence and fields of each table of settings. A field belongs to the first that names it."""

_BAD_EXAMPLES = {
    "OTEL_EXPORTER_PROMETHEUS_PORT": "eight",
    "OTEL_METRICS_EXPORTER": "prometheus,jaeger",
    "OTEL_EXPORTER_OTLP_HEADERS": "Bearer TOKEN",
}


class _Messages(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def configuration() -> str:
    """The text of docs/configuration.md."""
    settings = "\n\n".join(_setting_tables())
    return _GENERATED + _CONFIGURATION.format(settings=settings, warnings="\n".join(_warnings()))


def _warnings() -> list[str]:
    messages = _Messages()
    logger.addHandler(messages)
    propagates, logger.propagate = logger.propagate, False
    try:
        Config.from_env(_BAD_EXAMPLES)
    finally:
        logger.propagate = propagates
        logger.removeHandler(messages)
    return messages.texts


def _setting_tables() -> Iterator[str]:
    rest = list(SETTINGS)
    for title, sentence, fields in _SECTIONS:
        found = [setting for setting in rest if re.fullmatch(fields, setting.field)]
        rest = [setting for setting in rest if setting not in found]
        head = ["| variable | field of `Config` | default | meaning |", "|---|---|---|---|"]
        table = "\n".join([*head, *(_setting_row(setting) for setting in found)])
        yield "\n\n".join(filter(None, [f"### {title}", sentence, table]))
    if rest:
        raise ValueError(f"no section for {', '.join(setting.field for setting in rest)}")


def _setting_row(setting: Setting) -> str:
    variables = ", ".join(f"`{variable}`" for variable in setting.variables)
    return _row(variables, f"`{setting.field}`", _default(DEFAULTS[setting.field]), setting.description)


def _default(value: Any) -> str:
    if value in (None, {}, ()):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{','.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


# -- metrics.md ----------------------------------------------------------------------------------------

_METRICS = """\
# Metrics

What an instrumented program tells, where the numbers come from, and questions to ask Prometheus.

Metrics have two names: OpenTelemetry's (`amptalk.agent.queue.size`), which collectors and OTLP backends see, and the one on
the Prometheus page (`amptalk_agent_queue_size`). Attributes become labels in the same way: `agent.name` is `agent_name`.

## Does every message show up? The balance

For every agent, at every scrape:

    received = processed + failed + dropped + in flight + queued

What is missing from it is in `amptalk.agent.messages.unaccounted`: 0, unless somebody changes an inbox behind its back.

| word | metric | a message counts there |
|---|---|---|
| received | `amptalk.agent.messages.received` | as soon as it is in the agent's inbox, whichever way it came |
| queued | `amptalk.agent.queue.size` | while it waits in the inbox |
| in flight | `amptalk.agent.messages.in_flight` | from the moment the agent takes it until it is finished, retries included |
| processed | `amptalk.agent.messages.processed` | when processing it returned, at whatever attempt |
| failed | `amptalk.agent.messages.failed` | when processing it raised, after the last retry; `error.type` is the exception's class |
| dropped | `amptalk.agent.messages.dropped` | when it left the inbox and will never be finished; `reason` tells why |

All numbers of one scrape are of one moment, so the sum holds exactly. A message that fails and is sent again is received
again. Attempts are not messages: they count in `amptalk.agent.retries`.

`amptalk.agent.messages.unaccounted` is no copy of the sum: what was counted is compared with the inbox's own length and with
the messages that the agent has in hand. This is the one number to alert on where the others are to be trusted:

```promql
amptalk_agent_messages_unaccounted != 0
```

It is above 0 while messages are missing (somebody emptied the inbox's own store), below 0 while there are more than came
(somebody put them there directly). In a plain `asyncio.Queue` both end when the agent takes its next message, and what was
removed is counted as `taken`; an inbox with an order of its own can't tell which messages those are.

The same from the parts, in PromQL:

```promql
sum by (agent_id) (amptalk_agent_messages_received_total)
  - (sum by (agent_id) (amptalk_agent_messages_processed_total) or 0 * sum by (agent_id) (amptalk_agent_messages_in_flight))
  - (sum by (agent_id) (amptalk_agent_messages_failed_total) or 0 * sum by (agent_id) (amptalk_agent_messages_in_flight))
  - (sum by (agent_id) (amptalk_agent_messages_dropped_total) or 0 * sum by (agent_id) (amptalk_agent_messages_in_flight))
  - (sum by (agent_id) (amptalk_agent_queue_size) or 0 * sum by (agent_id) (amptalk_agent_messages_in_flight))
  - sum by (agent_id) (amptalk_agent_messages_in_flight)
```

(`or 0 * …` fills in for agents that never failed or dropped anything: a counter that is 0 has no series.)

### Why a message was dropped

| `reason` | what happened | what to do |
|---|---|---|
| `cancelled` | the agent was stopped, or its task cancelled, while it worked on the message | stop agents when they are idle, or send the message again |
| `unregistered` | the agent was let go with the message still in its inbox | empty the inbox before `unregister_agent` |
| `taken` | somebody other than the agent's own loop took the message out of the inbox | look for code that reads another agent's `input_queue` |

### Why a message was undeliverable

These messages reached no inbox, so they are in nobody's balance. They count for the agent that sent them
(`amptalk.agent.messages.undeliverable`), or for the orchestrator where it was to send them
(`amptalk.orchestrator.messages.undeliverable`).

| `reason` | what happened |
|---|---|
| `unknown_target` | there is no agent of that id |
| `expired` | the message had made more hops than its time to live allows |
| `error` | sending raised an exception, or reported failure for another reason |

## Where did the time go?

`amptalk.agent.time` is a counter for each of four states. An agent is in one of them at each moment that it runs, so they
add up to its uptime, over all its runs, and utilisation is a rate:

| `state` | the agent is in it while |
|---|---|
| `busy` | any of its messages is being worked on, from being taken to its end; several at once count once |
| `blocked_sending` | else, a `send_message` waits: for room in the receiver's inbox, or for the transport |
| `retry_backoff` | else, a message waits for its next attempt |
| `idle` | else |

- All four are there from the first scrape on, 0 until the agent is in that state: `rate()` and `increase()` miss nothing.
- A stopped agent is in no state, and none of its counters grows: `idle` is running with nothing to do. The same holds from the
  moment that an agent is unregistered, even if it goes on with the message that it is at.
- What is under way counts up to the moment of the scrape: a call of ten minutes is busy while it lasts. All four are of
  one moment, and none ever falls, over stops and starts, cancellations, or an agent that is unregistered and comes back.
- An agent that ran before it was instrumented counts from then, though its uptime is longer: what it did before, nobody
  knows. A run lasts from the call of `start` until `stop` has returned. For agents whose adapter names neither, it lasts from
  the first scrape that sees the agent running, or the start that it tells, to the last that does.
- A send counts as blocked from its first real suspension; one that never has to wait costs nothing and counts nowhere. A
  send in a task of its own (`asyncio.gather`, and `asyncio.wait_for` up to Python 3.11) can't be told to belong to
  the message that waits for it: that message is busy. So is one that awaits anything but a send.
- An attempt that a registered error handler makes instead of the agent can't be told from the wait before it: it counts as
  back-off.
- A message that the agent takes and begins only later counts as busy from being taken, as in
  `amptalk.agent.message.process.duration`; a scrape in between can't know and says idle, which later ones make good.

Utilisation, and where an agent loses its time:

```promql
# utilisation, 0 to 1
sum by (agent_name) (rate(amptalk_agent_time_seconds_total{{agent_id!="_RETIRED", state="busy"}}[5m]))
  / sum by (agent_name) (rate(amptalk_agent_time_seconds_total{{agent_id!="_RETIRED"}}[5m]))

# seconds lost in a second
topk(5, sum by (agent_name, state) (rate(amptalk_agent_time_seconds_total{{agent_id!="_RETIRED", state!~"idle|busy"}}[5m])))
```

Saturation: agents that are hardly ever idle, and whose inbox does not get empty:

```promql
sum by (agent_id) (rate(amptalk_agent_time_seconds_total{{state="idle"}}[5m]))
  / sum by (agent_id) (rate(amptalk_agent_time_seconds_total[5m])) < 0.1
  and on (agent_id) min_over_time(amptalk_agent_queue_size[5m]) > 0
```

Bursts that a scrape of `amptalk.agent.queue.size` misses show in `amptalk.agent.queue.peak`. It is kept in slots of five
seconds: a reading has the highest length of the last 60 to 65 seconds, however many readers there are and whenever they
read. So at any scrape interval up to a minute none is lost:

```promql
max by (agent_name) (max_over_time(amptalk_agent_queue_peak[1h]))
```

## Questions to ask

Messages per second, by agent:

```promql
sum by (agent_name) (rate(amptalk_agent_messages_processed_total{{agent_id!="_RETIRED"}}[5m]))
```

Who falls behind? The age of the oldest message that waits, and the inboxes that grow:

```promql
# seconds
topk(5, amptalk_agent_queue_oldest_age_seconds)

# messages per second
deriv(amptalk_agent_queue_size[10m]) > 0
```

Is it waiting or working? The 95th percentile of both:

```promql
# waiting
histogram_quantile(0.95,
  sum by (le, agent_name) (rate(amptalk_agent_message_wait_duration_seconds_bucket{{agent_id!="_RETIRED"}}[5m]))
)

# working
histogram_quantile(0.95,
  sum by (le, agent_name) (rate(amptalk_agent_message_process_duration_seconds_bucket{{agent_id!="_RETIRED"}}[5m]))
)
```

Share of messages that fail, of those that ended, and the errors behind it:

```promql
# share, 0 to 1; the last bucket has all that ended
sum by (agent_name) (rate(amptalk_agent_messages_failed_total{{agent_id!="_RETIRED"}}[5m]))
  / sum by (agent_name) (rate(amptalk_agent_message_process_duration_seconds_bucket{{agent_id!="_RETIRED", le="+Inf"}}[5m]))

# failures in an hour
topk(5, sum by (agent_name, error_type) (increase(amptalk_agent_messages_failed_total{{agent_id!="_RETIRED"}}[1h])))
```

Which agent is stuck? It has work, and finished nothing for five minutes, neither with success nor in failure:

```promql
(amptalk_agent_messages_in_flight + amptalk_agent_queue_size) > 0
  unless on (agent_id)
    sum by (agent_id) (increase(amptalk_agent_message_process_duration_seconds_bucket{{le="+Inf"}}[5m])) > 0
```

In an alert give it `for: 5m`: an agent that has only just begun looks the same.

Which agent is registered and does not run?

```promql
amptalk_agent_running{{agent_id!="_OTHER"}} == 0
```

In an alert give it `for: 6m`: an agent that was let go is told as stopped until its series end, after five minutes.

Where do messages disappear? A counter that is 0 has no series, and `increase()` does not see the 1 that a series begins with;
`unless … offset` finds that one. As alerts:

```yaml
groups:
  - name: disappearing
    rules:
      - alert: MessagesDropped
        expr: |
          increase(amptalk_agent_messages_dropped_total{{agent_id!="_RETIRED"}}[10m]) > 0
            or (
              amptalk_agent_messages_dropped_total{{agent_id!="_RETIRED"}}
                unless amptalk_agent_messages_dropped_total offset 10m
            ) > 0
      - alert: MessagesUndeliverable
        expr: |
          increase(amptalk_agent_messages_undeliverable_total{{agent_id!="_RETIRED"}}[10m]) > 0
            or (
              amptalk_agent_messages_undeliverable_total{{agent_id!="_RETIRED"}}
                unless amptalk_agent_messages_undeliverable_total offset 10m
            ) > 0
```

## All metrics

{tables}

## Good to know

- **Attributes are bounded.** After 50 values of `message.type` at an agent, or of `error.type` at one of its types, the rest is
  counted as `_OTHER`; agents in one series have these 50 together. A value has at most 128 characters; control characters and
  line breaks are blanks in it, what is no Unicode is `?`, and an empty one is `_OTHER`. Two names of which that makes the same
  text are one series: their counts are added up.
- **A counter that is 0 has no series.** It appears with the first message that it counts, which `rate()` and `increase()`
  therefore do not see. `amptalk.agent.time` alone is there from the start.
- **Series go with their agent.** The last values of an agent that was let go stay for `departed_agents_linger_s` (five
  minutes), so that the next scrape sees them; then what it counted is in `_RETIRED`: see [Many agents](#many-agents).
- **Sizes are samples.** One payload in `message_size_sample_every` (100) of each agent and type is measured, as the length of
  its JSON: exact up to 16 KiB; above that added up from its parts, without the escapes of special characters. What is no JSON,
  or has more than 2,000 values, has no size.
- **CPU shares cover at least a second.** Whoever asks sooner gets the last value again, so that two scrapers do not spoil each
  other's. In the first tenth of a second there is none.
- **Durations come from a monotonic clock.** Setting the machine's clock does not show in them.
- **Durations lead to traces.** Where there are traces, `message.wait.duration` and `message.process.duration` carry exemplars:
  see [From a spike to its trace](tracing.md#from-a-spike-to-its-trace).

## What stands on the page

- **Types.** Up-down counters are `# TYPE … gauge`: Prometheus has no type of its own for them. A metric without values has no
  `# HELP` and no `# TYPE` either. `# UNIT` is there only in OpenMetrics, which Prometheus asks for by itself
  (`Accept: application/openmetrics-text`).
- **`target_info`.** One series of value 1, whose labels tell who speaks: `service_name`, `service_instance_id`, the process, its
  Python and the SDK, and what `OTEL_RESOURCE_ATTRIBUTES` adds.
- **Names.** `system.*` and `process.*` follow OpenTelemetry's conventions for
  [systems](https://opentelemetry.io/docs/specs/semconv/system/system-metrics/) and
  [processes](https://opentelemetry.io/docs/specs/semconv/system/process-metrics/), each as one number for the whole: the CPU
  utilisations have no `cpu.mode`, and are the share that was busy. `error.type` is the conventions' too. For metrics of agents
  there are none: `amptalk.*`, `agent.id` and `agent.name` are ours. Spans follow the conventions for agents, and so have
  `gen_ai.agent.id` where metrics have `agent.id`.

## Many agents

The number of series is bounded, and no sum over agents changes because of it.

An agent has 11 series before its first message, and 59 more for each message type that it handles: 57 in three histograms, and
two counters. What it sends, failures, retries and losses are one more for each type and error or reason. So 1,000 agents of one
type each are 70,000 series and [a page of 11 MB](performance.md#a-scrape), and every further type is 59,000 more.

- **`agent.id="_OTHER"`.** One page, or one `MeterProvider`, has series of their own for `max_agents` agents (1,000). Those
  beyond it are together in one series. A place that gets free is given to the next agent; one that is in `_OTHER` stays there
  until it leaves and comes back. A place is free when the series of its agent is gone. An agent that calls itself `_OTHER` or
  `_RETIRED` is in `_OTHER` too.
- **`agent.id="_RETIRED"`.** Counters and histograms of agents that left, added up, once their own series are gone. An agent
  that has not finished its messages keeps its series until then. One that comes back before goes on in its series; one that
  comes back later begins from zero in a series of its own. Where others are in the series of an agent that leaves, what it
  counted stays there, from the moment at which it is done. `_RETIRED` is no agent: it has neither gauges nor a length of its
  inbox, and no `amptalk.agent.running`. With the last instrumentation of an orchestrator's name its `_OTHER` and `_RETIRED` go.
- **Random ids.** The framework gives each agent a random id. `AMPTALK_OTEL_AGENT_GROUPING=name` makes one series of all agents
  of a name, `class` of all of a class: counters, queue lengths and histograms are added up, ages are those of the oldest, and
  the peak is the highest of any one inbox. (The sum of peaks would be a length that there may never have been.)
- **Which agents.** `AMPTALK_OTEL_AGENTS_INCLUDE` and `AMPTALK_OTEL_AGENTS_EXCLUDE` take shell patterns (`*`, `?`, `[ab]`; upper
  and lower case are told apart) of whole ids or names. An agent is watched if its id or its name matches one that includes, or
  none is given, and neither matches one that excludes. It is decided when the agent is registered. What is
  excluded is not touched.
- **Your own metrics.** What `monitor.observe` reads of agents is in the same series, added up where several agents are in one (a
  gauge has the highest value), and not there for agents that are excluded. A counter is read once more when its agent is removed,
  and what it counted goes to `_RETIRED` at once, or stays in the series of others; gauges and up-down counters end with their
  agent. `measure_execution_time` keeps to the same series; ids of no agent have series of their own as long as there are less
  than `max_agents` ids.
- **Spans** have the agent's own id in `gen_ai.agent.id`, however it is shown in metrics: they are no series.

No counter falls on the way from one series to another, so sums of counters are right at each moment. But `_RETIRED` rises when
the counts of an agent come to it, and `rate()` and `increase()`, which look at each series by itself, take that for messages.
Leave it out of rates, and keep it in sums. Nothing is missed: the last values of an agent stay in its own series for five
minutes, for a scrape to see. Two things are told by `_RETIRED` alone: the message that an agent was at for longer than that
after it had left, and what a counter of `monitor.observe` gained between the last scrape and the removal of its agent.

```promql
# messages per second, of all agents
sum without (agent_id, agent_name) (rate(amptalk_agent_messages_received_total{{agent_id!="_RETIRED"}}[5m]))

# messages since the program was started
sum without (agent_id, agent_name) (amptalk_agent_messages_received_total)
```

With a `MeterProvider` of your own, histograms of agents that left move to `_RETIRED` where the SDK has them in explicit buckets;
others stay as they were.

Where an exporter prefers delta temporality, our pipeline tells of `_RETIRED` only what it has not told of the agents that left:
the sum of all differences is right. OpenTelemetry's SDK does so for histograms, and can't for observable counters: with a
`MeterProvider` of your own, and for counters of `monitor.observe`, leave `_RETIRED` out when you add up differences.

## Buckets

Bounds are the inclusive upper ends of the buckets; a last bucket takes what is larger. They are given to OpenTelemetry as
advice: a view in a `MeterProvider` of your own goes before them.

Values below the lowest bound, 0.5 ms for durations, can't be told apart. A quantile there, in PromQL as in
`Distribution.quantile`, is an interpolation between 0 and that bound, and no measurement.

Durations, in seconds:

    {durations}

Sizes, in bytes:

    {sizes}
"""  # noqa: E501 - as above

_OWNERS = {
    Owner.PROCESS: ("The machine and the process", "These have no attributes. Shares are between 0 and 1."),
    Owner.AGENT: ("Agents", "All have `agent.id` and `agent.name`, and `orchestrator.name` where there is one."),
    Owner.ORCHESTRATOR: ("Orchestrators", "With `orchestrator.name`."),
    Owner.STATE: (
        "State managers",
        "With the attributes of the agent that the state manager belongs to, where there is one.",
    ),
    Owner.OPERATION: (
        "Operations that the program measures itself",
        "With `agent.id`, and with `agent.name` where it is known.",
    ),
}

_KINDS = {
    Kind.COUNTER: "counter",
    Kind.UP_DOWN_COUNTER: "up-down counter",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}


def metrics() -> str:
    """The text of docs/metrics.md."""
    names = page_names()
    return _GENERATED + _METRICS.format(
        tables="\n\n".join(_table(owner, names) for owner in Owner),
        durations=_numbers(DURATION_BOUNDS_S),
        sizes=_numbers(SIZE_BOUNDS_BYTES),
    )


def page_names() -> dict[str, str]:
    """What each metric is called on the Prometheus page, by asking an exporter."""
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False, disable_target_info=True)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    meter = provider.get_meter("docs")
    for metric in CATALOGUE:
        instrument = _create(meter, metric, lambda _options: [Observation(1)])
        if metric.kind is Kind.HISTOGRAM:
            instrument.record(1)
    page = generate_latest(registry).decode()
    provider.shutdown()
    helps = (line.split(" ", 3)[2:] for line in page.splitlines() if line.startswith("# HELP "))
    by_description = {description: name for name, description in helps}
    return {metric.name: by_description[metric.description] for metric in CATALOGUE}


def _table(owner: Owner, names: dict[str, str]) -> str:
    title, sentence = _OWNERS[owner]
    rows = [_metric_row(metric, names[metric.name]) for metric in CATALOGUE if metric.owner is owner]
    head = ["| metric | on the page | kind | unit | attributes | what it tells |", "|---|---|---|---|---|---|"]
    return "\n".join([f"### {title}", "", sentence, "", *head, *rows])


def _metric_row(metric: Metric, name: str) -> str:
    kind = _KINDS[metric.kind]
    if metric.kind is Kind.HISTOGRAM:
        kind += " of durations" if metric.bounds is DURATION_BOUNDS_S else " of sizes"
    attributes = ", ".join(f"`{attribute}`" for attribute in metric.attributes)
    return _row(f"`{metric.name}`", f"`{name}`", kind, f"`{metric.unit}`", attributes, metric.description)


# -- both ----------------------------------------------------------------------------------------------


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")


def _numbers(bounds: Iterable[float]) -> str:
    return ", ".join(f"{bound:,.10g}".replace(",", "") for bound in bounds)


def main() -> int:
    """Write or check the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md and docs/metrics.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where the files are (default: docs)")
    options = parser.parse_args()
    pages: dict[str, str] = {"configuration.md": configuration(), "metrics.md": metrics()}
    outdated = [name for name, text in pages.items() if _differs(options.folder / name, text)]
    if not options.check:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name in outdated:
            (options.folder / name).write_text(pages[name], encoding="utf-8")
            print(f"wrote {options.folder / name}")
        return 0
    if outdated:
        print("run: python scripts/generate_docs.py", file=sys.stderr)
    return 1 if outdated else 0


def _differs(path: Path, text: str) -> bool:
    former = path.read_text(encoding="utf-8") if path.exists() else ""
    changes = list(
        difflib.unified_diff(former.splitlines(), text.splitlines(), str(path), "generated", lineterm="", n=0)
    )
    for line in changes[:20]:
        print(line, file=sys.stderr)
    return former != text


if __name__ == "__main__":
    sys.exit(main())
