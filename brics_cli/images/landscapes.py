"""Landscapes drawn from a seed: a collection that is on every machine and that no model has seen.

Behind each other: sky, sun or moon, three or four ranges of hills that fade into the haze, and a lake that mirrors all
of it. The hour is the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIZE = 64
NUM_TRAIN, NUM_HELD_OUT = 2400, 96  # of `brics demo`
HOURS = {
    "dawn": ((0.42, 0.50, 0.74), (0.98, 0.78, 0.70), (1.00, 0.90, 0.72), (0.26, 0.24, 0.38)),
    "day": ((0.24, 0.50, 0.86), (0.80, 0.90, 0.97), (1.00, 1.00, 0.92), (0.16, 0.36, 0.20)),
    "dusk": ((0.30, 0.18, 0.42), (0.98, 0.52, 0.22), (1.00, 0.80, 0.40), (0.16, 0.09, 0.16)),
    "night": ((0.02, 0.03, 0.10), (0.12, 0.18, 0.34), (0.94, 0.94, 0.88), (0.01, 0.02, 0.05)),
}
"""sRGB in [0, 1] of the sky above and at the horizon, the sun or moon, and the nearest hills."""
COLOUR_SPREAD = 0.03
WAVES = np.arange(1, 12)
"""Of which a ridge is made: how many there are in 5/4 of the picture's width; the shorter, the lower."""


class Landscape(NamedTuple):
    """A picture (64, 64, 3) uint8, its name, and its hour, one of HOURS."""

    name: str
    hour: str
    pixels: np.ndarray


def landscapes(num: int, *, seed: int) -> Iterator[Landscape]:
    """`num` landscapes, each hour as often as the others; number i depends on (seed, i) alone."""
    for number in range(num):
        hour = list(HOURS)[number % len(HOURS)]
        yield Landscape(f"{number:05d}", hour, draw_landscape(hour, np.random.default_rng([seed, number])))


def draw_landscape(hour: str, generator: np.random.Generator) -> np.ndarray:
    """(64, 64, 3) uint8. Lengths are in sides of the picture, from the left and from the top."""
    above, horizon, light, near = (np.clip(generator.normal(each, COLOUR_SPREAD), 0, 1) for each in HOURS[hour])
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5)[..., None] / SIZE
    shore = generator.uniform(0.66, 0.9)
    picture = _over(above, horizon, np.minimum(y / shore, 1) ** generator.uniform(0.7, 1.4))

    left, top, radius = generator.uniform((0.15, 0.12, 0.04), (0.85, 0.45, 0.08))
    distance = np.hypot(x - left, y - top)
    picture = _over(picture, light, 0.5 * np.exp(-((distance / (4 * radius)) ** 2)))
    picture = _over(picture, light, _inside(radius - distance))

    farthest = generator.uniform(0.42, 0.55)
    for nearness in np.linspace(0, 1, int(generator.integers(3, 5))):
        heights, phases = generator.normal(size=len(WAVES)) / WAVES, generator.random(len(WAVES))
        waves = (heights * np.sin(2 * np.pi * (0.8 * WAVES * x[:1] + phases))).sum(-1, keepdims=True)  # (1, 64, 1)
        ridge = farthest + 0.9 * nearness * (shore - farthest) - (0.075 - 0.03 * nearness) * waves
        hill = _over(_over(horizon, near, 0.3 + 0.7 * nearness), horizon, 0.35 * np.clip((y - ridge) / 0.25, 0, 1))
        picture = _over(picture, hill, _inside(y - ridge))

    row = int(shore * SIZE)
    picture[row:] = _over(picture[row - 1 : 2 * row - SIZE - 1 : -1], above, 0.25)
    return np.rint(255 * picture).astype(np.uint8)


def _over(behind: np.ndarray, front: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    return behind + (front - behind) * share


def _inside(depth: np.ndarray) -> np.ndarray:
    """How much of a pixel is inside an edge that is `depth` away: edges are smooth over one pixel."""
    return np.clip(depth * SIZE + 0.5, 0, 1)
