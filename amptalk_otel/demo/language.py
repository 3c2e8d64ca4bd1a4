"""Plain language processing: sentences, words, key terms by tf-idf, and who speaks how much."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_ABBREVIATION = re.compile(r"\b[A-Z]{2,5}\b")

_STOP_WORDS = """
a about all am an and any are aren't as at be been but by can can't could did do does doesn't don't down else for
from get give go going got had has have he here him his how i i'd i'll i'm i've if in into is isn't it it'll it's its
just let like me more my no not now of off on one or our out over own please right say see she so some such than that
that's the their them then there there's they they're they've this those to too two until up us very was we we'd
we'll we're we've well were what when where which who will with would you you'd you'll you're you've your
okay roger yes copy
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def split_sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def words(text: str) -> list[str]:
    """All words in lower case; numbers are left out."""
    return _WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """The words that carry meaning: no stop words, no single letters."""
    return [word for word in words(text) if len(word) > 1 and word not in STOP_WORDS]


def abbreviations(text: str) -> list[str]:
    """The capital-letter words of a text, each once, in order."""
    return list(dict.fromkeys(_ABBREVIATION.findall(text)))


class TermWeights:
    """Tf-idf over the texts seen so far."""

    def __init__(self) -> None:
        self.documents: int = 0
        self._document_frequency: Counter[str] = Counter()

    def add(self, terms: Sequence[str]) -> None:
        self.documents += 1
        self._document_frequency.update(set(terms))

    def weight(self, term: str, frequency: int, length: int) -> float:
        """Share of the term in its text, times how rare it is among all texts."""
        rarity = math.log((1 + self.documents) / (1 + self._document_frequency[term])) + 1
        return frequency / length * rarity

    def key_terms(self, terms: Sequence[str], count: int = 3) -> list[tuple[str, float]]:
        """The heaviest terms of a text; equal weights in alphabetical order."""
        weights = [(term, self.weight(term, frequency, len(terms))) for term, frequency in Counter(terms).items()]
        return sorted(weights, key=lambda pair: (-pair[1], pair[0]))[:count]


@dataclass
class SpeakerStatistics:
    """How much one person has said."""

    utterances: int = 0
    words: int = 0
    seconds: float = 0.0

    def add(self, text: str, duration_s: float) -> None:
        self.utterances += 1
        self.words += len(text.split())
        self.seconds += duration_s
