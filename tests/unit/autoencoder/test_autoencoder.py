import json
from pathlib import Path

import pytest
import torch

from brics_cli import load_autoencoder
from brics_cli.autoencoder.autoencoder import save_autoencoder, to_tensor, to_uint8
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.layers import reflect_into_unit
from brics_cli.config import AutoencoderConfig
from brics_cli.errors import ArtefactError


def config() -> AutoencoderConfig:
    return AutoencoderConfig.model_validate(
        {
            "image_size": 32,
            "code_channels": 6,
            "encoder": {"patch": 4, "widths": [16, 24], "num_blocks": 1},
            "bottleneck": {"kind": "none"},
            "features": {"hidden_dim": 16, "upscale": 2},
            "decoder": {"widths": [16], "num_blocks": 1, "unpatch": 4},
        }
    )


def test_reflection_mirrors_at_both_walls() -> None:
    x = torch.tensor([-0.25, 0.0, 0.4, 1.0, 1.25, 2.5, -1.5])
    torch.testing.assert_close(reflect_into_unit(x), torch.tensor([0.25, 0.0, 0.4, 1.0, 0.75, 0.5, 0.5]))


def test_uint8_survives_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).numpy()
    assert (to_uint8(to_tensor(every)) == every).all()


DAMAGE = {
    "no config": lambda model: (model / "config.json").unlink(),
    "config cut": lambda model: (model / "config.json").write_text("{"),
    "weights cut": lambda model: (model / "model.safetensors").write_bytes(
        (model / "model.safetensors").read_bytes()[:-100]
    ),
    "weights foreign": lambda model: (model / "model.safetensors").write_bytes(b"PK\x03\x04 a zip file"),
    "no weights": lambda model: (model / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(config())
    save_autoencoder(tmp_path / "model", config=model.config, state=model.state_dict(), details={"transform": "adm"})
    DAMAGE[damage](tmp_path / "model")
    with pytest.raises(ArtefactError) as caught:
        load_autoencoder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_models_of_another_kind_format_or_shape_say_so(tmp_path: Path) -> None:
    model = build_autoencoder(config())
    save_autoencoder(tmp_path / "model", config=model.config, state=model.state_dict(), details={"transform": "adm"})
    file = tmp_path / "model" / "config.json"
    written = json.loads(file.read_text())
    for change, words in (
        ({"kind": "diffusion"}, "kind 'diffusion', and kind 'autoencoder' is needed"),
        ({"format_version": 9}, "model format 9, this brics reads 1"),
        ({"model": {**written["model"], "code_channels": 8}}, "does not fit its config.json"),
    ):
        file.write_text(json.dumps(written | change))
        with pytest.raises(ArtefactError, match=words):
            load_autoencoder(tmp_path)
    for change, words in (
        ({"transform": None}, "does not say the pixel transform"),
        ({"model": {**written["model"], "code_channels": "many"}}, "The model's config is damaged"),
    ):
        file.write_text(json.dumps(written | change))
        with pytest.raises(ArtefactError, match=words):
            load_autoencoder(tmp_path)
    with pytest.raises(ArtefactError, match="no autoencoder run at"):
        load_autoencoder(tmp_path / "elsewhere")
