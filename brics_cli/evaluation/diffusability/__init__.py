"""How easily the codes of a store are diffused, said without training a diffusion model: one pass, twenty figures.

`spectrum`, `velocity` and `distribution` look at the codes as `train-diffusion` would normalise them, `decoding` at
what the autoencoder makes of changed ones, beside the images they came from. `figures_of_codes` names each figure's
paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brics_cli.autoencoder.autoencoder import to_tensor
from brics_cli.diffusion.normalisation import normalisation, to_x
from brics_cli.errors import UsageError
from brics_cli.evaluation.diffusability import distribution, velocity
from brics_cli.evaluation.diffusability.decoding import Decoded
from brics_cli.evaluation.diffusability.distribution import Figure
from brics_cli.evaluation.diffusability.figure import VIV_STYLES, draw
from brics_cli.evaluation.diffusability.spectrum import NUM_GROUPS, Spectra
from brics_cli.evaluation.family import Family, Output, Score, Side
from brics_cli.evaluation.images import StoreStream
from brics_cli.evaluation.registry import Metric, Settings
from brics_cli.images.selection import spread
from brics_cli.runtime.precision import computing
from brics_cli.workspace.naming import CURVES

MOST_ROWS = 10_000
"""Codes that distribution and velocity look at, evenly spread over the store."""
MOST_DECODED = 1_000
"""Images whose changed codes are decoded, evenly spread over those that are paired."""
LEAST_IMAGES = 4


class Diffusability(Family):
    """Takes images with the positions of their codes in the store, `add(real, positions)`."""

    of_codes = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        source = self.sides["fake"]
        assert isinstance(source, StoreStream)  # `_check_sides` has seen to it
        self.store, self.source = source.store, source
        num = min(len(source), self.context.limit or len(source))
        self._every = -(-num // MOST_DECODED)
        self._rows = spread(num, MOST_ROWS)
        _, height, width = self.store.code_shape
        self.spectra = Spectra(height, width)
        self.decoded = Decoded(
            source.autoencoder, code_shape=self.store.code_shape, std=self.store.std, device=source.device
        )
        self._num = 0
        self._drawn = False
        self._scores: dict[str, Score] = {}

    @classmethod
    def outputs(cls, settings: Settings) -> Sequence[Output]:
        return [] if settings.plot is None else [Output(settings.plot, "the figure", "--plot", CURVES)]

    @property
    def num(self) -> int:
        return self._num

    def add(self, *what: Any) -> None:
        """`real` (B, H, W, 3) uint8 and the `positions` of their codes."""
        real, positions = what
        codes = self.store.batch(positions)  # (B, C, h, w)
        self.spectra.add(self._normalise(codes), real)
        some = np.arange(self._num, self._num + len(real)) % self._every == 0
        self._num += len(real)
        if some.any():
            device, rows = self.source.device, [at for at, taken in zip(positions, some, strict=True) if taken]
            with computing(self.source.precision, device):
                self.decoded.add(torch.from_numpy(codes[some]).to(device), to_tensor(real[some], device), rows)

    def result(self, metric: Metric) -> Score:
        """Raises UsageError where a figure is not defined for these codes."""
        settings = self.context.settings
        if self._num < LEAST_IMAGES:
            raise UsageError(
                f"{metric.group} needs at least {LEAST_IMAGES} images with their codes, there are {self._num}"
            )
        if settings.plot is not None and not self._drawn:
            self._drawn = True
            draw({self.store.path.name: self._shown()}, path=settings.plot)
        return self._score(metric.name)

    def _shown(self) -> dict[str, dict[str, Any]]:
        """The scores whose details the figure shows, as far as they are defined."""
        shown = {}
        for name in SHOWN:
            with suppress(UsageError):
                shown[name] = vars(self._score(name))
        return shown

    def _score(self, name: str) -> Score:
        if name not in self._scores:
            part, _, which = name.partition("-")
            figure, kind, num, details = self._parts[part](which)
            num_images = None if part in OF_CODES else num
            self._scores[name] = Score(*figure, kind, num_real=num_images, num_fake=num, details=details)
        return self._scores[name]

    @cached_property
    def _parts(self) -> Mapping[str, Callable[[str], tuple[Figure, str, int, dict[str, Any] | None]]]:
        return {
            "spectrum": self._spectrum,
            "equivariance": self._equivariance,
            "viv": self._viv,
            "codes": self._distribution,
            "noise": self._noise,
        }

    def _spectrum(self, which: str) -> tuple[Figure, str, int, dict[str, Any] | None]:
        if self.spectra.height * self.spectra.width < 4:
            raise UsageError("codes of fewer than 4 positions have no spectrum")
        figures = {"slope": lambda: self.spectra.slope(0), "images": lambda: self.spectra.slope(1)}
        figure = figures.get(which, self.spectra.excess)()
        return figure, JACKKNIFE, self._num, self.spectra.curves() if which == "excess" else None

    def _equivariance(self, which: str) -> tuple[Figure, str, int, dict[str, Any] | None]:
        if which not in self.decoded.transforms:
            raise UsageError(
                f"codes of {self.spectra.height} x {self.spectra.width} cannot be transformed so ({which})"
            )
        return self.decoded.ratio(which), "standard error over images", self.decoded.num, None

    def _noise(self, which: str) -> tuple[Figure, str, int, dict[str, Any] | None]:
        level = {"absolute": 0.05, "relative": 0.2}[which]
        figure = self.decoded.psnr(which, level)
        return figure, "standard error over images", self.decoded.num, self.decoded.curve(which)

    def _viv(self, which: str) -> tuple[Figure, str, int, dict[str, Any] | None]:
        rows = self._x.reshape(len(self._x), -1).astype(np.float64)
        if which == "linear":
            found, kind = velocity.linear(rows), "standard error over codes"
        else:
            if which == "local":
                rows = self._x.transpose(0, 2, 3, 1).reshape(-1, self._x.shape[1]).astype(np.float64)  # (N h w, C)
                rows = np.random.default_rng(velocity.SEED).permutation(rows)[:MOST_ROWS]
            found, kind = velocity.empirical(rows), "standard error over draws of x_t"
        curve = {"t": list(velocity.TIMES), "viv": found.by_time.tolist(), "errors": found.errors.tolist()}
        return (found.mean, found.error), kind, len(self._x), curve

    def _distribution(self, which: str) -> tuple[Figure, str, int, dict[str, Any] | None]:
        details: dict[str, Any] | None = None
        kind, num = JACKKNIFE, len(self._rows)
        match which:
            case "entropy":
                figure, by_channel = distribution.entropy(self._x)
                bounded = self.store.code_kind == "bounded"
                histograms = distribution.histograms(self._z if bounded else self._x, bounded=bounded)
                details = {"channels": by_channel.tolist(), "histograms": histograms}
            case "saturation":
                if self.store.code_kind != "bounded":
                    raise UsageError("saturation is of codes in [0, 1], and these can be any number")
                figure, by_channel = distribution.saturation(self._z)
                kind, details = "standard error over codes", {"channels": by_channel.tolist()}
            case "modes":
                if num < 16:
                    raise UsageError(f"modes need at least 16 codes, there are {num}")
                figure, gains = distribution.modes(self._x)
                kind, details = f"over {distribution.MODE_FOLDS} folds", {"gains": gains}
            case _:
                figure = getattr(distribution, which.replace("-", "_"))(self._x)
        return figure, kind, num, details

    @cached_property
    def _z(self) -> NDArray[np.float32]:
        """The codes that distribution and velocity look at, as they are: (N, C, h, w)."""
        return self.store.batch(self._rows)

    @cached_property
    def _x(self) -> NDArray[np.float32]:
        """The same, normalised."""
        return self._normalise(self._z)

    def _normalise(self, codes: NDArray[np.float32]) -> NDArray[np.float32]:
        mean, std, levels = self._statistics
        return to_x(torch.from_numpy(codes), mean, std, levels).numpy()

    @cached_property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        store = self.store
        mean, std, levels = normalisation(
            self.context.settings.normalise,
            mean=store.mean.tolist(),
            std=store.std.tolist(),
            histogram=store.histogram.tolist() if self.context.settings.normalise == "probit" else None,
            code_kind=store.code_kind,
        )
        tables = None if levels is None else torch.tensor(levels)
        return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None], tables


JACKKNIFE = f"jackknife over {NUM_GROUPS} groups of codes"
OF_CODES = ("viv", "codes")
"""Figures that no image plays a part in."""
SHOWN = ("spectrum-excess", *VIV_STYLES, "codes-entropy")
"""Those whose details the figure shows."""
