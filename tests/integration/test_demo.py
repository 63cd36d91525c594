"""The demo, and what a user does in the workspace that it leaves; the README's snippets."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from commands import brics, error_line
from PIL import Image
from report_workspace import text_of

from brics_cli.images.landscapes import NUM_HELD_OUT, NUM_TRAIN

README = (Path(__file__).parents[2] / "README.md").read_text()
STEPS = ("train-ae", "encode-dataset", "decode", "train-diffusion", "sample", "eval")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """The workspace of a demo with few steps, and the mission's ./lsun put into it."""
    folder = tmp_path_factory.mktemp("demo")
    short = ("--ae-steps", 10, "--diffusion-steps", 20)
    finished = brics("demo", *short, "--out", "w", "--json", cwd=folder, check=0)
    (folder / "w" / "result.json").write_text(finished.stdout)
    (folder / "w" / "lsun").symlink_to(photographs)
    return folder / "w"


def test_it_measures_held_out_landscapes_beside_the_baselines(workspace: Path) -> None:
    said = json.loads((workspace / "result.json").read_text())
    tuned, untuned, bicubic, flat = said["quality"]
    assert untuned["psnr_db"] > 34 and tuned["psnr_db"] > bicubic["psnr_db"] + 4  # ten steps are too few to gain by
    assert tuned["pixel_ratio"] == untuned["pixel_ratio"] == 12
    assert 26 < bicubic["psnr_db"] < 28 and 17 < flat["psnr_db"] < 19
    assert said["num_held_out"] == NUM_HELD_OUT and said["num_train"] == NUM_TRAIN
    assert {*STEPS} <= set(said["seconds"])
    page = Path(said["page"]) if Path(said["page"]).is_absolute() else workspace.parent / said["page"]
    assert page == workspace / "report.html" and said["seconds"]["report"] < said["seconds"]["total"]
    text = text_of(page.read_text())
    assert f"{tuned['psnr_db']:.5g}" in text and "step of brics demo" in text and "of 96 samples" in text
    with Image.open(workspace / "contact-sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 500


def test_every_mission_line_works_in_the_workspace_it_leaves(workspace: Path, photographs: Path) -> None:
    """As they stand, but for steps and numbers that a test can wait for."""
    quick = ("--steps", 1, "--set", "training.batch_size=2", "--device", "cpu")
    trained = brics("train-ae", "./shards", *quick, cwd=workspace, check=0)
    assert "--recipe not given: using tiny, about " in trained.stderr and "it would be brics-64" in trained.stderr
    encoded = brics("encode-dataset", "./lsun", "--out", "codes.h5", cwd=workspace, check=0)
    assert "--ae not given: using runs/autoencoder/" in encoded.stderr
    trained = brics("train-diffusion", "codes.h5", *quick, cwd=workspace, check=0)
    assert "--recipe not given: using tiny, about " in trained.stderr and "it would be brics-dit-s" in trained.stderr
    sampled = brics("sample", "--n", 3, "--steps", 2, cwd=workspace, check=0)
    assert "using runs/diffusion/" in sampled.stderr
    measured = brics("eval", "--metric", "psnr", cwd=workspace, check=0)
    assert "48" in measured.stdout and "codes.h5" in measured.stderr
    missing = brics("eval", "--metric", "clip-fid", cwd=workspace, check=3, XDG_CACHE_HOME=str(workspace / "no"))
    assert "ViT-B-32.pt" in error_line(missing) and "brics weights import" in error_line(missing)


@pytest.mark.slow
def test_what_the_readme_says_to_type_next_works_as_typed(tmp_path: Path) -> None:
    """Each line in the state that the line before left; minutes, for tiny is trained twice."""
    brics("demo", "--ae-steps", 20, "--diffusion-steps", 5, cwd=tmp_path, check=0)
    lines = re.search(r"^cd brics-demo\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert lines is not None
    typed = [shlex.split(line, comments=True)[1:] for line in lines[1].splitlines()]
    assert [words[0] for words in typed] == [
        "status", "train-ae", "encode-dataset", "train-diffusion", "sample", "eval"
    ]  # fmt: skip
    for words in typed:
        brics(*words, cwd=tmp_path / "brics-demo", check=0)


@pytest.mark.slow
def test_the_line_that_each_command_ends_with_works_as_typed(tmp_path: Path, photographs: Path) -> None:
    """But for the numbers of steps."""
    finished, went = brics("pack", photographs, "--out", "shards", "--size", 64, cwd=tmp_path, check=0), ["pack"]
    while went[-1] != "status":
        last = finished.stderr.splitlines()[-1]
        assert last.startswith("next: brics "), last
        words = shlex.split(last)[2:]
        few = ("--steps", 2) if words[0] in ("train-ae", "train-diffusion", "sample") else ()
        finished = brics(*words, *few, cwd=tmp_path, check=0)
        went.append(words[0])
    assert went == ["pack", "train-ae", "encode-dataset", "train-diffusion", "sample", "eval", "status"]


def test_what_is_left_out_is_the_newest_of_its_kind(workspace: Path) -> None:
    """In the demo's workspace: the training shards, not the held-out ones; the store of the photographs."""
    planned = brics("train-ae", "--recipe", "tiny", "--dry-run", cwd=workspace, check=0)
    assert "DATA not given: using shards" in planned.stderr and f"{NUM_TRAIN:,} of" in planned.stdout
    asked = ("encode-dataset", "--ae", "runs/autoencoder/demo", "--out", "not-there.h5", "--dry-run")
    encoding = brics(*asked, cwd=workspace, check=0)
    assert f"DATA not given: using {workspace / 'shards'}" in encoding.stderr


def test_status_shows_the_lineage(workspace: Path) -> None:
    rows = json.loads(brics("status", "--json", cwd=workspace, check=0).stdout)
    kinds = {row["kind"] for row in rows}
    assert kinds >= {"demo", "shards", "autoencoder", "store", "reconstructions", "diffusion", "samples", "page"}
    tree = brics("status", cwd=workspace, check=0).stdout
    lines = tree.splitlines()
    depth = {kind: min(line.index(kind + " ") for line in lines if kind + " " in line) for kind in ("store", "samples")}
    assert depth["samples"] > depth["store"]


def test_a_moved_autoencoder_is_found_by_its_weights(workspace: Path, tmp_path: Path) -> None:
    run = workspace / "runs" / "autoencoder" / "demo"
    moved = run.with_name("moved")
    run.rename(moved)
    try:
        brics("decode", "held-out.h5", "--out", tmp_path / "x", cwd=workspace, check=0)
        other = next(path for path in run.parent.iterdir() if path != moved)
        wrong = brics("decode", "held-out.h5", "--ae", other, "--out", tmp_path / "y", cwd=workspace, check=3)
        assert "store of another autoencoder" in error_line(wrong)
    finally:
        moved.rename(run)


def test_a_moved_workspace_still_knows_what_was_made_from_what(workspace: Path) -> None:
    moved = workspace.with_name("elsewhere")
    workspace.rename(moved)
    try:
        lines = brics("status", cwd=moved, check=0).stdout.splitlines()
        depth = {
            text: line.index(text)
            for text in ("shards shards", "autoencoder runs/autoencoder/demo")
            for line in lines
            if text in line
        }
        assert depth["autoencoder runs/autoencoder/demo"] > depth["shards shards"]
        measured = brics("eval", "--metric", "psnr", "--fake", "held-out.h5", "--limit", 8, cwd=moved, check=0)
        assert str(moved / "held-out") in measured.stderr
    finally:
        moved.rename(workspace)


def test_a_second_demo_is_refused_unless_asked(workspace: Path) -> None:
    again = brics("demo", "--out", workspace, cwd=workspace, check=4)
    assert "holds a demo already" in error_line(again)


@pytest.mark.parametrize("name", ["h5py snippet", "python api"])
def test_readme_snippets_run(workspace: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    match = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", README, flags=re.DOTALL)
    assert match is not None
    monkeypatch.chdir(workspace)
    found: dict = {}
    code = match.group(1).replace("codes.h5", "landscapes.h5")
    exec(compile(code, name, "exec"), found)  # our own README
    if name == "h5py snippet":
        assert found["codes"].shape == (8, 16, 8, 8) and found["codes"].min() >= 0 and found["codes"].max() <= 1
        assert found["mean"].shape == (16,) and found["keys"][0].startswith("00000/")
    else:
        assert found["images"].shape == (2, 3, 64, 64) and found["images"].abs().max() <= 1


def test_samples_in_bf16_are_those_of_float32_within_2_grey_levels(workspace: Path, tmp_path: Path) -> None:
    drawn = {}
    for dtype in ("fp32", "bf16"):
        how = (
            "--n",
            8,
            "--steps",
            8,
            "--dtype",
            dtype,
            "--device",
            "cpu",
            "--format",
            "png",
            "--out",
            tmp_path / dtype,
        )
        brics("sample", "--model", "runs/diffusion/demo", *how, cwd=workspace, check=0)
        details = json.loads((tmp_path / dtype / "brics.json").read_text())["details"]
        assert details["computed_in"] == dtype
        files = sorted((tmp_path / dtype).glob("*.png"))
        drawn[dtype] = np.stack([np.asarray(Image.open(file)).astype(int) for file in files])
    difference = np.abs(drawn["bf16"] - drawn["fp32"])
    assert drawn["fp32"].shape == (8, 64, 64, 3) and 0 < difference.mean() < 2


@pytest.mark.slow
def test_the_whole_demo_is_good_enough_and_in_bf16_its_distance_is_the_same_within_its_error(tmp_path: Path) -> None:
    said = json.loads(brics("demo", "--json", cwd=tmp_path, check=0).stdout)
    scores, files = [], []
    for dtype in ("fp32", "bf16"):
        how = ("--n", 256, "--dtype", dtype, "--device", "cpu", "--format", "png", "--out", dtype)
        brics("sample", "--model", "brics-demo/runs/diffusion/demo", *how, cwd=tmp_path, check=0)
        sides = ("--metric", "fd-random", "--real", "brics-demo/shards", "--fake", dtype, "--device", "cpu", "--json")
        scores.append(json.loads(brics("eval", *sides, cwd=tmp_path, check=0).stdout)["results"][0])
        files.append([np.asarray(Image.open(file)).astype(int) for file in sorted((tmp_path / dtype).glob("*.png"))])
    assert np.abs(np.subtract(*map(np.stack, files))).mean() < 2
    assert abs(scores[0]["value"] - scores[1]["value"]) < scores[0]["standard_error"]
    tuned, untuned, bicubic, _ = said["quality"]
    assert tuned["psnr_db"] > untuned["psnr_db"] > 34 > bicubic["psnr_db"] + 4
    assert tuned["ssim"] > untuned["ssim"] > bicubic["ssim"]
