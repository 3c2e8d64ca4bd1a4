"""WebVTT cues are read, cleaned and joined."""

from __future__ import annotations

import pytest

from amptalk_otel.demo.captions import Cue, UtteranceJoiner, clean_text, parse_cue, split_blocks

DOCUMENT = """WEBVTT

NOTE
Not a cue.

00:01.000 --> 00:02.500
<v Ann>One.

second
01:00:03.000 --> 01:00:04.000 align:start
<v.loud Bob Lee>Two
and <i>three</i>.
"""


def cue(start_s: float, speaker: str, text: str = "Words.", length_s: float = 1.0) -> Cue:
    return Cue(start_s, start_s + length_s, speaker, text)


class TestParsing:
    def test_only_cues_are_blocks(self) -> None:
        blocks = split_blocks(DOCUMENT)
        assert [parse_cue(block) for block in blocks] == [
            Cue(1.0, 2.5, "Ann", "One."),
            Cue(3603.0, 3604.0, "Bob Lee", "Two and three."),
        ]

    def test_windows_line_ends(self) -> None:
        assert split_blocks(DOCUMENT.replace("\n", "\r\n")) == split_blocks(DOCUMENT)

    def test_cue_without_voice(self) -> None:
        assert parse_cue("00:01.000 --> 00:02.000\nHello").speaker == "unknown"

    def test_no_timing(self) -> None:
        with pytest.raises(ValueError, match="no cue timing in 'nonsense'"):
            parse_cue("nonsense")

    @pytest.mark.parametrize("body", ["[garble]", "<v Ann>[garble] - [garble]", "", "...", "(cough)"])
    def test_nothing_intelligible(self, body: str) -> None:
        with pytest.raises(ValueError, match=r"nothing intelligible at 00:01\.000"):
            parse_cue(f"00:01.000 --> 00:02.000\n{body}")

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("<v Ann>Plain.", "Plain."),
            ("(Laughter) A pretty good thought.", "A pretty good thought."),
            ("[garble] forward.", "forward."),
            ("- - T1. Over.", "T1. Over."),
            ("You are GO to continue - -", "You are GO to continue"),
            ("Like - AGS to PGNS", "Like - AGS to PGNS"),
            ("fish &amp; chips", "fish & chips"),
            ("two\n  lines", "two lines"),
        ],
    )
    def test_cleaning(self, body: str, text: str) -> None:
        assert clean_text(body) == text


class TestJoining:
    def test_same_speaker_is_joined_until_another_speaks(self) -> None:
        joiner = UtteranceJoiner()
        assert joiner.add(cue(1, "Ann", "One.")) is None
        assert joiner.add(cue(3, "Ann", "Two.")) is None
        finished = joiner.add(cue(5, "Bob", "Three."))
        assert finished is not None
        assert (finished.speaker, finished.text) == ("Ann", "One. Two.")
        assert (finished.start_s, finished.end_s) == (1, 4)

    def test_flush_gives_the_rest_once(self) -> None:
        joiner = UtteranceJoiner()
        joiner.add(cue(1, "Ann"))
        assert joiner.flush() is not None
        assert joiner.flush() is None

    @pytest.mark.parametrize("start_s", [10.5, 0.0])
    def test_a_gap_or_a_jump_back_ends_an_utterance(self, start_s: float) -> None:
        joiner = UtteranceJoiner(max_gap_s=8)
        joiner.add(cue(1, "Ann"))
        assert joiner.add(cue(start_s, "Ann")) is not None

    def test_a_small_gap_does_not(self) -> None:
        joiner = UtteranceJoiner(max_gap_s=8)
        joiner.add(cue(1, "Ann"))
        assert joiner.add(cue(10, "Ann")) is None

    def test_a_long_speech_is_cut(self) -> None:
        joiner = UtteranceJoiner(max_words=4)
        joiner.add(cue(1, "Ann", "one two three four"))
        assert joiner.add(cue(2, "Ann")) is not None
