"""`brics eval`: help without torch, exit codes, the exact line when weights are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brics_cli.cli.app import run
from brics_cli.errors import ExitCode
from brics_cli.evaluation.registry import REGISTRY


def test_help_names_every_metric_and_needs_no_torch() -> None:
    code = (
        "import sys; from brics_cli.cli.app import run; code = run(['eval', '--help']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"COLUMNS": "200"})
    assert finished.returncode == 0, finished.stderr
    for name in REGISTRY:
        assert name in finished.stdout


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRICS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


def test_missing_weights_are_said_before_any_work(no_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ("--real", "nowhere", "--fake", "nowhere")
    assert run(["eval", "--metric", "clip-fid", "--metric", "psnr", *paths]) == ExitCode.ARTEFACT
    out, err = capsys.readouterr()
    assert out == ""
    url = (
        "https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
    )
    assert err == (
        f"error: CLIP-FID needs ViT-B-32.pt (354.0 MB), not found in {no_weights}/weights, {no_weights}/tmp, "
        f"{no_weights}/torch/hub/checkpoints, {no_weights}/.cache/clip. On a connected machine: curl -LO {url}; "
        "then brics weights import ViT-B-32.pt. Or --metric psnr --metric ssim, which need none.\n"
    )


def test_a_misspelt_metric_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--metric", "pnsr"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "error: no metric 'pnsr'; did you mean 'psnr'?\n"


def test_an_empty_workspace_says_what_to_make(
    no_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "--workspace", str(tmp_path)]) == ExitCode.ARTEFACT
    assert "Make one: brics encode-dataset IMAGES --out codes.h5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--metric", "neighbours", "--neighbours-by", "lpips"], "--neighbours-by: no network 'lpips'"),
        (["--mode", "cleen"], "--mode: no mode 'cleen'; did you mean 'clean'?"),
        (["compare", "nowhere.json", "nowhere.json"], "no such file: nowhere.json. Write one: brics eval --out"),
        (["compare"], "brics eval compare: missing argument"),
        (["report.json"], "brics eval: no command 'report.json'"),
        (["--real-subset", "train"], "--real-subset train goes with --real PATH"),
        (["--fake", "nowhere", "--fake-subset", "train"], "no such file or folder: nowhere"),
        (["--real-image-field", "left.png"], "--real-image-field left.png goes with --real PATH"),
        (["--self-test", "--real", "folder"], "--self-test --real folder: give clean-fid's statistics, an .npz"),
        (["--self-test", "--fake", "folder"], "--self-test takes both --real STATISTICS.npz and --fake IMAGES"),
    ],
)
def test_bad_words_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", *words]) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.lower().startswith(f"error: {line}".lower())


def test_the_self_test_runs_what_it_can(no_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--self-test", "--json"]) == ExitCode.DONE
    checks = json.loads(capsys.readouterr().out)
    assert [check["passed"] for check in checks] == [True] * 7 + [None] * 2
    assert "curl -LO https://www.cs.cmu.edu/~clean-fid/stats/cifar10_clean_train_32.npz" in checks[-1]["found"]
