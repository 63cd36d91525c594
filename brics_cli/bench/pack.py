"""`brics bench pack`: processor time and bytes of packing photographs, beside EDM's dataset_tool.py (`dataset_tool`).

Every row is a process of its own, start included, since that is what is waited for.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from brics_cli.bench.encode import write_shards
from brics_cli.bench.timing import Report, Table
from brics_cli.images.pixels import load_pixels
from brics_cli.images.sinks import encoding_of
from brics_cli.workspace.naming import Codec

TRANSFORMS = ("crop-bicubic", "crop-bicubic-fast")
NUM_ENCODED = 64
"""Images that a codec is timed on."""


def bench_pack(*, num_images: int = 780, width: int = 1024, size: int = 256, repeats: int = 3) -> Report:
    """Pack `num_images` JPEG photographs of `width` x 3/4 `width` px at `size` px, `repeats` times in turn.

    `packing` holds processor seconds, seconds and bytes of each way, and their ratios to the baseline's; `encoding`
    milliseconds and bytes per image of each codec, of encoding and of decoding.
    """
    with tempfile.TemporaryDirectory(prefix="brics-bench-") as temporary:
        folder = Path(temporary, "photographs")
        write_photographs(folder, num_images=num_images, width=width)
        tool = ["-m", "brics_cli.bench.dataset_tool", str(folder), str(size)]
        ways = {"as EDM's dataset_tool": tool}
        for transform in TRANSFORMS:
            for codec in get_args(Codec):
                words = ["-m", "brics_cli", "pack", str(folder), "--size", str(size), "--transform", transform]
                ways[f"{transform}, {codec}"] = [*words, "--codec", codec, "--quiet", "--out"]
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
        for repeat in range(repeats):
            for name, words in ways.items():
                found[name].append(_run(words, Path(temporary, f"{name}-{repeat}")))
        encoding = [_codec(codec, folder, size=size) for codec in get_args(Codec)]
    base_cpu_s, base_bytes = (statistics.median(each[field] for each in found[next(iter(ways))]) for field in (0, 2))
    packing = []
    for name, runs in found.items():
        cpu_s, seconds, num_bytes = (statistics.median(run[field] for run in runs) for field in range(3))
        packing.append({"way": name, "cpu_s": cpu_s, "seconds": seconds, "bytes": num_bytes,
                        "cpu_ratio": cpu_s / base_cpu_s, "bytes_ratio": num_bytes / base_bytes})  # fmt: skip
    value = {"num_images": num_images, "width": width, "size": size, "packing": packing, "encoding": encoding}
    return Report(value, _tables(value))


def write_photographs(folder: Path, *, num_images: int, width: int) -> None:
    """`num_images` JPEG files, crops of the photographs inside scikit-image."""
    write_shards(folder.with_name("tars"), num_images=num_images, width=width)
    folder.mkdir()
    with tarfile.open(folder.with_name("tars") / "000000.tar") as tar:
        tar.extractall(folder, filter="data")


def _run(words: list[str], out: Path) -> tuple[float, float, int]:
    """(processor seconds, seconds, bytes) of the command that writes `out`, its children and its start included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words, str(out)], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    num_bytes = out.stat().st_size if out.is_file() else sum(each.stat().st_size for each in out.glob("*.tar"))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s, seconds, num_bytes


def _codec(name: Codec, folder: Path, *, size: int) -> dict[str, Any]:
    files = sorted(folder.glob("*.jpg"))[:NUM_ENCODED]
    images = [load_pixels(file.read_bytes(), transform="crop-bicubic", size=size) for file in files]
    encoding = encoding_of(name)
    start = time.process_time()
    encoded = [encoding.encode(image) for image in images]
    between = time.process_time()
    for data in encoded:
        load_pixels(data, transform="none", size=size)
    end = time.process_time()
    each_ms = 1000 / len(images)
    return {"codec": encoding.name, "encode_ms": (between - start) * each_ms, "decode_ms": (end - between) * each_ms,
            "bytes": sum(map(len, encoded)) // len(images)}  # fmt: skip


def _tables(found: dict[str, Any]) -> list[Table | str]:
    height = found["width"] * 3 // 4
    title = f"{found['num_images']:,} JPEG photographs of {found['width']} x {height} px at {found['size']} px"
    packing = Table(title, ["", "CPU s", "of the tool's", "s", "MB", "of the tool's"])
    for row in found["packing"]:
        cells = [f"{row['cpu_s']:.1f}", f"{row['cpu_ratio']:.2f}", f"{row['seconds']:.1f}", f"{row['bytes'] / 1e6:.1f}"]
        packing.rows.append([row["way"], *cells, f"{row['bytes_ratio']:.2f}"])
    encoding = Table(f"one image of {found['size']} px", ["codec", "encode ms", "decode ms", "kB"])
    for row in found["encoding"]:
        cells = [f"{row['encode_ms']:.1f}", f"{row['decode_ms']:.1f}", f"{row['bytes'] / 1e3:.1f}"]
        encoding.rows.append([row["codec"], *cells])
    return [packing, encoding]
