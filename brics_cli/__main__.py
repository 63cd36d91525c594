"""`python -m brics_cli` and the `brics` command."""

from brics_cli.isolation import isolate


def main() -> None:
    """Run the command line, once nothing can be imported from the current directory any more."""
    isolate()
    from brics_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
