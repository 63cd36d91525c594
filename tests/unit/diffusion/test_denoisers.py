"""The denoiser: normalisation, loss, guidance, and what is on disk; the DiT: shapes, positions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from brics_cli.codes.format import dequantise, quantise
from brics_cli.config import Config, DiffusionConfig, DiTConfig
from brics_cli.diffusion.denoisers import NETWORKS, Denoiser, build_denoiser, load_denoiser, save_denoiser
from brics_cli.diffusion.denoisers.dit import DiT, rotary_angles, rotate
from brics_cli.diffusion.denoisers.parts import Network
from brics_cli.diffusion.diffusion import alpha_sigma, draws_for, parametrisation
from brics_cli.diffusion.samplers import SamplerSettings, check_guide, sample_codes
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.sampling.models import ImageNoise

SMALL = DiTConfig(dim=32, depth=2, num_heads=2)
LINEAGE = {"autoencoder_sha256": "a" * 64, "store_sha256": "b" * 64, "store_path": "/codes.h5"}


def make(
    shape=(3, 4, 4), num_classes=0, *, mean=0.4, std=0.2, seed=0, randomise=False, code_kind="bounded", **diffusion
) -> Denoiser:
    torch.manual_seed(seed)
    denoiser = build_denoiser(
        SMALL,
        DiffusionConfig(**diffusion),
        code_shape=shape,
        num_classes=num_classes,
        store_mean=[mean] * shape[0],
        store_std=[std] * shape[0],
        code_kind=code_kind,
    )
    if randomise:  # a fresh DiT's output is zero
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


def codes(batch=4, shape=(3, 4, 4), seed=0) -> torch.Tensor:
    return torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalise", ["store", "none"])
def test_normalisation_round_trip(normalise):
    denoiser = make(mean=0.3, std=0.1, normalise=normalise)
    z = codes()
    torch.testing.assert_close(denoiser.to_codes(denoiser.to_x(z)), z, rtol=0, atol=1e-6)
    if normalise == "none":
        torch.testing.assert_close(denoiser.to_x(z), 2 * z - 1)


def test_normalised_codes_have_mean_0_and_std_1():
    z = codes(batch=64) * torch.tensor([0.2, 0.5, 1.0])[:, None, None]
    denoiser = build_denoiser(
        SMALL, DiffusionConfig(), code_shape=(3, 4, 4), store_mean=z.mean((0, 2, 3)), store_std=z.std((0, 2, 3))
    )
    x = denoiser.to_x(z)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-5)


def test_a_channel_that_never_varies_stays_finite():
    denoiser = make(mean=0.5, std=0.0)
    assert torch.isfinite(denoiser.to_x(codes())).all()


def counted(z: torch.Tensor) -> np.ndarray:
    """The histogram (C, 256) of a store of codes (B, C, h, w)."""
    return np.array([np.bincount(row.flatten(), minlength=256) for row in quantise(z, "uint8").swapaxes(0, 1)])


def probit(z: torch.Tensor, **settings) -> Denoiser:
    torch.manual_seed(0)
    given = {"store_mean": [0.5] * 3, "store_std": [0.25] * 3, "store_histogram": counted(z)} | settings
    return build_denoiser(SMALL, DiffusionConfig(normalise="probit"), code_shape=(3, 4, 4), **given).eval()


def test_probit_makes_any_bounded_codes_gaussian_and_gives_them_back():
    flat = codes(batch=2000)
    few = (flat * 7).round() / 7  # as fsq's
    skewed = flat.sqrt()
    mixed = torch.cat([flat[:, :1], few[:, :1], skewed[:, :1]], dim=1)
    stored = torch.from_numpy(dequantise(quantise(mixed, "uint8"), "uint8"))
    denoiser = probit(stored)
    x = denoiser.to_x(stored)
    moments = torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3)), (x**4).mean((0, 2, 3))])  # (3, C)
    assert moments[0].abs().max() < 0.01
    torch.testing.assert_close(moments[1:, [0, 2]], torch.tensor([[1.0, 1.0], [3.0, 3.0]]), rtol=0, atol=0.12)
    torch.testing.assert_close(denoiser.to_codes(x), stored, rtol=0, atol=2e-6)
    assert (denoiser.levels.diff(dim=1) > 0).all()


def test_probit_never_leaves_the_bounds_and_parts_few_levels_in_the_middle():
    denoiser = probit((codes(batch=500) * 3).round() / 3)
    x = torch.linspace(-30, 30, 4801).view(1, 1, -1, 1).expand(1, 3, -1, 1)
    z = denoiser.to_codes(x)
    assert float(z.min()) == 0 and float(z.max()) == 1 and (z.diff(dim=2) >= 0).all()
    assert ((z - (z * 3).round() / 3).abs() < 0.01).float().mean() > 0.97  # a sample meets a level, not what is between
    assert torch.equal(denoiser.clip(x).amax(), denoiser.levels.amax())
    assert torch.isfinite(denoiser.to_x(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))).all()


def test_probit_is_kept_in_the_model_and_guides_must_share_it(tmp_path):
    denoiser = probit(codes(batch=50) ** 2)
    save_denoiser(tmp_path / "model", denoiser=denoiser, state=denoiser.state_dict(), lineage=LINEAGE)
    loaded = load_denoiser(tmp_path)
    z = codes()
    assert torch.equal(loaded.to_x(z), denoiser.to_x(z)) and torch.equal(loaded.levels, denoiser.levels)
    for other in (probit(codes(batch=50)), make(mean=0.5, std=0.25)):
        with pytest.raises(ArtefactError, match="it normalises codes by other statistics"):
            check_guide(other, loaded)
    check_guide(probit(codes(batch=50) ** 2), loaded)
    with pytest.raises(UsageError, match=r"probit is for codes in \[0, 1\]"):
        probit(z, code_kind="continuous")


def test_a_channel_of_one_value_is_finite_under_probit():
    z = torch.full((4, 3, 4, 4), 0.2)
    denoiser = probit(z)
    x = denoiser.to_x(z)
    assert torch.isfinite(x).all() and x.abs().max() < 0.02
    torch.testing.assert_close(denoiser.to_codes(x), z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", ["eps", "v", "x0", "edm", "flow"])
@pytest.mark.parametrize("schedule", ["cosine", "cosine-shifted", "edm-lognormal", "logit-normal"])
def test_sampled_codes_stay_in_range_and_finite(objective, schedule):
    denoiser = make(objective=objective, schedule=schedule, randomise=True)
    for sampler in ("heun", "ddim"):
        noise = ImageNoise([0, 1], shape=denoiser.code_shape)
        with torch.inference_mode():
            z = sample_codes(denoiser, noise=noise, settings=SamplerSettings(sampler=sampler, steps=4))
        assert z.shape == (2, 3, 4, 4) and torch.isfinite(z).all()
        assert float(z.min()) >= 0 and float(z.max()) <= 1


def test_clip_is_the_exact_range_of_codes():
    denoiser = make(mean=0.3, std=0.05, randomise=True)
    x_t, log_snr = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) * 9, torch.tensor([9.0, 9.0])
    clipped = denoiser.denoise(x_t, log_snr).detach()
    z = (clipped * denoiser.std + denoiser.mean + 1) / 2  # without to_codes' clamp
    assert float(z.min()) == pytest.approx(0, abs=1e-6) and float(z.max()) == pytest.approx(1, abs=1e-6)
    assert not torch.equal(denoiser.denoise(x_t, log_snr, clip=False), clipped)


def test_continuous_codes_are_never_clipped(tmp_path):
    denoiser = make(mean=1.0, std=3.0, code_kind="continuous", randomise=True)
    save_denoiser(tmp_path / "model", denoiser=denoiser, state=denoiser.state_dict(), lineage=LINEAGE)
    denoiser = load_denoiser(tmp_path)
    z = 8 * codes() - 4
    torch.testing.assert_close(denoiser.to_codes(denoiser.to_x(z)), z, rtol=0, atol=1e-5)
    x_t, log_snr = 20 * torch.randn(4, 3, 4, 4), torch.zeros(4)
    assert torch.equal(denoiser.denoise(x_t, log_snr, clip=True), denoiser.denoise(x_t, log_snr, clip=False))


def test_objectives_agree_when_networks_say_the_same():
    """Networks that predict the target of one and the same x0 give that x0, whatever the objective."""
    x0 = torch.full((2, 3, 4, 4), 0.25)
    x_t = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    log_snr = torch.tensor([-3.0, 2.0])
    alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(log_snr))
    eps = (x_t - alpha * x0) / sigma
    for objective in ("eps", "v", "x0", "edm", "flow"):
        denoiser = make(objective=objective)
        p = [part[:, None, None, None] for part in parametrisation(denoiser.diffusion, log_snr)]

        class Oracle(torch.nn.Module):
            def forward(self, x, c_noise, labels, p=p):
                return p[3] * x0 + p[4] * eps

        denoiser.network = Oracle()
        torch.testing.assert_close(denoiser.denoise(x_t, log_snr), x0, rtol=0, atol=1e-5)


def test_guidance_extrapolates_between_the_two_estimates():
    denoiser = make(num_classes=3, randomise=True)
    x_t, log_snr, labels = torch.randn(2, 3, 4, 4), torch.zeros(2), torch.tensor([0, 2])
    with torch.inference_mode():
        none = denoiser.denoise(x_t, log_snr, clip=False)
        with_class = denoiser.denoise(x_t, log_snr, labels=labels, clip=False)
        guided = denoiser.denoise(x_t, log_snr, labels=labels, guidance=3.0, clip=False)
    assert not torch.allclose(none, with_class)
    torch.testing.assert_close(guided, none + 3 * (with_class - none), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="classes"):
        make().denoise(x_t, log_snr, labels=labels)


def test_loss_drops_labels_as_the_draws_say():
    denoiser = make(num_classes=2, class_dropout=0.5, randomise=True)
    z, labels = codes(2), torch.tensor([1, 1])
    draws = draws_for(0, step=0, indices=[0, 1], shape=(3, 4, 4))
    kept, dropped = (draws._replace(drop=torch.full((2,), value)) for value in (0.9, 0.1))
    with torch.inference_mode():
        without = denoiser.loss(z, kept, labels=torch.tensor([-1, -1])).per_sample
        assert torch.equal(denoiser.loss(z, dropped, labels=labels).per_sample, without)
        assert not torch.equal(denoiser.loss(z, kept, labels=labels).per_sample, without)


@pytest.mark.parametrize("objective", ["eps", "edm", "flow"])
def test_loss_falls_on_a_toy(objective):
    """Two smooth patterns: a small network learns to tell them from noise."""
    torch.manual_seed(0)
    ramp = torch.linspace(0.2, 0.8, 4).expand(1, 4, 4)
    data = torch.stack([ramp, 1 - ramp])
    denoiser = build_denoiser(
        SMALL, DiffusionConfig(objective=objective), code_shape=(1, 4, 4), store_mean=[0.5], store_std=[0.22]
    )
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        indices = range(32)
        loss = denoiser(data.repeat(16, 1, 1, 1), draws_for(0, step=step, indices=indices, shape=(1, 4, 4)))
        optimiser.zero_grad()
        loss.per_sample.mean().backward()
        optimiser.step()
        losses.append(float(loss.per_sample.detach().mean()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.parametrize("patch", [1, 2])
def test_dit_shapes_and_start_at_zero(patch):
    dit = DiT(DiTConfig(dim=32, depth=1, num_heads=2, patch=patch), code_shape=(3, 4, 6), num_classes=2)
    x = torch.randn(2, 3, 4, 6)
    out = dit(x, torch.zeros(2), torch.tensor([0, 2]))
    assert out.shape == x.shape and not out.any()
    with pytest.raises(UsageError, match="does not divide"):
        DiT(DiTConfig(dim=32, depth=1, num_heads=2, patch=5), code_shape=(3, 4, 6))


def test_patches_keep_positions_in_place():
    """With the blocks switched off, a pixel of the output depends on the pixels of its own patch alone."""
    dit = DiT(DiTConfig(dim=32, depth=1, num_heads=2, patch=2), code_shape=(3, 4, 4))
    torch.nn.init.normal_(dit.head.weight)
    x = torch.randn(1, 3, 4, 4)
    changed = x.clone()
    changed[..., 0, 1] += 1
    moved = (dit(x, torch.zeros(1)) - dit(changed, torch.zeros(1))).abs().amax(dim=(0, 1)) > 0
    assert moved[:2, :2].all() and not moved[2:, :].any() and not moved[:, 2:].any()


def test_rotary_scores_depend_on_differences_of_positions():
    angles = rotary_angles((4, 5), head_dim=16)
    rotation = torch.stack([angles.cos(), angles.sin()])
    q, k = torch.randn(2, 16).unbind()
    at = lambda x: rotate(x.expand(1, 1, 20, 16), rotation)[0, 0]  # noqa: E731
    scores = at(q) @ at(k).T  # (20, 20)
    torch.testing.assert_close(scores[0, 7], scores[6, 13], rtol=1e-4, atol=1e-4)  # both (+1, +2)
    assert abs(float(scores[0, 7] - scores[0, 11])) > 1e-4  # (+1, +2) against (+2, +1)


def test_save_and_load_give_the_same_denoiser(tmp_path):
    denoiser = make(num_classes=4, mean=0.31, std=0.17, objective="v", randomise=True)
    sha256 = save_denoiser(tmp_path / "model", denoiser=denoiser, state=denoiser.state_dict(), lineage=LINEAGE)
    loaded = load_denoiser(tmp_path)
    assert loaded.weights_sha256 == sha256 and loaded.lineage == LINEAGE
    assert loaded.diffusion == denoiser.diffusion and loaded.num_classes == 4
    assert torch.equal(loaded.mean, denoiser.mean) and torch.equal(loaded.std, denoiser.std)
    x_t, log_snr, labels = torch.randn(2, 3, 4, 4), torch.tensor([-1.0, 1.0]), torch.tensor([0, 3])
    assert torch.equal(loaded.denoise(x_t, log_snr, labels=labels), denoiser.denoise(x_t, log_snr, labels=labels))


def damage_weights(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def edit(**changes):
    def apply(model):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_weights, "damaged or truncated"),
        (lambda model: (model / "model.safetensors").unlink(), "missing"),
        (lambda model: (model / "config.json").write_text("{"), "damaged"),
        (lambda model: (model / "config.json").unlink(), "no trained diffusion"),
        (edit(format_version=99), "format 99"),
        (edit(kind="autoencoder"), "kind 'autoencoder'"),
        (edit(code_shape=[5, 4, 4]), "5 channels"),
        (edit(denoiser={"kind": "dit", "dim": 64, "depth": 2, "num_heads": 2}), "does not fit"),
        (edit(denoiser={"kind": "dit", "dim": 63, "depth": 2, "num_heads": 2}), "dim 63"),
        (edit(lineage={}), "autoencoder_sha256"),
    ],
)
def test_damaged_models_are_refused_in_one_line(tmp_path, damage, said):
    denoiser = make()
    save_denoiser(tmp_path / "model", denoiser=denoiser, state=denoiser.state_dict(), lineage=LINEAGE)
    damage(tmp_path / "model")
    with pytest.raises(ArtefactError, match=said) as raised:
        load_denoiser(tmp_path)
    assert "\n" not in str(raised.value)


def test_another_denoiser_is_a_network_its_config_and_one_line(monkeypatch):
    class ToyConfig(Config):
        gain: float = 0.5

    class Toy(Network):
        def __init__(self, config: ToyConfig, *, code_shape: tuple[int, int, int], num_classes: int = 0) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.full((code_shape[0], 1, 1), config.gain))

        def forward(self, x, c_noise, labels=None):
            return self.gain * x

    monkeypatch.setitem(NETWORKS, ToyConfig, Toy)
    denoiser = build_denoiser(
        ToyConfig(), DiffusionConfig(), code_shape=(3, 4, 4), store_mean=[0.4] * 3, store_std=[0.2] * 3
    )
    found = sample_codes(denoiser, noise=ImageNoise([0, 1], shape=(3, 4, 4)), settings=SamplerSettings(steps=2))
    assert found.shape == (2, 3, 4, 4) and denoiser.train()(
        codes(), draws_for(0, step=0, indices=range(4), shape=(3, 4, 4))
    )
