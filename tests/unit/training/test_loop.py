"""When a run will end, said once and early (`brics_cli.training.loop`)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from brics_cli.training import loop as room
from brics_cli.training.loop import Loop


@pytest.fixture
def said(monkeypatch):
    """What a run of `num` steps of `seconds` says in its first `shown` steps: (when, kind, text)."""

    def run(seconds: float, num: int, *, shown: int = 1000, name: str = "brics-64"):
        clock, heard = SimpleNamespace(now=100.0), []
        monkeypatch.setattr(room.time, "perf_counter", lambda: clock.now)
        reporter = SimpleNamespace(
            message=lambda text: heard.append((clock.now - 100 - seconds, "message", text)),
            warning=lambda text: heard.append((clock.now - 100 - seconds, "warning", text)),
        )
        schedule = SimpleNamespace(steps=num)
        state = SimpleNamespace(step=0, schedule=schedule)
        loop = Loop(
            SimpleNamespace(recipe=SimpleNamespace(name=name)), state, stop=None, task=None, reporter=reporter,
            world=SimpleNamespace(device=torch.device("cpu")),
        )  # fmt: skip
        for step in range(1, min(num, shown) + 1):
            clock.now += seconds
            state.step, loop._num_steps = step, step
            loop._say_when_it_ends()
        return heard

    return run


@pytest.mark.parametrize("seconds", [0.01, 0.7, 4.9, 5.0, 30.0, 600.0])
def test_the_end_is_said_once_within_10_s_of_the_first_step(said, seconds):
    heard = said(seconds, 50_000)
    assert len(heard) == 1
    assert 0 <= heard[0][0] < 10
    assert f"{seconds:.3g} s for each of" in heard[0][2]


def test_a_run_that_ends_before_says_nothing(said):
    assert said(0.01, 300) == []
    assert said(100.0, 1) == []


def test_more_than_a_day_is_a_warning_with_what_to_do(said):
    ((_, kind, text),) = said(8.64, 10_001)
    assert kind == "message" and "about 24 h 00 min to go on this CPU, until " in text
    ((_, kind, text),) = said(8.64, 180_002)
    assert kind == "warning" and "takes more than a day: about 18 days to go on this CPU" in text
    assert "--dry-run says what a GPU would take; --recipe tiny takes minutes" in text
    assert "--recipe tiny" not in said(8.64, 180_002, name="tiny")[0][2]
