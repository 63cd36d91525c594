"""One contract for every bottleneck (DESIGN section 3.3), then what each kind promises beside it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brics_cli import load_autoencoder
from brics_cli.autoencoder.autoencoder import Autoencoder, save_autoencoder
from brics_cli.autoencoder.bottlenecks.grid import initial_tables
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.layers import reflect_into_unit
from brics_cli.codes import dequantise, quantise
from brics_cli.config import AutoencoderConfig, validate
from brics_cli.errors import UsageError
from brics_cli.kernels import GridSpec

PAPER = {
    "features": {"kind": "grouped", "hidden_dim": 8, "upscale": 2},
    "decoder": {"kind": "style", "widths": [12, 8, 8], "style_dim": 16, "style_layers": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grid-1d": {"bottleneck": {"kind": "grid", "key_dim": 1}},
    "grid-2d-noise": {"bottleneck": {"kind": "grid", "noise": 0.02}},
    "grid-2d-uniform": {"bottleneck": {"kind": "grid", "init": "uniform"}},
    "grid-3d": {"bottleneck": {"kind": "grid", "key_dim": 3, "resolutions": [3, 5], "init": "normal"}},
    "grid-2d-tiled": {"bottleneck": {"kind": "grid", "table_cap": 20, "resolutions": [3, 7]}},
    "grid-1d-image": {"bottleneck": {"kind": "grid", "key_dim": 1, "positions": "image", "resolutions": [3, 7]}},
    "grid-2d-cell": {"bottleneck": {"kind": "grid", "positions": "cell", "resolutions": [2, 3]}},
    "grid-3d-image": {"bottleneck": {"kind": "grid", "key_dim": 3, "positions": "image", "resolutions": [2, 3]}},
    "grid-paper": {
        "bottleneck": {"kind": "grid", "key_dim": 1, "positions": "image", "resolutions": [3, 7], "table_cap": 100},
        **PAPER,
    },
    "hash": {"bottleneck": {"kind": "hash", "table_cap": 40, "resolutions": [3, 7]}},
    "hash-image": {"bottleneck": {"kind": "hash", "positions": "image", "table_cap": 40, "resolutions": [3, 7]}},
    "none": {"bottleneck": {"kind": "none"}},
    "none-noise-paper": {"bottleneck": {"kind": "none", "noise": 0.02}, **PAPER},
    "kl": {"bottleneck": {"kind": "kl", "weight": 1.0}},
    "vq": {"bottleneck": {"kind": "vq", "codebook_size": 8}},
    "rq": {"bottleneck": {"kind": "rq", "codebook_size": 8, "depth": 3}},
    "fsq": {"bottleneck": {"kind": "fsq", "levels": [2, 3, 4, 5, 8, 17]}},
    "fsq-paper": {"bottleneck": {"kind": "fsq"}, **PAPER},
}
EXACT_IN_A_STORE = ("vq", "rq", "fsq")


def config(**changes: Any) -> AutoencoderConfig:
    values = {
        "image_size": 32,
        "code_channels": 6,
        "encoder": {"patch": 4, "widths": [8, 12], "num_blocks": 1},
        "features": {"hidden_dim": 16, "upscale": 2},
        "decoder": {"widths": [16], "num_blocks": 1, "unpatch": 4},
        **changes,
    }
    return validate(AutoencoderConfig, values, source="test")


def build(name: str) -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(config(**VARIANTS[name]))


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(num: int = 4) -> Tensor:
    return torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_contract(name: str) -> None:
    model = build(name)
    bottleneck, upscale = model.bottleneck, 2
    for training in (True, False):
        model.train(training)
        h = model.encoder(images()).detach().requires_grad_()
        out = bottleneck(h, noise=normal(4, 6, 4, 4) if training else None)
        assert out.codes.shape == (4, *model.config.code_shape) == (4, 6, 4, 4)
        assert out.features.shape == (4, model.config.decoder.widths[0], 4 * upscale, 4 * upscale)
        assert torch.equal(bottleneck.decode_codes(out.codes), out.features)
        assert bottleneck.bounded == (name[:2] not in ("kl", "vq", "rq")) == (model.config.code_kind == "bounded")
        if bottleneck.bounded:
            assert out.codes.min() >= 0 and out.codes.max() <= 1
            assert bottleneck.admissible(out.codes + 2).max() == 1
        assert out.aux_loss.shape == () and all(value.isfinite() for value in out.stats.values())
        if training:
            (out.features.square().mean() + out.aux_loss).backward()
            for tensor in (h, *bottleneck.parameters()):
                assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0
    assert model(images())[0].shape == (4, 3, 32, 32)


def test_evaluation_is_deterministic_and_leaves_random_numbers_alone(name: str) -> None:
    model = build(name)
    model.train()(images(), noise=normal(4, 6, 4, 4))
    model.eval()
    state = torch.random.get_rng_state()
    codes = model.encode(images())
    assert torch.equal(model.encode(images()), codes) and torch.equal(model.decode(codes), model.decode(codes))
    assert torch.equal(model(images())[1].codes, codes)
    torch.testing.assert_close(model.encode(images())[:1], model.encode(images()[:1]), atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_is_what_the_caller_gives(name: str) -> None:
    h = build(name).encoder(images()).detach()
    codes = [build(name).train().bottleneck(h, noise=normal(4, 6, 4, 4, seed=seed)).codes for seed in (2, 2, 3)]
    assert torch.equal(codes[0], codes[1])
    noisy = VARIANTS[name]["bottleneck"].get("noise", 0) > 0 or name == "kl"
    assert torch.equal(codes[0], codes[2]) != noisy
    if name.startswith(("grid", "hash", "none")):
        bottleneck = build(name).bottleneck
        expected = reflect_into_unit(bottleneck.bound(h) + bottleneck.noise_std * normal(4, 6, 4, 4, seed=2))
        torch.testing.assert_close(codes[0], expected)


def test_a_checkpoint_holds_everything(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.train()(images(), noise=normal(4, 6, 4, 4))  # codebooks start here
    save_autoencoder(tmp_path / "model", config=model.config, state=model.state_dict(), details={"transform": "adm"})
    loaded = load_autoencoder(tmp_path)
    assert loaded.config == model.config
    codes = model.eval().encode(images())
    assert torch.equal(loaded.encode(images()), codes) and torch.equal(loaded.decode(codes), model.decode(codes))
    assert loaded.decode(codes).abs().max() <= 1


def test_a_key_code_store_decodes_to_the_same_features(name: str) -> None:
    model = build(name)
    model.train()(images(), noise=normal(4, 6, 4, 4))
    model.eval()
    codes = model.encode(images()).detach()
    quantisation = "uint8" if model.bottleneck.bounded else "float16"
    stored = torch.from_numpy(dequantise(quantise(codes, quantisation), quantisation))
    if name.startswith(EXACT_IN_A_STORE):
        assert torch.equal(model.decode(stored), model.decode(codes))
    else:
        torch.testing.assert_close(stored, codes, atol=0.5 / 255 + 1e-6, rtol=1e-3)


def test_usage_is_a_fraction_and_adds_up(name: str) -> None:
    model = build(name)
    model.train()(images(), noise=normal(4, 6, 4, 4))
    model.eval()
    counters = [model.bottleneck.usage_counter() for _ in range(3)]
    with torch.inference_mode():  # as validation does
        codes = model.encode(images())
        counters[0].add(codes)
        counters[1].add(codes[:2])
        counters[2].add(codes[2:])
    found = counters[0].result()
    if name.startswith(("none", "kl")):
        assert found == {}
        return
    for key, value in found.items():
        assert 0 < value <= 1 + 1e-9 or key == "perplexity"
    assert found["usage"] > 0 and found.get("perplexity", 1) >= 1
    for total, other in zip(counters[1].counts.values(), counters[2].counts.values(), strict=True):
        total += other  # as all_reduce does
    assert counters[1].result() == pytest.approx(found, rel=1e-5)


def test_the_config_reads_back(name: str) -> None:
    written = config(**VARIANTS[name])
    assert validate(AutoencoderConfig, written.model_dump(mode="json"), source="test") == written


def test_arithmetic_can_be_counted_on_meta_tensors(name: str) -> None:
    with torch.device("meta"):
        model = build_autoencoder(config(**VARIANTS[name])).eval()
        assert model.decode(model.encode(torch.empty(2, 3, 32, 32))).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("kind", ["grid-2d-noise", "hash", "none"])
def test_bounded_codes_stay_bounded_for_any_encoder_output(kind: str) -> None:
    h = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4, 3.0]).view(1, 6, 1, 1).expand(1, 6, 4, 4)
    codes = build(kind).bottleneck(h, noise=10 * normal(1, 6, 4, 4)).codes
    assert codes.isfinite().all() and codes.min() >= 0 and codes.max() <= 1


def test_the_identity_is_the_key_in_dense_levels_alone() -> None:
    grid = {"kind": "grid", "key_dim": 2, "resolutions": [4, 8], "init_std": 0.0, "table_cap": 30}
    tables = initial_tables(config(bottleneck=grid).bottleneck, GridSpec(2, (4, 8), 4, table_cap=30), num_groups=2)
    row_of_vertex_1_3 = 1 * 5 + 3
    assert tables[0, row_of_vertex_1_3].tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert tables.shape == (2, 25 + 30, 4) and not tables[:, 25:].any()


@pytest.mark.parametrize("positions", ["image", "cell"])
def test_with_positions_the_identity_is_the_key_wherever_it_is(positions: str) -> None:
    grid = {"kind": "grid", "key_dim": 1, "positions": positions, "resolutions": [3], "init_std": 0.0, "level_dim": 1}
    bottleneck = build_autoencoder(config(bottleneck=grid)).bottleneck
    codes = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    tiled = codes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(bottleneck.retrieve(codes), 2 * tiled - 1)


@pytest.mark.parametrize(
    ("positions", "places"), [("image", [i / 8 + 1 / 16 for i in range(8)]), ("cell", [0.25, 0.75] * 4)]
)
def test_a_table_of_its_rows_place_returns_the_place(positions: str, places: list[float]) -> None:
    """y in the first feature, x in the second: each vertex's own, so that interpolation gives the query's."""
    grid = {"kind": "grid", "key_dim": 1, "positions": positions, "resolutions": [2], "level_dim": 2}
    bottleneck = build_autoencoder(config(bottleneck=grid)).bottleneck
    axis = torch.linspace(0, 1, 3)
    _, y, x = torch.cartesian_prod(axis, axis, axis).unbind(1)
    bottleneck.tables.data[:] = torch.stack([y, x], dim=1)
    found = bottleneck.retrieve(torch.full((1, 6, 4, 4), 0.3)).detach().view(6, 2, 8, 8)
    expected = torch.tensor(places)
    torch.testing.assert_close(found[0, 0], expected[:, None].expand(8, 8))
    torch.testing.assert_close(found[0, 1], expected[None, :].expand(8, 8))


def test_usage_of_a_grid_counts_the_vertices_that_are_touched() -> None:
    grid = {"kind": "grid", "key_dim": 1, "resolutions": [2, 4], "level_dim": 1}
    counter = build_autoencoder(config(bottleneck=grid)).bottleneck.usage_counter()
    codes = torch.full((1, 6, 1, 2), 0.1)
    codes[..., 1] = 0.5  # a vertex of both levels: no weight on its neighbours
    counter.add(codes)
    coarse, fine = (counts.view(6, -1)[0].tolist() for counts in counter.counts.values())
    assert coarse == pytest.approx([0.8, 1.2, 0]) and fine == pytest.approx([0.6, 0.4, 1, 0, 0])
    found = counter.result()
    assert (found["usage/level_0"], found["usage/level_1"], found["usage"]) == (2 / 3, 3 / 5, 5 / 8)


def test_usage_of_a_codebook_is_fraction_and_perplexity() -> None:
    bottleneck = build("vq").eval().bottleneck
    bottleneck.quantiser.layers[0]._codebook.embed.data[:] = torch.eye(8)[:, :6] * 4
    counter = bottleneck.usage_counter()
    counter.add(bottleneck.codebooks[0, [0, 0, 1, 2]].T.reshape(1, 6, 2, 2))
    found = counter.result()
    assert found["usage"] == 3 / 8 and found["perplexity"] == pytest.approx(2**1.5)
    assert found["entropy"] == pytest.approx(1.5 / 3)


def test_kl_is_the_divergence_from_the_standard_normal() -> None:
    bottleneck = build("kl").bottleneck
    h = normal(2, 12, 4, 4)
    mean, std = h[:, :6], torch.exp(0.5 * h[:, 6:])
    distributions = torch.distributions
    exact = distributions.kl_divergence(distributions.Normal(mean, std), distributions.Normal(0.0, 1.0))
    per_image = exact.sum() / 2  # nats
    torch.testing.assert_close(bottleneck(h).aux_loss, per_image / (3 * 32 * 32))
    torch.testing.assert_close(bottleneck(h, noise=torch.ones(2, 6, 4, 4)).codes, mean + std)
    torch.testing.assert_close(bottleneck(h).codes, mean)


@pytest.mark.parametrize("kind", ["vq", "rq"])
def test_evaluation_finds_the_nearest_entries(kind: str) -> None:
    bottleneck = build(kind).bottleneck
    h = normal(3, 6, 4, 4)
    bottleneck.train()(h)
    rest = h.permute(0, 2, 3, 1).reshape(-1, 6)
    chosen = torch.zeros_like(rest)
    for codebook in bottleneck.codebooks:
        entries = codebook[torch.cdist(rest, codebook).argmin(1)]
        chosen, rest = chosen + entries, rest - entries
    found = bottleneck.eval()(h).codes.permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(found, chosen, atol=0, rtol=2**-11)  # half precision


@pytest.mark.parametrize("kind", ["vq", "rq", "fsq"])
def test_bf16_arithmetic_around_it_does_not_change_what_is_chosen(kind: str) -> None:
    bottleneck = build(kind).bottleneck
    bottleneck.train()(normal(16, 6, 4, 4))
    h = normal(64, 6, 4, 4, seed=3)
    exact = bottleneck.eval().bound(h)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bottleneck.bound(h), exact)


def test_vq_turns_generated_codes_into_entries() -> None:
    model = build("vq")
    model.train()(images())
    model.eval()
    codes = model.encode(images())
    nearby = codes + 1e-3 * normal(*codes.shape)
    assert torch.equal(model.decode(nearby), model.decode(codes))


@pytest.mark.parametrize("kind", ["vq", "rq"])
def test_a_resumed_codebook_goes_on_as_one_that_was_never_stopped(kind: str) -> None:
    """Restarts draw random vectors: with every entry always restarting, a different draw would show."""
    changed = {"bottleneck": VARIANTS[kind]["bottleneck"] | {"restart_below": 1e3}}
    straight, resumed = (build_autoencoder(config(**changed)).bottleneck.train() for _ in range(2))
    straight(normal(3, 6, 4, 4))
    resumed.load_state_dict(straight.state_dict())
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    codes = [each(normal(3, 6, 4, 4, seed=5)).codes for each in (straight, resumed)]
    assert torch.equal(*codes) and torch.equal(straight.codebooks, resumed.codebooks)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_codebooks_follow_what_chooses_them() -> None:
    bottleneck = build("vq").bottleneck.train()
    h = normal(8, 6, 4, 4)
    errors = [float((bottleneck(h).codes - h).square().mean().detach()) for _ in range(60)]
    assert errors[-1] < 0.9 * float(h.var()) and errors[-1] <= errors[0]
    assert bottleneck.eval()(h).aux_loss == 0


def test_a_step_that_will_be_skipped_leaves_no_nan_in_the_codebook() -> None:
    bottleneck = build("rq").bottleneck.train()
    bottleneck(normal(3, 6, 4, 4))
    broken = normal(3, 6, 4, 4)
    broken[0, 0, 0, 0], broken[1, 2, 0, 0] = float("nan"), float("inf")
    assert not bottleneck(broken).features.isfinite().all()  # so the loss says so, and the loop skips the step
    assert all(buffer.isfinite().all() for buffer in bottleneck.buffers())


def test_fsq_takes_its_levels_and_no_other_values() -> None:
    codes = build("fsq").bottleneck.bound(5 * normal(16, 6, 4, 4))
    for channel, levels in enumerate([2, 3, 4, 5, 8, 17]):
        values = codes[:, channel].unique()
        torch.testing.assert_close(values * (levels - 1), torch.arange(levels).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vq", "rq", "fsq"])
def test_a_missing_library_is_named_with_its_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(UsageError, match=rf"kind '{kind}' needs vector-quantize-pytorch.*brics-cli\[baselines\]"):
        build(kind)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bottleneck": {"kind": "grid", "key_dim": 2}, "code_channels": 5}, "not a multiple of bottleneck.key_dim 2"),
        ({"bottleneck": {"kind": "fsq", "levels": [8, 8]}}, "levels has 2 numbers: give one for all channels, or 6"),
        (
            {
                "bottleneck": {"kind": "grid", "positions": "cell"},
                "features": {"upscale": 1},
                "decoder": {"widths": [16, 16], "unpatch": 4},
            },
            "positions 'cell' needs features.upscale > 1",
        ),
        (
            {"bottleneck": {"kind": "grid", "key_dim": 1}, "features": {"kind": "grouped", "upscale": 2}},
            "among 6 groups",
        ),
        (
            {"bottleneck": {"kind": "grid", "key_dim": 3, "positions": "image", "resolutions": [64]}},
            "would have 9,282 M parameters, more than 1,074 M: .* set bottleneck.table_cap",
        ),
        ({"decoder": {"kind": "style", "widths": [16]}}, "the decoder enlarges 2x"),
        ({"bottleneck": {"kind": "hash", "table_cap": None}}, "bottleneck.table_cap = None"),
        ({"bottleneck": {"kind": "vq", "codebook_size": 1}}, "bottleneck.codebook_size = 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_bits_per_pixel_are_those_of_a_store_or_of_indices() -> None:
    bits = {kind: config(**VARIANTS[kind]).bits_per_pixel * 8**2 for kind in ("none", "kl", "vq", "rq", "fsq-paper")}
    assert bits == {"none": 6 * 8, "kl": 6 * 16, "vq": 3, "rq": 3 * 3, "fsq-paper": 6 * 3}


def _train_codebook(rank: int, port: int, folder: str, restart_below: float) -> None:
    """What each of two processes does: three updates from its own half of a batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = config(bottleneck={"kind": "rq", "codebook_size": 8, "depth": 2, "restart_below": restart_below})
    bottleneck = build_autoencoder(model).bottleneck.train()
    for step in range(3):
        bottleneck(normal(4, 6, 4, 4, seed=step).chunk(2)[rank])
    torch.save(bottleneck.codebooks, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("restart_below", [0.1, 1e3])
def test_processes_share_one_codebook(tmp_path: Path, restart_below: float) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    arguments = (port, str(tmp_path), restart_below)
    torch.multiprocessing.start_processes(_train_codebook, arguments, nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
