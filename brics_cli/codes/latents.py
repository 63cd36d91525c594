"""Codes as the latents that LightningDiT trains on (arXiv 2501.01423): safetensors shards of up to 10,000 images.

N rows, float32: `latents` (N, C, h, w), `latents_flip` the same of the mirrored images, of which its loader draws every
second one, and `labels` (N,) int64. A file is written in blocks of rows, so that memory does not grow with it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from brics_cli.codes.format import Array
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.workspace import atomic_path

ROWS_PER_SHARD = 10_000
_ROWS_PER_BLOCK = 256


def shard_name(number: int, *, num_shards: int) -> str:
    """`latents_rank00_shard000.safetensors`: the loader takes them in the order of their names."""
    return f"latents_rank00_shard{number:0{max(3, len(str(num_shards - 1)))}d}.safetensors"


def write_latents(path: Path, store: KeyCodeStore, rows: range, *, labels: Array, flips: bool) -> None:
    """Write `rows` (step 1) of `store`, whole or not at all. Without `flips` `latents_flip` are the latents again."""
    shape = [len(rows), *store.code_shape]
    size = 4 * math.prod(shape)
    tensors = {"labels": ("I64", [len(rows)], 8 * len(rows)), "latents": ("F32", shape, size),
               "latents_flip": ("F32", shape, size)}  # fmt: skip
    header, end = {}, 0
    for name, (dtype, sides, num_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": sides, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants its data aligned
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.ascontiguousarray(labels[rows.start : rows.stop], "<i8").data)
        for flipped in (False, flips):
            for first in range(rows.start, rows.stop, _ROWS_PER_BLOCK):
                block = slice(first, min(first + _ROWS_PER_BLOCK, rows.stop))
                file.write(np.ascontiguousarray(store.batch(block, flipped=flipped), "<f4").data)
