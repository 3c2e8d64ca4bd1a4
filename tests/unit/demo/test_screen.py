"""What is written ends up on a terminal where it should: checked on a terminal of thirty lines of code."""

from __future__ import annotations

import io
import os
import re

import pytest

from amptalk_otel.demo.screen import LiveScreen, PlainScreen, choose_screen


class Terminal(io.StringIO):
    """Understands the few sequences that are used; lines neither wrap nor scroll."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = [""]
        self.row = 0
        self.cursor_visible = True
        self.writes = 0

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, text: str) -> int:
        self.writes += 1
        for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
            self._obey(part)
        return len(text)

    def _obey(self, part: str) -> None:
        if part == "\n":
            self.row += 1
            self.rows += [""] * (self.row + 1 - len(self.rows))
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            self.cursor_visible = part.endswith("h")
        elif part == "\x1b[J":
            self.rows[self.row :] = [""]
        elif part == "\x1b[2J":
            self.rows = [""] * len(self.rows)
        elif part == "\x1b[H":
            self.row = 0
        elif part.endswith("A"):
            self.row -= int(part[2:-1])
        elif part not in ("\r", "\x1b[K") and not part.startswith("\x1b["):
            self.rows[self.row] = part

    def text(self) -> list[str]:
        return [row.rstrip() for row in self.rows]


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Columns and lines of the terminal; may be changed by the test."""
    current = [60, 10]
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((current[0], current[1])))
    return current


@pytest.mark.usefixtures("size")
class TestLive:
    def test_draws_in_place(self) -> None:
        terminal = Terminal()
        terminal.write("$ demo\n")
        screen = LiveScreen(terminal, color=False)
        screen.introduce("Open it.", "Look.")
        for lines in (["one", "two", "three"], ["ONE", "TWO", "THREE"], ["1"]):
            screen.show(lines)
            assert terminal.text() == ["$ demo", "Open it.", "Look.", "", *lines, ""]

    def test_one_write_a_frame(self) -> None:
        terminal = Terminal()
        LiveScreen(terminal, color=False).show(["one", "two"])
        assert terminal.writes == 1

    def test_hides_and_shows_the_cursor(self) -> None:
        terminal = Terminal()
        screen = LiveScreen(terminal, color=True)
        screen.show(["one"])
        assert not terminal.cursor_visible
        screen.close()
        assert terminal.cursor_visible
        terminal.write("after")
        assert terminal.text() == ["one", "", "after"]
        written = terminal.writes
        screen.close()
        assert terminal.writes == written

    def test_nothing_to_close_when_nothing_was_shown(self) -> None:
        terminal = Terminal()
        LiveScreen(terminal, color=True).close()
        assert terminal.writes == 0

    def test_never_higher_than_the_screen(self) -> None:
        terminal = Terminal()
        screen = LiveScreen(terminal, color=False)
        for _ in range(2):
            screen.show([str(number) for number in range(30)])
        assert terminal.text() == ["0", "1", "2", "3", "4", "5", "6", "7", "8", ""]

    def test_clears_after_a_change_of_size(self, size: list[int]) -> None:
        terminal = Terminal()
        screen = LiveScreen(terminal, color=False)
        screen.introduce("A long line that will not fit on a narrow screen.")
        screen.show(["one", "two"])
        terminal.write("wreckage\n")
        size[0] = 11
        assert screen.width() == 11
        screen.show(["one", "two"])
        wrapped = ["A long line", "that will", "not fit on", "a narrow", "screen."]
        assert terminal.text() == [*wrapped, "", "one", "two", ""]


@pytest.mark.parametrize("width", [45, 62, 80, 120])
def test_what_is_told_last_is_wrapped_at_words_on_a_terminal_only(width: int, size: list[int]) -> None:
    size[0] = width
    balance = "received 1,234 = processed 1,200 + failed 30 + dropped 4 + in flight 0 + queued 0; retries 9"
    terminal, piped = Terminal(), io.StringIO()
    LiveScreen(terminal, color=False).conclude(balance, "spans 10 = pushed 10 + not pushed 0")
    *lines, spans, last = terminal.text()
    assert " ".join(lines) == balance
    assert max(len(line) for line in lines) <= width
    assert (spans, last) == ("spans 10 = pushed 10 + not pushed 0", "")
    PlainScreen(piped).conclude(balance)
    assert piped.getvalue() == f"{balance}\n"


def test_size_is_guessed_where_there_is_none() -> None:
    out = io.StringIO()
    assert LiveScreen(out, color=False).width() == 120


def test_plain_blocks_follow_each_other() -> None:
    out = io.StringIO()
    screen = PlainScreen(out)
    screen.introduce("Open it.", "Look.")
    screen.show(["one", "two"])
    screen.show(["three"])
    screen.close()
    assert out.getvalue() == "Open it.\nLook.\n\none\ntwo\n\nthree\n\n"


class TestChoice:
    def test_no_terminal(self) -> None:
        assert isinstance(choose_screen(io.StringIO(), {"TERM": "xterm"}), PlainScreen)

    @pytest.mark.parametrize("environ", [{}, {"TERM": "dumb"}])
    def test_terminal_that_can_do_nothing(self, environ: dict[str, str]) -> None:
        assert isinstance(choose_screen(Terminal(), environ), PlainScreen)

    @pytest.mark.parametrize(("no_color", "color"), [("1", False), ("", True)])
    def test_color_as_wanted(self, *, no_color: str, color: bool) -> None:
        screen = choose_screen(Terminal(), {"TERM": "xterm", "NO_COLOR": no_color})
        assert isinstance(screen, LiveScreen)
        assert screen.color is color
