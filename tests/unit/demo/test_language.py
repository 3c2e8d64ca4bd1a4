"""Sentences, words, weights, moods and summaries are what a reader would expect."""

from __future__ import annotations

import math

import pytest

from amptalk_otel.demo.language import (
    SpeakerStatistics,
    TermWeights,
    abbreviations,
    content_words,
    split_sentences,
    words,
)
from amptalk_otel.demo.sentiment import label, score
from amptalk_otel.demo.summary import RunningSummary


class TestText:
    def test_sentences(self) -> None:
        text = "Okay. How's that? Beautiful view! 3 1/2 down, 9 forward"
        assert split_sentences(text) == ["Okay.", "How's that?", "Beautiful view!", "3 1/2 down, 9 forward"]
        assert split_sentences("  ") == []

    def test_words(self) -> None:
        assert words("Don't touch the lock-on, 1202!") == ["don't", "touch", "the", "lock-on"]

    def test_content_words(self) -> None:
        assert content_words("Roger, we see the Earth over there, X") == ["earth"]

    def test_abbreviations(self) -> None:
        assert abbreviations("AGS and PGNS agree; AGS is OK. I go.") == ["AGS", "PGNS", "OK"]


class TestTermWeights:
    def test_rare_terms_weigh_more(self) -> None:
        weights = TermWeights()
        for text in (["fuel", "alarm"], ["fuel"], ["fuel"]):
            weights.add(text)
        assert weights.documents == 3
        found = dict(weights.key_terms(["fuel", "alarm"]))
        assert list(found) == ["alarm", "fuel"]
        assert list(found.values()) == pytest.approx([0.5 * (math.log(4 / 2) + 1), 0.5 * (math.log(4 / 4) + 1)])

    def test_a_term_counts_once_per_text(self) -> None:
        weights = TermWeights()
        weights.add(["go", "go", "go"])
        weights.add(["stop"])
        assert weights.weight("go", 1, 1) == weights.weight("stop", 1, 1)

    def test_equal_weights_in_alphabetical_order_and_no_more_than_wanted(self) -> None:
        weights = TermWeights()
        weights.add(["c", "b", "a"])
        assert [term for term, _ in weights.key_terms(["c", "b", "a"], 2)] == ["a", "b"]
        assert weights.key_terms([]) == []


def test_speaker_statistics() -> None:
    statistics = SpeakerStatistics()
    statistics.add("Thank you.", 1.5)
    statistics.add("Okay.", 0.5)
    assert statistics == SpeakerStatistics(utterances=2, words=3, seconds=2.0)


class TestSentiment:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("Beautiful view!", 1.0),
            ("Program alarm.", -0.7),
            ("We copy.", 0.0),
            ("That is good, no alarm.", (0.6 + 0.7 * 0.6) / 2),
            ("It is not good.", -0.6 * 0.6),
            ("Not that I would call it good.", 0.6),
            ("Very good.", 0.6 * 1.3),
            ("really beautiful", 1.0),
        ],
    )
    def test_score(self, text: str, value: float) -> None:
        assert score(text) == pytest.approx(value)

    @pytest.mark.parametrize(("value", "name"), [(0.5, "good"), (0.0, "even"), (-0.15, "bad")])
    def test_label(self, value: float, name: str) -> None:
        assert label(value) == name


class TestSummary:
    def test_picks_what_is_said_most_and_then_something_else(self) -> None:
        summary = RunningSummary(length=2, min_terms=2)
        for text in (
            "Fuel pressure dropping fast.",
            "Fuel pressure steady.",
            "Fuel pressure steady again.",
            "Camera window cleared.",
            "Camera window open.",
        ):
            summary.add("Ann", text)
        assert [pick.text for pick in summary.pick()] == ["Fuel pressure steady.", "Camera window cleared."]

    def test_forgets_what_leaves_the_window(self) -> None:
        summary = RunningSummary(window=2, length=1, min_terms=1)
        for text in ("Moon moon moon.", "Earth rises.", "Earth sets."):
            summary.add("Ann", text)
        assert summary.pick()[0].text == "Earth rises."
        assert len(summary.pick()) == 1

    def test_short_sentences_and_stop_words_are_never_picked(self) -> None:
        summary = RunningSummary()
        summary.add("Ann", "Okay, we see you there.")
        summary.add("Bob", "Throttle down.")
        assert summary.pick() == []

    def test_a_repeated_sentence_is_picked_once(self) -> None:
        summary = RunningSummary(min_terms=1)
        summary.add("Ann", "Throttle steady.")
        summary.add("Bob", "Throttle steady.")
        assert [pick.speaker for pick in summary.pick()] == ["Bob"]
