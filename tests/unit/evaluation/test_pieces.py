"""MS-SSIM, saved statistics, the cache, nearest neighbours, and reports side by side."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import standin_weights
import torch
from PIL import Image
from pytorch_msssim import ms_ssim as their_ms_ssim
from skimage import data

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.evaluation import cache
from brics_cli.evaluation.comparing import compare, load_report, plot_against_steps
from brics_cli.evaluation.family import Context, Needs
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.measuring import Extraction, Gathering
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.neighbours import Neighbours
from brics_cli.evaluation.reconstruction import MS_SSIM_SIDE, ms_ssim
from brics_cli.evaluation.registry import NEIGHBOUR_NETWORKS, Settings
from brics_cli.evaluation.rows import ArrayRows
from brics_cli.evaluation.statistics import read_statistics
from brics_cli.networks.features import FeatureNetwork
from brics_cli.networks.perceptual import OTHER_FEATURES, load_lpips_features
from brics_cli.runtime.reporting import SilentReporter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_ms_ssim_equals_pytorch_msssims() -> None:
    photograph = data.astronaut()
    images = np.stack([photograph[top : top + 176, 150:342] for top in (0, 200)])
    noise = np.random.default_rng(0).normal(0, [[[[8]]], [[[50]]]], images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(side).permute(0, 3, 1, 2).double() for side in (images, noisy))
    expected = their_ms_ssim(x, y, data_range=255, size_average=False).numpy()
    ours = ms_ssim(images, noisy)
    assert ours[0] > ours[1] > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-5)  # its window is float32
    np.testing.assert_allclose(ms_ssim(images, images), 1)
    with pytest.raises(UsageError, match="at least 161 px, these are 192 x 160"):
        ms_ssim(images[:, : MS_SSIM_SIDE - 1], noisy[:, : MS_SSIM_SIDE - 1])


def moments(num: int, num_features: int = 8, *, seed: int = 0) -> tuple[FeatureMoments, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(num, num_features)).astype(np.float32)
    gathered = FeatureMoments(num_features)
    gathered.update(rows)
    return gathered, rows


def test_statistics_of_clean_fid(tmp_path: Path) -> None:
    real, rows = moments(50)
    fake, _ = moments(40, seed=1)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, mu=np.mean(rows, axis=0), sigma=np.cov(rows, rowvar=False))  # as clean-fid does
    found = read_statistics(path)
    assert found.gaussian.num is None
    assert frechet_distance(found.gaussian, fake) == pytest.approx(frechet_distance(real, fake), rel=1e-6)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"feats": np.zeros((3, 4))}, r"has no mu and no sigma \(it has feats\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"has mu \(3,\) and sigma \(4, 4\), not \(D,\) and \(D, D\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "statistics that are not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 2], [0, 1]])}, "is not symmetric, so it is no covariance"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], line: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArtefactError, match=line):
        read_statistics(tmp_path / "a.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(ArtefactError, match=r"a\.npz is not an \.npz of statistics \(no zip"):
        read_statistics(tmp_path / "a.npz")


@pytest.mark.parametrize("num", [5, 50])  # rows kept as they are, and folded into sums
def test_the_cache_gives_back_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    gathered, rows = moments(num)
    identity = {"collection": "abc", "network": "clip"}
    assert cache.load(identity, need_rows=False) is None
    cache.save(identity, layout="x", description="a", moments=gathered, rows=None, failures=[("key", "damaged")])
    found = cache.load(identity, need_rows=False)
    assert found is not None
    np.testing.assert_array_equal(found.moments.covariance, gathered.covariance)
    np.testing.assert_array_equal(found.moments.mean, gathered.mean)
    assert found.failures == [("key", "damaged")]
    assert cache.load(identity, need_rows=True) is None
    assert cache.load({**identity, "network": "dinov2"}, need_rows=False) is None
    cache.save(identity, layout="x", description="a", moments=gathered, rows=ArrayRows(rows), failures=[])
    found = cache.load(identity, need_rows=True)
    assert found is not None and found.rows is not None
    np.testing.assert_array_equal(found.rows.take(np.arange(num)), rows)
    (tmp_path / "cache" / cache.entry_name(identity) / "moments.npz").write_bytes(b"cut off")
    assert cache.load(identity, need_rows=False) is None


def test_pruning_takes_the_longest_unused_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cache"
    monkeypatch.setenv("BRICS_CACHE", str(root))
    (root / "somebody-elses").mkdir(parents=True)
    gathered, _ = moments(5)
    paths = []
    for number in range(3):
        paths.append(
            cache.save({"n": number}, layout="x", description=str(number), moments=gathered, rows=None, failures=[])
        )
        (paths[-1] / "entry.json").touch()
        os.utime(paths[-1] / "entry.json", (1000 + number, 1000 + number))
    assert [entry.description for entry in cache.entries()] == ["2", "1", "0"]
    size = cache.entries()[0].num_bytes
    assert [entry.path for entry in cache.prune(max_bytes=2 * size)] == [paths[0]]
    assert cache.prune(unused_s=1e12) == []
    assert len(cache.prune(unused_s=10)) == 2
    assert [path.name for path in root.iterdir()] == ["somebody-elses"]


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cache"
    monkeypatch.setenv("BRICS_CACHE", str(root))
    left, young = root / ".a.12345678.tmp", root / ".b.12345678.tmp"
    for path in (left, young):
        path.mkdir(parents=True)
        (path / "rows.npy").write_bytes(b"half")
    os.utime(left, (1000, 1000))
    cache.save({"n": 1}, layout="x", description="a", moments=moments(5)[0], rows=None, failures=[])
    assert not left.exists() and young.exists()


def test_other_features_that_an_error_offers_are_there() -> None:
    assert OTHER_FEATURES.rstrip(".").split("--neighbours-by ")[1] in NEIGHBOUR_NETWORKS


def test_lpips_features_give_lpips(tmp_path: Path) -> None:
    network = load_lpips_features(standin_weights.save_alexnet(tmp_path), net="alex")
    photograph = data.astronaut()
    a = np.stack([photograph[top : top + 48, 200:264] for top in (0, 100, 200)])
    b = np.stack([photograph[top : top + 48, 300:364] for top in (0, 100, 200)])
    expected = network.distance(a, b)  # the lpips package
    assert expected.min() > 1e-3
    network.num_remembered = 6  # as features
    np.testing.assert_allclose(network.distance(a, b), expected, rtol=1e-4)
    runs = []
    network._run = lambda inputs: runs.append(len(inputs))  # type: ignore[method-assign, assignment, func-returns-value]
    np.testing.assert_allclose(network.distance(b, a), expected, rtol=1e-4)  # all six are remembered
    assert runs == []


def test_nearest_neighbours_are_those_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    real, fake = (generator.normal(size=(num, 6)).astype(np.float32) for num in (40, 5))
    fake[2] = real[17]
    with ThreadPoolExecutor(1) as pool:
        settings = Settings(num_queries=4, num_neighbours=3)
        search = Neighbours(Context(settings, torch.device("cpu"), pool, SilentReporter()), None, {})
    images = [np.full((2, 2, 3), number, np.uint8) for number in range(40)]
    assert search.wants_fake_first
    search.add("fake", fake, [10, 11, 12, 13, 14], images[:5])
    assert not search.wants_fake_first
    for start in range(0, 40, 7):
        positions = list(range(start, min(start + 7, 40)))
        search.add("real", real[positions], positions, [images[position] for position in positions])
    expected = np.linalg.norm(fake[:4, None] - real[None], axis=2)
    distances, positions = search.found()
    assert (search.query_positions, search.num) == ([10, 11, 12, 13], 4)
    np.testing.assert_array_equal(positions, np.argsort(expected, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], rtol=1e-5, atol=1e-12)
    assert distances[2, 0] == 0
    assert set(search.images) == set(positions.flatten().tolist())
    assert all((search.images[at] == at).all() for at in search.images)


class CountingNetwork(FeatureNetwork):
    """The mean colour, NaN for pure red; counts the images it has run."""

    name, num_features, resize, key = "counting", 3, "none", "counting"

    def __init__(self) -> None:
        super().__init__("cpu")
        self.num_run = 0

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.num_run += len(batch)
        colours = batch.mean(dim=(2, 3))
        red = (colours == torch.tensor([255.0, 0, 0])).all(dim=1)
        return colours.masked_fill(red[:, None], float("nan"))


def test_each_image_goes_once_through_the_network_and_failed_ones_not_at_all() -> None:
    network = CountingNetwork()
    images = [np.full((4 + number % 2, 4, 3), 10 * number, np.uint8) for number in range(9)]
    gathering = Gathering(network, "fake", [], needs=[Needs(rows=True)])
    with ThreadPoolExecutor(2) as pool:
        context = Context(Settings(), torch.device("cpu"), pool, SilentReporter())
        extraction = Extraction([gathering], context, strict=True)
        assert extraction.wants("fake") and not extraction.wants("real")
        for start in range(0, 9, 2):
            batch: list[np.ndarray | None] = list(images[start : start + 2])
            if start == 4:
                batch[0] = None
            extraction.add("fake", batch, list(range(start, start + len(batch))))
        extraction.drain()
    assert network.num_run == 8
    assert gathering.rows is not None and gathering.moments is not None and gathering.moments.num == 8
    np.testing.assert_allclose(gathering.rows.take(np.arange(8))[:, 0], [0, 10, 20, 30, 50, 60, 70, 80])
    gathering.rows.close()


def test_features_that_are_not_finite_name_the_image() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    gathering = Gathering(CountingNetwork(), "fake", [f"key-{number}" for number in range(9)], needs=[Needs()])
    with pytest.raises(MachineError, match=r"not finite for 1 of 2 images, first fake key-8\. Check its weights"):
        gathering.add([red // 2, red], [7, 8], [red, red])


def report(path: Path, value: float, *, step: int | None, num: int = 100) -> Path:
    result = {
        "metric": "fid", "title": "FID", "value": value, "standard_error": 0.5, "definition": "d", "real": "/real",
        "fake": "/fake", "num_real": 100, "num_fake": num, "better": "lower", "unit": "", "comparable": True,
    }  # fmt: skip
    source = {"side": "fake", "path": "/fake", "model": {"kind": "diffusion", "path": "/run", "step": step}}
    path.write_text(json.dumps({"brics_report": 1, "results": [result], "sources": [source]}))
    return path


def cited(path: Path, *, real: str = "/real", real_sha256: str = "a", size: int = 64, weights: str = "w") -> Path:
    """A report that says what its reference and its weights were."""
    record = json.loads(report(path, 1.0, step=1).read_text())
    record["results"][0]["real"] = real
    record["sources"].append({"side": "real", "path": real, "sha256": real_sha256, "image_size": size})
    record["provenance"] = {
        "mode": "clean",
        "weights": [{"id": "inception", "sha256": weights}, {"id": "x", "sha256": path.name}],
    }
    path.write_text(json.dumps(record))
    return path


def test_reports_side_by_side(tmp_path: Path) -> None:
    paths = [report(tmp_path / f"{step}.json", 300 / step, step=step) for step in (10, 30, 20)]
    loaded = [load_report(path) for path in paths]
    (row,) = compare(loaded)
    assert (row.values, row.best, row.differences) == ([30, 10, 15], 1, [])
    assert plot_against_steps(loaded, "fid", path=tmp_path / "fid.png") == 3
    assert Image.open(tmp_path / "fid.png").width > 300
    other = load_report(report(tmp_path / "other.json", 1, step=None, num=50))
    (row,) = compare([*loaded, other])
    assert (row.best, row.differences) == (None, ["another number of fake images"])
    with pytest.raises(UsageError, match="1 of 2 reports have fid of a model whose training step is known"):
        plot_against_steps([loaded[0], other], "fid", path=tmp_path / "x.png")
    for changes, said in (
        ({"real_sha256": "b"}, "another reference"),
        ({"size": 256}, "the reference read in another way"),
        ({"weights": "c"}, "other weights"),
    ):
        (row,) = compare([load_report(cited(tmp_path / "1.json")), load_report(cited(tmp_path / "2.json", **changes))])
        assert (row.best, row.differences) == (None, [said])
    moved = load_report(cited(tmp_path / "2.json", real="/moved"))
    (row,) = compare([load_report(cited(tmp_path / "1.json")), moved])
    assert row.differences == []  # the same images elsewhere
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"damaged\.json is damaged \(TypeError\(\"'low' is no number\"\)\)"):
        load_report(report(tmp_path / "damaged.json", "low", step=1))  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match=r"step\.json is damaged"):
        load_report(report(tmp_path / "step.json", 1, step="many"))  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match=r"no\.json is not a report of brics eval\. Write one"):
        load_report(tmp_path / "no.json")


def test_writers_of_an_entry_keep_what_the_others_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some bring rows and some do not; readers find a whole entry at every moment."""
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    gathered, rows = moments(20)

    def save(number: int) -> None:
        for round_ in range(8):
            kept = ArrayRows(rows) if (number + round_) % 2 else None
            for identity in ({"n": "same"}, {"n": number}):
                cache.save(identity, layout="x", description="a", moments=gathered, rows=kept, failures=[])

    save(0)
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(save, number) for number in range(6)]
        while not all(each.done() for each in writing):
            found = cache.load({"n": "same"}, need_rows=True)
            assert found is not None and np.array_equal(found.moments.mean, gathered.mean)
        for each in writing:
            each.result()
    assert len(cache.entries()) == 7 and all(entry.has_rows for entry in cache.entries())
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".")]


def test_a_writer_that_was_killed_leaves_nothing_that_is_taken_for_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    gathered, _ = moments(5)
    kept = {"layout": "x", "description": "a", "moments": gathered, "rows": None, "failures": []}
    begun = cache.save({"n": 1}, **kept)
    (begun / "entry.json").unlink()  # it is written last
    assert cache.load({"n": 1}, need_rows=False) is None and cache.entries() == []
    os.utime(begun, (1000, 1000))
    cache.save({"n": 2}, **kept)
    assert not begun.exists() and cache.load({"n": 2}, need_rows=False) is not None
