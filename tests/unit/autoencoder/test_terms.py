"""Terms for easier codes: each against what it is for, and exact however a batch is split."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.terms import BatchPenalty, batch_penalties_of, gradient_term, marginals, spectrum, views_of
from brics_cli.autoencoder.terms.noise_schedule import noise_factor
from brics_cli.config import AutoencoderRecipe, load_recipe
from brics_cli.config.terms import MarginalsConfig, NoiseScheduleConfig, SpectrumConfig
from brics_cli.errors import UsageError
from brics_cli.runtime.distributed import World
from brics_cli.training.step import autoencoder_loss
from brics_cli.training.terms import build_code_terms

ALL = (
    *("terms.scale_equivariance.weight=0.25", "terms.equivariance.weight=0.5", "terms.whitening.weight=0.1"),
    *("terms.spectrum={weight: 0.1, mask_weight: 0.1}", "terms.marginals.weight=0.1"),
)
SMALL = ("model.image_size=32", "model.encoder.widths=[8,16]", "model.decoder.widths=[16]", "model.code_channels=4")


def recipe(*overrides: str) -> AutoencoderRecipe:
    loaded = load_recipe("tiny", kind="autoencoder", overrides=[*SMALL, *overrides])
    assert isinstance(loaded, AutoencoderRecipe)
    return loaded


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_is_done_unless_it_is_asked_for() -> None:
    plain = recipe()
    assert build_code_terms(plain, build_autoencoder(plain.model), world=World(device=torch.device("cpu"))) is None
    assert views_of(plain, step=0) == {} and noise_factor(plain.terms.noise, step=5, num_steps=10) == 1


def test_transforms_fit_codes_and_images_and_depend_on_seed_and_step_alone() -> None:
    codes, images = normal(2, 4, 8, 8), normal(2, 3, 32, 32)
    seen = set()
    for step in range(12):
        views, again = (views_of(recipe(*ALL), step=step) for _ in range(2))
        assert list(views) == ["scale_equivariance", "equivariance", "spectrum_mask"]
        for name, view in views.items():
            small, large = view.apply(codes, 1), view.apply(images, 4)
            assert large.shape[2:] == tuple(4 * side for side in small.shape[2:])
            assert torch.equal(again[name].apply(codes, 1), small)
            seen.add((name, tuple(small.shape[2:])))
    assert {shape for name, shape in seen if name == "scale_equivariance"} == {(4, 4), (2, 2)}
    assert len(seen) > 6, "the scales hardly change"
    other = recipe(*ALL, "training.seed=1")
    assert any(
        views_of(other, step=step)["equivariance"].apply(codes, 1).shape
        != views_of(recipe(*ALL), step=step)["equivariance"].apply(codes, 1).shape
        for step in range(5)
    )


def test_what_a_perfect_decoder_does_costs_nothing() -> None:
    """Nearest enlarging commutes with turns, and with averaging over squares of equal codes."""
    codes = F.interpolate(normal(2, 3, 2, 2), scale_factor=4)
    images = F.interpolate(codes, scale_factor=4)
    for step in range(6):
        view = views_of(recipe(*ALL, "terms.equivariance.least_scale=1"), step=step)
        for name in ("scale_equivariance", "equivariance"):
            made = F.interpolate(view[name].apply(codes, 1), scale_factor=4)
            torch.testing.assert_close(made, view[name].apply(images, 4), rtol=0, atol=1e-5)


def test_a_mask_takes_away_high_frequencies_and_nothing_else() -> None:
    maps, matrix = normal(2, 3, 8, 8), spectrum.dct(8, like=torch.zeros(()))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), rtol=0, atol=1e-5)
    half = spectrum.mask(SpectrumConfig(least_band=0.5), lambda: 0.0)
    kept, before = (matrix @ each @ matrix.T for each in (half(maps, 1), maps))
    torch.testing.assert_close(kept[..., :4, :4], before[..., :4, :4], rtol=0, atol=1e-5)
    assert kept[..., 4:, :].abs().max() < 1e-5 and kept[..., 4:].abs().max() < 1e-5
    torch.testing.assert_close(spectrum.mask(SpectrumConfig(), lambda: 1.0)(maps, 1), maps, rtol=0, atol=1e-5)


def test_spectra_match_where_codes_are_small_images() -> None:
    config, images = SpectrumConfig(weight=1.0), F.avg_pool2d(normal(4, 3, 64, 64), 3, 1, 1).cumsum(-1)[..., :32, :32]
    small = F.avg_pool2d(images, 4)
    assert float(spectrum.matching(config, small, images)) < 1e-3
    noise = spectrum.matching(config, normal(4, 3, 8, 8), images)
    flat = spectrum.matching(SpectrumConfig(weight=1.0, flatten=0.3), normal(4, 3, 8, 8), images)
    assert float(noise) > 1 and float(flat) < float(noise) / 2
    codes = normal(4, 3, 8, 8).requires_grad_()
    optimiser = torch.optim.Adam([codes], 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        spectrum.matching(config, codes, images).backward()
        optimiser.step()
    assert float(spectrum.matching(config, codes.detach(), images)) < float(noise) / 5


@pytest.mark.parametrize(("target", "expected"), [("uniform", (0.5, 1 / 12, 1.8)), ("gaussian", (0.5, None, 3.0))])
def test_marginals_become_what_is_asked_for(target: str, expected: tuple[float, float | None, float]) -> None:
    config = MarginalsConfig(weight=1.0, target=target)
    logits = (0.5 + 0.4 * normal(256, 2, 2, 2).abs() ** 1.5).requires_grad_()
    optimiser = torch.optim.Adam([logits], 0.02)
    for _ in range(400):
        optimiser.zero_grad()
        means = marginals.moments(config, torch.sigmoid(logits), bounded=True)
        marginals.distance(config, means).backward()
        optimiser.step()
    assert float(marginals.distance(config, means)) < 0.02
    values = torch.sigmoid(logits.detach()) if target == "uniform" else logits.detach()
    by_channel = values.transpose(0, 1).flatten(1)
    centred = by_channel - by_channel.mean(dim=1, keepdim=True)
    kurtosis = (centred**4).mean(dim=1) / centred.var(dim=1) ** 2
    torch.testing.assert_close(kurtosis, torch.full((2,), expected[2]), rtol=0, atol=0.25)
    assert torch.sigmoid(by_channel.mean()) == pytest.approx(0.5, abs=0.02) or by_channel.mean() == pytest.approx(
        0.5, abs=0.03
    )
    if expected[1] is not None:
        torch.testing.assert_close(by_channel.var(dim=1), torch.full((2,), expected[1]), rtol=0.1, atol=0)


def test_codes_that_are_as_asked_for_cost_nothing() -> None:
    torch.manual_seed(0)
    for target, codes, bounded in (
        ("uniform", torch.rand(2000, 3, 4, 4), True),
        ("gaussian", torch.sigmoid(torch.randn(2000, 3, 4, 4)), True),
        ("gaussian", torch.randn(2000, 3, 4, 4), False),
    ):
        config = MarginalsConfig(weight=1.0, target=target)
        assert float(marginals.distance(config, marginals.moments(config, codes, bounded=bounded))) < 2e-3
    penalty = batch_penalties_of(recipe(*ALL))["whitening"]
    independent = torch.rand(500, 4, 4, 4)
    assert float(penalty.penalty(penalty.statistics(independent))) < 1e-3
    same = independent[:, :1].expand(-1, 4, -1, -1)
    assert float(penalty.penalty(penalty.statistics(3 * same - 1))) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["marginals", "whitening"])
def test_gradients_of_parts_average_to_that_of_the_whole(name: str) -> None:
    penalty: BatchPenalty = batch_penalties_of(recipe(*ALL))[name]
    codes = torch.rand(8, 4, 4, 4, dtype=torch.float64).requires_grad_()
    whole = penalty.statistics(codes)
    value = penalty.weight * penalty.penalty(whole)
    (expected,) = torch.autograd.grad(value, codes)
    parts = [gradient_term(penalty, part, whole.detach()) for part in codes.split(2)]
    assert all(float(part) == pytest.approx(float(value), rel=1e-6) for part in parts)
    (found,) = torch.autograd.grad(torch.stack(parts).mean(), codes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", ["grid", "hash", "none", "kl", "fsq"])
def test_every_bottleneck_learns_from_every_term(kind: str) -> None:
    torch.manual_seed(0)
    made = recipe(f"model.bottleneck.kind={kind}", *ALL)
    model = build_autoencoder(made.model)
    terms = build_code_terms(made, model, world=World(device=torch.device("cpu")))
    assert terms is not None
    images, noise = normal(4, 3, 32, 32).clamp(-1, 1), normal(4, *made.model.code_shape)
    terms.prepare(images, step=3)
    settings = {"distance": None, "adversary": None, "step": 3, "code_terms": terms}
    loss, found, _ = autoencoder_loss(made, model, images, noise, **settings)
    loss.backward()
    names = {"scale_equivariance", "equivariance", "spectrum_mask", "spectrum", "marginals", "whitening"}
    assert names <= found.keys() and all(float(found[name]) > 0 for name in names)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
    assert any(float(each.grad.abs().max()) > 0 for each in model.encoder.parameters())


def test_the_schedule_of_the_noise() -> None:
    late = NoiseScheduleConfig(factors=((0.5, 0), (1, 2)))
    assert [noise_factor(late, step=step, num_steps=100) for step in (0, 50, 75, 100)] == [0, 0, 1, 2]
    falling = NoiseScheduleConfig(factors=((0, 1), (0.1, 0)))
    assert [noise_factor(falling, step=step, num_steps=100) for step in (0, 5, 10, 99)] == [1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["terms.noise.factors=[[0, 0]]", "model.bottleneck.noise=0"],
            "terms.noise.factors multiply model.bottleneck.noise",
        ),
        (["terms.noise.factors=[[0.5, 0], [0, 1]]"], "not in the order of their shares"),
        (["terms.whitening.weight=1", "model.bottleneck.kind=vq"], "not for entries of codebooks"),
        (["terms.marginals={weight: 1, target: uniform}", "model.bottleneck.kind=kl"], "uniform is for codes in"),
        (["terms.equivariance.weight=1", "loss={l1: 0, perceptual: {kind: multiscale}}"], "need loss.l1 or loss.l2"),
        (["terms.scale_equivariance={weight: 1, factors: [3]}"], "3 does not divide codes of 4 x 4"),
        (["terms.equivarianse.weight=1"], "did you mean 'equivariance'"),
    ],
)
def test_terms_that_do_not_fit_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe(*overrides)
