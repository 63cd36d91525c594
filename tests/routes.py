"""Which files somebody reads who follows one image through a command: `python tests/routes.py`.

A file is on the route when one of its functions has the data in its hands (an array or tensor of many elements, or the
bytes of a file, as an argument or a result), or called a function that has. Networks are one call: what is inside
`forward`, `encode` or `decode` of a model is not followed. Threads are followed, child processes are not.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import brics_cli

PACKAGE = str(Path(brics_cli.__file__).parent)
OPAQUE = ("Autoencoder.encode", "Autoencoder.decode", ".forward", ".of_prepared")
ASIDE = {
    "load_autoencoder", "load_autoencoder_of", "load_store_autoencoder", "load_denoiser", "build_autoencoder",
    "build_denoiser", "read_bytes", "read_text", "read_json", "parse_json", "contact_sheet", "median_side", "end_step",
    "quantisation_cost",
}  # fmt: skip
"""Making models, reading records, drawing sheets, measuring beside, ending a step: no part of the way of one image."""
ASIDE_FILES = {"evaluation/cache.py", "images/fingerprints.py"}
"""Recognising what was seen before."""
STARTER = "cli/app.py"
"""It starts every command, and is not listed."""
MANY = 100


def is_data(value: Any) -> bool:
    """Whether a value is an image, codes, noise, features, or the bytes of a file; or a list or tuple of such."""
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value) >= MANY
    if type(value).__module__ in ("torch", "numpy"):
        shape = getattr(value, "shape", ())
        return len(shape) > 0 and math.prod(shape) >= MANY
    if isinstance(value, list | tuple):
        return any(is_data(item) for item in value[:4])
    return False


def file_of(frame: FrameType) -> str:
    """The file of a frame of `brics_cli`, below the package."""
    return str(Path(frame.f_code.co_filename).relative_to(PACKAGE))


class Route:
    """The files of `brics_cli` that data passes through while `work` runs, in the order in which they are met."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.files: dict[str, str] = {}
        self._inside: dict[int, FrameType] = {}
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        try:
            work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _look(self, frame: FrameType, event: str, result: Any) -> None:
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        thread = threading.get_ident()
        within = self._inside.get(thread)
        if within is not None:
            if event == "return" and frame is within:
                del self._inside[thread]
            return
        code = frame.f_code
        if event == "call" and (code.co_name in ASIDE or file_of(frame) in ASIDE_FILES):
            self._inside[thread] = frame
            return
        if event == "call":
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            has = any(is_data(frame.f_locals.get(name)) for name in names)
        else:
            has = is_data(result)
        if not has:
            return
        chain: list[FrameType] = []
        each: FrameType | None = frame
        while each is not None:
            if each.f_code.co_filename.startswith(PACKAGE) and file_of(each) != STARTER:
                chain.append(each)
            each = each.f_back
        for one in reversed(chain):
            self.files.setdefault(file_of(one), one.f_code.co_qualname)
        if event == "call" and code.co_qualname.endswith(OPAQUE):
            self._inside[thread] = frame


def routes(folder: Path) -> dict[str, Route]:
    """The routes of the house, run on small things made in `folder`."""
    from commands import brics
    from diffusion_workspace import make_workspace
    from image_files import noise
    from random_autoencoder import make_autoencoder

    make_workspace(folder)
    for side in ("images", "others"):
        (folder / side).mkdir()
        for number in range(4):
            data = noise(number + 9 * (side == "others"), side=64)
            (folder / side / f"{number}.png").write_bytes(data)
    make_autoencoder(folder / "ae", seed=0)

    def run(*words: str) -> Callable[[], object]:
        return lambda: brics(*words, cwd=folder, check=0)

    return {
        "seed -> PNG": Route(run("sample", "--n", "2", "--steps", "2", "--format", "png", "--out", "drawn")),
        "image -> row": Route(run("encode-dataset", "images", "--ae", "ae", "--out", "rows.h5")),
        "image -> FD": Route(run("eval", "--real", "images", "--fake", "others", "--metric", "fd-random")),
        "row -> step": Route(
            run("train-diffusion", "rows.h5", "--recipe", "tiny", "--steps", "1", "--set", "training.batch_size=2",
                "--set", "training.val_every=99", "--out", "run")
        ),
    }  # fmt: skip


if __name__ == "__main__":
    import tempfile

    for name, route in routes(Path(tempfile.mkdtemp())).items():
        print(f"{name}: {len(route.files)} files")
        for path, function in route.files.items():
            print(f"    {path:40} {function}")
