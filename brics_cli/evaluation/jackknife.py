"""The standard error of a Fréchet distance, by leaving out one group of the fake images at a time.

Delete-a-group jackknife (Kott 2001): s.e.² = (G - 1) / G * sum (d_g - mean d)², d_g the distance without group g. The
real side is held fixed: it is the reference, and often only its mean and covariance are known. N images, G groups.
"""

from __future__ import annotations

import numpy as np

from brics_cli.evaluation.frechet import FrechetReference, Gaussian
from brics_cli.evaluation.moments import FeatureMoments

NUM_GROUPS = 10


def frechet_standard_error(real: Gaussian, fake: FeatureMoments) -> float | None:
    """The standard error over draws of the fake images; None below two groups or two images a group."""
    num_groups = fake.num_groups
    if num_groups < 2 or fake.num < 2 * num_groups:
        return None
    reference = FrechetReference(real)
    distances = np.array([reference.distance(fake.without(group)) for group in range(num_groups)])
    deviation = np.square(distances - distances.mean()).sum()
    return float(np.sqrt((num_groups - 1) / num_groups * deviation))
