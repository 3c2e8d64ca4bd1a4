"""An extractive summary of the latest sentences: the ones whose words are said most, not twice."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from .language import content_words


@dataclass(frozen=True)
class Sentence:
    """A sentence, who said it, and its words that carry meaning."""

    speaker: str
    text: str
    terms: tuple[str, ...]


class RunningSummary:
    """Keeps the last `window` sentences and picks the `length` that stand for them best.

    A sentence is worth the mean frequency of its words; once it is picked, its words count for
    little, so that the next pick says something else. Cost: one pass over the window per pick.
    """

    def __init__(self, *, window: int = 80, length: int = 3, min_terms: int = 4) -> None:
        self._length = length
        self._min_terms = min_terms
        self._sentences: deque[Sentence] = deque(maxlen=window)
        self._frequency: Counter[str] = Counter()

    def add(self, speaker: str, text: str) -> None:
        terms = tuple(content_words(text))
        if not terms:
            return
        if len(self._sentences) == self._sentences.maxlen:
            self._frequency.subtract(self._sentences[0].terms)
        self._sentences.append(Sentence(speaker, text, terms))
        self._frequency.update(terms)

    def pick(self) -> list[Sentence]:
        """The summary, best sentence first."""
        candidates = {s.text: s for s in self._sentences if len(s.terms) >= self._min_terms}
        frequency: dict[str, float] = dict(self._frequency)
        picked: list[Sentence] = []
        while candidates and len(picked) < self._length:
            best = max(candidates.values(), key=lambda s: _worth(s, frequency))
            picked.append(candidates.pop(best.text))
            for term in best.terms:
                frequency[term] *= 0.1
        return picked


def _worth(sentence: Sentence, frequency: dict[str, float]) -> float:
    return sum(frequency[term] for term in sentence.terms) / len(sentence.terms)
