import pytest
import torch
from torch import Tensor

from brics_cli.autoencoder.discriminator import GAN_LOSSES, Discriminator, r1_penalty
from brics_cli.config.runs import GanConfig


def config(**values: object) -> GanConfig:
    return GanConfig.model_validate({"widths": [8, 16], **values})


def images(num: int = 4) -> Tensor:
    return torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("norm", ["group", "none"])
def test_no_image_sees_another_one(norm: str) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(config(norm=norm))
    together = discriminator(images())
    assert together.shape == (4, 1, 8, 8) and together.dtype == torch.float32
    alone = torch.cat([discriminator(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_logits_are_float32_under_bf16() -> None:
    discriminator = Discriminator(config())
    with torch.autocast("cpu", torch.bfloat16):
        assert discriminator(images()).dtype == torch.float32


def test_losses_are_those_of_their_papers() -> None:
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.0])
    hinge, soft = GAN_LOSSES["hinge"], GAN_LOSSES["non-saturating"]
    assert float(hinge.discriminator(real, fake)) == pytest.approx((0.25 + 0.5) / 2)
    assert float(hinge.autoencoder(fake)) == pytest.approx(1.5)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(2)) + bce(fake, torch.zeros(2))
    assert float(soft.discriminator(real, fake)) == pytest.approx(float(expected))
    assert float(soft.autoencoder(fake)) == pytest.approx(float(bce(fake, torch.ones(2))))


def test_r1_of_a_linear_discriminator_is_its_squared_weight() -> None:
    linear = torch.nn.Conv2d(3, 1, 32)
    penalty = r1_penalty(linear, images())
    assert penalty.detach().item() == pytest.approx(float(linear.weight.square().sum()) / 2, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(linear.weight.grad, linear.weight.detach())


def test_the_penalty_does_not_grow_with_the_image() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(config(norm="none"))
    noise = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    small, large = (float(r1_penalty(discriminator, noise[..., :side, :side]).detach()) for side in (64, 256))
    assert large == pytest.approx(small, rel=0.4)  # not 16 times as large; what is left is the padding's
