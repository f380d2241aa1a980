from fractions import Fraction
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refqnn import (
    BIPOLAR,
    AffineQuantizer,
    Dequantizer,
    IntFormat,
    PowerOfTwoQuantizer,
    Rounding,
    SymmetricQuantizer,
    ThresholdQuantizer,
    exact,
    testing,
)
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch
from refqnn.quantizers import float_thresholds, power_of_two_exponent

INT8 = IntFormat(8, signed=True)
UINT8 = IntFormat(8, signed=False)


def hard_values(scale, dtype, n, rng):
    """n floats: ties of `scale` and neighbours, denormals, zeros, infinities, extremes, noise."""
    dtype = np.dtype(dtype).type
    info = np.finfo(dtype)
    extremes = [0.0, -0.0, np.inf, -np.inf, info.max, info.min, info.tiny, info.smallest_subnormal]
    special = np.array([*extremes, -info.tiny, -info.smallest_subnormal], dtype=dtype)
    with np.errstate(over="ignore", under="ignore"):
        ties = dtype(scale) * rng.integers(-700, 700, n // 4).astype(dtype) / dtype(2)
        beside = np.nextafter(
            ties, np.where(rng.random(ties.size) < 0.5, np.inf, -np.inf).astype(dtype)
        )
        noise = (rng.normal(size=n // 4) * float(scale) * 100).astype(dtype)
    word = np.uint32 if dtype is np.float32 else np.uint64
    bits = rng.integers(0, np.iinfo(word).max, n - 3 * (n // 4), dtype=word).view(dtype)
    bits = np.where(np.isnan(bits), dtype(1), bits)
    values = np.concatenate([ties, beside, noise, bits]).astype(dtype)
    values[: special.size] = special
    return values


def count_differences(n_each, seed=0):
    """(differences, values) of numpy against exact rational arithmetic, all modes and kinds."""
    rng = np.random.default_rng(seed)
    differences = values = 0
    for mode in Rounding:
        for precision in ("float32", "float64"):
            signed, narrow = bool(rng.integers(2)), bool(rng.integers(2))
            fmt = IntFormat(int(rng.integers(2, 10)), signed, narrow)
            scale = float(np.float32(np.exp(rng.normal() * 5)))
            zero_point = int(rng.integers(fmt.q_min, fmt.q_max + 1))
            for quantizer in (
                SymmetricQuantizer(scale, fmt, mode, precision=precision),
                PowerOfTwoQuantizer(int(rng.integers(-20, 20)), fmt, mode, precision=precision),
                AffineQuantizer(scale, zero_point, fmt, mode, precision=precision),
                AffineQuantizer(scale, zero_point, fmt, mode, None, precision, True),
            ):
                x = hard_values(quantizer.scale, precision, n_each, rng)
                got = quantizer.quantize(x)
                expected = np.array(exact.quantize(quantizer, x))
                differences += int((got != expected).sum())
                values += x.size
    return differences, values


def test_quantize_equals_exact_rational_arithmetic():
    assert count_differences(400) == (0, 72 * 400)


@pytest.mark.slow
def test_quantize_equals_exact_rational_arithmetic_on_a_million_values():
    differences, values = count_differences(16_000, seed=1)
    assert values >= 1_000_000
    assert differences == 0


@given(st.data())
def test_random_quantizers(data):
    quantizer = data.draw(testing.quantizers(channels=3, max_bits=10))
    x = data.draw(testing.reals(quantizer, (2, 3)))
    codes = quantizer.quantize(x)
    assert codes.tolist() == exact.quantize(quantizer, x)
    assert quantizer.format.contains(codes).all()
    assert quantizer.dequantize(codes).tolist() == exact.dequantize(quantizer, codes)


@given(st.data())
def test_random_dequantizers(data):
    door = data.draw(testing.dequantizers(3))
    acc = data.draw(testing.codes(IntFormat(32, True), (2, 3, 2)))
    assert door.dequantize(acc).tolist() == exact.dequantize(door, acc)


@given(
    st.fractions(max_denominator=2**80) | st.floats(allow_nan=False).map(lambda x: x),
    st.sampled_from(["float32", "float64"]),
)
def test_exact_float_rounding_is_that_of_the_machine(x, precision):
    """Python rounds a fraction to float64 correctly; numpy rounds float64 to float32 correctly."""
    with np.errstate(over="ignore"):
        if precision == "float64":
            expected = float(x)
        else:
            x = float(x)
            expected = float(np.float32(x))
    assert exact.to_float(x, precision) == expected


def test_bipolar_codes_are_signs():
    quantizer = SymmetricQuantizer(0.5, BIPOLAR)
    x = np.array([-np.inf, -1e-45, -0.0, 0.0, 1e-45, np.inf], dtype=np.float32)
    # -1e-45 / 0.5 is a denormal, still negative.
    assert quantizer.quantize(x).tolist() == [-1, -1, 1, 1, 1, 1]
    assert exact.quantize(quantizer, x) == [-1, -1, 1, 1, 1, 1]


# --- conventions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (8, True), (4, True), (4, False), (2, True)]
)
@pytest.mark.parametrize("axis", [None, 1])
def test_onnx_quantize_linear(bits, signed, axis):
    """The onnx reference evaluator, within the int32 range that it casts through."""
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    helper, kinds = onnx.helper, onnx.TensorProto
    element = getattr(kinds, ("INT" if signed else "UINT") + str(bits), None)
    if element is None:
        pytest.skip(f"this onnx has no {bits}-bit type")
    rng = np.random.default_rng(bits)
    fmt = IntFormat(bits, signed)
    scale = np.array([0.5, 0.1, 0.25], np.float32) if axis else np.float32(0.25)
    zero_point = rng.integers(fmt.q_min, fmt.q_max + 1, 3 if axis else ())
    x = (rng.integers(-400, 400, (500, 3)) * np.float32(0.125)).astype(np.float32)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=1)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", kinds.FLOAT, x.shape),
            helper.make_tensor_value_info("s", kinds.FLOAT, scale.shape),
        ],
        [helper.make_tensor_value_info("y", element, x.shape)],
        [helper.make_tensor("z", element, zero_point.shape, np.ravel(zero_point).tolist())],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 25 if bits == 2 else 21)]
    )
    try:
        (y,) = reference.ReferenceEvaluator(model).run(None, {"x": x, "s": scale})
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"the reference evaluator does not run it: {error}")
    quantizer = AffineQuantizer(scale, zero_point, fmt, "half_even", axis)
    np.testing.assert_array_equal(quantizer.quantize(x), np.asarray(y).astype(np.int64))


@pytest.mark.parametrize("signed", [False, True])
def test_onnxruntime_quantize_linear(signed):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    element = kinds.INT8 if signed else kinds.UINT8
    fmt = IntFormat(8, signed)
    zero_point = -3 if signed else 131
    rng = np.random.default_rng(1)
    quantizer = AffineQuantizer(0.1, zero_point, fmt)
    x = hard_values(quantizer.scale, np.float32, 20_000, rng)
    x = x[np.abs(x) < 2**31 * quantizer.scale]  # beyond, runtimes cast before they clip
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kinds.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", element, x.shape)],
        [
            helper.make_tensor("s", kinds.FLOAT, (), [0.1]),
            helper.make_tensor("z", element, (), [zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(quantizer.quantize(x), y.astype(np.int64))


BREVITAS_ROUNDING = {
    "ROUND": "half_even",
    "FLOOR": "floor",
    "CEIL": "ceil",
    "ROUND_TO_ZERO": "toward_zero",
}


@pytest.mark.parametrize("mode", BREVITAS_ROUNDING)
@pytest.mark.parametrize("kind", ["signed narrow", "signed", "unsigned", "unsigned narrow"])
def test_brevitas_int_quant(mode, kind):
    """Brevitas' own integer quantizer core, with a zero point added before rounding."""
    torch = pytest.importorskip("torch")
    quant = pytest.importorskip("brevitas.core.quant")
    from brevitas.core.function_wrapper import (
        CeilSte,
        FloorSte,
        RoundSte,
        RoundToZeroSte,
        TensorClamp,
    )

    rounding = {
        "ROUND": RoundSte,
        "FLOOR": FloorSte,
        "CEIL": CeilSte,
        "ROUND_TO_ZERO": RoundToZeroSte,
    }
    signed, narrow = not kind.startswith("unsigned"), kind.endswith("narrow")
    core = quant.IntQuant(
        signed=signed,
        narrow_range=narrow,
        input_view_impl=torch.nn.Identity(),
        float_to_int_impl=rounding[mode](),
        tensor_clamp_impl=TensorClamp(),
    )
    rng = np.random.default_rng(0)
    fmt = IntFormat(4, signed, narrow)
    for scale, zero_point in ((0.1, 0), (0.25, 3), (0.25, 0), (1.7, 1)):
        quantizer = AffineQuantizer(
            scale, zero_point, fmt, BREVITAS_ROUNDING[mode], zero_point_first=True
        )
        x = hard_values(quantizer.scale, np.float32, 4_000, rng)
        x = x[np.isfinite(x)]
        scale_tensor = torch.tensor(quantizer.scale.item())
        theirs = core(
            scale_tensor, torch.tensor(float(zero_point)), torch.tensor(4.0), torch.tensor(x)
        )
        codes = quantizer.quantize(x)
        np.testing.assert_array_equal(quantizer.dequantize(codes), theirs.numpy())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_brevitas_weight_quantizers_from_data(bits, per_channel):
    """from_data against the predefined weight quantizers: scale, codes and dequantized values."""
    torch = pytest.importorskip("torch")
    brevitas_nn = pytest.importorskip("brevitas.nn")
    from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFixedPoint
    from brevitas.quant import Int8WeightPerTensorFloat as PerTensorFloat

    torch.manual_seed(bits)
    floats = Int8WeightPerChannelFloat if per_channel else PerTensorFloat
    axis = 0 if per_channel else None
    cases = [(floats, SymmetricQuantizer, axis)]
    if not per_channel:
        cases.append((Int8WeightPerTensorFixedPoint, PowerOfTwoQuantizer, None))
    for theirs, ours, axis in cases:
        layer = brevitas_nn.QuantLinear(
            9, 5, bias=False, weight_quant=theirs, weight_bit_width=bits
        ).eval()
        weight = layer.weight.detach().numpy()
        quantized = layer.quant_weight()
        quantizer = ours.from_data(weight, bits, narrow=True, axis=axis)
        scale = quantized.scale.detach().numpy().ravel()
        np.testing.assert_array_equal(np.ravel(quantizer.scale), scale)
        np.testing.assert_array_equal(quantizer.quantize(weight), quantized.int().numpy())
        np.testing.assert_array_equal(
            quantizer.dequantize(quantizer.quantize(weight)), quantized.value.detach().numpy()
        )


# --- scales from data -------------------------------------------------------------------------


@given(st.floats(2.0**-140, 2.0**120))
def test_power_of_two_exponent_is_exact(value):
    up = power_of_two_exponent(value, "ceil")
    assert Fraction(2) ** (up - 1) < Fraction(value) <= Fraction(2) ** up
    near = power_of_two_exponent(value, "round")
    assert Fraction(2) ** (2 * near - 1) <= Fraction(value) ** 2 <= Fraction(2) ** (2 * near + 1)


@pytest.mark.parametrize("k", range(-60, 61))
def test_no_power_of_two_goes_wrong(k):
    value = np.float32(2.0) ** k
    assert power_of_two_exponent(float(value), "ceil") == k
    above = float(np.nextafter(value, np.float32(np.inf)))
    assert power_of_two_exponent(above, "ceil") == k + 1
    assert log2(value) == k


def test_scales_from_data():
    x = np.array([[-3.0, 1.0], [2.0, 6.0]])
    assert SymmetricQuantizer.from_data(x, 4, narrow=True).scale == np.float32(6 / 7)
    assert SymmetricQuantizer.from_data(x, 4).scale == np.float32(6 / 8)
    assert SymmetricQuantizer.from_data(x, 4, signed=False).scale == np.float32(6 / 15)
    assert SymmetricQuantizer.from_data(x, 4, signed=False, narrow=True).scale == np.float32(6 / 14)
    per_channel = SymmetricQuantizer.from_data(x, 4, axis=1)
    assert per_channel.scale.tolist() == [3 / 8, 6 / 8]
    assert PowerOfTwoQuantizer.from_data(x, 4).exponent == 3 - 3
    assert PowerOfTwoQuantizer.from_data(x, 4, signed=False).exponent == 3 - 4
    assert PowerOfTwoQuantizer.from_data([5.0], 4, exponent_rounding="round").exponent == 2 - 3
    percentile = SymmetricQuantizer.from_data(
        np.arange(101.0), 8, method="percentile", percentile=90
    )
    assert percentile.scale == np.float32(90 / 128)
    assert SymmetricQuantizer.from_data([0.0], 4).scale == np.float32(1 / 8)


def test_affine_from_data_keeps_zero_exact():
    rng = np.random.default_rng(0)
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-5.0, -1.0), (0.0, 0.0)):
        x = rng.uniform(low, high, 100)
        quantizer = AffineQuantizer.from_data(x, 8)
        assert quantizer.quantize([0.0])[0] == quantizer.zero_point
        assert quantizer.dequantize(quantizer.quantize([0.0])) == 0
        error = np.abs(quantizer.dequantize(quantizer.quantize(x)) - x)
        assert error.max() <= 0.51 * quantizer.scale
    columns = AffineQuantizer.from_data(rng.normal(size=(50, 3)), 4, axis=1, method="percentile")
    assert columns.scale.shape == columns.zero_point.shape == (3,)
    data = np.arange(-100.0, 901.0)
    whole, most = (
        AffineQuantizer.from_data(data, 8, method="percentile", percentile=p) for p in (100, 90)
    )
    largest = AffineQuantizer.from_data(data, 8)
    assert (whole.scale, whole.zero_point) == (largest.scale, largest.zero_point)
    assert most.scale == np.float32(800 / 255)  # of 0 to 800: the zero is a code
    vector = AffineQuantizer.from_data([1.0, 2.0], 4, axis=0)
    assert vector.scale.tolist() == np.float32([1 / 15, 2 / 15]).tolist()


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-60, 1e60, "1", None, [], [[1.0]]])
def test_bad_scales(scale):
    with pytest.raises((InvalidArgument, InvalidType)):
        SymmetricQuantizer(scale, INT8)


def test_bad_parameters():
    with pytest.raises(ShapeMismatch, match="axis"):
        SymmetricQuantizer([1.0, 2.0], INT8)
    with pytest.raises(InvalidArgument, match="rounding"):
        SymmetricQuantizer(1.0, INT8, "up")
    with pytest.raises(InvalidArgument, match="precision"):
        SymmetricQuantizer(1.0, INT8, precision="float16")
    with pytest.raises(InvalidType, match="format"):
        SymmetricQuantizer(1.0, 8)
    with pytest.raises(InvalidType, match="axis"):
        SymmetricQuantizer([1.0], INT8, axis=0.0)
    with pytest.raises(OutOfRange, match="zero_point"):
        AffineQuantizer(1.0, 256, UINT8)
    with pytest.raises(ShapeMismatch, match="zero_point"):
        AffineQuantizer(1.0, [1, 2], UINT8)
    with pytest.raises(InvalidArgument, match="contiguous"):
        AffineQuantizer(1.0, 1, BIPOLAR)
    with pytest.raises(OutOfRange, match="exponent"):
        PowerOfTwoQuantizer(128, INT8)
    with pytest.raises(InvalidType, match="exponent"):
        PowerOfTwoQuantizer(0.5, INT8)
    with pytest.raises(InvalidArgument, match="percentile"):
        SymmetricQuantizer.from_data([1.0], 8, method="percentile", percentile=10)
    with pytest.raises(InvalidArgument, match="method"):
        AffineQuantizer.from_data([1.0], 8, method="mean")
    with pytest.raises(InvalidArgument, match="infinity"):
        SymmetricQuantizer.from_data([np.inf], 8)
    with pytest.raises(InvalidArgument, match="scale"):
        Dequantizer(0.0)
    with pytest.raises(InvalidArgument, match="offset"):
        Dequantizer(1.0, np.inf)


def test_bad_values():
    quantizer = SymmetricQuantizer([1.0, 2.0], INT8, axis=1)
    with pytest.raises(InvalidArgument, match=r"x\[1, 0\]: got NaN"):
        quantizer.quantize([[0.0, 1.0], [np.nan, 1.0]])
    with pytest.raises(InvalidArgument, match=r"x\[0, 1\]: got NaN"):
        quantizer.quantize([[0.0, np.nan], [np.nan, 1.0]])
    for x in (["a"], [None], [True], [1j], [[1.0], [1.0, 2.0]]):
        with pytest.raises(InvalidType, match="x"):
            quantizer.quantize(x)
    for x in (np.ones((2, 3)), np.ones(2)):
        with pytest.raises(ShapeMismatch, match="2 channels along axis 1"):
            quantizer.quantize(x)
    with pytest.raises(InvalidArgument, match="at least one"):
        quantizer.quantize(np.ones((0, 2)))
    with pytest.raises(OutOfRange):
        quantizer.dequantize([[128, 0]])
    with pytest.raises(InvalidType):
        quantizer.dequantize([[1.0, 0.0]])
    with pytest.raises(ShapeMismatch):
        AffineQuantizer([1.0, 2.0], [0, 1], INT8, axis=1).dequantize([1, 2])
    with pytest.raises(OutOfRange, match="64 bits"):
        Dequantizer(1.0).dequantize(np.array([[2**63]], dtype=object))


@settings(max_examples=25)
@given(st.data())
def test_quantize_is_idempotent_on_the_grid(data):
    """Power of two: dequantize then quantize gives the code back."""
    fmt = data.draw(testing.formats(max_bits=12))
    quantizer = PowerOfTwoQuantizer(
        data.draw(st.integers(-20, 20)), fmt, data.draw(testing.roundings())
    )
    codes = data.draw(testing.codes(fmt, (7,)))
    assert quantizer.quantize(quantizer.dequantize(codes)).tolist() == codes.tolist()


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3),
        min_size=2,
        max_size=2,
    ),
    st.lists(st.lists(st.floats(allow_nan=False), min_size=2, max_size=2), min_size=1, max_size=9),
    st.sampled_from([None, 1, -1]),
)
def test_threshold_quantizer_counts_thresholds(thresholds, x, axis):
    rows = np.sort(np.array(thresholds, dtype=np.float32), axis=1)
    quantizer = ThresholdQuantizer(
        rows if axis is not None else rows[:1], IntFormat(2, signed=False), axis
    )
    near = np.array([*x, rows[:, 0], np.nextafter(rows[:, 1], np.float32(np.inf))])
    assert quantizer.quantize(near).tolist() == exact.quantize(quantizer, near)


@pytest.mark.parametrize("axis", [None, 1])
def test_no_zero_point_at_all_is_refused(axis):
    with pytest.raises(ShapeMismatch, match="zero_point"):
        AffineQuantizer(0.5, np.zeros(0, dtype=np.int64), IntFormat(3, signed=True), axis=axis)


GREATEST = np.finfo(np.float32).max
EDGES = [
    *(-np.inf, -GREATEST, np.nextafter(-GREATEST, np.float32(0)), -1.0, -1e-45, 0.0, 1e-45, 0.1),
    *(1.0, np.nextafter(GREATEST, np.float32(0)), GREATEST, np.inf),
]


@pytest.mark.parametrize("edge", np.float32(EDGES), ids=str)
def test_the_least_float_that_reaches_a_code(edge):
    """A step at any float, at the ends of all too; -inf: every finite x is there, inf: none is."""
    asked = []

    def step(x):
        asked.append(x)
        return (x >= edge).astype(np.int64)

    (found,) = float_thresholds(step, np.array([[1]]))[0]
    every = edge <= -GREATEST
    assert found == (-np.inf if every else edge)
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in asked)
    assert float_thresholds(step, np.array([[0, 2]])).tolist() == [[-np.inf, np.inf]]
