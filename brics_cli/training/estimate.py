"""What a training run costs, before it begins. Nothing is trained, and little is computed.

The arithmetic of a step, forward and backward, is counted on meta tensors (2 per multiply-add), and so is its memory:
the weights with all that training keeps of them, and what autograd saves for the backward pass. Time is arithmetic over
a rate: of the device at hand a measured one, of named GPUs a share of what is published of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.losses import perceptual_distance
from brics_cli.codes import KeyCodeStore
from brics_cli.config import AutoencoderRecipe, DiffusionRecipe
from brics_cli.diffusion.diffusion import draws_for
from brics_cli.runtime.distributed import World, world_size
from brics_cli.runtime.precision import computing, training_precision
from brics_cli.training.adversary import build_adversary
from brics_cli.training.codes import build_for_store
from brics_cli.training.state import TrainingState
from brics_cli.training.step import autoencoder_loss
from brics_cli.training.terms import build_code_terms

# A checkpoint holds the weights, their plain average and AdamW's two moments; of a discriminator no average.
COPIES_PER_CHECKPOINT = 4
COPIES_OF_DISCRIMINATOR = 3
PIECE_S, PIECE_BYTES = 1.0, 2**30
"""A part of a step is timed on the device at hand where it takes about this, and no more memory than that."""
KERNEL_SHARE = 0.5
"""Of the rate of one convolution, what a whole step is taken to reach."""
BF16_SHARE = 0.7
"""Of the bytes that autograd saves, what is taken to be left under bf16 autocast: norms and losses stay in float32."""
OPERATOR_S = 8e-6
"""What PyTorch is taken to need to launch an operator on a GPU: small models wait for nothing else."""
EFFICIENCY = 0.2
"""Of a GPU's published rate, what a step is taken to reach."""
HOW_ROUGH = (
    f"times may be off by a factor of 3; GPUs are taken to reach {EFFICIENCY:.0%} of the published rate, and "
    f"{OPERATOR_S * 1e6:.0f} µs for each operator"
)


class Gpu(NamedTuple):
    """A GPU as its maker publishes it: dense TFLOP/s with accumulation in float32, and GiB of memory."""

    name: str
    bf16_tflops: float
    fp32_tflops: float
    memory_gib: float


GPUS = (
    Gpu("RTX 3090", 71, 35.6, 24),
    Gpu("RTX 4090", 165.2, 82.6, 24),
    Gpu("A100", 312, 19.5, 80),
    Gpu("H100", 989.4, 66.9, 80),
)
"""NVIDIA's whitepapers on GA102 (table 2) and Ada (appendix A), data sheets of A100 80GB SXM and H100 SXM. TF32 is half
of bf16 in all of them."""


@dataclass(frozen=True)
class GpuEstimate:
    """One run on one named GPU. `fits`: into its memory."""

    name: str
    seconds: float
    memory_bytes: float
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """The cost of `steps` steps on the device at hand and on named GPUs.

    Validation, snapshots and waiting for data come on top. `is_timed`: a part of the step was timed here, not only a
    kernel. `memory_bytes` is the peak of the device's memory.
    """

    num_parameters: int
    checkpoint_bytes: int
    gflop_per_step: float
    memory_bytes: float
    steps: int
    seconds_per_step: float
    seconds: float
    is_timed: bool
    gpus: list[GpuEstimate]
    how_rough: str = HOW_ROUGH

    @property
    def gpu(self) -> GpuEstimate:
        """What to compare this device with: the smallest of the GPUs that it fits on, or the largest."""
        return next((each for each in self.gpus if each.fits), self.gpus[-1])


class Rehearsal(NamedTuple):
    """A training pass that can be counted or timed."""

    state: TrainingState[Any]
    loss: Callable[[], Tensor]


Rehearse = Callable[[torch.device, int], Rehearsal]
"""A device and a number of images -> a training pass of them."""


def rehearse_autoencoder(recipe: AutoencoderRecipe, on: torch.device, num_images: int) -> Rehearsal:
    """A pass over random images, with the discriminator where the recipe has one."""
    with on:
        model = build_autoencoder(recipe.model).to(memory_format=torch.channels_last)
    adversary = build_adversary(recipe, model, world=World(device=on))
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=recipe.training, adversary=adversary)
    size = recipe.model.image_size
    images = (torch.rand(num_images, 3, size, size, device=on) * 2 - 1).contiguous(memory_format=torch.channels_last)
    noise = torch.randn(num_images, *recipe.model.code_shape, device=on)
    distance = perceptual_distance(recipe.loss, device=on)
    code_terms = build_code_terms(recipe, model, world=World(device=on))

    def loss() -> Tensor:
        if code_terms is not None:
            code_terms.prepare(images, step=1)
        total, _, reconstructions = autoencoder_loss(
            recipe, model, images, noise, distance=distance, adversary=adversary, step=1, code_terms=code_terms
        )
        if adversary is not None:
            adversary.learn(images, reconstructions, step=1)  # most steps have no penalty
        return total

    return Rehearsal(state, loss)


def rehearse_diffusion(recipe: DiffusionRecipe, store: KeyCodeStore, on: torch.device, num_images: int) -> Rehearsal:
    """A pass over random codes of the shape of `store`'s. Raises what `build_for_store` raises."""
    schedule, shape = recipe.training, store.code_shape
    with on:
        model = build_for_store(recipe, store, device=on)
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule, ema_widths=schedule.ema_widths)
    codes = torch.rand(num_images, *shape, device=on)
    draws = draws_for(schedule.seed, step=0, indices=range(num_images), shape=shape, device=on)

    def loss() -> Tensor:
        with computing(training_precision(schedule, on), on):
            return model(codes, draws).per_sample.mean()

    return Rehearsal(state, loss)


def estimate(rehearse: Rehearse, *, steps: int, device: torch.device, measure: bool = True) -> Estimate:
    """What `steps` steps cost. Seconds: a pass of one image is counted, a kernel timed, and a part of a step where
    that takes little; without `measure` the kernel alone."""
    counted = _count(rehearse)
    state, schedule = counted.state, counted.state.schedule
    micro_batch = schedule.batch_size // schedule.accumulate
    precision = training_precision(schedule, device)
    per_image = counted.flop / (kernel_flop_per_s(device, precision) * KERNEL_SHARE)
    num = min(micro_batch, int(PIECE_S / per_image))
    is_timed = measure and num > 0 and counted.memory_bytes(num, "fp32") <= PIECE_BYTES
    if is_timed:
        per_pass, update = _timed(rehearse(device, num))
        per_step = per_pass * schedule.batch_size / num + update
    else:
        per_step = per_image * schedule.batch_size
    per_step /= world_size()
    gpus = []
    for gpu in GPUS:
        tflops = {"bf16": gpu.bf16_tflops, "tf32": gpu.bf16_tflops / 2, "fp32": gpu.fp32_tflops}[schedule.precision]
        arithmetic = counted.flop * schedule.batch_size / (EFFICIENCY * tflops * 1e12)
        launches = counted.num_operators * OPERATOR_S * schedule.accumulate
        needed = counted.memory_bytes(micro_batch, schedule.precision)
        gpus.append(GpuEstimate(gpu.name, max(arithmetic, launches) * steps, needed, needed < gpu.memory_gib * 2**30))
    kept = (COPIES_PER_CHECKPOINT + len(state.averages)) * num_bytes(state.model)
    if state.adversary is not None:
        kept += COPIES_OF_DISCRIMINATOR * num_bytes(state.adversary.discriminator)
    return Estimate(
        num_parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        checkpoint_bytes=kept,
        gflop_per_step=counted.flop * schedule.batch_size / 1e9,
        memory_bytes=counted.memory_bytes(micro_batch, precision),
        steps=steps,
        seconds_per_step=per_step,
        seconds=per_step * steps,
        is_timed=is_timed,
        gpus=gpus,
    )


def num_bytes(model: nn.Module) -> int:
    """Of its parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def kernel_flop_per_s(device: torch.device, precision: str) -> float:
    """FLOP per second of one convolution of 3 x 3, forward and backward: 7 GFLOP, 50 MiB."""
    batch, width, side = 8, 64, 64
    convolution = nn.Conv2d(width, width, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch, width, side, side, device=device).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()

    def run() -> None:
        with computing(precision, device):
            loss = convolution(images).float().mean()
        loss.backward()
        float(loss.detach())  # waits for the device

    run()
    start = time.perf_counter()
    run()
    return 3 * 2 * batch * side**2 * width**2 * 9 / (time.perf_counter() - start)


class _Operators(TorchDispatchMode):
    """Counts the operators that are run inside."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Counted:
    """A pass of one image: its arithmetic, what it saves, how many operators it is."""

    state: TrainingState[Any]
    flop: float
    saved_bytes: int
    num_operators: int

    def memory_bytes(self, num_images: int, precision: str) -> float:
        """The peak in training: weights, gradients, moments, averages, and what autograd saves of `num_images`."""
        state = self.state
        total = (COPIES_PER_CHECKPOINT + 1 + len(state.averages)) * num_bytes(state.model)
        if state.adversary is not None:
            total += (COPIES_OF_DISCRIMINATOR + 1) * num_bytes(state.adversary.discriminator)
        return total + num_images * self.saved_bytes * (BF16_SHARE if precision == "bf16" else 1.0)


def _count(rehearse: Rehearse) -> _Counted:
    state, loss = rehearse(torch.device("meta"), 1)
    own = {parameter.untyped_storage()._cdata for parameter in state.model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as arithmetic, _Operators() as operators:
        with saved_tensors_hooks(save, lambda tensor: tensor):
            total = loss()
        total.backward()
    saved_bytes = sum(storage.nbytes() for storage in saved.values())
    return _Counted(state, float(arithmetic.get_total_flops()), saved_bytes, operators.num)


def _timed(rehearsal: Rehearsal) -> tuple[float, float]:
    """Seconds of a pass, and of the update after it. The first pass warms up, unless it takes long."""
    state, loss = rehearsal
    for _ in range(2):
        start = time.perf_counter()
        total = loss()
        total.backward()
        value = float(total.detach())  # waits for the device
        passed = time.perf_counter()
        state.update(value)
        updated = time.perf_counter()
        if passed - start > PIECE_S:
            break
    return passed - start, updated - passed
