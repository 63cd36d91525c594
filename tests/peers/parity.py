"""Every metric beside the peer that defines it, on the same images, features and weights.

Two folders of N real photographs' crops go through our pipeline and through the peers' own; arithmetic that a peer
does on features gets the same features. Peers: clean-fid, open_clip, torch-fidelity, scikit-image, lpips,
pytorch-msssim. N images, D features. `PYTHONPATH=tests python -m peers.parity --num-images 64` prints the table.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn

from brics_cli.bench.evaluate import BATCH_SIZE, write_images
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.inception_score import inception_score
from brics_cli.evaluation.kernel import kernel_distance
from brics_cli.evaluation.manifold import manifold_scores
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.reconstruction import ms_ssim, psnr, ssim
from brics_cli.evaluation.rows import ArrayRows
from brics_cli.networks.clip import ClipFeatures, load_clip
from brics_cli.networks.features import FeatureNetwork, quiet_jit
from brics_cli.networks.inception import INCEPTION_FILE, NUM_CLASSES, fid_inception, load_inception
from brics_cli.networks.perceptual import LpipsFeatures, load_lpips
from brics_cli.networks.weights import find

Features = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Parity:
    """One metric: our value, the peer's, and their relative difference."""

    metric: str
    ours: float
    peer: float
    peer_name: str

    @property
    def difference(self) -> float:
        """|ours - peer| / |peer|; of zero, |ours|."""
        return abs(self.ours - self.peer) / (abs(self.peer) or 1.0)


def parity(
    directory: Path, real: Path, fake: Path, *, networks: Mapping[str, FeatureNetwork], device: torch.device
) -> list[Parity]:
    """The table. `real` and `fake` hold PNG files; the file of Inception is in `directory`, and what has to be written
    goes there."""
    images = {side: [np.array(Image.open(file)) for file in sorted(side.iterdir())] for side in (real, fake)}
    inception, clip = (
        [_features(networks[name], images[side]) for side in (real, fake)] for name in ("inception-clean", "clip")
    )
    network = clean_fid_network(directory, device=device)
    by_clean_fid = [clean_fid_features(side, network, device=device, num_workers=0) for side in (real, fake)]
    by_open_clip = [_open_clip_features(images[side], networks) for side in (real, fake)]
    rows = [
        Parity("fid, files to figure", _fid(*inception), _clean_fid(*by_clean_fid), "clean-fid"),
        Parity("clip-fid, pixels to figure", _fid(*clip), _clean_fid(*by_open_clip), "open_clip, clean-fid"),
        *_on_features(*inception),
    ]
    blurred = [np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))) for image in images[real]]
    return rows + _on_pairs(directory, np.stack(images[real]), np.stack(blurred), device=device)


def clean_fid_distance(features: Features, reference: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
    """clean-fid's Fréchet distance of features (N, D) from a mean and covariance; its formula with scipy's root where
    the installed scipy breaks its call."""
    from cleanfid import fid as cleanfid

    mean, covariance = np.mean(features, axis=0), np.cov(features, rowvar=False)
    try:
        return float(cleanfid.frechet_distance(mean, covariance, *reference))
    except TypeError:  # scipy >= 1.18 no longer takes the argument that clean-fid gives
        import scipy.linalg

        root = scipy.linalg.sqrtm(covariance @ reference[1])
        difference = mean - reference[0]
        return float(difference @ difference + np.trace(covariance + reference[1]) - 2 * np.trace(root).real)


def _features(network: FeatureNetwork, images: Sequence[Pixels]) -> Features:
    starts = range(0, len(images), BATCH_SIZE)
    with ThreadPoolExecutor(2) as pool:
        return np.concatenate([network.features(images[start : start + BATCH_SIZE], pool=pool) for start in starts])


def _fid(real: Features, fake: Features) -> float:
    sides = []
    for features in (real, fake):
        moments = FeatureMoments(features.shape[1])
        moments.update(features)
        sides.append(moments)
    return frechet_distance(*sides)


def _clean_fid(real: Features, fake: Features) -> float:
    return clean_fid_distance(fake, (np.mean(real, axis=0), np.cov(real, rowvar=False)))


def clean_fid_network(directory: Path, *, device: torch.device) -> nn.Module:
    """clean-fid's wrapper of the file of Inception in `directory`, which brics reads too."""
    from cleanfid.inception_torchscript import InceptionV3W

    network: nn.Module = InceptionV3W(str(directory), download=False).to(device).eval()
    return network


def clean_fid_features(folder: Path, network: nn.Module, *, device: torch.device, num_workers: int) -> Features:
    """The features (N, D) of the images of a folder, as clean-fid reads, resizes and feeds them."""
    from cleanfid import fid as cleanfid

    features: Features = cleanfid.get_folder_features(
        str(folder), network, num_workers=num_workers, batch_size=BATCH_SIZE, device=device, mode="clean", verbose=False
    )
    return features


@torch.inference_mode()
def _open_clip_features(images: Sequence[Pixels], networks: Mapping[str, FeatureNetwork]) -> Features:
    """open_clip's own preprocessing, and its model."""
    preprocess = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    clip = networks["clip"]
    assert isinstance(clip, ClipFeatures)
    parts = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images[start : start + BATCH_SIZE]])
        parts.append(clip.network.encode_image(batch.to(clip.device)).float().cpu().numpy())
    return np.concatenate(parts)


def _on_features(real: Features, fake: Features) -> list[Parity]:
    """What is arithmetic on features, with the same features for both."""
    from cleanfid import fid as cleanfid

    sides = ArrayRows(real), ArrayRows(fake)
    # Up to 1,000 images, clean-fid's subsets are the whole sets: no choice is left to chance.
    their_kid = float(cleanfid.kernel_distance(fake.astype(np.float64), real.astype(np.float64), num_subsets=2))
    manifold = manifold_scores(*sides, k=3, closed=True)
    logits = (fake - fake.mean(axis=0)) / fake.std()  # any numbers do that are far from uniform
    theirs = _torch_fidelity(real, fake, logits)
    return [
        Parity("kid", kernel_distance(*sides).value, their_kid, "clean-fid"),
        Parity("is", inception_score(logits).value, theirs["is"], "torch-fidelity"),
        Parity("precision", float(manifold.precision.mean()), theirs["precision"], "torch-fidelity"),
        Parity("recall", float(manifold.recall.mean()), theirs["recall"], "torch-fidelity"),
    ]


def _torch_fidelity(real: Features, fake: Features, logits: Features) -> dict[str, float]:
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    score = isc_features_to_metric(torch.from_numpy(logits))
    manifold = prc_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=1000,
        save_cpu_ram=False,
        verbose=False,
    )
    return {
        "is": score["inception_score_mean"],
        "precision": float(manifold["precision"]),
        "recall": float(manifold["recall"]),
    }


def _on_pairs(directory: Path, a: Pixels, b: Pixels, *, device: torch.device) -> list[Parity]:
    """What compares an image with its copy, here one blurred by 1.5 px: means over the pairs."""
    import lpips
    from pytorch_msssim import ms_ssim as peer_ms_ssim
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    def mean(compare: Callable[[Pixels, Pixels], Any]) -> float:
        return float(np.mean([float(compare(x, y)) for x, y in zip(a, b, strict=True)]))

    def gaussian_ssim(x: Pixels, y: Pixels) -> Any:
        return structural_similarity(
            x, y, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    path = directory / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in _backbone(peer).state_dict().items()}, path)
    model = load_lpips(path, net="alex", device=device)
    with torch.inference_mode():
        their_lpips = mean(lambda x, y: peer(lpips.im2tensor(x), lpips.im2tensor(y)))
    their_psnr = mean(lambda x, y: peak_signal_noise_ratio(x, y, data_range=255))
    x, y = (torch.from_numpy(side).permute(0, 3, 1, 2).double() for side in (a, b))
    their_ms_ssim = float(peer_ms_ssim(x, y, data_range=255))
    return [
        Parity("psnr", float(np.mean(psnr(a, b))), their_psnr, "scikit-image"),
        Parity("ssim", float(np.mean(ssim(a, b))), mean(gaussian_ssim), "scikit-image"),
        Parity("ms-ssim", float(np.mean(ms_ssim(a, b))), their_ms_ssim, "pytorch-msssim"),
        Parity(
            "lpips (alex)", float(np.mean(LpipsFeatures(model, device=device).distance(a, b))), their_lpips, "lpips"
        ),
    ]


def _backbone(model: nn.Module) -> nn.Module:
    """The layers of lpips's AlexNet under the names that torchvision's file gives them."""
    features = nn.Module()
    for number in range(1, 6):
        for name, layer in getattr(model.net, f"slice{number}").named_children():
            features.add_module(name, layer)
    return features


class _Inception(nn.Module):
    """The signature of NVIDIA's file around `layers`."""

    def __init__(self, layers: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, NUM_CLASSES)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        features: Tensor = self.layers((img - 128) / 128)
        if return_features:
            return features
        logits: Tensor = self.output(features)
        return logits


def standin_networks(directory: Path, *, device: torch.device) -> dict[str, FeatureNetwork]:
    """Inception and CLIP on `device`: the published files where they are there, else the same architectures with
    random weights. The file of Inception is in `directory`."""
    file = directory / INCEPTION_FILE
    with torch.random.fork_rng(), quiet_jit():
        torch.manual_seed(0)
        if (published := find("inception")) is not None:
            shutil.copy(published.path, file)
        else:
            model = fid_inception(init_weights=True).eval()
            model.fc = nn.Identity()
            layers = torch.jit.trace(model, torch.zeros(2, 3, 299, 299), check_trace=False)
            torch.jit.script(_Inception(layers)).save(str(file))
        if (found := find("clip-vit-b-32")) is not None:
            clip = load_clip(found.path, device=device)
        else:
            network = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, precision="fp32", device=device)
            network.visual.image_mean = open_clip.OPENAI_DATASET_MEAN
            network.visual.image_std = open_clip.OPENAI_DATASET_STD
            clip = ClipFeatures(network, device)
    return {"inception-clean": load_inception(file, device=device), "clip": clip}


def main() -> None:
    """Print the parity table of crops and of blurred crops of the bundled photographs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--num-images", type=int, default=64)
    num_images = parser.parse_args().num_images
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = [Path(directory) / name for name in ("real", "fake")]
        for seed, side in enumerate(sides):
            write_images(side, num_images, seed=seed)
        for file in sides[1].iterdir():  # far from the other side, so that a distance is not mere rounding
            Image.open(file).filter(ImageFilter.GaussianBlur(6)).save(file)
        device = torch.device("cpu")
        networks = standin_networks(Path(directory), device=device)
        for row in parity(Path(directory), *sides, networks=networks, device=device):
            print(f"{row.metric:28} {row.ours:<16.9g} {row.peer:<16.9g} {row.peer_name:20} {row.difference:.1e}")


if __name__ == "__main__":
    main()
