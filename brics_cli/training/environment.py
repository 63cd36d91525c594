"""What a run was made with: recorded beside it, so that it can be made again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import brics_cli
from brics_cli.isolation import child_environment


def environment(device: torch.device, *, seed: int) -> dict[str, Any]:
    """What a run was made with: versions, device, seed, command line."""
    packages = ("torch", "torchvision", "numpy", "pillow", "h5py", "safetensors")
    return {
        "brics": brics_cli.__version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "seed": seed,
        "command": ["brics", *sys.argv[1:]],
    }


def _git_commit() -> str | None:
    """The commit of the checkout that brics runs from, `+` for uncommitted changes; None for an installed brics."""
    checkout = Path(brics_cli.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = [
        *("git", "-c", "core.fsmonitor=", "-C", str(checkout)),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=40",
        "--match=",
    ]
    try:
        found = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True, timeout=10)
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
