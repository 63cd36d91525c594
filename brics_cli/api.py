"""The whole pipeline in Python: what each command of `brics` does, as one function.

    import brics_cli

    trained = brics_cli.train_autoencoder("photographs/", recipe="tiny", steps=500)
    encoded = brics_cli.encode("photographs/", autoencoder=trained.run, out="codes.h5")
    decoded = brics_cli.decode("codes.h5", out="reconstructions")
    model = brics_cli.train_diffusion("codes.h5", recipe="tiny", steps=500)
    drawn = brics_cli.sample(model.run, num=64, steps=32)
    report = brics_cli.evaluate(["psnr", "ssim"], real="photographs/", fake="codes.h5")
    print(report.value("psnr"), "dB")

Conventions. Paths are `str` or `Path`; relative ones are relative to the current directory. Collections, stores and
models may be URLs of places that fsspec knows (`s3://`, `hf://datasets/...`, `https://`), fetched to a cache that the
environment variable BRICS_CACHE_GIB bounds; so may `out` of encode, decode and sample. What is left out is looked up in
`workspace`: the newest artefact of its kind that is finished and whole, which the reporter is told. `reporter` None is
plain lines on stderr (`brics_cli.runtime.reporting.StderrReporter`); `SilentReporter()` says nothing. `device` is
`cuda`, `cuda:N`, `mps`, `cpu`, or `auto`: CUDA where there is one; images go in and out as sRGB, 8 bit.
`precision` is what networks compute in: `fp32`, `bf16`, or on CUDA `tf32`; None is bf16 on CUDA and fp32 elsewhere.

A finished output of the same inputs and settings is returned as it is, an unfinished one is gone on with, and anything
else at `out` raises WouldOverwriteError unless `overwrite`. Messages name arguments as the command line does: `--ae` is
`autoencoder`, `DATA` is `data`. Errors are those of `brics_cli.errors`, all of them a
BricsError: UsageError (an argument), ArtefactError (an input is missing, damaged or does not fit),
WouldOverwriteError, MachineError (disk, memory, a lock, diverged training), InterruptedRunError (Ctrl-C; the same call
goes on). Importing this module costs nothing: torch is loaded by the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.diffusion.samplers import DEFAULT_SAMPLER
from brics_cli.runtime.threads import share_the_cores
from brics_cli.sampling.tasks import DEFAULT_BATCH_SIZE

if TYPE_CHECKING:
    from brics_cli.config import AutoencoderRecipe, DiffusionRecipe
    from brics_cli.config.names import ClassBalance, Labels, Precision, Quantisation
    from brics_cli.evaluation.registry import Settings
    from brics_cli.evaluation.report import EvaluationReport
    from brics_cli.jobs.decode import DecodeResult
    from brics_cli.jobs.encode_dataset import EncodeResult
    from brics_cli.jobs.sample import SampleResult
    from brics_cli.report.writing import Report
    from brics_cli.runtime.on_ray import RayExecutor
    from brics_cli.runtime.reporting import Reporter
    from brics_cli.sampling.drawn import DrawSettings
    from brics_cli.sampling.tasks import SampleFormat
    from brics_cli.training.loop import TrainResult
    from brics_cli.workspace import Workspace
    from brics_cli.workspace.naming import Codec, ImageFormat

share_the_cores()  # before the first call loads torch

__all__ = ["decode", "encode", "evaluate", "sample", "train_autoencoder", "train_diffusion"]


def train_autoencoder(
    data: str | Path | None = None,
    *,
    recipe: str | Path | AutoencoderRecipe | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    precision: Precision | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    val: str | Path | None = None,
    subset: str | None = None,
    image_field: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train an autoencoder on a collection of images: images -> key codes -> images.

    data: a folder, WebDataset shards or a pattern of them, a zip, an LMDB or parquet. None: the newest packed shards.
    recipe: a shipped recipe's name (`brics recipes`), a YAML file, or an `AutoencoderRecipe`. None: that of
        `init_from`, else on a GPU the largest general one not above the median side of the images, on a CPU tiny.
    steps, seed: optimiser steps, and the seed of every random draw. None: as the recipe says.
    batch_size, lr, precision: samples per step over all devices, learning rate of the networks, and what they compute
        in on CUDA, `fp32`, `bf16` or `tf32`. None: as the recipe says.
    overrides: further settings of the recipe, `["optimiser.lr=1e-4", ...]`, applied in order.
    val: a collection to validate on. None: 2% of `data`, by hash of the key.
    subset, image_field: which collection, and which image of a sample, where `data` holds several.
    out: the run directory. None: `runs/autoencoder/DATE-RECIPE` in `workspace`.
    resume: an interrupted run to go on with, with its own settings and data.
    init_from: a run, or an embedded model's name, of the same architecture whose weights to start from.
    num_workers: threads or processes that decode images. None: one per CPU core, at most 16.
    device, overwrite, workspace, reporter: see the module.

    Returns the run's directory, its last step, its metrics (`val/psnr` in dB) and how many images could not be read.
    Raises InterruptedRunError once an interrupted run is saved, MachineError when training diverges.

    >>> brics_cli.train_autoencoder("photographs/", recipe="tiny", steps=500).metrics["val/psnr"]
    """
    from brics_cli.jobs import train_ae as job
    from brics_cli.runtime.distributed import of_first_process
    from brics_cli.training.plan import TrainOptions, plan_autoencoder

    reporter = of_first_process(reporter or _default_reporter())
    options = TrainOptions(
        data=_text(data), subset=subset, image_field=image_field, recipe=recipe, steps=steps, seed=seed,
        batch_size=batch_size, lr=lr, precision=precision, overrides=overrides, val=_text(val), out=_path(out),
        resume=_path(resume), overwrite=overwrite, init_from=_path(init_from),
        device=device,
    )  # fmt: skip
    plan = plan_autoencoder(options, workspace=_workspace(workspace), reporter=reporter)
    return job.train_autoencoder(plan, num_workers=num_workers, overwrite=overwrite, reporter=reporter)


def encode(
    data: str | Path | None = None,
    *,
    autoencoder: str | Path | None = None,
    out: str | Path | None = None,
    quantisation: Quantisation | None = None,
    precision: Precision | None = None,
    transform: str | None = None,
    size: int | None = None,
    flips: bool = False,
    subset: str | None = None,
    image_field: str | None = None,
    labels: Labels | None = None,
    keys: Sequence[str] | None = None,
    limit: int | None = None,
    part: tuple[int, int] | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    max_failures: int | None = None,
    verify: bool = False,
    device: str = "auto",
    executor: RayExecutor | None = None,
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> EncodeResult:
    """Encode a collection into a key-code store: codes (N, C, h, w) in HDF5, with keys and labels.

    data: a collection of images, as for `train_autoencoder`. None: the one that the autoencoder was trained on.
    autoencoder: the run of an autoencoder, or an embedded one's name. None: the newest in `workspace`, else an embedded
        one.
    out: the store, `*.h5`, or a folder, which keeps the parts. None: `codes.h5` in `workspace`, or `codes-I-of-N.h5`
        for a `part`.
    quantisation: `uint8`, `uint16` or `float16`. None: uint8 for bounded codes, float16 for those of kl, vq and rq.
    precision: arithmetic of the encoder: see the module.
    transform: how an image becomes a square. None: as in the autoencoder's training.
    size: the side of that square in pixels. None: as in the autoencoder's training; of a fully convolutional one the
        largest multiple of its downsampling up to the median side of the images, at most 512.
    flips: also store the codes of the mirrored images.
    subset, image_field: which collection, and which image of a sample, where `data` holds several.
    labels: `folder` (top-level folders are classes) or `none`. None: what the collection says.
    keys, limit, part: only the images of these keys; of them only the first so many; of these every n-th shard from
        the i-th on, as (i, n).
    batch_size: images per batch of the network. None: 64, fewer above 256 px.
    num_workers: threads or processes that decode images. None: one per CPU core, at most 16.
    max_failures: stop once more images than this cannot be read. None: never.
    verify: check every invariant of the finished store (`EncodeResult.broken`).
    device: as everywhere, or several, one process each: `cuda:0,cuda:1`.
    executor: `RayExecutor(...)` for a cluster, a shard at a time to each worker. None: this machine.
    overwrite, workspace, reporter: see the module.

    Returns the store's path, counts, bytes per image, img/s, and what quantisation costs (PSNR in dB).
    Raises TooManyFailuresError when no image, or too few, could be read.

    >>> brics_cli.encode("photographs/", out="codes.h5", flips=True).num_images
    """
    from brics_cli.jobs import encode_dataset as job
    from brics_cli.workspace.uploads import staged

    reporter = reporter or _default_reporter()
    with staged(out, reporter=reporter) as place:
        plan = job.plan_encoding(
            _text(data),
            autoencoder=_path(autoencoder),
            out=place.path,
            quantisation=quantisation,
            precision=precision,
            transform=transform,
            size=size,
            flips=flips,
            subset=subset,
            image_field=image_field,
            labels=labels,
            keys=keys,
            limit=limit,
            part=part,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            executor=executor,
            overwrite=overwrite,
            workspace=_workspace(workspace),
            reporter=place.reporter,
        )
        return place.named(
            job.encode_dataset(
                plan, overwrite=overwrite, max_failures=max_failures, verify=verify, reporter=place.reporter
            )
        )


def decode(
    codes: str | Path | None = None,
    *,
    autoencoder: str | Path | None = None,
    out: str | Path | None = None,
    format: ImageFormat | None = None,
    codec: Codec | None = None,
    nested: bool = False,
    precision: Precision | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    executor: RayExecutor | None = None,
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> DecodeResult:
    """Decode a key-code store back into images; each keeps the key that it had in the collection.

    codes: a key-code store. None: the newest in `workspace`.
    autoencoder: the run of the autoencoder that made the store. None: found by the store's own record of it.
    out: a folder, or one `*.zip`, `*.npz` or `*.tar`. None: `reconstructions` in `workspace`.
    format: `png`, `wds`, `zip` or `npz`. None: by `out`; png for a folder.
    codec: how images in shards are encoded: `png` (None), `webp` (lossless too) or `jpeg`.
    nested: PNG files in folders as keys have slashes, not all in one folder.
    precision: what the decoder computes in: see the module.
    batch_size, num_workers: codes per batch of the network, and threads that encode images. None: 64, fewer above
        256 px; one per CPU core, at most 8.
    executor: `RayExecutor(...)` for a cluster, a shard of images at a time to each worker. None: this machine.
    device, overwrite, workspace, reporter: see the module.

    Returns the output's path and format, counts, and img/s.

    >>> brics_cli.decode("codes.h5", out="reconstructions.zip").format
    'zip'
    """
    from brics_cli.jobs import decode as job
    from brics_cli.workspace.uploads import staged

    reporter = reporter or _default_reporter()
    with staged(out, reporter=reporter) as place:
        plan = job.plan_decoding(
            codes,
            autoencoder=autoencoder,
            out=place.path,
            format=format,
            codec=codec,
            nested=nested,
            precision=precision,
            num_workers=num_workers,
            device=device,
            executor=executor,
            overwrite=overwrite,
            workspace=_workspace(workspace),
            reporter=place.reporter,
        )
        return place.named(job.decode(plan, batch_size=batch_size, overwrite=overwrite, reporter=place.reporter))


def train_diffusion(
    codes: str | Path | None = None,
    *,
    recipe: str | Path | DiffusionRecipe | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    precision: Precision | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a diffusion model on the codes of a key-code store; class-conditional when the store has labels.

    codes: a key-code store. None: the newest in `workspace`.
    recipe: a shipped recipe's name (`brics recipes`), a YAML file, or a `DiffusionRecipe`. None: on a GPU
        brics-dit-s, on a CPU tiny.
    steps, seed: optimiser steps, and the seed of every random draw. None: as the recipe says.
    batch_size, lr, precision: samples per step over all devices, learning rate of the networks, and what they compute
        in on CUDA, `fp32`, `bf16` or `tf32`. None: as the recipe says.
    overrides: further settings of the recipe, `["denoiser.dim=128", ...]`, applied in order.
    out: the run directory. None: `runs/diffusion/DATE-RECIPE` in `workspace`.
    resume: an interrupted run to go on with, with its own settings and data.
    init_from: a run of the same architecture whose weights to start from.
    device, overwrite, workspace, reporter: see the module.

    Returns the run's directory, its last step and its metrics.
    Raises InterruptedRunError once an interrupted run is saved, MachineError when training diverges.

    >>> brics_cli.train_diffusion("codes.h5", recipe="tiny", steps=500).run
    """
    from brics_cli.jobs import train_diffusion as job
    from brics_cli.runtime.distributed import of_first_process
    from brics_cli.training.plan import TrainOptions, plan_diffusion

    reporter, place = of_first_process(reporter or _default_reporter()), _workspace(workspace)
    options = TrainOptions(
        data=_text(codes), recipe=recipe, steps=steps, seed=seed, batch_size=batch_size, lr=lr, precision=precision,
        overrides=overrides, out=_path(out), resume=_path(resume), overwrite=overwrite, init_from=_path(init_from),
        device=device,
    )  # fmt: skip
    plan = plan_diffusion(options, workspace=place, reporter=reporter)
    return job.train_diffusion(plan, workspace=place, overwrite=overwrite, reporter=reporter)


def sample(
    model: str | Path | None = None,
    *,
    num: int | None = None,
    seeds: str | range | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    format: SampleFormat | None = None,
    codec: Codec | None = None,
    sampler: str = DEFAULT_SAMPLER,
    steps: int | None = None,
    guidance: float = 1.0,
    guide: str | Path | None = None,
    class_: int | str | None = None,
    class_balance: ClassBalance | None = None,
    clip: bool = True,
    ema: float | None = None,
    autoencoder: str | Path | None = None,
    precision: Precision | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    shard_size: int | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    executor: RayExecutor | None = None,
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> SampleResult:
    """Sample images from a diffusion model, one seed per image; the image of a seed is the same in every run.

    model: the run of a diffusion model. None: the newest in `workspace`.
    num, seed: how many images, and the seed of the first. None: 64, or as many as `seeds`; 0.
    seeds: the seeds instead, a range of step 1 or "A-B" with both ends.
    out: a folder, or one `*.zip`, `*.npz`, `*.tar` or `*.h5`. None: `runs/samples/DATE-RECIPE` in `workspace`.
    format: `wds`, `png`, `zip`, `npz`, or `h5` for the codes themselves. None: by `out`; wds for a folder.
    codec: how images in shards are encoded: `png` (None), `webp` (lossless too) or `jpeg`.
    sampler, steps: one of `brics_cli.diffusion.samplers.SAMPLERS`, and its steps. None: the sampler's own number.
    guidance: scale of guidance, by classes or by `guide`; 1 is none.
    guide: the run of a weaker model of the same codes, to be led away from (autoguidance).
    class_, class_balance: the class of every image, by number or name; or how classes are drawn, `proportional` as
        in training or `even`.
    clip: limit each estimate to the range that codes can have.
    ema: the width of the average of the weights, 0.05 say. None: the plain one.
    autoencoder: the run of the autoencoder of the codes. None: found by the model's own record of it.
    precision: what the networks compute in, see the module; the sampler's own state stays in fp32.
    batch_size, shard_size: images per batch, and per shard of wds and h5. None: 1000 per shard.
    num_workers: threads that encode images. None: one per CPU core, at most 8.
    device: as everywhere, or several, one process each: `cuda:0,cuda:1`.
    executor: `RayExecutor(...)` for a cluster, `shard_size` seeds at a time to each worker. None: this machine.
    overwrite, workspace, reporter: see the module.

    Returns the output's path, its contact sheet, counts, img/s, and the settings that the images depend on.
    Raises MachineError when memory holds not even one image.

    >>> brics_cli.sample("runs/diffusion/demo", seeds=range(100, 164), out="samples.npz").sheet
    """
    from brics_cli.jobs import sample as job
    from brics_cli.sampling.plan import plan_sampling
    from brics_cli.workspace.uploads import staged

    reporter = reporter or _default_reporter()
    with staged(out, reporter=reporter) as place:
        plan = plan_sampling(
            _path(model),
            num=num,
            seeds=seeds,
            seed=seed,
            out=place.path,
            format=format,
            codec=codec,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            clip=clip,
            guide=_path(guide),
            class_=class_,
            class_balance=class_balance,
            ema=ema,
            autoencoder=_path(autoencoder),
            precision=precision,
            batch_size=batch_size,
            shard_size=shard_size,
            num_workers=num_workers,
            device=device,
            executor=executor,
            overwrite=overwrite,
            workspace=_workspace(workspace),
            reporter=place.reporter,
        )
        return place.named(job.sample(plan, overwrite=overwrite, reporter=place.reporter))


def evaluate(
    metrics: Sequence[str] | None = None,
    *,
    real: str | Path | None = None,
    fake: str | Path | None = None,
    limit: int | None = None,
    settings: Settings | None = None,
    draw: DrawSettings | None = None,
    autoencoder: str | Path | None = None,
    precision: Precision | None = None,
    by_class: bool = False,
    statistics_by: str | None = None,
    allow_unverified: bool = False,
    use_cache: bool = True,
    batch_size: int | None = None,
    num_workers: int | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    device: str = "auto",
    executor: RayExecutor | None = None,
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> EvaluationReport:
    """Measure reconstructions against their originals, or samples against a collection.

    metrics: names (`brics eval --help`), or `["all"]`. None: the usual ones whose weights and inputs are there.
    real, fake: collections, key-code stores (decoded on the fly), a diffusion run (images are drawn from it), or
        saved statistics (`*.npz`). None: the newest in `workspace`, of held-out images where there are any, and what
        it was made from; `sources[i].split` says what the images were to the autoencoder.
    limit: the first so many pairs, and the first so many images of each side. None: all.
    settings: `brics_cli.evaluation.registry.Settings`: how images are resized for Inception, the features of precision
        and recall, how many nearest neighbours are looked for, in which features, and where their sheet goes; how
        codes are normalised for their diffusability, and where its figure goes.
    draw: `brics_cli.sampling.drawn.DrawSettings`: which images are drawn from a diffusion run, and how.
    autoencoder, precision: what decodes codes, drawn or of a store, and what it and the denoiser compute in. None: the
        autoencoder that they name; see the module. Metrics' networks compute in fp32.
    by_class: also the figures of each class, for metrics of pairs of a labelled store (`details["by_class"]`).
    statistics_by: the network that saved statistics are of, where they do not tell.
    allow_unverified: use weights of unknown sha256; their figures are marked not comparable.
    use_cache: keep the features of `real`, and take them from there the next time.
    batch_size: images per batch of the networks. None: 32.
    num_workers: threads or processes that decode images. None: one per CPU core, at most 16.
    out: also write the report there, as JSON.
    executor: `RayExecutor(...)`: features of sets of images are computed on a cluster. None: this machine.
    dry_run: only say what would be measured (`EvaluationReport.planned`).
    device, overwrite, workspace, reporter: see the module.

    Returns the figures, each with its definition, error bar and number of images; `report.value("fid")` is one.
    Raises UsageError for an unknown metric, sizes that differ or too few images, ArtefactError for missing weights.

    >>> brics_cli.evaluate(["psnr"], real="photographs/", fake="codes.h5").value("psnr")
    """
    from brics_cli.jobs import evaluate as job

    return job.evaluate(
        metrics,
        real=real,
        fake=fake,
        workspace=_workspace(workspace),
        reporter=reporter or _default_reporter(),
        device=device,
        executor=executor,
        batch_size=batch_size,
        num_workers=num_workers,
        limit=limit,
        allow_unverified=allow_unverified,
        settings=settings,
        draw=draw,
        autoencoder=_path(autoencoder),
        precision=precision,
        by_class=by_class,
        statistics_by=statistics_by,
        use_cache=use_cache,
        out=_path(out),
        overwrite=overwrite,
        dry_run=dry_run,
    )


def report(
    what: Sequence[str | Path] | None = None,
    *,
    out: str | Path | None = None,
    max_mb: float | None = None,
    watts: float | None = None,
    overwrite: bool = False,
    workspace: str | Path = ".",
    reporter: Reporter | None = None,
) -> Report:
    """Write one self-contained HTML page of what is on disk: curves, reconstructions, codes, samples, scores.

    what: runs, key-code stores, samples, decoded images and reports of `evaluate(out=...)`; the page shows them and
        what they were made from. None: everything in `workspace`.
    out: the page, `*.html`. None: `report.html` in `workspace`.
    max_mb: megabytes at most; pictures are made smaller, then fewer, until the page fits. None: 8.
    watts: power of the machine, for the estimate of energy. None: 10 W per CPU core, a GPU's board power.
    overwrite, workspace, reporter: see the module.

    Nothing is trained, sampled or downloaded; a few codes are decoded where their images are not on disk. What is
    damaged is left out and said. Returns the path, its size, the titles in it and what was left out. Raises UsageError
    for a path that brics did not make and for a page that does not fit, ArtefactError when there is nothing to show.

    >>> brics_cli.api.report(out="report.html").num_bytes
    """
    from brics_cli.report.writing import write_report

    return write_report(
        [Path(each) for each in what] if what else None, out=_path(out), max_mb=max_mb, watts=watts,
        overwrite=overwrite, workspace=_workspace(workspace), reporter=reporter or _default_reporter(),
    )  # fmt: skip


def _default_reporter() -> Reporter:
    from brics_cli.runtime.reporting import StderrReporter

    return StderrReporter()


def _workspace(root: str | Path) -> Workspace:
    from brics_cli.workspace import Workspace

    return Workspace(Path(root))


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
