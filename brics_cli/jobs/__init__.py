"""One file per command: the whole command read top to bottom. Jobs print nothing; they report and return."""
