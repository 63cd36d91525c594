"""`brics eval` on a real workspace: a small untrained autoencoder, its store, its files, and stand-in weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import standin_weights
import torch
from cleanfid import fid as cleanfid
from oracles import clean_fid
from PIL import Image

from brics_cli.autoencoder.autoencoder import load_autoencoder, save_autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.cli.app import run
from brics_cli.codes import KeyCodeStore
from brics_cli.config import AutoencoderConfig, EncoderConfig, ResNetDecoderConfig
from brics_cli.errors import ArtefactError, ExitCode, UsageError
from brics_cli.evaluation.images import open_images
from brics_cli.evaluation.reconstruction import psnr, ssim
from brics_cli.evaluation.registry import GROUPS
from brics_cli.images import open_collection
from brics_cli.jobs.evaluate import evaluate
from brics_cli.networks.inception import load_inception
from brics_cli.networks.weights import import_weights
from brics_cli.workspace import Artefact, Parent, Workspace, read_provenance, write_provenance

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

NUM_IMAGES = 20
SIDE = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A workspace with photographs, an autoencoder trained on them as far as lineage goes, and `codes.h5`."""
    root = tmp_path_factory.mktemp("workspace")
    for path in sorted(photographs.iterdir())[:NUM_IMAGES]:
        (root / "photos" / path.stem[:1]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "photos" / path.stem[:1])
    collection = open_collection(root / "photos")
    config = AutoencoderConfig(
        image_size=SIDE,
        code_channels=4,
        encoder=EncoderConfig(widths=(8, 8, 8), num_blocks=1),
        decoder=ResNetDecoderConfig(widths=(8, 8, 8), num_blocks=1),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = build_autoencoder(config)
    run_path = root / "runs" / "autoencoder" / "a"
    run_path.mkdir(parents=True)
    sha256 = save_autoencoder(
        run_path / "model", config=config, state=autoencoder.state_dict(), details={"transform": "crop-bicubic"}
    )
    parent = Parent("collection", collection.path, collection.fingerprint)
    write_provenance(
        Artefact("autoencoder", run_path, "2026-01-01T00:00:00+00:00", True, (parent,), {"sha256": sha256})
    )
    assert brics("encode-dataset", root / "photos", "--out", root / "codes.h5", "--workspace", root) == 0
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to write to, with no weights anywhere."""
    for name in ("BRICS_WEIGHTS", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = tmp_path / "w"
    shutil.copytree(made, root, copy_function=shutil.copy)
    return root


@pytest.fixture
def samples(workspace: Path) -> Path:
    """Samples as `brics sample` leaves them, as far as lineage goes: six flat colours of the autoencoder's size."""
    folder = workspace / "samples"
    folder.mkdir()
    for seed in range(6):
        Image.new("RGB", (SIDE, SIDE), (40 * seed, 20, 100)).save(folder / f"{seed:08d}.png")
    autoencoder = read_provenance(workspace / "runs" / "autoencoder" / "a")
    parent = Parent("autoencoder", str(autoencoder.path), autoencoder.details["sha256"])
    write_provenance(Artefact("samples", folder, "2026-01-02T00:00:00+00:00", True, (parent,)))
    return folder


def brics(*words: object) -> int:
    return run([str(word) for word in words])


def test_without_a_word_it_measures_the_newest_store(
    workspace: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brics("eval", "--workspace", workspace, "--json") == ExitCode.DONE
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [result["metric"] for result in report["results"]] == ["psnr", "ssim"]
    assert report["left_out"].keys() == {"lpips", "lpips-vgg", "fid", "clip-fid"}
    assert "left out: clip-fid: needs ViT-B-32.pt (354.0 MB), which is not there" in err
    assert f"--fake not given: using {workspace / 'codes.h5'}" in err
    assert f"--real not given: using {workspace / 'photos'}, the collection that its key codes were encoded from" in err
    assert report["num_pairs"] == NUM_IMAGES
    real = open_images(made / "photos", workspace=Workspace(workspace), transform="crop-bicubic", size=SIDE)
    fake = open_images(workspace / "codes.h5", workspace=Workspace(workspace))
    assert real.keys == fake.keys
    pixels = [np.stack([image for batch in stream.read() for image in batch]) for stream in (real, fake)]
    assert report["results"][0]["value"] == pytest.approx(psnr(*pixels).mean(), abs=1e-3)
    expected_error = ssim(*pixels).std(ddof=1) / np.sqrt(NUM_IMAGES)
    assert report["results"][1]["standard_error"] == pytest.approx(expected_error, rel=1e-2)


def test_a_store_scores_as_the_files_decoded_from_it(workspace: Path) -> None:
    figures = [evaluate(["psnr"], workspace=Workspace(workspace)).value("psnr")]
    for out in ("folder", "one.tar"):
        assert brics("decode", workspace / "codes.h5", "--out", workspace / out, "--workspace", workspace) == 0
        report = evaluate(["psnr"], workspace=Workspace(workspace), fake=workspace / out)
        assert report.num_pairs == NUM_IMAGES
        figures.append(report.value("psnr"))
    assert figures[1] == figures[2]
    assert figures[0] == pytest.approx(figures[1], abs=0.01)  # another batch size may round a pixel differently


def test_samples_are_measured_against_the_training_collection(
    workspace: Path, made: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FID and CLIP-FID of the newest samples, equal to clean-fid's own pass over the same pixels and stand-in."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    inception = standin_weights.save_random_inception(downloads)
    import_weights(inception, allow_unverified=True, as_id="inception")
    import_weights(standin_weights.save_clip(downloads), allow_unverified=True, as_id="clip-vit-b-32")
    assert brics("eval", "--workspace", workspace, "--metric", "fid", "--json") == ExitCode.ARTEFACT
    assert "is not the published file" in capsys.readouterr().err
    flags = ("--metric", "fid", "--metric", "clip-fid", "--allow-unverified", "--json")
    assert brics("eval", "--workspace", workspace, *flags) == ExitCode.DONE
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert f"--fake not given: using {samples}" in err
    assert f"{workspace / 'photos'}, the collection that its autoencoder was trained on" in err
    assert report["provenance"]["comparable"] is False
    assert [weights["verified"] for weights in report["provenance"]["weights"]] == [False, False]
    assert (report["results"][0]["num_real"], report["results"][0]["num_fake"]) == (NUM_IMAGES, 6)

    real = open_images(made / "photos", workspace=Workspace(workspace), transform="crop-bicubic", size=SIDE)
    files = []
    for key, image in zip(real.keys, (image for batch in real.read() for image in batch), strict=True):
        files.append(str(tmp_path / f"{key.replace('/', '-')}.png"))
        Image.fromarray(image).save(files[-1])
    network = load_inception(inception).network
    theirs = [
        cleanfid.get_files_features(
            [str(name) for name in names], network, num_workers=0, device=torch.device("cpu"), verbose=False
        )
        for names in (files, sorted(samples.glob("*.png")))
    ]
    # In a basis of the 26 rows all distances stay, and clean-fid's square root takes milliseconds and not 28 s.
    basis = np.linalg.qr(np.concatenate(theirs).astype(np.float64).T).Q  # (2048, 26)
    expected = clean_fid(*(rows @ basis for rows in theirs))
    assert expected > 0.001
    assert report["results"][0]["value"] == pytest.approx(expected, rel=1e-4)


def test_without_metrics_what_has_weights_and_inputs_is_measured(workspace: Path, samples: Path) -> None:
    inception = standin_weights.save_colour_inception(workspace)
    import_weights(inception, allow_unverified=True, as_id="inception")
    report = evaluate(workspace=Workspace(workspace), allow_unverified=True)
    assert [(result.metric, Path(result.fake).name) for result in report.results] == [
        ("psnr", "codes.h5"),
        ("ssim", "codes.h5"),
        ("fid", "samples"),
    ]
    shutil.rmtree(samples)
    report = evaluate(workspace=Workspace(workspace), allow_unverified=True)
    assert [result.metric for result in report.results] == ["psnr", "ssim"]
    assert report.left_out["fid"].startswith("no samples in the workspace")


def test_one_reading_serves_pairs_and_sets_with_the_unpaired_in_the_sets(workspace: Path) -> None:
    inception = standin_weights.save_colour_inception(workspace)
    import_weights(inception, allow_unverified=True, as_id="inception")
    real, fake = workspace / "real", workspace / "fake"
    generator = np.random.default_rng(0)
    for folder, names in ((real, "abcdefg"), (fake, "cdefghij")):
        folder.mkdir()
        for name in names:
            Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    report = evaluate(
        ["psnr", "fid"], real=real, fake=fake, workspace=Workspace(workspace), allow_unverified=True, batch_size=3
    )
    assert [(result.num_real, result.num_fake) for result in report.results] == [(5, 5), (7, 8)]
    assert (report.unmatched_real, report.unmatched_fake) == (["a", "b"], ["h", "i", "j"])
    alone = evaluate(["fid"], real=real, fake=fake, workspace=Workspace(workspace), allow_unverified=True)
    assert report.value("fid") == pytest.approx(alone.value("fid"), rel=1e-9)
    limited = evaluate(["psnr"], real=real, fake=fake, workspace=Workspace(workspace), limit=2, batch_size=3)
    assert limited.num_pairs == 2


def test_failed_images_are_counted_and_listed_and_end_with_5(
    workspace: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = workspace / "photos"
    first, second = sorted(photos.rglob("*.png"))[:2]
    first.write_text("not an image")
    second.unlink()
    out = workspace / "report.json"
    words = ("eval", "--metric", "psnr", "--workspace", workspace, "--real", photos, "--out", out)
    assert brics(*words) == ExitCode.SOME_FAILED
    err = capsys.readouterr().err
    assert f"1 image failed, left out of every figure, listed in {out}" in err
    assert "fake: 1 image without a partner of the same key" in err
    report = json.loads(out.read_text())
    assert [failure["key"] for failure in report["failures"]] == [f"{first.parent.name}/{first.stem}"]
    assert report["results"][0]["num_real"] == NUM_IMAGES - 2
    provenance = read_provenance(out)
    assert provenance.kind == "report"
    assert {parent.kind for parent in provenance.parents} == {"collection", "store"}
    assert brics(*words) == ExitCode.WOULD_OVERWRITE
    assert brics(*words, "--overwrite") == ExitCode.SOME_FAILED


def test_identical_images_are_infinite_and_explained(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = workspace / "photos"
    words = ("eval", "--metric", "psnr", "--workspace", workspace, "--real", photos, "--fake", photos)
    assert brics(*words) == ExitCode.DONE
    assert "∞" in (out := capsys.readouterr().out)
    assert f"PSNR: {NUM_IMAGES} pairs are identical" in out
    assert brics(*words, "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["results"][0]["value"] is None


def test_what_cannot_be_compared_is_refused(workspace: Path, samples: Path) -> None:
    space = Workspace(workspace)
    with pytest.raises(UsageError, match=r"no key of .* matches one of"):
        evaluate(["psnr"], real=workspace / "photos", fake=samples, workspace=space)
    with pytest.raises(ArtefactError, match="samples, which have no originals"):
        evaluate(["psnr"], fake=samples, workspace=space)
    with pytest.raises(UsageError, match="no such file or folder: nowhere"):
        evaluate(["psnr"], fake="nowhere", workspace=space)
    foreign = [workspace / "x", workspace / "y"]
    for side, folder in zip((16, 24), foreign, strict=True):
        folder.mkdir()
        Image.new("RGB", (side, side)).save(folder / "a.png")
    with pytest.raises(ArtefactError, match=r"does not say what it was made from\. Give --real PATH"):
        evaluate(["psnr"], fake=foreign[0], workspace=space)
    with pytest.raises(UsageError, match="differ in size: real 16 x 16, fake 24 x 24"):
        evaluate(["psnr"], real=foreign[0], fake=foreign[1], workspace=space)
    with pytest.raises(ArtefactError, match="no key-code store in the workspace"):
        evaluate(["psnr"], workspace=Workspace(workspace / "photos"))


def test_a_collection_that_went_away_is_named(workspace: Path, made: Path, tmp_path: Path) -> None:
    """The store remembers where its images were; when they are gone, that is what the error says."""
    moved, other = made.with_name("moved"), workspace / "away"
    (made / "photos").rename(moved)
    (workspace / "photos").rename(other)
    try:
        with pytest.raises(ArtefactError, match=r"photos, the collection .*, is not there any more\. Give --real"):
            evaluate(["psnr"], workspace=Workspace(workspace))
        assert evaluate(["psnr"], real=moved, workspace=Workspace(workspace)).num_pairs == NUM_IMAGES
    finally:
        moved.rename(made / "photos")


def test_usage_of_a_store_is_what_the_bottlenecks_counter_finds(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brics("eval", "--workspace", workspace, "--metric", "usage", "--json") == ExitCode.DONE
    (result,) = json.loads(capsys.readouterr().out)["results"]
    store = KeyCodeStore(workspace / "codes.h5")
    counter = load_autoencoder(workspace / "runs" / "autoencoder" / "a").bottleneck.usage_counter()
    counter.add(torch.from_numpy(store.batch(range(NUM_IMAGES))))
    assert 0 < result["value"] < 1
    assert result["value"] == counter.result()["usage"]
    assert result["details"] == counter.result()
    assert (result["num_real"], result["num_fake"]) == (None, NUM_IMAGES)


def test_fd_random_needs_no_weights_and_takes_any_two_sources(
    workspace: Path, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def distance(real: Path, fake: Path) -> float:
        arguments = ("--real", real, "--fake", fake, "--workspace", workspace, "--json")
        assert brics("eval", "--metric", "fd-random", *arguments) == 0
        report = json.loads(capsys.readouterr().out)
        (result,) = report["results"]
        assert result["definition"].startswith("brics only, at equal N")
        assert not result["comparable"] and not report["provenance"]["comparable"], "with nothing published"
        assert result["num_real"] == NUM_IMAGES
        return float(result["value"])

    photos, codes = workspace / "photos", workspace / "codes.h5"
    capsys.readouterr()
    assert distance(photos, photos) < 1e-6
    of_store = distance(photos, codes)
    assert of_store > 1, "an untrained autoencoder's images look like photographs"
    assert distance(codes, photos) == pytest.approx(of_store, rel=1e-6)
    assert distance(codes, samples) > 0


def test_rfid_takes_the_reconstructions_and_fid_the_samples(workspace: Path, samples: Path) -> None:
    inception = standin_weights.save_random_inception(workspace)
    import_weights(inception, allow_unverified=True, as_id="inception")
    report = evaluate(["rfid", "fid"], workspace=Workspace(workspace), allow_unverified=True)
    assert [(result.metric, Path(result.fake).name) for result in report.results] == [
        ("rfid", "codes.h5"),
        ("fid", "samples"),
    ]
    alone = evaluate(["fid"], fake=workspace / "codes.h5", workspace=Workspace(workspace), allow_unverified=True)
    assert report.value("rfid") == pytest.approx(alone.value("fid"), rel=1e-9)


def test_diffusability_of_a_store_is_twenty_figures_with_errors_and_papers(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", "--workspace", workspace, "--metric", "diffusability", "--plot", workspace / "one.png", "--json")
    assert brics(*words, "--out", workspace / "one.json") == ExitCode.DONE
    report = json.loads(capsys.readouterr().out)
    results = {result["metric"]: result for result in report["results"]}
    assert list(results) == GROUPS["diffusability"] and report["left_out"] == {}
    for result in results.values():
        assert np.isfinite(result["value"]) and result["standard_error"] is not None, result
        assert "arXiv" in result["definition"] or result["metric"] == "spectrum-images"
    assert report["num_pairs"] == NUM_IMAGES and report["sheets"] == [str(workspace / "one.png")]
    assert Image.open(workspace / "one.png").width > 1000
    store = KeyCodeStore(workspace / "codes.h5")
    codes = store.batch(range(NUM_IMAGES))
    walls = ((codes < 0.5 / 255) | (codes > 254.5 / 255)).mean()
    assert results["codes-saturation"]["value"] == pytest.approx(walls)
    autoencoder = load_autoencoder(workspace / "runs" / "autoencoder" / "a")
    stream = open_images(
        read_provenance(store.path).parent("collection").path, workspace=Workspace(workspace),
        transform=store.transform, size=SIDE,
    )  # fmt: skip
    images = torch.from_numpy(np.stack([image for batch in stream.read() for image in batch])).permute(0, 3, 1, 2)
    images = images.float() / 127.5 - 1
    z = torch.from_numpy(codes)
    plain, mirrored = (
        (autoencoder.decode(made) - target).square().mean()
        for made, target in ((z, images), (z.flip(-1), images.flip(-1)))
    )
    assert results["equivariance-flip"]["value"] == pytest.approx(float(mirrored / plain), rel=1e-3)
    # the same, measured with another normalisation, is not ranked beside it
    assert brics(*words[:3], "--metric", "viv", "--normalise", "probit", "--out", workspace / "two.json") == 0
    capsys.readouterr()
    assert brics("eval", "compare", workspace / "one.json", workspace / "two.json", "--json") == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["metrics"]}
    assert rows["viv"]["differences"] == ["defined differently"] and rows["viv"]["values"][0] is not None


def test_stores_stand_side_by_side(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(workspace / "codes.h5", workspace / "other.h5")
    words = ("eval", "compare", workspace / "codes.h5", workspace / "other.h5", "--workspace", workspace, "--limit", 18)
    assert brics(*words, "--plot", workspace / "both.svg") == ExitCode.DONE
    out, err = capsys.readouterr()
    assert "VIV of the store" in out and "codes.h5" in out and "other.h5" in out
    assert "plot: " in err and (workspace / "both.svg").read_text().count("of the store itself") == 2
    assert brics(*words[:3], "--workspace", workspace) == ExitCode.USAGE
    assert "at least 2 reports or stores" in capsys.readouterr().err


def test_what_diffusability_cannot_look_at_is_said(
    workspace: Path, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", "--workspace", workspace, "--real", samples, "--fake", samples, "--metric")
    assert brics(*words, "diffusability") == ExitCode.USAGE
    assert capsys.readouterr().err.count("Diffusability is of a key-code store") == 1
    assert brics(*words, "psnr", "--plot", workspace / "a.png") == ExitCode.USAGE
    assert "a.png goes with --metric diffusability, which was not asked for" in capsys.readouterr().err
    assert brics(*words, "psnr", "--normalise", "prbit") == ExitCode.USAGE
    assert "did you mean 'probit'" in capsys.readouterr().err
