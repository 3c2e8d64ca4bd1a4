"""The agents, put together and fed, turn the transcript into minutes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from amptalk_otel.demo import meeting as meeting_module
from amptalk_otel.demo.captions import Cue, parse_cue
from amptalk_otel.demo.glossary import RemoteGlossary
from amptalk_otel.demo.meeting import Meeting, Pace, build_meeting, feed, load_segments
from amptalk_otel.demo.runtime import Message, MessageType
from amptalk_otel.demo.workers import LanguageAgent, SummaryAgent, follow_up

GARBLED = 5


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def readable(segments: list[str]) -> list[Cue]:
    cues = []
    for segment in segments:
        try:
            cues.append(parse_cue(segment))
        except ValueError:
            continue
    return cues


async def hold(meeting: Meeting, segments: list[str]) -> None:
    """Start the meeting, send the segments at once, let it finish, and stop it."""
    await meeting.orchestrator.start()
    for segment in segments:
        message = Message(
            message_type=MessageType.AUDIO_INPUT, target_agent_id="transcription", payload={"block": segment}
        )
        assert await meeting.orchestrator.send_message_to_agent(message)
    await asyncio.wait_for(meeting.finish_work(), 20)
    await meeting.orchestrator.stop()


class TestTranscript:
    def test_is_long_and_in_order(self) -> None:
        segments = load_segments()
        cues = readable(segments)
        assert len(segments) >= 120
        assert len(segments) - len(cues) == GARBLED
        assert [cue.start_s for cue in cues] == sorted(cue.start_s for cue in cues)
        assert all(cue.start_s < cue.end_s for cue in cues)
        assert {cue.speaker for cue in cues} == {"Armstrong", "Aldrin", "Collins", "Houston"}

    def test_says_the_words_everybody_knows(self) -> None:
        said = {(cue.speaker, cue.text): cue.start_s for cue in readable(load_segments())}
        assert said["Armstrong", "The Eagle has landed."] == 102 * 3600 + 46 * 60 + 4
        assert ("Armstrong", "That's one small step for man, one giant leap for mankind.") in said

    def test_tells_its_origin(self) -> None:
        text = Path(meeting_module.__file__).with_name("transcript.vtt").read_text(encoding="utf-8")
        note = text.split("\n\n")[1]
        assert note.startswith("NOTE")
        assert "NASA" in note
        assert "public domain" in note


class TestPace:
    def test_even_turns(self) -> None:
        clock = Clock()
        pace = Pace(10, clock=clock)
        assert pace.next_delay_s() == 0
        assert pace.next_delay_s() == pytest.approx(0.1)
        clock.now_s += 0.05
        assert pace.next_delay_s() == pytest.approx(0.15)

    def test_a_small_delay_is_caught_up_with(self) -> None:
        clock = Clock()
        pace = Pace(10, clock=clock)
        clock.now_s += 0.25
        assert [pace.next_delay_s() for _ in range(4)] == pytest.approx([0, 0, 0, 0.05])

    def test_a_long_pause_is_not(self) -> None:
        clock = Clock()
        pace = Pace(10, clock=clock)
        clock.now_s += 60
        assert [pace.next_delay_s() for _ in range(3)] == pytest.approx([0, 0.1, 0.2])

    @pytest.mark.parametrize("rate", [0, -1])
    def test_wants_a_rate(self, rate: float) -> None:
        with pytest.raises(ValueError, match="above 0"):
            Pace(rate)


class TestFeeding:
    def test_begins_again_at_the_end(self) -> None:
        async def scenario() -> None:
            meeting = build_meeting()
            feeding = asyncio.create_task(feed(meeting, ["first", "second"], Pace(1000)))
            inbox = meeting.transcription.input_queue
            got = [await asyncio.wait_for(inbox.get(), 5) for _ in range(3)]
            feeding.cancel()
            assert [message.payload["block"] for message in got] == ["first", "second", "first"]
            assert got[0].metadata.conversation_id == got[1].metadata.conversation_id
            assert got[2].metadata.conversation_id == "apollo-11/2"

        asyncio.run(scenario())

    def test_waits_while_the_inbox_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            meeting = build_meeting()
            feeding = asyncio.create_task(feed(meeting, ["segment"], Pace(100_000)))
            await asyncio.sleep(0.05)
            feeding.cancel()
            assert meeting.transcription.input_queue.qsize() == 4

        monkeypatch.setattr(meeting_module, "MAX_WAITING", 4)
        asyncio.run(scenario())


class TestPipeline:
    def test_whole_transcript(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            meeting = build_meeting(state_folder=str(tmp_path))
            segments = load_segments()
            await hold(meeting, segments)
            stats = {agent.agent_id: agent.stats for agent in meeting.orchestrator.agents.values()}
            assert stats["transcription"].messages_processed == len(segments) - GARBLED
            assert stats["transcription"].errors == {"ValueError": GARBLED}
            utterances = stats["language"].messages_processed
            assert stats["sentiment"].messages_processed == stats["summary"].messages_processed == utterances
            assert 0 < stats["glossary"].messages_processed < utterances
            assert stats["glossary"].retries > 0
            assert stats["minutes"].messages_failed == 0
            assert meeting.minutes.meanings["PGNS"] == "primary guidance and navigation system"
            assert set(meeting.minutes.moods) == {"Armstrong", "Aldrin", "Collins", "Houston"}
            assert meeting.summary_sentence is not None
            speaker, _, sentence = meeting.summary_sentence.partition(": ")
            assert sentence in " ".join(cue.text for cue in readable(segments) if cue.speaker == speaker)

        asyncio.run(scenario())

    def test_two_runs_are_alike(self) -> None:
        async def scenario() -> tuple[list[str], int]:
            meeting = build_meeting(seed=3)
            await hold(meeting, load_segments()[:80])
            return meeting.minutes.summary, meeting.orchestrator.agents["glossary"].stats.retries

        assert asyncio.run(scenario()) == asyncio.run(scenario())

    def test_news_go_to_someone_who_left(self) -> None:
        async def scenario() -> None:
            meeting = build_meeting()
            minutes, failed = meeting.minutes, []
            send = minutes.send_message

            async def watched(message: Message) -> bool:
                delivered = await send(message)
                failed.append((message.target_agent_id, delivered))
                return delivered

            vars(minutes)["send_message"] = watched
            await hold(meeting, load_segments())
            assert failed
            assert set(failed) == {("press-room", False)}

        asyncio.run(scenario())

    def test_summary_is_saved_and_found_again(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            meeting = build_meeting(state_folder=str(tmp_path))
            await hold(meeting, load_segments()[:60])
            again = SummaryAgent(state_folder=str(tmp_path))
            await again.start()
            await again.stop()
            assert again.state["summary"] == meeting.minutes.summary

        asyncio.run(scenario())

    def test_nothing_to_show_before_anything_was_said(self) -> None:
        async def scenario() -> None:
            assert build_meeting().summary_sentence is None

        asyncio.run(scenario())


class TestWorkers:
    def test_language_sends_to_both_and_asks_for_abbreviations(self) -> None:
        async def scenario(text: str) -> list[Message]:
            said = {"speaker": "Aldrin", "text": text, "start_s": 1.0, "end_s": 3.0}
            request = Message(message_type=MessageType.TRANSCRIPTION_RESULT, payload=said)
            agent = LanguageAgent()
            replies = await agent.process_message(request)
            assert agent.speakers["Aldrin"].seconds == 2.0
            assert replies is not None
            return replies

        with_question = asyncio.run(scenario("AGS and PGNS agree very closely. Altitude drops."))
        assert [reply.target_agent_id for reply in with_question] == ["sentiment", "summary", "glossary"]
        assert with_question[0].payload["sentences"] == ["AGS and PGNS agree very closely.", "Altitude drops."]
        assert with_question[2].payload == {"terms": ["AGS", "PGNS"]}
        assert len(asyncio.run(scenario("Altitude drops."))) == 2

    def test_follow_up_stays_in_the_conversation(self) -> None:
        message = Message(target_agent_id="a")
        message.metadata.conversation_id = "c"
        message.metadata.hop_count = 9
        reply = follow_up(message, "b", MessageType.NLP_RESULT, {"n": 1})
        assert (reply.source_agent_id, reply.target_agent_id) == ("a", "b")
        assert reply.metadata.conversation_id == "c"
        assert reply.metadata.parent_message_id == message.message_id
        assert reply.metadata.hop_count == 0


class TestGlossary:
    def test_knows_some_terms(self) -> None:
        glossary = RemoteGlossary(random.Random(1), failure_share=0.0, latency_s=(0.0, 0.0))
        assert asyncio.run(glossary.look_up(["LM", "NONSENSE"])) == {"LM": "lunar module"}

    def test_line_breaks(self) -> None:
        glossary = RemoteGlossary(random.Random(1), failure_share=1.0, latency_s=(0.0, 0.0))
        with pytest.raises(ConnectionError, match="closed the connection"):
            asyncio.run(glossary.look_up(["LM"]))
