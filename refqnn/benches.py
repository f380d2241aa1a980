"""The public path of what `refqnn bench` knows of the benches."""

from refqnn.commands.bench import Bench, benches, command, folder

__all__ = ["Bench", "benches", "command", "folder"]
