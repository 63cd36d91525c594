"""`brics models`, and the cards of the models inside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import brics
from random_autoencoder import make_autoencoder

from brics_cli.config.loading import recipes_root
from brics_cli.workspace.embedded import MODELS


def test_embedded_models_are_listed_before_those_of_the_workspace(tmp_path: Path) -> None:
    make_autoencoder(tmp_path / "runs/autoencoder/mine", seed=1)
    (tmp_path / "runs/autoencoder/mine/model/model.safetensors").rename(tmp_path / "kept")
    assert "mine" not in brics("models", cwd=tmp_path, check=0).stdout
    (tmp_path / "kept").rename(tmp_path / "runs/autoencoder/mine/model/model.safetensors")
    *shipped, mine = json.loads(brics("models", "--json", cwd=tmp_path, check=0).stdout)
    assert [each["name"] for each in shipped] == [model.name for model in MODELS]
    assert all(each["is_embedded"] and each["licence"] and each["num_bytes"] < 8e6 for each in shipped)
    assert (mine["name"], mine["code_shape"]) == ("runs/autoencoder/mine", [16, 8, 8])
    shown = brics("models", cwd=tmp_path, check=0)
    assert "16 x H/8 x W/8" in shown.stdout and shown.stderr.splitlines()[-1] == f"next: brics info {MODELS[0].name}"

    (tmp_path / "runs/autoencoder/mine/model/config.json").write_text("{")
    damaged = brics("models", cwd=tmp_path, check=0)
    assert "mine is passed over" in damaged.stderr and "mine" not in damaged.stdout


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_embedded_model_has_a_card(model, tmp_path: Path) -> None:
    card = (recipes_root() / "models" / f"{model.name}.md").read_text()
    assert model.sha256 in card, "the card is of other weights"
    for heading in ("Intended use", "Data and licences", "Limits"):
        assert f"\n## {heading}\n" in card
    described = brics("info", model.name, cwd=tmp_path, check=0).stdout
    assert "## Intended use" in described and model.sha256 in described
    assert json.loads(brics("info", model.name, "--json", cwd=tmp_path, check=0).stdout)["card"] == card
