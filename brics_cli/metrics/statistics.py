"""Saved statistics: a .npz with the mean and covariance of features, as clean-fid, pytorch-fid and ADM write them.

D features: `mu` (D,), `sigma` (D, D), float64. Such a file says nothing of N, network or resize.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brics_cli.errors import ArtefactError, machine_error
from brics_cli.metrics.frechet import StoredGaussian
from brics_cli.workspace import sha256_of_file


@dataclass(frozen=True)
class SavedStatistics:
    """The Gaussian of a set of images whose pixels are elsewhere."""

    path: str
    gaussian: StoredGaussian
    sha256: str

    def describe(self) -> str:
        """`saved statistics of 2,048 features`."""
        return f"saved statistics of {self.gaussian.num_features:,} features"

    def check_fits(self, name: str, *, num_features: int) -> None:
        """Raise ArtefactError unless these can be statistics of the network `name`."""
        if self.gaussian.num_features != num_features:
            raise ArtefactError(
                f"{self.path} holds statistics of {self.gaussian.num_features:,} features, and {name} "
                f"has {num_features:,}",
                next="2,048 go with fid, 512 with clip-fid, 1,024 with fd-dinov2.",
            )


def read_statistics(path: Path) -> SavedStatistics:
    """The statistics in `path`. Raises ArtefactError when it holds no finite `mu` (D,) and symmetric `sigma` (D, D)."""
    if path.is_file() and not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and say so at length
        raise ArtefactError(f"{path} is not an .npz of statistics (no zip archive, which an .npz is)")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("mu", "sigma") if name not in file.files]
            if missing:
                raise ArtefactError(
                    f"{path} has no {' and no '.join(missing)} (it has {', '.join(file.files) or 'nothing'})",
                    next="Statistics are an .npz with mu (D) and sigma (D, D), as clean-fid and pytorch-fid write.",
                )
            mean, covariance = (np.asarray(file[name], dtype=np.float64) for name in ("mu", "sigma"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        if (said := machine_error(error, where=path)) is not None:
            raise said from None
        raise ArtefactError(f"{path} is not an .npz of statistics ({_line(error)})") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ArtefactError(f"{path} has mu {mean.shape} and sigma {covariance.shape}, not (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ArtefactError(f"{path} holds statistics that are not finite")
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8):
        raise ArtefactError(f"the sigma in {path} is not symmetric, so it is no covariance")
    return SavedStatistics(
        path=str(path.resolve()),
        gaussian=StoredGaussian(mean, covariance),
        sha256=sha256_of_file(path),
    )


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
