"""The agents of the meeting: each takes one kind of work and hands its result to the next."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from .captions import UtteranceJoiner, parse_cue
from .glossary import RemoteGlossary
from .language import (
    SpeakerStatistics,
    TermWeights,
    abbreviations,
    content_words,
    split_sentences,
)
from .runtime import Message, MessageMetadata, MessageType, SimpleAgent
from .sentiment import label, score
from .summary import RunningSummary

TRANSCRIPTION, LANGUAGE, GLOSSARY = "transcription", "language", "glossary"
SENTIMENT, SUMMARY, MINUTES = "sentiment", "summary", "minutes"
PRESS_ROOM = "press-room"
"""Wanted the news and left: there is no such agent any more, and what is sent to it gets lost."""

NEWS_EVERY = 10
"""Changes of the summary from one piece of news to the next."""


def follow_up(message: Message, target: str, message_type: MessageType, payload: dict[str, Any]) -> Message:
    """The next message of a conversation, from whoever received this one."""
    return Message(
        message_type=message_type,
        source_agent_id=message.target_agent_id,
        target_agent_id=target,
        priority=message.priority,
        payload=payload,
        metadata=MessageMetadata(
            conversation_id=message.metadata.conversation_id,
            parent_message_id=message.message_id,
        ),
    )


class TranscriptionAgent(SimpleAgent):
    """Caption blocks in, utterances out. A block that can't be made out fails with ValueError."""

    def __init__(self) -> None:
        super().__init__(TRANSCRIPTION, "Transcription")
        self._joiner = UtteranceJoiner()
        self.register_message_handler(MessageType.AUDIO_INPUT, self._transcribe)

    async def _transcribe(self, message: Message) -> list[Message]:
        utterance = self._joiner.add(parse_cue(message.payload["block"]))
        if utterance is None:
            return []
        result = asdict(utterance)
        return [follow_up(message, LANGUAGE, MessageType.TRANSCRIPTION_RESULT, result)]


class LanguageAgent(SimpleAgent):
    """Utterances in; sentences and key terms out, to sentiment, summary and glossary."""

    def __init__(self) -> None:
        super().__init__(LANGUAGE, "Language")
        self.term_weights: TermWeights = TermWeights()
        self.speakers: dict[str, SpeakerStatistics] = defaultdict(SpeakerStatistics)
        self.register_message_handler(MessageType.TRANSCRIPTION_RESULT, self._analyse)

    async def _analyse(self, message: Message) -> list[Message]:
        said = message.payload
        self.speakers[said["speaker"]].add(said["text"], said["end_s"] - said["start_s"])
        terms = content_words(said["text"])
        self.term_weights.add(terms)
        result = {
            "speaker": said["speaker"],
            "sentences": split_sentences(said["text"]),
            "key_terms": [term for term, _ in self.term_weights.key_terms(terms)],
        }
        replies = [
            follow_up(message, SENTIMENT, MessageType.SENTIMENT_REQUEST, dict(result)),
            follow_up(message, SUMMARY, MessageType.SUMMARY_REQUEST, dict(result)),
        ]
        unclear = abbreviations(said["text"])
        if unclear:
            question = {"terms": unclear}
            replies.append(follow_up(message, GLOSSARY, MessageType.ENTITY_REQUEST, question))
        return replies


class GlossaryAgent(SimpleAgent):
    """Abbreviations in, meanings out. Asks a remote glossary, and asks again when that breaks."""

    def __init__(self, glossary: RemoteGlossary) -> None:
        super().__init__(GLOSSARY, "Glossary")
        self.base_retry_delay: float = 0.05
        self.max_retry_delay: float = 0.4
        self._glossary = glossary
        self.register_message_handler(MessageType.ENTITY_REQUEST, self._explain)

    async def _explain(self, message: Message) -> list[Message]:
        meanings = await self._glossary.look_up(message.payload["terms"])
        if not meanings:
            return []
        return [follow_up(message, MINUTES, MessageType.ENTITY_RESULT, {"meanings": meanings})]


class SentimentAgent(SimpleAgent):
    """Sentences in, a mood out."""

    def __init__(self) -> None:
        super().__init__(SENTIMENT, "Sentiment")
        self.register_message_handler(MessageType.SENTIMENT_REQUEST, self._judge)

    async def _judge(self, message: Message) -> list[Message]:
        scores = [score(sentence) for sentence in message.payload["sentences"]]
        value = sum(scores) / len(scores) if scores else 0.0
        result = {"speaker": message.payload["speaker"], "score": value, "mood": label(value)}
        return [follow_up(message, MINUTES, MessageType.SENTIMENT_RESULT, result)]


class SummaryAgent(SimpleAgent):
    """Sentences in, a summary out whenever it changes. The summary is its saved state."""

    def __init__(self, *, state_folder: str | None = None) -> None:
        super().__init__(SUMMARY, "Summary")
        self.state_persistence_enabled = True
        self.state_persistence_path = state_folder
        self._summary = RunningSummary()
        self.register_message_handler(MessageType.SUMMARY_REQUEST, self._summarise)

    async def _summarise(self, message: Message) -> list[Message]:
        for sentence in message.payload["sentences"]:
            self._summary.add(message.payload["speaker"], sentence)
        summary = [f"{pick.speaker}: {pick.text}" for pick in self._summary.pick()]
        if summary == self.state.get("summary"):
            return []
        self.state["summary"] = summary
        if self.state_manager is not None:
            await self.state_manager.save_state(self.agent_id, self.state)
        result = {"summary": summary}
        return [follow_up(message, MINUTES, MessageType.SUMMARY_RESULT, result)]


class MinutesAgent(SimpleAgent):
    """Keeps the minutes: the current summary, everyone's mood, and what abbreviations mean."""

    def __init__(self) -> None:
        super().__init__(MINUTES, "Minutes")
        self.summary: list[str] = []
        self.meanings: dict[str, str] = {}
        self.moods: dict[str, float] = {}
        self._changes = 0
        self.register_message_handler(MessageType.SUMMARY_RESULT, self._take_summary)
        self.register_message_handler(MessageType.SENTIMENT_RESULT, self._take_mood)
        self.register_message_handler(MessageType.ENTITY_RESULT, self._take_meanings)

    async def _take_summary(self, message: Message) -> list[Message]:
        self.summary = message.payload["summary"]
        self._changes += 1
        if self._changes % NEWS_EVERY:
            return []
        news = {"headline": self.summary[0]}
        return [follow_up(message, PRESS_ROOM, MessageType.NOTIFICATION, news)]

    async def _take_mood(self, message: Message) -> None:
        speaker, value = message.payload["speaker"], message.payload["score"]
        self.moods[speaker] = 0.9 * self.moods.get(speaker, value) + 0.1 * value

    async def _take_meanings(self, message: Message) -> None:
        self.meanings.update(message.payload["meanings"])
