"""Stage 2: retrieval. `brics bench retrieval` at every scale, and the same kernels on codes as smooth as real ones.

Bars: forward and backward at least 4 times as fast as the torch path, and at least half of the memory's floor, at
paper scale. Two floors are printed: `unique` (every byte once) and `corners` (every corner read on its own).
"""

from __future__ import annotations

import sys

import torch
from common import DEVICE, QUICK, attempt, put

from brics_cli.bench import retrieval as bench
from brics_cli.bench.timing import copy_bytes_per_s, median_seconds
from brics_cli.kernels.reference import by_token


def measure(scales: list[str], dtype: str, batch: int) -> None:
    found = bench.bench_retrieval(
        device=torch.device(DEVICE),
        batch_size=batch,
        repeats=2 if QUICK else 20,
        scales=scales,
        tables_dtype=dtype,
        budget_s=1.0 if QUICK else 2.0,
    ).value
    by_name = {}
    for timing in found["timings"]:
        if timing["forward"] is None:
            put("retrieval", scale=timing["scale"], backend=timing["backend"], not_measured=timing["not_measured"])
            continue
        by_name[timing["scale"], timing["backend"]] = timing
        fwd, both = timing["forward"], timing["forward_backward"]
        put(
            "retrieval",
            scale=timing["scale"],
            backend=timing["backend"],
            tables=dtype,
            batch=batch,
            copy_gb_per_s=round(found["copy_gb_per_s"], 1),
            forward_us_per_img=round(1000 * fwd["ms_per_img"], 2),
            both_us_per_img=round(1000 * both["ms_per_img"], 2),
            forward_of_unique=round(fwd["of_unique_floor"], 3),
            forward_of_corners=round(fwd["of_corner_floor"], 3),
            both_of_unique=round(both["of_unique_floor"], 3),
            both_of_corners=round(both["of_corner_floor"], 3),
            forward_unique_gb_per_s=round(fwd["of_unique_floor"] * found["copy_gb_per_s"], 1),
            both_unique_gb_per_s=round(both["of_unique_floor"] * found["copy_gb_per_s"], 1),
            both_corner_gb_per_s=round(both["of_corner_floor"] * found["copy_gb_per_s"], 1),
            peak_mib=timing["peak_memory_mib"],
        )
    for scale in scales:
        if (scale, "triton") in by_name and (scale, "torch") in by_name:
            ours, torchs = by_name[scale, "triton"], by_name[scale, "torch"]
            both = torchs["forward_backward"]["ms_per_img"] / ours["forward_backward"]["ms_per_img"]
            put(
                "retrieval-bar",
                scale=scale,
                tables=dtype,
                batch=batch,
                times_torch_forward=round(torchs["forward"]["ms_per_img"] / ours["forward"]["ms_per_img"], 2),
                times_torch_both=round(both, 2),
                at_least_4=both >= 4,
                both_of_unique=round(ours["forward_backward"]["of_unique_floor"], 3),
                both_of_corners=round(ours["forward_backward"]["of_corner_floor"], 3),
            )


def smooth(batch: int) -> None:
    """Random codes are the worst case for caches; real ones vary smoothly from position to position."""
    if DEVICE == "cuda":
        from brics_cli.kernels import triton_retrieve as kernels
    else:
        from brics_cli.kernels import torch_retrieve as kernels
    scale = bench.SCALES["paper"]
    spec, side = scale.spec, scale.lattice[0]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch * scale.num_groups, 1, 9, 9, generator=generator)
    keys = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    keys = keys.view(batch, scale.num_groups, -1, 1).transpose(0, 1).reshape(scale.num_groups, -1, 1).to(DEVICE)
    tables = torch.randn(scale.num_groups, spec.num_vertices, 4, generator=generator).to(DEVICE)
    grad = torch.randn(scale.num_groups, keys.shape[1], spec.num_features, generator=generator).to(DEVICE)
    grad = by_token(grad)  # as it comes back from a network, channels last
    bandwidth = copy_bytes_per_s(torch.device(DEVICE))
    floors = bench._floor_bytes(keys, tables, spec, scale.lattice)

    def forward():
        return kernels.retrieve(keys, tables, spec, scale.lattice)

    def both():
        return kernels.retrieve(keys, tables, spec, scale.lattice), kernels.retrieve_backward(
            grad, keys, tables, spec, scale.lattice
        )

    for name, work, (unique, corners) in zip(("forward", "both"), (forward, both), floors, strict=True):
        s = median_seconds(work, device=torch.device(DEVICE), repeats=2 if QUICK else 20)
        put(
            "retrieval-smooth",
            batch=batch,
            what=name,
            us_per_img=round(1e6 * s / batch, 2),
            of_unique=round(unique / bandwidth / s, 3),
            of_corners=round(corners / bandwidth / s, 3),
        )


if QUICK:
    attempt("retrieval", lambda: measure(["code"], "fp32", 2))
    attempt("retrieval-smooth", lambda: smooth(1))
    sys.exit()
attempt("retrieval", lambda: measure(["code", "paper"], "fp32", 32))
attempt("retrieval-smooth", lambda: smooth(32))
attempt("retrieval", lambda: measure(["paper"], "bf16", 32))
attempt("retrieval", lambda: measure(["paper-16"], "fp32", 8))
attempt("retrieval", lambda: measure(["code"], "fp32", 256))
