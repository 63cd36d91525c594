"""What holds for every denoiser's network: shapes, zero at the start, labels, disk, precision, one compiled graph,
gradient checkpointing; what holds for the U-Net alone: codes of any shape, and dropout keyed by sample."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from brics_cli.config import DenoiserConfig, DiffusionConfig, DiTConfig, UNetConfig, load_recipe
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser, load_denoiser, save_denoiser
from brics_cli.diffusion.denoisers.parts import dropout_keys, keyed_dropout
from brics_cli.diffusion.denoisers.unet import Block, UNet
from brics_cli.diffusion.diffusion import Draws, draws_for
from brics_cli.errors import UsageError

NETWORKS: dict[str, DenoiserConfig] = {
    "dit": DiTConfig(dim=32, depth=2, num_heads=2),
    "unet": UNetConfig(dim=16, multipliers=(1, 2), num_blocks=1, attention_levels=(1,), head_dim=16),
}
DROPPING = NETWORKS["unet"].model_copy(update={"dropout": 0.3})
LINEAGE = {"autoencoder_sha256": "a" * 64, "store_sha256": "b" * 64, "store_path": "/codes.h5"}
SHAPE = (3, 4, 4)


@pytest.fixture(params=NETWORKS)
def config(request: pytest.FixtureRequest) -> DenoiserConfig:
    return NETWORKS[request.param]


def make(
    config: DenoiserConfig,
    shape: tuple[int, int, int] = SHAPE,
    *,
    num_classes: int = 0,
    randomise: bool = False,
    gradient_checkpointing: bool = False,
) -> Denoiser:
    torch.manual_seed(0)
    denoiser = build_denoiser(
        config,
        DiffusionConfig(),
        code_shape=shape,
        num_classes=num_classes,
        store_mean=[0.4] * shape[0],
        store_std=[0.2] * shape[0],
        gradient_checkpointing=gradient_checkpointing,
    )
    if randomise:  # a fresh network's output is zero
        for parameter in denoiser.parameters():
            nn.init.normal_(parameter, std=0.1)
    return denoiser


def random_codes(batch: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand((batch, *shape), generator=torch.Generator().manual_seed(1))


def loss_of(denoiser: Denoiser, codes: Tensor, *, labels: Tensor | None = None) -> Tensor:
    draws = draws_for(0, step=0, indices=range(len(codes)), shape=codes.shape[1:])
    return denoiser(codes, draws, labels=labels).per_sample


@pytest.mark.parametrize(("batch", "shape"), [(1, (3, 4, 4)), (5, (16, 8, 8)), (3, (1, 4, 10)), (2, (2, 3, 5))])
def test_any_batch_and_shape_comes_back_and_starts_at_zero(config, batch, shape):
    denoiser = make(config, shape, num_classes=3)
    x, log_snr, labels = torch.randn(batch, *shape), torch.linspace(-9, 9, batch), torch.arange(batch) % 4
    f = denoiser.predict(x, log_snr, labels)
    assert f.shape == x.shape and not f.any()
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert denoiser.predict(x, log_snr, labels).abs().mean() > 1e-3


def test_a_sample_knows_its_own_noise_level_and_nothing_of_the_others(config):
    denoiser = make(config, randomise=True).eval()
    x, log_snr = torch.randn(3, *SHAPE), torch.tensor([-4.0, 0.0, 5.0])
    with torch.inference_mode():
        together = denoiser.predict(x, log_snr)
        alone = torch.cat([denoiser.predict(x[i : i + 1], log_snr[i : i + 1]) for i in range(3)])
        other_level = denoiser.predict(x, log_snr + 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert ((together - other_level).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_labels_matter_after_a_few_steps_and_so_does_none(config):
    denoiser = make(config, num_classes=2)
    codes, labels = random_codes(8), torch.arange(8) % 2
    optimiser = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    for _ in range(3):  # the first moves the head alone: everything before it is multiplied by zero
        optimiser.zero_grad()
        loss_of(denoiser, codes, labels=labels).mean().backward()
        optimiser.step()
    denoiser.eval()
    x, log_snr = torch.randn(1, *SHAPE), torch.zeros(1)
    with torch.inference_mode():
        first, second, none = (denoiser.predict(x, log_snr, torch.tensor([label])) for label in (0, 1, 2))
    assert not torch.equal(first, second) and not torch.equal(first, none) and not torch.equal(second, none)


def test_what_is_saved_is_what_is_loaded(config, tmp_path: Path):
    denoiser = make(config, num_classes=2, randomise=True).eval()
    save_denoiser(tmp_path / "model", denoiser=denoiser, state=denoiser.state_dict(), lineage=LINEAGE)
    loaded = load_denoiser(tmp_path)
    assert loaded.config == config
    x, log_snr, labels = torch.randn(2, *SHAPE), torch.tensor([-1.0, 1.0]), torch.tensor([0, 2])
    assert torch.equal(loaded.predict(x, log_snr, labels), denoiser.predict(x, log_snr, labels))


def test_float64_agrees_with_float32(config):
    single = make(config, num_classes=2, randomise=True).eval()
    double = copy.deepcopy(single).double()
    x, log_snr, labels = torch.randn(2, *SHAPE), torch.tensor([-1.0, 1.0]), torch.tensor([0, 2])
    with torch.inference_mode():
        precise = double.predict(x.double(), log_snr.double(), labels)
        assert precise.dtype == torch.float64
        torch.testing.assert_close(single.predict(x, log_snr, labels), precise.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_bf16_autocast_trains_float32_weights(config):
    denoiser = make(config, num_classes=2, randomise=True)
    codes, labels = random_codes(4), torch.tensor([0, 1, -1, 1])
    exact = loss_of(denoiser, codes, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(denoiser, codes, labels=labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.02)
    assert not torch.equal(loss, exact), "nothing ran in bf16"
    loss.mean().backward()
    for parameter in denoiser.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


def check_compiled(config: DenoiserConfig, *, backend: str, gradient_checkpointing: bool) -> None:
    """Loss and gradients of a training pass in one graph, against the same without compiling."""
    denoiser = make(config, num_classes=2, randomise=True, gradient_checkpointing=gradient_checkpointing)
    codes, labels = random_codes(3), torch.tensor([0, 1, -1])
    draws = draws_for(0, step=0, indices=range(3), shape=SHAPE)
    torch._dynamo.reset()
    compiled = torch.compile(denoiser, fullgraph=True, backend=backend)
    results = []
    for forward in (denoiser, compiled):
        denoiser.zero_grad()
        loss = forward(codes, draws, labels=labels).per_sample
        loss.mean().backward()
        results.append([loss.detach(), *(p.grad.clone() for p in denoiser.parameters() if p.grad is not None)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "gradient_checkpointing"), [("dit", False), ("unet", True)])
def test_a_training_pass_is_one_graph(name, gradient_checkpointing):
    config = DROPPING if name == "unet" else NETWORKS[name]
    check_compiled(config, backend="eager", gradient_checkpointing=gradient_checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_training_pass_compiles_to_machine_code(name, gradient_checkpointing):
    config = DROPPING if name == "unet" else NETWORKS[name]
    check_compiled(config, backend="inductor", gradient_checkpointing=gradient_checkpointing)


def kept_bytes(denoiser: Denoiser, codes: Tensor) -> tuple[int, list[Tensor]]:
    """Bytes that a training pass keeps for its backward pass, and the gradients.

    What is inside a checkpointed block is not seen by the hooks, since it is not kept; the block's inputs are kept by
    the checkpoint itself, and are counted where the block starts.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_inputs(_: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
        if torch.is_grad_enabled() and denoiser.network.gradient_checkpointing:
            for tensor in inputs:
                if tensor is not None:
                    held.append(tensor)
                    keep(tensor)

    held: list[Tensor] = []  # alive, so that no storage is counted as another's
    weights = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
    blocks = [module for module in denoiser.modules() if type(module).__name__ == "Block"]
    handles = [block.register_forward_pre_hook(keep_inputs) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(denoiser, codes).mean()
    total = sum(num_bytes for storage, num_bytes in kept.items() if storage not in weights)
    for handle in handles:
        handle.remove()
    denoiser.zero_grad()
    loss.backward()
    return total, [parameter.grad for parameter in denoiser.parameters() if parameter.grad is not None]


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(config):
    codes = random_codes(4)
    everything, expected = kept_bytes(make(config, randomise=True), codes)
    little, found = kept_bytes(make(config, randomise=True, gradient_checkpointing=True), codes)
    assert little < 0.5 * everything, (little, everything)
    assert len(found) == len(expected) > 20
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 5, 7), (2, 2, 9), (4, 4, 4), (16, 8, 8)])
def test_a_unet_of_four_levels_takes_codes_of_any_shape(shape):
    """Levels round up and stop at 1: 5 x 7, 3 x 4, 2 x 2, 1 x 1."""
    config = UNetConfig(dim=8, multipliers=(1, 1, 2, 2), num_blocks=1, attention_levels=(2,), head_dim=8)
    denoiser = make(config, shape, randomise=True)
    sizes = []
    for module in denoiser.network.down:
        module.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    loss_of(denoiser, random_codes(2, shape)).sum().backward()
    halved = [tuple(-(-side // 2**level) for side in shape[1:]) for level in range(4)]
    assert sorted(set(sizes), reverse=True) == sorted(set(halved), reverse=True)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())


def test_an_odd_end_is_neither_lost_nor_weighed_down():
    """Halving a constant gives the constant, and every position of the codes reaches every level."""
    block = Block(4, 4, condition_dim=4, dropout=0.0, resample="down")
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.full((1, 4, 5, 3), 2.0, requires_grad=True)
    out = block(x, torch.zeros(1, 4))
    torch.testing.assert_close(out, torch.full((1, 4, 3, 2), 2.0))
    out.sum().backward()
    assert (x.grad > 0).all()


def test_attention_is_where_it_was_asked_for_and_in_the_middle():
    config = UNetConfig(dim=16, multipliers=(1, 2, 2), num_blocks=2, attention_levels=(1,), head_dim=16)
    unet = UNet(config, code_shape=(3, 8, 8))
    seen: dict[int, int] = {}
    for module in unet.modules():
        if type(module).__name__ == "Attention":
            module.register_forward_hook(
                lambda _, inputs, __: seen.__setitem__(inputs[0].shape[-1], seen.get(inputs[0].shape[-1], 0) + 1)
            )
    unet(torch.randn(1, 3, 8, 8), torch.zeros(1))
    assert seen == {4: 2 + 3, 2: 1}  # down and up at level 1; once in the middle


def test_dropout_is_a_function_of_the_sample_alone():
    denoiser = make(DROPPING, randomise=True)
    codes = random_codes(6)
    draws = draws_for(0, step=0, indices=range(6), shape=SHAPE)
    together = denoiser(codes, draws).per_sample
    for i in range(6):
        alone = denoiser(codes[i : i + 1], Draws(*(draw[i : i + 1] for draw in draws))).per_sample
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    before = torch.random.get_rng_state()
    assert torch.equal(denoiser(codes, draws).per_sample, together)
    assert torch.equal(torch.random.get_rng_state(), before)
    in_evaluation = copy.deepcopy(denoiser).eval()(codes, draws).per_sample
    assert float((in_evaluation - together).detach().abs().max()) > 1e-3
    assert torch.equal(make(NETWORKS["unet"], randomise=True)(codes, draws).per_sample, in_evaluation)


def test_dropped_values_are_as_many_as_asked_and_independent():
    keys = dropout_keys(torch.randn((64, 3, 4, 4), generator=torch.Generator().manual_seed(0)))
    assert len(keys.unique()) == 64
    ones = torch.ones(64, 4, 16, 16)
    masks = [keyed_dropout(ones, keys, chance=0.25, layer=layer) for layer in (0, 1)]
    for out in masks:
        assert out.unique().tolist() == pytest.approx([0, 4 / 3])
        assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.006)  # 3.5 standard errors of 65,536
    rows = torch.cat([(out == 0).float().flatten(1) for out in masks])  # (128, 1024)
    correlations = torch.corrcoef(rows) - torch.eye(128)
    assert float(correlations.abs().max()) < 5.5 / 32  # standard error 1 / sqrt(1024), 8128 pairs
    assert torch.equal(keyed_dropout(ones, keys, chance=0.0, layer=0), ones)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["denoiser.kind=unett"], "--set: denoiser.kind = 'unett', but it should be one of: dit, unet"),
        (["denoiser.kind=unet", "denoiser.depth=3"], "no key 'denoiser.depth'"),
        (
            ["denoiser.kind=unet", "denoiser.multiplier=[1]"],
            "no key 'denoiser.multiplier'; did you mean 'multipliers'?",
        ),
        (["denoiser.kind=unet", "denoiser.multipliers=[]"], "denoiser.multipliers = [], but it should"),
        (["denoiser.kind=unet", "denoiser.multipliers=[1,2]"], "attention_levels names level 2, and 2 multipliers"),
        (["denoiser.kind=unet", "denoiser.multipliers=[0,2]"], "denoiser.multipliers.0 = 0, but it should be greater"),
        (["denoiser.kind=unet", "denoiser.dim=32"], "head_dim 64 does not divide the 96 channels of level 2"),
        (["denoiser.kind=unet", "denoiser.dropout=1"], "denoiser.dropout = 1, but it should be less than 1"),
        (["denoiser.kind=unet", "denoiser.attention_levels=[-1]"], "denoiser.attention_levels.0 = -1, but it should"),
        (["training.gradient_checkpoint=true"], "did you mean 'gradient_checkpointing'?"),
        (["training.gradient_checkpointing=perhaps"], "training.gradient_checkpointing = 'perhaps', but it should"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(overrides, line):
    with pytest.raises(UsageError) as caught:
        load_recipe("tiny", kind="diffusion", overrides=overrides)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_block_without_kind_is_a_dit(tmp_path: Path):
    """As in every recipe and model from before there was a choice."""
    path = tmp_path / "old.yaml"
    path.write_text("kind: diffusion\nname: old\nabout: old\ndenoiser: {dim: 64, depth: 2, num_heads: 2}\n")
    assert load_recipe(str(path), kind="diffusion").denoiser == DiTConfig(dim=64, depth=2, num_heads=2)
