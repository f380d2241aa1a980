"""Brevitas quantizers whose function an encrypted circuit can follow exactly.

Two properties make the difference, and the predefined Brevitas quantizers have at most one of them.

*Power-of-two scales*, exactly.  A scale is ``2**e`` with an integer ``e`` taken from the data by
`power_of_two_exponent` (comparisons, never a float logarithm) or built from its bit pattern
(`power_of_two`).  An accumulator of power-of-two operands is an integer times ``2**e``: float32
holds it exactly below 2**24, so training and integers agree by construction.

*Half-up rounding*.  A circuit requantizes by adding half a unit and dropping low bits,

    code = (acc + 2**(r-1)) >> r = floor(acc / 2**r + 1/2),

which sends every tie toward +infinity.  Brevitas' ``ROUND`` sends ties to even, so a network
trained with it is not the network that runs.  `HalfUpRoundSte` trains what runs.

The injectors of this module go wherever Brevitas takes ``weight_quant`` or ``act_quant``; options
are overridden the Brevitas way (``weight_bit_width=4``, ``bit_width=2``, ``exponent=-1``, or
``Injector.let(...)``):

>>> import torch
>>> from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
>>> from refqnn.training.quantizers import calibrate, SignedInput, PowerOfTwoWeight, UnsignedAct
>>> net = torch.nn.Sequential(
...     QuantIdentity(act_quant=SignedInput, bit_width=3, return_quant_tensor=True),
...     QuantLinear(4, 8, bias=False, weight_quant=PowerOfTwoWeight, weight_bit_width=3),
...     QuantReLU(act_quant=UnsignedAct, bit_width=3, return_quant_tensor=True),
...     QuantLinear(8, 3, bias=False, weight_quant=PowerOfTwoWeight, weight_bit_width=3),
... )
>>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
>>> calibrate(net, x)                      # input and activation scales, from data, then constant
>>> float(net[0](x).scale)                 # clips at -2 and 1.5: the least squared error
0.5
>>> sorted(set(net[0](x).int().flatten().tolist()))
[-4, -3, -2, -1, 0, 1, 2, 3]

Weights
    `PowerOfTwoWeight` (exponent up), `PowerOfTwoWeightRound` (exponent to nearest),
    `PowerOfTwoWeightPerChannel`, `PowerOfTwoWeightPerChannelRound`: scale from the largest
    magnitude, at every step.  `ConstPowerOfTwoWeight`: a fixed box.  `TernaryWeight`: codes
    -1, 0, +1.  All are signed and narrow; ``narrow_range=False`` gives the full range.
Activations
    `UnsignedAct`, `SignedAct`: constant power-of-two scale, set by `calibrate`.
    `LearnedUnsignedAct`, `LearnedSignedAct`: learned exponent.
    `FloatUnsignedAct`, `FloatSignedAct`: constant scale without the power-of-two restriction.
Inputs
    `SignedInput`, `UnsignedInput` and their ``Float`` forms: the same quantizers under the name of
    their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import TensorClamp, TensorClampSte
from brevitas.core.function_wrapper.ops_ste import RoundSte
from brevitas.core.scaling import SCALAR_SHAPE
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.inject import ExtendedInjector, value
from brevitas.inject.enum import (
    BitWidthImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
)
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver
from torch import Tensor, nn
from torch.nn.utils import parametrize

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, is_integer

__all__ = [
    "ConstPowerOfTwoWeight",
    "FixedScaling",
    "FloatSignedAct",
    "FloatSignedInput",
    "FloatUnsignedAct",
    "FloatUnsignedInput",
    "HalfUpRoundSte",
    "LearnedPowerOfTwoScaling",
    "LearnedSignedAct",
    "LearnedUnsignedAct",
    "Mask",
    "MaxAbsPowerOfTwoScaling",
    "PowerOfTwoWeight",
    "PowerOfTwoWeightPerChannel",
    "PowerOfTwoWeightPerChannelRound",
    "PowerOfTwoWeightRound",
    "RowSparsity",
    "SignedAct",
    "SignedInput",
    "TernaryWeight",
    "UnsignedAct",
    "UnsignedInput",
    "add_weight_transform",
    "calibrate",
    "fix_weight_transforms",
    "half_up",
    "half_up_ste",
    "power_of_two",
    "power_of_two_exponent",
    "scale_from_data",
    "weight_transforms",
]

ExponentRounding = Literal["ceil", "round"]
ScaleMethod = Literal["mse", "percentile", "max"]

MIN_EXPONENT = -126  # the smallest normal float32 is 2**-126
MAX_EXPONENT = 127


# --- rounding -----------------------------------------------------------------------------------


def half_up(x: Tensor) -> Tensor:
    """floor(x + 1/2), evaluated exactly: nearest integer, ties toward +infinity.

    ``x + 0.5`` may round: the float32 just below 0.5 plus 0.5 is 1.0.  The fraction, x less its
    floor, does not: it is exact by Sterbenz's lemma outside (-1/2, 0), and inside that interval the
    true fraction exceeds 1/2, which is itself a float, so the rounded one is not below 1/2.

    Args:
        x: float tensor of any shape.  Infinities and NaN are returned as they are.

    Returns:
        Tensor of the shape and dtype of ``x`` with integer values.

    >>> half_up(torch.tensor([0.49999997, 0.5, 1.5, -0.5, -1.5, -1.5000001]))
    tensor([ 0.,  1.,  2.,  0., -1., -2.])
    """
    below = torch.floor(x)
    fraction = x - below
    return below + (fraction >= 0.5).to(x.dtype)


class _HalfUpSte(torch.autograd.Function):
    """`half_up` forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return half_up(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def half_up_ste(x: Tensor) -> Tensor:
    """`half_up` with a straight-through gradient.

    >>> x = torch.tensor([0.5, 1.2], requires_grad=True)
    >>> half_up_ste(x).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    rounded: Tensor = _HalfUpSte.apply(x)
    return rounded


class HalfUpRoundSte(nn.Module):
    """Float-to-int module for Brevitas (``float_to_int_impl``): `half_up`, straight-through.

    >>> HalfUpRoundSte()(torch.tensor([-2.5, 2.5]))
    tensor([-2.,  3.])
    """

    def __init__(self) -> None:  # written out: the injector reads this signature
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return half_up_ste(x)


# --- powers of two ------------------------------------------------------------------------------


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent in float32, exactly, from the bit pattern.

    Args:
        exponent: tensor of integers in [-126, 127] (any dtype that holds them).

    >>> power_of_two(torch.tensor([-3, 0, 4]))
    tensor([ 0.1250,  1.0000, 16.0000])
    """
    biased = exponent.to(torch.int32) + 127
    return (biased << 23).view(torch.float32)


def power_of_two_exponent(
    magnitude: Tensor, max_code: int, rounding: ExponentRounding = "ceil"
) -> Tensor:
    """Exponent of the power-of-two scale that maps ``magnitude`` to about ``max_code``.

    ``ceil``: the smallest e with ``magnitude <= max_code * 2**e`` (nothing saturates).
    ``round``: the integer nearest to ``log2(magnitude / max_code)``.

    Decided by comparing dyadic numbers, so exact powers of two never fall on the wrong side.

    Args:
        magnitude: float32 tensor, >= 0.
        max_code: the largest code, >= 1.
        rounding: ``"ceil"`` or ``"round"``.

    Returns:
        int32 tensor of the shape of ``magnitude``, clamped to the normal float32 exponents.

    >>> m = torch.tensor([3.0, 3.0001, 6.0, 0.7])
    >>> power_of_two_exponent(m, 3).tolist(), power_of_two_exponent(m, 3, "round").tolist()
    ([0, 1, 1, -2], [0, 0, 1, -2])
    """
    if rounding not in ("ceil", "round"):
        raise InvalidArgument(mismatch("rounding", repr(rounding), "'ceil' or 'round'"))
    wide = magnitude.detach().to(torch.float64)
    _, above = torch.frexp(wide / max_code)  # 2**(above-1) <= magnitude / max_code < 2**above
    lower = above - 1
    boundary = torch.ldexp(torch.ones_like(wide), lower)
    if rounding == "ceil":
        fits = wide <= max_code * boundary
    else:
        fits = wide < max_code * boundary * math.sqrt(2.0)  # sqrt(2) is irrational: no ties
    exponent = torch.where(fits, lower, above)
    return exponent.clamp(MIN_EXPONENT, MAX_EXPONENT).to(torch.int32)


def scale_from_data(
    x: Tensor,
    min_code: int,
    max_code: int,
    *,
    method: ScaleMethod = "mse",
    percentile: float = 99.9,
    rounding: ExponentRounding = "ceil",
    power_of_two_scale: bool = True,
) -> float:
    """Choose a scale for codes ``min_code .. max_code`` from a sample.

    ``max``: the largest magnitude is representable (``ceil``) or nearly so (``round``).
    ``percentile``: the same for the given percentile of the magnitudes.
    ``mse``: magnitudes beyond the percentile count as the percentile; then, among the scales from
    there downward, the one of least mean squared error.  It clips what is worth clipping
    (standardised inputs at 3 bits: at -2 and 1.5), where a few far values would otherwise push most
    codes to zero.

    Args:
        x: float tensor, not empty, finite.
        min_code, max_code: the code range; negative values count only if ``min_code < 0``.
        method, percentile, rounding: see above.
        power_of_two_scale: restrict the scale to 2**e.

    Returns:
        The scale; 1.0 if every value is zero.

    Raises:
        InvalidArgument: empty or non-finite data, unknown method, percentile outside (0, 100].

    >>> scale_from_data(torch.tensor([0.0, 0.3, 0.9]), 0, 7)
    0.125
    """
    if x.numel() == 0:
        raise InvalidArgument(mismatch("x", "an empty tensor", "at least one value"))
    if not bool(torch.isfinite(x).all()):
        raise InvalidArgument(mismatch("x", "NaN or infinity", "finite values"))
    if method not in ("mse", "percentile", "max"):
        raise InvalidArgument(mismatch("method", repr(method), "'mse', 'percentile' or 'max'"))
    if not 0.0 < percentile <= 100.0:
        raise InvalidArgument(mismatch("percentile", percentile, "a number in (0, 100]"))
    values = x.detach().to(torch.float32).flatten()
    if min_code == 0:
        values = values.clamp(min=0.0)
    magnitude = values.abs().sort().values
    rank = len(magnitude) - 1
    if method != "max":
        rank = min(rank, math.ceil(percentile / 100.0 * len(magnitude)) - 1)
    largest = magnitude[rank]
    if float(largest) == 0.0:
        return 1.0
    values = values.clamp(-largest, largest)

    if power_of_two_scale:
        exponent = int(power_of_two_exponent(largest, max_code, rounding))
        if method != "mse":
            return math.ldexp(1.0, exponent)
        top = max(exponent, int(power_of_two_exponent(largest, max_code, "ceil")))
        candidates = [math.ldexp(1.0, top - drop) for drop in range(8)]
    else:
        if method != "mse":
            return float(largest) / max_code
        candidates = [float(largest) / max_code * (1.0 - step / 40.0) for step in range(36)]

    def squared_error(scale: float) -> float:
        codes = half_up(values / scale).clamp(min_code, max_code)
        return float(((codes * scale - values) ** 2).mean())

    return min(candidates, key=squared_error)


# --- scaling modules ----------------------------------------------------------------------------


class _Calibrated(nn.Module):
    """A scale that `calibrate` may set from data.

    Args:
        exponent: initial log2 of the scale.
        bit_width, signed, narrow_range: the code format (given by the injector).
        scale_method, scale_percentile, exponent_rounding: how `calibrate` chooses the scale.
        power_of_two_scale: whether calibration keeps to powers of two.
    """

    def __init__(
        self,
        exponent: int = 0,
        bit_width: int = 8,
        signed: bool = True,
        narrow_range: bool = False,
        scale_method: ScaleMethod = "mse",
        scale_percentile: float = 99.9,
        exponent_rounding: ExponentRounding = "ceil",
        power_of_two_scale: bool = True,
    ) -> None:
        super().__init__()
        if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
            raise InvalidArgument(mismatch("exponent", exponent, "an integer from -126 to 127"))
        self.min_code, self.max_code = _code_range(bit_width, signed, narrow_range)
        self.scale_method: ScaleMethod = scale_method
        self.scale_percentile = scale_percentile
        self.exponent_rounding: ExponentRounding = exponent_rounding
        self.power_of_two_scale = power_of_two_scale
        self.observing = False
        self._keep(exponent)

    def _keep(self, exponent: int) -> None:
        """Make what holds the scale."""
        raise NotImplementedError

    def set_scale(self, scale: float) -> None:
        """Set the scale (> 0, finite; a power of two unless ``power_of_two_scale`` is False)."""
        raise NotImplementedError

    def observe(self, x: Tensor) -> None:
        """Set the scale from the values ``x``."""
        self.set_scale(
            scale_from_data(
                x,
                self.min_code,
                self.max_code,
                method=self.scale_method,
                percentile=self.scale_percentile,
                rounding=self.exponent_rounding,
                power_of_two_scale=self.power_of_two_scale,
            )
        )


class FixedScaling(_Calibrated):
    """A constant scale, kept in the state dict, that `calibrate` may set from data.

    Brevitas' own constant scale is not part of the state dict, and its learned one, restricted to
    powers of two and started on one, doubles after the first small step.
    """

    scale: Tensor

    def _keep(self, exponent: int) -> None:
        self.register_buffer("scale", torch.tensor(math.ldexp(1.0, exponent)))

    def set_scale(self, scale: float) -> None:
        if not (scale > 0.0 and math.isfinite(scale)):
            raise InvalidArgument(mismatch("scale", scale, "a finite number > 0"))
        if self.power_of_two_scale and math.frexp(scale)[0] != 0.5:
            raise InvalidArgument(mismatch("scale", scale, "a power of two"))
        self.scale.fill_(scale)

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        if self.observing:
            self.observe(x)
        return self.scale


class _PowerOfTwoSte(torch.autograd.Function):
    """2**round(v), with the gradient of 2**v at the rounded point times a constant."""

    @staticmethod
    def forward(ctx: Any, log2_scale: Tensor, factor: float) -> Tensor:
        exponent = half_up(log2_scale).clamp(MIN_EXPONENT, MAX_EXPONENT)
        scale = power_of_two(exponent)
        ctx.save_for_backward(scale)
        ctx.factor = factor
        return scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad_outputs[0] * scale * math.log(2.0) * ctx.factor, None


class LearnedPowerOfTwoScaling(_Calibrated):
    """A learned scale 2**round(v).

    ``v`` starts on an integer, which is the centre of its rounding cell: the scale changes only
    after ``v`` has moved by half a unit, not after the first step.  The gradient is divided by
    sqrt(number of values x largest code), as in learned step size quantization (Esser et al. 2020,
    section 2.2), so that ``v`` moves at the pace of the weights.
    """

    def _keep(self, exponent: int) -> None:
        self.log2_scale = nn.Parameter(torch.tensor(float(exponent)))

    def set_scale(self, scale: float) -> None:
        with torch.no_grad():
            self.log2_scale.fill_(float(math.frexp(scale)[1] - 1))

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        if self.observing:
            self.observe(x)
        factor = 1.0 / math.sqrt(x.numel() * self.max_code) if x.numel() else 1.0
        scale: Tensor = _PowerOfTwoSte.apply(self.log2_scale, factor)
        return scale


class MaxAbsPowerOfTwoScaling(nn.Module):
    """Power-of-two scale from the largest magnitude of the values being quantized.

    The scale is a piecewise constant function of the weights and carries no gradient.

    Args:
        bit_width, signed, narrow_range: the code format (given by the injector).
        exponent_rounding: ``"ceil"`` or ``"round"``, see `power_of_two_exponent`.
        scaling_shape: shape of the scale; ``()`` per tensor, ``(channels, 1, ...)`` per channel.
    """

    def __init__(
        self,
        bit_width: int = 8,
        signed: bool = True,
        narrow_range: bool = True,
        exponent_rounding: ExponentRounding = "ceil",
        scaling_shape: tuple[int, ...] = SCALAR_SHAPE,
    ) -> None:
        super().__init__()
        _, self.max_code = _code_range(bit_width, signed, narrow_range)
        self.exponent_rounding: ExponentRounding = exponent_rounding
        self.scaling_shape = tuple(scaling_shape)

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        if self.scaling_shape == ():
            magnitude = x.detach().abs().max()
        else:
            dims = [axis for axis, size in enumerate(self.scaling_shape) if size == 1]
            magnitude = x.detach().abs().amax(dim=dims, keepdim=True)
        exponent = power_of_two_exponent(magnitude, self.max_code, self.exponent_rounding)
        return power_of_two(exponent)


def _code_range(bit_width: int, signed: bool, narrow_range: bool) -> tuple[int, int]:
    """Inclusive range of the codes, as Brevitas has it."""
    check_integer("bit_width", bit_width, 2 if signed else 1, 8)
    codes = IntFormat(bit_width, signed, narrow_range)
    return codes.q_min, codes.q_max


def check_integer(name: str, value: object, lowest: int = 1, highest: float = math.inf) -> int:
    """The value.  Raises: InvalidType, InvalidArgument unless it is an integer in the range."""
    within = f">= {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
    if not is_integer(value):
        raise InvalidType(mismatch(name, repr(value), f"an integer {within}"))
    if not lowest <= value <= highest:
        raise InvalidArgument(mismatch(name, value, f"an integer {within}"))
    return int(value)


def check_number(name: str, value: object, below: float = math.inf, *, zero: bool = False) -> float:
    """The value.  Raises: InvalidType, InvalidArgument unless it is a number in (0, below).

    Args:
        zero: whether it may be 0.
    """
    within = f"a number in {'[' if zero else '('}0, {below:g})"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidType(mismatch(name, repr(value), within))
    number = float(value)
    if not (0.0 < number < below or (zero and number == 0.0)):
        raise InvalidArgument(mismatch(name, value, within))
    return number


# --- calibration --------------------------------------------------------------------------------


@contextmanager
def _observing(module: nn.Module) -> Iterator[None]:
    scalings = [m for m in module.modules() if hasattr(m, "observing")]
    weights = {
        id(part)
        for layer in module.modules()
        if hasattr(layer, "weight_quant")
        for part in layer.weight_quant.modules()
    }
    scalings = [m for m in scalings if id(m) not in weights]
    for scaling in scalings:
        scaling.observing = True
    try:
        yield
    finally:
        for scaling in scalings:
            scaling.observing = False


def calibrate(module: nn.Module, x: Tensor) -> None:
    """Set every input and activation scale of ``module`` from one forward pass over ``x``.

    The data meets the quantizers in order, so each is set on values that the earlier ones have
    already quantized.  Batch normalization takes the statistics of ``x``.  Weight scales are left
    alone.

    Args:
        module: any module whose quantizers come from this file.
        x: float32 sample of inputs, at best the whole training set.
    """
    training = module.training
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # running statistics become those of x
        with torch.no_grad(), _observing(module):
            module(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.train(training)


# --- injectors ----------------------------------------------------------------------------------


class _PowerOfTwo(ExtendedInjector):
    """What all quantizers here share: integers, zero point 0, scale from a module of ours."""

    quant_type = QuantType.INT
    bit_width_impl_type = BitWidthImplType.CONST
    bit_width_impl = BitWidthConst
    restrict_scaling_type = RestrictValueType.POWER_OF_TWO
    scaling_impl_type = ScalingImplType.CONST
    scaling_per_output_type = ScalingPerOutputType.TENSOR
    zero_point_impl = ZeroZeroPoint
    scaling_stats_op = None
    scaling_init = None
    scaling_init_impl = None
    exponent_rounding = "ceil"


class _Weight(_PowerOfTwo):
    bit_width = 3
    signed = True
    narrow_range = True
    float_to_int_impl = RoundSte
    tensor_clamp_impl = TensorClampSte


class PowerOfTwoWeight(_Weight, WeightQuantSolver):
    """Signed narrow weights, per-tensor scale 2**e, the smallest at which nothing saturates.

    >>> from brevitas.nn import QuantLinear
    >>> fc = QuantLinear(2, 1, bias=False, weight_quant=PowerOfTwoWeight, weight_bit_width=3)
    >>> _ = fc.weight.data.copy_(torch.tensor([[0.7, -0.2]]))
    >>> q = fc.quant_weight()
    >>> float(q.scale), q.int().tolist()
    (0.25, [[3, -1]])
    """

    scaling_impl = MaxAbsPowerOfTwoScaling


class PowerOfTwoWeightRound(PowerOfTwoWeight):
    """As `PowerOfTwoWeight` with the exponent rounded to nearest: finer codes, some saturate."""

    exponent_rounding = "round"


class PowerOfTwoWeightPerChannel(PowerOfTwoWeight):
    """As `PowerOfTwoWeight` with one scale per output channel.

    >>> from brevitas.nn import QuantLinear
    >>> fc = QuantLinear(1, 2, bias=False, weight_quant=PowerOfTwoWeightPerChannel)
    >>> _ = fc.weight.data.copy_(torch.tensor([[0.7], [0.1]]))
    >>> fc.quant_weight().scale.flatten().tolist()
    [0.25, 0.0625]
    """

    scaling_per_output_type = ScalingPerOutputType.CHANNEL


class PowerOfTwoWeightPerChannelRound(PowerOfTwoWeightPerChannel):
    """As `PowerOfTwoWeightPerChannel` with exponents rounded to nearest."""

    exponent_rounding = "round"


class ConstPowerOfTwoWeight(_Weight, WeightQuantSolver):
    """Signed narrow weights on the fixed grid 2**exponent: nothing in training moves the grid.

    For layers followed by a normalization, where the size of the weights has no meaning of its
    own.  The default exponent puts the largest code just inside 1.

    >>> from brevitas.nn import QuantLinear
    >>> fc = QuantLinear(2, 1, bias=False, weight_quant=ConstPowerOfTwoWeight, weight_bit_width=3)
    >>> _ = fc.weight.data.copy_(torch.tensor([[0.3, -2.0]]))
    >>> fc.quant_weight().int().tolist()
    [[1, -3]]
    """

    scaling_impl = FixedScaling

    @value
    def exponent(bit_width: int) -> int:
        return 1 - bit_width


class TernaryWeight(ConstPowerOfTwoWeight):
    """Weights -1, 0, +1 times 2**exponent (default 2**-1): zero within half a unit."""

    bit_width = 2


class _Act(_PowerOfTwo):
    bit_width = 3
    narrow_range = False
    float_to_int_impl = HalfUpRoundSte
    tensor_clamp_impl = TensorClamp
    exponent = 0
    scale_method = "mse"
    scale_percentile = 99.9
    power_of_two_scale = True
    scaling_impl = FixedScaling


class UnsignedAct(_Act, ActQuantSolver):
    """Codes 0 .. 2**b - 1, rounded half up, constant power-of-two scale (set by `calibrate`).

    >>> from brevitas.nn import QuantReLU
    >>> act = QuantReLU(act_quant=UnsignedAct, bit_width=2, exponent=-1, return_quant_tensor=True)
    >>> act(torch.tensor([-1.0, 0.25, 0.75, 9.0])).int().tolist()
    [0, 1, 2, 3]
    """

    signed = False


class SignedAct(_Act, ActQuantSolver):
    """Codes -2**(b-1) .. 2**(b-1) - 1, rounded half up, constant power-of-two scale.

    >>> from brevitas.nn import QuantIdentity
    >>> act = QuantIdentity(act_quant=SignedAct, bit_width=2, return_quant_tensor=True)
    >>> act(torch.tensor([-9.0, -1.5, -0.5, 0.5])).int().tolist()
    [-2, -1, 0, 1]
    """

    signed = True


class LearnedUnsignedAct(UnsignedAct):
    """`UnsignedAct` with a learned exponent."""

    scaling_impl = LearnedPowerOfTwoScaling


class LearnedSignedAct(SignedAct):
    """`SignedAct` with a learned exponent."""

    scaling_impl = LearnedPowerOfTwoScaling


class FloatUnsignedAct(UnsignedAct):
    """`UnsignedAct` whose calibrated scale may be any float."""

    power_of_two_scale = False


class FloatSignedAct(SignedAct):
    """`SignedAct` whose calibrated scale may be any float."""

    power_of_two_scale = False


class UnsignedInput(UnsignedAct):
    """Input quantizer for data that is never negative."""


class SignedInput(SignedAct):
    """Input quantizer for data of both signs, such as standardised features."""


class FloatUnsignedInput(FloatUnsignedAct):
    """`UnsignedInput` whose scale may be any float."""


class FloatSignedInput(FloatSignedAct):
    """`SignedInput` whose scale may be any float."""


# --- weight transforms --------------------------------------------------------------------------


class Mask(nn.Module):
    """Weight transform: multiply by a fixed mask of the weight's shape.

    >>> Mask(torch.tensor([[1.0, 0.0]]))(torch.tensor([[3.0, 5.0]]))
    tensor([[3., 0.]])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class RowSparsity(nn.Module):
    """Weight transform: at most ``max_nonzeros`` weights in each output row, the largest.

    A row is what one neuron sees, so this bounds its accumulator; a budget for the layer as a whole
    does not.  The mask is chosen by `update` (never by itself) and kept in the state dict.

    Args:
        weight: the weight the mask is for, ``[out, in]`` or ``[out, in, kh, kw]``.
        max_nonzeros: weights kept in each row, >= 1: one number, or one for each row.

    >>> w = torch.tensor([[0.1, -0.9, 0.5], [0.3, 0.2, 0.1]])
    >>> RowSparsity(w, 2)(w)
    tensor([[ 0.0000, -0.9000,  0.5000],
            [ 0.3000,  0.2000,  0.0000]])
    """

    mask: Tensor

    def __init__(self, weight: Tensor, max_nonzeros: int | Sequence[int]) -> None:
        super().__init__()
        counts = np.asarray(max_nonzeros)
        if counts.dtype.kind not in "iu" or (counts < 1).any():
            raise InvalidArgument(mismatch("max_nonzeros", max_nonzeros, "integers >= 1"))
        if counts.ndim and counts.shape != weight.shape[:1]:
            got, expected = f"shape {counts.shape}", f"one number, or {len(weight)} for the rows"
            raise ShapeMismatch(mismatch("max_nonzeros", got, expected))
        self.max_nonzeros = torch.from_numpy(np.broadcast_to(counts, len(weight)).astype(np.int64))
        self.register_buffer("mask", torch.ones_like(weight))
        self.update(weight)

    @torch.no_grad()
    def update(self, weight: Tensor, keep: float = 0.0) -> None:
        """Choose the mask anew: the largest magnitudes of each row; ties keep the earlier column.

        Args:
            weight: the untransformed weight.
            keep: fraction of the row to keep where that is more than ``max_nonzeros``, so that
                sparsity can grow over the first epochs: 1 dense, 0 the full budget.
        """
        rows = weight.detach().abs().flatten(1)  # [out, fan_in]
        fan_in = rows.shape[1]
        kept = self.max_nonzeros.clamp(round(keep * fan_in), fan_in)  # [out]
        order = rows.argsort(dim=1, descending=True, stable=True)
        largest = (torch.arange(fan_in) < kept[:, None]).to(rows.dtype)
        mask = torch.zeros_like(rows).scatter_(1, order, largest)
        self.mask.copy_(mask.view_as(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def add_weight_transform(layer: nn.Module, transform: nn.Module) -> nn.Module:
    """Let ``layer`` quantize ``transform(weight)`` in place of its weight; returns ``transform``.

    Transforms apply in the order they were added.  This is a torch parametrization, so the
    optimizer keeps training the original weight and gradients flow through the transform.  Masks,
    accumulator budgets and the like enter here.

    Args:
        layer: a layer with a ``weight``, such as a Brevitas QuantLinear.
        transform: a module from weight to weight, shape unchanged.
    """
    parametrize.register_parametrization(layer, "weight", transform)
    return transform


def weight_transforms(layer: nn.Module) -> list[nn.Module]:
    """The transforms of ``layer`` in their order; empty if there is none."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(layer.parametrizations["weight"])


def fix_weight_transforms(module: nn.Module) -> None:
    """Write every transformed weight and bias back as the plain one and drop the transforms."""
    for layer in list(module.modules()):
        for name in ("weight", "bias"):
            if parametrize.is_parametrized(layer, name):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
