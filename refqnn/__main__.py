"""`python -m refqnn` and the console script."""

from __future__ import annotations

import sys

from refqnn.errors import MissingExtra


def main() -> None:
    """Run the command line; without the `cli` extra, say how to get it."""
    try:
        from refqnn.cli import refqnn
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(str(MissingExtra("cli", error.name)))
    refqnn()


if __name__ == "__main__":
    main()
