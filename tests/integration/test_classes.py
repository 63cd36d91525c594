"""Names of classes, from a folder's names through shards, store, model, samples and decoded images."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import brics, error_line
from image_files import noise, read_all
from random_autoencoder import make_autoencoder

from brics_cli import load_denoiser
from brics_cli.codes import KeyCodeStore, verify_store
from brics_cli.images import open_collection

CLASSES = {"birds": 2, "cats": 3, "dogs": 7}
TRAIN = ("--recipe", "tiny", "--steps", "1", "--device", "cpu", "--set", "denoiser.depth=1", "--set", "denoiser.dim=32")
FAST = ("sample", "--steps", "1", "--device", "cpu", "--sampler", "ddim")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ae`, `images` with three classes as folders, their pack `shards`, its store `codes.h5`, a model `run` of it."""
    root = tmp_path_factory.mktemp("classes")
    for name, num in CLASSES.items():
        (root / "images" / name).mkdir(parents=True)
        for number in range(num):
            (root / "images" / name / f"{number}.png").write_bytes(noise(number + 10 * num))
    make_autoencoder(root / "ae", seed=0)
    brics("pack", "images", "--out", "shards", "--size", 16, "--labels", "folder", cwd=root, check=0)
    encode(root, "shards", "codes.h5")
    brics("train-diffusion", "codes.h5", *TRAIN, "--out", "run", cwd=root, check=0)
    return root


def encode(root: Path, source: str, out: str, *flags: str) -> KeyCodeStore:
    brics("encode-dataset", source, "--ae", "ae", "--out", out, "--device", "cpu", *flags, cwd=root, check=0)
    return KeyCodeStore(root / out)


def labels_of(shards: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in [shards] if shards.is_file() else sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".cls"):
                    found[tar.extractfile(name).read().decode()] += 1
    return found


def test_names_go_all_the_way(root):
    assert open_collection(root / "shards").class_names == tuple(CLASSES)
    assert open_collection(root / "shards" / "00000.tar").class_names == tuple(CLASSES)
    store = KeyCodeStore(root / "codes.h5")
    assert store.class_names == tuple(CLASSES) and verify_store(store.path) == []
    assert Counter(store.class_names[label] for label in store.labels) == CLASSES
    denoiser = load_denoiser(root / "run")
    assert (denoiser.class_names, denoiser.class_counts) == (tuple(CLASSES), tuple(CLASSES.values()))
    brics(*FAST, "--model", "run", "--n", 8, "--out", "drawn.h5", cwd=root, check=0)
    assert KeyCodeStore(root / "drawn.h5").class_names == tuple(CLASSES)
    for out in ("decoded", "decoded.tar", "decoded.zip"):
        kind = ("--format", "wds") if out == "decoded" else ()
        brics("decode", "codes.h5", "--ae", "ae", "--out", out, *kind, "--device", "cpu", cwd=root, check=0)
        if out.endswith(".zip"):
            (root / f"{out}.brics.json").unlink()  # its dataset.json says it too
        collection = open_collection(root / out)
        assert collection.class_names == tuple(CLASSES)
        assert sorted(raw.label for raw in read_all(collection)) == sorted(store.labels.tolist())


def test_info_lists_classes(root):
    facts = json.loads(brics("info", "codes.h5", "--json", cwd=root, check=0).stdout)["facts"]
    assert facts["classes"] == CLASSES and facts["labelled"] == 12
    shown = brics("info", "codes.h5", cwd=root, check=0).stdout
    assert "3: birds (2), cats (3), dogs (7)" in shown
    assert "3: birds (2), cats (3), dogs (7)" in brics("info", "run", cwd=root, check=0).stdout
    shown = brics("info", "shards", cwd=root, check=0).stdout
    assert "3: birds, cats, dogs" in shown


def test_a_class_is_asked_for_by_its_name(root):
    for name, number in (("dogs", "2"), ("2", "2")):
        out = f"class-{name}"
        brics(*FAST, "--model", "run", "--n", 4, "--class", name, "--out", out, cwd=root, check=0)
        assert labels_of(root / out) == {number: 4}
    finished = brics(*FAST, "--model", "run", "--n", 4, "--class", "dog", "--out", "no", cwd=root, check=2)
    assert "--class dog: run has no such class; did you mean 'dogs'?" in error_line(finished)
    brics(*FAST, "--model", "run", "--grid", "2x2", "--class", "cats", "--out", "cats.png", cwd=root, check=0)


def test_classes_are_drawn_as_often_as_in_training_or_alike(root):
    said = brics(*FAST, "--model", "run", "--n", 600, "--batch-size", 200, "--out", "many", cwd=root, check=0).stderr
    assert "classes are drawn as often as in training: birds (2 images), cats (3 images), dogs (7 images)" in said
    brics(*FAST, "--model", "run", "--n", 600, "--batch-size", 200, "--class-balance", "even", "--out", "even",
          cwd=root, check=0)  # fmt: skip
    many, even = labels_of(root / "many"), labels_of(root / "even")
    assert np.allclose([many[str(n)] / 600 for n in range(3)], np.array([2, 3, 7]) / 12, atol=0.08)
    assert np.allclose([even[str(n)] / 600 for n in range(3)], [1 / 3] * 3, atol=0.08)
    refused = brics(*FAST, "--model", "run", "--n", 600, "--batch-size", 200, "--class-balance", "even",
                    "--out", "many", cwd=root)  # fmt: skip
    assert refused.returncode == 4


def test_class_numbers_without_images_are_never_sampled(root):
    """The case of the issue: labels {1, 2} have trained three classes, and class 0 was drawn."""
    images = sorted((root / "images").rglob("*.png"))
    listing = [[path.relative_to(root / "images").as_posix(), 1 + (place % 2)] for place, path in enumerate(images)]
    (root / "images" / "dataset.json").write_text(json.dumps({"labels": listing}))
    try:
        store = encode(root, "images", "from-one.h5")
    finally:
        (root / "images" / "dataset.json").unlink()
    assert store.class_names == () and set(store.labels.tolist()) == {1, 2}
    said = brics("train-diffusion", "from-one.h5", *TRAIN, "--out", "from-one", cwd=root, check=0).stderr
    assert "class-conditional, on 2 classes: 1 (6 images), 2 (6 images); without an image, and never sampled: 0" in said
    brics(*FAST, "--model", "from-one", "--n", 64, "--out", "of-one", cwd=root, check=0)
    assert set(labels_of(root / "of-one")) == {"1", "2"}
    refused = brics(*FAST, "--model", "from-one", "--n", 4, "--class", 0, "--out", "no", cwd=root, check=2)
    assert "--class 0: from-one was trained on no image of it, only on 1 (6 images), 2 (6" in error_line(refused)
    brics(*FAST, "--model", "from-one", "--grid", "2x2", "--out", "grid.png", cwd=root, check=0)
    refused = brics(*FAST, "--model", "from-one", "--grid", "3x2", "--out", "more.png", cwd=root, check=2)
    assert "needs a class for each row, and from-one has 2" in error_line(refused)


MEASURE = ("eval", "--metric", "fd-random", "--real", "shards", "--device", "cpu", "--json")


def test_eval_draws_as_sample_does(root):
    report = json.loads(brics(*MEASURE, "--n", 8, "--fake", "run", "--steps", 1, cwd=root, check=0).stdout)
    assert "classes as often as in training" in json.dumps(report)
    asked = ("--n", 6, "--seed", 3, "--class", "dogs", "--guidance", 2, "--no-clip", "--steps", 2, "--sampler", "heun")
    drawn = json.loads(brics(*MEASURE, "--fake", "run", "--ae", "ae", *asked, cwd=root, check=0).stdout)
    brics("sample", "--model", "run", *asked, "--device", "cpu", "--out", "asked", cwd=root, check=0)
    written = json.loads(brics(*MEASURE, "--fake", "asked", cwd=root, check=0).stdout)
    assert drawn["results"][0]["value"] == pytest.approx(written["results"][0]["value"], rel=1e-9)
    assert "seeds 3-8" in drawn["sources"][1]["description"]
    refused = brics(*MEASURE, "--fake", "asked", "--guidance", 2, "--class", "dogs", cwd=root, check=2)
    assert "--guidance, --class: no images are drawn, since neither side is a diffusion run" in error_line(refused)


def test_pairs_are_measured_by_class(root):
    words = ("eval", "--metric", "psnr", "--metric", "ssim", "--device", "cpu", "--by-class")
    words += ("--ae", "ae", "--real", "shards")
    report = json.loads(brics(*words, "--fake", "codes.h5", "--json", cwd=root, check=0).stdout)
    for result in report["results"]:
        found = result["details"]["by_class"]
        assert {name: each["num"] for name, each in found.items()} == CLASSES
        mean = sum(each["num"] * each["value"] for each in found.values()) / sum(CLASSES.values())
        assert result["value"] == pytest.approx(mean)
    shown = brics(*words, "--fake", "codes.h5", cwd=root, check=0).stdout
    assert all(name in shown for name in CLASSES)
    refused = brics("eval", "--metric", "fd-random", "--by-class", "--real", "shards", "--fake", "images", cwd=root)
    assert refused.returncode == 2 and "--by-class: no figure is of labelled pairs" in error_line(refused)
    assert "real:" not in refused.stderr, "it is told before anything is opened"


def test_a_picture_of_a_few_seeds(root):
    brics("sample", "--model", "run", "--n", 3, "--steps", 1, "--device", "cpu", "-o", "three.png", cwd=root, check=0)
    made = json.loads((root / "three.png.brics.json").read_text())
    assert made["details"]["settings"]["seeds"] == "0-2" and made["details"]["num_images"] == 3
    refused = brics("sample", "--n", 3, "--out", "four.png", "--shard-size", 5, cwd=root, check=2)
    assert "--out x.png takes no --shard-size" in error_line(refused)


def test_stores_that_call_their_classes_otherwise_are_not_joined(root, tmp_path):
    for other in ("ants", "zebras"):
        for name in ("birds", other):
            (tmp_path / other / name).mkdir(parents=True)
            (tmp_path / other / name / f"{other}.png").write_bytes(noise(50))
        encode(root, str(tmp_path / other), f"{other}.h5", "--labels", "folder")
    refused = brics("merge", "ants.h5", "zebras.h5", "--out", "both.h5", cwd=root, check=3)
    assert "class 0 is 'ants' in ants.h5 and 'birds' in zebras.h5" in error_line(refused)
    encode(root, "images/cats", "nameless.h5", "--labels", "folder")
    brics("merge", "ants.h5", "nameless.h5", "--out", "more.h5", cwd=root, check=0)
    assert KeyCodeStore(root / "more.h5").class_names == ("ants", "birds")


def test_labels_none_reads_none_and_goes_on(root, tmp_path):
    (tmp_path / "a.png").write_bytes(noise(1))
    (tmp_path / "dataset.json").write_text('{"labels": [["b.png", 1]]}')
    refused = brics("encode-dataset", tmp_path, "--ae", "ae", "--out", "n.h5", cwd=root, check=2)
    assert "dataset.json names none of its 1 image: the first that it names is 'b.png', the first image 'a.png'" in (
        error_line(refused)
    )
    assert encode(root, str(tmp_path), "n.h5", "--labels", "none").labels.tolist() == [-1]
    assert open_collection(tmp_path, labels="none").fingerprint  # what train-ae and eval open


def test_a_store_whose_labels_are_too_large_to_be_classes_is_one_line(root):
    """Stores of before took any int64; what follows from 10^12 must not be tried."""
    shutil.copy(root / "codes.h5", root / "large.h5")
    with h5py.File(root / "large.h5", "r+") as file:
        file["labels"][0] = 10**12
    refused = brics("train-diffusion", "large.h5", *TRAIN, "--out", "never", cwd=root, check=3)
    assert "labels of large.h5 go up to 1,000,000,000,000, and a model has at most 100,000" in error_line(refused)
    assert not (root / "never").exists()
