"""`brics bench eval`: a peer that is not installed is said, and features are gathered in a quarter of the memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from brics_cli.bench import evaluate
from brics_cli.bench.evaluation_networks import Networks
from brics_cli.bench.evaluation_numerics import gathering_memory
from brics_cli.reporting import SilentReporter


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_a_peer_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    reporter, unused = Listening(), Networks(None, None, tmp_path, tmp_path)  # type: ignore[arg-type]
    assert evaluate._torch_fidelity(tmp_path, unused, torch.device("cpu"), reporter) is None
    assert reporter.said == ["torch-fidelity is not installed, so its row has no figure: pip install torch-fidelity"]


@pytest.mark.slow  # half a minute and 1.2 GB for the stored side
def test_features_of_50000_images_take_a_quarter_of_the_memory_of_storing_them() -> None:
    (row,) = gathering_memory(50_000)
    assert row.ratio is not None and row.ratio >= 4
