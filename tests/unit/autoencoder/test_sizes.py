"""Configs that describe larger models than there are weights, or memory: one line, at no cost."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import brics, error_line
from diffusion_workspace import AUTOENCODER, make_workspace
from random_autoencoder import make_autoencoder

from brics_cli import load_autoencoder, load_denoiser
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.sizes import check_against, is_larger
from brics_cli.config import load_recipe
from brics_cli.errors import ArtefactError, MachineError
from brics_cli.runtime.device import memory_bytes

MORE_MIB = 100


@pytest.fixture
def cheap():
    """What the test does takes no memory to speak of, and no time."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MORE_MIB
    assert time.process_time() - start < 20


def with_value(config: Path, keys: str, value: Any) -> None:
    values = json.loads(config.read_text())
    *path, last = keys.split(".")
    block = values
    for key in path:
        block = block[int(key)] if isinstance(block, list) else block[key]
    block[int(last) if isinstance(block, list) else last] = value
    config.write_text(json.dumps(values))


AUTOENCODERS = [
    ("model.features.hidden_dim", 10**7),
    ("model.features.hidden_dim", 10**30),
    ("model.bottleneck.level_dim", 10**9),
    ("model.bottleneck.resolutions", [10**9, 10**9]),
    ("model.bottleneck.resolutions", [4] * 10**4),
    ("model.encoder.num_blocks", 10**6),
    ("model.encoder.num_blocks", 10**15),
    ("model.encoder.widths.0", 10**12),
    ("model.decoder.num_blocks", 10**9),
    ("model.decoder.widths.0", 10**7),
    ("model.code_channels", 10**7),
    ("model.image_size", 10**6),
    ("model.image_size", 2 * 10**30),
]


@pytest.mark.parametrize(("keys", "value"), AUTOENCODERS, ids=lambda value: str(value)[:30])
def test_an_autoencoders_config_that_asks_for_more_than_its_weights(tmp_path, cheap, keys, value):
    run = make_autoencoder(tmp_path / "ae", seed=0)
    load_autoencoder(run)
    with_value(run / "model/config.json", keys, value)
    with pytest.raises((ArtefactError, MachineError)) as said:
        load_autoencoder(run)
    assert "config.json" in str(said.value) and "\n" not in str(said.value)


DENOISERS = [("denoiser.dim", 10**8), ("denoiser.depth", 10**6), ("denoiser.depth", 10**18), ("num_classes", 10**12),
             ("code_shape", [10**9, 4, 4]), ("code_shape", [4, 10**9, 10**9]), ("denoiser.patch", 10**9)]  # fmt: skip


@pytest.mark.parametrize(("keys", "value"), DENOISERS, ids=lambda value: str(value)[:30])
def test_a_denoisers_config_that_asks_for_more_than_its_weights(tmp_path, cheap, keys, value):
    run = make_workspace(tmp_path) / "runs/diffusion/d"
    load_denoiser(run)
    with_value(run / "model/config.json", keys, value)
    with pytest.raises(ArtefactError) as said:
        load_denoiser(run)
    assert "config.json" in str(said.value) or "damaged" in str(said.value)


def test_commands_say_it_in_one_line(tmp_path, cheap):
    run = make_autoencoder(tmp_path / "ae", seed=0)
    with_value(run / "model/config.json", "model.features.hidden_dim", 10**7)
    done = brics("encode-dataset", tmp_path, "--ae", run, "--out", "c.h5", cwd=tmp_path)
    assert done.returncode in (2, 3)


@pytest.mark.parametrize(
    "setting",
    ["model.features.hidden_dim=10000000", "model.decoder.num_blocks=1000000", "model.image_size=1048576"],
)
def test_a_recipe_that_does_not_fit_in_memory(tmp_path, photographs, cheap, setting):
    done = brics("train-ae", photographs, "--recipe", "tiny", "--set", setting, "--out", "run", cwd=tmp_path, check=6)
    assert "recipe tiny" in error_line(done)
    assert not (tmp_path / "run/brics.json").exists()


def test_every_recipe_of_ours_fits_its_own_weights(tmp_path):
    from brics_cli.config import list_recipes

    for name in list_recipes("autoencoder"):
        config = load_recipe(name, kind="autoencoder").model
        with torch.device("meta"):
            model = build_autoencoder(config)
        tensors = list(model.parameters())
        values = sum(tensor.numel() for tensor in tensors)
        assert not is_larger(lambda c=config: build_autoencoder(c), num_values=values, num_tensors=len(tensors)), name
        assert is_larger(lambda c=config: build_autoencoder(c), num_values=values - 1, num_tensors=len(tensors)), name


def test_weights_whose_header_lies_are_damaged(tmp_path):
    run = make_autoencoder(tmp_path / "ae", seed=0)
    weights = run / "model/model.safetensors"
    weights.write_bytes(b"\xff" * 7 + b"\x7f" + weights.read_bytes()[8:])
    with pytest.raises(ArtefactError, match="damaged"):
        check_against(weights, lambda: build_autoencoder(AUTOENCODER))


def test_memory_is_that_of_the_machine():
    assert 2**30 < memory_bytes(torch.device("cpu")) < 2**50
