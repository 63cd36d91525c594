"""Other people's arithmetic, called so that it works with the versions at hand."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from cleanfid import fid as cleanfid


def clean_fid(a: np.ndarray, b: np.ndarray) -> float:
    """clean-fid's figure; where its call of sqrtm is broken (scipy >= 1.18), the same formula with scipy's own."""
    try:
        return float(cleanfid.fid_from_feats(a, b))
    except TypeError:
        covariances = [np.cov(rows, rowvar=False) for rows in (a, b)]
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        difference = a.mean(axis=0) - b.mean(axis=0)
        return float(difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root))
