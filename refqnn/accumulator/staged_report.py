"""What is said of one stage of an accumulator, in the words of `refqnn.accumulator.staged`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import Proof
from refqnn.display import safe
from refqnn.emulate import Stage
from refqnn.ops.base import Ends

__all__ = ["StageReport", "StageSum", "Verdict"]


class Verdict(Enum):
    """What is known of a stage; see `refqnn.accumulator.staged`."""

    FITS = "fits"
    HARMLESS = "harmless"
    HARMFUL = "harmful"
    OVERFLOWS = "overflows"
    OPEN = "open"

    @property
    def proved(self) -> bool:
        """Is it proved that this stage changes no result?"""
        return self in (Verdict.FITS, Verdict.HARMLESS)


@dataclass(frozen=True, eq=False)
class StageSum:
    """An input that makes a sum leave its register, replayed through `Network.trace`.

    Attributes:
        neuron, group: of the stage, whose sum is `value`.
        witness: input codes [*input_shape].
        value: what the register should have held.
        exact, result: of the neuron: the sum that it should be, and what the accumulator makes
            (None: an error).
    """

    neuron: tuple[int, ...]
    group: int
    witness: NDArray[np.int64]
    value: int
    exact: int
    result: int | None

    @property
    def harmful(self) -> bool:
        return self.exact != self.result


@dataclass(frozen=True, eq=False, repr=False)
class StageReport:
    """What is known of one stage of one node.

    Attributes:
        layer, number, stage: the node, which of its stages (0 is the innermost), and that stage.
        range: proved (lo, hi) of what is put into its registers, before it is fitted.
        verdict: see `refqnn.accumulator.staged`.
        proof: of the range, and of `fits` and `harmless`.
        found: an input that overflows, the smallest that was found; None where none was.
        widest: where no proof was found, the neuron whose bounds lie farthest beyond the register.
    """

    layer: str
    number: int
    stage: Stage
    range: Ends
    verdict: Verdict
    proof: Proof
    found: StageSum | None = None
    widest: tuple[int, ...] | None = None

    def __str__(self) -> str:
        lo, hi = self.range
        what = f"{self.verdict.value}, [{lo}, {hi}] ({self.proof.label})"
        return f"{self.layer} stage {self.number} ({self.stage}): {what}"

    def __repr__(self) -> str:
        return f"<StageReport {safe(self)}>"
