"""A stand-in for a glossary on another machine: it takes its time, and its line is not the best."""

from __future__ import annotations

import asyncio
import random

MEANINGS: dict[str, str] = {
    "ACA": "attitude controller assembly, the hand controller",
    "AELD": "ascent engine latching device",
    "AGS": "abort guidance system",
    "CDR": "commander",
    "DECA": "descent engine control assembly",
    "LEC": "lunar equipment conveyor",
    "LM": "lunar module",
    "LOS": "loss of signal",
    "MESA": "modular equipment stowage assembly",
    "OMNI": "omnidirectional antenna",
    "OX": "oxidizer",
    "PDI": "powered descent initiation",
    "PGNS": "primary guidance and navigation system",
    "RCU": "remote control unit, worn on the chest",
    "SLEW": "antenna pointed by hand",
    "TTCA": "thrust and translation controller assembly",
    "TV": "television",
}


class RemoteGlossary:
    """Answers after a few milliseconds; now and then the connection breaks instead."""

    def __init__(
        self,
        chance: random.Random,
        *,
        failure_share: float = 0.06,
        latency_s: tuple[float, float] = (0.002, 0.012),
    ) -> None:
        self._chance = chance
        self._failure_share = failure_share
        self._latency_s = latency_s

    async def look_up(self, terms: list[str]) -> dict[str, str]:
        """The meanings of those terms that are known; ConnectionError when the line breaks."""
        await asyncio.sleep(self._chance.uniform(*self._latency_s))
        if self._chance.random() < self._failure_share:
            raise ConnectionError("the glossary closed the connection")
        return {term: MEANINGS[term] for term in terms if term in MEANINGS}
