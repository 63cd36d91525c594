"""pack -> encode-dataset -> decode on photographs, through the command line; kill -9 and resume; changed inputs.

The autoencoder is the tiny recipe's with random weights: what is tested is that nothing is lost, doubled or moved.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from image_files import encoded
from killing import Command
from PIL import Image
from random_autoencoder import make_autoencoder
from skimage import data as photographs

from brics_cli.autoencoder.autoencoder import load_autoencoder, to_tensor, to_uint8
from brics_cli.cli.app import run
from brics_cli.codes import KeyCodeStore, quantise, verify_store
from brics_cli.images import load_shards, open_collection
from brics_cli.images.pixels import load_pixels
from brics_cli.workspace import Parent, read_provenance
from brics_cli.workspace.naming import key_of_name

NUM_IMAGES = 240
SHARD_SIZE = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Crops of photographs, nested, in three formats; one of them is a text."""
    root = tmp_path_factory.mktemp("photos")
    images = [photographs.astronaut(), photographs.coffee(), photographs.chelsea(), photographs.rocket()]
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        image = images[number % len(images)]
        top, left = generator.integers(0, 200, 2)
        crop = Image.fromarray(image[top : top + 90, left : left + 70 + number % 30])
        path = root / f"{number % 3}" / f"{number:04d}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        crop.save(path)
    (root / "1" / "0100.jpg").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, photos) -> Path:
    """A workspace with an autoencoder, packed shards and a store made in one go."""
    root = tmp_path_factory.mktemp("workspace")
    make_autoencoder(root / "runs" / "autoencoder" / "a", seed=0)
    assert run(["pack", str(photos), "--out", str(root / "shards"), "--size", "64", "--shard-size", "40", "-q"]) == 5
    assert run(["encode-dataset", str(root / "shards"), "--workspace", str(root), "--flips", "-q"]) == 0
    return root


@pytest.fixture
def inside(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def rows(path: Path) -> dict[str, list]:
    with h5py.File(path) as file:
        return {name: file[name][()].tolist() for name in file if name != "stats"}


def test_packed_images_are_the_transformed_ones(photos, workspace):
    packed = open_collection(workspace / "shards")
    assert len(packed) == NUM_IMAGES - 1
    originals = [
        (key, image)
        for batch in load_shards(open_collection(photos), transform="crop-bicubic", size=64)
        for key, image in zip(batch.keys, batch.images, strict=True)
    ]
    read = [raw for shard in range(len(packed.shards)) for raw in packed.iter_shard(shard)]
    assert [raw.key.split("/", 1)[1] for raw in read] == [key for key, _ in originals]
    for raw, (_, image) in zip(read[::17], originals[::17], strict=True):
        assert np.array_equal(load_pixels(raw.data, transform="none", size=64), image)
    failures = [json.loads(line) for line in (workspace / "shards" / "failures.jsonl").read_text().splitlines()]
    assert [failure["key"] for failure in failures] == ["1/0100"]


def test_codes_are_the_autoencoders(workspace):
    store, autoencoder = (
        KeyCodeStore(workspace / "codes.h5"),
        load_autoencoder(workspace / "runs" / "autoencoder" / "a"),
    )
    batch = next(load_shards(open_collection(workspace / "shards"), transform="none", size=64, batch_size=8))
    images = to_tensor(batch.images)
    with torch.inference_mode():
        expected, mirrored = (quantise(autoencoder.encode(each), "uint8") for each in (images, images.flip(3)))
    assert store.keys[:8] == batch.keys
    for found, wanted in ((store.raw(slice(0, 8)), expected), (store.raw(slice(0, 8), flipped=True), mirrored)):
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1  # another batch size rounds differently
    assert store.transform == "crop-bicubic" and store.image_size == 64 and store.source == str(workspace / "shards")
    assert verify_store(store.path) == []


def test_lineage_names_what_the_store_was_made_from(workspace):
    artefact = read_provenance(workspace / "codes.h5")
    shards = read_provenance(workspace / "shards")
    run_path = workspace / "runs" / "autoencoder" / "a"
    assert artefact.parent("collection") == Parent("collection", str(workspace / "shards"), shards.details["sha256"])
    assert artefact.parent("autoencoder").path == str(run_path)
    assert artefact.parent("autoencoder").sha256 == load_autoencoder(run_path).weights_sha256


@pytest.mark.slow  # tests/integration/test_store_faults.py has a short version
@pytest.mark.parametrize("num_parts", [1, 3])
def test_kill_9_while_encoding_and_resume(inside, num_parts, tmp_path):
    out = f"killed{num_parts}.h5"
    arguments = ["encode-dataset", "shards", "--out", out, "--flips", "--ae", "runs/autoencoder/a"]
    command = Command(arguments, tmp_path / "log")
    assert command.stop_when(lambda: len(list(inside.glob(f"{out}.parts/*.h5"))) >= num_parts, signal.SIGKILL) == -9
    assert not (inside / out).exists()
    assert num_parts <= len(list(inside.glob(f"{out}.parts/*.h5"))) <= NUM_IMAGES // SHARD_SIZE
    assert run([*arguments, "-q"]) == 0
    assert rows(inside / out) == rows(inside / "codes.h5")
    assert KeyCodeStore(out).sha256 == KeyCodeStore("codes.h5").sha256
    assert list(inside.glob(f"{out}.*")) == []


def test_kill_9_while_packing_and_resume(inside, photos, tmp_path):
    arguments = ["pack", str(photos), "--out", "again", "--size", "64", "--shard-size", "40", "--workers", "1"]
    command = Command(arguments, tmp_path / "log")
    assert command.stop_when(lambda: len(list(inside.glob("again/*.tar"))) >= 2, signal.SIGKILL) == -9
    assert len(list(inside.glob("again/*.tar"))) < NUM_IMAGES // SHARD_SIZE
    assert run([*arguments, "-q"]) == 5
    for tar in (inside / "shards").glob("*.tar"):
        assert (inside / "again" / tar.name).read_bytes() == tar.read_bytes()
    assert (inside / "again" / "failures.jsonl").read_text() == (inside / "shards" / "failures.jsonl").read_text()
    assert list((inside / "again").glob(".*")) == []


def test_ctrl_c_says_how_to_go_on(inside, tmp_path):
    arguments = ["encode-dataset", "shards", "--out", "stopped.h5", "--ae", "runs/autoencoder/a"]
    command = Command(arguments, tmp_path / "log")
    assert command.stop_when(lambda: any(inside.glob("stopped.h5.parts/*.h5")), signal.SIGINT) == 130
    stderr = (tmp_path / "log").read_text()
    last = stderr.strip().splitlines()[-1]
    assert (
        "interrupted" in last and "brics encode-dataset shards --out stopped.h5" in last and "Traceback" not in stderr
    )
    assert run([*arguments, "-q"]) == 0


def test_decoded_files_are_what_the_autoencoder_decodes(inside):
    assert run(["decode", "codes.h5", "--out", "pngs", "-q"]) == 0
    store, autoencoder = KeyCodeStore("codes.h5"), load_autoencoder("runs/autoencoder/a")
    assert len(list(Path("pngs").glob("*.png"))) == len(store.keys)  # flat: what torch-fidelity and pytorch-fid list
    read = {key_of_name(raw.key): raw.data for raw in open_collection("pngs").iter_shard(0)}
    assert set(read) == set(store.keys)
    with torch.inference_mode():
        expected = to_uint8(autoencoder.decode(torch.from_numpy(store.batch([0, 100, 238]))))
    for key, image in zip([store.keys[index] for index in (0, 100, 238)], expected, strict=True):
        found = load_pixels(read[key], transform="none", size=64)
        assert np.abs(found.astype(int) - image.astype(int)).max() <= 1
    assert {parent.kind for parent in read_provenance(Path("pngs")).parents} == {"store", "autoencoder", "collection"}
    assert run(["decode", "codes.h5", "--out", "pngs", "-q"]) == 0  # complete: nothing to do


def test_a_flat_and_a_nested_folder_pair_with_the_originals(inside):
    assert run(["decode", "codes.h5", "--out", "flat", "-q"]) == 0
    assert run(["decode", "codes.h5", "--out", "nested", "--nested", "-q"]) == 0
    assert run(["decode", "codes.h5", "--out", "flat.npz", "-q"]) == 0
    real = KeyCodeStore("codes.h5").source
    values = []
    for fake in ("codes.h5", "flat", "nested", "flat.npz"):
        assert run(["eval", "--metric", "psnr", "--real", real, "--fake", fake, "--out", f"{fake}.json", "-q"]) == 0
        report = json.loads(Path(f"{fake}.json").read_text())
        assert report["num_pairs"] == 239 and not report["unmatched_real"] and not report["unmatched_fake"]
        values.append(report["results"][0]["value"])
    assert len(set(values[1:])) == 1 and values[0] == pytest.approx(values[1], abs=1e-5)  # in batches of another size


def test_torch_fidelity_and_pytorch_fid_find_the_decoded_files(inside):
    from torch_fidelity.defaults import DEFAULTS
    from torch_fidelity.utils import glob_samples_paths

    assert run(["decode", "codes.h5", "--out", "pngs", "-q"]) == 0
    settings = {name: DEFAULTS[name] for name in ("samples_find_deep", "samples_find_ext", "samples_ext_lossy")}
    found = glob_samples_paths("pngs", *settings.values(), verbose=False)
    extensions = ("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp")  # pytorch-fid's
    listed = sorted(file for extension in extensions for file in Path("pngs").glob(f"*.{extension}"))
    assert [Path(path).resolve() for path in found] == [path.resolve() for path in listed]
    assert len(listed) == 239


def test_decode_goes_on_after_an_interruption(inside):
    assert run(["decode", "codes.h5", "--out", "part", "-q"]) == 0
    files = sorted(Path("part").rglob("*.png"))
    before = {path: path.read_bytes() for path in files}
    for path in files[150:]:
        path.unlink()
    record = json.loads(Path("part/brics.json").read_text())
    Path("part/brics.json").write_text(json.dumps({**record, "complete": False}))
    assert run(["decode", "codes.h5", "--out", "part", "-q"]) == 0
    assert {path: path.read_bytes() for path in sorted(Path("part").rglob("*.png"))} == before


def test_a_moved_autoencoder_is_found_by_its_weights(inside):
    home, elsewhere = Path("runs/autoencoder/a"), Path("runs/autoencoder/moved")
    home.rename(elsewhere)
    try:
        assert run(["decode", "codes.h5", "--out", "moved.zip", "-q"]) == 0
        assert Path("moved.zip.brics.json").exists()
    finally:
        elsewhere.rename(home)


def test_another_autoencoder_is_refused(inside, capfd):
    other = make_autoencoder(inside / "other" / "b", seed=1)
    assert run(["decode", "codes.h5", "--ae", str(other), "--out", "wrong"]) == 3
    assert "a store of another autoencoder" in capfd.readouterr().err and not Path("wrong").exists()
    assert run(["encode-dataset", "shards", "--out", "codes.h5", "--flips", "--ae", str(other)]) == 3
    assert "autoencoder: was" in capfd.readouterr().err
    assert verify_store("codes.h5") == []


def test_a_source_that_changed_is_refused_and_overwrite_begins_again(inside, photos, capfd):
    source = inside / "changing"
    source.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))[:6]):
        (source / f"{number}.png").write_bytes(path.read_bytes())
    arguments = ["encode-dataset", str(source), "--out", "changing.h5", "--ae", "runs/autoencoder/a", "-q"]
    assert run(arguments) == 0
    (source / "5.png").write_text("no image any more")
    assert run(arguments) == 3
    assert "source: was" in capfd.readouterr().err
    assert run([*arguments, "--overwrite"]) == 5
    assert "1 of 6 images failed, listed in" in capfd.readouterr().err
    assert [failure["key"] for failure in KeyCodeStore("changing.h5").failures] == ["5"]
    assert run([*arguments, "--overwrite", "--max-failures", "0"]) == 5
    assert "more than --max-failures 0" in capfd.readouterr().err


def test_limit_and_dry_run(inside, capfd):
    arguments = ["encode-dataset", "shards", "--out", "few.h5", "--ae", "runs/autoencoder/a", "--limit", "50", "-q"]
    assert run([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["images"] == 50
    assert not list(inside.glob("few.h5*"))
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["num_images"] == 50 and result["bytes_per_image"] == int(np.prod(KeyCodeStore("few.h5").code_shape))
    assert result["quantisation_cost_db"] + 0.01 >= 0 and result["psnr_db"] > 0
    assert np.array_equal(KeyCodeStore("few.h5").raw(slice(None))[:40], KeyCodeStore("codes.h5").raw(slice(0, 40)))


def test_a_subset_through_encode_dataset_and_eval(inside, tmp_path, capfd):
    """A split of parquet tables is no file of its own; the store remembers it, and eval finds it again."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [encoded(Image.fromarray(photographs.astronaut()[at : at + 64, :64])) for at in range(0, 60, 20)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "data").mkdir()
    for split, chosen in (("test", images[:1]), ("validation", images)):
        rows = pa.array([{"bytes": data, "path": None} for data in chosen], kind)
        pq.write_table(pa.table({"image": rows}), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    data, out = str(tmp_path / "data"), str(tmp_path / "subset.h5")
    assert run(["encode-dataset", data, "--subset", "validation", "--out", out, "-q"]) == 0
    capfd.readouterr()
    for given in ([], ["--real", data, "--real-subset", "validation"]):
        assert run(["eval", "--metric", "psnr", "--fake", out, *given, "--json", "-q"]) == 0
        report = json.loads(capfd.readouterr().out)
        assert report["sources"][0]["path"] == f"{data}/validation" and report["results"][0]["num_fake"] == 3
    assert run(["eval", "--metric", "psnr", "--fake", out, "--real", data, "--real-subset", "train"]) == 2
    assert "no subset or folder 'train'" in capfd.readouterr().err


def test_info_tells_and_verifies(inside, capfd):
    assert run(["info", "codes.h5", "--verify", "--json"]) == 0
    described = json.loads(capfd.readouterr().out)
    assert described["broken"] == [] and described["facts"]["images"] == NUM_IMAGES - 1
    damaged = inside / "damaged.h5"
    damaged.write_bytes((inside / "codes.h5").read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["codes"][7, 0, 0, 0] ^= 1
    try:
        assert run(["info", str(damaged), "--verify"]) == 3
        captured = capfd.readouterr()
        assert "broken: shard 00000" in captured.out and "error:" in captured.err
    finally:
        damaged.unlink()
