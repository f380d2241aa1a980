"""The public path of the command line."""

from refqnn.commands.cli import refqnn

__all__ = ["refqnn"]
