"""Feature networks through their real loaders, beside the packages that others use (stand-in weights)."""

from __future__ import annotations

from pathlib import Path

import lpips
import numpy as np
import open_clip
import pytest
import standin_weights
import torch
from cleanfid import fid as cleanfid
from cleanfid.resize import build_resizer
from PIL import Image
from torch import nn

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.networks.clip import load_clip
from brics_cli.networks.inception import load_inception
from brics_cli.networks.perceptual import LPIPS_MIN_SIDE, load_lpips, load_lpips_features

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def pictures(num: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Smooth random uint8 images (num, height, width, 3), not noise that every resize averages away."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (num, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(image).resize((width, height), Image.BICUBIC)) for image in small])


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (300, 451), (17, 33)])
def test_inception_resize_is_bit_equal_to_clean_fids(tmp_path: Path, shape: tuple[int, int]) -> None:
    network = load_inception(standin_weights.save_random_inception(tmp_path))
    image = pictures(1, *shape)[0]
    prepared = network.prepare(image)
    assert prepared.shape == (299, 299, 3)
    np.testing.assert_array_equal(prepared, build_resizer("clean")(image))


def test_inception_features_equal_clean_fids_on_files(tmp_path: Path) -> None:
    network = load_inception(standin_weights.save_random_inception(tmp_path))
    images = pictures(5, 48, 64)
    files = []
    for index, image in enumerate(images):
        files.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image).save(files[-1])
    features = network.features(list(images))
    theirs = cleanfid.get_files_features(
        files, network.network, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    assert features.shape == (5, 2048)
    assert features.std(axis=0).mean() > 0.01  # a degenerate network would agree with anything
    np.testing.assert_allclose(features, theirs, rtol=0, atol=1e-6)  # channels last adds up in another order


def test_clip_features_equal_open_clips_preprocessing_and_model(tmp_path: Path) -> None:
    path = standin_weights.save_clip(tmp_path)
    network = load_clip(path)
    images = pictures(3, 260, 391)
    preprocess = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    model = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
    with torch.no_grad():
        theirs = model.encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images])).numpy()
    features = network.features(list(images))
    assert features.shape == (3, 512)
    assert features.std(axis=0).mean() > 1e-3
    np.testing.assert_allclose(features, theirs, rtol=0, atol=1e-6)


def test_clip_runs_in_float32_with_quick_gelu(tmp_path: Path) -> None:
    network = load_clip(standin_weights.save_clip(tmp_path)).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert any(type(module).__name__ == "QuickGELU" for module in network.visual.modules())


@pytest.mark.parametrize(("net", "side"), [("alex", 64), ("vgg", 32)])
def test_lpips_equals_the_package_with_the_same_backbone(tmp_path: Path, net: str, side: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    features = nn.Module()
    for slice_ in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5):
        for name, layer in slice_.named_children():
            features.add_module(name, layer)
    path = standin_weights.save_backbone(tmp_path / f"{net}.pth", features)
    a, b = pictures(2, side, side), pictures(2, side, side, seed=1)
    before = torch.get_rng_state()
    ours = load_lpips_features(path, net=net).distance(a, b)
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        expected = theirs(lpips.im2tensor(a[:1][0]), lpips.im2tensor(b[:1][0])).item()
    assert ours.shape == (2,)
    assert ours[0] > 0
    assert ours[0] == pytest.approx(expected, rel=1e-5)


def test_lpips_says_when_images_are_too_small(tmp_path: Path) -> None:
    backbone = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).net
    features = nn.Module()
    for slice_ in (backbone.slice1, backbone.slice2, backbone.slice3, backbone.slice4, backbone.slice5):
        for name, layer in slice_.named_children():
            features.add_module(name, layer)
    network = load_lpips_features(standin_weights.save_backbone(tmp_path / "alex.pth", features), net="alex")
    smallest = LPIPS_MIN_SIDE["alex"]
    assert network.distance(pictures(1, smallest, smallest), pictures(1, smallest, smallest)).shape == (1,)
    with pytest.raises(UsageError, match=f"at least {smallest} px, these are {smallest - 1} x {smallest - 1}"):
        network.distance(pictures(1, smallest - 1, smallest - 1), pictures(1, smallest - 1, smallest - 1))


def test_a_backbone_of_another_network_is_refused(tmp_path: Path) -> None:
    path = standin_weights.save_backbone(tmp_path / "x.pth", nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ArtefactError, match=r"features\.0\.weight does not fit"):
        load_lpips(path, net="vgg")


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_inception, standin_weights.INCEPTION_FILE),
        (load_clip, standin_weights.CLIP_FILE),
        (lambda path: load_lpips(path, net="alex"), "alexnet-owt-7be5be79.pth"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, load: object, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"<html>404 not found</html>")
    with pytest.raises(ArtefactError, match=f"{name} is not"):
        load(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ArtefactError, match=f"{name} is not"):
        load(path)


def test_a_clip_of_another_input_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="256 px, not ViT-B/32"):
        load_clip(standin_weights.save_clip(tmp_path, image_size=256))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = load_inception(standin_weights.save_random_inception(tmp_path))
    with torch.no_grad():
        for parameter in network.network.base.parameters():  # all: a fused ReLU may swallow the NaN of one
            parameter.fill_(float("nan"))
    with pytest.raises(MachineError, match="not finite"):
        network.features(list(pictures(1, 32, 32)))
