"""`brics bench eval`: equal to the peers, a peer that is not installed is said, a quarter of the memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import standin_weights
import torch

from brics_cli.bench import evaluate
from brics_cli.bench.evaluation_networks import Networks
from brics_cli.bench.evaluation_numerics import gathering_memory
from brics_cli.bench.evaluation_parity import parity
from brics_cli.networks.clip import load_clip
from brics_cli.networks.inception import load_inception
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


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_every_metric_equals_the_peer_that_defines_it(tmp_path: Path) -> None:
    for seed, side in enumerate(("real", "fake")):
        (tmp_path / side).mkdir()
        evaluate.write_images(tmp_path / side, 12, seed=seed)
    file = standin_weights.save_random_inception(tmp_path)
    clip = load_clip(standin_weights.save_clip(tmp_path))
    networks = Networks(load_inception(file), clip, inception_file=file, inception_state_file=file)
    rows = parity(tmp_path, tmp_path / "real", tmp_path / "fake", networks=networks, device=torch.device("cpu"))
    assert [row.metric.split(",")[0] for row in rows] == [
        *("fid", "clip-fid", "kid", "is", "precision", "recall", "psnr", "ssim", "ms-ssim", "lpips (alex)")
    ]
    apart = {row.metric: row.difference for row in rows}
    assert all(difference is not None and difference < 1e-4 for difference in apart.values()), apart
    assert rows[0].ours > 0 and rows[-1].ours > 0 and 10 < rows[6].ours < 60
