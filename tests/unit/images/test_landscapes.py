"""The landscapes that the demo draws: the same from the same seed, each its own, as often of every hour."""

from __future__ import annotations

from collections import Counter

import numpy as np

from brics_cli.images.landscapes import HOURS, landscapes


def test_a_landscape_depends_on_its_seed_and_number_alone() -> None:
    some, more, others = (list(landscapes(num, seed=seed)) for num, seed in ((8, 0), (12, 0), (12, 1)))
    assert all((one.pixels == two.pixels).all() for one, two in zip(some, more, strict=False))
    assert len({one.pixels.tobytes() for one in more + others}) == 24
    assert Counter(one.hour for one in more) == dict.fromkeys(HOURS, 3)
    assert len({one.name for one in more}) == 12


def test_hours_differ_in_their_light() -> None:
    drawn = list(landscapes(40, seed=0))
    assert all(one.pixels.shape == (64, 64, 3) and one.pixels.dtype == np.uint8 for one in drawn)
    mean = {hour: np.mean([one.pixels for one in drawn if one.hour == hour]) for hour in HOURS}
    assert mean["night"] < 60 < mean["dusk"] < mean["day"]
