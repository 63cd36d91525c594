"""Stage 3: what a training step costs. train.py SPEC...;
a SPEC is RECIPE[@BATCH][:compile][:profile][:attention4d][:warm]

compile: with torch.compile; profile: also the kernels that a step's time goes to; attention4d: the encoder's attention
with a head axis, so that the fused kernels take it; warm: fill the compiler's caches, no figures. The paper's loss
wants VGG16; the machine has no weights, so it gets a VGG16 of random ones, which costs the same.
"""

from __future__ import annotations

import json
import sys

import torch
from common import DEVICE, QUICK, attempt, put

from brics_cli.autoencoder.layers import SelfAttention
from brics_cli.bench import train as bench
from brics_cli.config import load_recipe
from brics_cli.runtime.reporting import SilentReporter

REPEATS = 1 if QUICK else 15


def random_vgg(config, *, device="cpu"):
    if config.perceptual.kind not in ("vgg16", "lpips"):
        return real_distance(config, device=device)
    import lpips

    from brics_cli.networks.perceptual import VggFeatureDistance

    model = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False).eval()
    model = model.to(device)
    return VggFeatureDistance(model) if config.perceptual.kind == "vgg16" else (lambda a, b: model(a, b).mean())


def attention_with_heads(self, x):
    q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    h = torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


real_distance, bench.perceptual_distance = bench.perceptual_distance, random_vgg
real_attention = SelfAttention.forward


def run(spec: str) -> None:
    name, *flags = spec.split(":")
    name, _, batch = name.partition("@")
    num = 2 if QUICK else int(batch or 32)
    about = {"recipe": name, "compile": "compile" in flags, "attention4d": "attention4d" in flags, "batch": num}
    SelfAttention.forward = attention_with_heads if "attention4d" in flags else real_attention
    recipe = load_recipe(
        name,
        kind="autoencoder",
        overrides=[f"training.batch_size={num}", "training.precision=bf16"],
        training__compile="compile" in flags,
    )

    def bench_once(repeats: int):
        return bench.bench_train(recipe, device=torch.device(DEVICE), repeats=repeats, reporter=SilentReporter()).value

    def measure() -> None:
        timing = bench_once(1 if "warm" in flags else REPEATS)
        if "warm" in flags:
            put("train-warm", **about)
            return
        rounded = json.loads(json.dumps(timing), parse_float=lambda text: round(float(text), 2))
        put("train", **{**rounded, **about})

    def profile() -> None:
        """The kernels that one step's time goes to, milliseconds and launches per step."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiler

        with profiler(activities=[ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU]) as seen:
            bench_once(1)
        rows = seen.key_averages()
        key = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
        steps = bench.WARMUP_STEPS + 2
        top = sorted(rows, key=lambda row: -getattr(row, key))[:25]
        put(
            "train-profile",
            **about,
            device_ms_per_step=round(sum(getattr(row, key) for row in rows) / 1000 / steps, 2),
            kernels_per_step=sum(row.count for row in rows) // steps,
            kernels=[(row.key[:90], round(getattr(row, key) / 1000 / steps, 3), row.count // steps) for row in top],
        )

    attempt("train", measure, **about)
    if "profile" in flags:
        attempt("train-profile", profile, **about)


for spec in sys.argv[1:]:
    run(spec)
