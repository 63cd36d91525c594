"""Small key-code stores made without a network, for tests of what is done with stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.codes import StoreHeader, StoreShard, StoreWriter
from brics_cli.workspace import Parent

SHAPE = (2, 3, 3)
PARENTS = (Parent("autoencoder", "/ae", "a" * 64), Parent("collection", "/images", "b" * 64))


def header(**changes: Any) -> StoreHeader:
    """A header of bounded uint8 codes with flips, with `changes`."""
    values = {
        "code_shape": SHAPE, "image_size": 12, "transform": "crop-bicubic/pillow-1", "quantisation": "uint8",
        "source": "/images", "source_sha256": "b" * 64, "num_images": 0, "flipped": True,
        "autoencoder": {"sha256": "a" * 64, "config": {"x": 1}},
    }  # fmt: skip
    return StoreHeader(**{**values, **changes})


def write_store(
    path: Path, names: list[str], *, per_shard: int = 4, keys: str = "", pending_only: bool = False, **changes: Any
) -> Path:
    """A store of the shards `names`; image 2 of each failed, labels and metadata on every other one.

    What is in a shard depends on its name alone; `keys` is what its keys begin with, if not that.
    """
    shards = [StoreShard(name, per_shard, 100, f"{len(name):064d}") for name in names]
    with StoreWriter(path, header(num_images=per_shard * len(names), **changes), shards) as writer:
        for number in writer.pending if pending_only else range(len(names)):
            name = names[number]
            kept = [index for index in range(per_shard) if index != 2]
            rows = np.random.default_rng(list(name.encode())).integers(0, 256, (len(kept), *SHAPE), np.uint8)
            with writer.part(number) as part:
                part.add(
                    rows,
                    flipped=rows[..., ::-1],
                    keys=[f"{keys or name}/ключ{index}" for index in kept],
                    indices=kept,
                    labels=[index if index % 2 else None for index in kept],
                    metas=[{"n": index} if index % 2 else None for index in kept],
                    failures=[(f"{keys or name}/ключ2", "damaged")],
                )
        writer.merge(parents=PARENTS, details={"transform": "crop-bicubic"})
    return path
