"""Sums of floating-point numbers that do not depend on the order of their parts.

A series of several agents is added up again at each reading, in another order once an agent has left. In floating
point the same numbers in another order may come out lower in the last digit: to Prometheus a counter that falls has
begun anew, and `rate` counts all of it once more.
"""

from __future__ import annotations

from math import fsum, isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class ExactSum(float):
    """A number with what rounding took off it, so that more can be added as if nothing had been rounded.

    Partial sums as of Shewchuk, "Adaptive Precision Floating-Point Arithmetic" (1997), on which `math.fsum` is built:
    few of them, which do not overlap, and whose sum is exact. Costs about a microsecond for each addition.
    """

    __slots__ = ("parts",)
    parts: tuple[float, ...]

    def __new__(cls, parts: tuple[float, ...]) -> Self:
        made = super().__new__(cls, fsum(parts))
        made.parts = parts
        return made

    def __add__(self, other: float) -> float:
        return exact_sum(self, other)

    __radd__ = __add__

    def __reduce__(self) -> tuple[type[ExactSum], tuple[tuple[float, ...]]]:
        return ExactSum, (self.parts,)


def exact_sum(one: float, other: float) -> float:
    """Both together. Whole numbers, and what is not finite, are added as usual."""
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    if not isfinite(one) or not isfinite(other):
        return float(one) + float(other)
    parts = list(_parts(one))
    for part in _parts(other):
        parts = _grown(parts, part)
    return ExactSum(tuple(parts))


def _parts(number: float) -> tuple[float, ...]:
    return number.parts if isinstance(number, ExactSum) else (float(number),)


def _grown(parts: list[float], number: float) -> list[float]:
    grown = []
    for part in parts:
        high = number + part
        larger, smaller = (number, part) if abs(number) >= abs(part) else (part, number)
        low = smaller - (high - larger)
        if low:
            grown.append(low)
        number = high
    grown.append(number)
    return grown
