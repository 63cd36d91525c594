"""`brics demo`: the whole pipeline on landscapes that it draws itself, by the functions of the Python API.

It fine-tunes the embedded autoencoder, which has seen none of them, and spends most of its time on diffusion.
"""

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
from brics_cli.images.landscapes import HOURS, NUM_HELD_OUT, NUM_TRAIN, SIZE, landscapes
from brics_cli.images.photographs import bicubic_round_trip
from brics_cli.jobs.pack import pack, plan_packing
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.workspace import Artefact, read_provenance, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.embedded import MODELS
from brics_cli.workspace.naming import RUN, form_of_output

NUM_SAMPLES = 96
START = MODELS[0].name
FINE_TUNING_STEPS = 150
DIFFUSION = ("diffusion.normalise=none", "diffusion.sigma_data=0.25", "diffusion.p_mean=-1.6")
GUIDANCE = 1.5
SHEET_COLUMNS = 12
BICUBIC_SIDE = 8


@dataclass(frozen=True)
class Quality:
    """How well the held-out landscapes come back from a code that keeps one number per `pixel_ratio` pixel values."""

    name: str
    psnr_db: float
    ssim: float
    pixel_ratio: float


@dataclass
class DemoResult:
    """What the demo leaves: its workspace, its sheet and page, and what it measured on `num_held_out` landscapes.

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

    `ae_steps` (FINE_TUNING_STEPS unless given) fine-tune the embedded autoencoder. The diffusion model is that of
    recipe `tiny`, changed by DIFFUSION, trained for `diffusion_steps` or as many as the recipe says. Raises
    WouldOverwriteError when `out` is there already (with `overwrite` the demo's own outputs are replaced, nothing else
    in it is touched).
    """
    form_of_output(out, RUN)
    precision_on(resolve_device(device), precision)
    start = time.perf_counter()
    artefact = Artefact("demo", out, now(), complete=False)
    _claim(artefact, overwrite=overwrite)
    common: dict[str, Any] = {"device": device, "overwrite": overwrite, "workspace": out, "reporter": reporter}
    common["precision"] = precision
    held_out, untuned, run, model, samples = (
        out / name
        for name in (
            "held-out.h5", f"held-out-{START}.h5",
            "runs/autoencoder/demo", "runs/diffusion/demo", "runs/samples/demo",
        )
    )  # fmt: skip
    timing = TimeSplit()
    seconds = timing.seconds

    with timing.phase("draw and pack"):
        for seed, split, num in ((1, "held-out", NUM_HELD_OUT), (0, "shards", NUM_TRAIN)):
            # The newest shards are what later commands take: those for training come last.
            folder = out / "landscapes" / split
            _draw_landscapes(folder, num, seed=seed, reporter=reporter)
            packing = plan_packing(str(folder), out=out / split, size=SIZE, transform="none", labels="folder")
            pack(packing, overwrite=overwrite, reporter=reporter)
    with timing.phase("train-ae"):
        steps = FINE_TUNING_STEPS if ae_steps is None else ae_steps
        api.train_autoencoder(out / "shards", val=out / "held-out", init_from=START, steps=steps, out=run, **common)
    with timing.phase("encode-dataset"):
        # The store that diffusion trains on comes last: it is the newest, which is what later commands take.
        api.encode(out / "held-out", autoencoder=START, out=untuned, **common)
        api.encode(out / "held-out", autoencoder=run, out=held_out, **common)
        store = api.encode(out / "shards", autoencoder=run, out=out / "landscapes.h5", **common)
    with timing.phase("decode"):
        api.decode(untuned, out=out / f"reconstructions-{START}", **common)
        api.decode(held_out, out=out / "reconstructions", **common)
    with timing.phase("train-diffusion"):
        api.train_diffusion(store.path, recipe="tiny", steps=diffusion_steps, overrides=DIFFUSION, out=model, **common)
    with timing.phase("sample"):
        drawn: dict[str, Any] = {"num": NUM_SAMPLES, "guidance": GUIDANCE, "class_balance": "even"}
        api.sample(model, **drawn, batch_size=NUM_SAMPLES, out=samples, **common)
    with timing.phase("eval"):
        sheet, page = out / "contact-sheet.png", out / "report.html"
        result = DemoResult(out, sheet, page, NUM_TRAIN, NUM_HELD_OUT, seconds=seconds)
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


def _draw_landscapes(folder: Path, num: int, *, seed: int, reporter: Reporter) -> None:
    """Write landscapes as PNG files, a folder for each hour."""
    with reporter.task(f"draw {folder.name}", total=num, unit="img") as task:
        for landscape in landscapes(num, seed=seed):
            path = folder / landscape.hour / f"{landscape.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(landscape.pixels).save(path)
            task.advance()


def _compare(result: DemoResult, held_out: Path) -> None:
    """Held-out landscapes reconstructed, fine-tuned or not, beside what is left of them with simpler codes."""
    originals, code_shape = _images(result.workspace / "held-out"), KeyCodeStore(held_out).code_shape
    num_codes, codes = int(np.prod(code_shape)), " x ".join(str(side) for side in code_shape)
    small = np.stack([bicubic_round_trip(image, side=BICUBIC_SIDE) for image in originals])
    flat = np.stack([np.broadcast_to(image.mean((0, 1)).round(), image.shape) for image in originals]).astype(np.uint8)
    for name, images, num_kept in (
        (f"{START} fine-tuned, codes {codes}", _images(result.workspace / "reconstructions"), num_codes),
        (f"{START} as it is, codes {codes}", _images(result.workspace / f"reconstructions-{START}"), num_codes),
        (f"{BICUBIC_SIDE} x {BICUBIC_SIDE} bicubic, down and up", small, BICUBIC_SIDE**2 * 3),
        ("one colour per picture", flat, 3),
    ):
        measured = float(psnr(originals, images).mean()), float(ssim(originals, images).mean())
        result.quality.append(Quality(name, *measured, originals[0].size / num_kept))


def _draw(result: DemoResult, samples: Path) -> None:
    """The contact sheet: originals, reconstructions, bicubic, and samples of each hour."""
    originals, fakes = (_images(result.workspace / name) for name in ("held-out", "reconstructions"))
    shown = np.linspace(0, len(originals) - 1, SHEET_COLUMNS).round().astype(int)
    ours, _, bicubic = result.quality[:3]
    rows = {
        "held-out landscapes": originals[shown],
        f"reconstructions, {ours.psnr_db:.1f} dB over all": fakes[shown],
        f"{BICUBIC_SIDE} x {BICUBIC_SIDE} bicubic, {bicubic.psnr_db:.1f} dB over all": [
            bicubic_round_trip(image, side=BICUBIC_SIDE) for image in originals[shown]
        ],
    }
    for hour in HOURS:
        rows[f"samples, {hour}"] = _images(samples, hour=hour)[:SHEET_COLUMNS]
    contact_sheet([list(row) for row in rows.values()], path=result.sheet, row_labels=list(rows))


def _images(path: Path, *, hour: str | None = None) -> np.ndarray:
    """The images of a collection, all or of one hour, in the order of their keys: (N, H, W, 3) uint8."""
    collection = open_collection(path)
    raws = [raw for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]
    raws.sort(key=lambda raw: raw.key)
    if hour is not None:
        raws = [raw for raw in raws if raw.label == list(HOURS).index(hour)]
    return np.stack([np.asarray(Image.open(BytesIO(raw.data)).convert("RGB")) for raw in raws])
