"""Random questions at the ends of what may be asked.

Formats of 1 and of 32 bits, integers near 2^31 and 2^63, registers of 64 bits, axes longer than a
counter of 8 bits: a step that is right in a narrow type shows there alone.  Frozen, as samplers
are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refqnn.conformance.making.samplers import Stream, _ends, sample
from refqnn.conformance.operations import Array, Values
from refqnn.formats import as_integers

__all__ = ["extreme"]

_BITS = (1, 2, 8, 9, 16, 17, 31, 32)
_LISTED_BITS = (1, 1, 2, 3, 8)  # where the thresholds of all codes are listed
_REGISTERS = (1, 2, 8, 31, 32, 33, 63, 64)
_FAR = {  # bits of integers, by argument
    "weight": 63, "bias": 63, "table": 63, "multipliers": 63, "lo": 63,
    "x": 40, "operands": 60, "pad_code": 31, "fill": 31, "acc": 62, "offset": 30,
    "mantissa": 33, "multiplier": 63, "shift": 6, "first_shift": 5,
}  # fmt: skip


def extreme(operation: str, seed: int) -> Values:
    """The question of this operation and seed, with some arguments at their ends."""
    s = Stream(seed, f"extreme {operation}")
    arguments = sample(operation, s.integer(1, 10**6))
    for change in (_format, _registers, _budget, _long, _channels, _far):
        arguments |= change(s, operation, arguments)
    return arguments


def _near(s: Stream, lo: int, hi: int, shape: Sequence[int]) -> Array:
    """Integers at the ends of a range, beside them and between."""
    values = [min(max(s.choice((lo, lo + 1, hi - 1, hi, s.integer(lo, hi))), lo), hi)
              for _ in range(int(np.prod(shape)))]  # fmt: skip
    return np.array(values, dtype=np.int64).reshape(shape)


def _format(s: Stream, operation: str, a: Values) -> Values:
    """Another format, and codes at its ends."""
    if "narrow" not in a:
        return {}
    bits = s.choice(_LISTED_BITS if operation.startswith("requantize") else _BITS)
    fmt = {"bits": bits, "signed": s.chance(50), "narrow": bits > 1 and s.chance(50)}
    lo, hi = _ends(fmt)
    new: Values = {}
    if "codes" in a:
        new["codes"] = _near(s, lo, hi, a["codes"].shape)
        if s.chance(25):
            new["codes"].reshape(-1)[0] = s.choice((lo - 1, hi + 1))
    if "scale" in a:
        new["zero_point"] = _near(s, lo, hi, a["zero_point"].shape)
    if operation == "quantize":
        zero, unit = int(new["zero_point"].reshape(-1)[0]), float(a["scale"].reshape(-1)[0])
        steps = _near(s, lo, hi, a["x"].shape) - zero + s.tensor(a["x"].shape, -9, 9) / 8
        new["x"] = (steps * unit).astype(a["x"].dtype)
    if a.get("clip") is not None:
        ends = _near(s, lo, hi, np.shape(a["clip"]))
        ends = ends if s.chance(15) else np.sort(ends)
        new["clip"] = tuple(ends.tolist()) if isinstance(a["clip"], tuple) else ends
    if "thresholds" in a:
        wide = 62 if bits < 8 else 8
        rows = [sorted(s.edge(wide) for _ in range(hi - lo)) for _ in a["thresholds"]]
        new["thresholds"] = np.array(rows, dtype=np.int64)
        places = s.tensor(a["acc"].shape, 0, new["thresholds"].size - 1)
        new["acc"] = new["thresholds"].reshape(-1)[places] + s.tensor(a["acc"].shape, -1, 1)
    elif "acc" in a:
        turned = np.roll(a["acc"].reshape(-1), 1).reshape(a["acc"].shape)
        new["acc"] = (a["acc"] * s.integer(1, 7) + turned) // 8  # between ties
    return {**fmt, **new}


def _registers(s: Stream, operation: str, a: Values) -> Values:
    if "accumulator_bits" in a:
        return {"accumulator_bits": s.choice(_REGISTERS)}
    return {"widths": tuple(s.choice(_REGISTERS) for _ in a["widths"])} if "widths" in a else {}


def _budget(s: Stream, operation: str, a: Values) -> Values:
    """Sums just beyond what a wide accumulator takes."""
    if "input_range" not in a or operation == "max_fan_in":
        return {}
    bits = s.choice((9, 17, 26, 33, 40, 62) if "P" in a else (9, 17, 26, 33))
    half, input_range = 2 ** (bits - 1), s.choice(((0, 1), (-1, 1), (-2, 0), (-1, 2), (-3, 5)))
    rows = len(a["P"] if "P" in a else a["weight"])
    new: Values = {"bits": bits, "input_range": input_range}
    new["bias"] = s.choice((None, s.tensor((rows,), -9, 9), _near(s, -half, half - 1, (rows,))))
    most = half // max(map(abs, input_range))
    if "P" in a:
        return {**new, **{n: most // s.integer(1, 3) + s.tensor((rows,), -2, 3) for n in "PN"}}
    if new["bias"] is not None:
        new["bias"] = s.tensor((rows,), -9, 9)  # else the second route takes many steps
    shape = a["weight"].shape
    parts = s.choice((1, 2)) * int(np.prod(shape[1:]))
    steps = min(most // parts, 2**31 - 40) + s.tensor(shape, -8, 30) / 4
    return {**new, "weight": steps * (1 - 2 * s.tensor(shape, 0, int(input_range[0] < 0)))}


def _long(s: Stream, operation: str, a: Values) -> Values:
    """One image of one channel, one axis of it longer than 128."""
    if "stride" not in a or s.chance(40):
        return {}
    axes = len(a["stride"])
    along = s.integer(0, axes - 1)
    sizes = [1 + s.integer(0, 1) for _ in range(axes)]
    sizes[along] = s.integer(129, 300)

    def of_axis(long: Sequence[int]) -> tuple[int, ...]:
        return tuple(s.choice(long) if i == along else 1 for i in range(axes))

    kernel = of_axis((1, 2, 3, 129))
    if s.chance(15):
        sizes[along] = kernel[along] - 1 or 1  # one too few for the window
    new: Values = {"x": s.tensor((1, 1, *sizes), -9, 99), "stride": of_axis((1, 2, 64, 128)),
                   "padding": ((0, 0),) * axes}  # fmt: skip
    if "kernel" in a:
        return {**new, "kernel": kernel}
    new |= {"weight": s.tensor((1, 1, *kernel), -9, 9), "bias": None, "groups": 1}
    if "output_padding" in a:
        new["output_padding"] = (0, 0)
    return {**new, "dilation": of_axis((1, 1, 127, 130))}


def _channels(s: Stream, operation: str, a: Values) -> Values:
    """More groups, inputs or outputs than a counter of 8 bits counts, of images of one value."""
    if "groups" not in a or "widths" in a or a["x"].shape[1] == 1 or s.chance(50):
        return {}
    axes, some = len(a["stride"]), s.integer(129, 140)
    ones, apart = (1,) * len(a["stride"]), s.choice((some, 1))
    outs, ins = s.choice(((some, 1), (1, some))) if apart == 1 else (some, 1)
    turned = (ins, outs) if operation == "conv_transpose2d" and apart == 1 else (outs, ins)
    return {
        "x": s.tensor((1, apart * ins, *ones), -9, 9),
        "weight": s.tensor((*turned, *ones), -9, 9), "bias": None, "groups": apart,
        "stride": ones, "dilation": ones, "padding": ((0, 0),) * axes,
        **({"output_padding": (0,) * axes} if "output_padding" in a else {}),
    }  # fmt: skip


def _far(s: Stream, operation: str, a: Values) -> Values:
    """Some integers near powers of two."""
    left_alone = ("fan_in_mask", "project", "lookup", "requantize_thresholds", "quantize")
    if operation in left_alone:
        return {}
    return {n: _edges(s, bits)(a[n]) for n, bits in _FAR.items() if n in a and s.chance(40)}


def _edges(s: Stream, bits: int) -> Callable[[Any], Any]:
    top = 2**bits - 1

    def far(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(far, value))
        if isinstance(value, np.ndarray) and value.dtype.kind != "f":
            cells = [far(int(v)) for v in value.flat]
            return as_integers(np.array(cells, dtype=object).reshape(value.shape), "value")
        if not isinstance(value, int) or s.chance(40):
            return value
        return max(min(s.edge(bits), top), -top)

    return far
