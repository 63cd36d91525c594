"""`brics bench remote`: what it costs `encode-dataset` that its images are at a URL and not on the disk.

The shards are put there first. Then they are encoded from the disk and from the URL in turn, the clock running from the
opening of the collection to its last code; of the URL with an empty cache, so that each shard is fetched.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.bench.encode import encode_collection, write_shards
from brics_cli.bench.timing import Report, Table, device_name
from brics_cli.codes import StoreHeader
from brics_cli.codes.encoding import CodeEncoder, encoding_network
from brics_cli.config import DEFAULT_TRANSFORM, AutoencoderRecipe, load_recipe
from brics_cli.config.names import Precision
from brics_cli.images import open_collection
from brics_cli.images.loader import default_num_workers
from brics_cli.runtime.precision import precision_on
from brics_cli.workspace.remote import as_url, explained, open_place, shown


def bench_remote(
    url: str,
    *,
    num_images: int = 2000,
    width: int = 341,
    size: int = 128,
    recipe: str = "brics-mini",
    repeats: int = 3,
    device: torch.device,
    precision: Precision | None = None,
    num_workers: int | None = None,
    batch_size: int = 64,
) -> Report:
    """Encode `num_images` JPEG photographs of `width` x 3/4 `width` px at `size` px with the network of a recipe, from
    the disk and from shards that are put at `url`, `repeats` times each; medians, `ratio` of pairs taken in turn."""
    loaded = load_recipe(recipe, kind="autoencoder", overrides=[f"model.image_size={size}"])
    assert isinstance(loaded, AutoencoderRecipe)
    precision = precision_on(device, precision)
    autoencoder = build_autoencoder(loaded.model).to(device).eval().requires_grad_(False)
    header = StoreHeader(
        code_shape=loaded.model.code_shape, image_size=size, transform=f"{DEFAULT_TRANSFORM}/bench",
        quantisation="uint8", source="bench", source_sha256="0" * 64, num_images=num_images,
        autoencoder={"sha256": "0" * 64, "config": {}},
    )  # fmt: skip
    encoder = CodeEncoder(encoding_network(autoencoder, precision=precision), header, device=device, made_by="bench")
    fs, name = open_place(as_url(url))
    rates: dict[str, list[float]] = {"disk": [], "url": []}
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as folder:
        shards = Path(folder, "shards")
        write_shards(shards, num_images=num_images, width=width)
        with explained(url, doing="write"):
            for path in sorted(shards.iterdir()):
                fs.put_file(str(path), f"{name}/{path.name}")
        num_bytes = sum(path.stat().st_size for path in shards.iterdir())
        for number in range(repeats):
            for where, place in (("disk", str(shards)), ("url", url)):
                with patch.dict("os.environ", BRICS_CACHE=f"{folder}/cache-{number}"):
                    start = time.perf_counter()
                    collection = open_collection(place)
                    whole = replace(encoder, header=replace(header, num_images=len(collection)))
                    workers = num_workers or default_num_workers()
                    encode_collection(collection, whole, Path(folder, "codes.h5"), recipe, workers, batch_size)
                    rates[where].append(len(collection) / (time.perf_counter() - start))
    ratio = statistics.median(there / here for here, there in zip(rates["disk"], rates["url"], strict=True))
    value = {
        "device": device_name(device),
        "url": shown(url),
        "num_images": num_images,
        "num_bytes": num_bytes,
        "size": size,
        "disk_img_per_s": statistics.median(rates["disk"]),
        "url_img_per_s": statistics.median(rates["url"]),
        "ratio": ratio,
    }
    title = (
        f"{num_images:,} images, {num_bytes / 2**20:,.0f} MiB, at {size} px through {recipe}, opened and encoded, on "
        f"{value['device']}"
    )
    table = Table(title, ["from", "img/s", "of the disk"])
    table.rows.append(["the disk", f"{value['disk_img_per_s']:,.1f}", "1.00"])
    table.rows.append([shown(url), f"{value['url_img_per_s']:,.1f}", f"{ratio:.2f}"])
    return Report(value, [table])
