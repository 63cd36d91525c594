"""train-ae and train-diffusion as processes: killed, interrupted, resumed, refused."""

from __future__ import annotations

import json
import operator
import os
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Finished, brics, error_line, start_brics
from safetensors.torch import load_file

from brics_cli.diffusion.denoisers import load_denoiser
from brics_cli.errors import ArtefactError
from brics_cli.training.state import TrainingState, Update
from brics_cli.workspace.outputs import output_lock

QUICK = (
    "--recipe",
    "tiny",
    "--set",
    "training.batch_size=4",
    "--set",
    "training.checkpoint_every=4",
    "--set",
    "training.log_every=2",
    "--set",
    "training.snapshot_every=1000",
    "--workers",
    "1",
)

TERMS = (
    *("--set", "terms.scale_equivariance.weight=0.25", "--set", "terms.equivariance.weight=0.5"),
    *("--set", "terms.spectrum={weight: 0.01, mask_weight: 0.1}", "--set", "terms.whitening.weight=0.01"),
    *("--set", "terms.marginals.weight=0.01", "--set", "terms.noise.factors=[[0, 0], [0.5, 1]]"),
)
"""All terms for easier codes: what they draw, and their statistics of whole batches, are in no checkpoint."""


@pytest.fixture(scope="module")
def straight(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    brics("train-ae", photographs, *QUICK, *TERMS, "--steps", 24, "--out", "run", cwd=folder, check=0)
    return folder / "run"


def assert_same_bits(a: Path, b: Path, step: int) -> None:
    for folder in (Path("checkpoints", f"step-{step:08d}"), Path("model")):
        names = [sorted(path.name for path in (run / folder).glob("*.safetensors")) for run in (a, b)]
        assert names[0] == names[1] and names[0]
        for name in names[0]:
            ours, theirs = load_file(a / folder / name), load_file(b / folder / name)
            assert ours.keys() == theirs.keys()
            assert all((ours[key] == theirs[key]).all() for key in ours), name


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in metrics_of(run) if "train/loss" in row]


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no {path} after {seconds} s"
        time.sleep(0.02)


@contextmanager
def signal_once_there(path: Path, number: signal.Signals) -> Iterator[None]:
    """Send the signal to this process as soon as `path` is there, which the block makes."""

    def wait_and_send() -> None:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    kept = signal.signal(number, lambda *_: None)  # a signal that comes too late ends no test run
    thread = threading.Thread(target=wait_and_send)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(number, kept)


def test_a_run_killed_with_9_resumes_to_the_same_bits(straight: Path, photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_brics("train-ae", photographs, *QUICK, *TERMS, "--steps", 24, "--out", "run", cwd=tmp_path)
    wait_for(run / "checkpoints" / "step-00000008" / "state.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "checkpoints" / "step-00000024").exists(), "killed too late to show anything"
    brics("train-ae", "--resume", run, cwd=tmp_path, check=0)
    assert_same_bits(straight, run, 24)
    assert losses(straight) == losses(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_the_command_that_goes_on(
    straight: Path, photographs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with signal_once_there(run / "checkpoints" / "step-00000004" / "state.json", number):
        words = ("train-ae", photographs, *QUICK, *TERMS, "--steps", 24, "--out", "run")
        stopped = brics(*words, cwd=tmp_path, check=130)
    last = stopped.stderr.splitlines()[-1]
    assert "saved. Go on with: brics train-ae --resume run" in last
    stopped_at = sorted((run / "checkpoints").iterdir())[-1].name
    assert f"stopped at step {int(stopped_at.removeprefix('step-'))} of 24" in last
    brics(*last.split("brics ")[1].split(), cwd=tmp_path, check=0)
    assert_same_bits(straight, run, 24)


def test_a_run_has_what_it_should(straight: Path, photographs: Path) -> None:
    names = {path.name.split(".")[0] for path in straight.iterdir()}
    assert names >= {"config", "environment", "metrics", "images", "checkpoints", "model", "brics", "events"}
    made = json.loads((straight / "brics.json").read_text())
    assert made["complete"] and made["kind"] == "autoencoder"
    assert made["parents"][0]["path"] == str(photographs)
    environment = json.loads((straight / "environment.json").read_text())
    assert environment["command"][:2] == ["brics", "train-ae"] and environment["seed"] == 0
    assert len(list((straight / "checkpoints").iterdir())) == 2  # keep_checkpoints
    first, last = losses(straight)[0], losses(straight)[-1]
    assert last[0] == 24 and last[1] < first[1]


def test_accumulation_gives_the_same_losses(straight: Path, photographs: Path, tmp_path: Path) -> None:
    brics(
        "train-ae", photographs, *QUICK, *TERMS, "--steps", 6, "--set", "training.accumulate=2", "--out", "run",
        cwd=tmp_path, check=0,
    )  # fmt: skip
    rows = dict(losses(tmp_path / "run"))
    expected = dict(losses(straight))
    assert rows[2] == pytest.approx(expected[2], rel=1e-4)
    names = {"scale_equivariance", "equivariance", "spectrum", "spectrum_mask", "marginals", "whitening"}
    assert {f"train/{name}" for name in names} <= metrics_of(straight)[0].keys()


def test_what_resume_refuses(straight: Path, photographs: Path, tmp_path: Path) -> None:
    refused = brics("train-ae", "--resume", straight, "--seed", 3, cwd=tmp_path, check=2)
    assert "it cannot be given with --seed" in error_line(refused)
    no_run = brics("train-ae", "--resume", photographs, cwd=tmp_path, check=3)
    assert "is not a run of kind 'autoencoder'" in error_line(no_run)


def test_resume_refuses_changed_data(photographs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    paths = sorted(photographs.iterdir())
    for path in paths[:8]:
        (data / path.name).write_bytes(path.read_bytes())
    brics("train-ae", data, *QUICK, "--steps", 4, "--out", "run", cwd=tmp_path, check=0)
    (data / paths[9].name).write_bytes(paths[9].read_bytes())
    changed = brics("train-ae", "--resume", "run", "--steps", 8, cwd=tmp_path, check=3)
    assert f"{data} has changed since run was started on it" in error_line(changed)


def test_a_run_that_is_being_written_is_refused(straight: Path, tmp_path: Path) -> None:
    with output_lock(straight):
        second = brics("train-ae", "--resume", straight, "--steps", 40, cwd=tmp_path, check=6)
    assert f"another brics process is writing {straight}" in error_line(second)


@pytest.mark.slow
def test_two_writers_of_one_run(photographs: Path, tmp_path: Path) -> None:
    process = start_brics("train-ae", photographs, *QUICK, "--steps", 4000, "--out", "run", cwd=tmp_path)
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json", process)
        second = brics("train-ae", "--resume", "run", cwd=tmp_path, check=6)
        assert "another brics process is writing run" in error_line(second)
    finally:
        process.kill()
        process.communicate()


def test_resume_with_more_steps_is_remembered(straight: Path, photographs: Path, tmp_path: Path) -> None:
    brics("train-ae", photographs, *QUICK, "--steps", 4, "--out", "r un", cwd=tmp_path, check=0)
    with signal_once_there(tmp_path / "r un" / "checkpoints" / "step-00000008" / "state.json", signal.SIGINT):
        stopped = brics("train-ae", "--resume", "r un", "--steps", 40000, cwd=tmp_path, check=130)
    last = stopped.stderr.splitlines()[-1]
    assert "of 40,000, saved. Go on with: brics train-ae --resume 'r un'" in last
    planned = brics("train-ae", "--resume", "r un", "--print-config", "--json", cwd=tmp_path, check=0)
    assert json.loads(planned.stdout)["training"]["steps"] == 40000
    fewer = brics("train-ae", "--resume", "r un", "--steps", 2, cwd=tmp_path, check=2)
    assert "beyond --steps 2" in error_line(fewer)


def test_a_dry_run_of_resuming_counts_what_is_left(straight: Path, tmp_path: Path) -> None:
    asked = ("train-ae", "--resume", straight, "--steps", 30, "--dry-run")
    said = json.loads(brics(*asked, "--json", cwd=tmp_path, check=0).stdout)
    assert said["steps"] == 6 and said["seconds"] == pytest.approx(6 * said["seconds_per_step"])
    assert "6 are left of 30 steps of 4" in brics(*asked, cwd=tmp_path, check=0).stdout


def test_a_run_that_ends_in_no_numbers_publishes_nothing(photographs: Path, tmp_path: Path) -> None:
    settings = ("--steps", 2, "--set", "loss.l1=1e39", "--out", "run")  # beyond float32
    diverged = brics("train-ae", photographs, *QUICK, *settings, cwd=tmp_path, check=6)
    assert "training diverged" in error_line(diverged)
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_one_of_several_collections_is_trained_on_and_resumed(photographs: Path, tmp_path: Path) -> None:
    for name, paths in (("cats", sorted(photographs.iterdir())[:6]), ("dogs", sorted(photographs.iterdir())[6:9])):
        (tmp_path / "data" / name).mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / "data" / f"{name}.zip", "w") as packed:
            for path in paths:
                packed.write(path, path.name)
    arguments = ("train-ae", "data", "--subset", "cats.zip", *QUICK, "--steps", 4, "--out", "run")
    started = brics(*arguments, cwd=tmp_path, check=0)
    assert "cats.zip: 6 images, zip" in started.stderr and "data/cats.zip --out codes.h5" in started.stderr
    refused = brics("train-ae", "--resume", "run", "--subset", "dogs.zip", cwd=tmp_path, check=2)
    assert "it cannot be given with --subset" in error_line(refused)
    resumed = brics("train-ae", "--resume", "run", "--steps", 5, cwd=tmp_path, check=0)
    assert "6 images kept in memory" in resumed.stderr


def test_a_skipped_step_puts_its_checkpoint_off_by_one_step(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = TrainingState.update

    def fourth_is_not_finite(state: TrainingState[Any], loss: float) -> Update:
        return update(state, float("nan") if state.step == 3 else loss)

    monkeypatch.setattr(TrainingState, "update", fourth_is_not_finite)
    brics("train-ae", photographs, *QUICK, "--steps", 7, "--out", "run", cwd=tmp_path, check=0)
    names = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00000005", "step-00000007"]


def test_images_that_fail_are_exit_5(photographs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(photographs.iterdir())[:6]:
        (data / path.name).write_bytes(path.read_bytes())
    (data / "broken.png").write_text("this is no image")
    finished = brics("train-ae", data, *QUICK, "--steps", 1, "--out", "run", cwd=tmp_path, check=5)
    assert "1 of 7 images failed and are left out, first broken" in finished.stderr


def test_divergence_stops_with_the_last_checkpoint_intact(photographs: Path, tmp_path: Path) -> None:
    brics("train-ae", photographs, *QUICK, "--steps", 4, "--out", "run", cwd=tmp_path, check=0)
    beyond_float32 = ("--steps", 40, "--set", "loss.l1=1e39")
    diverged = brics("train-ae", "--resume", "run", *beyond_float32, cwd=tmp_path, check=6)
    assert "training diverged" in error_line(diverged)
    assert load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "weights.safetensors")


def test_init_from_starts_a_new_run_from_those_weights(straight: Path, photographs: Path, tmp_path: Path) -> None:
    tuned = ("--set", "terms.equivariance.weight=0.5", "--set", "model.bottleneck.noise=0.02", "--steps", 2)
    brics("train-ae", photographs, *QUICK, *tuned, "--init-from", straight, "--out", "run", cwd=tmp_path, check=0)
    first = [metrics_of(run)[0] for run in (tmp_path / "run", straight)]
    assert first[0]["train/l1"] < first[1]["train/l1"] * 0.8 and first[0]["train/equivariance"] > 0
    other = brics(
        "train-ae", photographs, *QUICK, "--set", "model.bottleneck.kind=none", "--init-from", straight, "--out", "x",
        cwd=tmp_path, check=3,
    )  # fmt: skip
    assert "another architecture than recipe tiny: bottleneck" in error_line(other) and not (tmp_path / "x").exists()


def test_a_frozen_encoder_keeps_the_codes_and_its_decoder_decodes_them(
    straight: Path, photographs: Path, tmp_path: Path
) -> None:
    """Resumed as well; another encoder is refused for codes that it did not make."""

    def does(*words: object, check: int = 0) -> Finished:
        return brics(*words, cwd=tmp_path, check=check)

    train, start = ("train-ae", photographs, *QUICK, "--steps", 1, "--out"), ("--init-from", straight)
    frozen = ("--set", "training.freeze_encoder=true")
    needs = "training.freeze_encoder keeps the encoder of another run. Give the run: --init-from RUN."
    assert needs in error_line(does(*train, "tuned", *frozen, check=2))
    does(*train, "tuned", *frozen, *start)
    does("train-ae", "--resume", "tuned", "--steps", 2)
    before, after = (load_file(run / "model" / "model.safetensors") for run in (straight, tmp_path / "tuned"))
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"bottleneck", "decoder"}

    does("encode-dataset", photographs, "--ae", straight, "--out", "codes.h5")
    for ae, out in ((straight, "first"), ("tuned", "second")):
        does("decode", "codes.h5", "--ae", ae, "--out", out)
        assert "complete already" in does("decode", "codes.h5", "--ae", ae, "--out", out).stderr
        does("eval", "--metric", "psnr", "--fake", "codes.h5", "--ae", ae, "--out", f"{out}.json")
    reports = [json.loads((tmp_path / name).read_text()) for name in ("first.json", "second.json")]
    fake = [next(each for each in report["sources"] if each["side"] == "fake") for report in reports]
    assert fake[0]["sha256"] != fake[1]["sha256"]
    decoded = [[path.read_bytes() for path in sorted((tmp_path / out).rglob("*.png"))] for out in ("first", "second")]
    assert len(decoded[0]) == len(decoded[1]) > 0 and all(map(operator.ne, *decoded))
    does(*train, "free", *start)
    other = does("decode", "codes.h5", "--ae", "free", "--out", "x", check=3)
    assert "is a store of another autoencoder" in error_line(other)


DIFFUSION = ("--recipe", "tiny", "--set", "training.batch_size=8", "--set", "training.checkpoint_every=5")


@pytest.fixture(scope="module")
def codes(straight: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    brics("encode-dataset", photographs, "--ae", straight, "--flips", "--out", "codes.h5", cwd=folder, check=0)
    return folder / "codes.h5"


@pytest.fixture(scope="module")
def diffused(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("diffused")
    brics("train-diffusion", codes, *DIFFUSION, "--steps", 12, "--out", "run", cwd=folder, check=0)
    return folder / "run"


def test_diffusion_training_resumes_to_the_same_bits(diffused: Path, tmp_path: Path) -> None:
    """All averages included; where the store is kept, and what is drawn of the model, changes none of them."""
    run = Path(shutil.copytree(diffused, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\0\0\0\n{"step": 11, "train/lo')  # what a crash of the machine can leave
    others = ("--set", "training.store_on_device=always", "--set", "training.fd_samples=4")
    resumed = brics("train-diffusion", "--resume", "run", *others, cwd=tmp_path, check=0)
    assert "codes kept on cpu (" in resumed.stderr
    averages = {path.name for path in (run / "model").glob("ema-*")}
    assert averages == {"ema-0.05.safetensors", "ema-0.1.safetensors"}
    assert_same_bits(diffused, run, 12)
    assert losses(diffused) == losses(run)
    (scored,) = [row for row in metrics_of(run) if "val/fd-random" in row]
    assert (scored["step"], scored["val/fd-random-n"]) == (12, 4) and scored["val/fd-random"] > 0
    assert not any("val/fd-random" in row for row in metrics_of(diffused)), "on a CPU nothing is drawn unasked"


def test_the_averages_of_a_run_can_be_chosen_after_training(diffused: Path) -> None:
    plain, narrow, wide = (load_denoiser(diffused, ema=width) for width in (None, 0.05, 0.1))
    weights = load_file(diffused / "checkpoints" / "step-00000012" / "ema-0.1.safetensors")
    assert all((tensor == weights[name]).all() for name, tensor in wide.state_dict().items())
    assert len({model.weights_sha256 for model in (plain, narrow, wide)}) == 3
    with pytest.raises(ArtefactError, match=r"no average of width 0\.07: it has those of width 0\.05, 0\.1"):
        load_denoiser(diffused, ema=0.07)


def test_an_average_that_is_not_the_one_its_config_names_is_refused(diffused: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(diffused / "model", tmp_path / "model"))
    shutil.copy(model / "ema-0.1.safetensors", model / "ema-0.05.safetensors")
    assert load_denoiser(model, ema=0.1)
    with pytest.raises(ArtefactError, match=r"ema-0\.05\.safetensors is not the file that config\.json names"):
        load_denoiser(model, ema=0.05)


def test_a_run_from_before_there_were_averages_is_resumed(diffused: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(diffused, tmp_path / "run"))
    state = run / "checkpoints" / "step-00000012" / "state.json"
    values = json.loads(state.read_text())
    values["settings"] = {key: value for key, value in values["settings"].items() if "ema_widths" not in key}
    del values["averages"]
    state.write_text(json.dumps(values))
    for path in state.parent.glob("ema-*"):
        path.unlink()
    resumed = brics("train-diffusion", "--resume", "run", "--steps", 13, cwd=tmp_path, check=0)
    assert (
        "step-00000012 holds no average of width 0.05, 0.1: it starts from the plain average of step 12"
        in resumed.stderr
    )
    fewer = ("--steps", 14, "--set", "training.ema_widths=[]")
    brics("train-diffusion", "--resume", "run", *fewer, cwd=tmp_path, check=0)
    assert not list((run / "model").glob("ema-*")) and not list((run / "checkpoints" / "step-00000014").glob("ema-*"))


@pytest.mark.slow
def test_diffusion_training_killed_with_9_resumes_to_the_same_bits(codes: Path, tmp_path: Path) -> None:
    brics("train-diffusion", codes, *DIFFUSION, "--steps", 20, "--out", "straight", cwd=tmp_path, check=0)
    process = start_brics("train-diffusion", codes, *DIFFUSION, "--steps", 20, "--out", "run", cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000005" / "state.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "checkpoints" / "step-00000020").exists(), "killed too late to show anything"
    brics("train-diffusion", "--resume", "run", cwd=tmp_path, check=0)
    assert_same_bits(tmp_path / "straight", tmp_path / "run", 20)
    assert (tmp_path / "run" / "images" / "step-00000020.png").exists()
