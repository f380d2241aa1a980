"""The vectors put to other people's code, with their real divergences recorded as findings.

A finding is a test that names the vectors that must fail: when a tool changes, it tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from refqnn.conformance import Report, Unsupported, run
from refqnn.conformance.kernels import KERNELS
from refqnn.conformance.mutants import MUTANTS


def failed_ids(report: Report) -> set[str]:
    return {o.vector.id for o in report.failures if o.vector.error is None}


def differing_arguments(report: Report, *names: str) -> set[tuple[Any, ...]]:
    """What the failed vectors have in these arguments."""
    return {
        tuple(o.vector.arguments[n] for n in names)
        for o in report.failures
        if o.vector.error is None
    }


# --- torch ------------------------------------------------------------------------------------


def torch_functions() -> dict[str, Callable[..., Any]]:
    torch = pytest.importorskip("torch")

    def int64(array: Any) -> Any:
        if array.dtype == object:
            raise Unsupported("beyond int64")
        return torch.from_numpy(np.ascontiguousarray(array))

    def linear(x: Any, weight: Any, bias: Any, x_zero_point: int, weight_zero_point: Any) -> Any:
        centred = int64(weight) - int64(np.asarray(weight_zero_point).reshape(-1, 1))
        try:
            acc = (int64(x) - x_zero_point) @ centred.T
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return (acc if bias is None else acc + int64(bias)).numpy()

    def conv2d(x: Any, weight: Any, bias: Any, padding: Any, pad_code: int, **how: Any) -> Any:
        (top, bottom), (left, right) = padding
        sides = (left, right, top, bottom)
        padded = torch.nn.functional.pad(int64(x), sides, value=pad_code)
        offset = None if bias is None else int64(bias)
        try:
            return torch.nn.functional.conv2d(padded, int64(weight), offset, **how).numpy()
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def max_pool2d(x: Any, kernel: Any, stride: Any, padding: Any) -> Any:
        if any(before != after for before, after in padding):
            raise Unsupported("one padding for both sides")
        values = torch.from_numpy(x.astype(np.float64))
        pads = [before for before, _ in padding]
        if any(2 * p > k for p, k in zip(pads, kernel)):
            raise Unsupported("padding beyond half the window")
        y = torch.nn.functional.max_pool2d(values, kernel, stride, pads)
        return y.numpy().astype(np.int64)

    def concat(operands: Any) -> Any:
        try:
            return torch.cat([int64(v) for v in operands], dim=1).numpy()
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def flatten(x: Any) -> Any:
        return int64(x).flatten(1).numpy()

    return {
        "linear": linear,
        "conv2d": conv2d,
        "max_pool2d": max_pool2d,
        "concat": concat,
        "flatten": flatten,
    }


def test_torch_integers_conform() -> None:
    report = run(torch_functions(), name="torch")
    assert report.conforms, report.summary()
    assert report.counts["passed"] > 20


def test_torch_fake_quantize_multiplies_by_the_reciprocal() -> None:
    """Finding: fake_quantize multiplies by 1 / scale, which is infinite for subnormal scales."""
    torch = pytest.importorskip("torch")

    def quantize(
        x: Any, scale: Any, zero_point: Any, axis: int | None, precision: str, **how: Any
    ) -> Any:
        ends = KERNELS["integer_format"](how["bits"], how["signed"], how["narrow"])
        if precision != "float32" or axis is not None or how["bits"] > 8:
            raise Unsupported("per tensor, float32, at most 8 bits")
        if np.isnan(x).any() or not 0 < float(scale) < np.inf:
            raise ValueError("x or scale")
        if not ends["q_min"] <= int(zero_point) <= ends["q_max"]:
            raise ValueError("zero_point")
        values = torch.from_numpy(x.astype(np.float32))
        faked = torch.fake_quantize_per_tensor_affine(
            values, float(scale), int(zero_point), ends["q_min"], ends["q_max"]
        )
        return np.rint(faked.numpy() / np.float32(scale)).astype(np.int64) + int(zero_point)

    report = run(
        {"quantize": quantize},
        operations=["quantize"],
        profiles=["half_even"],
        name="fake_quantize",
    )
    assert report.counts["passed"] > 5
    assert failed_ids(report) == {"quantize-subnormal"}, report.summary()
    (outcome,) = report.failures
    assert outcome.resembles[0].startswith("quantize/reciprocal")


# --- Brevitas ---------------------------------------------------------------------------------


def test_brevitas_adds_the_zero_point_before_rounding() -> None:
    """Finding: Brevitas conforms with zero_point_first; without it, not at odd zero points."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("brevitas")
    from brevitas.core.bit_width import BitWidthConst
    from brevitas.core.function_wrapper import RoundSte, TensorClamp
    from brevitas.core.quant import IntQuant

    def quantize(
        x: Any,
        scale: Any,
        zero_point: Any,
        bits: int,
        signed: bool,
        narrow: bool,
        precision: str,
        axis: int | None,
        **_: Any,
    ) -> Any:
        if precision != "float32" or axis is not None or bits > 24:
            raise Unsupported("per tensor, float32, at most 24 bits")
        quant = IntQuant(
            narrow_range=narrow,
            signed=signed,
            input_view_impl=torch.nn.Identity(),
            float_to_int_impl=RoundSte(),
            tensor_clamp_impl=TensorClamp(),
        ).eval()
        codes = quant.to_int(
            torch.tensor(float(scale)),
            torch.tensor(float(zero_point)),
            BitWidthConst(bits)(),
            torch.from_numpy(x.astype(np.float32)),
        )
        if torch.isnan(codes).any() or not 0 < float(scale) < np.inf:
            raise ValueError("NaN, or a bad scale")
        return codes.numpy().astype(np.int64)

    function = {"quantize": quantize}
    rules = {"operations": ["quantize"], "name": "brevitas"}
    first = run(function, profiles=["half_even", "zero_point_first"], **rules)  # type: ignore[arg-type]
    failed = [o for o in first.failures if o.vector.error is None]
    assert failed
    assert not any(o.vector.arguments["zero_point_first"] for o in failed), first.summary()
    assert all(int(np.max(o.vector.arguments["zero_point"])) % 2 for o in failed)
    assert "quantize-odd-zero-point" in failed_ids(first)


# --- onnxruntime ------------------------------------------------------------------------------


def onnxruntime_functions() -> dict[str, Callable[..., Any]]:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    def evaluate(op_type: str, inputs: Mapping[str, Any], elem: int, **attributes: Any) -> Any:
        constants = [numpy_helper.from_array(v, n) for n, v in inputs.items()]
        node = helper.make_node(op_type, list(inputs), ["y"], **attributes)
        output = helper.make_tensor_value_info("y", elem, None)
        graph = helper.make_graph([node], "one", [], [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, {})[0]

    def quantize(
        x: Any,
        scale: Any,
        zero_point: Any,
        bits: int,
        signed: bool,
        narrow: bool,
        axis: int | None,
        precision: str,
        **_: Any,
    ) -> Any:
        if bits != 8 or narrow or precision != "float32" or axis is not None:
            raise Unsupported("8 bits, per tensor, float32")
        dtype = np.int8 if signed else np.uint8
        inputs = {
            "x": x.astype(np.float32),
            "s": np.asarray(scale, dtype=np.float32),
            "z": np.asarray(zero_point).astype(dtype),
        }
        elem = TensorProto.INT8 if signed else TensorProto.UINT8
        return evaluate("QuantizeLinear", inputs, elem).astype(np.int64)

    def linear(x: Any, weight: Any, bias: Any, x_zero_point: int, weight_zero_point: Any) -> Any:
        signed = x.min() < 0
        x_type, w_type = (np.int8 if signed else np.uint8), np.int8
        zeros = np.asarray(weight_zero_point)
        for values, dtype in ((x, x_type), (weight, w_type), (zeros, w_type)):
            info = np.iinfo(dtype)
            if values.min() < info.min or values.max() > info.max:
                raise Unsupported("8 bits")
        if x.shape[1] != weight.shape[1]:
            raise ValueError("shape")
        inputs = {
            "a": x.astype(x_type),
            "b": np.ascontiguousarray(weight.T).astype(w_type),
            "za": np.array(x_zero_point, dtype=x_type),
            "zb": zeros.astype(w_type),
        }
        acc = evaluate("MatMulInteger", inputs, onnx.TensorProto.INT32).astype(np.int64)
        return acc if bias is None else acc + bias

    return {"quantize": quantize, "linear": linear}


def test_onnxruntime_conforms_where_the_operation_exists() -> None:
    report = run(
        onnxruntime_functions(),
        operations=["quantize", "linear"],
        profiles=["half_even"],
        name="onnxruntime",
    )
    asked = [o for o in report.outcomes if o.status == "passed" and o.vector.operation == "linear"]
    assert len(asked) >= 2
    assert failed_ids(report) == set(), report.summary()


# --- Concrete ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_concrete_simulation_of_small_networks() -> None:
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe
    from refqnn.conformance.reference import network_of

    def network(codes: Any, network: Any) -> Any:
        program = network_of(network)
        program.check_codes(codes)
        return fhe.compile(program).simulate(codes)

    report = run({"network": network}, operations=["network"], name="concrete simulation")
    assert report.counts["passed"] >= 2, report.summary()
    assert failed_ids(report) == set(), report.summary()


# --- the vectors of the onnx wheel, against the same mutants ----------------------------------


Kernels = Mapping[str, Callable[..., Any]]
OnnxCase = tuple[str, tuple[str, ...], Callable[[Kernels], Any], Any]

_PLAIN = {"x_zero_point": 0, "weight_zero_point": np.array(0), "bias": None}
_WIDTHS = {"INT": True, "UINT": False}


def _quantize_linear(inputs: list[Any], fmt: dict[str, Any]) -> Callable[[Kernels], Any]:
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


def _matmul_integer(inputs: list[Any], _: Any) -> Callable[[Kernels], Any]:
    a, b, za, zb = (v.astype(np.int64) for v in inputs)
    zeros = {"x_zero_point": int(za.item()), "weight_zero_point": np.squeeze(zb)}
    return lambda kernels: kernels["linear"](x=a, weight=b.T, bias=None, **zeros)["acc"]


def _conv_integer(inputs: list[Any], pad: int) -> Callable[[Kernels], Any]:
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


def _qlinear_matmul(inputs: list[Any], fmt: dict[str, Any]) -> Callable[[Kernels], Any]:
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

    def product(kernels: Kernels) -> Any:
        sums = [kernels["linear"](x=x, weight=w.T, bias=None, **zeros)["acc"] for x, w in zip(a, b)]
        return np.stack([kernels["requantize_scale"](acc=acc, **scales)["codes"] for acc in sums])

    return product


def onnx_cases() -> list[OnnxCase]:
    """(name, operations, how kernels answer it, expected) of the integer node vectors."""
    pytest.importorskip("onnx")
    from pathlib import Path

    from onnx import TensorProto, load_tensor, numpy_helper
    from onnx.backend.test import data

    formats = {
        getattr(TensorProto, f"{kind}{bits}"): {"bits": bits, "signed": signed, "narrow": False}
        for kind, signed in _WIDTHS.items()
        for bits in (2, 4, 8, 16)
        if hasattr(TensorProto, f"{kind}{bits}")
    }
    kinds = {
        "test_quantizelinear": (("quantize",), _quantize_linear),
        "test_matmulinteger": (("linear",), _matmul_integer),
        "test_convinteger": (("conv2d",), _conv_integer),
        "test_qlinearmatmul": (("linear", "requantize_scale"), _qlinear_matmul),
    }
    cases: list[OnnxCase] = []
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
        how: Any = formats.get(output.data_type)
        how = int("with_padding" in folder.name) if make is _conv_integer else how
        answer: Callable[[Kernels], Any] = make([numpy_helper.to_array(p) for p in inputs], how)
        expected = numpy_helper.to_array(output).astype(np.int64)
        cases.append((folder.name, operations, answer, expected))
    return cases


def test_the_vectors_of_the_onnx_wheel_kill_fewer_mutants() -> None:
    """Counted, not judged: ours were chosen against these very mutants."""
    cases = onnx_cases()
    if not cases:
        pytest.skip("this onnx wheel has no node vectors")

    def is_right(kernels: Kernels, case: OnnxCase) -> bool:
        _, _, answer, expected = case
        try:
            result = answer(kernels)
        except (ValueError, TypeError, ArithmeticError):
            return False
        return result.size == expected.size and bool((result.ravel() == expected.ravel()).all())

    operations = {operation for _, named, _, _ in cases for operation in named}
    usable = [case for case in cases if is_right(KERNELS, case)]
    assert usable == cases, [case[0] for case in cases if case not in usable]
    wanted = [m for m in MUTANTS if m.operation in operations and not m.equivalent]
    killed = {
        m.id
        for m in wanted
        if any(
            not is_right({**KERNELS, m.operation: m.function}, case)
            for case in usable
            if m.operation in case[1]
        )
    }
    survivors = {m.id for m in wanted} - killed
    assert {"conv2d/acc_int16", "conv2d/kernel_flipped"} <= survivors
    assert {"linear/acc_int32", "quantize/half_even_as_half_away"} <= survivors
    assert len(killed) < 0.8 * len(wanted)
    print(f"onnx wheel: {len(cases)} vectors, {len(killed)} of {len(wanted)}")
