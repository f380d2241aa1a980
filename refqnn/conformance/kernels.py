"""The old path of the right kernels: they stand beside their mutants."""

from refqnn.conformance.mutants import KERNELS
from refqnn.conformance.mutants.steps import saturate, wrap

__all__ = ["KERNELS", "saturate", "wrap"]
