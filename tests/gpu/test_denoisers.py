"""Both denoisers on CUDA: as on the CPU, in bf16, compiled, and with gradient checkpointing in less memory."""

from __future__ import annotations

import pytest
import torch

from brics_cli.config import DenoiserConfig, DiffusionConfig, DiTConfig, UNetConfig
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser
from brics_cli.diffusion.diffusion import draws_for

pytestmark = pytest.mark.gpu

SHAPE = (16, 16, 16)
NETWORKS: dict[str, DenoiserConfig] = {
    "dit": DiTConfig(dim=128, depth=6, num_heads=4),
    "unet": UNetConfig(dim=64, multipliers=(1, 2, 3), dropout=0.1),
}


@pytest.fixture(params=NETWORKS)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    torch.manual_seed(0)
    made = build_denoiser(
        NETWORKS[request.param],
        DiffusionConfig(),
        code_shape=SHAPE,
        num_classes=3,
        store_mean=[0.5] * SHAPE[0],
        store_std=[0.2] * SHAPE[0],
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def loss(denoiser: torch.nn.Module, device: str, *, batch: int = 8) -> torch.Tensor:
    codes = torch.rand((batch, *SHAPE), generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(batch) % 3).to(device)
    draws = draws_for(0, step=0, indices=range(batch), shape=SHAPE, device=device)
    found: torch.Tensor = denoiser(codes, draws, labels=labels).per_sample
    return found


def test_cuda_trains_as_the_cpu_does(denoiser: Denoiser) -> None:
    """Dropout included: its masks are the same on every device."""
    expected = loss(denoiser, "cpu").detach()
    torch.testing.assert_close(loss(denoiser.cuda(), "cuda").cpu(), expected, rtol=2e-2, atol=1e-2)


def test_bf16_training_is_finite_and_near(denoiser: Denoiser) -> None:
    denoiser.cuda()
    exact = loss(denoiser, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = loss(denoiser, "cuda")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    found.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_one_compiled_graph_gives_the_same_loss(denoiser: Denoiser, gradient_checkpointing: bool) -> None:
    denoiser.cuda().network.gradient_checkpointing = gradient_checkpointing
    torch._dynamo.reset()
    compiled = torch.compile(denoiser, fullgraph=True)
    found = loss(compiled, "cuda")
    torch.testing.assert_close(found, loss(denoiser, "cuda"), rtol=2e-2, atol=1e-2)
    found.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())


def test_gradient_checkpointing_needs_less_memory(denoiser: Denoiser) -> None:
    denoiser.cuda()
    peaks = []
    for gradient_checkpointing in (False, True):
        denoiser.network.gradient_checkpointing = gradient_checkpointing
        denoiser.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        loss(denoiser, "cuda", batch=64).mean().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.6 * peaks[0], peaks
