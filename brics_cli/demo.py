"""`brics demo`: the whole pipeline on the photographs inside scikit-image, by the functions of the Python API."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brics_cli import api
from brics_cli.codes import KeyCodeStore
from brics_cli.config.names import Precision
from brics_cli.errors import WouldOverwriteError
from brics_cli.evaluation.reconstruction import psnr, ssim
from brics_cli.evaluation.report import EvaluationReport
from brics_cli.evaluation.selection import choose_metrics
from brics_cli.images import contact_sheet, open_collection
from brics_cli.images.photographs import bicubic_round_trip, photograph_crops
from brics_cli.jobs.pack import pack, plan_packing
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.workspace import Artefact, read_provenance, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.naming import RUN, form_of_output

NUM_SAMPLES = 48
SHEET_COLUMNS = 12
BICUBIC_SIDE = 8


@dataclass(frozen=True)
class Quality:
    """How well the held-out crops come back from a code that keeps one number per `pixel_ratio` pixel values."""

    name: str
    psnr_db: float
    ssim: float
    pixel_ratio: float


@dataclass
class DemoResult:
    """What the demo leaves: its workspace, its sheet and page, and what it measured on `num_held_out` crops.

    `reports` are of every metric whose weights are there, of reconstructions, then of samples; `left_out` says why the
    others were not measured.
    """

    workspace: Path
    sheet: Path
    page: Path
    num_train: int
    num_held_out: int
    quality: list[Quality] = field(default_factory=list)
    reports: list[EvaluationReport] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    out: Path,
    *,
    device: str = "auto",
    precision: Precision | None = None,
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
    precision_on(resolve_device(device), precision)
    start = time.perf_counter()
    artefact = Artefact("demo", out, now(), complete=False)
    _claim(artefact, overwrite=overwrite)
    common: dict[str, Any] = {"device": device, "overwrite": overwrite, "workspace": out, "reporter": reporter}
    common["precision"] = precision
    crops, held_out, run, model, samples = (
        out / name
        for name in ("crops", "held-out.h5", "runs/autoencoder/demo", "runs/diffusion/demo", "runs/samples/demo")
    )
    timing = TimeSplit()
    seconds = timing.seconds

    with timing.phase("cut and pack"):
        num_train, num_held_out = _cut_crops(crops, reporter)
        for split in ("held-out", "shards"):  # the newest shards are what later commands take
            packing = plan_packing(str(crops / split), out=out / split, size=64, transform="none", shard_size=500)
            pack(packing, overwrite=overwrite, reporter=reporter)
    with timing.phase("train-ae"):
        api.train_autoencoder(out / "shards", val=out / "held-out", recipe="tiny", steps=ae_steps, out=run, **common)
    with timing.phase("encode-dataset"):
        # The store that diffusion trains on comes last: it is the newest, which is what later commands take.
        api.encode(out / "held-out", autoencoder=run, out=held_out, **common)
        photographs = api.encode(out / "shards", autoencoder=run, out=out / "photographs.h5", flips=True, **common)
    with timing.phase("decode"):
        api.decode(held_out, out=out / "reconstructions", **common)
    with timing.phase("train-diffusion"):
        api.train_diffusion(photographs.path, recipe="tiny", steps=diffusion_steps, out=model, **common)
    with timing.phase("sample"):
        api.sample(model, num=NUM_SAMPLES, batch_size=NUM_SAMPLES, out=samples, **common)
    with timing.phase("eval"):
        result = DemoResult(
            out, out / "contact-sheet.png", out / "report.html", num_train, num_held_out, seconds=seconds
        )
        choice = choose_metrics(None)
        result.left_out = choice.left_out
        for compares, real, fake in (("pairs", out / "held-out", held_out), ("sets", out / "shards", samples)):
            metrics = [each.name for each in choice.metrics if each.metric.compares == compares]
            if metrics:
                written = out / f"eval-{compares}.json"
                how = common if compares == "pairs" else common | {"precision": None}  # nothing is decoded for sets
                result.reports.append(api.evaluate(metrics, real=real, fake=fake, out=written, **how))
        _compare(result, held_out)
        _draw(result, samples)
    summary = f"held-out {result.quality[0].psnr_db:.2f} dB"
    seconds["total"] = time.perf_counter() - start
    write_provenance(finished(artefact, summary=summary, seconds=seconds))  # the page shows them
    with timing.phase("report"):
        api.report(out=result.page, overwrite=overwrite, workspace=out, reporter=reporter)
    seconds["total"] = seconds.pop("total") + seconds["report"]
    write_provenance(finished(artefact, summary=summary, seconds=seconds))
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


def _compare(result: DemoResult, held_out: Path) -> None:
    """Reconstructions of the held-out crops beside what is left of them with simpler codes."""
    originals, code_shape = _images(result.workspace / "crops" / "held-out"), KeyCodeStore(held_out).code_shape
    num_values, report = originals[0].size, result.reports[0]
    name = f"brics, codes {' x '.join(str(side) for side in code_shape)}"
    ours = Quality(name, report.value("psnr"), report.value("ssim"), num_values / int(np.prod(code_shape)))
    result.quality.append(ours)
    small = np.stack([bicubic_round_trip(image, side=BICUBIC_SIDE) for image in originals])
    flat = np.stack([np.broadcast_to(image.mean((0, 1)).round(), image.shape) for image in originals]).astype(np.uint8)
    for name, images, num_kept in (
        (f"{BICUBIC_SIDE} x {BICUBIC_SIDE} bicubic, down and up", small, BICUBIC_SIDE**2 * 3),
        ("one colour per crop", flat, 3),
    ):
        measured = float(psnr(originals, images).mean()), float(ssim(originals, images).mean())
        result.quality.append(Quality(name, *measured, num_values / num_kept))


def _draw(result: DemoResult, samples: Path) -> None:
    """The contact sheet: originals, reconstructions, bicubic, and samples."""
    originals, fakes = (_images(result.workspace / name) for name in ("crops/held-out", "reconstructions"))
    shown = np.linspace(0, len(originals) - 1, SHEET_COLUMNS).round().astype(int)
    ours, bicubic = result.quality[:2]
    rows = {
        "held-out crops": originals[shown],
        f"reconstructions, {ours.psnr_db:.1f} dB over all": fakes[shown],
        f"{BICUBIC_SIDE} x {BICUBIC_SIDE} bicubic, {bicubic.psnr_db:.1f} dB over all": [
            bicubic_round_trip(image, side=BICUBIC_SIDE) for image in originals[shown]
        ],
    }
    drawn = _images(samples)
    for start in range(0, len(drawn), SHEET_COLUMNS):
        row = drawn[start : start + SHEET_COLUMNS]
        rows[f"samples, seeds {start} to {start + len(row) - 1}"] = row
    contact_sheet([list(row) for row in rows.values()], path=result.sheet, row_labels=list(rows))


def _images(path: Path) -> np.ndarray:
    """All images of a collection, in the order of their keys: (N, H, W, 3) uint8."""
    collection = open_collection(path, labels="none")
    raws = [raw for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]
    raws.sort(key=lambda raw: raw.key)
    return np.stack([np.asarray(Image.open(BytesIO(raw.data)).convert("RGB")) for raw in raws])
