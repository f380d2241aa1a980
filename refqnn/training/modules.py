"""Networks to train: every hidden code is an integer accumulator, plus a constant, minus low bits.

A hidden layer computes, in evaluation,

    acc  = sum_i w_i x_i                     integers
    code = clip((acc + b) >> r, 0, 2**a - 1)

with one shift r for the layer and one constant b for each neuron.  That is the cheapest thing an
encrypted circuit can do with an accumulator, and it is all that `PowerOfTwoNorm` followed by a
power-of-two quantizer can express; batch normalization with a float gain is not of this form.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerTensorFloat, Int16Bias
from torch import Tensor, nn
from torch.nn.utils import parametrize

from refqnn.accumulator import max_fan_in
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import signed_bits
from refqnn.training.budget import SignSplit, shrink_
from refqnn.training.quantizers import (
    ConstPowerOfTwoWeight,
    FixedScaling,
    FloatSignedAct,
    FloatUnsignedAct,
    Mask,
    RowSparsity,
    SignedAct,
    UnsignedAct,
    add_weight_transform,
    calibrate,
    fix_weight_transforms,
    half_up_ste,
    weight_transforms,
)

__all__ = [
    "FloatMLP",
    "PowerOfTwoNorm",
    "QuantConvNet",
    "SparseQuantNeuralNetImpl",
    "set_normalization_frozen",
]

Activation = Callable[[], nn.Module]
FanIn = int | Sequence[int | Sequence[int] | None]


class PowerOfTwoNorm(nn.Module):
    """Centre each channel, then divide the layer by one power of two.

        y[c] = (x[c] + shift[c]) * 2**-exponent
        shift[c] = bias[c] * 2**exponent - mean[c],   rounded to the grid of the accumulator

    Training uses the batch mean, evaluation (and training once `frozen`) the running mean, as in
    batch normalization (Ioffe and Szegedy 2015) without the gain: the rows of the weights that
    come before have that freedom already.  The exponent is set from data by `observe` and constant
    from then on, so the function never jumps.

    ``x`` is an integer multiple of ``step``.  The shift is rounded to ``(n + offset) * step`` with
    integer n, straight-through.  With ``offset`` 1/2, whenever the quantizer that follows drops at
    least one bit, its decision points fall halfway between accumulator values: no tie exists, and
    every rounding mode that rounds to nearest gives the same codes.  All float32 arithmetic here is
    exact while ``|acc| < 2**22``.

    Args:
        channels: size of axis 1 of the input.
        momentum: weight of a new batch in the running mean.

    Shape: ``[N, channels, ...]`` to the same.
    """

    running_mean: Tensor
    gain: Tensor
    step: Tensor
    offset: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels = channels
        self.momentum = momentum
        self.observing = False
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("gain", torch.tensor(1.0))  # 2**-exponent
        self.register_buffer("step", torch.tensor(1.0))  # value of one unit of the accumulator
        self.register_buffer("offset", torch.tensor(0.0))  # in units of the accumulator
        self.register_buffer("lowest", torch.full((channels,), -math.inf))  # the same
        self.register_buffer("highest", torch.full((channels,), math.inf))
        self.frozen = False

    def extra_repr(self) -> str:
        return f"{self.channels}, gain={float(self.gain)}, step={float(self.step)}"

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set the mean, and the exponent nearest to log2 of the standard deviation, from ``x``."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.running_mean.copy_(x.mean(dim=axes))
        deviation = float(x.var(dim=axes, unbiased=False).mean().sqrt())
        exponent = round(math.log2(deviation)) if deviation > 0.0 else 0
        self.gain.fill_(math.ldexp(1.0, -exponent))

    def shift(self, mean: Tensor) -> Tensor:
        """The constant of each channel, on the grid ``(n + offset) * step``; ``[channels]``."""
        units = (self.bias / self.gain - mean) / self.step
        on_grid = half_up_ste(units - self.offset) + self.offset
        return on_grid.clamp(self.lowest, self.highest) * self.step

    @torch.no_grad()
    def limit_shift(self, lowest: Tensor, highest: Tensor) -> None:
        """Keep the constant of each channel in ``[lowest, highest]`` accumulator units.

        For accumulator budgets, which must count the constant.

        Args:
            lowest, highest: ``[channels]``, multiples of 1/2 that lie on the grid of the layer.
        """
        for name, limit in (("lowest", lowest), ("highest", highest)):
            if limit.shape != (self.channels,):
                raise ShapeMismatch(
                    mismatch(name, f"shape {tuple(limit.shape)}", f"({self.channels},)")
                )
        if bool((lowest > highest).any()):
            raise InvalidArgument(mismatch("lowest", "a value above highest", "lowest <= highest"))
        self.lowest.copy_(lowest)
        self.highest.copy_(highest)

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.ndim - 2)
        if self.observing:  # the step is not known yet
            self.observe(x)
            return (x - self.running_mean.view(shape)) * self.gain + self.bias.view(shape)
        mean = self.running_mean
        if self.training and not self.frozen:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            mean = x.mean(dim=axes)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
        return (x + self.shift(mean).view(shape)) * self.gain


def set_normalization_frozen(module: nn.Module, frozen: bool = True) -> None:
    """Let every normalization of ``module`` train on its running statistics, as in evaluation."""
    for part in module.modules():
        if isinstance(part, PowerOfTwoNorm):
            part.frozen = frozen
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.train(part.training and not frozen)


@dataclass(frozen=True)
class Block:
    """One weight layer of a network and what surrounds it.

    Attributes:
        linear: QuantLinear or QuantConv2d.
        input_quant: the quantizer of its input.
        norm: the normalization that follows; None after the last layer.
        quant: the quantizer that follows; None after the last layer.
    """

    linear: QuantLinear | QuantConv2d
    input_quant: nn.Module
    norm: nn.Module | None
    quant: nn.Module | None


@dataclass(frozen=True)
class AccumulatorRange:
    """Interval of one layer's accumulators, from its integer weights and the format of its input.

    Attributes:
        lo, hi: int64 ``[out]``, every value the accumulator of a neuron can take lies between;
            the constant of the neuron included, rounded down.
        shift: low bits that the circuit drops (r); None where no shift follows.
    """

    lo: Tensor
    hi: Tensor
    shift: int | None

    @property
    def signed_bits(self) -> int:
        """Bits of a signed integer that holds every accumulator of the layer."""
        lo, hi = int(self.lo.min()), int(self.hi.max())
        return 1 + max(hi.bit_length() if hi > 0 else 0, (-lo - 1).bit_length() if lo < 0 else 0)

    @property
    def span_bits(self) -> int:
        """Bits of the widest range, once a constant has moved it to start at 0."""
        return int((self.hi - self.lo).max()).bit_length()

    @property
    def table_bits(self) -> int:
        """Bits that enter the table of the layer, after half a unit is added and r bits dropped.

        A range of 2**n values can touch one unit more than 2**(n-r): it need not start on a unit.
        """
        r = self.shift or 0
        half = (1 << r) >> 1
        top, bottom = (self.hi + half) >> r, (self.lo + half) >> r
        return int((top - bottom).max()).bit_length()


class _QuantNet(nn.Module):
    """What the networks here share: a chain ``features`` of quantizers, layers, normalizations."""

    features: nn.Sequential
    output_std: float
    table_bits: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Accumulators of the last layer, as floats: ``[N, outputs]``."""
        y: Tensor = self.features(x)
        return y

    def blocks(self) -> list[Block]:
        """The weight layers in order, each with its quantizers and normalization."""
        parts = list(self.features)
        where = [i for i, part in enumerate(parts) if isinstance(part, QuantLinear | QuantConv2d)]
        blocks = []
        for start, stop in zip(where, [*where[1:], len(parts)], strict=True):
            before = [part for part in parts[:start] if _is_quantizer(part)]
            after = parts[start + 1 : stop]
            norms = [part for part in after if isinstance(part, _NORMS)]
            quants = [part for part in after if _is_quantizer(part)]
            blocks.append(
                Block(
                    linear=parts[start],
                    input_quant=before[-1],
                    norm=norms[0] if norms else None,
                    quant=quants[0] if quants else None,
                )
            )
        return blocks

    # -- data-dependent constants ----------------------------------------------------------------

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set every constant that comes from data: scales, exponents, means, the output scale.

        Call it once before training, with the training inputs; `refqnn.training.loop.fit` does.

        Args:
            x: float32 training inputs.
        """
        _check_inputs(x, self)
        calibrate(self, x)
        self.set_grids()
        self._scale_output(x)

    @torch.no_grad()
    def recalibrate(self, x: Tensor) -> None:
        """`calibrate` without the output scale: for use while training, when rows have changed."""
        calibrate(self, x)
        self.set_grids()

    @torch.no_grad()
    def set_grids(self) -> None:
        """Tell each `PowerOfTwoNorm` the unit of its accumulator and which grid avoids ties."""
        for block in self.blocks():
            if not isinstance(block.norm, PowerOfTwoNorm) or block.quant is None:
                continue
            norm = block.norm
            norm.step.copy_(_act_scaling(block.input_quant).scale * _weight_scaling(block).scale)
            unit = float(norm.step * norm.gain)  # one accumulator unit, at the next quantizer
            scaling = _act_scaling(block.quant)
            if float(scaling.scale) < unit:  # codes finer than the accumulator mean nothing
                scaling.set_scale(unit)
            shift = round(math.log2(float(scaling.scale) / unit))
            if self.table_bits is not None:
                data_shift = shift
                span = _largest_span(block)
                while _units_touched(span, shift) > 2**self.table_bits:
                    shift += 1
                scaling.set_scale(math.ldexp(float(scaling.scale), shift - data_shift))
            norm.offset.fill_(0.5 if shift >= 1 else 0.0)

    def _scale_output(self, x: Tensor) -> None:
        """Move the last layer's grid: outputs get about the deviation ``output_std``."""
        last = self.blocks()[-1].linear
        training = self.training
        self.eval()
        deviation = float((self(x) - last.bias).std(unbiased=False))
        self.train(training)
        if deviation > 0.0:
            factor = math.ldexp(1.0, round(math.log2(self.output_std / deviation)))
            for parameter in _raw_weights(last):
                parameter.mul_(factor)
            scaling = last.weight_quant.tensor_quant.scaling_impl
            if isinstance(scaling, FixedScaling):
                scaling.set_scale(float(scaling.scale) * factor)

    # -- sparsity --------------------------------------------------------------------------------

    def limit_fan_in(self, budgets: FanIn) -> None:
        """Keep at most ``budgets[i]`` non-zero weights in each row of weight layer i.

        Masks are by magnitude, row by row, chosen now; `update_fan_in` chooses them again.

        Args:
            budgets: one number for all layers but the last, or one entry for each weight layer: a
                number, one for each row, or None, which leaves the layer dense.
        """
        blocks = self.blocks()
        if isinstance(budgets, int):
            budgets = [budgets] * (len(blocks) - 1) + [None]
        if len(budgets) != len(blocks):
            raise ShapeMismatch(
                mismatch("budgets", f"{len(budgets)} entries", f"{len(blocks)}, one for each layer")
            )
        for block, budget in zip(blocks, budgets, strict=True):
            if budget is not None:
                add_weight_transform(block.linear, RowSparsity(block.linear.weight, budget))

    def has_fan_in_limits(self) -> bool:
        """Whether `limit_fan_in` has been called."""
        transforms = [t for block in self.blocks() for t in weight_transforms(block.linear)]
        return any(isinstance(transform, RowSparsity) for transform in transforms)

    def update_fan_in(self, keep: float = 0.0) -> None:
        """Choose the masks of `limit_fan_in` again, from the weights as they are now.

        Args:
            keep: fraction of each row to keep where that is more than the budget (`RowSparsity`).
        """
        for block in self.blocks():
            for transform in weight_transforms(block.linear):
                if isinstance(transform, RowSparsity):
                    transform.update(_raw_weights(block.linear)[0], keep=keep)

    def sparsify(
        self, x: Tensor, epoch: int, epochs: int, window: tuple[float, float] = (0.1, 0.5)
    ) -> None:
        """Shrink the rows toward their budget, cubically (Zhu and Gupta 2017); exponents follow.

        Call it at the start of each epoch.  The first epoch past the window, or the last of all,
        completes it: few epochs may step over the window.  Nothing happens in a network without
        `limit_fan_in`.

        Args:
            x: float32 training inputs.
            epoch: from 0 to ``epochs - 1``.
            window: fractions of the epochs at which shrinking starts and ends.
        """
        start, stop = window
        if not self.has_fan_in_limits() or (epoch - 1) / epochs >= stop:
            return
        time = epoch / epochs
        complete = time >= stop or epoch + 1 == epochs
        done = 1.0 if complete else max(0.0, (time - start) / (stop - start))
        self.update_fan_in(keep=(1.0 - done) ** 3)
        self.recalibrate(x)

    def enable_pruning(self, fraction: float) -> None:
        """Silence the given fraction of the neurons of each hidden layer, from now on.

        A neuron counts by the product of the norms of its incoming and outgoing weights; the least
        go.  Their rows, and the columns that read them, become zero.  Call it on a network that has
        trained for a while; the weights of a new one say nothing.

        Args:
            fraction: in [0, 1); rounded down to whole neurons.
        """
        if not 0.0 <= fraction < 1.0:
            raise InvalidArgument(mismatch("fraction", fraction, "a number in [0, 1)"))
        importances = self.neuron_importance()
        for (block, following), importance in zip(pairwise(self.blocks()), importances):
            neurons = len(importance)
            silent = importance.argsort(stable=True)[: int(fraction * neurons)]
            row_mask = torch.ones_like(block.linear.weight)
            row_mask[silent] = 0.0
            column_mask = torch.ones_like(following.linear.weight)
            column_mask.view(len(column_mask), neurons, -1)[:, silent] = 0.0
            add_weight_transform(block.linear, Mask(row_mask))
            add_weight_transform(following.linear, Mask(column_mask))

    @torch.no_grad()
    def neuron_importance(self) -> list[Tensor]:
        """What `enable_pruning` ranks by, for each hidden layer: floats ``[neurons]``."""
        importances = []
        for block, following in pairwise(self.blocks()):
            rows = block.linear.weight.flatten(1)  # [neurons, fan_in]
            columns = following.linear.weight
            columns = columns.reshape(len(columns), len(rows), -1)  # [next, neurons, values each]
            importances.append(rows.norm(dim=1) * columns.norm(dim=(0, 2)))
        return importances

    def make_pruning_permanent(self) -> None:
        """Write all masks and budgets into the weights and drop them; the function stays the same.

        A Brevitas layer that gets a new weight builds its quantizer anew, so the constant scales
        are carried over.
        """
        scales = [getattr(_weight_scaling(block), "scale", None) for block in self.blocks()]
        fix_weight_transforms(self)
        for block, scale in zip(self.blocks(), scales, strict=True):
            if scale is not None:
                _weight_scaling(block).set_scale(float(scale))

    # -- accumulator budgets ---------------------------------------------------------------------

    def add_accumulator_budgets(self, bits: int) -> None:
        """Keep every accumulator, bias included, within ``bits`` signed bits from now on.

        Each row is projected onto its sign-split budget (`refqnn.pruning`), the bias of the last
        layer onto a quarter of the width.  The constants of hidden layers are part of the
        thresholds behind the accumulator, not of the accumulator.

        Call it after `limit_fan_in`; after each optimizer step call `shrink_to_budgets`.

        Raises: InvalidArgument when not even one weight of 1 fits a layer.
        """
        self.check_accumulator_bits(bits)
        for block in self.blocks():
            inputs, weights = _act_scaling(block.input_quant), _weight_scaling(block)
            bias = None
            if block.linear.bias is not None:
                limit = BiasLimit((1 << bits) // 8, inputs, weights)
                parametrize.register_parametrization(block.linear, "bias", limit)
                bias = _BiasCodes(block.linear, limit)
            budget = SignSplit(
                _Scale(weights),
                (inputs.min_code, inputs.max_code),
                bits,
                bias=bias,
                weight_range=(weights.min_code, weights.max_code),
            )
            add_weight_transform(block.linear, budget)

    @torch.no_grad()
    def shrink_to_budgets(self) -> None:
        """Pull the trained weights themselves toward their budgets (projected gradient descent)."""
        for block in self.blocks():
            for budget in weight_transforms(block.linear):
                if isinstance(budget, SignSplit):
                    bias = None if budget.bias is None else budget.bias()
                    (weight,) = _raw_weights(block.linear)
                    shrink_(weight, budget.scale(), bias, budget.input_range, budget.bits)

    def check_accumulator_bits(self, bits: int) -> None:
        """Raises: InvalidArgument when not even one weight of 1 fits some layer."""
        for number, block in enumerate(self.blocks(), start=1):
            inputs = _act_scaling(block.input_quant)
            x_lo, x_hi = inputs.min_code, inputs.max_code
            needed = min(signed_bits(x_lo, x_hi), signed_bits(-x_hi, -x_lo))  # weight 1, weight -1
            if needed > bits:
                expected = (
                    f"at least {needed}: linear layer {number} reads codes {x_lo} to {x_hi}, and "
                    "one weight of 1 alone needs that many bits"
                )
                raise InvalidArgument(mismatch("n_accum_bits", bits, expected))

    def max_active_neurons(self, bits: int) -> int:
        """Inputs that any neuron may read with weights of any size, accumulators of ``bits``.

        The least over the layers of `refqnn.max_fan_in`, with the bias that
        `add_accumulator_budgets` leaves room for.  A neuron with smaller weights may read more.
        """
        fan_ins = []
        for block in self.blocks():
            inputs, weights = _act_scaling(block.input_quant), _weight_scaling(block)
            bias = (1 << bits) // 8 if block.linear.bias is not None else 0
            fan_in = max_fan_in(
                (weights.min_code, weights.max_code),
                (inputs.min_code, inputs.max_code),
                (-bias, bias),
                (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
            )
            if fan_in is not None:  # None: weights or inputs are always 0
                fan_ins.append(fan_in)
        return min(fan_ins)

    # -- what the integers will be ---------------------------------------------------------------

    @torch.no_grad()
    def accumulator_ranges(self) -> list[AccumulatorRange]:
        """The interval of every accumulator, layer by layer, in evaluation.

            hi = sum of w+ x_max + sum of w- x_min + b,   lo mirrored.

        Needs power-of-two scaling.  This is a convenience for training; the certificate of the
        imported network is the proof.
        """
        ranges = []
        for block in self.blocks():
            codes = _weight_codes(block.linear)
            scaling = _act_scaling(block.input_quant)
            x_lo, x_hi = scaling.min_code, scaling.max_code
            positive, negative = codes.clamp(min=0).sum(dim=1), codes.clamp(max=0).sum(dim=1)
            shift = None
            if isinstance(block.norm, PowerOfTwoNorm) and block.quant is not None:
                constant = block.norm.shift(block.norm.running_mean) / block.norm.step
                unit = float(block.norm.step * block.norm.gain)
                shift = round(math.log2(float(_act_scaling(block.quant).scale) / unit))
            elif block.linear.bias is not None:
                unit_scale = scaling.scale * _weight_scaling(block).scale
                constant = torch.round(block.linear.bias / unit_scale)
            else:
                constant = torch.zeros(len(codes))
            b = torch.floor(constant).to(torch.int64)
            ranges.append(
                AccumulatorRange(
                    lo=positive * x_lo + negative * x_hi + b,
                    hi=positive * x_hi + negative * x_lo + b,
                    shift=shift,
                )
            )
        return ranges


class BiasLimit(nn.Module):
    """Bias transform: a multiple of the accumulator's unit within ``limit`` units of 0.

    Args:
        limit: in units of the accumulator, >= 0.
        inputs, weights: the scalings whose product is the unit.
    """

    def __init__(self, limit: int, inputs: nn.Module, weights: nn.Module) -> None:
        super().__init__()
        self.limit = limit
        self._scales = (_Scale(inputs), _Scale(weights))  # a tuple: no submodules of this one

    def unit(self) -> Tensor:
        """Value of one unit of the accumulator."""
        inputs, weights = self._scales
        return inputs() * weights()

    def forward(self, bias: Tensor) -> Tensor:
        unit = self.unit()
        codes = torch.round(bias / unit).clamp(-self.limit, self.limit)
        return bias + (codes * unit - bias).detach()


class _Scale:
    """Reads the constant of a scaling module."""

    def __init__(self, scaling: FixedScaling) -> None:
        self.scaling = scaling

    def __call__(self) -> Tensor:
        return self.scaling.scale


class _BiasCodes:
    """Reads the integer bias of a layer, in units of its accumulator."""

    def __init__(self, linear: nn.Module, limit: BiasLimit) -> None:
        self.linear = linear
        self.limit = limit

    def __call__(self) -> Tensor:
        return torch.round(self.linear.bias.detach() / self.limit.unit())


_NORMS = (PowerOfTwoNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def _is_quantizer(part: nn.Module) -> bool:
    return isinstance(part, QuantIdentity | QuantReLU)


def _act_scaling(quant: nn.Module) -> FixedScaling:
    scaling: FixedScaling = quant.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    return scaling


def _weight_scaling(block: Block) -> FixedScaling:
    scaling: FixedScaling = block.linear.weight_quant.tensor_quant.scaling_impl
    return scaling


def _weight_codes(layer: QuantLinear | QuantConv2d) -> Tensor:
    """Integer weights, int64 ``[out, fan_in]``."""
    weight = layer.quant_weight()
    return torch.round(weight.value / weight.scale).flatten(1).to(torch.int64)


def _largest_span(block: Block) -> int:
    """hi - lo of the widest accumulator that training can arrive at, within the fan-in budget."""
    weights = block.linear.weight[0].numel()
    for transform in weight_transforms(block.linear):
        if isinstance(transform, RowSparsity):
            weights = min(weights, int(transform.max_nonzeros.max()))
    scaling = _weight_scaling(block)
    largest_weight = max(scaling.max_code, -scaling.min_code)
    inputs = _act_scaling(block.input_quant)
    return weights * largest_weight * (inputs.max_code - inputs.min_code)


def _units_touched(span: int, shift: int) -> int:
    """Most values of ``acc >> shift`` on a range with hi - lo = span, wherever it starts."""
    units = span // 2**shift + 1
    return units + int(span % 2**shift > 0)


def _raw_weights(layer: nn.Module) -> list[nn.Parameter]:
    """The trained weight of a layer, before any transform."""
    if parametrize.is_parametrized(layer, "weight"):
        return [layer.parametrizations["weight"].original]
    return [layer.weight]


def _check_inputs(x: object, module: nn.Module) -> None:
    if not isinstance(x, Tensor):
        raise InvalidType(mismatch("x", type(x).__name__, "a torch.Tensor"))
    if not x.dtype == torch.float32:
        raise InvalidType(mismatch("x", f"dtype {x.dtype}", "torch.float32"))
    if len(x) < 2:
        raise InvalidArgument(mismatch("x", f"{len(x)} rows", "at least 2"))
    if not bool(torch.isfinite(x).all()):
        raise InvalidArgument(mismatch("x", "NaN or infinity", "finite values"))


def _check_bits(name: str, bits: object, lowest: int) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise InvalidType(mismatch(name, repr(bits), f"an integer from {lowest} to 8"))
    if not lowest <= bits <= 8:
        raise InvalidArgument(mismatch(name, bits, f"an integer from {lowest} to 8"))
    return bits


def _check_size(name: str, size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int):
        raise InvalidType(mismatch(name, repr(size), "an integer >= 1"))
    if size < 1:
        raise InvalidArgument(mismatch(name, size, "an integer >= 1"))
    return size


def _goes_negative(activation: Activation) -> bool:
    grid = torch.linspace(-16.0, 16.0, 4097)
    with torch.no_grad():
        return bool(activation()(grid).min() < 0.0)


def _weight_options(bits: int, narrow: bool, power_of_two: bool) -> dict[str, object]:
    injector = ConstPowerOfTwoWeight if power_of_two else Int8WeightPerTensorFloat
    return {
        "weight_quant": injector,
        "weight_bit_width": bits,
        "weight_narrow_range": narrow,
    }


def _init_weight(layer: nn.Module, bits: int) -> None:
    """Normal weights; deviation 0.43 of the largest code, and at least 0.8 codes (ternary)."""
    unit = math.ldexp(1.0, 1 - bits)
    deviation = max(0.8, 0.43 * (2 ** (bits - 1) - 1))
    with torch.no_grad():
        nn.init.normal_(layer.weight, 0.0, deviation * unit)


class SparseQuantNeuralNetImpl(_QuantNet):
    """Quantized multilayer perceptron: the torch module under the estimators.

        input codes -> [linear -> normalization -> activation -> codes] x (n_layers - 1) -> linear

    With ``power_of_two_scaling`` every scale is a power of two and every hidden layer is a sum, a
    constant for each neuron and one shift (see the module's text).  Without it, weight and
    activation scales are any floats and the normalization is `torch.nn.BatchNorm1d`: a little more
    accurate, several times dearer under encryption.

    `calibrate` must see the training inputs once before training.

    Args:
        input_dim: number of features.
        n_layers: linear layers in all, >= 1.
        n_outputs: size of the last layer.
        n_hidden_neurons_multiplier: hidden layers have ``round(multiplier * input_dim)`` neurons.
        n_w_bits: bits of the weights, 2 to 8.  2 bits with ``quant_narrow`` are ternary weights.
        n_a_bits: bits of the activations and inputs, 1 to 8 (2 to 8 where signed).
        n_accum_bits: signed bits that no accumulator may exceed, bias included; None for no limit.
            `add_accumulator_budgets` enforces it; an impossible width is an error here.
        n_prune_neurons_percentage: fraction in [0, 1) of the neurons of each hidden layer for the
            caller of `enable_pruning`; building a network prunes nothing.
        activation_function: a torch activation class, or any callable that returns a module.
        quant_narrow: leave out the lowest signed code of weights and hidden activations.
        quant_signed: signedness of the hidden codes; None: signed where the activation can be
            negative.
        power_of_two_scaling: see above.
        hidden_sizes: sizes of the hidden layers; overrides ``n_layers`` and the multiplier.
        n_input_bits: bits of the input codes; None: ``n_a_bits``.
        input_signed: False for inputs that are never negative, such as pixels.
        fan_in: most non-zero weights in a row: one number for all hidden layers, or one entry for
            each linear layer, a number, one for each row or None (dense).  None: dense.  Neurons of
            one input cost nothing under encryption.
        table_bits: choose shifts so large that no accumulator, whatever the weights become, has
            more than this many bits left once its low bits are dropped: the width of the encrypted
            table.  Codes may become coarser; set ``fan_in`` as well.  None: as the data ask.
        output_std: standard deviation of the outputs before training.

    Shape: ``[N, input_dim]`` float32 to ``[N, n_outputs]`` float32.

    Raises:
        InvalidType, InvalidArgument, ShapeMismatch: an argument outside the above.

    >>> _ = torch.manual_seed(0)
    >>> net = SparseQuantNeuralNetImpl(4, 2, 3, hidden_sizes=(16,))
    >>> x = torch.randn(50, 4)
    >>> net.calibrate(x)
    >>> net.eval()(x).shape
    torch.Size([50, 3])
    """

    def __init__(
        self,
        input_dim: int,
        n_layers: int,
        n_outputs: int,
        n_hidden_neurons_multiplier: float = 4,
        n_w_bits: int = 3,
        n_a_bits: int = 3,
        n_accum_bits: int | None = None,
        n_prune_neurons_percentage: float = 0.0,
        activation_function: Activation = nn.ReLU,
        quant_narrow: bool = False,
        quant_signed: bool | None = None,
        power_of_two_scaling: bool = True,
        *,
        hidden_sizes: Sequence[int] | None = None,
        n_input_bits: int | None = None,
        input_signed: bool = True,
        fan_in: FanIn | None = None,
        table_bits: int | None = None,
        output_std: float = 2.0,
    ) -> None:
        super().__init__()
        input_dim = _check_size("input_dim", input_dim)
        n_outputs = _check_size("n_outputs", n_outputs)
        if hidden_sizes is None:
            n_layers = _check_size("n_layers", n_layers)
            if not n_hidden_neurons_multiplier > 0:
                raise InvalidArgument(
                    mismatch("n_hidden_neurons_multiplier", n_hidden_neurons_multiplier, "> 0")
                )
            hidden = max(1, round(n_hidden_neurons_multiplier * input_dim))
            hidden_sizes = [hidden] * (n_layers - 1)
        hidden_sizes = [_check_size("hidden_sizes", size) for size in hidden_sizes]
        n_w_bits = _check_bits("n_w_bits", n_w_bits, 2)
        if n_accum_bits is not None and (
            isinstance(n_accum_bits, bool) or not isinstance(n_accum_bits, int) or n_accum_bits < 2
        ):
            raise InvalidArgument(mismatch("n_accum_bits", n_accum_bits, "None or an integer >= 2"))
        if not 0.0 <= n_prune_neurons_percentage < 1.0:
            raise InvalidArgument(
                mismatch("n_prune_neurons_percentage", n_prune_neurons_percentage, "in [0, 1)")
            )
        hidden_signed = (
            _goes_negative(activation_function) if quant_signed is None else quant_signed
        )
        n_a_bits = _check_bits("n_a_bits", n_a_bits, 2 if hidden_signed else 1)
        if n_input_bits is None:
            n_input_bits = max(n_a_bits, 2 if input_signed else 1)
        n_input_bits = _check_bits("n_input_bits", n_input_bits, 2 if input_signed else 1)

        self.n_w_bits = n_w_bits
        self.n_a_bits = n_a_bits
        self.n_accum_bits = n_accum_bits
        self.n_prune_neurons_percentage = n_prune_neurons_percentage
        self.power_of_two_scaling = power_of_two_scaling
        self.output_std = output_std
        self.table_bits = table_bits
        self.hidden_sizes = tuple(hidden_sizes)
        self.arguments: dict[str, object] = {
            "input_dim": input_dim,
            "n_layers": len(hidden_sizes) + 1,
            "n_outputs": n_outputs,
            "n_w_bits": n_w_bits,
            "n_a_bits": n_a_bits,
            "n_accum_bits": n_accum_bits,
            "activation_function": activation_function,
            "quant_narrow": quant_narrow,
            "quant_signed": quant_signed,
            "power_of_two_scaling": power_of_two_scaling,
            "hidden_sizes": self.hidden_sizes,
            "n_input_bits": n_input_bits,
            "input_signed": input_signed,
            "table_bits": table_bits,
            "output_std": output_std,
        }

        unsigned = UnsignedAct if power_of_two_scaling else FloatUnsignedAct
        signed = SignedAct if power_of_two_scaling else FloatSignedAct
        # A budget counts integer weights, so their scale must not follow the weights.
        constant = power_of_two_scaling or n_accum_bits is not None
        weights = _weight_options(n_w_bits, quant_narrow, constant)

        def quantizer(bits: int, is_signed: bool, narrow: bool) -> QuantIdentity:
            return QuantIdentity(
                act_quant=signed if is_signed else unsigned,
                bit_width=bits,
                narrow_range=narrow and is_signed,
                return_quant_tensor=True,
            )

        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["quant0"] = quantizer(n_input_bits, input_signed, narrow=False)
        width = input_dim
        for number, size in enumerate(hidden_sizes, start=1):
            parts[f"fc{number}"] = QuantLinear(width, size, bias=False, **weights)
            parts[f"norm{number}"] = (
                PowerOfTwoNorm(size) if power_of_two_scaling else nn.BatchNorm1d(size)
            )
            if activation_function is nn.ReLU and not hidden_signed:
                parts[f"quant{number}"] = QuantReLU(
                    act_quant=unsigned, bit_width=n_a_bits, return_quant_tensor=True
                )
            else:
                parts[f"act{number}"] = activation_function()
                parts[f"quant{number}"] = quantizer(n_a_bits, hidden_signed, narrow=quant_narrow)
            width = size
        number = len(hidden_sizes) + 1
        parts[f"fc{number}"] = QuantLinear(
            width, n_outputs, bias=True, bias_quant=Int16Bias, **weights
        )
        self.features = nn.Sequential(parts)

        for block in self.blocks():
            _init_weight(block.linear, n_w_bits)
        nn.init.zeros_(self.blocks()[-1].linear.bias)
        if fan_in is not None:
            self.limit_fan_in(fan_in)
        if n_accum_bits is not None:
            self.check_accumulator_bits(n_accum_bits)

    @torch.no_grad()
    def plain_copy(self, keep: Sequence[Tensor] | None = None) -> SparseQuantNeuralNetImpl:
        """A copy whose masks and budgets are written into its weights, in evaluation mode.

        Args:
            keep: for each hidden layer the neurons to keep, int64 indices; None: those that any
                later weight reads (at least one).  Leaving out the others changes no output.
        """
        blocks = self.blocks()
        if keep is None:
            keep = []
            for following in blocks[1:]:
                read = (_weight_codes(following.linear) != 0).any(dim=0)
                read[0] |= not bool(read.any())
                keep.append(read.nonzero().flatten())
        arguments = {**self.arguments, "hidden_sizes": [len(kept) for kept in keep]}
        with torch.random.fork_rng(devices=[]):
            copy = SparseQuantNeuralNetImpl(**arguments)  # type: ignore[arg-type]
        own, state = self.state_dict(), {}
        for name, value in copy.state_dict().items():
            part, _, leaf = name.removeprefix("features.").partition(".")
            layer = getattr(self.features, part)
            source = getattr(layer, leaf).detach() if leaf in ("weight", "bias") else own[name]
            number = int(part[-1 * sum(map(str.isdigit, part)) :])
            if part.startswith("fc") and leaf == "weight":
                if number > 1:
                    source = source[:, keep[number - 2]]
                if number <= len(keep):
                    source = source[keep[number - 1]]
            elif part.startswith("norm") and source.ndim == 1:
                source = source[keep[number - 1]]
            state[name] = source.clone().view_as(value)
        copy.load_state_dict(state)
        return copy.eval()


class FloatMLP(nn.Module):
    """The float twin: linear, batch normalization, activation; nothing quantized.

    Args:
        input_dim: number of features.
        hidden_sizes: neurons of each hidden layer; may be empty.
        n_outputs: size of the last layer.
        activation_function: a torch activation class.

    Shape: ``[N, input_dim]`` to ``[N, n_outputs]``.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_sizes: Sequence[int],
        n_outputs: int,
        activation_function: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, object] = {
            "input_dim": input_dim,
            "hidden_sizes": tuple(hidden_sizes),
            "n_outputs": n_outputs,
            "activation_function": activation_function,
        }
        parts: list[nn.Module] = []
        width = _check_size("input_dim", input_dim)
        for size in hidden_sizes:
            parts += [nn.Linear(width, _check_size("hidden_sizes", size), bias=False)]
            parts += [nn.BatchNorm1d(size), activation_function()]
            width = size
        parts.append(nn.Linear(width, _check_size("n_outputs", n_outputs)))
        self.features = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.features(x)
        return y


class QuantConvNet(_QuantNet):
    """Small quantized convolutional network.

        input codes -> [convolution -> normalization -> ReLU codes] x layers -> flatten -> linear

    Same arithmetic as `SparseQuantNeuralNetImpl` with power-of-two scaling: each hidden code is an
    accumulator, plus a constant for its channel, without its low bits.

    Args:
        input_shape: ``(channels, height, width)`` of one input.
        n_outputs: size of the last layer.
        channels: output channels of each convolution.
        strides: stride of each convolution.
        kernel_size: of every convolution; padding is ``kernel_size // 2``, with code 0.
        n_w_bits: bits of the weights, 2 to 8; 2 bits narrow are ternary.
        n_a_bits: bits of the activations, 1 to 8.
        n_input_bits: bits of the input codes; None: ``n_a_bits``.
        input_signed: False for inputs that are never negative, such as pixels.
        quant_narrow: leave out the lowest signed code of the weights.
        fan_in: most non-zero weights in one output channel of a convolution; None: dense.
        table_bits, output_std: as in `SparseQuantNeuralNetImpl`.

    Shape: ``[N, *input_shape]`` float32 to ``[N, n_outputs]`` float32.

    >>> _ = torch.manual_seed(0)
    >>> net = QuantConvNet((1, 8, 8), 10, channels=(4, 8))
    >>> x = torch.rand(20, 1, 8, 8)
    >>> net.calibrate(x)
    >>> net.eval()(x).shape
    torch.Size([20, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        channels: Sequence[int] = (8, 16),
        strides: Sequence[int] = (2, 1),
        kernel_size: int = 3,
        n_w_bits: int = 2,
        n_a_bits: int = 2,
        n_input_bits: int | None = None,
        input_signed: bool = False,
        quant_narrow: bool = True,
        fan_in: int | None = None,
        table_bits: int | None = None,
        output_std: float = 2.0,
    ) -> None:
        super().__init__()
        depth, height, width = (_check_size("input_shape", size) for size in input_shape)
        kernel_size = _check_size("kernel_size", kernel_size)
        if len(channels) != len(strides):
            raise ShapeMismatch(
                mismatch("strides", f"{len(strides)} entries", f"{len(channels)}, as channels")
            )
        n_w_bits = _check_bits("n_w_bits", n_w_bits, 2)
        n_a_bits = _check_bits("n_a_bits", n_a_bits, 1)
        lowest = 2 if input_signed else 1
        n_input_bits = max(n_a_bits, lowest) if n_input_bits is None else n_input_bits
        n_input_bits = _check_bits("n_input_bits", n_input_bits, lowest)
        self.table_bits = table_bits
        self.output_std = output_std

        weights = _weight_options(n_w_bits, quant_narrow, power_of_two=True)
        padding = kernel_size // 2
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["quant0"] = QuantIdentity(
            act_quant=SignedAct if input_signed else UnsignedAct,
            bit_width=n_input_bits,
            return_quant_tensor=True,
        )
        for number, (size, stride) in enumerate(zip(channels, strides, strict=True), start=1):
            stride = _check_size("strides", stride)
            parts[f"conv{number}"] = QuantConv2d(
                depth,
                _check_size("channels", size),
                kernel_size,
                stride=stride,
                padding=padding,
                bias=False,
                **weights,
            )
            parts[f"norm{number}"] = PowerOfTwoNorm(size)
            parts[f"quant{number}"] = QuantReLU(
                act_quant=UnsignedAct, bit_width=n_a_bits, return_quant_tensor=True
            )
            depth = size
            height = (height + 2 * padding - kernel_size) // stride + 1
            width = (width + 2 * padding - kernel_size) // stride + 1
        parts["flatten"] = nn.Flatten()
        parts["fc"] = QuantLinear(
            depth * height * width,
            _check_size("n_outputs", n_outputs),
            bias=True,
            bias_quant=Int16Bias,
            **weights,
        )
        self.features = nn.Sequential(parts)
        for block in self.blocks():
            _init_weight(block.linear, n_w_bits)
        nn.init.zeros_(self.blocks()[-1].linear.bias)
        if fan_in is not None:
            self.limit_fan_in(fan_in)
