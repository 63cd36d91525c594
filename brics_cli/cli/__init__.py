"""The command line: the only room that prints. One module per command; `app` puts them together."""
