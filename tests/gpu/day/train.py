"""Stage 3: what a training step costs. train.py SPEC...;
a SPEC is RECIPE[@BATCH][:compile][:profile][:clnorm][:placenorm][:fp32][:tf32][:warm]

compile: with torch.compile; profile: also the kernels that a step's time goes to; clnorm: group norms that keep what
comes in channels last and in its own type, each compiled alone; placenorm: norms over channels in their place; fp32,
tf32: in place of bf16; warm: fill the compiler's caches, no figures. What of these is worth having is chosen by their
figures. The paper's loss wants VGG16; the machine has no weights, so it gets a VGG16 of random ones, which costs the
same. `mfu` is of the bf16 product's rate that stage env measured.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
from common import DEVICE, QUICK, attempt, put, results

from brics_cli.autoencoder import layers
from brics_cli.bench import train as bench
from brics_cli.config import load_recipe
from brics_cli.runtime.precision import full_precision
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.estimate import estimate, rehearse_autoencoder

REPEATS = 1 if QUICK else 15


def random_vgg(config, *, device="cpu"):
    if config.perceptual.kind not in ("vgg16", "lpips"):
        return real_distance(config, device=device)
    import lpips

    from brics_cli.networks.perceptual import VggFeatureDistance

    model = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False).eval()
    model = model.to(device)
    return VggFeatureDistance(model) if config.perceptual.kind == "vgg16" else (lambda a, b: model(a, b).mean())


def group_norm_channels_last(x, weight, bias, groups: int, eps: float):
    """(B, C, H, W) channels last -> the same, in its own type; moments in float32."""
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, h * w, groups, c // groups)
    variance, mean = torch.var_mean(rows.float(), dim=(1, 3), keepdim=True, correction=0)
    normed = (rows.float() - mean) * torch.rsqrt(variance + eps)
    out = normed.reshape(b, h, w, c) * weight + bias
    return out.to(x.dtype).permute(0, 3, 1, 2)


class ChannelsLastGroupNorm(torch.nn.GroupNorm):
    compute = staticmethod(group_norm_channels_last)

    def forward(self, x):
        with full_precision(x.device):
            return type(self).compute(x, self.weight, self.bias, self.num_groups, self.eps)


def channels_last_norm(channels: int) -> torch.nn.Module:
    plain = real_norms["group"](channels)
    return ChannelsLastGroupNorm(plain.num_groups, channels, eps=plain.eps)


real_distance, bench.perceptual_distance = bench.perceptual_distance, random_vgg
real_norms = dict(layers.NORMS)


def run(spec: str) -> None:
    name, *flags = spec.split(":")
    name, _, batch = name.partition("@")
    num = 2 if QUICK else int(batch or 32)
    norm = "channels last" if "clnorm" in flags else "place" if "placenorm" in flags else "group"
    precision = next((each for each in ("fp32", "tf32") if each in flags), "bf16")
    about = {"recipe": name, "compile": "compile" in flags, "norm": norm, "precision": precision, "batch": num}
    layers.NORMS.update({**real_norms, "group": {"channels last": channels_last_norm}.get(norm, real_norms["group"])})
    if norm == "channels last" and DEVICE == "cuda":
        ChannelsLastGroupNorm.compute = staticmethod(torch.compile(group_norm_channels_last, dynamic=False))
    of_norm = ["model.encoder.norm=place", "model.decoder.norm=place"] if norm == "place" else []
    recipe = load_recipe(
        name,
        kind="autoencoder",
        overrides=[f"training.batch_size={num}", f"training.precision={precision}", *of_norm],
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
        put("train", **{**rounded, **about, "mfu": mfu(timing["ms_per_step"])})

    def mfu(ms_per_step: float) -> float | None:
        """The arithmetic of a step, counted on meta tensors, over what the card did of bf16 products in that time."""
        ceilings = [row for row in results() if row["stage"] == "ceilings"]
        if not ceilings or recipe.loss.perceptual.kind in ("vgg16", "lpips"):
            return None
        counted = estimate(partial(rehearse_autoencoder, recipe), steps=1, device=torch.device("cpu"), measure=False)
        rate = 1e9 * counted.gflop_per_step / (ms_per_step / 1000)
        return round(rate / (1e12 * ceilings[-1]["bf16_tflops"]), 3)

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
