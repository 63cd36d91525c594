"""Publishing on the Hugging Face Hub, and every command that takes what was published, on a hub of the test's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import brics, error_line
from diffusion_workspace import make_workspace
from hub_server import TOKEN, Hub
from huggingface_hub import snapshot_download

from brics_cli import KeyCodeStore, load_autoencoder, load_denoiser
from brics_cli.workspace import Artefact, Parent, read_provenance, write_provenance
from brics_cli.workspace.hub import parse_address

AE, DIFFUSION = "runs/autoencoder/a", "runs/diffusion/d"
LICENCE = ("--licence", "cc-by-4.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A workspace of an autoencoder, a store and a diffusion model; the autoencoder has the files of a training run."""
    root = make_workspace(tmp_path_factory.mktemp("made"))
    brics("encode-dataset", photographs, "--ae", AE, "--limit", 10, "--out", "codes.h5", cwd=root, check=0)
    run = root / AE
    artefact = read_provenance(run)
    assert artefact is not None
    parents = (Parent("collection", str(photographs), "d" * 64),)
    details = {**artefact.details, "val/psnr": 21.5, "step": 7, "summary": "tiny, step 7, 21.50 dB"}
    write_provenance(Artefact("autoencoder", run, artefact.created, True, parents, details))
    (run / "config.yaml").write_text(
        brics("recipes", "show", "tiny", "--kind", "autoencoder", "--full", cwd=root).stdout
    )
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "train/loss": {1 / n}}}\n' for n in range(1, 8)))
    (run / "images").mkdir()
    brics("reconstruct", *sorted(photographs.iterdir())[:2], "--ae", AE, cwd=root, check=0)
    (root / "sheet.png").rename(run / "images" / "step-00000007.png")
    return root


@pytest.fixture
def desk(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace of somebody who has a token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "desk").mkdir()
    return tmp_path / "desk"


def commit_of(stdout: str) -> str:
    found = re.search(r"hf://\S+@([0-9a-f]{40})$", stdout.strip())
    assert found is not None, stdout
    return found[1]


def test_an_autoencoder_goes_to_the_hub_and_comes_back(made: Path, desk: Path, photographs: Path) -> None:
    pushed = brics("models", "push", AE, "hf://user/ae", *LICENCE, cwd=made, check=0)
    commit = commit_of(pushed.stdout)
    assert TOKEN not in pushed.stdout + pushed.stderr
    assert pushed.stderr.splitlines()[-1] == f"next: brics reconstruct IMAGE --ae hf://user/ae@{commit}"

    there = Path(snapshot_download("user/ae", local_dir=desk / "clone"))
    names = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert names == {
        "README.md", "brics.json", "config.json", "config.yaml", "model.safetensors", "pictures/curves.png",
        "pictures/reconstructions.png",
    }  # fmt: skip
    shutil.rmtree(there / ".cache")
    assert (there / "model.safetensors").read_bytes() == (made / AE / "model/model.safetensors").read_bytes()
    for text in (there / "README.md", there / "brics.json", there / "config.json"):
        assert str(made.parent) not in text.read_text() and str(photographs.parent) not in text.read_text()
    _, metadata, card = (there / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(metadata)
    assert (values["license"], values["library_name"]) == ("cc-by-4.0", "brics-cli")
    assert values["model-index"][0]["results"][0]["metrics"][0]["value"] == 21.5
    assert "hf://user/ae" in card and "(pictures/curves.png)" in card and "| PSNR, dB | 21.5 |" in card

    theirs, ours, clone = (load_autoencoder(path) for path in ("hf://user/ae", made / AE, there))
    assert theirs.weights_sha256 == ours.weights_sha256 == clone.weights_sha256
    assert theirs.reference == f"hf://user/ae@{commit}"
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert theirs.encode(images).equal(ours.encode(images))

    encoded = brics("encode-dataset", photographs, "--ae", "hf://user/ae", "--limit", 10, cwd=desk, check=0)
    assert f"hf://user/ae is at {commit}, in the cache" in encoded.stderr
    store = KeyCodeStore(desk / "codes.h5")
    assert (store.batch(slice(0, 10)) == KeyCodeStore(made / "codes.h5").batch(slice(0, 10))).all()
    parent = store.artefact.parent("autoencoder")
    assert parent == Parent("autoencoder", f"hf://user/ae@{commit}", ours.weights_sha256)
    assert f"hf://user/ae@{commit}" in brics("info", "codes.h5", cwd=desk, check=0).stdout
    described = brics("info", "hf://user/ae", cwd=desk, check=0).stdout
    assert f"hf://user/ae@{commit}" in described and "## Licence" in described


def test_what_was_pinned_is_found_again_offline_and_with_an_empty_cache(
    made: Path, desk: Path, hub: Hub, photographs: Path, tmp_path: Path
) -> None:
    brics("models", "push", AE, "hf://user/ae", *LICENCE, cwd=made, check=0)
    brics("encode-dataset", photographs, "--ae", "hf://user/ae", "--limit", 10, cwd=desk, check=0)
    hub.add("models/user/ae", {"model.safetensors": b"of another training"})
    hub.requests.clear()
    brics("decode", cwd=desk, check=0, BRICS_OFFLINE="1")
    assert not hub.requests
    offline = brics("reconstruct", sorted(photographs.iterdir())[0], "--ae", "hf://user/ae", cwd=desk, check=0,
                    BRICS_OFFLINE="1")  # fmt: skip
    assert "is set: hf://user/ae as it was last seen" in offline.stderr

    shutil.rmtree(tmp_path / "hub-cache")
    shutil.rmtree(desk / "reconstructions")
    refused = brics("decode", cwd=desk, check=6, BRICS_OFFLINE="1")
    assert "is not in the cache, and BRICS_OFFLINE or HF_HUB_OFFLINE is set" in error_line(refused)
    decoded = brics("decode", cwd=desk, check=0)
    assert "downloading 5 files" in decoded.stderr
    assert len(list((desk / "reconstructions").glob("*.png"))) == 10
    image = sorted(photographs.iterdir())[0]
    changed = brics("reconstruct", image, "--ae", "hf://user/ae", "--out", "new.png", cwd=desk, check=3)
    assert "model.safetensors is damaged" in error_line(changed)


def test_a_diffusion_model_brings_its_autoencoder(made: Path, desk: Path) -> None:
    commit = commit_of(brics("models", "push", DIFFUSION, "hf://user/draws", *LICENCE, cwd=made, check=0).stdout)
    options = ("--n", 2, "--steps", 2, "--format", "png", "--batch-size", 2)
    sampled = brics("sample", "--model", "hf://user/draws", *options, "--out", "theirs", cwd=desk, check=0)
    assert f"hf://user/draws is at {commit}, downloading" in sampled.stderr
    brics("sample", "--model", DIFFUSION, *options, "--out", desk / "ours", cwd=made, check=0)
    for image in ("00000000.png", "00000001.png"):
        pixels = [next((desk / folder).rglob(f"*{image[-5:]}")).read_bytes() for folder in ("theirs", "ours")]
        assert pixels[0] == pixels[1]
    samples = read_provenance(desk / "theirs")
    assert samples is not None
    assert [parent.path for parent in samples.parents] == [
        f"hf://user/draws@{commit}",
        "gone.h5 (not published)",
        f"hf://user/draws@{commit}/autoencoder",
    ]
    assert load_denoiser("hf://user/draws", ema=0.05).lineage["store_path"] == "gone.h5 (not published)"
    assert load_autoencoder("hf://user/draws/autoencoder").weights_sha256 == load_autoencoder(made / AE).weights_sha256
    wrong = brics("sample", "--model", "hf://user/draws/autoencoder", cwd=desk, check=3)
    assert "is a model of kind 'autoencoder', and kind 'diffusion' is needed here" in error_line(wrong)


def test_a_store_brings_its_autoencoder(made: Path, desk: Path) -> None:
    pushed = brics("models", "push", "codes.h5", "hf://datasets/user/codes", *LICENCE, cwd=made, check=0)
    commit = commit_of(pushed.stdout)
    assert "names its images, their metadata and" in pushed.stderr
    address = f"hf://datasets/user/codes@{commit}"
    store = KeyCodeStore("hf://datasets/user/codes")
    assert store.sha256 == KeyCodeStore(made / "codes.h5").sha256
    brics("decode", "hf://datasets/user/codes", "--out", "images", cwd=desk, check=0)
    images = read_provenance(desk / "images")
    assert images is not None
    # the machine that made the store still has the autoencoder where the store says
    assert [parent.path for parent in images.parents[:2]] == [f"{address}/codes.h5", str(made / AE)]
    trained = brics("train-diffusion", "hf://datasets/user/codes", "--recipe", "tiny", "--steps", 1, "--json",
                    "--set", "training.batch_size=2", "--set", "denoiser.dim=16", "--set", "denoiser.depth=1",
                    cwd=desk, check=0)  # fmt: skip
    run = Path(json.loads(trained.stdout)["run"])
    model = load_denoiser(desk / run)
    assert model.lineage["store_path"] == f"{address}/codes.h5"
    brics("sample", "--n", 1, "--steps", 1, cwd=desk, check=0, BRICS_OFFLINE="1")
    measured = brics("eval", "--metric", "psnr", "--fake", "hf://datasets/user/codes", "--json", cwd=desk, check=0)
    assert json.loads(measured.stdout)["num_pairs"] == 10
    card = brics("info", "hf://datasets/user/codes", cwd=desk, check=0).stdout
    assert "images" in card and "10" in card


def test_a_store_in_parts_is_published_as_it_is(made: Path, desk: Path, hub: Hub, photographs: Path) -> None:
    brics("encode-dataset", photographs, "--ae", AE, "--limit", 10, "--out", "parts-of-it/", cwd=made, check=0)
    brics("models", "push", "codes.h5", "hf://datasets/user/parts", *LICENCE, cwd=made, check=0)
    pushed = brics(
        "models", "push", "parts-of-it", "hf://datasets/user/parts", *LICENCE, "--overwrite", cwd=made, check=0
    )
    names = hub.repositories["datasets/user/parts"].commits[-1][1].keys()
    assert "index.h5" in names and "codes.h5" not in names
    store = KeyCodeStore("hf://datasets/user/parts")
    assert store.sha256 == KeyCodeStore(made / "codes.h5").sha256
    assert (store.raw([9, 0]) == KeyCodeStore(made / "codes.h5").raw([9, 0])).all()
    brics("decode", "hf://datasets/user/parts", "--out", "images", cwd=desk, check=0)
    assert "every invariant" in brics("info", "hf://datasets/user/parts", "--verify", cwd=desk, check=0).stdout
    store.part_paths[0].unlink()  # as of a download that was broken off
    assert len(KeyCodeStore(f"hf://datasets/user/parts@{commit_of(pushed.stdout)}").part_paths) == len(store.part_paths)


def test_fine_tuning_starts_from_what_was_published(made: Path, desk: Path, photographs: Path) -> None:
    commit = commit_of(brics("models", "push", AE, "hf://user/ae", *LICENCE, cwd=made, check=0).stdout)
    config = json.loads((made / AE / "model/config.json").read_text())["model"]
    recipe = {"kind": "autoencoder", "name": "small", "about": "a test", "model": config}
    (desk / "small.yaml").write_text(yaml.safe_dump(recipe))
    trained = brics("train-ae", photographs, "--recipe", "small.yaml", "--init-from", "hf://user/ae", "--steps", 1,
                    "--set", "training.batch_size=2", "--json", cwd=desk, check=0)  # fmt: skip
    run = read_provenance(desk / json.loads(trained.stdout)["run"])
    assert run is not None and run.parent("init") == Parent(
        "init", f"hf://user/ae@{commit}", load_autoencoder(made / AE).weights_sha256
    )
    listed = json.loads(brics("models", "--json", cwd=desk, check=0).stdout)
    assert [(each["kind"], each["code_shape"], each["licence"]) for each in listed if not each["is_embedded"]] == [
        ("autoencoder", [4, 4, 4], None)
    ]


def test_pushes_that_are_refused(made: Path, desk: Path, hub: Hub, photographs: Path) -> None:
    dry = brics("models", "push", AE, "hf://user/ae", "--dry-run", cwd=made, check=0)
    assert "# ae" in dry.stdout and "no licence is stated" in dry.stderr and not hub.requests
    brics("models", "push", AE, "hf://user/ae", *LICENCE, "--private", cwd=made, check=0)
    assert hub.repositories["models/user/ae"].private
    again = brics("models", "push", AE, "hf://user/ae", *LICENCE, cwd=made, check=4)
    assert "hf://user/ae holds 7 files already" in error_line(again)
    brics("models", "push", DIFFUSION, "hf://user/ae", *LICENCE, "--overwrite", cwd=made, check=0)
    now = hub.repositories["models/user/ae"].commits[-1][1]
    assert "ema-0.05.safetensors" in now and "autoencoder/model.safetensors" in now
    assert not [name for name in now if name.startswith("pictures/") or name == "config.yaml"]

    for run, to, code, said in (
        (photographs, "hf://user/x", 3, "was not made by brics"),
        ("codes.h5", "user/x", 2, "is no repository to push to"),
        (AE, "hf://user/x/inside", 2, "is no repository to push to"),
        (AE, "hf://user/ae@v2", 3, "has no revision v2 of hf://user/ae"),
    ):
        assert said in error_line(brics("models", "push", run, to, *LICENCE, cwd=made, check=code))
    stolen = "hf_of-somebody-else"
    refused = brics("models", "push", AE, "hf://user/new", *LICENCE, cwd=made, check=6, HF_TOKEN=stolen)
    assert "does not let you write to hf://user/new (401)" in error_line(refused) and stolen not in refused.stderr
    hub.is_down = True
    assert "cannot be reached" in error_line(brics("models", "push", AE, "hf://user/new", *LICENCE, cwd=made, check=6))
    offline = brics("models", "push", AE, "hf://user/new", *LICENCE, cwd=made, check=6, BRICS_OFFLINE="1")
    assert "needs the network" in error_line(offline)
    assert parse_address("hf://user/new") is not None and "models/user/new" not in hub.repositories
