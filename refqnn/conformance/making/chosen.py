"""The seeds that the search chose, frozen: operation -> seeds of `samplers.sample`.

Written by `python -m refqnn.conformance.making.search`.  Add at the end of a row; never remove or
reorder.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CHOSEN"]

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
