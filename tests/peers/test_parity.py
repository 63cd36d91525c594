"""Every metric equals the peer that defines it."""

from __future__ import annotations

from pathlib import Path

import pytest
import standin_weights
import torch
from peers.parity import parity

from brics_cli.bench.evaluate import write_images
from brics_cli.networks.clip import load_clip
from brics_cli.networks.inception import load_inception


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_every_metric_equals_the_peer_that_defines_it(tmp_path: Path) -> None:
    for seed, side in enumerate(("real", "fake")):
        (tmp_path / side).mkdir()
        write_images(tmp_path / side, 12, seed=seed)
    file = standin_weights.save_random_inception(tmp_path)
    clip = load_clip(standin_weights.save_clip(tmp_path))
    networks = {"inception-clean": load_inception(file), "clip": clip}
    rows = parity(tmp_path, tmp_path / "real", tmp_path / "fake", networks=networks, device=torch.device("cpu"))
    assert [row.metric.split(",")[0] for row in rows] == [
        *("fid", "clip-fid", "kid", "is", "precision", "recall", "psnr", "ssim", "ms-ssim", "lpips (alex)")
    ]
    apart = {row.metric: row.difference for row in rows}
    assert all(difference < 1e-4 for difference in apart.values()), apart
    assert rows[0].ours > 0 and rows[-1].ours > 0 and 10 < rows[6].ours < 60
