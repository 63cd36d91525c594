"""The bottleneck comparison is fair, resumable, and scores what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.flops import count
from brics_cli.bench.bottleneck_results import Job, Trained, append_result, plot, read_results, summarise
from brics_cli.bench.bottleneck_scores import Scores, score
from brics_cli.bench.bottlenecks import at_cost, jobs_of, recipe_of
from brics_cli.bench.choices import VARIANTS
from brics_cli.cli.app import run
from brics_cli.config import AutoencoderRecipe
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.workspace.outputs import made_by_brics

SCORES = Scores(
    psnr=24.0, ssim=0.8, lpips=None, psnr_noise={"0.1": 23.0}, psnr_bits={"5": 23.5}, path_length=2.0,
    largest_step=1.5, usage={"usage": 0.5, "usage/level 0": 1.0},
)  # fmt: skip


def row(job: Job, recipe: AutoencoderRecipe, **scores: float) -> Trained:
    return Trained(
        job=job, data="photos", num_train=9, num_val=3, recipe=recipe.model_dump(mode="json"), gflop=0.04, params_m=0.1,
        bits_per_pixel=0.5, img_per_s=100.0, device="cpu", scores=replace(SCORES, **scores),
    )  # fmt: skip


def tiny(variant: str, *, noise: float | None = None, seed: int = 0) -> AutoencoderRecipe:
    return recipe_of(Job(variant, noise, seed), recipe="tiny", overrides=(), steps=5)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_costs_what_the_recipe_costs(variant: str) -> None:
    gflop = count(tiny("grid"))[-1].gflop
    assert count(at_cost(tiny(variant), gflop))[-1].gflop == pytest.approx(gflop, rel=0.01)


def test_a_cost_that_cannot_be_met_is_said() -> None:
    with pytest.raises(UsageError, match="--own-cost"):
        at_cost(tiny("none"), count(tiny("none"))[-1].gflop / 10)


def test_jobs_take_noise_only_where_codes_are_bounded() -> None:
    jobs = jobs_of(["grid", "kl"], noise=[0.0, 0.02], seeds=[0, 1], recipe="tiny", overrides=())
    assert jobs == [
        job for seed in (0, 1) for job in (Job("grid", 0.0, seed), Job("grid", 0.02, seed), Job("kl", None, seed))
    ]
    assert jobs_of(["none"], noise=[], seeds=[0], recipe="tiny", overrides=()) == [Job("none", 0.01, 0)]
    assert tiny("none", noise=0.02).model.bottleneck.noise == 0.02  # type: ignore[union-attr]


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(UsageError, match="no bottleneck variant 'gird'"):
        jobs_of(["gird"], noise=[], seeds=[0], recipe="tiny", overrides=())


def test_rows_are_kept_and_found_again(tmp_path: Path) -> None:
    path, job = tmp_path / "kept" / "rows.jsonl", Job("grid", 0.01, 0)
    append_result(path, row(job, tiny("grid")))
    append_result(path, row(Job("kl", None, 1), tiny("kl", seed=1)))
    with path.open("a") as file:
        file.write('{"job": {"variant": "vq", "noi')  # killed here

    rows = read_results(path)
    assert [kept.job for kept in rows] == [job, Job("kl", None, 1)]
    assert rows[0].is_of(job, tiny("grid"), data="photos")
    assert not rows[0].is_of(job, tiny("grid"), data="emoji")
    assert not rows[0].is_of(job, tiny("grid", noise=0.5), data="photos")
    append_result(path, row(Job("none", 0.0, 0), tiny("none")))
    assert len(read_results(path)) == 3


def test_without_data_the_photographs_are_compared_on(tmp_path: Path) -> None:
    arguments = ["bench", "bottlenecks", "--variant", "none", "--steps", "2", "--set", "model.image_size=32"]
    results = tmp_path / "rows.jsonl"
    assert run([*arguments, "--results", str(results), "--device", "cpu", "--json"]) == 0
    (found,) = read_results(results)
    assert found.data == "photographs" and found.num_train > 5000 and found.num_val == 75


def test_val_alone_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "bottlenecks", "--variant", "none", "--val", "elsewhere"]) == 2
    assert "--val is for --data" in capfd.readouterr().err


def test_a_foreign_results_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(ArtefactError, match=r"rows.jsonl line 1 is no row"):
        read_results(path)


def test_summary_is_mean_and_deviation_over_seeds() -> None:
    recipe = tiny("grid")
    rows = [row(Job("grid", 0.0, seed), recipe, psnr=psnr) for seed, psnr in enumerate((23.0, 24.0, 25.0))]
    rows.append(row(Job("none", 0.0, 0), recipe, psnr=20.0))
    grid, none = summarise(rows)
    assert len(grid.rows) == 3
    assert grid.figures["psnr"] == (24.0, 1.0)
    assert none.figures["psnr"] == (20.0, None)
    assert grid.figures["psnr noise 0.1"][0] == 23.0


def test_plot_is_a_picture(tmp_path: Path) -> None:
    recipe = tiny("grid")
    plot(summarise([row(Job("grid", 0.0, 0), recipe)]), tmp_path / "new" / "plot.png", title="tiny")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert made_by_brics(tmp_path / "new" / "plot.png")


def test_where_the_plot_goes_is_checked_before_anything_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    for name, overwrite, code in (("x.gif", [], 2), ("mine.png", [], 4), ("mine.png", ["--overwrite"], 4)):
        words = ["bench", "bottlenecks", "--data", "nowhere", "--plot", str(tmp_path / name), *overwrite]
        assert run(words) == code and "--plot" in capfd.readouterr().err
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize("variant", ["grid", "kl"])
def test_scores_of_a_model(variant: str) -> None:
    """Noise costs what noise costs: more of it is worse, and 8 bits cost next to nothing."""
    torch.manual_seed(0)
    model = build_autoencoder(tiny(variant).model).eval()
    images = np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), np.uint8)
    scores = score(model, images, device=torch.device("cpu"))

    assert scores.psnr_bits["8"] == pytest.approx(scores.psnr, abs=0.05)
    assert scores.path_length >= 1.0
    assert scores.largest_step >= 1.0
    assert scores.lpips is None
    if variant == "grid":
        assert 0 < scores.usage["usage"] <= 1
    else:
        assert scores.usage == {}
