"""`brics bench sample` counts what it says, guidance included, and refuses what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import brics, error_line

from brics_cli.autoencoder import flops as autoencoders
from brics_cli.bench import sample as bench
from brics_cli.bench.sample import estimate_gflop, random_models
from brics_cli.config import load_recipe
from brics_cli.diffusion import flops as denoisers
from brics_cli.diffusion.samplers import SAMPLERS
from brics_cli.runtime.reporting import SilentReporter

TINY = ("--recipe", "tiny", "--batch-size", 2, "--repeats", 1, "--budget", 0, "--device", "cpu")
CPU = torch.device("cpu")


def tiny(**settings: object) -> bench.Models:
    return random_models("tiny", ae_recipe="tiny", device=CPU, **settings)


def test_every_sampler_is_counted_and_timed(tmp_path: Path) -> None:
    found = json.loads(brics("bench", "sample", *TINY, "--json", cwd=tmp_path, check=0).stdout)
    assert [speed["batch_size"] for speed in found["speeds"]] == [1, 2, 8]
    assert {cost["sampler"] for cost in found["costs"]} == set(SAMPLERS)
    decoder = autoencoders.count(load_recipe("tiny", kind="autoencoder"))[-1].gflop
    network = denoisers.count(load_recipe("tiny", kind="diffusion"), code_shape=tuple(found["code_shape"]))[0].gflop
    for cost in found["costs"]:
        assert cost["gflop"] == pytest.approx(cost["num_evaluations"] * network + decoder)
        assert cost["decoder_share_of_gflop"] == pytest.approx(decoder / cost["gflop"])
        assert cost["of_release"] == pytest.approx(cost["gflop"] / 301e3)
        assert cost["s_per_img"] > 0 and 0 < cost["decoder_share_of_time"] < 1 and not cost["timed_in_full"]
    ancestral = [cost for cost in found["costs"] if cost["sampler"] == "ddpm"]
    assert [cost["num_evaluations"] for cost in ancestral] == [250, 1000]


def test_the_table_has_the_release_beside_it(tmp_path: Path) -> None:
    settings = (*TINY, "--sampler", "heun", "--steps", 3, "--steps", 2)
    shown = " ".join(brics("bench", "sample", *settings, cwd=tmp_path, check=0, COLUMNS="200").stdout.split())
    assert "tiny and tiny, random weights" in shown and "the release 1,000 1,000 301,000 1" in shown
    assert "heun, 2 steps" in shown and "at most 1 TFLOP" not in shown  # that is asked of 256 px


def test_guidance_is_counted() -> None:
    plain = tiny(overrides=["denoiser.depth=1"], guide_recipe="tiny", guidance=2.0)
    alone, of_guide = (estimate_gflop(each) for each in (plain.denoiser, plain.guide))
    assert estimate_gflop(plain.denoiser, guide=plain.guide, guidance=2.0) == pytest.approx(alone + of_guide)
    assert estimate_gflop(plain.denoiser, guide=plain.guide) == alone < of_guide
    with_classes = tiny().denoiser
    with_classes.num_classes = 10
    once, twice = (estimate_gflop(with_classes, guidance=w) for w in (1.0, 3.0))
    assert twice == pytest.approx(2 * once, rel=0.01) and once >= of_guide


def test_a_walk_within_the_budget_is_timed_in_full() -> None:
    models = tiny()
    found = bench.measure(
        models, samplers=["ddim"], steps=[3], batch_size=1, repeats=1, budget_s=60, reporter=SilentReporter()
    )
    (cost,) = found["costs"]
    assert cost["timed_in_full"] and cost["num_evaluations"] == 3 and found["speeds_steps"] == 3


def test_memory_that_runs_out_ends_the_table_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    models, compute = tiny(), bench.Models.compute

    def small_memory(stream: bench.Models, seeds: range) -> object:
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return compute(stream, seeds)

    monkeypatch.setattr(bench.Models, "compute", small_memory)
    found = bench.measure(
        models, samplers=["ddim"], steps=[2], batch_size=1, repeats=1, budget_s=0, reporter=SilentReporter()
    )
    assert [(speed["batch_size"], speed["img_per_s"] is None) for speed in found["speeds"]] == [(1, False), (4, True)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 3, "brics train-diffusion"),
        (("nowhere",), 3, "nowhere"),
        (("--recipe", "brics-dit-x"), 2, "did you mean 'brics-dit-"),
        (("--recipe", "tiny", "--ae-recipe", "brics-265"), 2, "did you mean 'brics-256"),
        (("--recipe", "tiny", "--sampler", "huen"), 2, "did you mean 'heun'"),
        (("--recipe", "tiny", "--guidance", "2"), 2, "trained without classes"),
        (("--recipe", "tiny", "--guidance", "nan"), 2, "is not a number"),
        (("--recipe", "tiny", "--guide", "tiny"), 2, "--guidance 1"),
        (("--recipe", "tiny", "--set", "denoiser.patch=3"), 2, "does not divide"),
        (("--recipe", "tiny", "nowhere"), 2, "both given"),
        (("--ae-recipe", "tiny"), 2, "go with --recipe"),
        (("--recipe", "tiny", "--device", "abacus"), 2, "abacus"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    finished = brics("bench", "sample", *arguments, cwd=tmp_path, check=code)
    assert said in error_line(finished) and finished.stdout == ""
