"""One file per format of collection; `brics_cli.images.opening` chooses among them."""
