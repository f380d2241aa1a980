"""Why changes of the source that no question tells change no answer: the arguments, by group.

A rule is a pattern of `Change.id` ("module:line function: before -> after") and the argument for
all that it matches; the first that matches counts.  What no rule matches counts as a survivor.
"""

from __future__ import annotations

import re

RULES = [
    (r"__reversed__", "exact integers are summed, or cells filled, in another order"),
    (r"np\.asarray\((\w+)\) -> \1$|(\w+) = np\.asarray\(\2\) -> pass$",
     "the suite gives arrays, which asarray hands on"),
    (r"\.item\(\)|\.tolist\(\)|dtype\.kind|np\.generic|object -> '(int64|float64)'"
     r"|: (int|float|Fraction)\((.*)\) -> \4$",
     "the same number as a numpy scalar or as a Python number"),
    (r"np\.errstate", "warnings alone"),
    (r"clamp: (max|min)\(|clamp\((.*)\) -> clamp\(", "of a value and two ends in order the middle "
     "one, whichever is named first"),
    (r"(% 2|twice|lower % 2) == 1 -> .* >= 1$|% 2 -> __narrowed__|: twice == 0 -> twice <= 0$",
     "a parity, or twice a fraction, is never beyond"),
    (r"round_value: (exact - lower|2 \* \(exact - lower\)) -> __narrowed__\(.*'int",
     "a rational, which no integer type takes"),
    (r"-> __narrowed__\(.*(dtype\(|v / s|scaled|a \* s|b / t).*'int",
     "a real number, which no integer type takes"),
    (r"\.size == 1 -> .*\.size <= 1$|len\((\w+)\) > 1 -> len\(\1\) != 1$", "none is empty"),
    (r"axis % len\(shape\) -> (axis$|__narrowed__)", "axes are few"),
    (r"channel_value: (1 -> 2|0 -> -1)$|<lambda>: 0 -> -1$|entry: 0 -> -?1$|entry: 1 -> (-1|0|2)$",
     "the one value of a vector of one, or the one axis, by another index"),
    (r": (\w+_|fit|finish|first|read_\w|order|used|join|axes|images|weights|sample|channels|inputs"
     r"|integer|kernels|strides|paddings|dilations|factors)\((.+)\) -> (\2|\2\[.*)$"
     r"|: (fit|finish|integer)\((.+)\) -> \5$|: \w+\((\w+)\((.*)\)\) -> \w+\(\7\)$",
     "a hook that in the right kernel hands its argument on"),
    (r"total: for term|total: fit\(acc \+ term\) -> acc \+ term$",
     "the register of the right kernel has no end"),
    (r"finish\((.*)\) -> finish\(|last\((.*)\) -> last\(", "of a sum, whichever is first; the hook "
     "reads no more"),
]  # fmt: skip


def argument(change: str) -> str:
    """Why this change changes nothing; "" where nobody said it."""
    return next((reason for pattern, reason in RULES if re.search(pattern, change)), "")
