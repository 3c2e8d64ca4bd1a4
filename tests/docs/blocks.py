"""The fenced code blocks of a Markdown page, and the words in backticks of its prose."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is that of its first line of text."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} ({self.language or 'no language'})"


@dataclass(frozen=True)
class Command:
    """One command of a console block, with the output that the page shows for it."""

    text: str
    output: tuple[str, ...]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks, in order. Raises ValueError for one that does not end."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        begin = number
        closing = re.compile(rf"^ *{re.escape(opening['fence'][0])}{{{len(opening['fence'])},}} *$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        if number == len(lines):
            raise ValueError(f"{page.name}:{begin}: the block does not end")
        text = textwrap.dedent("\n".join(lines[begin:number])) + "\n"
        found.append(_block(page, begin + 1, opening["info"].strip(), text))
        number += 1
    return found


def _block(page: Path, line: int, info: str, text: str) -> Block:
    title = re.search(r'title="([^"]+)"', info)
    return Block(page, line, info.partition(" ")[0], title[1] if title else None, text)


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^( *)(`{3,}|~{3,}).*?^ *\2 *$", "", text, flags=re.DOTALL | re.MULTILINE)


def words_in_backticks(page: Path) -> Iterator[str]:
    """Everything that the prose has in single backticks."""
    return (found[1] for found in re.finditer(r"`([^`\n]+)`", prose_of(page)))


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block (`$ ` before each) or of a bash block (one a line)."""
    joined = re.sub(r"\\\n(> )?\s*", "", block.text)
    found: list[tuple[str, list[str]]] = []
    for line in joined.splitlines():
        if block.language != "console":
            if line.strip() and not line.startswith("#"):
                found.append((line, []))
        elif line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError(f"{block}: output before the first command")
    return [Command(_without_comment(text), tuple(output)) for text, output in found]


def _without_comment(text: str) -> str:
    return re.sub(r"\s{2,}#.*$", "", text).strip()


def mismatch(expected: tuple[str, ...], printed: str) -> str | None:
    """The first line of `expected` that `printed` does not have in this order; None where it has them all.

    Numbers and amounts of blank stand for any others; `...` stands for any lines, and within a line for any text.
    """
    actual = [_normal(line) for line in printed.splitlines()]
    position = 0
    for line in expected:
        if line.strip() == "..." or not line.strip():
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _normal(line).split("...")))
        while position < len(actual) and not pattern.fullmatch(actual[position]):
            position += 1
        if position == len(actual):
            return line
        position += 1
    return None


def _normal(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "0", line)).strip()
