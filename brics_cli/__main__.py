"""`python -m brics_cli` and the `brics` command."""

from brics_cli.cli.app import main

if __name__ == "__main__":
    main()
