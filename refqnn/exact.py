"""The same semantics a second time, in plain Python: integers, fractions, lists and loops.

The oracle's oracle.  It shares the data classes with the numpy path (it reads their fields) and not
one line that computes.  It is slow and meant to be read; property tests run random networks through
both.  Values are nested lists; a batch is a list of samples.

>>> round(Fraction(5, 2), "half_even"), round(Fraction(-5, 2), "half_up")
(2, -2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

from refqnn import ops
from refqnn.emulate import Accumulator, Accumulators, Emulated
from refqnn.errors import (
    AccumulatorOverflow,
    InvalidArgument,
    InvalidType,
    NotCovered,
    OutOfRange,
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import is_integer
from refqnn.network import Network
from refqnn.ops import Op
from refqnn.quantizers import Dequantizer, Quantizer, ThresholdQuantizer
from refqnn.rounding import Rounding

__all__ = [
    "dequantize",
    "forward",
    "project",
    "quantize",
    "round",
    "sign_budgets",
    "to_float",
    "trace",
]

# digits of the significand, exponents of the smallest unit and of the largest power of two
_BINARY_FLOATS = {"float32": (24, -149, 127), "float64": (53, -1074, 1023)}

MODES = tuple(mode.value for mode in Rounding)

Real = Fraction | float  # a rational number, or an infinity
Nested = Any  # an int (or float), or a list of Nested
Accumulate = Callable[[list[int], list[int]], int]  # products, bias (one or none) -> accumulator


# --- rounding ---------------------------------------------------------------------------------


def round(x: Fraction | int, mode: str) -> int:
    """The integer that `mode` chooses for x, from the two around it.

    >>> [round(Fraction(n, 2), "half_away") for n in (-3, -1, 1, 3)]
    [-2, -1, 1, 2]
    """
    if mode not in MODES:
        raise InvalidArgument(mismatch("mode", repr(mode), f"one of {list(MODES)}"))
    lower = math.floor(x)
    rest = x - lower  # 0 <= rest < 1
    upper = lower + 1
    if rest == 0 or mode == "floor":
        return lower
    if mode == "ceil":
        return upper
    if mode == "toward_zero":
        return lower if x > 0 else upper
    if mode == "away_from_zero":
        return upper if x > 0 else lower
    if rest != Fraction(1, 2):
        return lower if rest < Fraction(1, 2) else upper
    if mode == "half_even":
        return lower if lower % 2 == 0 else upper
    if mode == "half_up":
        return upper
    if mode == "half_down":
        return lower
    if mode == "half_away":
        return upper if x > 0 else lower
    return lower if x > 0 else upper  # half_toward_zero


def to_float(x: Real, precision: str) -> Real:
    """x rounded to the nearest binary float, ties to even: IEEE 754, with subnormals.

    Returns: the float as a Fraction, or an infinity.

    >>> to_float(Fraction(1, 3), "float32") == Fraction(11184811, 2**25)
    True
    >>> to_float(Fraction(1, 2**150), "float32"), to_float(Fraction(2**128), "float32")
    (Fraction(0, 1), inf)
    """
    digits, smallest, largest = _BINARY_FLOATS[precision]
    if x in (0, math.inf, -math.inf):
        return x if x else Fraction(0)
    size = abs(Fraction(x))
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if _power_of_two(exponent) > size:
        exponent -= 1
    unit = _power_of_two(max(exponent - digits + 1, smallest))
    nearest = round(size / unit, "half_even") * unit
    if nearest >= _power_of_two(largest + 1):
        return math.inf if x > 0 else -math.inf
    return nearest if x > 0 else -nearest


def _power_of_two(exponent: int) -> Fraction:
    return Fraction(2**exponent) if exponent >= 0 else Fraction(1, 2**-exponent)


# --- the two doors ----------------------------------------------------------------------------


def quantize(quantizer: Quantizer, x: Nested) -> Nested:
    """Codes of real numbers: divide, round, add the zero point, saturate.

    >>> from refqnn import IntFormat, SymmetricQuantizer
    >>> quantize(SymmetricQuantizer(0.5, IntFormat(3, signed=True)), [-9.0, 0.25, 0.75])
    [-4, 0, 2]
    """
    if isinstance(quantizer, ThresholdQuantizer):
        return _count_thresholds(quantizer, x)
    fmt, mode, precision = quantizer.format, quantizer.rounding.value, quantizer.precision
    q_min, q_max = fmt.q_min, fmt.q_max

    def code(value: float, index: tuple[int, ...]) -> int:
        if math.isnan(value):
            raise InvalidArgument(mismatch("x", "NaN", "a number"))
        scale = _channel(quantizer.scale, quantizer.axis, index, depth)
        zero_point = _channel(getattr(quantizer, "zero_point", 0), quantizer.axis, index, depth)
        narrowed = to_float(value, precision)
        scaled = to_float(narrowed / scale, precision)
        if fmt.step == 2:  # bipolar
            return 1 if scaled >= 0 else -1
        if isinstance(scaled, float):  # an infinity
            return q_max if scaled > 0 else q_min
        if getattr(quantizer, "zero_point_first", False):
            scaled = to_float(scaled + to_float(zero_point, precision), precision)
            zero_point = Fraction(0)
        return min(max(round(Fraction(scaled), mode) + int(zero_point), q_min), q_max)

    x = _lists(x)
    depth = len(_shape(x))
    return _map(code, x)


def _count_thresholds(quantizer: ThresholdQuantizer, x: Nested) -> Nested:
    """q_min + step * #{k : x >= thresholds[channel, k]}, infinite x at the ends of float32."""
    greatest = (2 - Fraction(1, 2**23)) * 2**127
    rows = _lists(quantizer.thresholds)

    def code(value: float, index: tuple[int, ...]) -> int:
        if math.isnan(value):
            raise InvalidArgument(mismatch("x", "NaN", "a number"))
        narrowed = to_float(value, "float32")
        finite = min(max(narrowed, -greatest), greatest)
        row = rows[0] if quantizer.axis is None else rows[index[quantizer.axis]]
        count = sum(finite >= threshold for threshold in row)
        return int(quantizer.format.q_min + quantizer.format.step * count)

    return _map(code, _lists(x))


def dequantize(door: Quantizer | Dequantizer, integers: Nested) -> Nested:
    """Floats of integers: (code - zero_point) * scale, or acc * scale + offset.

    >>> from refqnn import Dequantizer
    >>> dequantize(Dequantizer(0.5, [0.0, 1.0]), [[3, 3]])
    [[1.5, 2.5]]
    """
    precision = door.precision

    def value(integer: int, index: tuple[int, ...]) -> float:
        if isinstance(door, Dequantizer):
            scale, offset = (_channel(v, 1, index, depth) for v in (door.scale, door.offset))
            scaled = to_float(to_float(Fraction(integer), precision) * scale, precision)
            return float(to_float(scaled + offset, precision))
        scale = _channel(door.scale, door.axis, index, depth)
        zero_point = _channel(getattr(door, "zero_point", 0), door.axis, index, depth)
        centred = to_float(integer - zero_point, precision)
        return float(to_float(centred * scale, precision))

    integers = _lists(integers)
    depth = len(_shape(integers))
    return _map(value, integers)


def _channel(values: Any, axis: int | None, index: tuple[int, ...], depth: int) -> Fraction:
    """The entry of a per-channel vector for the value at `index`, or the one value there is."""
    values = _lists(values)
    if not isinstance(values, list):
        return Fraction(values)
    return Fraction(values[0 if axis is None else index[axis % depth]])


# --- networks ---------------------------------------------------------------------------------


def forward(network: Network, codes: Nested) -> Nested:
    """Output of the integer program for a batch of codes.

    >>> from refqnn import IntFormat, Linear, Node
    >>> fc1 = Node("fc1", Linear([[1, -2]], [3]))
    >>> net = Network([fc1], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> forward(net, [[7, 0], [0, 7]])
    [[10], [-11]]
    """
    return trace(network, codes)[network.output]


def trace(
    network: Network, codes: Nested, accumulator: Accumulators | None = None
) -> dict[str, Nested]:
    """Every value of the program by name, a list over the samples.

    Raises: ShapeMismatch, InvalidType, OutOfRange; NotCovered for a kind that is not told here.

    >>> from refqnn import IntFormat, Linear, Node
    >>> fc1 = Node("fc1", Linear([[1, -2]], [3]))
    >>> net = Network([fc1], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> trace(net, [[7, 0]], Emulated(4))  # 10 wraps in four bits
    {'input': [[7, 0]], 'fc1': [[-6]]}
    """
    batch, shape = _lists(codes), network.input_shape
    if not isinstance(batch, (list, tuple)) or not batch:
        raise ShapeMismatch(mismatch("codes", "no batch", f"samples of shape {shape}"))
    for sample in batch:
        if not _is_of(sample, shape):
            raise ShapeMismatch(mismatch("codes", "a sample of another shape", f"shape {shape}"))
    samples = [_trace_one(network, sample, accumulator) for sample in batch]
    return {name: [values[name] for values in samples] for name in samples[0]}


def _trace_one(
    network: Network, sample: Nested, accumulators: Accumulators | None
) -> dict[str, Nested]:
    fmt = network.input_format

    def check(code: Any, index: tuple[int, ...]) -> Any:
        if not is_integer(code):
            raise InvalidType(mismatch(f"codes{list(index)}", repr(code), "an integer"))
        if not fmt.q_min <= code <= fmt.q_max or (code - fmt.q_min) % fmt.step:
            raise OutOfRange(mismatch(f"codes{list(index)}", code, str(fmt)))
        return code

    values = {"input": _map(check, sample)}
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs or ()]
        values[node.name] = apply(node.op, inputs, _accumulator(accumulators, node.name)(node.op))
    return values


def apply(op: Op, inputs: Sequence[Nested], accumulate: Accumulate | None = None) -> Nested:
    """One node on one sample.  Raises: NotCovered for a kind that is not told here."""
    if getattr(ops, op.kind, None) is not type(op) or op.kind not in _SUMS | _MAPS:
        kinds = ", ".join(_SUMS | _MAPS)
        raise NotCovered(mismatch("kind of node", f"{op.kind} ({type(op)})", f"one of {kinds}"))
    if op.kind in _SUMS:
        return _SUMS[op.kind](op, accumulate or _exact_sum, *inputs)
    return _MAPS[op.kind](op, *inputs)


def _exact_sum(products: list[int], bias: list[int]) -> int:
    return sum(products) + sum(bias)


def _accumulator(accumulators: Accumulators | None, node: str) -> Callable[[Op], Accumulate]:
    """How the sums of a node are made, for its op."""
    if isinstance(accumulators, Emulated):
        return lambda _: _emulated(accumulators, node)
    if accumulators is None or not isinstance(accumulators, (Accumulator, Mapping)):
        return lambda _: _exact_sum
    found = accumulators if isinstance(accumulators, Accumulator) else accumulators.get(node)
    if found is None:
        return lambda _: _exact_sum
    return lambda op: _staged(found, node, _channels(op))


def _emulated(emulated: Emulated, node: str) -> Accumulate:
    bits = emulated.width(node)
    if bits is None:
        return _exact_sum
    fit = _register(bits, emulated.signed, emulated.overflow, node)

    def accumulate(products: list[int], bias: list[int]) -> int:
        terms = bias + products if emulated.order == "bias_first" else products + bias
        if emulated.order == "reverse":
            terms.reverse()
        return _summed(terms, fit, emulated.when)

    return accumulate


def _staged(accumulator: Accumulator, node: str, channels: int) -> Accumulate:
    """The stages one after the other; products stand channel by channel."""

    def accumulate(products: list[int], bias: list[int]) -> int:
        values, order = products, accumulator.order
        if order == "reverse":
            values = list(reversed(products))
        elif order == "channels_last":
            kernel = len(products) // channels
            values = [products[c * kernel + k] for k in range(kernel) for c in range(channels)]
        elif order != "forward":
            values = [products[int(place)] for place in order]
        *inner, last = accumulator.stages
        for stage in inner:
            fit = _register(stage.width, stage.signed, stage.overflow, node)
            size = stage.group or 1
            groups = [values[i : i + size] for i in range(0, len(values), size)]
            values = [_summed(group, fit, stage.when) for group in groups]
        if accumulator.bias == "first":
            values = bias + values
        elif accumulator.bias == "last":
            values = values + bias
        fit = _register(last.width, last.signed, last.overflow, node)
        outside = bias if accumulator.bias == "outside" else []
        return _summed(values, fit, last.when) + sum(outside)

    return accumulate


def _channels(op: Op) -> int:
    """Input channels whose products stand one behind the other in a row."""
    if isinstance(op, ops.ConvTranspose2d):
        return len(op.weight) // op.groups
    return _shape(op.weight.tolist())[1] if isinstance(op, ops.Conv1d | ops.Conv2d) else 1


def _summed(terms: list[int], fit: Callable[[int], int], when: str) -> int:
    if when == "end":
        return fit(sum(terms))
    acc = 0
    for term in terms:
        acc = fit(acc + term)
    return acc


def _register(bits: int, signed: bool, overflow: str, node: str) -> Callable[[int], int]:
    """What a register of so many bits holds of an integer."""
    modulus = 1 << bits
    lowest = -(modulus >> 1) if signed else 0
    highest = lowest + modulus - 1

    def fit(acc: int) -> int:
        if overflow == "saturate":
            return min(max(acc, lowest), highest)
        if overflow == "error":
            if not lowest <= acc <= highest:
                expected = f"{bits} bits, [{lowest}, {highest}]"
                raise AccumulatorOverflow(mismatch(f"accumulator of {node!r}", acc, expected))
            return acc
        low_bits = acc & (modulus - 1)
        return low_bits - modulus if low_bits > highest else low_bits

    return fit


# --- nodes that sum ---------------------------------------------------------------------------


def _linear(op: ops.Linear, accumulate: Accumulate, x: Nested) -> Nested:
    bias = _bias(op)
    return [
        accumulate([w * v for w, v in zip(row, x)], bias[k])
        for k, row in enumerate(op.weight.tolist())
    ]


def _conv(op: ops.Conv1d | ops.Conv2d, accumulate: Accumulate, x: Nested) -> Nested:
    weight, bias = op.weight.tolist(), _bias(op)
    out, channels, *kernel = _shape(weight)
    sizes = _shape(x)[1:]
    positions = [
        (before + size + after - d * (k - 1) - 1) // s + 1
        for size, k, s, (before, after), d in zip(sizes, kernel, op.stride, op.padding, op.dilation)
    ]

    def acc(k: int, *position: int) -> int:
        group = k // (out // op.groups)
        products = []
        for c, *offset in product(range(channels), *map(range, kernel)):
            place = [
                s * p + d * u - before
                for s, p, d, u, (before, _) in zip(
                    op.stride, position, op.dilation, offset, op.padding
                )
            ]
            w = _at(weight[k][c], offset)
            products.append(w * _at_or(x[group * channels + c], place, sizes, op.pad_code))
        return accumulate(products, bias[k])

    return _build((out, *positions), acc)


def _conv_transpose(op: ops.ConvTranspose2d, accumulate: Accumulate, x: Nested) -> Nested:
    """Every output looks for the inputs whose kernel reaches it: s p + d u = i + padding."""
    weight = op.weight.tolist()  # [in][out / groups][u][v]
    bias = (
        [[]] * (len(weight[0]) * op.groups) if op.bias is None else [[b] for b in op.bias.tolist()]
    )
    channels, sizes, kernel = len(weight) // op.groups, _shape(x)[1:], _shape(weight)[2:]
    positions = [
        s * (size - 1) - before - after + d * (k - 1) + extra + 1
        for s, size, (before, after), d, k, extra in zip(
            op.stride, sizes, op.padding, op.dilation, kernel, op.output_padding
        )
    ]

    def acc(k: int, *position: int) -> int:
        group, of_group = divmod(k, len(weight[0]))
        products = []
        for c, *offset in product(range(channels), *map(range, kernel)):
            places = [
                divmod(i + before - d * u, s)
                for i, (before, _), d, u, s in zip(
                    position, op.padding, op.dilation, offset, op.stride
                )
            ]
            meets = all(rest == 0 for _, rest in places)
            source = group * channels + c
            w = _at(weight[source][of_group], offset)
            value = _at_or(x[source], [place for place, _ in places], sizes, 0) if meets else 0
            products.append(w * value)
        return accumulate(products, bias[k])

    return _build((len(bias), *positions), acc)


def _sum_pool(op: ops.SumPool2d, accumulate: Accumulate, x: Nested) -> Nested:
    windows = _pool_windows(op, x, outside=[op.pad_code])
    return _map_lists(lambda window: accumulate(window, []), windows, 3)


def _global_sum_pool(op: ops.GlobalSumPool, accumulate: Accumulate, x: Nested) -> Nested:
    return [accumulate(_flat(channel), []) for channel in x]


def _add(op: ops.Add, accumulate: Accumulate, *operands: Nested) -> Nested:
    multipliers = op.multipliers or (1,) * len(operands)

    def acc(*index: int) -> int:
        return accumulate([m * _at(x, index) for m, x in zip(multipliers, operands)], [])

    return _build(_shape(operands[0]), acc)


def _bias(op: ops.Linear | ops.Conv1d | ops.Conv2d | ops.ConvTranspose2d) -> list[list[int]]:
    """One list per output: the bias, or nothing."""
    return [[] for _ in op.weight.tolist()] if op.bias is None else [[b] for b in op.bias.tolist()]


# --- nodes that do not ------------------------------------------------------------------------


def _requantize(op: ops.Requantize, x: Nested) -> Nested:
    rows: list[list[int]] = op.thresholds.tolist()
    q_min: int = op.format.q_min

    def code(acc: int, index: tuple[int, ...]) -> int:
        if not -(2**63) < acc < 2**63 - 1:  # the sentinels; an emulated accumulator may be there
            expected = "more than -2**63, less than 2**63 - 1"
            raise OutOfRange(mismatch("input of Requantize", acc, expected))
        row = rows[index[0]] if len(rows) > 1 else rows[0]
        return q_min + sum(1 for threshold in row if acc >= threshold)

    return _map(code, x)


def _rescale(op: ops.Rescale, x: Nested) -> Nested:
    def code(acc: int, index: tuple[int, ...]) -> int:
        def at(values: Any) -> Any:
            return values[index[0]] if len(values) > 1 else values[0]

        value = Fraction((acc + int(at(op.offset))) * int(at(op.multiplier)))
        shift = int(at(op.shift))
        if op.first_rounding is not None:
            first = int(at(op.first_shift))
            value, shift = Fraction(round(value / 2**first, op.first_rounding.value)), shift - first
        lowest, highest = map(int, at(op.clip))
        rounded = round(value / 2**shift, op.rounding.value)
        return min(max(rounded + int(at(op.zero_point)), lowest), highest)

    return _map(code, x)


def _softmax(op: ops.Softmax, x: Nested) -> Nested:
    fmt, table = op.format, op.exponentials.tolist()
    shares = _fixed_shares if op.exponentials.dtype.kind == "i" else _float_shares
    if shares is _fixed_shares and table[0] < 2**15:
        shares = _shares_by_lines
    codes = []
    for values in zip(*map(_flat, x)):
        below = [max(values) - value for value in values]
        e = [Fraction(table[d]) if d < len(table) else Fraction(0) for d in below]
        codes.append([min(fmt.q_min + share, fmt.q_max) for share in shares(e, fmt.bits)])
    remaining = iter([code for channel in zip(*codes) for code in channel])
    return _build(_shape(x), lambda *index: next(remaining))


def _fixed_shares(e: list[Fraction], bits: int) -> list[int]:
    """Each over the sum of all, in units of 2**-bits, as gemmlowp divides; e in units of 2**-31."""

    def product(a: int, b: int) -> int:
        return round(Fraction(a * b, 2**31), "half_up")

    def word(value: int) -> int:
        return min(max(value, -(2**31)), 2**31 - 1)

    total = sum(round(value / 2**12, "half_away") for value in e)
    zeros = 32 - total.bit_length()
    half = total * 2**zeros // 2
    inverse = round(Fraction(48 * 2**29, 17), "half_up")
    inverse += product(half, round(Fraction(-32 * 2**29, 17), "half_up"))
    for _ in range(3):
        inverse += word(4 * product(inverse, 2**29 - product(half, inverse)))
    unit = 2 ** (43 - bits - zeros)
    return [
        round(Fraction(product(word(2 * inverse), int(value)), unit), "half_away") for value in e
    ]


def _shares_by_lines(e: list[Fraction], bits: int) -> list[int]:
    """The same by lines between inverses; e in units of 2**-15, as the codes."""

    def inverse(i: int) -> int:
        """1 / (1 + i / 512), lowered by half of what the line to the next lies above it."""
        at, middle, after = (Fraction(2**24, 512 + i + Fraction(k, 2)) for k in (0, 1, 2))
        code = round(at, "half_away")
        if i < 512:
            above = round((after + code) / 2, "half_away") - round(middle, "half_away")
            code -= round(Fraction(above, 2), "half_away")
        return min(code, 2**15 - 1)

    total = int(sum(e))
    zeros = 32 - total.bit_length()
    h = round(Fraction(total * 2**zeros, 2**15), "half_up")
    i, rest = divmod(min(h - 2**16, 2**16 - 1), 128)
    r = inverse(i) + round(Fraction((inverse(i + 1) - inverse(i)) * rest, 128), "half_up")
    return [round(value * r / 2 ** (31 - zeros), "half_up") for value in e]


def _float_shares(e: list[Fraction], bits: int) -> list[int]:
    """The same in float32, one operation after another."""
    total: Real = Fraction(0)
    for value in e:
        total = to_float(total + value, "float32")
    inverse = to_float(1 / to_float(total / 2**bits, "float32"), "float32")
    return [math.floor(to_float(value * inverse, "float32") + Fraction(1, 2)) for value in e]


def _lookup(op: ops.Lookup, x: Nested) -> Nested:
    rows: list[list[int]] = op.table.tolist()
    lowest: int = op.lo

    def entry(value: int, index: tuple[int, ...]) -> int:
        row = rows[index[0]] if len(rows) > 1 else rows[0]
        if not 0 <= value - lowest < len(row):
            raise OutOfRange(mismatch("input of Lookup", value, f"[{op.lo}, {op.hi}]"))
        return row[value - lowest]

    return _map(entry, x)


def _max_pool(op: ops.MaxPool2d, x: Nested) -> Nested:
    return _map_lists(max, _pool_windows(op, x, outside=[]), 3)


def _pool_windows(op: ops.MaxPool2d | ops.SumPool2d, x: Nested, outside: list[int]) -> Nested:
    """The values of each window, [c][i][j][...]; `outside` stands for a position beyond x."""
    channels, *sizes = _shape(x)
    positions = [
        (before + size + after - k) // s + 1
        for size, k, s, (before, after) in zip(sizes, op.kernel, op.stride, op.padding)
    ]

    def window(c: int, i: int, j: int) -> list[int]:
        values: list[int] = []
        for u, v in product(range(op.kernel[0]), range(op.kernel[1])):
            row = op.stride[0] * i + u - op.padding[0][0]
            column = op.stride[1] * j + v - op.padding[1][0]
            inside = 0 <= row < sizes[0] and 0 <= column < sizes[1]
            values += [x[c][row][column]] if inside else outside
        return values

    return _build((channels, *positions), window)


def _concat(op: ops.Concat, *operands: Nested) -> Nested:
    return [channel for x in operands for channel in x]


def _flatten(op: ops.Flatten, x: Nested) -> Nested:
    return _flat(x)


def _reshape(op: ops.Reshape, x: Nested) -> Nested:
    remaining = iter(_flat(x))
    return _build(op.shape, lambda *index: next(remaining))


def _gather(op: ops.Gather, x: Nested) -> Nested:
    values: list[int] = _flat(x)
    return _map(lambda i, _: op.fill if i == -1 else values[i], op.index.tolist())


_SUMS: dict[str, Callable[..., Nested]] = {
    "Linear": _linear,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "ConvTranspose2d": _conv_transpose,
    "SumPool2d": _sum_pool,
    "GlobalSumPool": _global_sum_pool,
    "Add": _add,
}

_MAPS: dict[str, Callable[..., Nested]] = {
    "Requantize": _requantize,
    "Rescale": _rescale,
    "Softmax": _softmax,
    "Lookup": _lookup,
    "MaxPool2d": _max_pool,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Gather": _gather,
}


# --- weights for a narrow accumulator ---------------------------------------------------------


def sign_budgets(
    P: Sequence[int],
    N: Sequence[int],
    bias: Sequence[int] | None,
    input_range: tuple[int, int],
    bits: int,
) -> tuple[list[int], list[int]]:
    """How large the positive and the negative sum of each row may be, see `refqnn.pruning`.

    >>> sign_budgets([30, 2], [1, 40], [3, 3], (0, 7), 8)
    ([17, 2], [1, 18])
    """
    s, t = max(0, -input_range[0]), max(0, input_range[1])
    pairs = []
    for p, n, b in zip(P, N, bias or [0] * len(P)):
        up, down = 2 ** (bits - 1) - 1 - b, 2 ** (bits - 1) + b
        if s > 0 and t > 0:
            wanted = ((t * p + s * n, up), (s * p + t * n, down))
            f = min([Fraction(1), *(Fraction(room, want) for want, room in wanted if want > 0)])
            pairs.append((math.floor(f * p), math.floor(f * n)))
            continue
        room_p, room_n = (up, down) if s == 0 else (down, up)
        largest = s + t
        pairs.append(
            (p if largest * p <= room_p else room_p // largest,
             n if largest * n <= room_n else room_n // largest)
        )  # fmt: skip
    return [p for p, _ in pairs], [n for _, n in pairs]


def project(
    weight: Nested, bias: Sequence[int] | None, input_range: tuple[int, int], bits: int
) -> Nested:
    """Integer weights whose accumulators fit, by taking units away one after another.

    >>> project([[3.0, 2.6, -3.0, 0.4]], [10], (0, 7), 6)
    [[2, 1, -3, 0]]
    """
    weight = _lists(weight)
    rows = [_flat(row) for row in weight]
    sides = [[[max(Fraction(sign * v), Fraction(0)) for v in r] for r in rows] for sign in (1, -1)]
    rounded = [[[round(v, "half_even") for v in r] for r in side] for side in sides]
    P, N = ([sum(r) for r in side] for side in rounded)
    budgets = sign_budgets(P, N, None if bias is None else _lists(bias), input_range, bits)
    positive, negative = (
        [
            codes if sum(codes) <= budget else _taken_down(row, budget)
            for row, codes, budget in zip(side, nearest, limits)
        ]
        for side, nearest, limits in zip(sides, rounded, budgets)
    )
    flat = [[p - n for p, n in zip(ps, ns)] for ps, ns in zip(positive, negative)]
    return [
        _build(_shape(row), lambda *index, k=k, row=row: flat[k][_place(_shape(row), index)])
        for k, row in enumerate(weight)
    ]


def _taken_down(row: list[Fraction], budget: int) -> list[int]:
    """Each unit from where (w - v)**2 grows least, among equals from the last.

    Growths differ by less than what one unit adds, so weights take turns: whole rounds are taken at
    once, until a weight reaches 0.
    """
    codes = [math.ceil(v) for v in row]
    while sum(codes) > budget:
        some = [w for w in codes if w > 0]
        rounds = min((sum(codes) - budget) // len(some), min(some))
        codes = [max(w - rounds, 0) for w in codes]
        if rounds:
            continue
        growth = [((w - 1 - v) ** 2 - (w - v) ** 2, -i)
                  for i, (w, v) in enumerate(zip(codes, row)) if w > 0]  # fmt: skip
        codes[-min(growth)[1]] -= 1
    return codes


def _place(shape: Sequence[int], index: Sequence[int]) -> int:
    """Row-major position."""
    place = 0
    for size, i in zip(shape, index):
        place = place * size + i
    return place


# --- nested lists -----------------------------------------------------------------------------


def _lists(x: Any) -> Nested:
    """Arrays as nested lists of Python numbers."""
    return x.tolist() if hasattr(x, "tolist") else x


def _shape(x: Nested) -> tuple[int, ...]:
    return (len(x), *(_shape(x[0]) if x else ())) if isinstance(x, list) else ()


def _is_of(x: Nested, shape: Sequence[int]) -> bool:
    """Are these nested lists of the shape?"""
    if not shape:
        return not isinstance(x, (list, tuple))
    inner = isinstance(x, list) and len(x) == shape[0]
    return inner and all(_is_of(part, shape[1:]) for part in x)


def _build(shape: Sequence[int], value: Callable[..., Any]) -> Nested:
    """Nested lists of a shape, value(*index) at each place, in row-major order."""
    if not shape:
        return value()
    return [_build(shape[1:], lambda *rest, i=i: value(i, *rest)) for i in range(shape[0])]


def _map(
    function: Callable[[Any, tuple[int, ...]], Any], x: Nested, index: tuple[int, ...] = ()
) -> Nested:
    """function(value, index) at every place of x."""
    if not isinstance(x, list):
        return function(x, index)
    return [_map(function, value, (*index, i)) for i, value in enumerate(x)]


def _map_lists(function: Callable[[list[int]], int], x: Nested, depth: int) -> Nested:
    """function(list) for the lists that lie `depth` levels down."""
    return function(x) if depth == 0 else [_map_lists(function, v, depth - 1) for v in x]


def _flat(x: Nested) -> list[int]:
    return [v for part in x for v in _flat(part)] if isinstance(x, list) else [x]


def _at(x: Nested, index: Sequence[int]) -> Any:
    for i in index:
        x = x[i]
    return x


def _at_or(x: Nested, index: Sequence[int], sizes: Sequence[int], outside: int) -> Any:
    inside = all(0 <= i < size for i, size in zip(index, sizes))
    return _at(x, index) if inside else outside
