"""Runs that can be told apart: names, `status`, `info`, `runs`, what they log and where, and their curves."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import brics, error_line

from brics_cli.errors import MachineError
from brics_cli.jobs.plot import DASH, choose_panels, draw, read_curves
from brics_cli.training.loggers import check_loggers
from brics_cli.workspace import Artefact, Parent, Workspace, read_provenance, write_provenance

QUICK = (
    *("--recipe", "tiny", "--set", "training.batch_size=4", "--set", "training.log_every=2"),
    *("--set", "training.val_every=3", "--set", "training.snapshot_every=6", "--set", "training.checkpoint_every=3"),
)


def make_run(root: Path, name: str, *, kind: str = "autoencoder", parents: tuple[Parent, ...] = (), **row: Any) -> Path:
    """A run without weights: provenance, config, metrics of three steps."""
    path = root / "runs" / kind / name
    (path / "model").mkdir(parents=True)
    (path / "model" / "model.safetensors").write_bytes(b"brics-cli")
    changed = {"training.seed": [0, row["seed"]]} if row.get("seed") else {}
    details = {"recipe": "tiny", "changed": changed, "sha256": name, "step": 3, "steps": 4, "summary": name}
    write_provenance(Artefact(kind, path, f"2026-01-01T00:00:{len(name):02d}", False, parents, details))  # type: ignore[arg-type]
    (path / "config.yaml").write_text(f"kind: {kind}\nname: tiny\ntraining: {{seed: {row.get('seed', 0)}, steps: 4}}\n")
    rows = [
        {"step": step, "train/loss": 1 / step, "time/lap_s": 20.0, "val/psnr": row.get("psnr", 20.0) - abs(step - 2)}
        for step in (1, 2, 3)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two autoencoders; of `b` a diffusion model and its samples; nothing of `aa`."""
    make_run(tmp_path, "b", psnr=25.0)
    make_run(tmp_path, "aa", psnr=30.0, seed=1)
    parents = (Parent("autoencoder", str(tmp_path / "runs/autoencoder/b"), "b"),)
    samples = tmp_path / "samples.zip"
    samples.write_bytes(b"PK" + b"brics-cli")
    model = make_run(tmp_path, "model", kind="diffusion", parents=parents)
    write_provenance(Artefact("samples", samples, "2027", True, (Parent("diffusion", str(model), "model"),)))
    return tmp_path


def test_the_table_of_runs(runs: Path) -> None:
    rows = {sort: json.loads(brics("runs", "--sort", sort, "--json", cwd=runs, check=0).stdout) for sort in SORTED}
    assert {sort: [Path(row["path"]).name for row in rows[sort]] for sort in SORTED} == SORTED
    best = rows["score"][0]
    assert (best["best"], best["step"], best["steps"], best["seconds"]) == (30.0, 3, 4, 60.0)
    assert best["changed"] == {"training.seed": [0, 1]} and best["num_bytes"] > 300
    shown = brics("runs", cwd=runs, check=0).stdout
    assert re.search(r"autoencoder/aa +tiny +seed=1 +3 of 4 +psnr 30 +0:01:00 +\d+ B", shown)
    assert "'size'" in error_line(brics("runs", "--sort", "sise", cwd=runs, check=2))
    nothing = brics("runs", "--workspace", runs / "new", cwd=runs, check=0)
    assert "no training runs" in nothing.stdout


SORTED = {"created": ["b", "aa", "model"], "score": ["aa", "b", "model"], "recipe": ["b", "aa", "model"]}


def test_runs_side_by_side(runs: Path) -> None:
    shown = brics("runs", "diff", "runs/autoencoder/b", "aa", cwd=runs, check=0).stdout
    assert re.search(r"training.seed +0 +1 *\n", shown) and re.search(r"best val/psnr +25 +30 *\n", shown)
    assert "training.steps" not in shown and "3 settings are the same" in shown
    everything = json.loads(brics("runs", "diff", "b", "aa", "--all", "--json", cwd=runs, check=0).stdout)
    assert everything["rows"]["training.steps"] == [4, 4]
    assert "at least two" in error_line(brics("runs", "diff", "aa", cwd=runs, check=2))
    assert "names 3 runs" in error_line(brics("runs", "diff", "runs/", "aa", cwd=runs, check=2))
    assert "no run modl; did you mean 'model'?" in error_line(brics("runs", "diff", "modl", "aa", cwd=runs, check=2))


def test_a_run_goes_with_what_was_made_from_it_or_stays(runs: Path) -> None:
    kept = error_line(brics("runs", "rm", "autoencoder/b", cwd=runs, check=3))
    assert "diffusion runs/diffusion/model, samples samples.zip were made from autoencoder/b" in kept
    assert "would remove autoencoder runs/autoencoder/aa" in brics("runs", "rm", "aa", "--dry-run", cwd=runs).stdout
    mine = runs / "runs/autoencoder/aa/notes.txt"
    mine.write_text("mine")
    line = error_line(brics("runs", "rm", "aa", cwd=runs, check=4))
    assert "holds files that brics did not make (notes.txt), so brics runs rm will not empty it" in line
    mine.unlink()
    brics("runs", "rm", "aa", cwd=runs, check=0)
    assert not (runs / "runs/autoencoder/aa").exists()
    gone = brics("runs", "rm", "autoencoder/b", "--with-children", cwd=runs, check=0).stdout.splitlines()
    assert gone[:3] == [
        "removed samples samples.zip",
        "removed diffusion runs/diffusion/model",
        "removed autoencoder runs/autoencoder/b",
    ]
    assert {path.name for path in runs.iterdir()} == {"runs"}


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one autoencoder, one store, and one diffusion model that holds out a quarter of it."""
    folder = tmp_path_factory.mktemp("runs")
    brics("train-ae", photographs, *QUICK, "--steps", 6, "--seed", 1, cwd=folder, check=0)
    brics("encode-dataset", photographs, cwd=folder, check=0)
    settings = ("--set", "training.val_fraction=0.25", "--out", "model")
    said = brics("train-diffusion", *QUICK, *settings, "--steps", 6, cwd=folder, check=0).stderr
    assert "validating on" in said and "codes, held out by hash of their key" in said
    return folder


def test_names_and_words_say_what_differs(trained: Path) -> None:
    (run,) = (trained / "runs/autoencoder").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-tiny-steps=6-batch_size=4-seed=1", run.name)
    said = "tiny steps=6 batch_size=4 seed=1"
    changed = read_provenance(run).details["changed"]  # type: ignore[union-attr]
    assert changed["training.seed"] == [0, 1] and changed["training.steps"] == [1200, 6]
    words = said.split()[1:]
    for command in (("status",), ("runs",)):
        shown = brics(*command, cwd=trained, check=0).stdout
        assert all(word in shown for word in words), shown
    assert "training.seed=1 (recipe: 0)" in brics("info", run, cwd=trained, check=0).stdout
    again = Path(shutil.copytree(run, trained.parent / f"{trained.name}-again"))
    more = ("--steps", 7, "--set", "optimiser.lr=1e-3")
    brics("train-ae", "--resume", again, *more, "--workspace", trained, cwd=trained, check=0)
    changed = read_provenance(again).details["changed"]  # type: ignore[union-attr]
    assert changed["optimiser.lr"] == [2e-3, 1e-3] and changed["training.steps"] == [1200, 7]
    assert changed["training.seed"] == [0, 1]


def test_rows_say_when_and_in_how_many_threads(trained: Path) -> None:
    (run,) = (trained / "runs/autoencoder").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [datetime.fromisoformat(row["time/utc"]) for row in rows]
    assert times == sorted(times) and all(time.utcoffset() is not None for time in times)
    assert {row["time/threads"] for row in rows if "time/lap_s" in row} == {1}
    seconds = sum(row.get("time/lap_s", 0) for row in rows)
    assert 0 < seconds < (times[-1] - times[0]).total_seconds() + 60


def test_a_diffusion_model_is_validated_on_codes_that_it_never_sees(trained: Path) -> None:
    from brics_cli import KeyCodeStore
    from brics_cli.jobs.train_diffusion import split_rows
    from brics_cli.runtime.reporting import SilentReporter

    store = KeyCodeStore(trained / "codes.h5")
    train, held_out = split_rows(store, 0.25, reporter=SilentReporter())
    assert len(train) + len(held_out) == len(store) and not {*train} & {*held_out}
    assert 0.05 < len(held_out) / len(store) < 0.5
    curves = read_curves(trained / "model")
    steps, values = curves["val/loss"]
    assert steps.tolist() == [3, 6] and values[1] < values[0]
    levels = [name for name in curves if name.startswith("val/loss/logsnr")]
    assert len(levels) == 4, "fixed draws are at every noise level"
    resumed = Path(shutil.copytree(trained / "model", trained.parent / f"{trained.name}-model"))
    shutil.rmtree(resumed / "checkpoints" / "step-00000006")
    brics("train-diffusion", "--resume", resumed, "--workspace", trained, cwd=trained, check=0)
    again = read_curves(resumed)
    assert all(again[name][1].tolist() == curves[name][1].tolist() for name in ["val/loss", "train/loss", *levels])
    refused = brics("train-diffusion", "--resume", resumed, "--set", "training.val_fraction=0", cwd=trained, check=2)
    assert "training.val_fraction: was 0.25, now 0" in error_line(refused)


def test_without_a_word_held_out_images_are_measured(trained: Path) -> None:
    """By the hash that the autoencoder's training held them out by; named, the store is measured whole."""
    bare, named = (
        json.loads(brics("eval", "--metric", "psnr", "--json", *fake, cwd=trained, check=0).stdout)
        for fake in ((), ("--fake", "codes.h5"))
    )
    assert 0 < bare["num_pairs"] < 5 and named["num_pairs"] == 48
    assert [{source["split"] for source in report["sources"]} for report in (bare, named)] == [
        {"held-out"},
        {"training"},
    ]
    (run,) = (trained / "runs/autoencoder").iterdir()
    scored = read_curves(run)["val/psnr"][1][-1]
    assert bare["results"][0]["value"] == pytest.approx(scored, abs=0.05), "the images that training validates on"


def test_tensorboard_gets_scalars_sheets_and_the_config(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (trained / "runs/autoencoder").iterdir()
    for path, sheet, scalar in ((run, "reconstructions", "val/psnr"), (trained / "model", "samples", "val/loss")):
        events = EventAccumulator(str(path))
        events.Reload()
        assert [event.step for event in events.Images(sheet)] == [6]
        assert events.Images(sheet)[0].width >= 2 * 128
        assert [event.step for event in events.Scalars(scalar)] == [3, 6]
        (text,) = events.Tensors("config/text_summary")
        assert b"batch_size: 4" in text.tensor_proto.string_val[0]


def test_a_logger_that_is_not_installed_is_said_before_any_work(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("brics_cli.training.loggers.version", missing)
    wanted = ("--set", "training.loggers=[wandb]", "--out", "never")
    line = error_line(brics("train-diffusion", *QUICK, *wanted, cwd=trained, check=2))
    assert line.endswith("Install it: uv pip install 'brics-cli[wandb]'") and not (trained / "never").exists()


def test_wandb_without_a_key_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: brics-cli[wandb]")
    for name, value in {"HOME": str(tmp_path), "WANDB_MODE": "online", "NETRC": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    try:
        with pytest.raises(MachineError, match="no API key"):
            check_loggers(["tensorboard", "wandb"])
        wandb.teardown()  # which lets it read its settings again
        monkeypatch.setenv("WANDB_MODE", "offline")
        check_loggers(["wandb"])
    finally:
        wandb.teardown()


@pytest.mark.slow
def test_wandb_offline_gets_the_same(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: brics-cli[wandb]")
    wanted = ("--set", "training.loggers=[wandb]", "--steps", 6, "--out", "logged")
    brics("train-diffusion", *QUICK, *wanted, cwd=trained, check=0, WANDB_MODE="offline")
    (folder,) = (trained / "logged" / "wandb").glob("offline-run-*")
    (binary,) = folder.glob("run-*.wandb")
    content = binary.read_bytes()
    assert all(word in content for word in (b"train/loss", b"samples", b"batch_size")), "scalars, sheets, config"
    (picture,) = folder.glob("files/media/images/samples_*.png")
    assert picture.read_bytes() == (trained / "logged/images/step-00000006.png").read_bytes()
    brics("train-diffusion", *QUICK, *wanted, "--overwrite", cwd=trained, check=0, WANDB_MODE="offline")


def curves(**metrics: list[float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (np.arange(1, len(values) + 1) * 10.0, np.array(values)) for name, values in metrics.items()}


def lines_of(runs: dict[str, Any], panel: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lines in one panel of the picture of `runs`."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    savefig = Figure.savefig

    def recorded(figure: Figure, *args: Any, **settings: Any) -> None:
        figures.append(figure)
        savefig(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", recorded)
    draw(runs, choose_panels(list(runs.values())), path)
    return [line for line in figures[0].axes[panel].get_lines() if len(line.get_xdata())]


def test_equal_lines_take_turns_and_validation_is_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = curves(**{"train/loss": [3.0, 2.0, 1.0], "val/loss": [2.5, 1.5]})
    runs = {"a": same, "b": curves(**{"train/loss": [9.0, 9.5, 9.0]}), "c": same}
    lines = lines_of(runs, 0, tmp_path / "x.png", monkeypatch)
    dashed = [line for line in lines if line.get_color() in ("C0", "C2") and line.get_linestyle() == "--"]
    dashed = [line for line in dashed if len(line.get_xdata()) == 3]
    assert [line._unscaled_dash_pattern for line in dashed] == [(0.0, (DASH, DASH)), (DASH, (DASH, DASH))]
    assert [line.get_linestyle() for line in lines if line.get_color() == "C1"] == ["-"]
    points = [line for line in lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in points] == [[10.0], [20.0]], "each run shows every second one"


def test_losses_by_noise_level_have_a_panel() -> None:
    levels = ["loss/logsnr0..4", "loss/logsnr<-4", "val/loss/logsnr>4", "loss/logsnr-4..0"]
    one = curves(**{name: [1.0] for name in ["train/loss", *levels]})
    panels = choose_panels([one])
    assert [panel.title for panel in panels] == ["loss", "loss by log SNR"]
    assert [curve.name for curve in panels[1].curves] == ["< -4", "-4 to 0", "0 to 4", "> 4"]
    titles = [panel.title for panel in choose_panels([one, one])]
    assert titles == ["loss", *(f"loss at log SNR {level}" for level in ("< -4", "-4 to 0", "0 to 4", "> 4"))]


def test_a_moved_workspace_goes_on(trained: Path, tmp_path: Path) -> None:
    """Copied, with the original gone: the diffusion model and its autoencoder are found in the copy."""
    copy, away = tmp_path / "copy", trained.with_name("away")
    shutil.copytree(trained, copy)
    trained.rename(away)
    try:
        brics("train-diffusion", "--resume", "model", "--steps", 7, cwd=copy, check=0)
        drawn = brics("sample", "--n", 2, "--steps", 2, "--model", "model", "--out", "s", "--json", cwd=copy, check=0)
        assert json.loads(drawn.stdout)["autoencoder"].startswith(str(copy))
        parents = read_provenance(copy / "s").parents  # type: ignore[union-attr]
        assert all(Path(parent.path).is_relative_to(copy) for parent in parents)
        assert Workspace(copy).newest("store").path == copy / "codes.h5"
    finally:
        away.rename(trained)
