import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from brics_cli.config import OptimiserConfig, ScheduleConfig
from brics_cli.config.runs import GanConfig
from brics_cli.errors import ArtefactError
from brics_cli.runtime.distributed import World
from brics_cli.training.adversary import ADAPT_EVERY, Adversary, last_layer
from brics_cli.training.state import TrainingState
from brics_cli.training.step import compiled

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def state_with_gan(*, accumulate: int = 1, **gan: object) -> TrainingState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    schedule = ScheduleConfig(steps=100, batch_size=8, accumulate=accumulate)
    optimiser = OptimiserConfig(warmup_steps=0, decay="none")
    config = GanConfig.model_validate({"weight": 1.0, "ramp_steps": 4, "widths": [4, 8], "r1_every": 4} | gan)
    world = World(device=torch.device("cpu"))
    adversary = Adversary(config, optimiser=optimiser, schedule=schedule, last_layer=last_layer(model), world=world)
    return TrainingState(model, optimiser=optimiser, schedule=schedule, adversary=adversary)


def one_step(state: TrainingState, *, scale: float = 1.0) -> float:
    adversary, step = state.adversary, state.step
    assert adversary is not None
    num, total = state.schedule.accumulate, 0.0
    for images in IMAGES.chunk(num):
        reconstructions = state.model(images) * scale
        reconstruction = (reconstructions - images).abs().mean()
        loss = reconstruction + adversary.judge(reconstructions, {"l1": reconstruction}, step=step)
        (loss / num).backward()
        adversary.learn(images, reconstructions, step=step)
        total += float(loss.detach()) / num
    state.update(total)
    adversary.update(step=step)
    return total


def weights(state: TrainingState) -> list[torch.Tensor]:
    assert state.adversary is not None
    return [p.detach().clone() for p in (*state.model.parameters(), *state.adversary.discriminator.parameters())]


def test_the_weight_ramps_up_while_the_discriminator_learns_from_step_0() -> None:
    state = state_with_gan(adaptive=False, weight=0.5)
    adversary = state.adversary
    assert adversary is not None
    before = weights(state)[len(list(state.model.parameters())) :]
    assert [adversary.weight(step) for step in (0, 2, 4, 50)] == [0.0, 0.25, 0.5, 0.5]
    one_step(state)
    after = weights(state)[len(list(state.model.parameters())) :]
    assert not torch.equal(before[0], after[0])


def test_the_adaptive_factor_is_the_ratio_of_last_layer_gradients_up_to_its_limit() -> None:
    state = state_with_gan()
    adversary = state.adversary
    assert adversary is not None and adversary.factor == 0
    reconstructions = state.model(IMAGES)
    reconstruction = (reconstructions - IMAGES).abs().mean()
    gan = -adversary.discriminator(reconstructions).mean()
    a, b = (torch.autograd.grad(each, state.model[2].weight, retain_graph=True)[0] for each in (reconstruction, gan))
    one_step(state)
    assert adversary.factor == pytest.approx(min(float(a.norm() / b.norm()), 10.0), rel=1e-4)
    limited = state_with_gan(adaptive_max=1e-3)
    one_step(limited)
    assert limited.adversary is not None and limited.adversary.factor == 1e-3


def test_the_adaptive_factor_is_a_geometric_average_that_no_single_step_moves_far() -> None:
    state = state_with_gan(adaptive_max=100.0)
    adversary = state.adversary
    assert adversary is not None and ADAPT_EVERY % 2 == 1, "an even interval sees one side of what swings"
    measured = []
    for ratio in (4.0, 1.0, 16.0):
        adversary._gradients = [torch.tensor([[3.0 * ratio, 4.0 * ratio], [3.0, 4.0]])]
        assert adversary.update(step=50)["gan_weight"] == (measured or [0.0])[-1], "of the step that was computed"
        measured.append(adversary.factor)
    keep = 0.5 ** (ADAPT_EVERY / 8)
    assert measured == pytest.approx([4.0, 4**keep, 4 ** (keep * keep) * 16 ** (1 - keep)], rel=1e-6)


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts = state_with_gan(), state_with_gan(accumulate=4)
    for _ in range(ADAPT_EVERY + 2):
        assert one_step(parts) == pytest.approx(one_step(whole), abs=1e-5)
    assert whole.adversary is not None and parts.adversary is not None
    assert parts.adversary.factor == pytest.approx(whole.adversary.factor, rel=1e-3)
    assert whole.adversary.factor > 0


def test_the_autoencoders_loss_leaves_no_gradient_in_the_discriminator() -> None:
    state = state_with_gan(ramp_steps=0, adaptive=False)
    adversary = state.adversary
    assert adversary is not None
    reconstructions = state.model(IMAGES)
    adversary.judge(reconstructions, {"l1": reconstructions.abs().mean()}, step=1).backward()
    assert all(p.grad is None and p.requires_grad for p in adversary.discriminator.parameters())
    assert all(p.grad is not None for p in state.model.parameters())


def test_a_restored_state_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight, first, second = state_with_gan(), state_with_gan(), state_with_gan()
    for _ in range(ADAPT_EVERY + 6):
        one_step(straight)
    for _ in range(6):
        one_step(first)
    first.save(tmp_path)
    second.load(tmp_path)
    for _ in range(ADAPT_EVERY):
        one_step(second)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(second), strict=True))


def test_gradients_that_are_no_numbers_change_neither_network() -> None:
    state = state_with_gan()
    one_step(state)
    before, factor = weights(state), state.adversary.factor  # type: ignore[union-attr]
    one_step(state, scale=float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))
    assert state.adversary is not None and (state.adversary.num_skipped, state.adversary.factor) == (1, factor)
    assert not state.is_sound()


@pytest.mark.parametrize("name", ["discriminator.safetensors", "discriminator-optimiser.pt"])
def test_a_damaged_discriminator_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    state = state_with_gan()
    one_step(state)
    state.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")) as caught:
        state_with_gan().load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", [{}, {"factor": "x", "num_skipped": 0}, {"factor": 1.0, "num_skipped": None}])
def test_damaged_counts_of_the_discriminator_are_refused(tmp_path: Path, counts: dict[str, object]) -> None:
    state = state_with_gan()
    state.save(tmp_path)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adversary": counts}))
    with pytest.raises(ArtefactError, match=r"state\.json is damaged \(adversary\."):
        state_with_gan().load(tmp_path)


def test_a_checkpoint_without_discriminator_is_refused(tmp_path: Path) -> None:
    with_gan = state_with_gan()
    plain = TrainingState(with_gan.model, optimiser=with_gan.optimiser_config, schedule=with_gan.schedule)
    plain.save(tmp_path)
    with pytest.raises(ArtefactError, match="holds no discriminator"):
        with_gan.load(tmp_path)


def test_the_adaptive_weight_runs_no_compiled_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled graph has one backward pass, of all its layers; gradients of the last one take that layer alone."""
    backwards = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                backwards.append(tuple(args[2].shape))
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="aot_eager")
    )  # for which no compiler is needed
    torch._dynamo.reset()
    state = state_with_gan()
    adversary = state.adversary
    assert adversary is not None
    forward = compiled(state.model, enabled=True, adversary=adversary)
    reconstructions = forward(IMAGES)
    loss = (reconstructions - IMAGES).abs().mean()
    with Counting():
        adversary.judge(reconstructions, {"l1": loss}, step=0)
    of_decoder = [shape for shape in backwards if shape in {tuple(each.weight.shape) for each in state.model[::2]}]
    assert of_decoder == [tuple(adversary.last_layer.shape)] * 2
