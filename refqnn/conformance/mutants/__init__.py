"""Plausible wrong implementations, one semantic change each: what the vectors have to tell apart.

The operations stand here a third time, as an implementer would write them, with a hook at every
step.  Without hooks each *kernel* is right; a *mutant* is a kernel with one hook replaced.  Changes
that no input can reveal are kept in the table, with the argument, so that the score is honest.
"""

from __future__ import annotations

from typing import Any

from refqnn.conformance.mutants import bounds, doors, nodes, rescale  # noqa: F401 (they fill the tables)
from refqnn.conformance.mutants.table import KERNELS, MUTANTS, Mutant, mutants_of
from refqnn.conformance.operations import Function
from refqnn.conformance.suite import Rejected

__all__ = ["KERNELS", "MUTANTS", "Mutant", "mutants_of"]


def _recoded(kernel: Function, code: str) -> Function:
    """What an implementation with one code for everything answers."""

    def refusing(**arguments: Any) -> Any:
        try:
            return kernel(**arguments)
        except Rejected as error:
            raise Rejected(code, str(error)) from error

    return refusing


# By operation, where a vector asks for another code.
_WRONG_CODES = {
    "invalid_parameter": "check_codes quantize binarize dequantize linear conv2d add concat "
    "reshape lookup max_fan_in network requantize_thresholds sign_budgets project "
    "conv_transpose2d gather accumulate_stages",
    "out_of_range": "round_ratio integer_format requantize_scale requantize_multiplier accumulate "
    "max_pool2d bit_widths omega fan_in_mask quantize sign_budgets project "
    "conv_transpose2d gather rescale accumulate_stages",
}
for _code, _operations in _WRONG_CODES.items():
    for _name in _operations.split():
        _text, _wrong = f"refuses everything as {_code}", _recoded(KERNELS[_name], _code)
        MUTANTS.append(Mutant(_name, f"always_{_code}", "refusal_code", _text, _wrong))
