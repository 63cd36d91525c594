"""On the own machine: the emoji as two collections, whole clusters of look-alikes held out: split.py SHARDS OUT"""

from __future__ import annotations

import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np

from brics_cli.images import open_collection
from brics_cli.images.pixels import load_pixels
from brics_cli.training.holdout import hold_out_look_alikes

source, out = sys.argv[1], Path(sys.argv[2])
collection = open_collection(source)
raw = [each for shard in range(len(collection.shards)) for each in collection.iter_shard(shard)]
keys = [Path(each.key).name for each in raw]
images = np.stack([load_pixels(each.data, transform="none", size=64) for each in raw])
held_out = set(hold_out_look_alikes(images, keys, fraction=0.05).tolist())
for name, wanted in (("train", [i for i in range(len(raw)) if i not in held_out]), ("val", sorted(held_out))):
    (out / name).mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(wanted), 1000)):
        with tarfile.open(out / name / f"{number:06d}.tar", "w") as tar:
            for index in wanted[first : first + 1000]:
                member = tarfile.TarInfo(f"{keys[index]}.png")
                member.size = len(raw[index].data)
                tar.addfile(member, BytesIO(raw[index].data))
    print(name, len(wanted))
