"""`brics bench remote` on a store in memory."""

from __future__ import annotations

import pytest
import torch

from brics_cli.bench.remote import bench_remote


@pytest.mark.slow
def test_it_encodes_from_both(tmp_path, monkeypatch):
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path))
    settings = {"num_images": 100, "width": 64, "size": 64, "repeats": 1, "num_workers": 1}
    found = bench_remote("memory://bench/shards", device=torch.device("cpu"), **settings).value
    assert found["disk_img_per_s"] > 0 < found["url_img_per_s"] and found["url"] == "memory://bench/shards"
    assert found["ratio"] == pytest.approx(found["url_img_per_s"] / found["disk_img_per_s"])
