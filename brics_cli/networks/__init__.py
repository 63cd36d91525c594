"""Feature networks: built from a file that `weights` found, never from a name on the internet.

`registry`, the tables of networks and files, and `weights` need no torch. `features.load_network` loads a network by
its name in the table. `torch.jit` is used here and nowhere else.
"""
