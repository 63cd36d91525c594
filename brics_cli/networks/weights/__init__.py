"""Pretrained weights on disk: what there is, where it stands, whether it is what it says. No torch, no surprises.

Nothing is ever downloaded unless `brics weights fetch` is asked to, and nothing is loaded whose sha256 is unknown
unless a caller allows it, in which case the result is marked as not comparable (DESIGN section 6).
"""

from brics_cli.networks.weights.finding import FoundWeights, find, require, search_places, weights_root
from brics_cli.networks.weights.registry import REGISTRY, WeightsEntry, entry

__all__ = [
    "REGISTRY",
    "FoundWeights",
    "WeightsEntry",
    "entry",
    "find",
    "require",
    "search_places",
    "weights_root",
]
