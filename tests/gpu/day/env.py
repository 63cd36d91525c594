"""Stage 0: what is on the machine, whether brics imports there, and the two ceilings: copy bandwidth, bf16 product."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import os
import pkgutil
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

from common import DEVICE, QUICK, attempt, put, synchronise


def packages() -> None:
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    wanted = re.findall(
        r'^    "([A-Za-z0-9_.-]+)(?:>=([0-9.]+))?"', text.split("dependencies = [")[1].split("]")[0], re.M
    )
    found, missing, old = {}, [], []
    for name, least in wanted:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        ours, theirs = (tuple(int(n) for n in re.findall(r"\d+", v)[:3]) for v in (least or "0", found[name]))
        if theirs < ours:
            old.append(f"{name} {found[name]} < {least}")
    put(
        "env",
        python=sys.version.split()[0],
        packages=found,
        missing=missing,
        too_old=old,
        cpus=os.cpu_count(),
        compiler=shutil.which("gcc") or shutil.which("cc"),
    )


def imports() -> None:
    import brics_cli

    bad = []
    for module in pkgutil.walk_packages(brics_cli.__path__, "brics_cli."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            bad.append(f"{module.name}: {type(error).__name__}: {error}"[:200])
    put("imports", failed_modules=bad)


def ceilings() -> None:
    import torch

    def seconds(work, repeats: int = 20) -> float:
        for _ in range(3):
            work()
        times = []
        for _ in range(2 if QUICK else repeats):
            synchronise()
            start = time.perf_counter()
            work()
            synchronise()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    size = 2**20 if QUICK else 2**30
    source = torch.rand(size, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    source = target = torch.empty(0)  # their memory is wanted for the products
    n = 256 if QUICK else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * n**3 / seconds(lambda: a @ b)
    c, d = a.float(), b.float()
    full = 2 * n**3 / seconds(lambda: c @ d, 5)
    put(
        "ceilings",
        copy_gb_per_s=copy / 1e9,
        bf16_tflops=product / 1e12,
        fp32_tflops=full / 1e12,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        device=torch.cuda.get_device_name(0) if DEVICE == "cuda" else "cpu",
    )


def doctor() -> None:
    from brics_cli.jobs.doctor import diagnose

    put("doctor", checks=[(each.name, each.ok, each.found[:200]) for each in diagnose(Path())])


attempt("env", packages)
attempt("imports", imports)
attempt("ceilings", ceilings)
attempt("doctor", doctor)
