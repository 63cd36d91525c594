"""Saved statistics: a .npz with the mean and covariance of features, as clean-fid, pytorch-fid, ADM and EDM write them.

D features: `mu` (D,), `sigma` (D, D). Such a file says nothing of N, network or resize, and those of clean-fid and
pytorch-fid look the same, though their figures differ. What made it is known where its arrays (ADM's), or the name that
its maker gave it, tell, or where the user does; figures of any other are not comparable. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.evaluation.frechet import Array, StoredGaussian
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
_CLEAN_FID = re.compile(r".+_(clean|legacy_tensorflow|legacy_pytorch)(_clip_vit_b_32)?_[^_]+_(\d+|na)\.npz", re.I)
_EDM = re.compile(r"(cifar10|ffhq|afhqv2|imagenet)-(\d+)x\2\.npz", re.I)
_ADM_STATS = re.compile(r"adm_in(\d+)_stats\.npz", re.I)


@dataclass(frozen=True)
class SavedStatistics:
    """The Gaussian of a set of images whose pixels are elsewhere.

    `network`: what made the features, as the registry names it, and `evidence`, how that is known; None: nobody says.
    `image_size`: of the images, where the name tells.
    """

    path: str
    gaussian: StoredGaussian
    sha256: str
    network: str | None
    evidence: str | None
    image_size: int | None

    def describe(self) -> str:
        """`saved statistics of 2,048 features, inception-clean (by the name that clean-fid gives)`."""
        of = "a network that nobody names" if self.network is None else f"{self.network} ({self.evidence})"
        return f"saved statistics of {self.gaussian.num_features:,} features, {of}"

    def how_to_say(self) -> str:
        """What a user types who knows which network it was."""
        known = [name for name, num in NUM_FEATURES.items() if num == self.gaussian.num_features]
        return f"If you know it: --statistics-by {' or '.join(known)}." if known else ""

    def check_made_by(self, network: str) -> None:
        """Raise ArtefactError unless these can be statistics of `network`, as the registry names it."""
        num_features = NUM_FEATURES.get(network)
        if num_features not in (None, self.gaussian.num_features):
            raise ArtefactError(
                f"{self.path} holds statistics of {self.gaussian.num_features:,} features, and {network} "
                f"has {num_features:,}",
                next="2,048 go with fid, 512 with clip-fid, 1,024 with fd-dinov2.",
            )
        if self.network not in (None, network):
            raise ArtefactError(
                f"{self.path} holds statistics of {self.network} ({self.evidence}), and what is measured is {network}",
                next=_HOW_TO_MEASURE[self.network or ""],
            )


def check_network(name: str) -> str:
    """`name` as a network that saved statistics may be of. Raises UsageError with the nearest."""
    if name not in NUM_FEATURES:
        near = did_you_mean(name, NUM_FEATURES) or f"; there are: {', '.join(NUM_FEATURES)}"
        raise UsageError(f"--statistics-by: no network {name!r}{near}")
    return name


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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ArtefactError(f"{path} is not an .npz of statistics ({_line(error)})") from None
    _check_gaussian(path, mean, covariance)
    known, evidence, image_size = _maker(path, names, len(mean))
    if network is not None and known != network:
        if names & {"mu_s", "sigma_s"}:
            raise UsageError(f"--statistics-by {network}: {path} holds statistics of {known} ({evidence})")
        known, evidence = network, "as --statistics-by says"
    return SavedStatistics(
        path=str(path.resolve()),
        gaussian=StoredGaussian(mean.astype(np.float64), covariance.astype(np.float64)),
        sha256=sha256_of_file(path),
        network=known,
        evidence=evidence,
        image_size=image_size,
    )


def _maker(path: Path, names: set[str], num_features: int) -> tuple[str | None, str | None, int | None]:
    """Network, how that is known, and image size, by the arrays and by the name that the maker gives."""
    tensorflow = "inception-legacy-tensorflow"
    if names & {"mu_s", "sigma_s"}:
        return tensorflow, "its arrays mu_s and sigma_s are those of ADM's evaluator", None
    if found := _CLEAN_FID.fullmatch(path.name):
        mode, clip, size = found.groups()
        network = "clip" if clip else f"inception-{mode.lower().replace('_', '-')}"
        known = network, "by its name, which is clean-fid's", int(size) if size.isdigit() else None
    elif found := _EDM.fullmatch(path.name):
        known = tensorflow, "by its name, which is EDM's", int(found[2])
    elif found := _ADM_STATS.fullmatch(path.name):
        known = tensorflow, "by its name, which is that of ADM's statistics", int(found[1])
    else:
        return None, None, None
    return known if NUM_FEATURES[known[0]] == num_features else (None, None, known[2])


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


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
