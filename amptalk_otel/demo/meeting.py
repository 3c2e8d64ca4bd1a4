"""The meeting: agents put together, and the transcript fed to them at an even pace."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count

from .captions import split_blocks
from .glossary import RemoteGlossary
from .runtime import Message, MessageMetadata, MessageType, Orchestrator
from .workers import (
    TRANSCRIPTION,
    GlossaryAgent,
    LanguageAgent,
    MinutesAgent,
    SentimentAgent,
    SummaryAgent,
    TranscriptionAgent,
)

MAX_WAITING = 10_000
"""Feeding pauses while that many segments wait: a rate beyond the machine must not eat memory."""

_MAX_LAG_S = 1.0


@dataclass(frozen=True)
class Meeting:
    """The orchestrator with its agents, and those a display wants to ask."""

    orchestrator: Orchestrator
    transcription: TranscriptionAgent
    minutes: MinutesAgent

    @property
    def summary_sentence(self) -> str | None:
        """The sentence that stands best for what was said lately."""
        return self.minutes.summary[0] if self.minutes.summary else None

    async def finish_work(self) -> None:
        """Return when all inboxes are worked off; agents come in the order in which work flows."""
        for agent in self.orchestrator.agents.values():
            await agent.input_queue.join()


def load_segments() -> list[str]:
    """The caption blocks of the transcript that comes with the package."""
    text = files(__package__).joinpath("transcript.vtt").read_text(encoding="utf-8")
    return split_blocks(text)


def build_meeting(*, state_folder: str | None = None, seed: int = 11) -> Meeting:
    """Put the agents together. Needs a running event loop."""
    orchestrator = Orchestrator(name="meeting")
    transcription, language, minutes = TranscriptionAgent(), LanguageAgent(), MinutesAgent()
    glossary = GlossaryAgent(RemoteGlossary(random.Random(seed)))
    sentiment, summary = SentimentAgent(), SummaryAgent(state_folder=state_folder)
    for agent in (transcription, language, glossary, sentiment, summary, minutes):
        orchestrator.add_agent(agent, groups=["meeting"])
    for source, target in (
        (transcription, language),
        (language, sentiment),
        (language, summary),
        (language, glossary),
        (glossary, minutes),
        (sentiment, minutes),
        (summary, minutes),
    ):
        orchestrator.connect_agents(source.agent_id, target.agent_id, bidirectional=False)
    return Meeting(orchestrator, transcription, minutes)


class Pace:
    """Even turns, `rate` per second. Late turns are caught up with, but not more than a second."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if rate <= 0:
            raise ValueError(f"the rate must be above 0, not {rate}")
        self._period_s = 1 / rate
        self._clock = clock
        self._due_s = clock()

    def next_delay_s(self) -> float:
        """Seconds until the next turn; 0 when it is late."""
        delay_s = self._due_s - self._clock()
        if delay_s < -_MAX_LAG_S:
            # The process was stopped or can't keep up: go on from now, without a burst.
            self._due_s -= delay_s
        self._due_s += self._period_s
        return max(0.0, delay_s)


async def feed(meeting: Meeting, segments: Sequence[str], pace: Pace) -> None:
    """Send the segments one per turn, over and over, until cancelled."""
    inbox = meeting.transcription.input_queue
    laps = ((lap, segment) for lap in count(1) for segment in segments)
    while True:
        await asyncio.sleep(pace.next_delay_s())
        if inbox.qsize() < MAX_WAITING:
            lap, segment = next(laps)
            await meeting.orchestrator.send_message_to_agent(_recorded(lap, segment))


def _recorded(lap: int, segment: str) -> Message:
    return Message(
        message_type=MessageType.AUDIO_INPUT,
        source_agent_id="recorder",
        target_agent_id=TRANSCRIPTION,
        payload={"block": segment},
        metadata=MessageMetadata(conversation_id=f"apollo-11/{lap}"),
    )
