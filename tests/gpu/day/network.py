"""Stage 4a: the encoder's network alone, on pixels that are on the device, as encode-dataset runs it, and three ways
that it might run faster; then the encode path without decoding: batches in memory -> pinned -> network -> quantised ->
home -> parts of a store. Bar: encode path >= 0.9 of the network alone.
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
from brics_cli.codes import StoreHeader, StoreShard
from brics_cli.codes.encoding import CodeEncoder, encoding_network
from brics_cli.codes.parts import write_part
from brics_cli.config import load_recipe
from brics_cli.images.loader import Batch, Loaded
from brics_cli.runtime.reporting import TimeSplit

NAME = sys.argv[1] if len(sys.argv) > 1 else "brics-256"
BATCH, BATCHES = (2, 3) if QUICK else (64, 60)
recipe = load_recipe(NAME, kind="autoencoder")
torch.manual_seed(0)
device = torch.device(DEVICE)
size, code_shape = recipe.model.image_size, recipe.model.code_shape
images = np.random.default_rng(0).integers(0, 256, (4, BATCH, size, size, 3), np.uint8)
resident = [torch.from_numpy(each).to(device) for each in images]
precision = "bf16" if DEVICE == "cuda" else "fp32"


def model(*, channels_last: bool = False):
    made = build_autoencoder(recipe.model).to(device).eval().requires_grad_(False)
    return made.to(memory_format=torch.channels_last) if channels_last else made


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


def variants() -> None:
    for name, made in (("channels_last weights", model(channels_last=True)), ("fp32 (TF32 convolutions)", model())):
        how = "fp32" if name.startswith("fp32") else precision
        rate = img_per_s(encoding_network(made, precision=how))
        put("encode-network", recipe=NAME, variant=name, img_per_s=round(rate, 1))
    decoder = model()
    codes = torch.rand(BATCH, *code_shape, device=device)
    for how in ("fp32", "bf16"):

        @torch.inference_mode()
        def decode(_, how=how):
            with torch.autocast(device.type, torch.bfloat16, enabled=how == "bf16"):
                return decoder.decode(codes)

        put("decode-network", recipe=NAME, variant=how, img_per_s=round(img_per_s(decode), 1))


def compiled() -> None:
    made = model(channels_last=True)
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
if "--compile" in sys.argv and not QUICK:
    attempt("encode-network", compiled)
