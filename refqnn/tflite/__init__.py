"""TFLite models: which integers must each runtime give?

Only the `tflite` and `flatbuffers` packages are needed; nothing here runs a model.

**Four runtimes.**  One file has several answers, because kernels of one project round differently.

    tflite_ref         the reference kernels (LiteRT's BUILTIN_REF)
    tflite_optimized   the optimized kernels of x86 (BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    xnnpack            XNNPACK for the operators that it takes, the optimized kernels for the others
                       (BUILTIN, LiteRT's default)
    cmsis_nn           CMSIS-NN and the portable kernels of TFLite Micro, double rounding

The first three were held against LiteRT 2.3.0 on x86-64 with AVX-512; what else was compared and
what was not is said below.  File names are those of tensorflow/lite/kernels unless another project
is named.

**Common to all.**  A tensor of codes q with scale s (float32) and zero point z stands for
s * (q - z).  A sum is exact: acc = bias + sum of (w - z_w) (x - z_x), with x = z_x in the padding;
padding "SAME" lets ceil(size / stride) windows begin and puts the odd row or column behind
(padding.h).  The bias is in units of acc.  Kernels hold acc in 32 bits; `refqnn.certify` says
whether that is enough.  Then: rescale, round, add z_y, clamp.  The clamp of a fused activation
[a, b] is z_y + a / s_y and z_y + b / s_y, divided in float32 and rounded half away, inside the ends
of the type (kernel_util.cc, CalculateActivationRangeQuantized).

**Rescaling**, g = s_x * s_w / s_y; `refqnn.tflite.rescaling` defines the ways.

    CONV_2D, TRANSPOSE_CONV  reference: double, one m for each channel, g in float64
                      (internal/reference/integer_ops/conv.h, internal/common.cc).
    CONV_2D           optimized: double_up (ruy/apply_multiplier.cc).
    DEPTHWISE_CONV_2D reference: double.  Optimized, and TRANSPOSE_CONV optimized: mixed; the
                      vectors of 8 channels round half up at the end, what is left over half away
                      (internal/optimized/integer_ops/depthwise_conv.h, transpose_conv.h).
    FULLY_CONNECTED   reference: float64 (internal/reference/integer_ops/fully_connected.h).
                      Optimized: double_up; with one scale for all channels s_x * s_w is rounded to
                      float32 first (kernel_util.cc, GetQuantizedConvolutionMultipler).
    all four          XNNPACK: float32, half even (google/XNNPACK: src/operators,
                      src/qs8-qc8w-gemm).  It leaves a TRANSPOSE_CONV of "SAME" padding whose kernel
                      is smaller than its stride to the optimized kernels.
    all four          cmsis_nn: double (ARM-software/CMSIS-NN: Include/arm_nnsupportfunctions.h).

**Two operands.**  ADD and SUB (add.cc, internal/reference/add.h): with t = 2 max(s_a, s_b), each
(q - z) * 2**20 is rescaled by s / t, and the sum or difference by t / (2**20 s_y); three times
"double", in 16 bits with 2**15.  Where one operand of ADD is a single value, the optimized vectors
of 8 values take the other by "double_down" (internal/optimized/integer_ops/add.h).  XNNPACK
(src/microparams-init.c, src/qs8-vadd): k = 20 - floor(log2(max(s_a, s_b) / s_y)), multipliers
s_a / s_y * 2**k and s_b / s_y * 2**k rounded half even, one sum, / 2**k rounded half up; ratios
outside [2**-10, 2**8) go to the optimized kernels.  In 16 bits, where all scales are powers of two
(within 1/1000 of the logarithm) and the options do not deny it (pot_scale_int16): an operand is
divided by s_y / s, rounded half away, and added; not in cmsis_nn.
MUL: (a - z_a)(b - z_b) rescaled by s_a * s_b / s_y, that product and quotient in float32, but in
float64 in cmsis_nn (tensorflow/tflite-micro: micro/kernels/mul_common.cc); "double", or float32
under XNNPACK, which takes x * x as a function of one code: v = s_x * (x - z_x), then
v * v * (1 / s_y) + z_y, each step in float32, rounded half even.
The optimized vectors hold a rescaled product of MUL in 16 bits and let z_y wrap it: a model whose
codes reach so far is refused.

**Means.**  AVERAGE_POOL_2D divides the sum of the codes by how many of them lie inside, rounded
half away (internal/reference/integer_ops/pooling.h); the same everywhere.  MEAN over all axes
between batch and channels, n values (reduce.cc): the sum of q - z_x is rescaled, "double", by a
multiplier of s_x / s_y that was shifted left by floor(log2 n) bits (32 at most, 31 + e at most),
divided by n and floored.  Optimized, over two axes that are kept (internal/optimized/reduce.h): the
sum of q is rescaled by s_x / (n s_y), in float32, "mixed" by vectors of 16 channels, and
z_y - z_x s_x / s_y is added, rounded half away.  XNNPACK: S * s + (z_y - n z_x s), the sum S of q
and every step in float32, rounded half even, s = s_x / s_y / n (src/reduce-microkernels,
src/microparams-init.c).

**Functions of one code** are tables.  RELU, RELU6, RELU_N1_TO_1: rescaled, "double", and clamped.
LEAKY_RELU: by s_x / s_y from 0 on, by |alpha| * s_x / s_y below, "double", with the sign of alpha
(internal/reference/leaky_relu.h); XNNPACK: by multipliers of 8 bits behind the point, rounded half
up (src/qs8-vlrelu), where both lie in [2**-8, 2**7].  LOGISTIC, TANH: float32 of s_x * (q - z_x),
the function, times 1 / s_y, rounded half away (activations.cc, PopulateLookupTable); LOGISTIC is
1 / (1 + exp), each step in float32.  exp and tanh are taken in float64 and rounded once, as a good
C library has them; one whose tanhf is an ulp off may give another code beside a tie.  XNNPACK:
1 / (1 + exp) in float64, rounded once; z_y is added before the rounding, half even, in float32
(src/reference/unary-elementwise.cc).  In 16 bits both are lines between 256 sigmoids of i / 24 in
units of 2**-16, each raised by half of what the line to the next lacks at its middle and rounded,
the last 2**16 - 1 (internal/common.h; measured); the optimized kernels, which take inputs of scale
2**-12, and of TANH 2**-11, otherwise, are not told.
HARD_SWISH: 16-bit fixed point (internal/reference/hard_swish.h).  QUANTIZE from codes to codes:
"double" (internal/reference/requantize.h); optimized, from 8 bits to 8 bits: vectors of 16 values
round half up at the end, the last n modulo 16 of a tensor half away; XNNPACK, where the type stays
the same: 8 bits behind the point, as above (src/qs8-vcvt).

**Floats to codes**, where the file begins with a QUANTIZE: x / s in float32, rounded half away
(internal/reference/quantize.h).  XNNPACK, and the optimized kernels in vectors of 8 values: x times
1 / s, inverse and product in float32, rounded half even; the optimized kernels take the last n
modulo 8 of a tensor as x / s in float64, rounded half away.  XNNPACK leaves int16 to them.  Then
z is added and the code saturated; kernels let quotients beyond 32 bits wrap.  A file that begins
with codes says nothing of floats: its door is the reference's.  A DEQUANTIZE at the end gives
s * (q - z) in float64, which the kernels round to float32, the optimized ones at each step.

**SOFTMAX** (internal/reference/softmax.h): d = x - max; x with d below a radius become the lowest
code; exp(d * beta * s) in fixed point with 5 integer bits, as `refqnn.ops.softmax` tells it.  A sum
of exponentials of 512 or more stops the reference's process; here it is computed.  Optimized and
XNNPACK: a table of float32 exponentials (internal/optimized/optimized_ops.h).  From 16 bits to 16,
one arithmetic for all: d * beta * s in units of 10 / 65535, "double", beta * s in float32
(cmsis_nn: in float64), -65535 at least; the exponential and 1 / S on lines between 513 values each,
as `refqnn.ops.softmax` tells it.  CMSIS-NN wraps a sum that rounds up to the next power of two;
here it is not wrapped.

**Movement** (RESHAPE, TRANSPOSE, PAD, STRIDED_SLICE, SPLIT, CONCATENATION, RESIZE_NEAREST_NEIGHBOR,
SQUEEZE, EXPAND_DIMS) keeps codes; operands of other scales than the output's are refused.

**Types.**  int8 is meant above; uint8 is the same, but for DEPTHWISE_CONV_2D, "double" everywhere.
In int16 (with int8 weights) XNNPACK takes nothing, and of the optimized kernels few differ.  Sums
without a bias or with one of 64 bits are rescaled in the way "reduced" (internal/common.cc), those
with a bias of 32 bits "double", CONV_2D in the optimized kernels double_up; LiteRT reads 32 bits
where the options declare them (quantized_bias_type), and 64 elsewhere.  FULLY_CONNECTED: float64,
but in the optimized kernels double_up with no bias or one of 32 bits, and in cmsis_nn "reduced".
Refused:

    INT16  CONV_2D          with a bias of INT32 that is not declared, which LiteRT reads as 64 bits
    INT16  DEPTHWISE_CONV_2D  with a bias of INT32, which no kernel takes
    INT16  FULLY_CONNECTED  with a bias of INT32, in cmsis_nn; one not declared, in tflite_ref
    INT16  TRANSPOSE_CONV   with a bias of INT32 that is not declared; any but in tflite_ref
    INT16  HARD_SWISH       no kernel computes it
    INT16  RELU_N1_TO_1     no kernel computes it
    UINT8  TRANSPOSE_CONV   in the optimized kernel, which is not told here

**Beyond fixed point**, where kernels wrap, end their process or refuse a file, it is refused:
codes or sums that a gain above 1 takes beyond 32 bits, a last multiplier of ADD of 1 or more, an
end of an activation beyond 32 bits, HARD_SWISH with a multiplier below 2**-16, SOFTMAX of
tflite_ref with beta * s below 2**-26, int8 weights with zero points (but for FULLY_CONNECTED of one
scale), an activation fused to CONCATENATION.

**Measured** with LiteRT, every tensor, 0 differences in each of the first three profiles: 1,000
inputs (random, extremes, a narrow range, walks) of hello_world, micro_speech, keyword spotting,
anomaly detection, ResNet and visual wake words, 460,540,000 values a profile; 49,100 generated
models of all operators in int8, 280,090,285 values over the three, four of which told two roundings
that stand above now.  The slow tests go on from there.

**cmsis_nn was compared with no processor**, but with its published loops, told a second time in
Python integers by the tests: CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, ADD, SUB, MUL, both pools
and QUANTIZE in int8 and int16, over random models of one operator; its
requantization in all three forms, with shifts to both sides; and its published golden data for
convolutions.  The other operators of that profile are the reference kernels', as TFLite Micro has
them.

**Not compared with a runtime** otherwise: computed operands of ADD, SUB and MUL that are broadcast,
and processors other than the one above: kernels for ARM round elsewhere in their vectors.
"""

from __future__ import annotations

import os

from refqnn.errors import InvalidArgument, mismatch
from refqnn.foreign import is_tflite
from refqnn.network import Network
from refqnn.tflite.comparison import Parting, compare_runtimes
from refqnn.tflite.dumps import diagnose_dump
from refqnn.tflite.files import open_model
from refqnn.tflite.operators import read_model
from refqnn.tflite.profiles import RUNTIMES, Runtime
from refqnn.tflite.reader import Imported, file_order

__all__ = [
    "RUNTIMES",
    "Imported",
    "Parting",
    "Runtime",
    "compare_runtimes",
    "diagnose_dump",
    "file_order",
    "from_tflite",
    "is_tflite",
    "read_tflite",
]


def from_tflite(
    model: str | os.PathLike[str] | bytes,
    runtime: Runtime = "tflite_ref",
    *,
    input: str | None = None,
    output: str | None = None,
) -> Network:
    """The integer program of a quantized TFLite model, as one runtime computes it.

    Args:
        model: a path, or the bytes of a file.
        runtime: one of `refqnn.tflite.RUNTIMES`.
        input, output: tensors of the file to begin and to stop at, by name or number; operators
            outside are left out, such as a SOFTMAX at the end.

    Returns: a Network.  Samples and outputs have the order of the file without its batch
        [height, width, channels]; values in between have the channels first, under the names of
        their tensors.  The input quantizer and the output dequantizer hold the file's scales and
        zero points.

    Raises: NotCovered naming the operator and the reason, FileFormatError for a malformed file,
        InvalidArgument for an unknown runtime and for ends that the file lacks, MissingExtra;
        OSError as open does.

    >>> from refqnn.tflite import from_tflite
    >>> from_tflite(b"not a model")
    Traceback (most recent call last):
    refqnn.errors.FileFormatError: model: not a TFLite file (no TFL3 at its start)
    """
    return read_tflite(model, runtime, input=input, output=output).network


def read_tflite(
    model: str | os.PathLike[str] | bytes,
    runtime: Runtime = "tflite_ref",
    *,
    input: str | None = None,
    output: str | None = None,
) -> Imported:
    """As `from_tflite`, with the names of the values that hold the tensors of the file."""
    if runtime not in RUNTIMES:
        expected = f"one of {', '.join(RUNTIMES)}"
        raise InvalidArgument(mismatch("runtime", repr(runtime), expected))
    return read_model(open_model(model).between(input, output), runtime)
