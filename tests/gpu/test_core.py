"""Bottlenecks and decoders on CUDA: the same codes and features as on the CPU within stated tolerances."""

from __future__ import annotations

import pytest
import torch

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.config import AutoencoderConfig, validate

pytestmark = pytest.mark.gpu

PAPER = {
    "features": {"kind": "grouped", "hidden_dim": 16, "upscale": 2},
    "decoder": {"kind": "style", "widths": [32, 16, 16], "style_dim": 32, "style_layers": 2},
}
VARIANTS = {
    "grid": {"bottleneck": {"kind": "grid", "noise": 0.01}},
    "grid-cell": {"bottleneck": {"kind": "grid", "positions": "cell", "resolutions": [2, 3]}},
    "paper": {"bottleneck": {"kind": "grid", "key_dim": 1, "positions": "image", "table_cap": 900}, **PAPER},
    "hash-image": {"bottleneck": {"kind": "hash", "positions": "image", "table_cap": 64}},
    "none": {"bottleneck": {"kind": "none"}},
    "kl": {"bottleneck": {"kind": "kl"}},
    "vq": {"bottleneck": {"kind": "vq", "codebook_size": 16}},
    "rq": {"bottleneck": {"kind": "rq", "codebook_size": 16, "depth": 2}},
    "fsq": {"bottleneck": {"kind": "fsq"}},
}


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config(name: str) -> AutoencoderConfig:
    values = {
        "image_size": 32,
        "code_channels": 8,
        "encoder": {"patch": 4, "widths": [16, 24], "num_blocks": 1, "attention": True},
        "features": {"hidden_dim": 16, "upscale": 2},
        "decoder": {"widths": [16], "num_blocks": 1, "unpatch": 4},
        **VARIANTS[name],
    }
    return validate(AutoencoderConfig, values, source="test")


def test_cuda_decodes_and_encodes_as_the_cpu_does(name: str) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(config(name))
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    model.train()(images, noise=torch.randn(4, 8, 4, 4))  # codebooks start here
    model.eval()
    codes = model.encode(images).detach()
    expected = model.decode(codes).detach()
    model.cuda()
    with torch.inference_mode():
        torch.testing.assert_close(model.decode(codes.cuda()).cpu(), expected, atol=5e-3, rtol=0)
        found = model.encode(images.cuda()).cpu()
    if name in ("vq", "rq", "fsq"):  # TF32 may move a vector across the border between two entries
        assert float((found != codes).float().mean()) < 0.05
    else:
        torch.testing.assert_close(found, codes, atol=5e-3, rtol=5e-3)


def test_bf16_training_passes_are_finite_and_codes_stay_float32(name: str) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(config(name)).cuda().to(memory_format=torch.channels_last)
    images = (torch.rand(4, 3, 32, 32, device="cuda") * 2 - 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        reconstructions, out = model(images, noise=torch.randn(4, 8, 4, 4, device="cuda"))
    assert out.codes.dtype == torch.float32
    ((reconstructions.float() - images).abs().mean() + out.aux_loss.float()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    counter = model.eval().bottleneck.usage_counter()
    with torch.inference_mode():
        counter.add(model.encode(images))
    assert all(value >= 0 for value in counter.result().values())


@pytest.mark.parametrize("kind", ["vq", "rq"])
def test_restarts_are_keyed_on_cuda_too(kind: str) -> None:
    changed = config(kind).model_dump()
    changed["bottleneck"]["restart_below"] = 1e3  # every entry restarts at every update
    straight, resumed = (
        build_autoencoder(validate(AutoencoderConfig, changed, source="test")).bottleneck.cuda() for _ in range(2)
    )
    h = torch.randn(3, 8, 4, 4, device="cuda")
    straight(h)
    resumed.load_state_dict(straight.state_dict())
    before = torch.cuda.get_rng_state()
    straight(h)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.randn(7, device="cuda")
    resumed(h)
    assert torch.equal(straight.codebooks, resumed.codebooks)
