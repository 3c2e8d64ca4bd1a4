"""WebVTT captions: cues read from text, cleaned, and joined into what one speaker said."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_TIME = r"(?:(\d+):)?(\d{2}):(\d{2})\.(\d{3})"
_TIMING = re.compile(rf"^{_TIME}[ \t]+-->[ \t]+{_TIME}", re.MULTILINE)
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_MARKUP = re.compile(r"<[^>]*>")
_REMARK = re.compile(r"\[[^\]]*\]|\([^)]*\)")
_OPEN_DASHES = re.compile(r"^(?:-\s+)+|(?:\s+-)+$")
_WORD = re.compile(r"\w")

UNKNOWN_SPEAKER = "unknown"


@dataclass(frozen=True)
class Cue:
    """One caption. Times are seconds from the start of the recording."""

    start_s: float
    end_s: float
    speaker: str
    text: str


@dataclass(frozen=True)
class Utterance:
    """What one speaker said without being interrupted."""

    start_s: float
    end_s: float
    speaker: str
    text: str


def split_blocks(document: str) -> list[str]:
    """Split a WebVTT document and keep the blocks that are cues."""
    blocks = re.split(r"\n{2,}", document.replace("\r\n", "\n").strip())
    return [block for block in blocks if _TIMING.search(block)]


def parse_cue(block: str) -> Cue:
    """Read one cue; ValueError when it has no times or holds nothing intelligible."""
    timing = _TIMING.search(block)
    if timing is None:
        raise ValueError(f"no cue timing in {block[:40]!r}")
    body = block[timing.end() :].partition("\n")[2]
    voice = _VOICE.search(body)
    text = clean_text(body)
    if not _WORD.search(text):
        raise ValueError(f"nothing intelligible at {timing.group(0)}")
    groups = timing.groups()
    return Cue(
        start_s=_seconds(*groups[:4]),
        end_s=_seconds(*groups[4:]),
        speaker=voice.group(1).strip() if voice else UNKNOWN_SPEAKER,
        text=text,
    )


def clean_text(body: str) -> str:
    """Take mark-up, bracketed remarks, and the dashes of a cut-off sentence out of a cue's text."""
    text = _REMARK.sub(" ", html.unescape(_MARKUP.sub("", body)))
    return _OPEN_DASHES.sub("", " ".join(text.split())).strip()


def _seconds(hours: str | None, minutes: str, seconds: str, milliseconds: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int(milliseconds) / 1000


class UtteranceJoiner:
    """Joins the cues of one speaker until another speaks, time jumps, or it gets long."""

    def __init__(self, *, max_gap_s: float = 8.0, max_words: int = 120) -> None:
        self._max_gap_s = max_gap_s
        self._max_words = max_words
        self._cues: list[Cue] = []

    def add(self, cue: Cue) -> Utterance | None:
        """Take the next cue; the utterance before it, when this cue begins a new one."""
        finished = self.flush() if self._cues and not self._continues(cue) else None
        self._cues.append(cue)
        return finished

    def flush(self) -> Utterance | None:
        """The utterance collected so far, if any."""
        if not self._cues:
            return None
        first, last = self._cues[0], self._cues[-1]
        text = " ".join(cue.text for cue in self._cues)
        self._cues = []
        return Utterance(first.start_s, last.end_s, first.speaker, text)

    def _continues(self, cue: Cue) -> bool:
        last = self._cues[-1]
        words = sum(len(held.text.split()) for held in self._cues)
        return (
            cue.speaker == last.speaker and 0 <= cue.start_s - last.end_s <= self._max_gap_s and words < self._max_words
        )
