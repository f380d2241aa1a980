"""What the quantized networks share: a chain of quantizers, weight layers and normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import TypeVar

import numpy as np
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from torch import Tensor, nn
from torch.nn.utils import parametrize

from refqnn.accumulator import max_fan_in
from refqnn.emulate import Accumulator
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import is_integer, signed_bits, span_bits
from refqnn.pruning import registers
from refqnn.training.budget import SignSplit, shrink_
from refqnn.training.normalization import NORMS, PowerOfTwoNorm
from refqnn.training.quantizers import (
    FixedScaling,
    Mask,
    RowSparsity,
    add_weight_transform,
    calibrate,
    check_number,
    fix_weight_transforms,
    weight_transforms,
)

__all__ = ["AccumulatorRange", "Block", "QuantNet"]

FanIn = int | Sequence[int | Sequence[int] | None]
T = TypeVar("T", bound=nn.Module)


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

    def unit(self) -> Tensor:
        """Value of one unit of the accumulator, where scales are constant."""
        return _act_scaling(self.input_quant).scale * _weight_scaling(self).scale


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
        return signed_bits(int(self.lo.min()), int(self.hi.max()))

    @property
    def span_bits(self) -> int:
        """Bits of the widest range, once a constant has moved it to start at 0."""
        return span_bits(0, int((self.hi - self.lo).max()))

    @property
    def table_bits(self) -> int:
        """Bits that enter the table of the layer, after half a unit is added and r bits dropped.

        A range of 2**n values can touch one unit more than 2**(n-r): it need not start on a unit.
        """
        r = self.shift or 0
        half = (1 << r) >> 1
        top, bottom = (self.hi + half) >> r, (self.lo + half) >> r
        return int((top - bottom).max()).bit_length()


class QuantNet(nn.Module):
    """What the networks here share: a chain ``features`` of quantizers, layers, normalizations."""

    features: nn.Sequential
    output_std: float
    table_bits: int | None = None
    n_accum_bits: int | None = None
    n_prune_neurons_percentage: float = 0.0

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
            norms = [part for part in after if isinstance(part, NORMS)]
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
        _check_inputs(x)
        self.recalibrate(x)
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
            norm, scaling = block.norm, _act_scaling(block.quant)
            norm.step.copy_(block.unit())
            unit = float(norm.step * norm.gain)  # one accumulator unit, at the next quantizer
            if float(scaling.scale) < unit:  # codes finer than the accumulator mean nothing
                scaling.set_scale(unit)
            shift = round(math.log2(float(scaling.scale) / unit))
            if self.table_bits is not None:
                span = _largest_span(block)
                while units_touched(span, shift) > 2**self.table_bits:
                    shift += 1
                scaling.set_scale(math.ldexp(unit, shift))
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
            raw_weight(last).mul_(factor)
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
        if is_integer(budgets):
            budgets = [budgets] * (len(blocks) - 1) + [None]
        if not isinstance(budgets, Sequence | np.ndarray):
            expected = "an integer, or one for each linear layer"
            raise InvalidType(mismatch("budgets", repr(budgets), expected))
        if len(budgets) != len(blocks):
            raise ShapeMismatch(
                mismatch("budgets", f"{len(budgets)} entries", f"{len(blocks)}, one for each layer")
            )
        for block, budget in zip(blocks, budgets, strict=True):
            if budget is not None:
                add_weight_transform(block.linear, RowSparsity(block.linear.weight, budget))

    def has_fan_in_limits(self) -> bool:
        """Whether `limit_fan_in` has been called."""
        return any(True for _ in self._transforms(RowSparsity))

    def update_fan_in(self, keep: float = 0.0) -> None:
        """Choose the masks of `limit_fan_in` again, from the weights as they are now.

        Args:
            keep: fraction of each row to keep where that is more than the budget (`RowSparsity`).
        """
        for block, transform in self._transforms(RowSparsity):
            transform.update(raw_weight(block.linear), keep=keep)

    def _transforms(self, kind: type[T]) -> Iterator[tuple[Block, T]]:
        for block in self.blocks():
            for transform in weight_transforms(block.linear):
                if isinstance(transform, kind):
                    yield block, transform

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

    def enable_pruning(self, fraction: float | None = None) -> None:
        """Silence the given fraction of the neurons of each hidden layer, from now on.

        A neuron counts by the product of the norms of its incoming and outgoing weights; the least
        go.  Their rows, and the columns that read them, become zero.  Call it on a network that has
        trained for a while; the weights of a new one say nothing.

        Args:
            fraction: in [0, 1); rounded down to whole neurons.  None: n_prune_neurons_percentage.
        """
        fraction = self.n_prune_neurons_percentage if fraction is None else fraction
        check_number("fraction", fraction, 1.0, zero=True)
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

    def on_train_end(self) -> None:
        """`make_pruning_permanent`, under the name it has where training calls it."""
        self.make_pruning_permanent()

    # -- accumulator budgets ---------------------------------------------------------------------

    def add_accumulator_budgets(self, bits: int | Accumulator) -> None:
        """Keep every accumulator, bias included, within ``bits`` signed bits from now on.

        With an `Accumulator`, every sum of every stage within its register.

        Each row is projected onto its sign-split budget (`refqnn.pruning`), the bias of the last
        layer onto a quarter of the width.  The constants of hidden layers are part of the
        thresholds behind the accumulator, not of the accumulator.

        Call it after `limit_fan_in`; after each optimizer step call `shrink_to_budgets`.

        Raises: InvalidArgument when not even one weight of 1 fits a layer.
        """
        self.check_accumulator_bits(bits)
        width = bits.stages[-1].width if isinstance(bits, Accumulator) else bits
        for block in self.blocks():
            inputs, weights = _act_scaling(block.input_quant), _weight_scaling(block)
            bias = None
            if block.linear.bias is not None:
                limit = BiasLimit((1 << width) // 8, block.unit)
                parametrize.register_parametrization(block.linear, "bias", limit)
                bias = partial(limit.codes_of, block.linear)
            budget = SignSplit(
                partial(getattr, weights, "scale"),
                (inputs.min_code, inputs.max_code),
                bits,
                bias=bias,
                weight_range=(weights.min_code, weights.max_code),
            )
            add_weight_transform(block.linear, budget)

    @torch.no_grad()
    def shrink_to_budgets(self) -> None:
        """Pull the trained weights themselves toward their budgets (projected gradient descent)."""
        for block, budget in self._transforms(SignSplit):
            bias = None if budget.bias is None else budget.bias()
            weight = raw_weight(block.linear)
            shrink_(weight, budget.scale(), bias, budget.input_range, budget.bits)

    def check_accumulator_bits(self, bits: int | Accumulator) -> None:
        """Raises: InvalidArgument when not even one weight of 1 fits some layer."""
        for number, block in enumerate(self.blocks(), start=1):
            inputs = _act_scaling(block.input_quant)
            x_lo, x_hi = inputs.min_code, inputs.max_code
            either = ((x_lo, x_hi), (-x_hi, -x_lo))  # weight 1, weight -1
            for register in registers(bits):
                if any(register.q_min <= lo and hi <= register.q_max for lo, hi in either):
                    continue
                needed = min(signed_bits(lo, hi) for lo, hi in either)
                expected = (
                    f"at least {needed}: linear layer {number} reads codes {x_lo} to {x_hi}, and "
                    "one weight of 1 alone needs that many bits"
                )
                raise InvalidArgument(mismatch("n_accum_bits", bits, expected))

    def max_active_neurons(self, bits: int | None = None) -> int:
        """Inputs that any neuron may read with weights of any size, accumulators of ``bits``.

        None: ``n_accum_bits`` of the network.

        The least over the layers of `refqnn.max_fan_in`, with the bias that
        `add_accumulator_budgets` leaves room for.  A neuron with smaller weights may read more.
        """
        bits = self.n_accum_bits if bits is None else bits
        if bits is None:
            raise InvalidArgument(mismatch("n_accum_bits", None, "a number of bits"))
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

    def full_weight_bits(self) -> int:
        """The least accumulator in which a neuron may read one input with a weight of any size."""
        return next(bits for bits in count(2) if self.max_active_neurons(bits) > 0)

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
            codes, inputs = weight_codes(block.linear), _act_scaling(block.input_quant)
            positive, negative = codes.clamp(min=0).sum(dim=1), codes.clamp(max=0).sum(dim=1)
            shift, constant = None, torch.zeros(len(codes))
            if isinstance(block.norm, PowerOfTwoNorm) and block.quant is not None:
                constant = block.norm.shift(block.norm.running_mean) / block.norm.step
                unit = float(block.norm.step * block.norm.gain)
                shift = round(math.log2(float(_act_scaling(block.quant).scale) / unit))
            elif block.linear.bias is not None:
                constant = torch.round(block.linear.bias / block.unit())
            b = torch.floor(constant).to(torch.int64)
            lo = positive * inputs.min_code + negative * inputs.max_code + b
            hi = positive * inputs.max_code + negative * inputs.min_code + b
            ranges.append(AccumulatorRange(lo, hi, shift))
        return ranges


class BiasLimit(nn.Module):
    """Bias transform: a multiple of the accumulator's unit within ``limit`` units of 0.

    Args:
        limit: in units of the accumulator, >= 0.
        unit: returns the value of one unit.
    """

    def __init__(self, limit: int, unit: Callable[[], Tensor]) -> None:
        super().__init__()
        self.limit = limit
        self.unit = unit

    def forward(self, bias: Tensor) -> Tensor:
        unit = self.unit()
        codes = torch.round(bias / unit).clamp(-self.limit, self.limit)
        return bias + (codes * unit - bias).detach()

    def codes_of(self, linear: nn.Module) -> Tensor:
        """The integer bias of a layer, in units of its accumulator."""
        return torch.round(linear.bias.detach() / self.unit())


def _is_quantizer(part: nn.Module) -> bool:
    return isinstance(part, QuantIdentity | QuantReLU)


def _act_scaling(quant: nn.Module) -> FixedScaling:
    scaling: FixedScaling = quant.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    return scaling


def _weight_scaling(block: Block) -> FixedScaling:
    scaling: FixedScaling = block.linear.weight_quant.tensor_quant.scaling_impl
    return scaling


def weight_codes(layer: QuantLinear | QuantConv2d) -> Tensor:
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


def units_touched(span: int, shift: int) -> int:
    """Most values of ``acc >> shift`` on a range with hi - lo = span, wherever it starts."""
    units = span // 2**shift + 1
    return units + int(span % 2**shift > 0)


def raw_weight(layer: nn.Module) -> nn.Parameter:
    """The trained weight of a layer, before any transform."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations["weight"].original
    return layer.weight


def _check_inputs(x: object) -> None:
    if not isinstance(x, Tensor):
        raise InvalidType(mismatch("x", type(x).__name__, "a torch.Tensor"))
    if not x.dtype == torch.float32:
        raise InvalidType(mismatch("x", f"dtype {x.dtype}", "torch.float32"))
    if len(x) < 2:
        raise InvalidArgument(mismatch("x", f"{len(x)} rows", "at least 2"))
    if not bool(torch.isfinite(x).all()):
        raise InvalidArgument(mismatch("x", "NaN or infinity", "finite values"))
