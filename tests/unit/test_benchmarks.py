"""The benchmarks' own arithmetic, tables and bounds. How fast anything is, is not tested here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import xml.etree.ElementTree as ET
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, get_current_span
from prometheus_client import CollectorRegistry, generate_latest

from amptalk_otel.demo.runtime import Message
from tests.benchmarks import bounds, command, loop_delay, messages, peers, tracing
from tests.benchmarks.bounds import Bound, Recorded
from tests.benchmarks.churn import differences_of
from tests.benchmarks.harness import (
    Summary,
    differences,
    exactly,
    kept_by_the_host_s,
    measured,
    quantile,
    ratio,
    summarize,
    turns,
)
from tests.benchmarks.mirror import PrometheusMirror, Series, shape_of
from tests.benchmarks.plot import log_log
from tests.benchmarks.population import TYPES, Population
from tests.benchmarks.report import Result, Table, machine, number, paste, spread
from tests.benchmarks.scrape import must_be_alike
from tests.page import Page
from tests.support import in_loop

PAGE = """\
# HELP received_total Messages.
# TYPE received_total counter
received_total{agent_id="a",agent_name="A",message_type="x"} 2.0
received_total{agent_id="b",agent_name="B",message_type="x"} 3.0
# HELP wait_seconds Waits.
# TYPE wait_seconds histogram
wait_seconds_bucket{agent_id="a",agent_name="A",le="0.5"} 1.0
wait_seconds_bucket{agent_id="a",agent_name="A",le="2.0"} 2.0
wait_seconds_bucket{agent_id="a",agent_name="A",le="+Inf"} 2.0
wait_seconds_count{agent_id="a",agent_name="A"} 2.0
wait_seconds_sum{agent_id="a",agent_name="A"} 1.25
# HELP uptime_seconds Uptime.
# TYPE uptime_seconds gauge
uptime_seconds 4.0
"""


# -- statistics ----------------------------------------------------------------------------------------


def test_a_summary_is_the_median_and_the_quartiles() -> None:
    assert summarize([5, 1, 3, 2, 4]) == Summary(3, 2, 4, 5)
    assert summarize([1, 2]) == Summary(1.5, 1.25, 1.75, 2)
    assert summarize([7]) == Summary(7, 7, 7, 1)
    with pytest.raises(ValueError, match="nothing"):
        summarize([])


def test_the_spread_is_a_share_of_the_median() -> None:
    assert Summary(4, 3, 5, 9).spread == 0.5
    assert Summary(-4, -5, -3, 9).spread == 0.5
    assert exactly(0).spread == 0


def test_a_ratio_is_made_round_by_round() -> None:
    assert ratio([2, 40, 6], [1, 10, 1]) == Summary(4, 3, 5, 3)  # the medians' ratio would be 6
    assert ratio([2, 9, 9], [1, 0, -1]) == Summary(2, 2, 2, 1)
    with pytest.raises(ValueError, match="nothing"):
        ratio([1], [0])
    with pytest.raises(ValueError, match="zip"):
        ratio([1, 2], [1])


def test_differences_are_of_the_same_round() -> None:
    assert differences([5, 7], [1, 2]) == [4, 5]


@pytest.mark.parametrize(("q", "value"), [(0, 1), (0.1, 1), (0.101, 2), (0.5, 5), (0.99, 10), (1, 10)])
def test_a_quantile_is_one_of_the_values(q: float, value: float) -> None:
    assert quantile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], q) == value


def test_there_is_no_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)


def test_peers_take_turns_in_an_order_that_changes_and_can_be_repeated() -> None:
    orders = list(turns(("a", "b", "c"), 20))
    assert {frozenset(order) for order in orders} == {frozenset("abc")}
    assert len(set(orders)) > 3
    assert orders == list(turns(("a", "b", "c"), 20))


def test_both_times_are_measured_when_a_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), measured() as usage:
        _ = sum(range(100_000)) / 0
    assert usage.cpu_s > 0
    assert usage.wall_s > 0


# -- tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.2345, "1.23"), (12.345, "12.3"), (123.4, "123"), (12345.6, "12,346"), (0.01234, "0.0123"),
     (-2.5, "-2.50"), (0.00001234, "0.000012")],
)  # fmt: skip
def test_numbers_have_as_many_digits_as_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_median_is_shown_with_its_quartiles() -> None:
    assert spread(Summary(2, 1, 3, 5)) == "2.00 (1.00 to 3.00)"
    assert spread(Summary(2, 2, 2, 1)) == "2.00"


def test_a_table_is_markdown() -> None:
    table = Table(("", "µs"), (("a|b", "1"),), "Title")
    assert table.markdown() == "**Title**\n\n|  | µs |\n|---|---:|\n| a\\|b | 1 |"
    with pytest.raises(ValueError, match="3 cells under 2 headings"):
        Table(("a", "b"), (("1", "2", "3"),)).markdown()


def test_a_result_is_markdown_and_json() -> None:
    result = Result("x", (Table(("a",), (("1",),)),), {"x.y": exactly(2)}, ("a note",), {"p.svg": "<title>P</title>"})
    assert result.markdown() == "![P](images/p.svg)\n\n| a |\n|---|\n| 1 |\n\n- a note"
    again = json.loads(json.dumps(result.as_json()))
    assert again["ratios"] == {"x.y": {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 1}}
    assert "pictures" not in again


def test_the_machine_is_told_without_its_name() -> None:
    cells = {row[0]: row[1] for row in machine(short=True).rows}
    assert cells["form"] == "short"
    assert re.fullmatch(r"opentelemetry-sdk \d\S+, .*psutil \d\S+", cells["packages"])
    assert int(cells["cores available"]) >= 1


def test_what_the_host_kept_is_the_eighth_number_of_all_cpus_together(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 20 3000 5 0 1 250 0 0\ncpu0 5 0 10 1500 2 0 1 125 0 0\n", encoding="ascii")
    assert kept_by_the_host_s(stat) == 250 / os.sysconf("SC_CLK_TCK")


def test_where_nobody_tells_what_the_host_kept_it_kept_nothing(tmp_path: Path) -> None:
    assert kept_by_the_host_s(tmp_path / "stat") == 0.0
    (tmp_path / "stat").write_text("cpu  10 0 20\n", encoding="ascii")
    assert kept_by_the_host_s(tmp_path / "stat") == 0.0


@in_loop
async def test_long_delays_while_the_host_kept_the_cpu_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is what the sleeps say: the second takes 10 ms too long while the host keeps 10 ms, the third on its own."""
    now_s, kept_s = 100.0, 5.0
    late_s = iter([0.0, 0.010, 0.010, 0.0])
    stolen_s = iter([0.0, 0.010, 0.0, 0.0])

    async def sleep(seconds: float) -> None:
        nonlocal now_s, kept_s
        now_s += seconds + next(late_s)
        kept_s += next(stolen_s)

    monkeypatch.setattr(loop_delay, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(loop_delay, "time", SimpleNamespace(perf_counter=lambda: now_s))
    ticks = await loop_delay._tick(0.0235, lambda: kept_s)
    assert ticks == ([0.0, 10.0, 0.0], 1)


def test_a_section_is_pasted_between_its_markers() -> None:
    page = "before\n<!-- benchmark: a -->\nold\n<!-- end: a -->\nafter\n"
    once = paste(page, "a", "new")
    assert once == "before\n<!-- benchmark: a -->\n\nnew\n\n<!-- end: a -->\nafter\n"
    assert paste(once, "a", "new") == once


@pytest.mark.parametrize(
    "page",
    ["", "<!-- benchmark: a -->", "<!-- end: a --><!-- benchmark: a -->", "<!-- benchmark: a --><!-- end: a -->" * 2],
)
def test_a_page_without_the_markers_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="needs the markers"):
        paste(page, "a", "new")


def test_the_page_has_a_place_for_every_benchmark() -> None:
    page = command.PAGE.read_text(encoding="utf-8")
    for name in ("machine", "limits", *command.BENCHMARKS):
        assert paste(page, name, "x") != page


def test_a_plot_is_svg_that_describes_itself() -> None:
    picture = log_log("Cost & size", "agents", "ms", {"ours": [(10, 0.5), (1000, 50), (5, 0)], "none": [(1, -1)]})
    root = ET.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") == "Cost & size"
    assert root.findtext(f"{space}desc") == "ms, by agents. ours: 0.5 at 10, 50.0 at 1,000."
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"agents", "ms", "ours", "10", "100", "1,000", "0.1", "1"} <= set(texts)
    assert "none" not in texts
    with pytest.raises(ValueError, match="nothing to draw"):
        log_log("t", "x", "y", {"none": [(1, 0)]})


def test_names_of_lines_do_not_cover_each_other() -> None:
    picture = log_log("t", "x", "y", {name: [(1, 1), (10, 5)] for name in "abc"})
    root = ET.fromstring(picture)
    heights = sorted(float(one.get("y", "0")) for one in root.iter() if one.text in ("a", "b", "c"))
    assert min(above - below for below, above in pairwise(heights)) >= 16


# -- bounds --------------------------------------------------------------------------------------------

AT_MOST = Bound("n", "what", 2.0, at_most=True)
AT_LEAST = Bound("n", "what", 2.0)
COUNT = Bound("n", "what", 0.0, at_most=True, recordable=False, short_slack=0.0)
UNPROMISED = Bound("n", "what", None)
SHOWN = Bound("n", "what", 2.0, at_most=True, recordable=False, short_slack=None)


@pytest.mark.parametrize(
    ("bound", "value", "recorded", "short", "limit"),
    [
        (AT_MOST, 2.0, None, False, None),
        (AT_MOST, 2.1, None, False, "at most 2.00"),
        (AT_LEAST, 2.0, None, False, None),
        (AT_LEAST, 1.9, None, False, "at least 2.00"),
        (AT_MOST, 2.9, None, True, None),  # half as much again
        (AT_MOST, 3.1, None, True, "at most 3.00"),
        (AT_LEAST, 1.4, None, True, None),
        (AT_LEAST, 1.3, None, True, "at least 1.33"),
        (AT_MOST, 1.4, Recorded(1.0, 0.1, 0.3), False, "at most 1.30"),
        (AT_MOST, 1.2, Recorded(1.0, 0.1, 0.3), False, None),
        (AT_MOST, 2.1, Recorded(1.9, 0.1, 0.3), True, None),  # CI goes by what was recorded
        (AT_MOST, 2.1, Recorded(1.9, 0.1, 0.3), False, "at most 2.00"),
        (AT_LEAST, 4.9, Recorded(6.5, 0.1, 0.3), False, "at least 5.00"),
        (AT_LEAST, 5.1, Recorded(6.5, 0.1, 0.3), False, None),
        (AT_LEAST, 2.9, Recorded(6.6, 0.1, 0.3), True, "at least 3.00"),  # within a wider margin
        (AT_LEAST, 3.1, Recorded(6.6, 0.1, 0.3), True, None),
        (COUNT, 0.0, None, True, None),
        (COUNT, 1.0, None, True, "at most 0"),
        (COUNT, 1.0, Recorded(9.0, 0.0, 0.3), False, "at most 0"),
        (SHOWN, 9.0, None, True, None),
        (SHOWN, 9.0, None, False, "at most 2.00"),
        (UNPROMISED, 0.1, None, False, None),
        (UNPROMISED, 0.7, Recorded(1.0, 0.1, 0.3), False, "at least 0.769"),
    ],
)
def test_a_bound_is_kept_or_broken(
    bound: Bound, value: float, recorded: Recorded | None, short: bool, limit: str | None
) -> None:
    sentence = bounds.violation(bound, value, recorded, short=short)
    if limit is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert f" {limit} is allowed" in sentence


@pytest.mark.parametrize(("spread_share", "margin"), [(0.0, 0.5), (0.1, 0.5), (0.18, 0.54), (0.5, 0.6)])
def test_the_margin_comes_from_the_spread(spread_share: float, margin: float) -> None:
    assert bounds.margin_of(spread_share) == pytest.approx(margin)


def test_recording_keeps_what_was_not_measured_and_leaves_out_counts(tmp_path: Path) -> None:
    path = tmp_path / "recorded.json"
    assert bounds.load(path) == {}
    bounds.record({"memory.sdk_to_ours": Summary(4, 3.8, 4.2, 5), "churn.wrong": exactly(0)}, path)
    bounds.record({"export.stock_to_ours": exactly(2)}, path)
    assert bounds.load(path) == {
        "export.stock_to_ours": Recorded(2, 0, 0.5),
        "memory.sdk_to_ours": Recorded(4, 0.1, 0.5),
    }


def test_what_is_recorded_has_a_bound() -> None:
    names = [bound.name for bound in bounds.BOUNDS]
    assert len(names) == len(set(names))
    assert bounds.load().keys() <= {bound.name for bound in bounds.BOUNDS if bound.recordable}
    assert {name.split(".")[0] for name in names} == set(command.BENCHMARKS) - {"growth"}


def test_violations_are_of_what_was_measured() -> None:
    ratios = {"export.stock_to_ours": exactly(1), "memory.sdk_to_ours": exactly(5)}
    (sentence,) = bounds.violations(ratios, {}, short=False)
    assert sentence.startswith("an OTLP export of 1,000 agents")
    assert [row[0] for row in bounds.table(ratios).rows] == [
        "an OTLP export of 1,000 agents: stock path ÷ ours",
        "memory for an agent's series: SDK ÷ ours",
    ]


# -- the command ---------------------------------------------------------------------------------------


class _Fake:
    """A benchmark that is fast."""

    def __init__(self, value: float) -> None:
        self._result = Result("export", (Table(("a",), (("1",),)),), {"export.stock_to_ours": exactly(value)})

    def run(self, *, short: bool) -> Result:
        return self._result


@pytest.mark.parametrize(("value", "code"), [(1.0, 1), (3.0, 0)])
def test_the_command_fails_when_a_ratio_is_out_of_bounds(
    value: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "import_module", lambda _name: _Fake(value))
    monkeypatch.setattr(bounds, "load", dict)
    page = tmp_path / "performance.md"
    page.write_text("<!-- benchmark: export -->\n<!-- end: export -->\n")
    monkeypatch.setattr(command, "PAGE", page)
    file = tmp_path / "results.json"
    assert command.main(["--only", "export", "--check", "--write", "--json", str(file)]) == code
    told = capsys.readouterr()
    assert ("out of bounds: an OTLP export" in told.err) == bool(code)
    assert "| a |\n|---|\n| 1 |" in told.out
    assert "| 1 |" in page.read_text()
    assert json.loads(file.read_text())[0]["name"] == "export"
    assert command.main(["--only", "export"]) == 0


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--short", "--write"], ["--short", "--record"], ["-x"]])
def test_bad_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m tests.benchmarks" in capsys.readouterr().err


def test_help_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in command.BENCHMARKS)
    assert "tox -e bench -- --short --check" in told


# -- that peers do the same ----------------------------------------------------------------------------


def test_the_shape_of_a_page_is_that_of_one_agent() -> None:
    assert shape_of(PAGE, "a") == [
        Series("received", "counter", "Messages.", (("message_type", "x"),), of_agent=True),
        Series("wait_seconds", "histogram", "Waits.", (), of_agent=True, bounds=(0.5, 2.0)),
        Series("uptime_seconds", "gauge", "Uptime.", (), of_agent=False),
    ]


def test_a_mirror_has_the_same_series_for_every_agent() -> None:
    registry = CollectorRegistry()
    mirror = PrometheusMirror(shape_of(PAGE, "a"), [("a", "A"), ("b", "B")], registry)
    mirror.touch()
    page = Page(generate_latest(registry).decode())
    assert {key for key in Page(PAGE).samples if ("agent_id", "b") not in key[1]} <= set(page.samples)
    assert page.value("wait_seconds_count", agent_id="b") == 1
    assert len(page.samples) == 2 * 6 + 1


@in_loop
async def test_our_page_can_be_mirrored() -> None:
    text = await peers.sample_page()
    registry = CollectorRegistry()
    PrometheusMirror(shape_of(text, "agent-00000"), [("agent-00000", "Agent 00000")], registry).touch()
    mirrored = _series(generate_latest(registry).decode())
    assert {name for name, _labels in _series(text) - mirrored} <= {"target_info"}
    assert mirrored - _series(text) == set()
    assert len(mirrored) > 50


def _series(text: str) -> set[tuple[str, frozenset[tuple[str, object]]]]:
    """The series of a page; bounds of buckets as numbers, as they are written in more than one way."""
    return {
        (name, frozenset((label, float(value) if label == "le" else value) for label, value in labels))
        for name, labels in Page(text).samples
    }


@in_loop
async def test_all_peers_of_a_message_count_the_same() -> None:
    found = await messages.measure(messages.PEERS, 3, TYPES[:2], rounds=2, messages=60)
    assert set(found) == set(messages.PEERS)
    assert all(len(peer.cpu_us) == len(peer.wall_us) == 2 for peer in found.values())
    assert {peer.population.handled for peer in found.values()} == {60 + 2 * 60}


@in_loop
async def test_a_peer_with_a_weight_gets_more_messages_and_is_measured_by_each_of_them() -> None:
    weights = {messages.FLOOR: 3}
    found = await messages.measure(
        (messages.BARE, messages.FLOOR), 1, TYPES[:1], rounds=2, messages=50, weights=weights
    )
    assert [peer.population.handled for peer in found.values()] == [50 + 2 * 50, 50 + 2 * 150]
    assert [len(peer.cpu_us) for peer in found.values()] == [2, 2]


# -- that spans are the same ---------------------------------------------------------------------------

_SIZE = "messaging.message.body.size"  # of one message in so many


@in_loop
@pytest.mark.parametrize("sends", [False, True])
async def test_all_rows_of_tracing_count_and_make_spans_as_they_should(sends: bool) -> None:
    found = await tracing.Block(sends=sends).measure(rounds=1, messages=40)
    handled = {name: peer.population.handled for name, peer in found.items()}
    assert handled == {row.name: 40 + 40 * (tracing.WEIGHT if row.sampling is None else 1) for row in tracing.ROWS}


@in_loop
@pytest.mark.parametrize(("sends", "expected"), [(False, {"process"}), (True, {"send", "process"})])
async def test_spans_by_hand_are_like_ours(sends: bool, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, by_hand = [await _spans_of(tool, monkeypatch, sends=sends) for tool in (messages.OURS, tracing.BY_HAND)]
    assert [_described(span) for span in ours] == [_described(span) for span in by_hand]
    assert {span.name.split()[0] for span in ours} == expected
    for spans in (ours, by_hand):
        parents = {span.context.span_id for span in spans if span.name.startswith("send")}
        assert {span.parent is None or span.parent.span_id in parents for span in spans} == {True}
        assert sum(span.parent is None for span in spans) == 5


async def _spans_of(tool: str, monkeypatch: pytest.MonkeyPatch, *, sends: bool) -> list[ReadableSpan]:
    """Those of five messages."""
    found: list[ReadableSpan] = []
    monkeypatch.setattr(tracing.Dropping, "on_end", lambda _self, span: found.append(span))
    peer = await tracing.Block(sends=sends).make(tracing.Row(tool, tracing.SAMPLINGS[-1]).name, 1, TYPES[:1])
    await peer.population.send(peer.population.messages(5))
    await peer.population.stop()
    await asyncio.to_thread(peer.close)
    return found


def _described(span: ReadableSpan) -> tuple[object, ...]:
    """What does not differ from run to run."""
    own = ("messaging.message.id", "amptalk.message.wait.duration")
    attributes = {name: value if name not in own else type(value) for name, value in (span.attributes or {}).items()}
    attributes.pop(_SIZE, None)
    return span.name, span.kind, attributes, span.status.status_code, [event.name for event in span.events], span.links


@in_loop
@pytest.mark.parametrize("tool", [messages.OURS, tracing.BY_HAND])
@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize(("sampling", "traces"), [(tracing.SAMPLINGS[0], 5), (tracing.SAMPLINGS[1], 1)])
async def test_messages_are_handled_in_the_unsampled_trace_that_they_belong_to(
    tool: str, sends: bool, sampling: tracing.Sampling, traces: int
) -> None:
    peer = await tracing.Block(sends=sends).make(tracing.Row(tool, sampling).name, 1, TYPES[:1])
    found: list[SpanContext] = []

    async def handle(message: Message) -> None:
        found.append(get_current_span().get_span_context())
        await peer.population._handle(message)

    peer.population.agents[-1].register_message_handler(TYPES[0], handle)
    await peer.population.send(peer.population.messages(5))
    await peer.population.stop()
    await asyncio.to_thread(peer.close)
    assert [context.is_valid and not context.trace_flags.sampled for context in found] == [True] * 5
    assert len({context.trace_id for context in found}) == traces


@pytest.mark.parametrize(
    ("spans", "share", "is_due"),
    [(1000, 1.0, True), (999, 1.0, False), (0, 0.0, True), (1, 0.0, False), (100, 0.1, True), (130, 0.1, True),
     (30, 0.1, False), (10, 0.1, False), (0.5, 0.0, False)],
)  # fmt: skip
def test_a_row_without_its_spans_is_noticed(spans: float, share: float, is_due: bool) -> None:
    with nullcontext() if is_due else pytest.raises(RuntimeError, match=r"a row made spans of .* of 1,000"):
        tracing.check_spans("a row", spans, 1000, share)


def test_tracing_is_held_against_the_same_by_hand() -> None:
    tenth = tracing.SAMPLINGS[2]
    ours = tracing.Row(messages.OURS, tenth)
    assert ours.beside == tracing.Row(tracing.BY_HAND, tenth)
    assert ours.untraced == tracing.Row(messages.OURS)
    assert ours.beside.untraced == ours.untraced.beside == tracing.Row(messages.FLOOR)
    assert [row.name for row in (ours, ours.beside, ours.untraced)] == [
        "amptalk_otel, 10 % sampled", "SDK spans by hand, 10 % sampled", "amptalk_otel, tracing off",
    ]  # fmt: skip
    assert len({row.name for row in tracing.ROWS}) == len(tracing.ROWS)


def _taking(cpu_us: float) -> messages.Peer:
    peer = messages.Peer.__new__(messages.Peer)
    peer.cpu_us, peer.wall_us = [cpu_us], [cpu_us + 1]
    return peer


def test_ratios_of_tracing_are_of_overheads() -> None:
    untraced = {messages.BARE: 4.0, messages.FLOOR: 6.0, messages.OURS: 7.0}
    traced = {messages.OURS: 14.0, tracing.BY_HAND: 24.0}
    peers = {row.name: _taking((untraced if row.sampling is None else traced)[row.tool]) for row in tracing.ROWS}
    ratios = {name: summary.median for name, summary in tracing.ratios_of(peers).items()}
    assert ratios == {"tracing.off.ours_to_floor": 1.5} | {
        f"tracing.{sampling.name}.ours_to_sdk": 0.5 for sampling in tracing.SAMPLINGS
    }
    assert {*ratios, *tracing.ratios_of(peers, "sent.")} == {
        bound.name for bound in bounds.BOUNDS if bound.name.startswith("tracing.")
    }
    cells = {row[0]: row[1:] for row in tracing.table(peers, "").rows}
    assert len(cells) == len(tracing.ROWS)
    assert cells["uninstrumented"] == ("4.00", "5.00", "", "", "")
    assert cells["amptalk_otel, tracing off"] == ("7.00", "8.00", "3.00", "", "1.50 \N{MULTIPLICATION SIGN}")
    assert cells["amptalk_otel, 10 % sampled"] == ("14.0", "15.0", "10.0", "7.00", "0.5 \N{MULTIPLICATION SIGN}")
    assert cells["SDK spans by hand, 10 % sampled"] == ("24.0", "25.0", "20.0", "18.0", "")


def test_a_page_that_shows_less_is_noticed() -> None:
    must_be_alike("10", {"ours": 650, "stock": 650, "by hand": 648})
    with pytest.raises(RuntimeError, match="the pages of 10 agents differ"):
        must_be_alike("10", {"ours": 640, "stock": 650})


def test_a_peer_that_does_not_count_is_noticed() -> None:
    peer = messages.Peer.__new__(messages.Peer)
    peer.processed = lambda: 0
    peer.population = Population.__new__(Population)
    peer.population.handled = 5
    with pytest.raises(RuntimeError, match="ours counted 0 messages of 5"):
        messages._check({"ours": peer})


# -- agents that come and go ---------------------------------------------------------------------------

_GOOD = "".join(
    f'{name}{{agent_id="a",message_type="x"}} 2.0\n'
    for name in (
        "amptalk_agent_messages_received_total",
        "amptalk_agent_messages_processed_total",
        "amptalk_agent_message_wait_duration_seconds_count",
        "amptalk_agent_message_process_duration_seconds_count",
    )
)


def test_a_page_that_is_right_has_no_differences() -> None:
    assert differences_of(_GOOD + "process_uptime_seconds 1.0\n", {"a": 2}) == []


@pytest.mark.parametrize(
    ("page", "given", "number_of_differences", "example"),
    [
        (_GOOD, {"a": 3}, 4, "of a is 2.0, not 3"),
        (_GOOD, {}, 4, "of a, which is gone"),
        (_GOOD, {"a": 2, "b": 1}, 4, "of b is None, not 1"),
        (_GOOD.replace("2.0", "1.0", 1), {"a": 2}, 1, "amptalk_agent_messages_received_total of a is 1.0, not 2"),
        (_GOOD + 'amptalk_agent_running{agent_id="z"} 1.0\n', {"a": 2}, 1, "amptalk_agent_running of z, which is gone"),
    ],
)
def test_what_is_wrong_on_a_page_is_told(
    page: str, given: dict[str, int], number_of_differences: int, example: str
) -> None:
    complaints = differences_of(page, given)
    assert len(complaints) == number_of_differences
    assert example in complaints[0]
