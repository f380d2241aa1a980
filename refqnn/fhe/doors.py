"""How a circuit's integers stand for the network's: what a client has to know.

A function of one code c, of q_min, q_min + s, ..., q_max, is a sum over the levels that c reaches:

    f(c) = f(q_min) + sum_j (f(q_min + j s) - f(q_min + (j - 1) s)) * [c >= q_min + j s]

So a neuron that depends on a single input needs no lookup when the client sends the bits
[c >= q_min + j s] beside c.  It sends all of them: it has to know which inputs, and no f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import CircuitError, mismatch
from refqnn.formats import IntFormat

__all__ = ["Encoding", "level_codes"]

IntVector = NDArray[np.int64]


def level_codes(fmt: IntFormat) -> IntVector:
    """The codes above the lowest one, [levels - 1]."""
    return fmt.q_min + fmt.step * np.arange(1, fmt.levels)


@dataclass(frozen=True, eq=False)
class Encoding:
    """Codes as the circuit's argument, its result as the network's output.

    Attributes:
        input_format: of the codes.
        input_low, input_step: a code c enters as (c - input_low) / input_step.
        read_alone: flat indices [k] of the inputs whose levels are sent.
        output_low, output_step: the output is output_low + the sum of output_step * part over the
            result's parts; one step, [*output_shape] or [parts, 1].
        output_top: the highest value of each of the result's integers, proved;
            [parts * size of the output] or [*output_shape].
    """

    input_format: IntFormat
    input_low: int
    input_step: int
    read_alone: IntVector
    output_low: IntVector
    output_step: IntVector
    output_top: IntVector

    def arguments(self, codes: IntVector) -> IntVector:
        """The integers that a circuit takes for checked codes [n, *input_shape].

        Returns: [n, *input_shape], or for k > 0 the codes and then the levels of each of these
            inputs: [n, size + k * (levels - 1)].

        >>> two, none = IntFormat(2, signed=False), np.zeros(0, int)
        >>> encoding = Encoding(two, 0, 1, np.array([0]), none, none, none)
        >>> encoding.arguments(np.array([[2, 0]])).tolist()
        [[2, 0, 1, 1, 0]]
        """
        # Concrete reads an array of several axes in the order of its memory.
        entered = np.ascontiguousarray((codes - self.input_low) // self.input_step)
        if len(self.read_alone) == 0:
            return entered
        n = len(codes)
        alone = codes.reshape(n, -1)[:, self.read_alone, None]
        bits = alone >= level_codes(self.input_format)  # [n, k, levels - 1]
        return np.concatenate([entered.reshape(n, -1), bits.reshape(n, -1)], axis=1)

    def outputs(self, result: NDArray[Any]) -> IntVector:
        """The network's output [*output_shape] from a decrypted result.

        Args:
            result: [parts * size of the output] or [*output_shape], nonnegative integers.
        """
        parts = result.astype(np.int64).reshape(-1, *self.output_low.shape)
        output: IntVector = self.output_low + (self.output_step * parts).sum(axis=0)
        return output

    def require(self, result: NDArray[Any]) -> None:
        """Raises: CircuitError for a value that the circuit cannot give: it was decrypted with
        other keys, or altered, or a lookup has failed."""
        if result.shape != self.output_top.shape:
            expected = f"shape {self.output_top.shape}"
            raise CircuitError(mismatch("decrypted result", f"shape {result.shape}", expected))
        wrong = (result < 0) | (result > self.output_top)
        if wrong.any():
            value, top = int(result[wrong][0]), int(self.output_top[wrong][0])
            expected = f"at most {top}: is it the answer to this client's request?"
            raise CircuitError(mismatch("decrypted result", value, expected))
