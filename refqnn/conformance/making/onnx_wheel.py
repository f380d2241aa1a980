"""The node vectors of the onnx package, against our mutants: how strong is a suite that was not
chosen against them?

`onnx` carries vectors for QuantizeLinear, MatMulInteger, ConvInteger and QLinearMatMul.  Each is
put to the kernels of this package with one operation replaced by a mutant; a mutant is killed when
a result differs.  Results are compared exactly (onnx itself allows a tolerance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refqnn.conformance.mutants import KERNELS, MUTANTS, Mutant
from refqnn.conformance.operations import Array, Function, Values
from refqnn.errors import CertificateError, MissingExtra

__all__ = ["OnnxVector", "killed_by_onnx", "onnx_vectors"]

Kernels = Mapping[str, Function]
Answer = Callable[[Kernels], Array]


@dataclass(frozen=True)
class OnnxVector:
    """One node vector.

    Attributes:
        name: of its folder in the onnx package.
        operations: of our suite that answer it together.
        answer: kernels -> integers.
        expected: what the file says.
    """

    name: str
    operations: tuple[str, ...]
    answer: Answer
    expected: Array

    def passes(self, kernels: Kernels) -> bool:
        """Do these kernels give what is expected?"""
        try:
            with np.errstate(all="ignore"):
                result = self.answer(kernels)
        except (ValueError, TypeError, ArithmeticError):
            return False
        if result.size != self.expected.size:
            return False
        return bool((result.ravel() == self.expected.ravel()).all())


_WIDTHS = {"INT": True, "UINT": False}


def _quantize_linear(inputs: list[Array], fmt: Values) -> Answer:
    x, scale, zero = inputs
    scale = np.squeeze(scale)
    axis = None if scale.ndim == 0 else 1 if x.shape[1] == scale.size else 0
    arguments = {
        "x": x,
        "scale": scale,
        "zero_point": np.squeeze(zero).astype(np.int64),
        "axis": axis,
        "rounding": "half_even",
        "precision": "float32",
        "zero_point_first": False,
        **fmt,
    }
    return lambda kernels: kernels["quantize"](**arguments)["codes"]


def _matmul_integer(inputs: list[Array], _: object) -> Answer:
    a, b, za, zb = (v.astype(np.int64) for v in inputs)
    zeros = {"x_zero_point": int(za.item()), "weight_zero_point": np.squeeze(zb)}
    return lambda kernels: kernels["linear"](x=a, weight=b.T, bias=None, **zeros)["acc"]


def _conv_integer(inputs: list[Array], pad: int) -> Answer:
    x, w, z, *rest = (v.astype(np.int64) for v in inputs)
    arguments = {
        "x": x - int(z.item()),
        "weight": w - rest[0].reshape(-1, 1, 1, 1) if rest else w,
        "bias": None,
        "stride": (1, 1),
        "padding": ((pad, pad), (pad, pad)),
        "dilation": (1, 1),
        "groups": 1,
        "pad_code": 0,
    }
    return lambda kernels: kernels["conv2d"](**arguments)["acc"]


def _qlinear_matmul(inputs: list[Array], fmt: Values) -> Answer:
    """A product, requantized: two operations, of which a mutant replaces one."""
    a, a_scale, za, b, b_scale, zb, y_scale, zy = inputs
    a, b = (v.astype(np.int64).reshape(-1, *v.shape[-2:]) for v in (a, b))
    zeros = {"x_zero_point": int(za.item()), "weight_zero_point": zb.astype(np.int64).reshape(())}
    gain = np.float64(a_scale.item()) * np.float64(b_scale.item())
    scales = {
        "scale_in": np.array(gain),
        "scale_out": np.array(np.float64(y_scale.item())),
        "bias": np.array(0.0),
        "zero_point": int(zy.item()),
        "clip": None,
        "rounding": "half_even",
        **fmt,
    }

    def product(kernels: Kernels) -> Array:
        sums = [kernels["linear"](x=x, weight=w.T, bias=None, **zeros)["acc"] for x, w in zip(a, b)]
        return np.stack([kernels["requantize_scale"](acc=acc, **scales)["codes"] for acc in sums])

    return product


def onnx_vectors() -> list[OnnxVector]:
    """The integer node vectors of the onnx package, by name; blocked and expanded ones left out.

    Raises: MissingExtra.
    """
    try:
        from onnx import TensorProto, load_tensor, numpy_helper
        from onnx.backend.test import data
    except ImportError:
        raise MissingExtra("onnx", "onnx") from None

    formats = {
        getattr(TensorProto, f"{kind}{bits}"): {"bits": bits, "signed": signed, "narrow": False}
        for kind, signed in _WIDTHS.items()
        for bits in (2, 4, 8, 16)
        if hasattr(TensorProto, f"{kind}{bits}")
    }
    kinds: dict[str, tuple[tuple[str, ...], Callable[..., Answer]]] = {
        "test_quantizelinear": (("quantize",), _quantize_linear),
        "test_matmulinteger": (("linear",), _matmul_integer),
        "test_convinteger": (("conv2d",), _conv_integer),
        "test_qlinearmatmul": (("linear", "requantize_scale"), _qlinear_matmul),
    }
    vectors: list[OnnxVector] = []
    for folder in sorted(Path(next(iter(data.__path__)), "node").glob("test_*")):
        kind = next((k for k in kinds if folder.name.startswith(k)), None)
        if kind is None or "blocked" in folder.name or folder.name.endswith("_expanded"):
            continue
        files = folder / "test_data_set_0"
        inputs = [load_tensor(str(p)) for p in sorted(files.glob("input_*.pb"))]
        output = load_tensor(str(files / "output_0.pb"))
        is_sum = output.data_type == TensorProto.INT32
        if not is_sum and output.data_type not in formats:
            continue  # a float format of 4 or 8 bits
        operations, make = kinds[kind]
        how: object = formats.get(output.data_type)
        how = int("with_padding" in folder.name) if make is _conv_integer else how
        answer: Answer = make([numpy_helper.to_array(p) for p in inputs], how)
        expected = numpy_helper.to_array(output).astype(np.int64)
        vectors.append(OnnxVector(folder.name, operations, answer, expected))
    return vectors


def killed_by_onnx(vectors: list[OnnxVector]) -> tuple[list[Mutant], list[Mutant]]:
    """(killed, asked): our mutants of the operations of these vectors, equivalent ones left out.

    Raises: CertificateError when the right kernels fail one of the vectors.
    """
    if wrong := [v.name for v in vectors if not v.passes(KERNELS)]:
        raise CertificateError(f"the kernels fail vectors of the onnx package: {wrong}")
    operations = {operation for v in vectors for operation in v.operations}
    asked = [m for m in MUTANTS if m.operation in operations and not m.equivalent]
    killed = [
        m
        for m in asked
        if not all(
            v.passes({**KERNELS, m.operation: m.function})
            for v in vectors
            if m.operation in v.operations
        )
    ]
    return killed, asked
