"""The table as text: whole-output snapshots, widths, colours and number formats."""

from __future__ import annotations

import re

import pytest

from amptalk_otel.demo.board import Row, Totals
from amptalk_otel.demo.table import Usage, format_clock, format_duration, render, render_table, render_totals

ROWS = [
    Row("Transcription", True, 0, 1, 12_345, 20.0, 231, 0, 0, 0.00025, 0.00048, 0.00082, 0.0024),
    Row("Glossary", True, 1_784, 0, 2_429, 87.34, 0, 1, 39, 3.04, 6.8, 0.0081, 0.056),
    Row("Minutes", False, 0, 0, 0, 0.0, 0, 0, 0, None, None, None, None),
]
USAGE = Usage(cpu_share=0.034, memory_bytes=34_400_000, uptime_s=3723.4)
SUMMARY = "Armstrong: The Eagle has landed."

WIDE = """\
                                   in                                                wait    wait  process  process
agent          state    queue  flight  received  proc/s  failed  dropped  retries     p50     p95      p50      p95
Transcription  running      0       1    12,345    20.0     231        0        0  <0.5ms  <0.5ms   0.82ms    2.4ms
Glossary       running  1,784       0     2,429    87.3       0        1       39    3.0s    6.8s    8.1ms     56ms
Minutes        stopped      0       0         0     0.0       0        0        0       -       -        -        -

cpu 3% of a core   memory 34 MB   up 1:02:03
summary: Armstrong: The Eagle has landed."""

AT_80 = """\
                        in                                          wait process
agent         queue flight received proc/s failed dropped retries    p95     p95
Transcription     0      1   12,345   20.0    231       0       0 <0.5ms   2.4ms
Glossary      1,784      0    2,429   87.3      0       1      39   6.8s    56ms
Minutes           0      0        0    0.0      0       0       0      -       -

cpu 3% of a core   memory 34 MB   up 1:02:03
summary: Armstrong: The Eagle has landed."""

AT_30 = """\

agent          queue  proc/s
Transcription      0    20.0
Glossary       1,784    87.3
Minutes            0     0.0

cpu 3% of a core   memory 3...
summary: Armstrong: The Eag..."""


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


class TestSnapshots:
    @pytest.mark.parametrize(("width", "text"), [(120, WIDE), (80, AT_80), (30, AT_30)])
    def test_whole_display(self, width: int, text: str) -> None:
        assert "\n".join(render(ROWS, USAGE, SUMMARY, width=width)) == text

    def test_before_anything_is_known(self) -> None:
        lines = render([], Usage(0.0, 0, 0.0), None, width=120)
        assert len(lines) == 5
        assert lines[-2:] == ["cpu 0% of a core   memory 0 MB   up 0:00", "summary: -"]


class TestWidth:
    @pytest.mark.parametrize("width", [1, 2, 4, 7, 10, 20, 40, 60, 79, 100, 116, 117, 300])
    @pytest.mark.parametrize("color", [False, True])
    def test_no_line_is_wider(self, *, width: int, color: bool) -> None:
        lines = render(ROWS, USAGE, SUMMARY, width=width, color=color)
        assert max(len(plain(line)) for line in lines) <= width

    def test_what_gives_way_first(self) -> None:
        headings = [render_table(ROWS, width=width)[1].split() for width in (120, 95, 85, 80)]
        assert headings[0] == (
            "agent state queue flight received proc/s failed dropped retries p50 p95 p50 p95".split()  # noqa: SIM905
        )
        assert "state" in headings[1]
        assert "state" not in headings[3]
        assert [len(heading) for heading in headings] == sorted((len(h) for h in headings), reverse=True)

    def test_the_name_is_cut_last_of_all(self) -> None:
        assert [line.strip() for line in render_table(ROWS, width=10)[2:]] == ["Transcr...", "Glossary", "Minutes"]


class TestColor:
    def test_is_only_paint(self) -> None:
        painted = render(ROWS, USAGE, SUMMARY, width=120, color=True)
        assert [plain(line).rstrip() for line in painted] == WIDE.splitlines()
        assert "\x1b" not in "".join(render(ROWS, USAGE, SUMMARY, width=120))

    def test_bad_news_stand_out(self) -> None:
        lines = render_table(ROWS, width=120, color=True)
        assert "\x1b[31m   231\x1b[0m" in lines[2]
        assert "\x1b[33m     39\x1b[0m" in lines[3]
        assert "\x1b[2mstopped\x1b[0m" in lines[4]


class TestTotals:
    def test_everything_accounted_for(self) -> None:
        totals = Totals(
            received=1_130,
            processed=1_000,
            failed=100,
            dropped=20,
            in_flight=4,
            queued=6,
            sent=7,
            undeliverable=8,
            retries=9,
        )
        assert render_totals(totals) == (
            "received 1,130 = processed 1,000 + failed 100 + dropped 20 + in flight 4 + queued 6"
            "; retries 9, undeliverable 8"
        )

    def test_a_wrong_balance_is_not_hidden(self) -> None:
        assert render_totals(Totals(2, 1, 0, 0, 0, 0, 0, 0, 0)).startswith("received 2 != processed 1 ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "<0.5ms"),
        (0.000499, "<0.5ms"),
        (0.0005, "0.50ms"),
        (0.00099, "0.99ms"),
        (0.000999, "1.0ms"),
        (0.0031, "3.1ms"),
        (0.00996, "10ms"),
        (0.12, "120ms"),
        (0.9994, "999ms"),
        (0.9999, "1.0s"),
        (4.24, "4.2s"),
        (9.99, "10s"),
        (95.0, "95s"),
        (600.0, "10m"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
    assert len(text) <= 6


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (754, "12:34"), (3600, "1:00:00")])
def test_clock(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text
