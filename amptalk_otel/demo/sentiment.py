"""How a sentence sounds: a small lexicon of English words, with negation and emphasis."""

from __future__ import annotations

from .language import words

LEXICON: dict[str, float] = {
    "beautiful": 1.0, "beautifully": 1.0, "fantastic": 1.0, "magnificent": 1.0, "wonderful": 1.0,
    "great": 0.9, "excellent": 0.9, "pretty": 0.5, "comfortable": 0.6, "good": 0.6, "nice": 0.6,
    "nicely": 0.6, "fine": 0.4, "better": 0.4, "smooth": 0.5, "thank": 0.5, "thanks": 0.5,
    "smiling": 0.7, "interesting": 0.5, "clear": 0.3, "bright": 0.3, "easier": 0.4, "simple": 0.3,
    "adequate": 0.2, "solid": 0.4, "landed": 0.6, "leap": 0.4, "welcome": 0.6, "glad": 0.7,
    "happy": 0.8, "holding": 0.2, "agree": 0.3, "affirmative": 0.2,
    "alarm": -0.7, "abort": -0.9, "lost": -0.6, "trouble": -0.7, "difficulty": -0.6, "bad": -0.7,
    "difficult": -0.5, "wrong": -0.6, "problem": -0.6, "fail": -0.8, "failed": -0.8, "busy": -0.2,
    "dropout": -0.5, "fluctuation": -0.4, "drifting": -0.3, "dark": -0.2, "desolation": -0.3,
    "missing": -0.4, "disregard": -0.2, "blue": -0.1, "afraid": -0.7, "rough": -0.5, "hard": -0.2,
    "worst": -0.9, "collapsed": -0.4, "upside": -0.2, "breathing": 0.2, "forget": -0.2,
}  # fmt: skip
_NEGATIONS = "no not never nothing none neither can't cannot don't doesn't didn't won't isn't wasn't"
NEGATIONS = frozenset(_NEGATIONS.split())
EMPHASIS: dict[str, float] = {"very": 1.3, "really": 1.3, "so": 1.2, "little": 0.7, "bit": 0.7}

_NEGATION_REACH = 3
_NEGATED = -0.6


def score(text: str) -> float:
    """Mean of the lexicon's words in a text, between -1 (bad) and 1 (good); 0 without any."""
    tokens = words(text)
    scores = [_word_score(tokens, position) for position, token in enumerate(tokens) if token in LEXICON]
    if not scores:
        return 0.0
    return max(-1.0, min(1.0, sum(scores) / len(scores)))


def label(value: float) -> str:
    """Name a score."""
    if value >= 0.15:
        return "good"
    return "bad" if value <= -0.15 else "even"


def _word_score(tokens: list[str], position: int) -> float:
    value = LEXICON[tokens[position]]
    before = tokens[max(0, position - _NEGATION_REACH) : position]
    if before:
        value *= EMPHASIS.get(before[-1], 1.0)
    if any(token in NEGATIONS for token in before):
        value *= _NEGATED
    return value
