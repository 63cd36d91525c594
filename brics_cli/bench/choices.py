"""What the options of `brics bench` choose from, by name. No torch: help pages list it."""

from __future__ import annotations

from brics_cli.config.bottlenecks import BOTTLENECK_CONFIGS

SCALES = {
    "code": "16 x 16 tokens, 8 groups of 2 keys, 4 levels",
    "paper": "64 x 64 tokens, 4 groups of (key, y, x), 16 levels",
    "paper-16": "64 x 64 tokens, 16 groups of (key, y, x), 16 levels",
}
"""Scales of `bench retrieval`; `bench.retrieval` has their numbers."""

_POSITIONS = ("model.bottleneck.key_dim=1", "model.bottleneck.resolutions=[4,8,16]")
VARIANTS: dict[str, tuple[str, ...]] = {
    "grid": (),
    "grid-1d": ("model.bottleneck.key_dim=1",),
    "grid-3d": ("model.bottleneck.key_dim=3", "model.bottleneck.resolutions=[4,8,12,16]", "model.code_channels=15"),
    "grid-positions": ("model.bottleneck.positions=image", *_POSITIONS),
    "grid-cell": ("model.bottleneck.positions=cell", *_POSITIONS),
    "hash": ("model.bottleneck.kind=hash", "model.bottleneck.table_cap=256"),
}
VARIANTS |= {kind: (f"model.bottleneck.kind={kind}",) for kind in BOTTLENECK_CONFIGS if kind not in VARIANTS}
"""Variants of `bench bottlenecks` -> what each changes in the recipe, which has the grid as it is."""
DEFAULT_VARIANTS = ("grid", "none", "kl", "fsq", "vq", "rq")
