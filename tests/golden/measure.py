"""What must not change unnoticed: losses of the first steps, and the layout of a store.

A change that is meant regenerates the file, and its commit says why:  python tests/golden/measure.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden.json")


def measure(photographs: Path, folder: Path) -> dict[str, Any]:
    """Train, encode, train on the codes, all with fixed seeds; what came out."""
    import h5py
    from commands import brics

    few = ("--recipe", "tiny", "--steps", 12, "--set", "training.batch_size=8", "--set", "training.log_every=4")
    brics("train-ae", photographs, *few, "--out", "ae", cwd=folder, check=0)
    brics("encode-dataset", photographs, "--ae", "ae", "--out", "codes.h5", "--flips", cwd=folder, check=0)
    brics("train-diffusion", "codes.h5", *few, "--out", "diffusion", cwd=folder, check=0)
    with h5py.File(folder / "codes.h5") as file:
        layout: dict[str, str] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                layout[name] = f"{item.dtype.kind if item.dtype.names is None else 'table'} {list(item.shape)}"

        file.visititems(visit)
        attributes = sorted(file.attrs)
        means = [round(float(value), 3) for value in file["stats/mean"][:4]]
    return {
        "autoencoder losses": losses(folder / "ae"),
        "diffusion losses": losses(folder / "diffusion"),
        "store layout": layout,
        "store attributes": attributes,
        "code means": means,
    }


def losses(run: Path) -> list[float]:
    """The training losses that a run logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "photographs")
        folder.mkdir()
        conftest.write_photographs(folder)
        GOLDEN.write_text(json.dumps(measure(folder, Path(name)), indent=2) + "\n")
    print(f"wrote {GOLDEN}")
