"""`brics demo`: the whole pipeline on the photographs inside scikit-image, every command on the way a real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from brics_cli.autoencoder.autoencoder import load_autoencoder
from brics_cli.codes import KeyCodeStore
from brics_cli.errors import WouldOverwriteError
from brics_cli.evaluation.images import open_images
from brics_cli.evaluation.reconstruction import psnr, ssim
from brics_cli.evaluation.report import EvaluationReport
from brics_cli.evaluation.selection import choose_metrics
from brics_cli.images import contact_sheet
from brics_cli.images.photographs import bicubic_round_trip, photograph_crops
from brics_cli.jobs.decode import decode, plan_decoding
from brics_cli.jobs.encode_dataset import encode_dataset, plan_encoding
from brics_cli.jobs.evaluate import evaluate
from brics_cli.jobs.pack import pack, plan_packing
from brics_cli.jobs.sample import sample
from brics_cli.jobs.train_ae import train_autoencoder
from brics_cli.jobs.train_diffusion import train_diffusion
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.plan import plan_sampling
from brics_cli.training.plan import TrainOptions, plan_autoencoder, plan_diffusion
from brics_cli.workspace import Artefact, Workspace, read_provenance, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.naming import RUN, form_of_output

NUM_SAMPLES = 48
SHEET_COLUMNS = 12
SHEET_SCALE = 2
BICUBIC_SIDE = 8
PAIRS_SETS = ("pairs", "sets")


@dataclass(frozen=True)
class Quality:
    """How well the held-out crops come back from a code that keeps one number per `pixel_ratio` pixel values."""

    name: str
    psnr_db: float
    ssim: float
    pixel_ratio: float


@dataclass
class DemoResult:
    """What the demo leaves: its workspace, its sheet, and what it measured on `num_held_out` crops."""

    workspace: Path
    sheet: Path
    num_train: int
    num_held_out: int
    rows: list[Quality] = field(default_factory=list)
    reports: list[EvaluationReport] = field(default_factory=list)
    """Every metric whose weights are there: of reconstructions, then of samples."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Metric -> why it was not measured."""
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    out: Path,
    *,
    device: str = "auto",
    ae_steps: int | None = None,
    diffusion_steps: int | None = None,
    overwrite: bool = False,
    reporter: Reporter,
) -> DemoResult:
    """Run every command of the pipeline in the new workspace `out`.

    The steps are those of the `tiny` recipes unless given. Raises WouldOverwriteError when `out` is there already
    (with `overwrite` the demo's own outputs are replaced, nothing else in it is touched).
    """
    form_of_output(out, RUN)
    workspace = Workspace(out)
    artefact = Artefact("demo", out, now(), complete=False)
    _claim(artefact, overwrite=overwrite)
    seconds: dict[str, float] = {}
    on = resolve_device(device)

    with _timed(seconds, "cut and pack"):
        num_train, num_held_out = _cut_crops(out / "crops", reporter)
        for split in ("held-out", "shards"):  # the newest shards are what later commands take
            packing = plan_packing(
                str(out / "crops" / split), out=out / split, size=64, transform="none", shard_size=500
            )
            pack(packing, overwrite=overwrite, reporter=reporter)

    with _timed(seconds, "train-ae"):
        run_path = out / "runs" / "autoencoder" / "demo"
        options = TrainOptions(
            data=str(out / "shards"), val=str(out / "held-out"), recipe="tiny", steps=ae_steps, out=run_path
        )
        training = plan_autoencoder(options, workspace=workspace, reporter=reporter)
        train_autoencoder(training, device=device, overwrite=overwrite, reporter=reporter)

    with _timed(seconds, "encode-dataset"):
        # The store that diffusion trains on comes last: it is the newest, which is what later commands take.
        autoencoder = load_autoencoder(run_path, device=on)
        held_out, photographs = out / "held-out.h5", out / "photographs.h5"
        for split, store_path, flips in (("held-out", held_out, False), ("shards", photographs, True)):
            encoding = plan_encoding(
                str(out / split), autoencoder=autoencoder, out=store_path, device=str(on), flips=flips
            )
            encode_dataset(encoding, overwrite=overwrite, reporter=reporter)

    with _timed(seconds, "decode"):
        decoding = plan_decoding(KeyCodeStore(held_out), autoencoder, out=out / "reconstructions", device=on)
        decode(decoding, overwrite=overwrite, reporter=reporter)

    with _timed(seconds, "train-diffusion"):
        model_path = out / "runs" / "diffusion" / "demo"
        options = TrainOptions(data=str(photographs), recipe="tiny", steps=diffusion_steps, out=model_path)
        diffusion = plan_diffusion(options, workspace=workspace, reporter=reporter)
        train_diffusion(diffusion, workspace=workspace, device=device, overwrite=overwrite, reporter=reporter)

    with _timed(seconds, "sample"):
        sampling = plan_sampling(
            model_path,
            num=NUM_SAMPLES,
            batch_size=NUM_SAMPLES,
            workspace=workspace,
            device=device,
            out=out / "runs" / "samples" / "demo",
            reporter=reporter,
        )
        sample(sampling, overwrite=overwrite, reporter=reporter)

    with _timed(seconds, "eval"):
        result = DemoResult(out, out / "contact-sheet.png", num_train, num_held_out, seconds=seconds)
        _measure(result, held_out, workspace=workspace, device=device, reporter=reporter)
        _draw(result, workspace=workspace, device=device)
    score = f"held-out {result.rows[0].psnr_db:.2f} dB"
    write_provenance(finished(artefact, summary=score, seconds=seconds))
    return result


def _claim(artefact: Artefact, *, overwrite: bool) -> None:
    out = artefact.path
    if out.exists() and any(out.iterdir()):
        ours = read_provenance(out)
        if ours is None or ours.kind != "demo":
            raise WouldOverwriteError(
                f"{out} is there already and no demo made it", next="Give a new directory with --out."
            )
        if not overwrite:
            raise WouldOverwriteError(
                f"{out} holds a demo already", next="--overwrite runs it again; --out runs it elsewhere."
            )
    out.mkdir(parents=True, exist_ok=True)
    write_provenance(artefact)


def _cut_crops(folder: Path, reporter: Reporter) -> tuple[int, int]:
    """Write the crops as PNG files; how many are for training, how many held out."""
    num_crops = {True: 0, False: 0}
    with reporter.task("cut crops", total=None, unit="img") as task:
        for crop in photograph_crops():
            path = folder / ("held-out" if crop.held_out else "shards") / f"{crop.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop.pixels).save(path)
            num_crops[crop.held_out] += 1
            task.advance()
    return num_crops[False], num_crops[True]


def _measure(result: DemoResult, held_out: Path, *, workspace: Workspace, device: str, reporter: Reporter) -> None:
    """Fill in the table: reconstructions of held-out crops beside the baselines, and samples where weights allow."""
    store = KeyCodeStore(held_out)
    choice = choose_metrics(None)
    result.left_out = choice.left_out
    of_pairs, of_sets = ([each.name for each in choice.metrics if each.metric.compares == what] for what in PAIRS_SETS)
    real = result.workspace / "held-out"
    report = evaluate(of_pairs, real=real, fake=held_out, workspace=workspace, device=device, reporter=reporter)
    result.reports.append(report)
    if of_sets:
        samples = result.workspace / "runs" / "samples" / "demo"
        result.reports.append(
            evaluate(
                of_sets,
                real=result.workspace / "shards",
                fake=samples,
                workspace=workspace,
                device=device,
                reporter=reporter,
            )
        )
    originals = _images(real, workspace=workspace, device=device)
    num_pixels, num_codes = originals[0].size, int(np.prod(store.code_shape))
    code = " x ".join(str(side) for side in store.code_shape)
    result.rows = [Quality(f"brics, codes {code}", report.value("psnr"), report.value("ssim"), num_pixels / num_codes)]
    small = np.stack([bicubic_round_trip(image, side=BICUBIC_SIDE) for image in originals])
    flat = np.stack([np.broadcast_to(image.mean((0, 1)).round(), image.shape) for image in originals]).astype(np.uint8)
    for name, images, numbers in (
        (f"{BICUBIC_SIDE} x {BICUBIC_SIDE} bicubic, down and up", small, BICUBIC_SIDE**2 * 3),
        ("one colour per crop", flat, 3),
    ):
        quality = float(psnr(originals, images).mean()), float(ssim(originals, images).mean())
        result.rows.append(Quality(name, *quality, num_pixels / numbers))


def _images(path: Path, *, workspace: Workspace, device: str) -> np.ndarray:
    """All images of a collection or store: (N, H, W, 3) uint8."""
    stream = open_images(str(path), workspace=workspace, device=resolve_device(device))
    return np.stack([image for batch in stream.read() for image in batch if image is not None])


def _draw(result: DemoResult, *, workspace: Workspace, device: str) -> None:
    """The contact sheet: originals, reconstructions, bicubic, and samples."""
    originals = _images(result.workspace / "held-out", workspace=workspace, device=device)
    fakes = _images(result.workspace / "held-out.h5", workspace=workspace, device=device)
    samples = _images(result.workspace / "runs" / "samples" / "demo", workspace=workspace, device=device)
    shown = np.linspace(0, len(originals) - 1, SHEET_COLUMNS).round().astype(int)
    rows = [list(originals[shown]), list(fakes[shown])]
    rows.append([bicubic_round_trip(image, side=BICUBIC_SIDE) for image in originals[shown]])
    labels = ["held-out crops", f"reconstructions, {result.rows[0].psnr_db:.1f} dB over all"]
    labels.append(f"8 x 8 bicubic, {result.rows[1].psnr_db:.1f} dB over all")
    for start in range(0, len(samples), SHEET_COLUMNS):
        rows.append(list(samples[start : start + SHEET_COLUMNS]))
        labels.append(f"samples, seeds {start} to {start + len(rows[-1]) - 1}")
    contact_sheet(rows, path=result.sheet, row_labels=labels, scale=SHEET_SCALE)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
