"""A question of the suite, and what written ones are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refqnn.conformance.operations import MODES, Array, Values

__all__ = [
    "LATER",
    "USUAL",
    "Case",
    "ask",
    "column",
    "floats",
    "fmt",
    "ints",
    "linear_node",
    "node",
    "single",
    "slug",
]


@dataclass(frozen=True)
class Case:
    """A question.

    Args:
        id: immutable slug.
        operation: what is asked.
        arguments: by name.
        comment: what is special about it.
        error: for data that must be refused: the code.
    """

    id: str
    operation: str
    arguments: Values
    comment: str
    error: str | None = None

    @property
    def file(self) -> str:
        """The vector file: one per operation and important parameter."""
        return f"{self.operation}{self._variant()}.json"

    def _variant(self) -> str:
        a, name = self.arguments, self.operation
        if self.id.startswith(f"{slug(name)}-refuses-"):
            return "_refuses"
        if self.id.endswith("-unread"):
            return "_unread"
        later = f"_{a['rounding']}" if a.get("rounding") in LATER and name != "rescale" else ""
        if self.id[-5] in "srxw" and self.id[-4:].isdigit():
            return "_more"  # chosen against mutants that came later
        if name in ("network", "predict"):
            return f"_{self.id.split('-')[1]}"
        if name == "accumulate":
            return f"_{a['overflow']}"
        if name in ("conv_transpose2d", "gather") and self.id[-4:].isdigit():
            return "_searched"  # came after the files of the written ones were published
        if name == "requantize_multiplier":
            return ("_single" if a["first_rounding"] is None else "_double") + later
        if name == "quantize" and a["zero_point_first"]:
            return "_zero_point_first"
        if name in ("quantize", "requantize_scale", "requantize_shift"):
            return f"_{a['rounding']}"
        return later

    @property
    def profiles(self) -> tuple[str, ...]:
        """Choices where tools legitimately differ."""
        a = self.arguments
        names = [a["rounding"]] if "rounding" in a else []
        if a.get("first_rounding") is not None:
            names += [a["first_rounding"], "double_rounding"]
        if a.get("zero_point_first"):
            names.append("zero_point_first")
        if a.get("precision") == "float64":
            names.append("float64")
        return tuple(dict.fromkeys(names))


LATER = MODES[8:]  # came after the files of the others were published: in files of their own


def ints(*values: Any) -> Array:
    return np.array(values if len(values) != 1 else values[0])


def column(*values: int) -> Array:
    """Accumulators of one channel."""
    return np.array(values)[:, None]


def floats(*values: float | list[float]) -> Array:
    return np.array(values, dtype=np.float32)


def single(value: float) -> Array:
    return np.array(value, dtype=np.float32)


def fmt(bits: int, signed: bool, narrow: bool = False) -> Values:
    return {"bits": bits, "signed": signed, "narrow": narrow}


def slug(text: str) -> str:
    return text.replace("_", "-")


# What a question asks where it does not say otherwise.
_SCALES = {"scale_in": single(0.5), "scale_out": single(1), "bias": single(0)}
_DOOR = {**fmt(4, True), "scale": single(0.5), "zero_point": np.array(0), "axis": None,
         "precision": "float32"}  # fmt: skip
_CONV = {
    "weight": np.arange(1, 13).reshape(2, 1, 2, 3) - 5,
    "bias": ints(10, -10),
    "stride": (1, 2),
    "padding": ((1, 0), (0, 2)),
    "dilation": (1, 1),
    "groups": 1,
    "pad_code": 3,
    "x": np.arange(20).reshape(1, 1, 4, 5) % 7,
}
_POOL: Values = {
    "x": -np.arange(1, 13).reshape(1, 1, 3, 4),
    "kernel": (2, 3),
    "stride": (1, 2),
    "padding": ((1, 0), (0, 1)),
}
_TRANSPOSED = {
    "weight": (np.arange(36) * 5 % 23 - 9).reshape(2, 3, 2, 3),
    "bias": ints(1000, -70, 40000),
    "stride": (2, 3),
    "padding": ((1, 0), (0, 2)),
    "output_padding": (1, 2),
    "dilation": (3, 1),
    "groups": 1,
    "x": (np.arange(48) * 7 % 31 - 12).reshape(2, 2, 3, 4),
}
_GATHER = {
    "index": ints([[5, 0, -1], [3, 11, 3]]),
    "in_shape": (2, 2, 3),
    "fill": -7,
    "x": np.arange(24).reshape(2, 2, 2, 3) * 11 % 29 - 9,
}
_RESCALE: Values = {
    "acc": np.arange(-14, 15)[:, None],
    "multiplier": np.array(3),
    "shift": np.array(3),
    **fmt(16, True),
    "rounding": "half_up",
    "zero_point": np.array(0),
    "offset": np.array(0),
    "clip": None,
    "first_rounding": None,
    "first_shift": np.array(0),
}
_TABLE = {"table": ints([[4, 1, 0, 1, 4], [7, -1, 2, 9, 5]]), "lo": -2}
USUAL: dict[str, Values] = {
    "round_ratio": {"rounding": "half_even"},
    "quantize": {
        **_DOOR,
        "rounding": "half_even",
        "zero_point_first": False,
        "x": floats(-1.25, -0.75, -0.25, 0.25, 0.75, 1.25),
    },
    "dequantize": _DOOR,
    "requantize_thresholds": fmt(2, False),
    "requantize_scale": {**_SCALES, "zero_point": 0, "clip": None, "rounding": "half_even"},
    "requantize_shift": {"offset": np.array(0), "zero_point": 0, "rounding": "half_up"},
    "requantize_multiplier": {
        "zero_point": 0,
        "rounding": "half_up",
        "first_rounding": None,
        "first_shift": 0,
    },
    "rescale": _RESCALE,
    "linear": {"bias": None, "x_zero_point": 0, "weight_zero_point": np.array(0)},
    "accumulate": {
        "weight": ints([[1, 1, -1, -1]]),
        "x": ints([[7, 4, 7, 3]]),
        "accumulator_bits": 4,
        "accumulator_signed": True,
    },
    "accumulate_stages": {
        "weight": ints([[[3, 5, -2], [7, -4, 1]]]),
        "bias": ints([-9]),
        "x": ints([[[4, 6, 5], [7, 7, 3]]]),
        "order": "forward",
        "bias_at": "last",
    },
    "conv2d": _CONV,
    "conv_transpose2d": _TRANSPOSED,
    "gather": _GATHER,
    "max_pool2d": _POOL,
    "sum_pool2d": _POOL,
    "lookup": _TABLE,
    "sign_budgets": {"bias": None},
    "project": {"bias": None},
}


def ask(operation: str, name: str, comment: str, error: str | None = None, **changes: Any) -> Case:
    arguments = {**USUAL.get(operation, {}), **changes}
    return Case(f"{slug(operation)}-{name}", operation, arguments, comment, error)


def node(name: str, operation: str, *inputs: str, **parameters: Any) -> Values:
    return {
        "name": name,
        "operation": operation,
        "inputs": list(inputs),
        "parameters": parameters,
    }


def linear_node(name: str, source: str, weight: Any, bias: Array | None = None) -> Values:
    parameters = {**USUAL["linear"], "weight": np.array(weight), "bias": bias}
    return node(name, "linear", source, **parameters)
