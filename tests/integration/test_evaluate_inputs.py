"""`brics eval` beyond folders: saved statistics, a diffusion run, the cache, one pass, and awkward images."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import standin_weights
import torch
from commands import Finished, brics, error_line
from PIL import Image
from torch import nn

from brics_cli.autoencoder.autoencoder import save_autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.config import AutoencoderConfig, DiffusionConfig, DiTConfig, EncoderConfig, ResNetDecoderConfig
from brics_cli.diffusion.denoisers import build_denoiser, save_denoiser
from brics_cli.errors import ExitCode
from brics_cli.images import collection as collections
from brics_cli.images import pixels
from brics_cli.networks import features
from brics_cli.networks.weights import import_weights
from brics_cli.sampling.drawn import DrawSettings, draw_images
from brics_cli.workspace import Artefact, Parent, Workspace, write_provenance

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SETS = ("fid", "clip-fid", "kid", "is", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with stand-ins for Inception, CLIP and AlexNet."""
    root, downloads = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("downloads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICS_WEIGHTS", str(root))
        for name, path in (
            ("inception", standin_weights.save_random_inception(downloads)),
            ("clip-vit-b-32", standin_weights.save_clip(downloads)),
            ("alexnet", standin_weights.save_alexnet(downloads)),
        ):
            import_weights(path, allow_unverified=True, as_id=name)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """`real`, 20 photographs, and `fake`, 12 others."""
    root = tmp_path_factory.mktemp("folders")
    files = sorted(photographs.iterdir())
    for name, members in (("real", files[:20]), ("fake", files[20:32])):
        (root / name).mkdir()
        for path in members:
            shutil.copy(path, root / name)
    return root


@pytest.fixture
def evaluate(weights: Path, tmp_path: Path):
    """`brics eval` in a directory of its own, with the stand-ins and an empty cache."""

    def run(*words: object, check: int | None = 0) -> Finished:
        environment = {"BRICS_WEIGHTS": str(weights), "BRICS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
        return brics("eval", "--allow-unverified", *words, cwd=tmp_path, check=check, **environment)

    return run


def measured(finished: Finished) -> dict[str, dict]:
    return {result["metric"]: result for result in json.loads(finished.stdout)["results"]}


def flags(*metrics: str) -> list[str]:
    return [word for name in metrics for word in ("--metric", name)]


def test_one_pass_decodes_each_image_once_and_runs_each_network_once(
    evaluate, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All metrics of pairs, sets and neighbours at once; the second run takes the real side from the cache."""
    decoded: list[bytes] = []
    run: Counter[str] = Counter()
    decode, forward = pixels.decode_image, features.FeatureNetwork._run
    monkeypatch.setattr(pixels, "decode_image", lambda data: decoded.append(data) or decode(data))

    def counted(self: features.FeatureNetwork, inputs: np.ndarray) -> np.ndarray:
        run[self.name] += len(inputs)
        return forward(self, inputs)

    monkeypatch.setattr(features.FeatureNetwork, "_run", counted)
    both = tmp_path / "both"
    shutil.copytree(folders / "real", both)
    for path in sorted(both.iterdir())[:8]:
        path.write_bytes((sorted((folders / "fake").iterdir())[0]).read_bytes())
    words = ("--real", folders / "real", "--fake", both, "--json")
    first = evaluate(*flags(*SETS, "psnr", "lpips", "neighbours"), *words)
    assert len(decoded) == 40
    assert run == {"inception-2015-12-05": 40, "clip-vit-b-32": 40, "lpips-alex": 21}  # 21 different pictures
    results = measured(first)
    assert results["lpips"]["value"] > 0
    assert results["neighbours"]["details"]["neighbours"][12]["distances"][0] == 0  # its own copy
    assert (tmp_path / "neighbours.png").is_file()
    decoded.clear()
    run.clear()
    second = evaluate(*flags(*SETS), *words)
    assert len(decoded) == 20
    assert run == {"inception-2015-12-05": 20, "clip-vit-b-32": 20}
    assert "real: features of inception-clean, clip from the cache" in second.stderr
    for name in SETS:
        assert measured(second)[name]["value"] == results[name]["value"], name
    evaluate(*flags("fid"), *words, "--no-cache")
    assert len(decoded) == 20 + 40
    changed = tmp_path / "changed"
    shutil.copytree(folders / "real", changed)
    next(changed.iterdir()).unlink()
    other = evaluate(*flags("fid"), "--real", changed, "--fake", both, "--json")
    assert "from the cache" not in other.stderr


def test_statistics_stand_in_for_the_real_images(evaluate, folders: Path, tmp_path: Path, weights: Path) -> None:
    """clean-fid's form of .npz gives the FID of the images it was made of; what needs images is refused or left out."""
    from concurrent.futures import ThreadPoolExecutor

    from brics_cli.networks.clip import load_clip

    network = load_clip(weights / standin_weights.CLIP_FILE)
    pixels = [np.asarray(Image.open(path)) for path in sorted((folders / "real").iterdir())]
    with ThreadPoolExecutor(1) as pool:
        rows = network.features(pixels, pool=pool)
    path = tmp_path / "stats.npz"
    np.savez_compressed(path, mu=rows.mean(axis=0), sigma=np.cov(rows, rowvar=False))
    fake = ("--fake", folders / "fake")
    of_images = measured(evaluate(*flags("clip-fid"), "--real", folders / "real", *fake, "--json"))["clip-fid"]
    of_statistics = measured(evaluate(*flags("clip-fid"), "--real", path, *fake, "--json"))["clip-fid"]
    assert of_statistics["value"] == pytest.approx(of_images["value"], rel=1e-4)
    assert of_statistics["num_real"] is None
    assert of_statistics["not_comparable"] == "own weights, statistics of an unknown network"
    both = measured(evaluate(*flags("clip-fid"), "--real", path, "--fake", path, "--json"))["clip-fid"]
    assert (both["value"], both["num_fake"]) == (pytest.approx(0, abs=1e-6), None)
    refused = evaluate(*flags("clip-fid", "kid"), "--real", path, *fake, check=ExitCode.USAGE)
    assert error_line(refused) == (
        f"KID needs the real images themselves, and {path} holds a mean and a covariance alone. "
        "Give images with --real, or measure fid, clip-fid or fd-dinov2."
    )
    refused = evaluate(*flags("fid"), "--real", path, *fake, check=ExitCode.ARTEFACT)
    assert error_line(refused).startswith(f"{path} holds statistics of 512 features, and inception-clean has 2,048.")
    said = evaluate("--real", path, *fake)  # the usual metrics: what does not fit is left out, and said
    assert "left out: fid:" in said.stderr and "512 features, and inception-clean" in said.stderr
    assert f"nothing in {path} says which network made it" in said.stderr
    assert "--statistics-by clip." in said.stderr
    assert "statistics of an unknown network" in said.stdout and "it is unknown which network made" in said.stdout
    stated = evaluate(*flags("clip-fid"), "--real", path, *fake, "--statistics-by", "clip", "--json")
    assert measured(stated)["clip-fid"]["not_comparable"] == "own weights" and "nothing in" not in stated.stderr
    (source, _) = json.loads(stated.stdout)["sources"]
    assert source["description"] == "saved statistics of 512 features, clip (as --statistics-by says)"

    refused = evaluate(*flags("psnr"), "--real", path, *fake, check=ExitCode.USAGE)
    assert "PSNR needs pairs of images, and saved statistics hold none" in refused.stderr


def gaussian(num_features: int = 2048) -> dict[str, np.ndarray]:
    return {"mu": np.full(num_features, 0.4), "sigma": np.eye(num_features)}


def test_statistics_of_another_network_are_refused_and_name_both(evaluate, folders: Path, tmp_path: Path) -> None:
    adm = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    files = {
        "adm.npz": {**gaussian(), **adm},
        "cifar10-32x32.npz": gaussian(),
        "ffhq_legacy_tensorflow_trainval70k_256.npz": gaussian(),
        "ffhq_legacy_pytorch_trainval70k_256.npz": gaussian(),
    }
    for name, arrays in files.items():
        np.savez(tmp_path / name, **arrays)
        network = "inception-legacy-pytorch" if "pytorch" in name else "inception-legacy-tensorflow"
        for sides in (("--real", name, "--fake", folders / "fake"), ("--fake", name, "--real", folders / "real")):
            line = error_line(evaluate(*flags("fid"), *sides, check=ExitCode.ARTEFACT))
            assert f"{name} holds statistics of {network}" in line and "measured is inception-clean" in line
            assert f"Use --mode {network.removeprefix('inception-')}" in line
        if "pytorch" not in name:
            sides = ("--real", name, "--fake", folders / "fake", "--mode", "legacy-tensorflow")
            assert measured(evaluate(*flags("fid"), *sides, "--json"))["fid"]["not_comparable"] == "own weights"
    fake = ("--fake", folders / "fake")
    line = error_line(
        evaluate(*flags("fid"), "--real", "adm.npz", *fake, "--statistics-by", "inception-clean", check=2)
    )
    assert "adm.npz holds statistics of inception-legacy-tensorflow (its arrays mu_s and sigma_s" in line
    line = error_line(evaluate(*flags("fid"), "--real", folders / "real", *fake, "--statistics-by", "clip", check=2))
    assert "goes with saved statistics, an .npz, and there are none" in line
    line = error_line(evaluate(*flags("fid"), "--real", "adm.npz", *fake, "--statistics-by", "clib", check=2))
    assert "no network 'clib'; did you mean 'clip'" in line
    for ending in ("npz", "pt"):  # a folder of images, however it is called
        shutil.copytree(folders / "fake", tmp_path / f"folder.{ending}")
    said = evaluate(*flags("fid"), "--real", "folder.npz", "--fake", "folder.pt", "--json")
    assert measured(said)["fid"]["num_real"] == 12
    (tmp_path / "edm2.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    line = error_line(evaluate(*flags("fid"), "--real", "edm2.pkl", *fake, check=3))
    assert "edm2.pkl is a pickle" in line and not (tmp_path / "owned").exists()


def test_statistics_of_clip_and_dinov2_are_told_apart(
    evaluate, folders: Path, tmp_path: Path, weights: Path, request: pytest.FixtureRequest
) -> None:
    """With the right maker a figure; with another one exit 3, which names both; with an unknown one it is marked."""
    standin_weights.save_dinov2(weights, width=1024, depth=1)
    request.addfinalizer((weights / "dinov2_vitl14_pretrain.pth").unlink)
    clip, dino = "ffhq_clean_clip_vit_b_32_trainval70k_256.npz", "dinov2.npz"
    np.savez(tmp_path / clip, **gaussian(512))
    np.savez(tmp_path / "clip.npz", **gaussian(512))
    np.savez(tmp_path / dino, **gaussian(1024))
    fake = ("--fake", folders / "fake")
    by_dino = ("--statistics-by", "dinov2")
    for metric, real, by, obstacle in (
        ("clip-fid", clip, (), "own weights"),
        ("clip-fid", "clip.npz", ("--statistics-by", "clip"), "own weights"),
        ("clip-fid", "clip.npz", (), "own weights, statistics of an unknown network"),
        ("fd-dinov2", dino, by_dino, "own weights"),
        ("fd-dinov2", dino, (), "own weights, statistics of an unknown network"),
    ):
        result = measured(evaluate(*flags(metric), "--real", real, *fake, *by, "--json"))[metric]
        assert (result["comparable"], result["not_comparable"]) == (False, obstacle)
        assert result["value"] > 0 and (result["num_real"], result["num_fake"]) == (None, 12)
    for metric, real, by, line in (
        ("fd-dinov2", clip, (), f"{clip} holds statistics of clip (by its name, which is clean-fid's), and what is "
         "measured is dinov2. Use --metric clip-fid."),
        ("clip-fid", dino, by_dino, "dinov2.npz holds statistics of dinov2 (as --statistics-by says), and what is "
         "measured is clip. Use --metric fd-dinov2."),
        ("fid", clip, (), "holds statistics of clip (by its name, which is clean-fid's), and what is measured is "
         "inception-clean"),
        ("fd-dinov2", "clip.npz", (), "clip.npz holds statistics of 512 features, and dinov2 has 1,024."),
        ("clip-fid", dino, (), "dinov2.npz holds statistics of 1,024 features, and clip has 512."),
    ):  # fmt: skip
        for sides in (("--real", real, *fake), ("--fake", real, "--real", folders / "real")):
            assert line in error_line(evaluate(*flags(metric), *sides, *by, check=ExitCode.ARTEFACT))


def test_a_reference_batch_of_adm_is_images_unless_its_statistics_are_asked_for(
    evaluate, folders: Path, tmp_path: Path
) -> None:
    pixels = np.stack(
        [np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in (folders / "real").iterdir()]
    )
    np.savez(tmp_path / "ref.npz", arr_0=pixels, mu_s=np.zeros(3), sigma_s=np.eye(3), **gaussian())
    sides = ("--real", "ref.npz", "--fake", folders / "fake", "--mode", "legacy-tensorflow")
    said = evaluate(*flags("fid"), *sides, "--json")
    assert "ref.npz holds images and statistics, and its images are measured" in said.stderr
    assert measured(said)["fid"]["num_real"] == 20
    said = evaluate(*flags("fid"), *sides, "--statistics-by", "inception-legacy-tensorflow", "--json")
    assert measured(said)["fid"]["num_real"] is None


def test_sides_of_other_sizes_are_said(evaluate, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for path in (folders / "fake").iterdir():
        Image.open(path).resize((32, 32)).save(tmp_path / "small" / path.name)
    said = evaluate(*flags("fid"), "--real", folders / "real", "--fake", "small", "--out", "a.json")
    assert re.search(r"the real images are of \d+ px, the fake ones of 32", said.stderr)
    assert json.loads((tmp_path / "a.json").read_text())["sources"][1]["image_size"] == 32
    said = evaluate(*flags("fid"), "--real", folders / "real", "--fake", folders / "fake")
    assert "the real images are of" not in said.stderr
    np.savez(tmp_path / "x_clean_train_64.npz", **gaussian())
    said = evaluate(*flags("fid"), "--real", "x_clean_train_64.npz", "--fake", "small")
    assert "the real images are of 64 px, the fake ones of 32" in said.stderr


def test_rows_are_kept_only_where_a_metric_needs_them(evaluate, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRows:
        def __init__(self, num_features: int) -> None:
            raise OSError(errno.ENOSPC, "full", f"rows of {num_features} features")

    monkeypatch.setattr("brics_cli.evaluation.measuring.SpooledRows", NoRows)
    sides = ("--real", folders / "fake", "--fake", folders / "real")  # 20 images: enough for an error bar
    found = measured(evaluate(*flags("clip-fid"), *sides, "--json"))["clip-fid"]
    assert found["standard_error"] > 0 and "jackknife over 10 groups" in found["error_kind"]
    refused = evaluate(*flags("kid"), *sides, check=ExitCode.MACHINE)
    assert "no space left on the device: rows of 2048 features" in error_line(refused)


def test_images_are_drawn_on_the_fly_as_brics_sample_writes_them(
    evaluate, folders: Path, tmp_path: Path, weights: Path
) -> None:
    config = AutoencoderConfig(
        image_size=16,
        code_channels=4,
        encoder=EncoderConfig(widths=(8, 8, 8), num_blocks=1),
        decoder=ResNetDecoderConfig(widths=(8, 8, 8), num_blocks=1),
    )
    ae_run, run = tmp_path / "runs/autoencoder/a", tmp_path / "runs/diffusion/d"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = build_autoencoder(config)
        denoiser = build_denoiser(
            DiTConfig(dim=16, depth=1, num_heads=2),
            DiffusionConfig(),
            code_shape=config.code_shape,
            num_classes=0,
            store_mean=[0.5] * 4,
            store_std=[0.2] * 4,
        )
        for parameter in (*autoencoder.parameters(), *denoiser.parameters()):
            nn.init.normal_(parameter, std=0.3)
    ae_run.mkdir(parents=True)
    run.mkdir(parents=True)
    ae_sha = save_autoencoder(
        ae_run / "model", config=config, state=autoencoder.state_dict(), details={"transform": "crop-bicubic"}
    )
    parent = Parent("collection", str(folders / "real"), collections.shard_layout("", 0, []))
    write_provenance(
        Artefact("autoencoder", ae_run, "2026-01-01T00:00:00+00:00", parents=(parent,), details={"sha256": ae_sha})
    )
    lineage = {"autoencoder_sha256": ae_sha, "store_sha256": "c" * 64, "store_path": str(tmp_path / "gone.h5")}
    sha = save_denoiser(run / "model", denoiser=denoiser, state=denoiser.state_dict(), lineage=lineage)
    parents = (Parent("autoencoder", str(ae_run), ae_sha),)
    details = {"sha256": sha, "recipe": "tiny", "step": 300}
    write_provenance(Artefact("diffusion", run, "2026-01-02T00:00:00+00:00", parents=parents, details=details))
    drawn = ("--n", 10, "--steps", 3, "--batch-size", 8, "--out", "a.json", "--json")
    finished = evaluate(*flags("fid", "kid"), "--fake", run, *drawn)
    assert f"--real not given: using {folders / 'real'}" in finished.stderr
    common = ("--workspace", tmp_path, "--steps", 3, "--batch-size", 8, "--device", "cpu")
    brics("sample", *common, "--n", 10, "--out", "pngs", "--format", "png", cwd=tmp_path, check=0)
    words = ("--real", folders / "real", "--fake", tmp_path / "pngs", "--batch-size", 8, "--out", "b.json", "--json")
    written = evaluate(*flags("fid", "kid"), *words)
    for name in ("fid", "kid"):
        assert measured(finished)[name]["value"] == pytest.approx(measured(written)[name]["value"], rel=1e-9)
        assert measured(finished)[name]["num_fake"] == 10
    sources = json.loads(finished.stdout)["sources"]
    assert sources[1]["model"] == {"kind": "diffusion", "path": str(run), "step": 300}
    side_by_side = brics("eval", "compare", "a.json", "b.json", cwd=tmp_path, check=0)
    assert "FID" in side_by_side.stdout and "KID" in side_by_side.stdout
    brics("eval", "compare", "a.json", "b.json", "--plot", "fid.png", cwd=tmp_path, check=0)
    assert (tmp_path / "fid.png").is_file()
    refused = evaluate(*flags("psnr"), "--fake", run, check=ExitCode.ARTEFACT)
    assert "what is drawn from it has no originals to be paired with" in error_line(refused)
    settings = DrawSettings(num=10, steps=3)
    stream = draw_images(run, settings, workspace=Workspace(tmp_path), device=torch.device("cpu"), batch_size=4)
    whole = [image for batch in stream.read() for image in batch]
    order = [9, 2, 3, 0, 8]  # partners and the unpaired behind them are in no order
    for batch, positions in zip(stream.read(order), (order[:4], order[4:]), strict=True):
        np.testing.assert_array_equal(batch, [whole[position] for position in positions])


def write(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


def noise(num: int, side: int = 24, *, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(num)]


def test_one_image(evaluate, tmp_path: Path) -> None:
    one, many = write(tmp_path / "one", noise(1)), write(tmp_path / "many", noise(6, seed=1))
    for metric, line in (
        ("fid", f"FID needs at least 2 images on each side, {one} gives 1"),
        ("kid", f"KID needs at least 2 images on each side, {one} gives 1"),
        ("recall", f"Recall needs at least 4 images on each side, {one} gives 1"),
    ):
        refused = evaluate(*flags(metric), "--real", many, "--fake", one, check=ExitCode.USAGE)
        assert error_line(refused) == line
    result = measured(evaluate(*flags("is"), "--real", many, "--fake", one, "--json"))["is"]
    assert result["value"] == pytest.approx(1) and result["standard_error"] is None
    left = evaluate("--metric", "all", "--real", many, "--fake", one, "--json")
    assert {"psnr", "ssim", "is"} <= measured(left).keys()
    report = json.loads(left.stdout)
    assert report["left_out"]["fid"] == f"FID needs at least 2 images on each side, {one} gives 1"
    assert report["left_out"]["usage"] == f"Usage is of a key-code store, and {one} is none"
    assert report["left_out"]["ms-ssim"] == "MS-SSIM needs images of at least 161 px, these are 24 x 24"
    assert report["left_out"]["fd-dinov2"] == "needs dinov2_vitl14_pretrain.pth (1217.6 MB), which is not there"


def test_identical_and_constant_sets_have_a_figure_and_a_word(evaluate, folders: Path, tmp_path: Path) -> None:
    same = measured(evaluate(*flags(*SETS), "--real", folders / "real", "--fake", folders / "real", "--json"))
    assert same["fid"]["value"] < 1e-9 and same["clip-fid"]["value"] < 1e-9
    assert [same[name]["value"] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert "below zero, as an unbiased estimate of zero may be" in same["kid"]["note"]
    assert "20 images are fewer than the 2,048 features: compare at equal N only" in same["fid"]["note"]
    grey = write(tmp_path / "grey", [np.full((24, 24, 3), 128, np.uint8)] * 5)
    finished = evaluate(*flags(*SETS, "psnr"), "--real", grey, "--fake", grey, "--json")
    constant = measured(finished)
    assert constant["fid"]["value"] == 0
    assert "all real images have the same features: their covariance is zero" in constant["fid"]["note"]
    assert (constant["precision"]["value"], constant["coverage"]["value"]) == (1, 0)
    assert constant["psnr"]["value"] is None and "identical" in constant["psnr"]["note"]
    assert re.search(r"\b(NaN|nan|Infinity)\b", finished.stdout) is None


def test_mixed_sizes_and_greyscale_are_resized_as_clean_fid_would(
    evaluate, folders: Path, tmp_path: Path, weights: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, path in enumerate(sorted((folders / "fake").iterdir())):
        image = Image.open(path).resize((40 + 7 * number, 64))
        (image.convert("L") if number % 3 == 0 else image).save(mixed / path.name)
    from cleanfid import fid as cleanfid
    from oracles import clean_fid

    from brics_cli.networks.inception import load_inception

    model = load_inception(weights / standin_weights.INCEPTION_FILE).network
    theirs = [
        cleanfid.get_folder_features(
            str(folder), model, num_workers=0, batch_size=8, device=torch.device("cpu"), verbose=False
        )
        for folder in (folders / "real", mixed)
    ]
    basis = np.linalg.qr(np.concatenate(theirs).astype(np.float64).T).Q  # all distances stay, sqrtm takes milliseconds
    expected = clean_fid(*(rows @ basis for rows in theirs))
    result = measured(evaluate(*flags("fid"), "--real", folders / "real", "--fake", mixed, "--json"))["fid"]
    assert result["value"] == pytest.approx(expected, rel=1e-4)
    refused = evaluate(*flags("psnr"), "--real", folders / "fake", "--fake", mixed, check=ExitCode.USAGE)
    assert error_line(refused).startswith("the images differ in size: real 64 x 64, fake 40 x 64")


def test_corrupt_images_are_counted_and_listed_from_the_cache_too(evaluate, folders: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    shutil.copytree(folders / "real", real)
    bad = sorted(real.iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:200])
    for _ in range(2):  # the second run does not read the real side at all
        finished = evaluate(
            *flags("fid"), "--real", real, "--fake", folders / "fake", "--json", check=ExitCode.SOME_FAILED
        )
        report = json.loads(finished.stdout)
        assert [(failure["side"], failure["key"]) for failure in report["failures"]] == [("real", bad.stem)]
        assert report["results"][0]["num_real"] == 19
        assert "1 image failed, left out of every figure, namely:" in finished.stderr
    assert "from the cache" in finished.stderr
    for path in real.iterdir():
        path.write_text("no image")
    refused = evaluate(*flags("fid"), "--real", real, "--fake", folders / "fake", check=ExitCode.ARTEFACT)
    assert error_line(refused).startswith("FID: not one image could be read (first ")


def test_features_that_are_not_finite_end_with_the_image_named(
    evaluate, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = features.FeatureNetwork._run
    monkeypatch.setattr(
        features.FeatureNetwork, "_run", lambda self, inputs: forward(self, inputs) * np.float32(np.nan)
    )
    refused = evaluate(
        *flags("fid"), "--real", folders / "real", "--fake", folders / "fake", "--no-cache", check=ExitCode.MACHINE
    )
    first = sorted((folders / "real").iterdir())[0].stem
    assert error_line(refused) == (
        f"inception-2015-12-05 gave features that are not finite for 20 of 20 images, first real {first}. "
        "Check its weights: brics weights verify"
    )
