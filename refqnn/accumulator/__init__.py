"""Widths of accumulators, proved: formulas, certificates, overflows.

widths          omega, max_fan_in: before any weight is known
domain          the inputs that a statement is about
certificate     bounds with their proofs, in memory and on disk
ladder          certify: from intervals to exact bounds
cone            the part of a program that one neuron depends on
search          witnesses by local search, proofs by branch and bound
solver          the same questions for a constraint solver
recheck         Certificate.verify
overflow        find_overflow: an input that overflows, or a proof that there is none
"""

from refqnn.accumulator.certificate import Certificate, LayerCertificate, Proof, Row, Status
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.ladder import certify, observed
from refqnn.accumulator.overflow import NoOverflow, Overflow, Unknown, find_overflow
from refqnn.accumulator.widths import max_fan_in, omega

__all__ = [
    "Certificate",
    "Domain",
    "LayerCertificate",
    "NoOverflow",
    "Overflow",
    "Proof",
    "Row",
    "Status",
    "Unknown",
    "certify",
    "find_overflow",
    "max_fan_in",
    "observed",
    "omega",
]
