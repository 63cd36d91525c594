"""A run in pieces that may come back: bring_home.py RUN NAME [--half] -> $OUT/NAME.tar.00, .01, ... of 15 MiB at most.

Here: cat NAME.tar.* | tar x. With --half the weights are rounded to float16 (widen.py makes a model of them again).
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

from common import OUT, put

PIECE = 15 * 2**20
run, name, half = Path(sys.argv[1]), sys.argv[2], "--half" in sys.argv
files = [run / each for each in ("config.yaml", "environment.json", "metrics.jsonl", "brics.json")]
files += [*sorted((run / "model").glob("config.json")), run / "model" / "model.safetensors"]
files += sorted((run / "images").glob("*.png"))[-1:]
buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w") as tar:
    for path in files:
        if not path.is_file():
            continue
        data = path.read_bytes()
        if half and path.name == "model.safetensors":
            from safetensors.torch import load, save

            data = save({key: tensor.half() for key, tensor in load(data).items()})
        member = tarfile.TarInfo(f"{name}/{path.relative_to(run)}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
data = buffer.getvalue()
for number, start in enumerate(range(0, len(data), PIECE)):
    (OUT / f"{name}.tar.{number:02d}").write_bytes(data[start : start + PIECE])
put("brought-home", run=name, mib=round(len(data) / 2**20, 1), pieces=-(-len(data) // PIECE), half=half)
