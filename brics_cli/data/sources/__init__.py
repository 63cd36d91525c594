"""One file per format of collection; `brics_cli.data.opening` chooses among them."""
