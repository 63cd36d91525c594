"""Every diffusion recipe: it builds, and costs what it says."""

from __future__ import annotations

import pytest
import torch

from brics_cli.config import DiffusionRecipe, list_recipes, load_recipe
from brics_cli.diffusion.denoisers import build_network
from brics_cli.diffusion.flops import count

OURS, CHURCH = (16, 16, 16), (4, 64, 64)


def recipe(name: str) -> DiffusionRecipe:
    found = load_recipe(name, kind="diffusion")
    assert isinstance(found, DiffusionRecipe)
    return found


@pytest.mark.parametrize("name", list_recipes("diffusion"))
def test_every_recipe_builds(name: str) -> None:
    with torch.device("meta"):
        network = build_network(recipe(name).denoiser, code_shape=OURS, num_classes=10)
        x, labels = torch.empty(2, *OURS), torch.empty(2, dtype=torch.int64)
        assert network(x, torch.empty(2), labels).shape == x.shape


def test_the_set_of_recipes() -> None:
    ours = {"brics-dit-b", "brics-dit-s", "brics-unet", "tiny"}
    assert set(list_recipes("diffusion")) >= ours | {"brics-paper-cosine-minsnr", "brics-paper-cosine-shifted"}


@pytest.mark.parametrize(
    ("name", "shape", "gflop", "params_m"),
    [  # counted by others: DiT's own figures, and the U-Net of the authors' release
        ("brics-dit-s", OURS, 12.1, 32.6),
        ("brics-dit-b", OURS, 46.0, 130),
        ("brics-paper-cosine-minsnr", CHURCH, 301, 406),
        ("brics-paper-cosine-shifted", CHURCH, 301, 406),
    ],
)
def test_networks_cost_what_the_ones_they_follow_cost(
    name: str, shape: tuple[int, int, int], gflop: float, params_m: float
) -> None:
    (row,) = count(recipe(name), code_shape=shape)
    assert row.gflop == pytest.approx(gflop, rel=0.01)
    assert row.params_m == pytest.approx(params_m, rel=0.01)


def test_the_unet_costs_what_its_rival_costs() -> None:
    unet, dit = (count(recipe(name), code_shape=OURS)[0].gflop for name in ("brics-unet", "brics-dit-s"))
    assert unet == pytest.approx(dit, rel=0.05)


def test_the_papers_two_configurations() -> None:
    minsnr, shifted = recipe("brics-paper-cosine-minsnr"), recipe("brics-paper-cosine-shifted")
    for paper in (minsnr, shifted):
        assert paper.denoiser.model_dump(include={"kind", "dim", "multipliers"}) == {
            "kind": "unet", "dim": 256, "multipliers": (1, 2, 3, 4),
        }  # fmt: skip
        assert (paper.diffusion.objective, paper.diffusion.normalise) == ("eps", "none")
    first, second = minsnr.diffusion, shifted.diffusion
    assert (first.schedule, first.weighting, first.min_snr_gamma) == ("cosine", "min-snr", 5)
    assert (second.schedule, second.weighting) == ("cosine-shifted", "none")
    assert (second.cosine_start, second.cosine_end, second.cosine_tau) == (0.2, 1, 1.5)
