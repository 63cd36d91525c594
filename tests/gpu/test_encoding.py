"""Encoding on CUDA: batches in flight give what batches waited for give, and several processes what one gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics
from random_autoencoder import make_autoencoder

from brics_cli import KeyCodeStore
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.codes import StoreHeader
from brics_cli.codes.encoding import CodeEncoder, encoding_network
from brics_cli.config import load_recipe
from brics_cli.images import load_shards, open_collection
from brics_cli.runtime.reporting import TimeSplit

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("quantisation", ["uint8", "uint16", "float16"])
def test_batches_in_flight_are_those_waited_for(photographs: Path, quantisation: str) -> None:
    torch.manual_seed(0)
    model = load_recipe("tiny", kind="autoencoder").model
    autoencoder = build_autoencoder(model).cuda().eval().requires_grad_(False)
    header = StoreHeader(
        code_shape=model.code_shape, image_size=64, transform="none/1", quantisation=quantisation, source="",
        source_sha256="", num_images=48, flipped=True, autoencoder={"sha256": ""},
    )  # fmt: skip
    network = encoding_network(autoencoder, precision="bf16")
    encoder = CodeEncoder(network, header, device=torch.device("cuda"), made_by="test")
    collection = open_collection(photographs)

    def batches():
        return load_shards(collection, transform="none", size=64, batch_size=7)

    split = TimeSplit()
    streamed = list(encoder.stream(batches(), split))
    waited = [encoder.encode(batch) for batch in batches()]
    assert len(streamed) == len(waited) == 7 and set(split.seconds) == {"wait", "compute"}
    for one, other in zip(streamed, waited, strict=True):
        assert one.batch.keys == other.batch.keys
        assert np.array_equal(one.codes, other.codes) and np.array_equal(one.flipped, other.flipped)
        assert one.codes.dtype == header.dtype and not np.array_equal(one.codes, one.flipped)


def test_two_processes_on_one_device_give_the_same_rows(photographs: Path, tmp_path: Path) -> None:
    make_autoencoder(tmp_path / "ae", seed=0, transform="none")
    brics("pack", photographs, "--out", "shards", "--size", 64, "--shard-size", 12, cwd=tmp_path, check=0)
    for out, device in (("one.h5", "cuda:0"), ("two.h5", "cuda:0,cuda:0")):
        brics("encode-dataset", "shards", "--ae", "ae", "--device", device, "--out", out, cwd=tmp_path, check=0)
    assert KeyCodeStore(tmp_path / "one.h5").sha256 == KeyCodeStore(tmp_path / "two.h5").sha256
