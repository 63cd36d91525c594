"""Last stage of `measure`: the distributed code on one GPU. NCCL with one rank (that its calls run at all), and the
real train-ae in two processes on the one device over gloo against one process: the losses must agree.

distributed_smoke.py nccl | worker ARGUMENTS | pair DATA
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from common import DEVICE, QUICK, attempt, put


def nccl() -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1")
    device = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    from brics_cli.runtime.distributed import World

    hosts = dist.new_group(backend="gloo")
    world = World(rank=0, size=2, device=device, hosts=hosts)  # says two, so that the calls are made; there is one
    net = torch.nn.Conv2d(3, 8, 3).to(device).to(memory_format=torch.channels_last)
    forward = world.replicate(net)
    for now in (False, True):
        with world.averaging(forward, now=now):
            with torch.autocast(device.type, torch.bfloat16, enabled=DEVICE == "cuda"):
                out = forward(torch.rand(2, 3, 8, 8, device=device))
            out.float().mean().backward()
    world.average_gradients(net)
    world.add_up([torch.ones(3, dtype=torch.float64, device=device)])
    ok = world.total([1.0, 2.0]) == [1.0, 2.0] and world.lead(lambda: "led") == "led" and not world.any(False)
    dist.destroy_process_group()
    put("nccl-one-rank", ok=ok)


def worker(words: list[str]) -> None:
    """`brics WORDS` in one of two processes that share a device: gloo in place of NCCL, which refuses that."""
    import brics_cli.runtime.distributed as ours
    from brics_cli.cli.app import run

    start, says = dist.init_process_group, ours._torchrun_says
    ours.dist.init_process_group = lambda backend, **settings: start("gloo", **settings)
    ours._torchrun_says = lambda name, otherwise: 0 if name == "LOCAL_RANK" else says(name, otherwise=otherwise)
    ours.num_local_processes = lambda: 1  # each believes that it is the only one on its machine, on cuda:0
    sys.exit(run(words))


def pair(data: str) -> None:
    steps = "4" if QUICK else "20"
    settings = [
        "train-ae",
        data,
        "--recipe",
        "tiny",
        "--steps",
        steps,
        "--set",
        "training.log_every=1",
        "--set",
        f"training.precision={'bf16' if DEVICE == 'cuda' else 'fp32'}",
        "--device",
        DEVICE,
        "--set",
        "gan.weight=0.2",
        "--set",
        "training.accumulate=2",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            __file__,
            "worker",
        ]
        for name, command in (("two", torchrun), ("one", [sys.executable, "-m", "brics_cli"])):
            out = str(Path(folder) / name)
            done = subprocess.run([*command, *settings, "--out", out], env=env, capture_output=True, text=True)
            if done.returncode:
                put("two-processes", ok=False, which=name, exit=done.returncode, said=done.stderr[-1500:])
                return
            rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
            losses[name] = [row["train/l1"] for row in rows if "train/l1" in row]
    worst = max(abs(a - b) for a, b in zip(losses["one"], losses["two"], strict=True))
    put("two-processes", ok=worst < (2e-2 if DEVICE == "cuda" else 1e-4), worst=worst, steps=len(losses["one"]))


match sys.argv[1:]:
    case ["nccl"]:
        attempt("nccl-one-rank", nccl)
    case ["worker", *words]:
        worker(words)
    case ["pair", data]:
        attempt("two-processes", lambda: pair(data))
