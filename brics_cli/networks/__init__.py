"""Feature networks: built from a file that `brics_cli.networks.weights` found, never from a name on the internet.

`inception`, `clip` (both a `features.FeatureNetwork`) and `perceptual` (LPIPS); `random_features` needs no file.
`torch.jit` is used here and nowhere else. Import the module you need: each brings only its own dependencies.
"""
