"""Feature-grid retrieval: `functional` is the only door, `reference` the specification."""

from brics_cli.kernels.functional import GridSpec, grid_retrieve
