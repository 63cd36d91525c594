"""What `--metric diffusability` measures: each figure's name, its definition, and the paper that it is from. No torch.

`diffusability` computes them. The part of a name before its first hyphen is what is looked at.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

_NORMALISED = "codes normalised by {normalise}"
_DCT = f"2D DCT in zigzag order without the mean, {_NORMALISED}, arXiv 2502.14831"
_T = "error of decode(T codes) against T images over that of decode(codes) against images, T"
_VIV = f"E tr Var(v | x_t) / D, v = eps - x, mean over t in 0.05 ... 0.95, {_NORMALISED}, arXiv 2606.03578"
_NOISY = "PSNR of decode(codes + noise) against images, not rounded, noise of std"
_PRECISION = "arXiv 2305.18601 (relaxed precision)"


class FigureOfCodes(NamedTuple):
    """The fields of a `registry.Metric` that differ between them."""

    name: str
    title: str
    better: Literal["higher", "lower", ""]
    definition: str
    decimals: int = 2
    unit: str = ""


FIGURES = (
    FigureOfCodes(
        "spectrum-slope", "Slope of the codes' spectrum", "", f"exponent of energy against frequency, {_DCT}"
    ),
    FigureOfCodes(
        "spectrum-images", "Slope of the images' spectrum", "", "the same of the images, averaged to the codes' size"
    ),
    FigureOfCodes(
        "spectrum-excess", "High-frequency excess", "lower",
        f"share of energy in the upper half of the frequencies, codes over images at their size, {_DCT}", unit="dB",
    ),
    FigureOfCodes(
        "equivariance-down2", "Equivariance, 2x smaller", "lower", f"{_T}: mean of 2 x 2, arXiv 2502.14831"
    ),
    FigureOfCodes(
        "equivariance-down4", "Equivariance, 4x smaller", "lower", f"{_T}: mean of 4 x 4, arXiv 2502.14831"
    ),
    FigureOfCodes("equivariance-flip", "Equivariance, mirrored", "lower", f"{_T}: left to right, arXiv 2502.09509"),
    FigureOfCodes("equivariance-turn", "Equivariance, turned", "lower", f"{_T}: by 90°, arXiv 2502.09509"),
    FigureOfCodes(
        "equivariance-shift", "Equivariance, shifted", "lower",
        f"{_T}: by one code, without what moves out of sight, arXiv 2502.09509",
    ),
    FigureOfCodes("viv", "VIV of the store", "lower", f"{_VIV}: exact for its N codes, a lower bound", 4),
    FigureOfCodes(
        "viv-local", "VIV of single positions", "lower", f"{_VIV}: exact for 10,000 of them", 4
    ),
    FigureOfCodes(
        "viv-linear", "VIV of a linear denoiser", "lower", f"{_VIV}: its error on unseen codes, an upper bound", 4
    ),
    FigureOfCodes(
        "codes-entropy", "Marginal entropy", "",
        "differential, of a channel over its std (Gaussian 2.05, uniform 1.79), 32 bins, mean over channels, "
        f"{_NORMALISED}, arXiv 2606.03578 (uniformity)", 3, "bits",
    ),
    FigureOfCodes(
        "codes-saturation", "Saturation", "lower", "share of codes within 1/510 of 0 or 1, arXiv 2305.18601 (bounds)", 4
    ),
    FigureOfCodes(
        "codes-kurtosis", "Kurtosis", "",
        f"E (x - mean)^4 / Var^2 (Gaussian 3, uniform 1.8), mean over channels, {_NORMALISED}, "
        "arXiv 2606.03578 (uniformity)",
    ),
    FigureOfCodes(
        "codes-effective-dimension", "Effective dimension", "",
        f"participation ratio (tr S)^2 / tr S^2 of the covariance of whole codes, {_NORMALISED}, "
        "arXiv 2512.05394 (eigenspectrum)", 1,
    ),
    FigureOfCodes(
        "codes-channel-correlation", "Correlation of channels", "",
        f"mean absolute correlation of two channels at a position, {_NORMALISED}, arXiv 2512.05394 (eigenspectrum)", 3,
    ),
    FigureOfCodes(
        "codes-neighbour-correlation", "Correlation of neighbours", "",
        f"of a channel at neighbouring positions, {_NORMALISED}, arXiv 2512.05394 (local correlation)", 3,
    ),
    FigureOfCodes(
        "codes-modes", "Modes", "lower",
        "components (1, 2, 4 ... 128) of the mixture of Gaussians that fits held-out codes best, on 16 principal axes, "
        f"{_NORMALISED}, arXiv 2502.03444", 1,
    ),
    FigureOfCodes(
        "noise-absolute", "PSNR, noise of 0.05", "higher", f"{_NOISY} 0.05 in the codes' units, {_PRECISION}", unit="dB"
    ),
    FigureOfCodes(
        "noise-relative", "PSNR, noise of 0.2 std", "higher", f"{_NOISY} 0.2 of each channel's, {_PRECISION}", unit="dB"
    ),
)  # fmt: skip
