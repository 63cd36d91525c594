"""Where nothing is trained the embedded autoencoder is used, said, and known by its sha256."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import brics, error_line
from embedded_models import embed
from random_autoencoder import make_autoencoder

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder
from brics_cli.codes import KeyCodeStore
from brics_cli.jobs import encode_dataset
from brics_cli.workspace import embedded
from brics_cli.workspace.embedded import EmbeddedModel


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    return embed(tmp_path / "package", monkeypatch)


@pytest.fixture
def desk(tmp_path: Path, model: EmbeddedModel, photographs: Path) -> Path:
    """An empty workspace."""
    (tmp_path / "desk").mkdir()
    return tmp_path / "desk"


def test_the_pipeline_of_a_fresh_workspace(desk: Path, model: EmbeddedModel, photographs: Path) -> None:
    short = model.sha256[:12]
    encoded = brics("encode-dataset", photographs, "--limit", 6, "--out", "codes.h5", cwd=desk, check=0)
    assert (
        f"--ae not given, and no trained autoencoder in the workspace: using stand-in, which is embedded in brics "
        f"(sha256 {short})"
    ) in encoded.stderr
    store = KeyCodeStore(desk / "codes.h5")
    made_by = store.artefact.parent("autoencoder")
    assert made_by is not None and (made_by.path, made_by.sha256) == ("stand-in", model.sha256)
    assert store.autoencoder["sha256"] == model.sha256

    decoded = brics("decode", cwd=desk, check=0)
    assert f"codes.h5 are those of stand-in, which is embedded in brics (sha256 {short})" in decoded.stderr
    assert len(list((desk / "reconstructions").glob("*.png"))) == 6
    measured = brics("eval", "--metric", "psnr", "--json", cwd=desk, check=0)
    assert "are those of stand-in, which is embedded in brics" in measured.stderr
    assert json.loads(measured.stdout)["num_pairs"] == 6
    first = sorted(photographs.iterdir())[0]
    shown = brics("reconstruct", first, cwd=desk, check=0)
    assert "using stand-in, which is embedded in brics" in shown.stderr and "--ae stand-in" in shown.stderr

    tree = brics("status", cwd=desk, check=0).stdout.splitlines()
    at = next(number for number, line in enumerate(tree) if "autoencoder stand-in  embedded in brics  newest" in line)
    assert "store codes.h5" in tree[at + 1] and tree[at + 1].index("store") > tree[at].index("autoencoder")
    info = brics("info", "codes.h5", cwd=desk, check=0).stdout
    assert any(line.split() == ["autoencoder", "stand-in"] for line in info.splitlines()) and model.sha256 in info
    assert model.sha256 in brics("info", "stand-in", cwd=desk, check=0).stdout


def test_it_is_taken_by_name_and_a_trained_one_without(desk: Path, model: EmbeddedModel, photographs: Path) -> None:
    make_autoencoder(desk / "trained", seed=0)
    encoded = brics("encode-dataset", photographs, "--limit", 2, "--out", "a.h5", cwd=desk, check=0)
    assert "--ae not given: using trained" in encoded.stderr and "embedded" not in encoded.stderr
    encoded = brics("encode-dataset", photographs, "--limit", 2, "--out", "b.h5", "--ae", "stand-in", cwd=desk, check=0)
    assert "--ae not given" not in encoded.stderr
    assert KeyCodeStore(desk / "b.h5").autoencoder["sha256"] == model.sha256
    brics("decode", "b.h5", "--out", "b", "--ae", "stand-in", cwd=desk, check=0)
    brics("decode", "b.h5", "--out", "c", cwd=desk, check=0)
    assert "another autoencoder" in error_line(
        brics("decode", "a.h5", "--out", "d", "--ae", "stand-in", cwd=desk, check=3)
    )


def test_where_nothing_is_embedded_either_it_says_how_to_make_one(
    desk: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MODELS", ())
    line = error_line(brics("encode-dataset", photographs, cwd=desk, check=3))
    assert "no trained autoencoder in the workspace" in line and "brics train-ae IMAGES" in line


def test_a_model_of_the_users_own_in_a_folder_of_that_name_is_theirs(desk: Path, photographs: Path) -> None:
    theirs = make_autoencoder(desk / "stand-in", seed=1)
    brics("encode-dataset", photographs, "--limit", 2, "--ae", "stand-in", cwd=desk, check=0)
    made_by = KeyCodeStore(desk / "codes.h5").artefact.parent("autoencoder")
    assert made_by is not None and made_by.path == str(theirs)


def test_it_does_not_say_what_it_was_trained_on(desk: Path) -> None:
    line = error_line(brics("encode-dataset", cwd=desk, check=3))
    assert "stand-in does not say what it was trained on" in line and "Give DATA" in line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-100]), "stand-in is damaged"),
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-1] + b"\xff"), "stand-in is damaged"),
        (lambda weights: weights.write_bytes(b""), "stand-in is damaged"),
        (lambda weights: shutil.rmtree(weights.parent), "stand-in is not in this installation of brics"),
    ],
    ids=["cut", "changed", "empty", "missing"],
)
def test_a_wheel_with_another_model_file_is_one_line_and_exit_3(
    desk: Path, model: EmbeddedModel, photographs: Path, damage, said: str
) -> None:
    brics("encode-dataset", photographs, "--limit", 2, cwd=desk, check=0)
    damage(model.directory / "model.safetensors")
    first = sorted(photographs.iterdir())[0]
    for command in (
        ("encode-dataset", photographs, "--out", "b.h5"),
        ("encode-dataset", photographs, "--out", "b.h5", "--ae", "stand-in"),
        ("reconstruct", first),
        ("decode",),
        ("eval", "--metric", "psnr"),
        ("train-ae", photographs, "--recipe", "tiny", "--init-from", "stand-in"),
        ("info", "stand-in"),
    ):
        line = error_line(brics(*command, cwd=desk, check=3))
        assert said in line and "pip install --force-reinstall" in line
    assert not (desk / "b.h5").exists()
    listed = brics("models", cwd=desk, check=0)
    assert "is passed over: stand-in" in listed.stderr and "stand-in" not in listed.stdout


def test_a_model_that_is_written_again_while_it_is_loaded_makes_no_store(
    desk: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_again(path: Path, **how: Any) -> Autoencoder:
        loaded = load_autoencoder(path, **how)
        loaded.weights_sha256 = "0" * 64
        return loaded

    monkeypatch.setattr(encode_dataset, "load_autoencoder", written_again)
    line = error_line(brics("encode-dataset", photographs, cwd=desk, check=3))
    assert "stand-in was written again while it was being loaded" in line and not (desk / "codes.h5").exists()


def test_codes_of_the_model_of_another_version_say_so(
    desk: Path, model: EmbeddedModel, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brics("encode-dataset", photographs, "--limit", 2, cwd=desk, check=0)
    newer = embed(tmp_path / "newer", monkeypatch, seed=8)
    line = error_line(brics("decode", cwd=desk, check=3))
    assert f"those of the stand-in of another brics (sha256 {model.sha256[:12]})" in line
    assert newer.sha256[:12] in line


@pytest.mark.parametrize("shipped", [model.name for model in embedded.MODELS])
def test_what_ships_is_what_the_code_says(shipped: str) -> None:
    model = next(each for each in embedded.MODELS if each.name == shipped)
    model.check()
    assert {path.name for path in model.directory.iterdir()} >= {"config.json", "model.safetensors"}
