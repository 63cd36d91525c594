"""A baseline goes through every command that the grid goes through, its codes neither clipped nor rounded to [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics

from brics_cli import KeyCodeStore, load_autoencoder
from brics_cli.autoencoder.autoencoder import to_tensor
from brics_cli.images import load_shards, open_collection


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quantisation"), [("kl", "float16"), ("vq", "float16"), ("fsq", "uint8")])
def test_a_baseline_trains_encodes_decodes_and_samples(
    kind: str, quantisation: str, photographs: Path, tmp_path: Path
) -> None:
    few = ("--recipe", "tiny", "--set", "training.batch_size=4")
    kind_of = ("--set", f"model.bottleneck.kind={kind}")
    brics("train-ae", photographs, *few, *kind_of, "--steps", 20, "--out", "ae", cwd=tmp_path, check=0)
    brics("encode-dataset", photographs, "--ae", "ae", "--out", "codes.h5", cwd=tmp_path, check=0)
    brics("info", "codes.h5", "--verify", cwd=tmp_path, check=0)
    store, model = KeyCodeStore(tmp_path / "codes.h5"), load_autoencoder(tmp_path / "ae")
    assert (store.quantisation, store.code_kind) == (quantisation, model.config.code_kind)
    collection = open_collection(str(photographs))
    batch = next(load_shards(collection, transform=model.transform, size=64, num_workers=0, batch_size=8))
    stored = torch.from_numpy(store.batch([store.keys.index(key) for key in batch.keys]))
    with torch.inference_mode():
        codes = model.encode(to_tensor(batch.images))
        if kind != "kl":  # what was quantised by the model is not changed by the store
            # two batch sizes may sum in two orders: a vector between two entries may fall to the other one
            assert float((model.decode(stored) != model.decode(codes)).any(1).float().mean()) < 0.02
    torch.testing.assert_close(stored.mean(), codes.mean(), atol=2e-2, rtol=1e-2)
    brics("decode", "codes.h5", "--out", "reconstructions", cwd=tmp_path, check=0)
    brics("train-diffusion", "codes.h5", *few, "--steps", 6, "--out", "diffusion", cwd=tmp_path, check=0)
    brics("sample", "--n", 4, "--model", "diffusion", "--format", "h5", "--out", "s.h5", cwd=tmp_path, check=0)
    samples = KeyCodeStore(tmp_path / "s.h5")
    assert (samples.quantisation, samples.code_kind) == (quantisation, model.config.code_kind)
    sampled = samples.batch([0, 1, 2, 3])
    assert np.isfinite(sampled).all() and ((sampled < 0).any() == (kind != "fsq"))
