"""`brics doctor`: is this machine ready? Each check says what it found, and what to do where something is wrong."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch

import brics_cli
from brics_cli.errors import BricsError, as_brics_error
from brics_cli.kernels import GridSpec, grid_retrieve, reference
from brics_cli.kernels.functional import backend, missing_for_triton
from brics_cli.runtime.device import memory_bytes
from brics_cli.runtime.threads import free_cores

LEAST_FREE_GIB = 5.0
RETRIEVAL_TOLERANCE = 1e-5
PACKAGES = ("torch", "torchvision", "h5py", "pillow", "clean-fid", "open-clip-torch", "typer", "rich")


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis. `advice` is there when `ok` is not."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def diagnose(workspace: Path) -> list[Check]:
    """Run every check; a check that fails unexpectedly is a failed check, not an error."""
    return list(_run_all(workspace))


def _run_all(workspace: Path) -> Iterator[Check]:
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("versions", _versions),
        ("torchvision", _torchvision),
        ("device", _device),
        ("memory", _memory),
        ("disk", lambda: _disk(workspace)),
        ("compiler", _compiler),
        ("kernels", _kernels),
    ]
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # a broken installation can fail in any way, and saying so is this command's job
            expected: BricsError | None = as_brics_error(error)
            yield Check(name, False, str(expected or f"{type(error).__name__}: {error}"), "Install brics afresh.")


def _versions() -> Check:
    found = [f"brics {brics_cli.__version__}", f"Python {platform.python_version()}"]
    missing = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    advice = f"pip install {' '.join(missing)}" if missing else ""
    return Check("versions", not missing, ", ".join(found), advice)


def _torchvision() -> Check:
    # The CPU wheel of torch beside PyPI's torchvision fails at exactly this operator. Its library alone is loaded: its
    # package takes longer to import than torch itself.
    found = find_spec("torchvision")
    for library in Path(found.origin).parent.glob("_C*") if found is not None and found.origin else ():
        torch.ops.load_library(library)
    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([0.9, 0.8])
    ok = torch.ops.torchvision.nms(boxes, scores, 0.5).tolist() == [0]
    return Check("torchvision", ok, "fits torch" if ok else "does not fit torch", "" if ok else "Install both anew.")


def _device() -> Check:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("device", True, f"CUDA {torch.version.cuda}: {', '.join(names)}")
    cpus = f"CPU, {free_cores()} of {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return Check("device", True, f"{cpus}; no GPU: tiny recipes take minutes here, the others days")


def _memory() -> Check:
    gib = memory_bytes(torch.device("cpu")) / 2**30
    if math.isinf(gib):
        return Check("memory", True, "unknown on this system")
    return Check("memory", gib >= 4, f"{gib:.1f} GiB", "" if gib >= 4 else "Training needs 4 GiB.")


def _disk(workspace: Path) -> Check:
    free = shutil.disk_usage(workspace).free / 2**30
    with NamedTemporaryFile(dir=workspace, prefix=".brics-doctor-") as file:
        file.write(b"x")
    ok = free >= LEAST_FREE_GIB
    advice = "" if ok else "Free some space, or give another --workspace."
    return Check("disk", ok, f"{workspace.resolve()}: {free:.1f} GiB free, can be written", advice)


def _compiler() -> Check:
    """Triton builds what launches its kernels with a C compiler."""
    missing = missing_for_triton()
    if not missing:
        return Check("compiler", True, "Triton can build kernels")
    if torch.cuda.is_available():
        return Check("compiler", False, f"Triton needs {missing}", "Until then torch looks up features, more slowly.")
    return Check("compiler", True, f"on CUDA Triton would need {missing}")


def _kernels() -> Check:
    """Retrieval of the chosen backend, on the device at hand, against the reference in float64."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    spec = GridSpec(2, (4, 16), 4)
    keys = torch.rand(3, 257, 2, generator=generator)
    tables = torch.randn(3, spec.num_vertices, 4, generator=generator)
    exact = reference.retrieve(keys.double(), tables.double(), spec)
    error = float((grid_retrieve(keys.to(device), tables.to(device), spec).cpu() - exact).abs().max())
    ok = error < RETRIEVAL_TOLERANCE
    found = f"backend {backend(device)} on {device}: within {error:.1e} of the float64 reference"
    return Check("kernels", ok, found, "" if ok else "Use BRICS_KERNELS=reference, and report this.")
