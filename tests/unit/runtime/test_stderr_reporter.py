"""The reporter of library use: plain lines, and on a terminal one line that moves."""

from __future__ import annotations

import io
import sys

import pytest

from brics_cli.runtime.reporting import StderrReporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(reporter: StderrReporter) -> None:
    reporter.message("a message")
    with reporter.task("encode", total=3, unit="img") as task:
        for _ in range(3):
            task.advance(note="decode 40%")
            task.shown = float("-inf")  # as if time had passed
    reporter.warning("a name \x1b[31m")


def test_away_from_a_terminal_all_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    work(StderrReporter())
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "a message"
    assert lines[1].startswith("encode: 2/3 img  ") and lines[1].endswith("decode 40%")
    assert lines[-2].startswith("encode: 3 img in ") and lines[-1] == "warning: a name \\x1b[31m"
    assert "\r" not in err


def test_on_a_terminal_progress_is_one_line_that_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    work(StderrReporter())
    moved = screen.getvalue().split("\r")
    assert "encode: 2/3 img" in screen.getvalue()
    assert all(len(part) < 200 for part in moved)
    assert moved[-1].startswith("encode: 3 img in ")  # after the line was blanked
    assert moved[-2].strip() == ""
