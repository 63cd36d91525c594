"""How much of a bottleneck's tables or codebooks a collection of codes uses (DESIGN section 3.3).

A part is a grid level, a codebook, or the channels of `fsq`; its entries are table rows (of a dense level: lattice
vertices), codebook entries, or values of a channel. What falls on an entry is the interpolation weight it receives,
or the number of times it is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class UsageCounter:
    """Adds up what falls on every entry.

    `counts` (one tensor per part, float64, on `device`) may be summed over processes before `result` is asked for.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, int]] = (),
        *,
        histogram: Callable[[Tensor], list[Tensor]] | None = None,
        device: torch.device | str = "cpu",
        is_codebook: bool = False,
    ) -> None:
        """`parts`: name and number of entries of each. `histogram`: codes (B, C, h, w) -> what falls on the entries
        of each part, one tensor per part.
        """
        self.names = [name for name, _ in parts]
        self.counts = [torch.zeros(size, dtype=torch.float64, device=device) for _, size in parts]
        self._histogram = histogram
        self._is_codebook = is_codebook

    def add(self, codes: Tensor) -> None:
        """Count codes (B, C, h, w), on the bottleneck's device."""
        if self._histogram is not None:
            for total, found in zip(self.counts, self._histogram(codes), strict=True):
                total += found

    def result(self) -> dict[str, float]:
        """`usage`, the fraction of entries that anything fell on, of everything and of each part; `entropy`, of what
        fell on the entries relative to uniform, 0 to 1, of each part and on average; for codebooks `perplexity`, the
        number of entries that uniform use would need for that entropy. Empty when there is nothing to use.
        """
        if not self.counts:
            return {}
        used = [int((counts > 0).sum()) for counts in self.counts]
        entropies = [_entropy(counts) for counts in self.counts]
        relative = [entropy / math.log(len(counts)) for entropy, counts in zip(entropies, self.counts, strict=True)]
        found = {
            "usage": sum(used) / sum(len(counts) for counts in self.counts),
            "entropy": sum(relative) / len(relative),
        }
        if self._is_codebook:
            found["perplexity"] = sum(math.exp(entropy) for entropy in entropies) / len(entropies)
        for name, num_used, counts, entropy in zip(self.names, used, self.counts, relative, strict=True):
            found |= {f"usage/{name}": num_used / len(counts), f"entropy/{name}": entropy}
        return found


def _entropy(counts: Tensor) -> float:
    """Of the histogram `counts`, in nats; 0 of an empty one."""
    total = float(counts.sum())
    if total <= 0:
        return 0.0
    share = counts[counts > 0] / total
    return max(0.0, float(-(share * share.log()).sum()))
