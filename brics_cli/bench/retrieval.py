"""`brics bench retrieval`: seconds per image of feature-grid retrieval, backend by backend (DESIGN section 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from brics_cli.bench.timing import device_name, median_seconds
from brics_cli.kernels import functional, reference
from brics_cli.kernels.functional import GridSpec

# (queries per image, groups, spec): the code's own resolution at 256 px with f = 16, and four times that side.
SCALES: dict[str, tuple[int, int, GridSpec]] = {
    "16 x 16 tokens, 8 groups of 2D, 4 levels": (16 * 16, 8, GridSpec(2, (4, 8, 16, 32), 4)),
    "64 x 64 tokens, 8 groups of 2D, 8 levels": (64 * 64, 8, GridSpec(2, (16, 19, 23, 28, 34, 42, 52, 64), 4)),
    "64 x 64 tokens, 4 groups of 3D, 4 levels": (64 * 64, 4, GridSpec(3, (16, 24, 32, 48), 4)),
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image of one backend at one scale."""

    scale: str
    backend: str
    forward_ms: float
    forward_backward_ms: float


def bench_retrieval(*, device: torch.device, batch_size: int, repeats: int) -> tuple[str, list[Timing]]:
    """The device's name, and a timing for every scale and backend, on random codes in float32."""
    backends: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
        "reference": (reference.retrieve, reference.retrieve_backward),
        "torch": (functional.grid_sample_forward, functional.grid_sample_backward),
    }
    timings = []
    for scale, (tokens, num_groups, spec) in SCALES.items():
        generator = torch.Generator().manual_seed(0)
        keys = torch.rand(num_groups, batch_size * tokens, spec.key_dim, generator=generator).to(device)
        tables = torch.randn(num_groups, spec.num_vertices, spec.level_dim, generator=generator).to(device)
        grad = torch.randn(num_groups, batch_size * tokens, spec.num_features, generator=generator).to(device)
        for name, (forward, backward) in backends.items():

            def once(forward: Callable[..., Tensor] = forward) -> Tensor:
                return forward(keys, tables, spec.resolutions)  # noqa: B023 - called before the loop goes on

            def both(forward: Callable[..., Tensor] = forward, backward: Callable[..., object] = backward) -> object:
                forward(keys, tables, spec.resolutions)  # noqa: B023
                return backward(grad, keys, tables, spec.resolutions)  # noqa: B023

            seconds = [median_seconds(work, device=device, repeats=repeats) for work in (once, both)]
            timings.append(Timing(scale, name, *(1000 * each / batch_size for each in seconds)))
    return device_name(device), timings
