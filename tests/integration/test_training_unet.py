"""`brics train-diffusion` with a U-Net: dropout, classes, gradient checkpointing, resume, sampling's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import brics, error_line
from safetensors.torch import load_file
from store_files import write_store

from brics_cli.diffusion.denoisers import load_denoiser

UNET = (
    *("--recipe", "tiny", "--device", "cpu", "--set", "denoiser.kind=unet", "--set", "denoiser.dim=8"),
    *("--set", "denoiser.multipliers=[1,2]", "--set", "denoiser.num_blocks=1", "--set", "denoiser.head_dim=8"),
    *("--set", "denoiser.attention_levels=[1]", "--set", "denoiser.dropout=0.2"),
    *("--set", "training.batch_size=6", "--set", "training.log_every=1", "--set", "optimiser.decay=none"),
)
STEPS = 6


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled store with codes of 2 x 3 x 3, and a run of six steps on it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unet")
    write_store(folder / "codes.h5", ["a", "b", "c"])
    brics("train-diffusion", "codes.h5", *UNET, "--steps", STEPS, "--out", "straight", cwd=folder, check=0)
    return folder


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_the_run_holds_a_class_conditional_unet(workspace: Path) -> None:
    denoiser = load_denoiser(workspace / "straight")
    assert (denoiser.config.kind, denoiser.num_classes, denoiser.code_shape) == ("unet", 4, (2, 3, 3))
    assert len(losses(workspace / "straight")) == STEPS


@pytest.mark.parametrize("change", ["", "training.accumulate=2", "training.gradient_checkpointing=true"])
def test_ways_that_must_not_matter_do_not(workspace: Path, change: str) -> None:
    """Stopped halfway and resumed: the same bits. In micro-batches, or recomputing activations: the same losses.

    With F.dropout in the U-Net all three would fail.
    """
    straight, run = workspace / "straight", workspace / f"run-{change.rpartition('.')[2] or 'resumed'}"
    half = STEPS // 2 if not change else STEPS
    settings = ("--set", change) if change else ()
    brics("train-diffusion", "codes.h5", *UNET, *settings, "--steps", half, "--out", run, cwd=workspace, check=0)
    if not change:
        brics("train-diffusion", "--resume", run, "--steps", STEPS, "--device", "cpu", cwd=workspace, check=0)
        ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (run, straight))
        assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert losses(run) == pytest.approx(losses(straight), rel=0 if not change else 1e-4)


def test_checkpointing_may_be_switched_on_halfway(workspace: Path) -> None:
    brics("train-diffusion", "codes.h5", *UNET, "--steps", 2, "--out", "on", cwd=workspace, check=0)
    on = ("--set", "training.gradient_checkpointing=true")
    done = brics("train-diffusion", "--resume", "on", *on, "--steps", 4, "--device", "cpu", cwd=workspace, check=0)
    assert "settings that change from here on: training.gradient_checkpointing" in done.stderr
    assert losses(workspace / "on") == pytest.approx(losses(workspace / "straight")[:4], rel=1e-4)


def test_another_kind_of_denoiser_is_refused_by_init_from(workspace: Path) -> None:
    arguments = ("--recipe", "tiny", "--init-from", "straight", "--steps", 2, "--out", "x")
    refused = brics("train-diffusion", "codes.h5", *arguments, cwd=workspace, check=3)
    assert "has another architecture than recipe tiny" in error_line(refused)
