"""Stage 4a: networks alone, on what is on the device already: the encoder as encode-dataset runs it and otherwise, the
decoder, an estimate of the denoiser, all in each precision; the encode path without decoding: batches in memory ->
pinned -> network -> quantised -> home -> parts of a store (bar: >= 0.9 of the network alone); scores of validation on
the device and on the CPU; JPEGs by `crop-bicubic-cuda` and `-fast`.

network.py RECIPE DIFFUSION_RECIPE
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import DEVICE, QUICK, attempt, put, synchronise

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.bench.encode import write_shards
from brics_cli.bench.sample import random_models
from brics_cli.codes import StoreHeader, StoreShard
from brics_cli.codes.encoding import CodeEncoder, encoding_network
from brics_cli.codes.parts import write_part
from brics_cli.config import load_recipe
from brics_cli.evaluation.reconstruction import scores_on_device, ssim
from brics_cli.images import load_shards, open_collection
from brics_cli.images.loader import Batch, Loaded
from brics_cli.runtime.device import place
from brics_cli.runtime.precision import computing
from brics_cli.runtime.reporting import TimeSplit

NAME, DIFFUSION = sys.argv[1:3]
BATCH, BATCHES = (2, 3) if QUICK else (64, 60)
recipe = load_recipe(NAME, kind="autoencoder")
torch.manual_seed(0)
device = torch.device(DEVICE)
size, code_shape = recipe.model.image_size, recipe.model.code_shape
images = np.random.default_rng(0).integers(0, 256, (4, BATCH, size, size, 3), np.uint8)
resident = [torch.from_numpy(each).to(device) for each in images]
precision = "bf16" if DEVICE == "cuda" else "fp32"


def model(*, channels_last: bool = True):
    made = build_autoencoder(recipe.model).eval().requires_grad_(False)
    return place(made, device) if channels_last else made.to(device)


@torch.inference_mode()
def img_per_s(network, *, warmup: int = 3) -> float:
    for _ in range(warmup):
        network(resident[0])
    rates = []
    for _ in range(3):
        synchronise()
        start = time.perf_counter()
        for number in range(BATCHES):
            network(resident[number % 4])
        synchronise()
        rates.append(BATCHES * BATCH / (time.perf_counter() - start))
    return statistics.median(rates)


def alone() -> float:
    rate = img_per_s(encoding_network(model(), precision=precision))
    put("encode-network", recipe=NAME, variant="as encode-dataset runs it", img_per_s=round(rate, 1))
    return rate


PRECISIONS = ("bf16", "tf32", "fp32") if DEVICE == "cuda" else ("fp32",)


def variants() -> None:
    rate = img_per_s(encoding_network(model(channels_last=False), precision=precision))
    put("encode-network", recipe=NAME, variant="channels first", img_per_s=round(rate, 1))
    made = random_models(DIFFUSION, ae_recipe=NAME, device=device)
    codes = torch.rand(BATCH, *code_shape, device=device)
    log_snr = torch.zeros(BATCH, device=device)
    for how in PRECISIONS:
        rate = img_per_s(encoding_network(made.autoencoder, precision=how))
        put("encode-network", recipe=NAME, variant=how, img_per_s=round(rate, 1))
        for stage, network in (
            ("decode-network", lambda _: made.autoencoder.decode(codes)),
            ("sample-network", lambda _: made.denoiser.denoise(codes, log_snr)),  # one estimate
        ):

            def in_precision(pixels, network=network, how=how):
                with computing(how, device):
                    return network(pixels)

            put(stage, recipe=NAME, variant=how, img_per_s=round(img_per_s(in_precision), 1))


def validation() -> None:
    """Images per second of PSNR and SSIM, where the images are, and on the CPU."""
    real, fake = resident[:2]
    put("validation", where=DEVICE, img_per_s=round(img_per_s(lambda _: scores_on_device(real, fake)), 1))
    start = time.perf_counter()
    ssim(images[0][:8], images[1][:8])
    put("validation", where="CPU", img_per_s=round(8 / (time.perf_counter() - start), 1))


def transforms() -> None:
    """Images per second that threads decode: which of the two is to stay."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder, "shards"), num_images=16 if QUICK else 2000, width=640)
        collection = open_collection(Path(folder, "shards"))
        for transform in ("crop-bicubic", "crop-bicubic-fast", *(["crop-bicubic-cuda"] if DEVICE == "cuda" else [])):
            seconds = []
            for _ in range(1 if QUICK else 3):
                start = time.perf_counter()
                read = sum(len(batch.keys) for batch in load_shards(collection, transform=transform, size=size))
                seconds.append(time.perf_counter() - start)
            put("transforms", transform=transform, size=size, img_per_s=round(read / min(seconds), 1))


def compiled() -> None:
    made = model()
    made.encode = torch.compile(made.encode)
    rate = img_per_s(encoding_network(made, precision=precision))
    put("encode-network", recipe=NAME, variant="channels_last, torch.compile", img_per_s=round(rate, 1))


def path(network_alone: float | None) -> None:
    header = StoreHeader(
        code_shape=code_shape,
        image_size=size,
        transform="none/day",
        quantisation="uint8",
        source="day",
        source_sha256="0" * 64,
        num_images=BATCH * BATCHES,
        autoencoder={"sha256": "0" * 64, "config": {}},
    )
    encoder = CodeEncoder(encoding_network(model(), precision=precision), header, device=device, made_by="day")

    def batches(num: int):
        for first, number in zip(range(0, num * BATCH, BATCH), range(num), strict=True):
            pixels = images[number % 4]
            yield Batch([Loaded(0, first + i, f"{first + i:08d}", pixels[i]) for i in range(BATCH)], pixels, 0)

    list(encoder.stream(batches(3), TimeSplit()))
    rates, split = [], TimeSplit()
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            shard = StoreShard("day", BATCH * BATCHES, 1, "0" * 64)
            synchronise()
            start = time.perf_counter()
            with write_part(Path(folder), header, shard) as part:
                for rows in encoder.stream(batches(BATCHES), split):
                    one = rows.batch
                    with split.phase("write"):
                        part.add(
                            rows.codes,
                            flipped=None,
                            keys=one.keys,
                            indices=[image.index for image in one.loaded],
                            labels=[None] * BATCH,
                            metas=[None] * BATCH,
                            failures=one.failures,
                        )
            rates.append(BATCH * BATCHES / (time.perf_counter() - start))
    rate = statistics.median(rates)
    put(
        "encode-path",
        recipe=NAME,
        img_per_s=round(rate, 1),
        split=str(split),
        of_network_alone=None if network_alone is None else round(rate / network_alone, 3),
        at_least_0_9=None if network_alone is None else rate >= 0.9 * network_alone,
    )


rate = attempt("encode-network", alone)
attempt("encode-path", lambda: path(rate))
attempt("encode-network", variants)
attempt("validation", validation)
attempt("transforms", transforms)
if "--compile" in sys.argv and not QUICK:
    attempt("encode-network", compiled)
