"""The seeds that the search chose, frozen: operation -> seeds of `samplers.sample`.

Written by `python -m refqnn.conformance.making.search`.  Add at the end of a row; never remove or
reorder.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CHOSEN", "MORE"]

CHOSEN: Mapping[str, tuple[int, ...]] = {
    "round_ratio": (215, 290, 51, 123, 192),
    "check_codes": (94, 8, 2, 3),
    "quantize": (361, 231, 287, 315, 322, 240, 276, 53, 87, 61, 251, 37),
    "binarize": (247,),
    "dequantize": (361, 309, 186),
    "requantize_thresholds": (281, 217, 297, 321),
    "requantize_scale": (255, 4, 106, 56, 280, 277, 113, 378, 225),
    "requantize_shift": (68, 94, 12, 378, 219, 360, 19, 235, 50),
    "requantize_multiplier": (268, 400, 270, 213, 79, 284, 82),
    "rescale": (127, 178, 360, 169, 304, 232, 65, 400, 101),
    "linear": (90, 5, 133, 47, 304),
    "accumulate": (275, 266),
    "accumulate_stages": (241, 173, 69, 140),
    "conv1d": (69, 290, 351, 324),
    "conv2d": (378, 146, 90, 197, 173),
    "conv_transpose2d": (79, 246),
    "max_pool2d": (22, 126),
    "sum_pool2d": (298, 304, 220),
    "global_sum_pool": (245,),
    "add": (117, 30, 371),
    "concat": (253, 229),
    "flatten": (80,),
    "reshape": (215, 382),
    "gather": (143, 159, 136, 219),
    "lookup": (7, 153, 138, 376, 122),
    "bit_widths": (3,),
    "accumulator_range": (209, 393),
    "omega": (41,),
    "max_fan_in": (68, 191),
    "fan_in_mask": (33, 60, 116, 185, 148, 133),
    "sign_budgets": (110,),
    "project": (238, 278, 321, 313),
}

# Against mutants that nobody wrote (bench/vector_search.py): "s" and a seed of `samplers.sample`,
# "r" and one of `roomy.roomy`.  In files of their own.
MORE: Mapping[str, tuple[str, ...]] = {
    "round_ratio": ("s0270", "s0358", "r0040"),
    "check_codes": ("s0210", "s0234", "r0024", "r0030"),
    "quantize": ("s0045", "s0111", "r0229", "r0097", "r0337", "s0069", "s0359", "s0072", "r0208",
                 "r0155", "r0048", "r0057"),
    "dequantize": ("r0055", "r0019", "s0005", "r0008", "r0018", "r0033", "r0197", "r0117"),
    "requantize_thresholds": ("r0165", "r0266"),
    "requantize_scale": ("r0377", "s0037", "s0177", "s0392", "s0200", "r0008", "r0031"),
    "requantize_shift": ("s0056", "r0281"),
    "linear": ("r0359", "r0240", "r0213"),
}  # fmt: skip
