"""The earlier home of `Requantize`; see refqnn.ops.requantize."""

from refqnn.ops.requantize import ALWAYS, NEVER, Requantize

__all__ = ["ALWAYS", "NEVER", "Requantize"]
