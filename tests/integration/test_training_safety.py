"""What keeps a long run safe: checkpoints that survive, settings that cannot change unsaid, the best model, curves."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import brics, error_line, start_brics
from safetensors.torch import load_file

from brics_cli import load_autoencoder
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.resuming import resumed_recipe

SMALL = (
    *("--recipe", "tiny", "--workers", "1", "--set", "training.batch_size=4", "--set", "model.image_size=32"),
    *("--set", "model.encoder.widths=[16,32]", "--set", "model.decoder.widths=[16]"),
    *("--set", "optimiser.decay=none", "--set", "optimiser.warmup_steps=0"),
    *("--set", "training.checkpoint_every=4", "--set", "training.log_every=1", "--set", "training.val_every=2"),
)
GAN = ("--set", "gan.weight=0.5", "--set", "gan.ramp_steps=4", "--set", "gan.widths=[8,8]", "--set", "gan.r1_every=3")


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with the discriminator on, in `run`."""
    folder = tmp_path_factory.mktemp("safety")
    brics("train-ae", photographs, *SMALL, *GAN, "--steps", 12, "--out", "run", cwd=folder, check=0)
    return folder / "run"


@pytest.fixture(scope="module")
def seven_steps(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, ended after 7 steps of 12."""
    folder = tmp_path_factory.mktemp("seven")
    brics("train-ae", photographs, *SMALL, *GAN, "--steps", 7, "--out", "run", cwd=folder, check=0)
    return folder / "run"


@pytest.fixture
def stopped(seven_steps: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with or to damage."""
    return Path(shutil.copytree(seven_steps, tmp_path / "run"))


def checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def assert_same_bits(a: Path, b: Path) -> None:
    for name in ("weights", "ema", "discriminator"):
        ours, theirs = (load_file(checkpoint(run) / f"{name}.safetensors") for run in (a, b))
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours), name


def logged(run: Path, *, without: str = "time/") -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(without)} for row in rows]


def test_a_resumed_run_with_a_discriminator_equals_a_straight_one(trained: Path, stopped: Path) -> None:
    brics("train-ae", "--resume", stopped, "--steps", 12, cwd=stopped.parent, check=0)
    assert_same_bits(trained, stopped)
    ours, theirs = ({row["step"]: row for row in logged(run) if "train/loss" in row} for run in (trained, stopped))
    assert ours == theirs and any(row["train/gan_weight"] > 0 for row in ours.values())


@pytest.mark.slow
def test_ten_kills_change_nothing(trained: Path, photographs: Path, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", ("train-ae", photographs, *SMALL, *GAN, "--steps", 12, "--out", "run")
    for kill in range(10):
        process = start_brics(*arguments, cwd=tmp_path)
        started, seen = time.monotonic(), 1 + kill // 2
        while process.poll() is None and time.monotonic() - started < 120:
            if run.exists() and (run / "metrics.jsonl").exists() and len(logged(run)) > 2 * seen:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if list((run / "checkpoints").glob("step-*/state.json")):
            arguments = ("train-ae", "--resume", "run")
        else:
            arguments = (*arguments[: arguments.index("run") + 1], "--overwrite")
    brics(*arguments, cwd=tmp_path, check=0)
    assert_same_bits(trained, run)


def test_the_newest_checkpoints_and_the_best_model_are_kept(trained: Path, photographs: Path) -> None:
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == ["step-00000008", "step-00000012"]
    scores = {row["step"]: row["val/psnr"] for row in logged(trained) if "val/psnr" in row}
    assert len(scores) == 6
    config = json.loads((trained / "best" / "config.json").read_text())
    assert config["val/psnr"] == max(scores.values()) == scores[config["step"]]
    assert load_autoencoder(trained / "best").config == load_autoencoder(trained).config
    assert config["gan"]["weight"] == 0.5 and config["loss"]["perceptual"]["kind"] == "none"


def test_a_resumed_run_remembers_its_best(stopped: Path) -> None:
    marked = stopped / "best" / "config.json"
    config = json.loads(marked.read_text())
    marked.write_text(json.dumps(config | {"val/psnr": 99.0}))
    brics("train-ae", "--resume", stopped, "--steps", 9, cwd=stopped.parent, check=0)
    assert json.loads(marked.read_text())["val/psnr"] == 99.0, "a worse model took its place"


def resume(run: Path, *arguments: object, check: int) -> str:
    return error_line(brics("train-ae", "--resume", "run", *arguments, cwd=run.parent, check=check))


def test_an_edited_setting_must_be_said_again(stopped: Path) -> None:
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.002", "lr: 0.001").replace("r1_every: 3", "r1_every: 2"))
    line = resume(stopped, "--steps", 9, check=3)
    assert "config.yaml has changed since step-00000007: gan.r1_every: was 3, now 2; optimiser.lr: was 0.002" in line
    assert "--resume run --set gan.r1_every=2 --set optimiser.lr=0.001; or a new run: --init-from run" in line.replace(
        "start a new run", "a new run"
    )
    partly = resume(stopped, "--steps", 9, "--set", "optimiser.lr=0.001", check=3)
    assert "gan.r1_every" in partly and "optimiser.lr" not in partly
    both = ("--set", "gan.r1_every=2", "--set", "optimizer.lr=0.001")
    said = brics("train-ae", "--resume", "run", "--steps", 9, *both, cwd=stopped.parent, check=0)
    assert "settings that change from here on: gan.r1_every: was 3, now 2; optimiser.lr: was 0.002, now 0.001" in (
        said.stderr
    )
    assert logged(stopped)[-2]["train/lr"] == 0.001
    brics("train-ae", "--resume", "run", "--steps", 10, cwd=stopped.parent, check=0)  # remembered


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.decoder.num_blocks=2", "model.decoder.num_blocks: was 1, now 2"),
        ("training.batch_size=8", "training.batch_size: was 4, now 8"),
        ("training.read_ahead_gib=1", "training.read_ahead_gib: was 2.0, now 1.0"),
        ("gan.weight=0", "gan.weight: was 0.5, now 0"),
    ],
)
def test_settings_that_make_the_run_are_for_init_from(trained: Path, setting: str, said: str) -> None:
    line = resume(trained, "--set", setting, check=2)
    assert f"cannot go on with other settings of this kind: {said}" in line and "--init-from run" in line


def test_a_run_from_before_windows_had_a_limit_keeps_its_order(stopped: Path) -> None:
    config, state = stopped / "config.yaml", checkpoint(stopped) / "state.json"
    config.write_text(config.read_text().replace("  read_ahead_gib: 2.0\n", ""))
    written = json.loads(state.read_text())
    del written["settings"]["training.read_ahead_gib"]
    state.write_text(json.dumps(written))
    again = resumed_recipe(stopped, kind="autoencoder", overrides=(), steps=9, reporter=SilentReporter())
    assert again.training.read_ahead_gib is None


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "foreign":
        path.write_text('{"epoch": 3, "arch": "resnet"}')
    elif how == "newer":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("weights.safetensors", "truncated", "is damaged or truncated"),
        ("ema.safetensors", "missing", "is missing"),
        ("optimiser.pt", "truncated", "cannot be read"),
        ("discriminator.safetensors", "foreign", "is damaged or truncated"),
        ("state.json", "truncated", "is damaged"),
        ("state.json", "foreign", "was not written by brics"),
        ("state.json", "newer", "has checkpoint format 9, this brics reads 1. It was written by a newer brics"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_line(stopped: Path, name: str, how: str, said: str) -> None:
    damage(checkpoint(stopped) / name, how)
    line = resume(stopped, "--steps", 9, check=3)
    assert said in line and f"checkpoints/step-00000007{'' if how == 'newer' else '/' + name}" in line


def test_a_damaged_checkpoint_names_the_one_before_it(stopped: Path) -> None:
    for name in ("state.json", "weights.safetensors"):
        damage(checkpoint(stopped) / name, "truncated")
        assert resume(stopped, "--steps", 9, check=3).endswith(
            "To go on from step 4 instead, remove run/checkpoints/step-00000007."
        )
        shutil.copytree(checkpoint(stopped), stopped.with_name(f"damaged-{name}"))
        (checkpoint(stopped) / "state.json").write_text((stopped / "checkpoints/step-00000004/state.json").read_text())
    shutil.rmtree(checkpoint(stopped))
    resumed = brics("train-ae", "--resume", "run", "--steps", 9, cwd=stopped.parent, check=0)
    assert "resuming run at step 4" in resumed.stderr


def test_a_setting_to_say_again_is_quoted_as_a_shell_takes_it(stopped: Path) -> None:
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("  - 0.9\n", "  - 0.8\n"))
    assert "- 0.8\n" in config.read_text()
    line = resume(stopped, "--steps", 9, check=3)
    again = line.partition("--resume run ")[2].partition(";")[0]
    assert again == "--set 'optimiser.betas=[0.8,0.99]'"
    brics("train-ae", "--resume", "run", "--steps", 9, *shlex.split(again), cwd=stopped.parent, check=0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(trained: Path, photographs: Path, small_disk: Path) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    settings = ("train-ae", photographs, *SMALL, *GAN)
    brics(*settings, "--steps", 4, "--out", run, cwd=small_disk, check=0)
    before = {path.name: path.read_bytes() for path in checkpoint(run).iterdir()}
    model = (run / "model" / "model.safetensors").read_bytes()
    space = subprocess.run(["df", "--output=avail", "-B1", small_disk], capture_output=True, text=True, check=True)
    ballast.write_bytes(b"\0" * (int(space.stdout.split()[1]) - 150_000))
    full = brics("train-ae", "--resume", run, "--steps", 12, cwd=small_disk, check=6)
    line = error_line(full)
    assert f"no space left on the device: {run}/" in line and "; the checkpoint of step 4 is intact. " in line
    assert line.endswith(f"Free some space, then go on with: brics train-ae --resume {run}")
    assert {path.name: path.read_bytes() for path in checkpoint(run).iterdir()} == before
    assert len(model) == (run / "model" / "model.safetensors").stat().st_size
    assert load_autoencoder(run).weights_sha256
    ballast.unlink()
    brics("train-ae", "--resume", run, "--steps", 12, cwd=small_disk, check=0)
    assert_same_bits(trained, run)


def test_a_disk_that_is_full_for_a_picture_says_how_to_go_on(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, path: Path, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("brics_cli.jobs.train_ae.contact_sheet", full)
    line = resume(stopped, "--steps", 9, check=6)
    assert line == (
        "no space left on the device: run/images/step-00000009.png; the checkpoint of step 8 is intact. "
        "Free some space, then go on with: brics train-ae --resume run"
    )


def test_curves_of_several_runs_are_drawn(trained: Path, stopped: Path, tmp_path: Path) -> None:
    from PIL import Image

    drawn = brics("plot", trained, stopped, "--out", "curves.png", "--json", cwd=tmp_path, check=0)
    said = json.loads(drawn.stdout)
    assert [values["step"] for values in said["runs"].values()] == [12, 7]
    assert said["runs"][str(trained)]["train/loss"] == logged(trained)[-2]["train/loss"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6)) > 50
    again = brics("plot", trained, "--out", "curves.png", cwd=tmp_path, check=4)
    assert "is already there" in error_line(again)


def test_what_plot_refuses(trained: Path, tmp_path: Path) -> None:
    assert "does not end in .png, .svg or .pdf" in error_line(
        brics("plot", trained, "--out", "a.jpg", cwd=tmp_path, check=2)
    )
    assert "is not a training run" in error_line(brics("plot", tmp_path, cwd=tmp_path, check=3))
    assert "no trained autoencoder in the workspace" in error_line(brics("plot", cwd=tmp_path, check=3))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("brics.json", "metrics.jsonl"):
        (copy / name).write_text((trained / name).read_text())
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lo')  # cut short by a kill
    brics("plot", copy, "--out", "copy.svg", cwd=tmp_path, check=0)
    (copy / "metrics.jsonl").write_text("no json\n" + (trained / "metrics.jsonl").read_text())
    passed_over = brics("plot", copy, tmp_path, "--out", "rest.png", cwd=tmp_path, check=0).stderr
    assert "metrics.jsonl: 1 damaged lines are passed over, first line 1" in passed_over
    assert f"warning: not drawn: {tmp_path} is not a training run" in passed_over
    (copy / "metrics.jsonl").unlink()
    assert "has logged nothing yet" in error_line(brics("plot", copy, cwd=tmp_path, check=3))


def test_bench_train_names_its_phases(tmp_path: Path) -> None:
    arguments = ("--recipe", "tiny", *SMALL[4:12], *GAN, "--no-compile", "--repeats", 2, "--device", "cpu", "--json")
    timing = json.loads(brics("bench", "train", *arguments, cwd=tmp_path, check=0).stdout)
    assert list(timing["phases_ms"]) == ["data wait", "forward", "backward", "discriminator", "optimiser", "rest"]
    assert min(timing["phases_ms"].values()) >= 0 and timing["img_per_s"] > 0 and timing["compile"] is False
    assert 0 < timing["memory_gib"] < 64 and timing["memory_of"] == "this process"
