"""Attention takes a fused kernel: the weights of all positions on all positions are never stored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brics_cli.autoencoder.layers import SelfAttention
from brics_cli.diffusion.denoisers.unet import Attention

FLASH = 1
"""`_fused_sdp_choice`: 0 is the math path, which stores (HW)² weights per image."""


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("attention", [SelfAttention(32), Attention(32, head_dim=16)], ids=["autoencoder", "unet"])
def test_attention_reaches_a_fused_kernel(attention, memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 32, 8, 6).contiguous(memory_format=memory_format).requires_grad_()
    seen = []
    fused = F.scaled_dot_product_attention

    def watched(q, k, v):
        assert q.ndim == 4
        seen.append(torch._fused_sdp_choice(q, k, v))
        return fused(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    y = attention(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert seen == [FLASH]

    def plain(q, k, v):
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return weights @ v

    monkeypatch.setattr(F, "scaled_dot_product_attention", plain)
    expected = attention(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grad, *torch.autograd.grad(expected.square().sum(), x), rtol=1e-4, atol=1e-4)
