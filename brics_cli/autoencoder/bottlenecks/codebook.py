"""`vq` and `rq`: vectors of code values replaced by codebook entries (VQ-VAE, arXiv 1711.00937; RQ-VAE, arXiv
2203.01941), trained by `vector-quantize-pytorch`.

Codes (B, C, h, w) are the entries themselves (`rq`: their sum), not indices: a diffusion model and a key-code store
then treat every bottleneck alike. They are rounded to half precision before they are decoded, so that a float16 store
holds exactly what was decoded. Outside of training `vq` replaces what it decodes by its nearest entry once more:
codes that are entries stay as they are, generated ones become entries (as latent diffusion decodes). For sums of
entries the search is not its own inverse, so `rq` decodes codes as they are.

Letters: K entries per codebook, R codebooks (1 for `vq`), N = h * w positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.bottlenecks.base import Bottleneck, BottleneckOutput, Lookup
from brics_cli.autoencoder.bottlenecks.features import build_features
from brics_cli.config import AutoencoderConfig, RqBottleneckConfig, VqBottleneckConfig
from brics_cli.errors import UsageError
from brics_cli.runtime.precision import full_precision

# Rows whose distances to all entries are held at once in evaluation.
ROWS_AT_ONCE = 16384


def vector_quantize_pytorch(*, kind: str) -> ModuleType:
    """The optional library of `vq`, `rq` and `fsq`. Raises UsageError, which names the extra, when it is missing."""
    try:
        import vector_quantize_pytorch
        from loguru import logger
    except ImportError:
        raise UsageError(
            f"bottleneck kind {kind!r} needs vector-quantize-pytorch, which is not installed",
            next="Install it: uv pip install 'brics-cli[baselines]'",
        ) from None
    logger.disable("vector_quantize_pytorch")  # it writes to stderr on its own; jobs report through their Reporter
    return vector_quantize_pytorch


class CodebookBottleneck(Bottleneck):
    """h (B, C, h, w) -> the nearest entries -> 1x1 MLP -> (B, C_d, H_d, W_d).

    Entries follow moving averages of what chose them and restart when they are hardly chosen; both are buffers, so
    checkpoints hold them. In a run of several processes the averages are those of all of them.
    """

    has_codebook = True
    num_updates: Tensor

    def __init__(self, config: VqBottleneckConfig | RqBottleneckConfig, *, model: AutoencoderConfig) -> None:
        super().__init__(model)
        distributed = torch.distributed
        self.depth = getattr(config, "depth", 1)  # of `rq`
        self.quantiser = vector_quantize_pytorch(kind=config.kind).ResidualVQ(
            dim=model.code_channels,
            num_quantizers=self.depth,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment,
            threshold_ema_dead_code=config.restart_below,
            kmeans_init=True,
            rotation_trick=False,
            sync_codebook=distributed.is_available()
            and distributed.is_initialized()
            and distributed.get_world_size() > 1,
        )
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.mlp = build_features(model, in_channels=model.code_channels)

    @property
    def codebooks(self) -> Tensor:
        """(R, K, C)."""
        return self.quantiser.codebooks

    def forward(self, h: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """`noise` is not used: these codes are exact."""
        if not self.training:
            codes = self.bound(h)
            return BottleneckOutput(codes, self.decode_codes(codes), h.new_zeros(()), {"code_std": codes.std()})
        x = h.float().flatten(2).transpose(1, 2)  # (B, N, C)
        with _keyed_generators(int(self.num_updates), device=x.device):
            # The training loop skips a step whose loss is not finite; what entries follow cannot be taken back.
            entries, _, losses = self.quantiser(x.nan_to_num(0.0, 0.0, 0.0))  # (B, N, C), (B, N, R), (R,)
        self.num_updates += 1
        codes = _half(entries.detach()) + (x - x.detach())  # straight through: the value is exactly the entry's
        codes = codes.transpose(1, 2).unflatten(2, h.shape[2:])  # (B, C, h, w)
        return BottleneckOutput(codes, self.decode_codes(codes), losses.mean(), {"code_std": codes.detach().std()})

    def bound(self, h: Tensor) -> Tensor:
        x = h.detach().float().flatten(2).transpose(1, 2).flatten(0, 1)  # (B * N, C)
        entries = torch.stack([codebook[i] for codebook, i in zip(self.codebooks, self.search(x), strict=True)]).sum(0)
        codes = _half(entries).unflatten(0, (len(h), -1)).transpose(1, 2)  # (B, C, N)
        # contiguous, as codes that come from a store: layouts differ in the order of later sums
        return codes.contiguous().unflatten(2, h.shape[2:])

    def search(self, x: Tensor) -> list[Tensor]:
        """x (M, C) -> for each codebook in turn the entry (M,) nearest to what is left of x."""
        found, rest = [], x
        with full_precision(x.device):  # bf16 distances would choose other entries
            for codebook in self.codebooks:
                found.append(torch.cat([_nearest(rows, codebook) for rows in rest.split(ROWS_AT_ONCE)]))
                rest = rest - codebook[found[-1]]
        return found

    @property
    def searches_when_decoding(self) -> bool:
        """Whether codes are replaced by their nearest entry before they are decoded."""
        return self.depth == 1 and not self.training  # in training the codebook has moved on since they were chosen

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.mlp(self.bound(codes) if self.searches_when_decoding else codes)

    def lookup(self) -> Lookup:
        return Lookup("codebook", self.bound if self.searches_when_decoding else nn.Identity(), self.codebooks)

    def usage_parts(self) -> dict[str, int]:
        return {f"codebook_{number}": self.codebooks.shape[1] for number in range(self.depth)}

    def usage_of(self, codes: Tensor) -> list[Tensor]:
        """For `rq` the entries are searched for anew in the codes, which are sums."""
        rows = codes.float().flatten(2).transpose(1, 2).flatten(0, 1)  # (B * N, C)
        return [torch.bincount(entries, minlength=self.codebooks.shape[1]) for entries in self.search(rows)]


def _half(x: Tensor) -> Tensor:
    """x rounded to what float16 can hold, as float32."""
    return x.half().float()


def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """x (M, C), codebook (K, C) -> (M,): argmin |x - e|^2 = argmin |e|^2 - 2 x e."""
    return (codebook.square().sum(1) - 2 * x @ codebook.T).argmin(1)


@contextmanager
def _keyed_generators(seed: int, *, device: torch.device) -> Iterator[None]:
    """torch's global generators seeded for the block and put back after it.

    The library draws k-means centres and restarts from them; seeded by the number of the update, a resumed run draws
    what an uninterrupted one does.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            torch.cuda.default_generators[each.index or 0].manual_seed(seed)
        yield
