import json
from pathlib import Path

import pytest
import torch

from brics_cli import load_autoencoder
from brics_cli.config import AutoencoderConfig, load_recipe
from brics_cli.core.autoencoder import save_autoencoder
from brics_cli.core.bottlenecks.grid import initial_tables
from brics_cli.core.build import build_autoencoder
from brics_cli.core.flops import count
from brics_cli.core.image_tensors import to_tensor, to_uint8
from brics_cli.core.layers import reflect_into_unit
from brics_cli.errors import ArtefactError
from brics_cli.kernels import GridSpec

BOTTLENECKS = [
    {"kind": "grid", "key_dim": 1},
    {"kind": "grid", "key_dim": 2, "noise": 0.02},
    {"kind": "grid", "key_dim": 2, "init": "uniform"},
    {"kind": "grid", "key_dim": 3, "resolutions": [3, 5], "init": "normal"},
    {"kind": "none"},
    {"kind": "none", "noise": 0.02},
]


def config(bottleneck: dict) -> AutoencoderConfig:
    return AutoencoderConfig.model_validate(
        {
            "image_size": 32,
            "code_channels": 6,
            "encoder": {"patch": 4, "widths": [16, 24], "num_blocks": 1},
            "bottleneck": bottleneck,
            "features": {"hidden_dim": 16, "upscale": 2},
            "decoder": {"widths": [16], "num_blocks": 1, "unpatch": 4},
        }
    )


@pytest.fixture(params=BOTTLENECKS, ids=lambda b: "-".join(map(str, b.values())))
def model(request):
    torch.manual_seed(0)
    return build_autoencoder(config(request.param))


def images(num: int = 3) -> torch.Tensor:
    return torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_bottleneck_contract(model) -> None:
    h = model.encoder(images()).detach().requires_grad_()
    noise = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    out = model.bottleneck(h, noise=noise)
    assert out.codes.shape == (3, 6, 4, 4) and out.features.shape == (3, 16, 8, 8)
    assert out.codes.min() >= 0 and out.codes.max() <= 1
    torch.testing.assert_close(model.bottleneck.decode_codes(out.codes), out.features)
    (out.features.square().mean() + out.aux_loss).backward()
    for tensor in (h, *model.bottleneck.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0


def test_noise_is_added_in_training_alone_and_with_the_stated_size(model) -> None:
    h = model.encoder(images()).detach()
    clean = model.bottleneck.bound(h)
    torch.testing.assert_close(model.bottleneck(h).codes, clean)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    noisy = model.bottleneck(h, noise=noise).codes
    std = model.bottleneck.noise_std
    torch.testing.assert_close(noisy, reflect_into_unit(clean + std * noise))
    assert torch.equal(noisy, clean) == (std == 0)


def test_codes_stay_bounded_for_any_encoder_output(model) -> None:
    h = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4, 3.0]).view(1, 6, 1, 1).expand(1, 6, 4, 4)
    codes = model.bottleneck(h, noise=10 * torch.randn(1, 6, 4, 4)).codes
    assert codes.isfinite().all() and codes.min() >= 0 and codes.max() <= 1


def test_a_saved_model_loads_to_the_same_images(model, tmp_path: Path) -> None:
    sha256 = save_autoencoder(
        tmp_path / "model", config=model.config, state=model.state_dict(), details={"transform": "adm"}
    )
    loaded = load_autoencoder(tmp_path)
    assert loaded.weights_sha256 == sha256 and loaded.transform == "adm" and loaded.config == model.config
    codes = model.eval().encode(images())
    torch.testing.assert_close(loaded.encode(images()), codes, rtol=0, atol=0)
    torch.testing.assert_close(loaded.decode(codes), model.decode(codes), rtol=0, atol=0)
    assert loaded.decode(codes).abs().max() <= 1


def test_the_identity_initialisation_is_the_coordinate() -> None:
    grid = config({"kind": "grid", "key_dim": 2, "resolutions": [4], "init_std": 0.0}).bottleneck
    tables = initial_tables(grid, GridSpec(2, (4,), 4), num_groups=2)
    row_of_vertex_1_3 = 1 * 5 + 3
    assert tables[0, row_of_vertex_1_3].tolist() == [-0.5, 0.5, 0.0, 0.0]


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
    model = build_autoencoder(config({"kind": "none"}))
    save_autoencoder(tmp_path / "model", config=model.config, state=model.state_dict(), details={"transform": "adm"})
    DAMAGE[damage](tmp_path / "model")
    with pytest.raises(ArtefactError) as caught:
        load_autoencoder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_models_of_another_kind_format_or_shape_say_so(tmp_path: Path) -> None:
    model = build_autoencoder(config({"kind": "none"}))
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


def test_brics_256_keeps_to_its_arithmetic() -> None:
    rows = {row.part: row for row in count(load_recipe("brics-256", kind="autoencoder"))}
    assert rows["codes to pixels"].gflop <= 101  # 0.40 of VQGAN-f16's decoder, DESIGN section 3.2
    parts = ("retrieval", "feature MLP", "decoder")
    assert sum(rows[part].gflop for part in parts) == pytest.approx(rows["codes to pixels"].gflop)
