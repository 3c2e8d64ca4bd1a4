"""The highest length of an inbox in the last minute, whoever reads it, and however often.

A length is at its highest right before a message leaves, or now. So it is enough to look at it when one leaves, where
it is known anyway. Time is cut into slots of five seconds, of which each keeps its highest length: a reading covers
the slot under way and the twelve before it, the last 60 to 65 seconds.
"""

from __future__ import annotations

SLOT_S = 5.0
SLOTS = 12
"""Whole slots that a reading covers, besides the one under way."""

Peaks = tuple[int, ...]
"""The number of the slot under way, and the highest length in the slot before it, in the two before it, and so on."""

NO_PEAKS: Peaks = (0, *(0 for _ in range(SLOTS)))
LONG_AGO = float("-inf")
"""When the slot ends, of an inbox that no message has left."""


def slot_at(now: float) -> int:
    """The number of the slot that `now` lies in."""
    return int(now // SLOT_S)


def moved_on(peaks: Peaks, peak: int, now: float) -> Peaks:
    """`peaks` for the slot of `now`, after one with the highest length `peak`."""
    slot = slot_at(now)
    skipped = min(max(slot - peaks[0] - 1, 0), SLOTS)
    risen = (peak, *[max(peak, before) for before in peaks[1:]])
    return (slot, *((0,) * skipped + risen)[:SLOTS])


def highest(peaks: Peaks, peak: int, now: float) -> int:
    """The highest length of a message's leaving in the last minute before `now`; `peak` is that of the last slot."""
    passed = slot_at(now) - peaks[0]
    covered = SLOTS if passed <= 0 else SLOTS - passed  # slots before that of `peak`
    if covered <= 0:
        return peak if covered == 0 else 0
    return max(peak, peaks[covered])
