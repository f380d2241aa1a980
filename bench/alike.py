"""Why changes of the source that no question tells change no answer: the arguments, by group.

A rule is a pattern of `Change.id` ("module:line function: before -> after") and the argument for
all that it matches; the first that matches counts.  What no rule matches counts as a survivor.
"""

from __future__ import annotations

import re

_ANY = r"'(int8|int16|int32|float32)'\)$"
_WIDE = r"'(int16|int32|float32)'\)$"
_PLACES = (
    r"_positions|_padded|_windows|_cut|conv1d|conv2d|conv_transpose2d|gather|reshape|linear|"
    r"simplex_level|accumulate_stages|requantize_thresholds"
)
_SIZES = (
    r"(room|size|extent|kernel|stride|dilation|groups|outs|full|kept|out|inputs|k|d|h|w|len"
    r"\([^)]*\)|q_max|start|at|index)\b"
)
RULES = [
    (r"__reversed__", "exact integers are summed, or cells filled, in another order"),
    (r"np\.asarray\((\w+)\) -> \1$|(\w+) = np\.asarray\(\2\) -> pass$",
     "the suite gives arrays, which asarray hands on"),
    (r"\.item\(\)|\.tolist\(\)|dtype\.kind|np\.generic|object -> '(int64|float64)'"
     r"|: (int|float|Fraction)\((.*)\) -> \3$",
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
    (rf"({_PLACES}): (?!int\((value|row|bias)|sum\().*{_SIZES}.* -> __narrowed__\(.*{_WIDE}|"
     rf"<lambda>: (k // outs|place \* s|sum\(flags\)).* -> __narrowed__\(.*{_WIDE}",
     "a position or a count; no file of the suite holds 2^15 values of a tensor"),
    (rf"(out|inputs|k) % (groups|outs) -> __narrowed__\(.*{_ANY}",
     "what is left of a division by fewer than 128 groups"),
    (rf": (bits|shift_\(s\)|s|int\(bits\))( - (1|done))? -> __narrowed__\(.*{_ANY}|"
     rf"len\((groups|widths|descending)\).* -> __narrowed__\(.*{_ANY}|"
     rf"width\(lo\), width\(hi\).* -> __narrowed__\(.*{_ANY}",
     "a width, a shift or a number of stages: at most 64 or so"),
    (r": (lowest \+ )?(Fraction\(2\)|2) \*\* (\w+|\([\w() -]+\)) -> __narrowed__\(.*'float32'\)$",
     "a power of two, which float32 holds"),
    (rf"(products|last|values|added|terms|offset|sizes|operands\))( - \{{1\}}| [+*] .*)? -> "
     rf"__narrowed__\(.*{_ANY}|Fraction\(.* -> __narrowed__\(.*'int\d+'\)$"
     r"|(v - tau|real.*|r // 1|descending.*|v - budget.*) -> __narrowed__\(.*'int\d+'\)$",
     "a list, a set or a rational, which no integer type takes"),
    (r"(outside|nan) is None|(out_of_range|not_a_number)', '(bias|weight|NaN|code|table|index)'\) "
     r"-> pass$", "where there is no hook, what follows fails: a refusal without a code"),
    (r"(concat|reshape|gather): .*(shape_mismatch|operands|prod\(shape\)|len\(x\) \* size|np.shape)"
     r"|concat: 2 -> [34]$", "numpy refuses what does not fit: a refusal without a code"),
    (r": (\w+, )*\w+ = .*(np\.asarray|weights|strides|steps|kernels).* -> pass$|"
     r", dtype=object\) -> |astype\(object\) -> ",
     "the suite gives arrays, and those beyond 64 bits as Python integers"),
    (r"(min|max|least)\((.*), (.*)\) -> \1\(|signed\(lo|span\(lo|products\(weight|choose\(up|"
     r"hi - lo -> lo - hi$|real\(value|add_offset\(|multiply\(|zip\((weight|stride)|spans\(",
     "a lesser one, a sum, a product, a width of either sign: whichever comes first"),
    (r"round_value: '\w+' -> |<= 'end'|<= 'bias_first'|[<>]= '(reverse|channels_last|outside)'|"
     r"'half_up'", "a choice that this operation does not have, or that sorts at an end"),
    (r"axis % len\(shape\) -> axis [-*/]|flat.size == 1 or axis is None -> flat.size == 1$|"
     r"channel_value: 0 -> 1$", "one axis of one value; a scale without an axis is one number"),
    (r"-2 \*\* \(bits - 1\) \+ narrow -> __narrowed__\(.*'int32'|"
     r": 2 \*\* \(bits - 1\) - 1 -> __narrowed__\(.*'int32'", "signed codes have 32 bits at most"),
    (r": 1 -> -1$|: 2 -> -2$|: 0 -> -1$",
     "an index from the end, where it is the same one; an even power; what nothing reads"),
    (r"inside|padded\.shape|_padded: 0 -> 1$|conv2d: 0 -> 1$",
     "windows lie inside by the count of positions; what is padded behind nothing reads"),
    (r"groups < 1|: 1 -> 0$|shift <= 62 -> shift <= 62$|: denominator|ndim != (\d) -> .*ndim < \1$",
     "what follows fails (a division by 0, an index): a refusal without a code"),
    (r"(check|parted|late|last|after)\b.*(and|or|else|\+|-) .* -> |and check -> |late and check|"
     r"with_bias|start\(stage|sums = ", "a hook that is as the right kernel has it"),
    (r"(lo|q_min|zeros.min|acc|wrap|saturate).*: value - lowest -> value \+ lowest$|"
     r"wrap: value - lowest -> value \+ lowest$", "the ends of a register are 2^bits apart"),
    (r"bits == 1 -> bits <= 1$|v > 0 -> v >= 0$|<lambda>: 0 -> 1$|stage == last -> stage >= last$",
     "a width is at least 1, an infinity is never 0, no stage is behind the last"),
    (r"dtype\(\w( / \w)?\) -> |type\(scaled\).* -> |(v / s|dtype\(s\)) -> __narrowed__",
     "a quotient, a sum, a product of two floats of a type is of that type"),
    (r"requantize_scale: b / t -> |accumulate: int\(bias\[k\]\) -> |thresholds: q_max -> |"
     r"len\(values\) -> values|two_sided|order=order",
     "a hook that in the right kernel does not read it"),
    (r"reshape\(-1\) -> |: values\(x|\.flat\) -> |places\(|result\(y\)|extras\(|: tuple\(|i <= -1$|"
     r"reshape.*: 1 -> 2$|(global_sum_pool|<lambda>|flatten|project): 1 -> 2$",
     "the same as a tuple, flat or not; any negative length is what is left; hooks hand on"),
    (r"w > 0 -> w >= 0$|abs\(hi\) -> hi$|needs\[\d\] <= |need > room|<= 0$|codes\) <= budget -> ",
     "a weight of 0 adds nothing; at the very bound both ways give the same"),
    (r"(_cut: range|range\(1, len\(descending).* \+ 1", "an empty sum behind all the others is 0"),
    (r"finish\((.*)\) -> finish\(|last\((.*)\) -> last\(", "of a sum, whichever is first; the hook "
     "reads no more"),
]  # fmt: skip


# Of some operations alone: a pattern of their names first.
OF_OPERATIONS = [
    ("requantize_", r"(ends|code|each|add_and_clamp|round_value|requantize_\w+)\b.*"
     rf"(-> __narrowed__\(.*{_WIDE}|32 -> 31$|< 32$|object -> )|bits <= 32 -> 1 <= bits < 32"
     r"|- 1 -> __narrowed__\(.*'int8'|narrow -> __narrowed__\(-2.*'int8'",
     "formats whose thresholds are listed have 8 bits or so; wider ones are those of rescale"),
    ("conv1d", r"conv1d: |conv2d: (.*(\b[hiu]\b|0 -> |2 -> |1 -> )|x.ndim)|(stride|dilation)\[0\]",
     "conv1d is run as conv2d of one row"),
    ("project", r"round_value|(row|sign)_budgets|bits|outside|<lambda>: ([st] \* |half|a // b)",
     "project rounds half to even alone; its budgets are asked as sign_budgets"),
    ("fan_in_mask", r"object -> |weight.size == 0",
     "marks are 0 and 1; an empty weight has no rows to be made, a refusal without a code"),
    ("binarize", "narrowed|object", "codes are 1 and -1"),
]  # fmt: skip


def argument(change: str, operation: str = "") -> str:
    """Why this change changes nothing in an operation; "" where nobody said it."""
    rules = [(p, why) for name, p, why in OF_OPERATIONS if operation.startswith(name)]
    return next((why for pattern, why in (*RULES, *rules) if re.search(pattern, change)), "")
