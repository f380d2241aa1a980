"""Widths of accumulators, proved: formulas, certificates, overflows.

widths          omega, max_fan_in: before any weight is known
domain          the inputs that a statement is about
bounds          what is said of a value: range, proof, tightness, witness
rungs           intervals, corners, enumeration
cone            the part of a program that one neuron depends on
search          witnesses by local search, proofs by branch and bound
solver          the same questions for a constraint solver
deciding        is a bound beyond a limit ever reached
ladder          from intervals to exact bounds
samples         inputs that try to leave the bounds
recheck         every claim again, by code of its own
staged          accumulators in stages: what their registers hold, whether a result changes
staged_report   what is said of one stage
staged_files    accumulators and their certificates as JSON
certificate     certify, Certificate: bounds with their proofs, in memory and on disk
overflow        find_overflow: an input that overflows, or a proof that there is none
classes         certify_class: an input nearby of another class, or a proof that there is none
"""

from refqnn.accumulator.bounds import LayerCertificate, Proof, Status
from refqnn.accumulator.certificate import Certificate, Row, certify, observed, with_stages
from refqnn.accumulator.classes import ClassVerdict, certify_class
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.overflow import (
    NoOverflow,
    Overflow,
    StageOverflow,
    Unknown,
    find_overflow,
)
from refqnn.accumulator.staged import StagedCertificate, StageReport, StageSum, Verdict
from refqnn.accumulator.widths import max_fan_in, omega

__all__ = [
    "Certificate",
    "ClassVerdict",
    "Domain",
    "LayerCertificate",
    "NoOverflow",
    "Overflow",
    "Proof",
    "Row",
    "StageOverflow",
    "StageReport",
    "StageSum",
    "StagedCertificate",
    "Status",
    "Unknown",
    "Verdict",
    "certify",
    "certify_class",
    "find_overflow",
    "max_fan_in",
    "observed",
    "omega",
    "with_stages",
]
