"""Saved statistics: a .npz with the mean and covariance of features, as clean-fid, pytorch-fid, ADM and EDM write them.

D features: `mu` (D,), `sigma` (D, D). Such a file says nothing of N, network or resize, and those of clean-fid and
pytorch-fid look the same, though their figures differ. What made it is known where its arrays (ADM's), or the name that
its maker gave it, tell, or where the user does; figures of any other are not comparable. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import ArtefactError, UsageError, first_line
from brics_cli.evaluation.moments import Array, Gaussian
from brics_cli.networks.features import Image
from brics_cli.workspace import sha256_of_file

NUM_FEATURES: dict[str, int] = {
    "inception-clean": 2048,
    "inception-legacy-tensorflow": 2048,
    "inception-legacy-pytorch": 2048,
    "clip": 512,
    "dinov2": 1024,
}
"""Network, as the registry names it, that saved statistics may be of -> features of an image."""

PICKLES = (".pkl", ".pickle", ".pt", ".pth")
"""How the statistics of StyleGAN, EDM2 and torch-fidelity end."""

_HOW_TO_MEASURE = {"clip": "Use --metric clip-fid.", "dinov2": "Use --metric fd-dinov2."} | {
    key: f"Use --mode {key.removeprefix('inception-')}." for key in NUM_FEATURES if key.startswith("inception-")
}
_OTHER_ARRAYS = {
    "feats": "Those are clean-fid's features for KID; the statistics for FID stand in the file without _kid.",
    "reps": "Those are dgm-eval's features of each image, not their mean and covariance.",
}
_NAMES = {
    "clean-fid's": r".+_(?P<mode>clean|legacy_tensorflow|legacy_pytorch)(?P<clip>_clip_vit_b_32)?_[^_]+_"
    r"(?P<size>\d+|na)\.npz",
    "EDM's": r"(cifar10|ffhq|afhqv2|imagenet)-(?P<size>\d+)x(?P=size)\.npz",
    "that of ADM's statistics": r"adm_in(?P<size>\d+)_stats\.npz",
}
"""Whose names they are -> pattern. `mode`: clean-fid's; the others resize as TensorFlow did. `size`: of the images."""


@dataclass(frozen=True)
class SavedStatistics:
    """The Gaussian of a set of images whose pixels are elsewhere: a side without images.

    `network`: what made the features, as the registry names it, and `evidence`, how that is known; None: unknown.
    `image_size`: of the images, where the name tells. `identity`: the sha256 of the file.
    """

    path: str
    gaussian: Gaussian
    identity: str
    network: str | None
    evidence: str | None
    image_size: int | None

    kind = "statistics"
    keys: Sequence[str] = ()
    failures: Sequence[Any] = ()

    def __len__(self) -> int:
        return 0

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        return iter(())

    @property
    def num_features(self) -> int:
        return len(self.gaussian.mean)

    def describe(self) -> str:
        """`saved statistics of 2,048 features, inception-clean (by the name that clean-fid gives)`."""
        of = "an unknown network" if self.network is None else f"{self.network} ({self.evidence})"
        return f"saved statistics of {self.num_features:,} features, {of}"

    def how_to_say(self) -> str:
        """What a user types who knows which network it was."""
        known = [name for name, num in NUM_FEATURES.items() if num == self.num_features]
        return f"If you know it: --statistics-by {' or '.join(known)}." if known else ""

    def check_made_by(self, network: str) -> None:
        """Raise ArtefactError unless these can be statistics of `network`, as the registry names it."""
        if self.network not in (None, network):
            raise ArtefactError(
                f"{self.path} holds statistics of {self.network} ({self.evidence}), and what is measured is {network}",
                next=_HOW_TO_MEASURE[self.network or ""],
            )
        num_features = NUM_FEATURES.get(network)
        if num_features not in (None, self.num_features):
            raise ArtefactError(
                f"{self.path} holds statistics of {self.num_features:,} features, and {network} has {num_features:,}",
                next="2,048 go with fid, 512 with clip-fid, 1,024 with fd-dinov2.",
            )


def check_network(name: str) -> None:
    """Raise UsageError, with the nearest or all, unless saved statistics may be of the network `name`."""
    if name not in NUM_FEATURES:
        raise UsageError(f"--statistics-by: no network {name!r}{did_you_mean(name, NUM_FEATURES)}")


def read_statistics(path: Path, *, network: str | None = None) -> SavedStatistics:
    """The statistics in `path`, which the user says are of `network` (None: says nothing).

    Raises ArtefactError when it holds no finite `mu` (D,) and symmetric, positive semidefinite `sigma` (D, D);
    UsageError when its arrays are those of another network than `network`.
    """
    if path.suffix.lower() in PICKLES:
        raise ArtefactError(
            f"{path} is a pickle, as StyleGAN, EDM2 and torch-fidelity keep statistics, and brics opens none",
            next="Where you trust it, save numpy.savez('stats.npz', mu=mu, sigma=sigma) of what it holds, and give "
            "that with --statistics-by NETWORK.",
        )
    if path.is_file() and not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and say so at length
        raise ArtefactError(f"{path} is not an .npz of statistics (no zip archive, which an .npz is)")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            missing = [name for name in ("mu", "sigma") if name not in names]
            if missing:
                other = next((said for name, said in _OTHER_ARRAYS.items() if name in names), None)
                raise ArtefactError(
                    f"{path} has no {' and no '.join(missing)} (it has {', '.join(file.files) or 'nothing'})",
                    next=other
                    or "Statistics are an .npz with mu (D) and sigma (D, D), as clean-fid and pytorch-fid write.",
                )
            mean, covariance = file["mu"], file["sigma"]
    except PermissionError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ArtefactError(f"{path} is not an .npz of statistics ({first_line(error)})") from None
    _check_gaussian(path, mean, covariance)
    known, evidence, image_size = _maker(path, names, len(mean))
    if network is not None and known != network:
        if names & {"mu_s", "sigma_s"}:
            raise UsageError(f"--statistics-by {network}: {path} holds statistics of {known} ({evidence})")
        known, evidence = network, "as --statistics-by says"
    gaussian = Gaussian(mean.astype(np.float64), covariance.astype(np.float64))
    return SavedStatistics(str(path.resolve()), gaussian, sha256_of_file(path), known, evidence, image_size)


def _maker(path: Path, names: set[str], num_features: int) -> tuple[str | None, str | None, int | None]:
    """Network, how that is known, and image size, by the arrays and by the name that the maker gives."""
    if names & {"mu_s", "sigma_s"}:
        return "inception-legacy-tensorflow", "its arrays mu_s and sigma_s are those of ADM's evaluator", None
    for whose, pattern in _NAMES.items():
        if found := re.fullmatch(pattern, path.name, re.IGNORECASE):
            told: dict[str, str] = {"mode": "legacy_tensorflow", "clip": "", **found.groupdict("")}
            network = "clip" if told["clip"] else f"inception-{told['mode'].lower().replace('_', '-')}"
            size = int(told["size"]) if told["size"].isdigit() else None
            if NUM_FEATURES.get(network) == num_features:
                return network, f"by its name, which is {whose}", size
            return None, None, size
    return None, None, None


def _check_gaussian(path: Path, mean: Array, covariance: Array) -> None:
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ArtefactError(f"{path} has mu {mean.shape} and sigma {covariance.shape}, not (D,) and (D, D)")
    if {mean.dtype.kind, covariance.dtype.kind} - set("fiu"):
        raise ArtefactError(f"{path} has mu of {mean.dtype} and sigma of {covariance.dtype}, which are no real numbers")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ArtefactError(f"{path} holds statistics that are not finite")
    rounding = float(np.finfo(covariance.dtype).eps) if covariance.dtype.kind == "f" else 0.0
    covariance = covariance.astype(np.float64)
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8):
        raise ArtefactError(f"the sigma in {path} is not symmetric, so it is no covariance")
    largest = float(np.abs(covariance).max())
    allowed = max(1e-6, rounding * len(mean)) * largest + np.finfo(np.float64).tiny
    try:
        np.linalg.cholesky(covariance + allowed * np.eye(len(mean)))
    except np.linalg.LinAlgError:
        raise ArtefactError(
            f"the sigma in {path} has negative variances (is not positive semidefinite), so it is no covariance"
        ) from None
